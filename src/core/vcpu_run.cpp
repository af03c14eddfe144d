// KVM_RUN: from the client's call to the next exit (KVM API 4.10, DESIGN D9 and D11).
#include <errno.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "base/guarded_memory.h"
#include "base/trace.h"
#include "core/client_registers.h"
#include "core/vcpu.h"
#include "core/vm.h"
#include "x86/mmu/access.h"
#include "x86/nested/svm/world_switch.h"
#include "x86/sys/kvmclock.h"

namespace anykvm::core {
namespace {

using Reason = x86::Exit::Reason;

// The client may change the shared page while we look: each field is read once.
template <class T>
T read_once(const T& field) {
  return *static_cast<const volatile T*>(&field);
}

constexpr u64 kSyncFields = KVM_SYNC_X86_VALID_FIELDS;

// The client's answer to a hypercall of this kind.
u64 hypercall_result(const kvm_run& run, u32 kind) {
  switch (kind) {
    case KVM_EXIT_XEN:
      return read_once(run.xen.u.hcall.result);
    case KVM_EXIT_HYPERV:
      return read_once(run.hyperv.u.hcall.result);
    default:
      return read_once(run.hypercall.ret);
  }
}

// QEMU's paravirtual APIC for guests of 32 bits (kvmvapic).
constexpr u16 kVapicPort = 0x7e;

// For the trace: what a port or MMIO exit asks for.
std::string access_of_exit(const kvm_run& run) {
  if (run.exit_reason == KVM_EXIT_IO)
    return fmt::format(" ({} port {:#x}, {} x {})", run.io.direction == KVM_EXIT_IO_OUT ? "out" : "in",
                       run.io.port, run.io.count, run.io.size);
  if (run.exit_reason == KVM_EXIT_MMIO)
    return fmt::format(" ({} {:#x}, {})", run.mmio.is_write ? "write" : "read", run.mmio.phys_addr,
                       run.mmio.len);
  return {};
}

}  // namespace

Result<> Vcpu::run() {
  ++m_cpu->counts().runs;
  m_has_run = true;
  m_signalled.store(false, std::memory_order_relaxed);  // only this thread's handlers set it
  Result<> result;
  {
    RunSignals signals(*this, m_signal_mask);
    m_shared.run().flags = 0;
    if (state().mp_state == x86::MpState::kUninitialized)
      result = wait_as_uninitialized(signals);
    else if (result = begin_run(); result.ok())
      result = run_until_exit(signals);
  }
  show_stopped();
  save_run_state();
  m_stats.count(VcpuStat::exits);
  ANYKVM_TRACE(exit, "vcpu {} exit {}{} rip {:#x} result {}", m_id, m_shared.run().exit_reason,
               access_of_exit(m_shared.run()), state().rip, result.ok() ? 0 : result.error().code);
  return result;
}

// The kernel's KVM_RUN of a vCPU that never got an INIT waits for one event and returns EAGAIN.
Result<> Vcpu::wait_as_uninitialized(RunSignals& signals) {
  while (!m_requests.load() && !m_signalled.load() && !read_once(m_shared.run().immediate_exit))
    wait(signals);
  handle_apic_requests();
  if (take_signal()) return interrupted();
  if (read_once(m_shared.run().immediate_exit)) return left_at_once();
  return Error{EAGAIN, "the vCPU was uninitialized"};
}

Result<> Vcpu::begin_run() {
  if (m_xen.counts_runstates()) m_cpu->visit_memory([this] { m_xen.enter_runstate(xen::kRunning); });
  kvm_run& run = m_shared.run();
  const u64 dirty = read_once(run.kvm_dirty_regs);
  if ((read_once(run.kvm_valid_regs) | dirty) & ~kSyncFields) return Error{EINVAL, "unknown register sets"};
  TRY(load_synced_registers(*this, run.s.regs, dirty));
  run.kvm_dirty_regs = 0;
  if (!m_lapic) TRY(set_task_priority(read_once(run.cr8)));
  return {};
}

Result<> Vcpu::run_until_exit(RunSignals& signals) {
  kvm_run& run = m_shared.run();
  const bool io_pending = m_cpu->io_pending();
  if (!io_pending) m_region_access.reset();
  const bool client_answered = io_pending && !m_region_access;
  if (client_answered) complete_client_io();
  m_hyperv.resume(run);
  const bool immediate_exit = read_once(run.immediate_exit);
  if (immediate_exit || m_signalled.load()) {
    if (client_answered && finish_instruction()) return {};
    return take_signal() ? interrupted() : left_at_once();
  }
  for (;;) {
    if (take_signal()) return interrupted();
    if (m_region_access) {
      if (TRY(finish_region_access(signals))) return {};
      continue;
    }
    m_dirty_ring.place_late();
    if (m_dirty_ring.nearly_full()) return run.exit_reason = KVM_EXIT_DIRTY_RING_FULL, Result<>{};
    if (report_apic_access()) return {};
    handle_apic_requests();
    if (state().mp_state == x86::MpState::kHalted && runnable_after_halt()) {
      m_unhalted = false;
      state().smm.from_halt = m_cpu->smi_waits() && !state().smm.active;
      m_xen.end_poll();
      m_stats.count(VcpuStat::halt_wakeup);
      state().mp_state = x86::MpState::kRunnable;
    }
    if (state().mp_state != x86::MpState::kRunnable) {
      show_stopped();
      wait(signals);
      continue;
    }
    if (!m_vm.has_pic()) m_cpu->set_interrupt_window_request(read_once(run.request_interrupt_window));
    const x86::Exit exit = run_guest();
    if (exit.reason == Reason::kMemoryFault) return report_missing_memory();
    if (exit.reason == Reason::kNoMemory) return Error{ENOMEM, "no memory to run the guest with"};
    if (exit.reason == Reason::kMmio && m_vm.is_private(Gpa(exit.gpa)))
      return report_private_access(exit.gpa);
    if (handle_exit(exit)) return {};
  }
}

void Vcpu::show_running() {
  const u32 clock_generation = m_vm.clock().generation();
  if (m_clock_generation != clock_generation) {
    m_clock_generation = clock_generation;
    m_cpu->visit_memory([this] {
      x86::refresh_kvmclock(*m_cpu);
      if (m_xen.has_time()) m_xen.refresh_time();
    });
  }
  if (m_vm.hyperv().tsc_page_stale()) m_cpu->visit_memory([this] { m_vm.hyperv().refresh_tsc_page(*m_cpu); });
  if (StealTime::enabled(state())) m_cpu->visit_memory([this] { m_steal_time.running(*m_cpu); });
  if (AsyncPageFaults::enabled(state())) m_cpu->visit_memory([this] { m_cpu->look_for_absent_pages(); });
}

void Vcpu::show_stopped() {
  if (StealTime::enabled(state())) m_cpu->visit_memory([this] { m_steal_time.stopped(*m_cpu); });
}

x86::Exit Vcpu::run_guest() {
  show_running();
  if (!m_lapic) return m_cpu->run();                                  // counters interrupt nobody
  if (m_xen.may_have_upcall()) m_cpu->request(x86::kAttentionEvent);  // the client may ask for it in memory
  m_in_guest.store(true);
  expire_timers();
  arm_timer();
  x86::Exit exit = m_cpu->run();
  m_in_guest.store(false, std::memory_order_release);
  if (m_pv_eoi.offered()) m_cpu->visit_memory([this] { settle_pv_eoi(); });
  m_vm.timers().disarm(m_timer);
  if (m_counter_timer) m_vm.timers().disarm(m_counter_timer);
  return exit;
}

Error Vcpu::interrupted() {
  ++m_cpu->counts().exits_signal;
  m_stats.count(VcpuStat::signal_exits);
  ANYKVM_TRACE(signal, "vcpu {} leaves KVM_RUN", m_id);
  m_shared.run().exit_reason = KVM_EXIT_INTR;
  return Error{EINTR, "a signal came"};
}

// immediate_exit leaves exit_reason as it was (KVM API 5), so that a client may complete an access with it
// and look at that access again.
Error Vcpu::left_at_once() {
  ++m_cpu->counts().exits_signal;
  m_stats.count(VcpuStat::signal_exits);
  return Error{EINTR, "immediate_exit"};
}

// --- The client's answers ---

void Vcpu::complete_client_io() {
  if (m_io_exit.reason == Reason::kHypercall) {
    const u64 result = hypercall_result(m_shared.run(), m_io_exit.code);
    return m_cpu->complete_io(&result);
  }
  if (m_io_exit.reason == Reason::kMsr) {
    const u64 data = read_once(m_shared.run().msr.data);
    return m_cpu->complete_io(&data, read_once(m_shared.run().msr.error) != 0);
  }
  if (m_io_exit.write) return m_cpu->complete_io(nullptr);
  std::array<u8, kPageSize> data;
  if (m_io_exit.reason == Reason::kPio)
    memcpy(data.data(), m_shared.pio_data(),
           std::min<std::size_t>(m_io_exit.size * m_io_exit.count, data.size()));
  else
    memcpy(data.data(), m_shared.run().mmio.data, 8);
  m_cpu->complete_io(data.data());
}

bool Vcpu::finish_instruction() {
  // The kick ends run() at its first poll, which comes after the instruction that has its answers.
  m_cpu->request(x86::kAttentionKick);
  return handle_exit(run_guest());
}

// --- INIT and SIPI (SDM 3A 8.4) ---

void Vcpu::handle_apic_requests() {
  constexpr u8 kOthers = kRequestHypervTimers | kRequestXenTimers | kRequestPagesArrived;
  const u8 requests = m_requests.load() & kOthers ? m_requests.fetch_and(static_cast<u8>(~kOthers)) : 0;
  if (m_lapic) {
    if (requests & kRequestHypervTimers) m_cpu->visit_memory([this] { m_hyperv.run_timers(); });
    if (requests & kRequestXenTimers) m_cpu->visit_memory([this] { m_xen.expire(); });
    if (requests & kRequestPagesArrived) m_cpu->visit_memory([this] { tell_of_pages(); });
  }
  accept_init_and_sipi();
}

void Vcpu::accept_init_and_sipi() {
  constexpr u8 kStarts = kRequestInit | kRequestSipi;
  u8 requests = m_requests.load() & kStarts ? m_requests.fetch_and(static_cast<u8>(~kStarts)) : 0;
  if (!m_lapic) return;
  if (blocks_init() || hypervisor_takes_init(requests)) {
    m_init_latched = m_init_latched || (requests & kRequestInit);
    return;
  }
  if (std::exchange(m_init_latched, false)) requests |= kRequestInit;
  if (requests & kRequestInit) {
    ANYKVM_TRACE(irq, "vcpu {} gets INIT", m_id);
    m_cpu->reset(true);
    m_lapic->reset(true);
    state().msrs.kvm_pv_eoi = 0;
    state().msrs.kvm_async_pf_int = 0;
    m_async_page_faults.reset(*m_cpu);
    state().mp_state = m_lapic->is_bsp() ? x86::MpState::kRunnable : x86::MpState::kInitReceived;
    m_cpu->state_replaced();
  }
  if ((requests & kRequestSipi) && state().mp_state == x86::MpState::kInitReceived)
    start_at_sipi_vector(m_sipi_vector.load());
}

// SDM 3A 8.4; APM 2 15.17 for GIF.
bool Vcpu::blocks_init() { return state().smm.active || !state().svm.gif; }

// Then it comes when the hypervisor sets GIF again.
bool Vcpu::hypervisor_takes_init(u8 requests) {
  const bool comes = m_init_latched || (requests & kRequestInit);
  if (!comes || !state().svm.intercepts(x86::Intercept::kInit)) return false;
  leave_nested_guest(x86::kExitFirstIntercept + static_cast<u64>(x86::Intercept::kInit));
  return true;
}

void Vcpu::leave_nested_guest(u64 code, u64 info_1) {
  m_cpu->visit_memory([&] { x86::svm::leave_guest(*m_cpu, {.code = code, .info_1 = info_1}, 0); });
  m_cpu->state_replaced();
}

void Vcpu::start_at_sipi_vector(u8 vector) {
  ANYKVM_TRACE(irq, "vcpu {} starts at {:#x}", m_id, vector << 12);
  x86::CpuState& cpu_state = state();
  x86::Segment& cs = cpu_state.segments[x86::kCs];
  cs.selector = static_cast<u16>(vector << 8);
  cs.base = u64{vector} << 12;
  cpu_state.rip = 0;
  cpu_state.mp_state = x86::MpState::kRunnable;
  m_cpu->state_replaced();
}

// --- Exits ---

bool Vcpu::handle_exit(const x86::Exit& exit) {
  kvm_run& run = m_shared.run();
  switch (exit.reason) {
    case Reason::kNone:
    case Reason::kInterrupted:
    case Reason::kMemoryFault:  // run_until_exit() returns these
    case Reason::kNoMemory:
      return false;
    case Reason::kHalt:
      m_stats.count(VcpuStat::halt_exits);
      if (m_lapic || m_vm.halts_without_exit()) return state().mp_state = x86::MpState::kHalted, false;
      state().mp_state = x86::MpState::kRunnable;
      run.exit_reason = KVM_EXIT_HLT;
      return true;
    case Reason::kMmio:
      return !begin_region_access(exit) && (report_mmio(exit), true);
    case Reason::kPio:
      if (begin_region_access(exit)) return false;
      if (exit.write && exit.port == kVapicPort) finish_out_to_vapic();
      return report_pio(exit), true;
    case Reason::kShutdown:
      return run.exit_reason = KVM_EXIT_SHUTDOWN, true;
    case Reason::kDebug:
      return report_debug(exit), true;
    case Reason::kInternalError:
      return report_internal_error(exit), true;
    case Reason::kHypercall:
      return report_hypercall(exit), true;
    case Reason::kTprAccess:
      return run.exit_reason = KVM_EXIT_SET_TPR, true;
    case Reason::kInterruptWindow:
      m_stats.count(VcpuStat::irq_window_exits);
      return run.exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN, true;
    case Reason::kMsr:
      return report_msr(exit), true;
    case Reason::kPlatform:
      return m_hyperv.finish_instruction(run);
  }
  return false;
}

bool Vcpu::take_request(Request request) {
  return (m_requests.load() & request) && (m_requests.fetch_and(static_cast<u8>(~request)) & request);
}

// These exits come once the instruction that made the access is complete.
bool Vcpu::report_apic_access() {
  kvm_run& run = m_shared.run();
  if (take_request(kRequestClientEoi)) {
    run.exit_reason = KVM_EXIT_IOAPIC_EOI;
    run.eoi.vector = m_client_eoi;
    return true;
  }
  if (!take_request(kRequestTprAccess)) return false;
  run.exit_reason = KVM_EXIT_TPR_ACCESS;
  run.tpr_access.rip = m_tpr_rip;
  run.tpr_access.is_write = m_tpr_write;
  return true;
}

bool Vcpu::ready_for_client_interrupt() { return m_cpu->interrupts_open() && takes_client_interrupt(); }

// KVM_X86_QUIRK_OUT_7E_INC_RIP: clients patch what lies before RIP when a guest's firmware writes to this
// port. While the client debugs the guest, the exit after the instruction is its own.
void Vcpu::finish_out_to_vapic() {
  const x86::GuestDebug& debug = m_cpu->guest_debug();
  if (!m_vm.has_quirk(KVM_X86_QUIRK_OUT_7E_INC_RIP) || debug.single_step || debug.hardware_breakpoints)
    return;
  m_cpu->complete_io(nullptr);
  m_cpu->request(x86::kAttentionKick);
  run_guest();  // what else may stop it does so again at the next KVM_RUN
}

void Vcpu::report_pio(const x86::Exit& exit) {
  ++m_cpu->counts().exits_io;
  m_stats.count(VcpuStat::io_exits);
  m_io_exit = exit;
  kvm_run& run = m_shared.run();
  run.exit_reason = KVM_EXIT_IO;
  run.io.direction = exit.write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
  run.io.size = exit.size;
  run.io.port = exit.port;
  run.io.count = exit.count;
  run.io.data_offset = KVM_PIO_PAGE_OFFSET * kPageSize;
  const std::size_t size = std::min<std::size_t>(exit.size * exit.count, exit.data.size());
  if (exit.write)
    memcpy(m_shared.pio_data(), exit.data.data(), size);
  else
    memset(m_shared.pio_data(), 0, size);  // as the kernel: what a client leaves alone reads as zero
}

void Vcpu::report_mmio(const x86::Exit& exit) {
  ++m_cpu->counts().exits_mmio;
  m_stats.count(VcpuStat::mmio_exits);
  m_io_exit = exit;
  kvm_run& run = m_shared.run();
  run.exit_reason = KVM_EXIT_MMIO;
  run.mmio.phys_addr = exit.gpa;
  run.mmio.len = exit.size;
  run.mmio.is_write = exit.write;
  memcpy(run.mmio.data, exit.data.data(), sizeof run.mmio.data);
}

// A private page without memory: the client makes it shared, or gives it memory, and the instruction is
// executed again.
Error Vcpu::report_private_access(u64 gpa) {
  m_cpu->io_done();
  report_memory_fault(Gpa(gpa), KVM_MEMORY_EXIT_FLAG_PRIVATE);
  return Error{EFAULT, "a private page has no memory"};
}

// The client has unmapped memory of a slot, or a file has become shorter. Which page it was is known by the
// host's address.
Error Vcpu::report_missing_memory() {
  if (const auto address = m_vm.guest_address(guarded_fault_address())) report_memory_fault(*address, 0);
  return Error{EFAULT, "guest memory is not mapped"};
}

// KVM API 7.34.
void Vcpu::report_memory_fault(Gpa address, u64 flags) {
  kvm_run& run = m_shared.run();
  run.exit_reason = KVM_EXIT_MEMORY_FAULT;
  const anykvm_memory_fault fault{flags, address.page().value, kPageSize};
  memcpy(run.padding, &fault, sizeof fault);
}

void Vcpu::report_msr(const x86::Exit& exit) {
  m_io_exit = exit;
  kvm_run& run = m_shared.run();
  run.exit_reason = exit.write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;
  run.msr.error = 0;
  memset(run.msr.pad, 0, sizeof run.msr.pad);
  run.msr.reason = exit.code;
  run.msr.index = static_cast<u32>(exit.gpa);
  memcpy(&run.msr.data, exit.data.data(), sizeof run.msr.data);
}

void Vcpu::report_debug(const x86::Exit& exit) {
  kvm_run& run = m_shared.run();
  run.exit_reason = KVM_EXIT_DEBUG;
  run.debug.arch.exception = exit.debug_vector;
  run.debug.arch.pad = 0;
  run.debug.arch.pc = exit.debug_pc;
  run.debug.arch.dr6 = exit.debug_dr6;
  const x86::GuestDebug& client = m_cpu->guest_debug();
  run.debug.arch.dr7 =
      client.hardware_breakpoints ? client.breakpoints.control | x86::kDr7Fixed1 : state().dr7;
}

void Vcpu::report_internal_error(const x86::Exit& exit) {
  kvm_run& run = m_shared.run();
  run.exit_reason = KVM_EXIT_INTERNAL_ERROR;
  run.internal.suberror = exit.code;
  run.internal.ndata = 0;
  if (exit.code == KVM_INTERNAL_ERROR_EMULATION && m_vm.tells_failed_instructions()) tell_instruction();
}

// The bytes at RIP, as far as they can be fetched (KVM API 7.25).
void Vcpu::tell_instruction() {
  auto& failure = m_shared.run().emulation_failure;
  std::array<u8, sizeof failure.insn_bytes> bytes{};
  u8 size = 0;
  m_cpu->visit_memory([&] {
    while (size < bytes.size() && x86::read_code_byte(*m_cpu, size, &bytes[size])) ++size;
  });
  constexpr u32 kFlagsAndBytes = 3;  // in words of 64 bits
  failure.ndata = kFlagsAndBytes;
  failure.flags = size ? KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES : 0;
  failure.insn_size = size;
  memcpy(failure.insn_bytes, bytes.data(), bytes.size());
}

void Vcpu::save_run_state() {
  kvm_run& run = m_shared.run();
  if (state().smm.active) run.flags |= KVM_RUN_X86_SMM;
  if (state().svm.guest_mode) run.flags |= KVM_RUN_X86_GUEST_MODE;
  run.if_flag = (state().rflags & x86::kFlagIf) != 0;
  run.cr8 = task_priority();
  run.apic_base = apic_base();
  run.ready_for_interrupt_injection = m_vm.has_pic() || ready_for_client_interrupt();
  store_synced_registers(*this, run.s.regs, read_once(run.kvm_valid_regs));
}

}  // namespace anykvm::core
