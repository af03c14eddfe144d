// Cpu::run(): the dispatcher between translated blocks, and what happens between them.
#include <asm/prctl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "base/trace.h"
#include "x86/code_finder.h"
#include "x86/cpu_private.h"
#include "x86/mmu/absent_pages.h"
#include "x86/mmu/client_writes.h"
#include "x86/nested/svm/world_switch.h"
#include "x86/sys/events.h"
#include "x86/sys/smm.h"
#include "x86/sys/stack_frame.h"
#include "x86/translate/host_signals.h"

namespace anykvm::x86 {
namespace {

bool fsgsbase_usable() {
  constexpr unsigned long kHwcap2Fsgsbase = 2;
  static const bool usable = getauxval(AT_HWCAP2) & kHwcap2Fsgsbase;
  return usable;
}

// GS base for the time of run(): translated code finds its Context there; glibc does not use it.
class GsBase {
 public:
  explicit GsBase(Context* context) {
    m_before = get();
    set(reinterpret_cast<u64>(context));
  }
  ~GsBase() { set(m_before); }
  GsBase(const GsBase&) = delete;
  GsBase& operator=(const GsBase&) = delete;

 private:
  static u64 get() {
    u64 value = 0;
    if (fsgsbase_usable()) {
      asm volatile("rdgsbase %0" : "=r"(value));
    } else {
      syscall(SYS_arch_prctl, ARCH_GET_GS, &value);
    }
    return value;
  }
  static void set(u64 value) {
    if (fsgsbase_usable()) {
      asm volatile("wrgsbase %0" : : "r"(value) : "memory");
    } else {
      syscall(SYS_arch_prctl, ARCH_SET_GS, value);
    }
  }
  u64 m_before;
};

// While an event is delivered, the guest cannot be told of another.
class WaitsForPages {
 public:
  explicit WaitsForPages(Context& context)
      : m_context(context), m_epoch(std::exchange(context.absence_epoch, u8{0})) {}
  ~WaitsForPages() { m_context.absence_epoch = m_epoch; }
  WaitsForPages(const WaitsForPages&) = delete;
  WaitsForPages& operator=(const WaitsForPages&) = delete;

 private:
  Context& m_context;
  const u8 m_epoch;
};

Exit make_exit(Exit::Reason reason) {
  Exit exit;
  exit.reason = reason;
  return exit;
}

// Host trap numbers are the CPU's vectors. A host page fault in translated code is guest RAM that the client
// has taken away, which only the client can put right.
GuestStop stop_of_signal(Cpu& cpu, u8 trap) {
  switch (trap) {
    case kVectorPf:
      return GuestStop::unmapped();
    case kVectorDe:
      return GuestStop::de();
    case kVectorUd:
      return GuestStop::ud();
    case kVectorMf:
      return GuestStop::mf();
    case kVectorXm:
      return GuestStop::plain(kVectorXm);
    case kVectorAc:
      return GuestStop::ac();
    case kVectorSs:  // an empty slot hit by an address that is not canonical, based on RBP
      return GuestStop::ss(0);
    case kVectorGp:
      return GuestStop::gp(0);
    default: {
      Exit exit = make_exit(Exit::Reason::kInternalError);
      exit.code = 1;  // KVM_INTERNAL_ERROR_EMULATION
      return cpu.stop_for_client(exit);
    }
  }
}

}  // namespace

// One call of run(): keeps what lives from block to block.
class Dispatcher {
 public:
  Dispatcher(Cpu& cpu, Cpu::Private& p)
      : m_cpu(cpu),
        m_private(p),
        m_context(cpu.context()),
        m_state(cpu.state()),
        m_code(cpu.machine().code()),
        m_finder(cpu, p) {}

  Exit run() {
    // The access to memory that the client has answered would only find again that it is none of RAM.
    m_slow = m_private.replay.repeats_memory_access();
    for (;;) {
      if (m_context.stamp.part.attention.load(std::memory_order_acquire) || m_private.pmu.overflowed()) {
        if (auto exit = attend()) return *exit;
      }
      const bool shuts_down = m_state.events.triple_fault && !m_private.replay.in_progress();
      if (shuts_down && !shutdown_is_intercepted()) return shutdown();
      if (auto exit = step()) return *exit;
    }
  }

 private:
  using MaybeExit = std::optional<Exit>;

  Exit shutdown() {
    m_state.events.triple_fault = false;
    return make_exit(Exit::Reason::kShutdown);
  }

  bool shutdown_is_intercepted() {
    if (!m_state.svm.intercepts(Intercept::kShutdown)) return false;
    leave_nested(svm::PendingExit{.code = kExitShutdown});
    return true;
  }

  // --- To the hypervisor of a nested guest ---

  MaybeExit leave_nested(const svm::PendingExit& exit) {
    m_private.replay.done();
    m_private.exit_after = false;
    m_private.debug_hits = 0;
    m_slow = m_narrow = false;
    svm::leave_guest(m_cpu, exit, std::exchange(m_private.delivering, 0));
    m_context.image_from_rflags();
    m_left = kNoRecord;
    // VMRUN that its hypervisor single-steps is complete only now.
    if (m_state.rflags & kFlagTf) return deliver_exception({kVectorDb, false, 0, kDr6Bs});
    return {};
  }

  static bool for_hypervisor(const GuestStop& stop) {
    return stop.kind == GuestStop::Kind::kVmexit || stop.kind == GuestStop::Kind::kNestedPageFault;
  }

  MaybeExit leave_nested(const GuestStop& stop) {
    if (stop.kind == GuestStop::Kind::kVmexit) return leave_nested(m_private.vmexit);
    const u64 where = stop.fault.has_error ? kNpfTableWalk : kNpfFinal;
    return leave_nested(svm::PendingExit{kExitNestedPageFault, stop.fault.error | where, stop.fault.payload, 0});
  }

  // An event of the machine: the hypervisor's, if it wants those.
  bool hypervisor_takes(Intercept event) {
    if (!m_state.svm.intercepts(event)) return false;
    leave_nested(svm::PendingExit{.code = kExitFirstIntercept + static_cast<u64>(event)});
    return true;
  }

  // --- Attention ---

  void clear(u8 bits) { m_context.stamp.part.attention.fetch_and(static_cast<u8>(~bits)); }

  MaybeExit attend() {
    look_at_counters();
    u8 bits = m_context.stamp.part.attention.load();
    if (bits & kAttentionWorld) let_the_world_change();
    if (bits & kAttentionCode) {
      clear(kAttentionCode);
      m_left = kNoRecord;
    }
    // An instruction or a delivery whose accesses the client has answered is finished first: the state that
    // the client then reads and saves must not make them happen twice (KVM API 5, immediate_exit).
    const bool kicked = bits & kAttentionKick;
    m_half_done = half_done();
    if (kicked && !m_half_done) return interrupted();
    if (!(bits & kAttentionEvent)) return {};
    clear(kAttentionEvent);
    if (auto exit = take_events()) return exit;
    if (kicked && !m_slow) return interrupted();
    return {};
  }

  void look_at_counters() {
    if (!(m_context.stamp.part.attention.load() & kAttentionPmu) && !m_private.pmu.overflowed()) return;
    clear(kAttentionPmu);
    m_private.pmu.attend();
    m_left = kNoRecord;  // the mode may be another
  }

  // Cleared before: the next change may be asked for as soon as this one is done, and needs a flush of its
  // own.
  void let_the_world_change() {
    clear(kAttentionWorld);
    m_cpu.stop_the_world_aside();
    m_left = kNoRecord;
    m_private.found.forget();
    m_cpu.flush_tlb();
  }

  // Is there an instruction or a delivery to be finished? If so, the next instruction runs alone. When it is
  // not the one that the client has answered, since the client gave the CPU another state meanwhile, the
  // answers are void.
  bool half_done() {
    IoReplay& replay = m_private.replay;
    if (!replay.in_progress()) return m_had_its_turn = false;
    if (m_had_its_turn && replay.attempts() == m_attempts) {
      replay.done();
      return m_had_its_turn = false;
    }
    m_attempts = replay.attempts();
    if (!replay.delivering()) m_slow = true;
    return m_had_its_turn = true;
  }

  Exit interrupted() {
    clear(kAttentionKick);
    return make_exit(Exit::Reason::kInterrupted);
  }

  // Events wait while an instruction is half done: its accesses to the outside would otherwise happen twice.
  MaybeExit take_events() {
    m_context.held_back &= ~kHeldEvent;
    Events& events = m_state.events;
    const bool injected = events.exception.injected || events.exception.pending ||
                          events.interrupt.injected || events.nmi.injected;
    const bool half_delivered = injected && m_private.replay.delivering();
    if (m_half_done && !half_delivered) return after_one_instruction();
    if (injected) return deliver_from_events();
    if (!m_state.svm.gif) return {};  // STGI asks again
    const bool blocked = m_private.guest_debug.single_step && m_private.guest_debug.block_interrupts;
    if (events.shadow || blocked) return after_one_instruction();
    if (m_cpu.smi_waits() && !m_state.smm.active) {
      if (hypervisor_takes(Intercept::kSmi)) return {};
      return enter_management_mode();
    }
    collect_nmis(events);
    if (events.nmi.pending && hypervisor_takes(Intercept::kNmi)) return {};
    if (events.nmi.pending && !events.nmi.masked) {
      m_cpu.see_code_as_it_is();  // a device's MSI may be an NMI
      --events.nmi.pending;
      events.nmi.injected = true;
      return deliver_from_events();
    }
    return take_interrupt();
  }

  MaybeExit enter_management_mode() {
    m_private.queued_smi = false;
    enter_smm(m_cpu);
    ANYKVM_TRACE(fault, "{}: SMI, SMBASE {:#x}", m_cpu.number(), m_state.smm.base);
    m_context.image_from_rflags();
    m_left = kNoRecord;
    m_cpu.request(kAttentionEvent);
    return {};
  }

  // While an NMI is served, one more is kept; else two are, of which the first is about to be taken (as in
  // KVM).
  void collect_nmis(Events& events) {
    const unsigned most = events.nmi.masked ? 1 : 2;
    const unsigned wanted = events.nmi.pending + u32{m_private.queued_nmis.exchange(0)};
    events.nmi.pending = static_cast<u8>(std::min(wanted, most));
  }

  // The slow form holds one instruction and comes back; a block could jump on to others and never do.
  MaybeExit after_one_instruction() {
    m_private.recheck_events = true;
    m_slow = true;
    return {};
  }

  MaybeExit take_interrupt() {
    const bool open = m_cpu.interrupts_enabled();
    const bool for_client =
        (m_context.held_back & kHeldClient) && open && m_cpu.platform().takes_client_interrupt();
    if (for_client && hypervisor_takes(Intercept::kIntr)) return {};
    if (for_client) return make_exit(Exit::Reason::kInterruptWindow);
    if (!m_cpu.platform().interrupt_ready()) return take_virtual_interrupt();
    if (!open) {
      m_context.held_back |= kHeldEvent;
      return take_virtual_interrupt();
    }
    if (hypervisor_takes(Intercept::kIntr)) return {};
    auto vector = m_cpu.platform().acknowledge_interrupt();
    if (!vector) return {};
    ++m_cpu.counts().interrupts;
    m_finder.sample();
    m_cpu.see_code_as_it_is();  // it may say that a device has written memory
    ANYKVM_TRACE(fault, "{}: interrupt {:#x} at {:#x}", m_cpu.number(), *vector, m_state.rip);
    m_state.events.interrupt = {.injected = true, .soft = false, .vector = *vector};
    return deliver_from_events();
  }

  // APM 2 15.21.
  MaybeExit take_virtual_interrupt() {
    SvmState& svm = m_state.svm;
    if (!svm.guest_mode || !(svm.control.int_ctl & kVIrq)) return {};
    if (!m_cpu.virtual_interrupt_ready()) {
      m_context.held_back |= kHeldEvent;
      return {};
    }
    if (hypervisor_takes(Intercept::kVintr)) return {};
    svm.control.int_ctl &= ~u32{kVIrq};
    m_state.events.interrupt = {
        .injected = true, .soft = false, .vector = static_cast<u8>(svm.control.int_vector)};
    return deliver_from_events();
  }

  // An event stays injected until it is delivered: where its stack or a table is MMIO, the client has to act
  // first, and the next run() goes on.
  MaybeExit deliver_from_events() {
    m_private.recheck_events = true;
    m_private.replay.begin_delivery();
    const WaitsForPages waits(m_context);
    return delivered(deliver_injected(m_cpu));
  }

  // As deliver_from_events(), without the detour while nothing stops it.
  MaybeExit deliver_exception(const GuestFault& fault) {
    ++m_cpu.counts().exceptions;
    m_private.replay.begin_delivery();
    const WaitsForPages waits(m_context);
    Guest<void> result = deliver_fault(m_cpu, fault);
    if (!result.ok() && !for_hypervisor(result.error())) {
      auto& exception = m_state.events.exception;
      exception = {};
      exception.injected = true;
      exception.vector = fault.vector;
      exception.has_error = fault.has_error;
      exception.error = fault.error;
    }
    return delivered(result);
  }

  // --- One block ---

  MaybeExit step() {
    ANYKVM_TRACE(block, "{}: rip {:#x} rsp {:#x} mode {}/{} cr0 {:#x} cr3 {:#x}{}", m_cpu.number(),
                 m_state.rip, m_state.gpr[kRsp], m_private.mode.code_bits, m_private.mode.cpl, m_state.cr0,
                 m_state.cr3, m_slow ? " slow" : "");
    m_near_breakpoint = false;
    if (m_cpu.watching()) {
      if (auto hit = instruction_breakpoint()) return *hit;
      look_out_for_breakpoints();
    }
    bool trap = m_state.rflags & kFlagTf;
    bool held_back = m_state.events.shadow & kShadowMovSs;
    if (!held_back) m_private.debug_hits = 0;
    if (m_private.debug_hits) m_slow = true;  // the trap is due after one more instruction
    m_state.rflags &= ~u64{kFlagRf};
    m_state.events.shadow = 0;
    const bool nested = m_state.svm.guest_mode;
    const u8* code = next_code();
    if (!code) return handle(m_context.leave);
    const RecordRef left = m_code.thunks().enter(&m_context, code);
    ++m_cpu.counts().lookups;
    Leave leave = m_context.leave;
    if (leave == Leave::kLookup) {
      m_slow = m_narrow = false;
      if (left & kIndirectBranch) {
        if (!fetchable()) return branch_faulted(left);
        m_left = kNoRecord;
      } else {
        left_through(left);
      }
      m_context.rflags_from_image();
      const bool entered_nested = m_state.svm.guest_mode && !nested;
      if (trap && !m_swallows_trap && !entered_nested) m_private.debug_hits |= kDr6Bs;
      if (m_private.debug_hits || m_private.guest_debug.single_step) return debug_trap();
      return after_instruction();
    }
    m_left = kNoRecord;
    return handle(leave);
  }

  // May code be at RIP? (SDM 1 3.5.1; the segment's limit outside 64-bit mode.)
  bool fetchable() const {
    return m_state.code64() ? m_state.canonical(m_state.rip) : m_state.rip <= m_state.segments[kCs].limit;
  }

  // Jumps, calls and returns to where no code can be fault themselves, with their stack as it was (SDM 2A).
  MaybeExit branch_faulted(RecordRef left) {
    const Block& block = m_code.block_of(left - kIndirectBranch);
    if (block.mode.counts()) m_private.pmu.branch_faulted();
    m_context.rflags_from_image();
    m_left = kNoRecord;
    m_state.rip = m_context.rip_of(block) + block.branch_offset;
    u64& rsp = m_state.gpr[kRsp];
    rsp = merge_stack_pointer(rsp, rsp - static_cast<u64>(i64{block.branch_moved_stack}),
                              block.mode.stack_bytes);
    return stopped(GuestStop::gp(0));
  }

  void left_through(RecordRef left) {
    if (left == kStaleBlock) return left_dead_block();
    m_left = left;
    if (left == kNoRecord) return;
    m_state.rip = m_code.target_of(left, m_context);
    m_narrow = m_code.leads_to_narrow(left);
  }

  // Before its first instruction; the jump cache still leads to it.
  void left_dead_block() {
    m_left = kNoRecord;
    const auto pc = reinterpret_cast<const u8*>(m_context.leave_pc);
    m_context.leave_pc = 0;
    const Block& block = *m_code.block_at(pc);
    m_state.rip = m_context.rip_of(block);
    m_context.forget_jumps_to(block, m_state.rip);
  }

  MaybeExit after_instruction() {
    if (m_private.recheck_events) {
      m_private.recheck_events = false;
      m_cpu.request(kAttentionEvent);
    }
    if (!m_private.exit_after) return {};
    m_private.exit_after = false;
    return m_private.exit;
  }

  // After an instruction that single-steps or touched a data breakpoint. MOV SS holds the trap back by one
  // instruction (SDM 3A 6.8.3).
  MaybeExit debug_trap() {
    if (m_state.events.shadow & kShadowMovSs) return after_instruction();
    if (m_private.debug_hits && m_state.mp_state == MpState::kHalted) {
      // The trap ends the HLT that it follows.
      m_state.mp_state = MpState::kRunnable;
      m_private.exit_after = false;
    }
    if (auto exit = after_instruction()) return exit;
    u64 hits = m_private.debug_hits;
    m_private.debug_hits = 0;
    const GuestDebug& client = m_private.guest_debug;
    if (client.single_step) return debug_exit(hits | kDr6Bs);
    if (client.hardware_breakpoints && (hits & 0xf)) return debug_exit(hits);
    return deliver_exception({kVectorDb, false, 0, hits});
  }

  // On a page with a breakpoint each instruction is a block of its own. Its other blocks are not reached:
  // links stay within a page, and the jump cache has forgotten it (Cpu::watch_pages).
  void look_out_for_breakpoints() {
    const u64 cs_base = m_state.code64() ? 0 : m_state.segments[kCs].base;
    m_near_breakpoint = m_private.watched.code(Gva(m_state.rip + cs_base));
    if (m_near_breakpoint) m_left = kNoRecord;
  }

  // A breakpoint on the instruction about to run is a fault, which RF suppresses once (SDM 3B 18.3.1.1).
  std::optional<MaybeExit> instruction_breakpoint() {
    if (m_state.rflags & kFlagRf) return {};
    u64 cs_base = m_state.code64() ? 0 : m_state.segments[kCs].base;
    u64 hits = matching_instruction(m_private.breakpoints(m_state), Gva(m_state.rip + cs_base));
    if (!hits) return {};
    if (m_private.guest_debug.hardware_breakpoints) return MaybeExit(debug_exit(hits));
    return MaybeExit(deliver_exception({kVectorDb, false, 0, hits}));
  }

  Exit debug_exit(u64 dr6) {
    Exit exit = make_exit(Exit::Reason::kDebug);
    exit.debug_pc = m_state.rip + (m_state.code64() ? 0 : m_state.segments[kCs].base);
    exit.debug_dr6 = dr6 | kDr6Fixed1;
    exit.debug_vector = kVectorDb;
    return exit;
  }

  MaybeExit handle(Leave leave) {
    m_context.crossing = 0;  // what has raised an exception does not write its copy back
    switch (leave) {
      case Leave::kLookup:
        return {};
      case Leave::kStop:
        restore_site(false);
        return stopped(m_context.stop);
      case Leave::kHelperStop:
        m_context.leave_pc = 0;
        return stopped(m_context.stop);
      case Leave::kSlow:
        restore_site(false);
        return as_slow_form();
      case Leave::kBus:
        if (m_private.bus_accesses.too_many(m_context.leave_pc, __rdtsc()))
          m_code.do_by_bus(reinterpret_cast<const u8*>(m_context.leave_pc));
        restore_site(false);
        return as_slow_form();
      case Leave::kThrash:
        m_code.do_without_slot(reinterpret_cast<const u8*>(m_context.leave_pc));
        restore_site(false);
        return {};
      case Leave::kCrosses:
        m_code.do_with_crossing(reinterpret_cast<const u8*>(m_context.leave_pc));
        restore_site(false);
        return {};
      case Leave::kNarrow:
        if (m_private.narrowings.too_many(m_context.leave_pc, __rdtsc()))
          m_code.do_without_group(reinterpret_cast<const u8*>(m_context.leave_pc));
        restore_site(false);
        m_narrow = true;
        return {};
      case Leave::kSignal:
        restore_site(true);
        // Misaligned SSE operands, for one: the slow form finds out what the manual says to it.
        if (m_context.signal_trap == kVectorGp && !m_slow && !m_private.mode.slow) return as_slow_form();
        return stopped(stop_of_signal(m_cpu, m_context.signal_trap));
    }
    return {};
  }

  MaybeExit as_slow_form() {
    m_slow = true;
    m_narrow = false;
    return {};
  }

  // Brings RIP, flags and borrowed registers to what they were before the instruction that left in the
  // middle.
  void restore_site(bool fault) {
    if (!m_context.leave_pc) {
      m_context.rflags_from_image();
      return;
    }
    auto pc = reinterpret_cast<const u8*>(m_context.leave_pc);
    m_context.leave_pc = 0;
    const auto left = m_code.left_at(pc, fault);
    if (!left) return;
    const Block* block = left->block;
    const Site* site = &left->site;
    u64 rip = m_context.rip_of(*block) + site->guest_offset;
    m_state.rip = block->mode.code64() ? rip : rip & 0xffffffff;
    if (fault && site->flags != FlagsAt::kHost) m_context.flags_image = m_context.signal_flags;
    for (unsigned i = 0; i < 2; ++i) {
      if (site->borrowed[i] != kNoRegister) m_state.gpr[site->borrowed[i]] = m_context.borrowed[i];
    }
    const LoopRegisters& loop = block->loop_registers;
    for (unsigned i = 0; i < loop.count; ++i) {
      m_state.gpr[loop.guest[i]] = m_state.gpr[loop.lender[i]];
      m_state.gpr[loop.lender[i]] = m_context.lent[i];
    }
    const bool later_round = site->flags == FlagsAt::kRound && is_later_round(*block);
    if (site->flags == FlagsAt::kRecovered || later_round)
      m_context.flags_image = left->recovery->image(m_context);
    m_context.rflags_from_image();
  }

  bool is_later_round(const Block& block) const {
    return block.round_register == kNoRegister ? m_context.later_round
                                               : m_state.gpr[block.round_register] != m_context.first_round;
  }

  Exit exit_of(const GuestStop& stop) const {
    return stop.kind == GuestStop::Kind::kUnmapped ? make_exit(Exit::Reason::kMemoryFault) : m_private.exit;
  }

  MaybeExit stopped(const GuestStop& stop) {
    m_slow = m_narrow = false;
    if (stop.kind == GuestStop::Kind::kAgain) {
      m_private.replay.done();  // the instruction has met nothing but RAM
      return {};
    }
    if (stop.kind == GuestStop::Kind::kAbsent) return at_absent_page(Gpa(stop.fault.payload));
    if (for_hypervisor(stop)) return leave_nested(stop);
    if (stop.kind != GuestStop::Kind::kFault) return exit_of(stop);
    m_private.replay.done();  // the instruction's; the delivery has its own
    m_private.exit_after = false;
    ANYKVM_TRACE(fault, "{}: vector {} error {:#x} payload {:#x} at {:#x}", m_cpu.number(), stop.fault.vector,
                 stop.fault.error, stop.fault.payload, m_state.rip);
    return deliver_exception(stop.fault);
  }

  // The guest is told by a page fault whose address is a token; otherwise the instruction is executed again
  // and waits for the page. That is so, too, if the client has answered accesses of it.
  MaybeExit at_absent_page(Gpa address) {
    const MemorySlot* slot = m_cpu.machine().memory().find(address);
    if (!slot || !m_cpu.machine().absent_pages().is_absent(*slot, address, m_context.absence_epoch))
      return {};
    const bool half_done = m_private.replay.in_progress() && m_cpu.io_rip() == m_state.rip;
    const bool can_tell =
        !half_done && !m_state.smm.active && !m_state.svm.guest_mode && (m_state.cr0 & kCr0Pg);
    const u8* host = slot->host + (address.page() - slot->base);
    const auto token = can_tell ? m_cpu.platform().await_page(host) : std::nullopt;
    slot->meta(address).seen = token ? 0 : m_context.absence_epoch;
    if (!token) return {};
    ANYKVM_TRACE(fault, "{}: page {:#x} is awaited, token {:#x}, at {:#x}", m_cpu.number(), address.value,
                 *token, m_state.rip);
    m_private.replay.done();
    m_private.exit_after = false;
    return deliver_exception({kVectorPf, true, 0, *token});
  }

  MaybeExit delivered(const Guest<void>& result) {
    m_context.image_from_rflags();
    m_left = kNoRecord;
    if (m_cpu.is_behind()) m_cpu.catch_up();
    if (!result.ok() && for_hypervisor(result.error())) return leave_nested(result.error());
    if (!result.ok()) {
      m_cpu.request(kAttentionEvent);
      return exit_of(result.error());
    }
    if (m_private.pmu.active()) m_private.pmu.delivered();
    m_private.replay.done();
    if (m_private.recheck_events) {
      m_private.recheck_events = false;
      m_cpu.request(kAttentionEvent);
    }
    return {};
  }

  // --- Finding code ---

  // Host code for the state's RIP; null: Context::leave and ::stop say why not.
  const u8* next_code() {
    u64 rip = m_state.rip;
    Mode mode = m_private.mode;
    mode.step = mode.step || m_near_breakpoint;
    if (!m_slow && !m_narrow && m_left == kNoRecord && !mode.step) {
      const JumpEntry& entry = m_context.jumps[jump_cache_index(rip, m_context.user())];
      u64 stamp = m_context.stamp.word & ~u64{0xff};
      if (static_cast<u64>(entry.tag) + rip + stamp == 0) return reinterpret_cast<const u8*>(entry.target);
    }
    mode.slow = mode.slow || m_slow;
    mode.narrow = m_narrow && !mode.slow && !mode.step;
    Block* block = find_block(mode);
    // To claim a page the world may have been stopped, and others had their way meanwhile: whoever flushed
    // TLBs or changed memory does not wait for this CPU to get to its next poll.
    while (m_context.stamp.part.attention.load() & kAttentionWorld) {
      let_the_world_change();
      block = find_block(mode);
    }
    if (!block) {
      m_left = kNoRecord;
      return nullptr;
    }
    m_swallows_trap = mode.step && block->swallows_step_trap && (!block->into || m_state.rflags & kFlagOf);
    if (m_left != kNoRecord) m_code.link(m_left, block);
    m_left = kNoRecord;
    m_context.run_at(*block, m_state.rip);
    remember(*block);
    return block->code_image();
  }

  // Translated code is in no frame above this one, so an exception may pass. The next run() tries again.
  Block* find_block(const Mode& mode) {
    try {
      return m_finder.find(mode);
    } catch (const std::bad_alloc&) {
      m_context.leave = Leave::kStop;
      m_context.leave_pc = 0;
      m_context.stop = m_cpu.stop_for_client(make_exit(Exit::Reason::kNoMemory));
      return nullptr;
    }
  }

  void remember(const Block& block) {
    if (block.mode.step || block.mode.slow || block.mode.narrow) return;
    const u64 stamp = m_context.stamp.word & ~u64{0xff};
    m_context.add_jump(m_state.rip, m_context.user(), stamp, reinterpret_cast<u64>(block.code_image()),
                       m_finder.way_to(block));
  }

  Cpu& m_cpu;
  Cpu::Private& m_private;
  Context& m_context;
  CpuState& m_state;
  CodeCache& m_code;
  CodeFinder m_finder;
  RecordRef m_left = kNoRecord;  // the link through which translated code left
  bool m_swallows_trap = false;
  bool m_slow = false;  // the next instruction runs in its slow form
  bool m_half_done = false;
  bool m_had_its_turn = false;  // an instruction has run since half_done() saw m_attempts
  u64 m_attempts = 0;
  bool m_narrow = false;           // the next block checks every access for itself
  bool m_near_breakpoint = false;  // the next instruction is on a page with an instruction breakpoint
};

void Cpu::stop_the_world_aside() {
  m_machine.leave_guest(*this);
  m_machine.enter_guest(*this);
}

void Cpu::see_code_as_it_is() {
  if (m_machine.client_writes().begin_moment()) catch_up();
}

void Cpu::machine_discards_code() {
  m_machine.leave_guest(*this);
  m_machine.discard_code();
  m_machine.enter_guest(*this);
}

Exit Cpu::run() {
  // A client that brings handlers of its own has them by the time its threads run vCPUs.
  thread_local bool looked = false;
  if (!looked) install_host_signal_handlers();
  looked = true;
  const CodeMemory& memory = m_machine.code().memory();
  set_current_context(m_context, m_machine.code().thunks().leave_by_signal, memory.begin(), memory.end());
  m_context->host_mxcsr = _mm_getcsr();
  u16 control_word = 0;
  asm volatile("fnstcw %0" : "=m"(control_word));
  m_context->host_fcw = control_word;
  Exit exit;
  {
    GsBase gs(m_context);
    m_machine.enter_guest(*this);
    see_code_as_it_is();
    m_context->image_from_rflags();
    m_private->pmu.enter_guest();
    exit = Dispatcher(*this, *m_private).run();
    m_private->pmu.leave_guest();
    m_machine.leave_guest(*this);
  }
  set_current_context(nullptr, nullptr, nullptr, nullptr);
  return exit;
}

}  // namespace anykvm::x86
