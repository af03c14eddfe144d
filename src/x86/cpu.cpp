// A Cpu's requests, caches and services for helpers. The run loop is in run.cpp.
#include "x86/cpu.h"

#include <sys/mman.h>
#include <x86intrin.h>

#include <new>

#include "x86/cpu_private.h"
#include "x86/mmu/absent_pages.h"
#include "x86/state/xsave.h"
#include "x86/sys/reset.h"

namespace anykvm::x86 {

Cpu::Cpu(Machine& machine, Platform& platform)
    : m_machine(machine),
      m_platform(platform),
      m_context(new Context),
      m_state(&m_context->state),
      m_counts(counters::take_cpu_counts()),
      m_private(std::make_unique<Private>(*this)) {
  m_state->nested_tlb = &m_private->nested_tlb;
  m_context->self = m_context;
  m_context->cpu = this;
  m_context->counts = m_counts;
  m_context->xsave_mask = host_xcr0_usable();
  machine.code().add(m_context->far_links);
  m_context->flush_tlb();
  m_number = machine.add_cpu(this);
  reset(false);
}

Cpu::~Cpu() {
  m_machine.remove_cpu(this);
  m_machine.code().remove(m_context->far_links);
  counters::give_back(m_counts);
  delete m_context;
}

Pmu& Cpu::pmu() { return m_private->pmu; }

void Cpu::reset(bool init) {
  reset_cpu(*m_state, m_model, init);
  m_private->pmu.refresh();
  state_replaced();
}

// --- Requests ---

void Cpu::request(u8 attention_bits) { m_context->stamp.part.attention.fetch_or(attention_bits); }

void Cpu::queue_nmi() {
  u8 queued = m_private->queued_nmis.load();
  while (queued < 2 && !m_private->queued_nmis.compare_exchange_weak(queued, queued + 1)) {
  }
  request(kAttentionEvent);
}

bool Cpu::nmi_queued() const { return m_private->queued_nmis.load() != 0; }

void Cpu::queue_smi() {
  m_private->queued_smi = true;
  request(kAttentionEvent);
}

void Cpu::withdraw_smi() { m_private->queued_smi = m_state->smm.pending = false; }

bool Cpu::smi_waits() const { return m_private->queued_smi.load() || m_state->smm.pending; }

void Cpu::set_interrupt_window_request(bool wanted) {
  m_context->held_back &= ~kHeldClient;
  if (!wanted) return;
  m_context->held_back |= kHeldClient;
  request(kAttentionEvent);
}

void Cpu::inject_interrupt(u8 vector) {
  m_state->events.interrupt = {true, false, vector};
  request(kAttentionEvent);
}

bool Cpu::interrupts_open() const {
  const Events& events = m_state->events;
  bool injected = events.interrupt.injected || events.exception.injected || events.nmi.injected;
  // A nested guest is left first, and its hypervisor opens the window.
  const bool hypervisors = m_state->svm.intercepts(Intercept::kIntr);
  return interrupts_enabled() && !events.shadow && !injected && !hypervisors;
}

bool Cpu::interrupts_enabled() const {
  const SvmState& svm = m_state->svm;
  return svm.gif && ((svm.masks_interrupts() ? svm.host.rflags : m_state->rflags) & kFlagIf);
}

bool Cpu::virtual_interrupt_ready() const {
  const SvmState& svm = m_state->svm;
  const u32 control = svm.control.int_ctl;
  if (!svm.guest_mode || !svm.gif || !(control & kVIrq) || !(m_state->rflags & kFlagIf)) return false;
  return (control & kVIgnoreTpr) || bits(control, 19, 16) > bits(control, 3, 0);
}

void Cpu::interrupts_may_have_opened() {
  if (m_context->held_back) request(kAttentionEvent);
}

// --- Mode and TLB ---

void Cpu::set_translation_limits(TranslationLimits limits) {
  m_private->limits = limits;
  mode_changed();
}

void Cpu::mode_changed() {
  Private& p = *m_private;
  bool forbidden = m_state->cpl != 0 && (m_state->cr4 & kCr4Tsd);
  const SvmState& svm = m_state->svm;
  const bool by_helper = forbidden || m_state->tsc_ratio != kTscUnscaled || svm.scales_tsc();
  m_context->rdtsc_by_helper = by_helper || svm.intercepts(Intercept::kRdtsc);
  m_context->rdtscp_by_helper =
      by_helper || svm.intercepts(Intercept::kRdtscp) || !m_model.has(Feature::kRdtscp);
  if (p.pmu.active()) p.pmu.changed_privilege(m_state->cpl);
  Mode mode = compute_mode(*m_state);
  if (p.pmu.active()) {
    mode.counts_instructions = p.pmu.counts(Counted::kInstructions);
    mode.counts_branches = p.pmu.counts(Counted::kBranches);
    mode.counts_accesses = p.pmu.counts_accesses();
    mode.counters_overflow = p.pmu.overflows_soon();
  }
  watch_pages();
  // Outside 64-bit mode accesses go by C++ in the middle of blocks, which cannot end there.
  const bool watching_all = m_watching && !mode.code64();
  mode.step = mode.step || p.limits.one_instruction_blocks || watching_all || p.guest_debug.single_step;
  mode.slow = mode.slow || p.limits.slow_memory || watching_all;
  if (mode == p.mode && !p.mode_ids.empty()) return;
  u8 id = p.mode_ids.find(mode);
  if (!id) {
    if (p.mode_ids.full()) {
      p.mode_ids.clear();
      m_context->flush_jump_cache();
    }
    id = p.mode_ids.add(mode);
  }
  p.mode = mode;
  m_context->stamp.part.mode_id_shifted = static_cast<u8>(id << 1);
}

void Cpu::state_replaced() {
  m_private->delivering = 0;
  if (m_private->pmu.active()) m_private->pmu.refresh();
  mode_changed();
  flush_tlb();
  m_context->image_from_rflags();
  m_context->vector_dead = 1;
  request(kAttentionEvent);
}

void Cpu::flush_tlb() {
  ++m_counts->tlb_flushes;
  m_context->flush_tlb();
  m_private->fetch.flush();
  m_private->nested_tlb.flush();
  for (auto& range : m_private->large_pages) range = {};
}

void Cpu::flush_tlb_non_global() {
  ++m_counts->tlb_flushes;
  m_context->flush_non_global();
  m_private->fetch.flush_non_global();
}

void Cpu::flush_tlb_page(Gva address) {
  if (m_private->large_pages[address.value >> 63].contains(address.value)) return flush_tlb();
  for (TlbTable& table : m_context->tlb) table.flush_page(address);
  m_context->access.flush_page(address);
  m_private->fetch.flush_page(address);
  m_context->flush_jumps_to_page(address);
}

void Cpu::set_delivering(u64 event) { m_private->delivering = event; }

void Cpu::entering_nested(const svm::TlbTags& tags, bool flush) {
  if (flush || m_private->nested_tags != tags) flush_tlb();
  m_private->nested_tags = tags;
}

void Cpu::leaving_nested(const svm::TlbTags& tags) { m_private->nested_tags = tags; }

void Cpu::stop_the_world(const std::function<void()>& change) {
  m_machine.leave_guest(*this);
  m_machine.stop_the_world(change);
  m_machine.enter_guest(*this);
}

bool Cpu::with_others_stopped(const std::function<void()>& change) { return m_machine.stop_others(change); }

void Cpu::visit_memory(const std::function<void()>& work) {
  m_machine.enter_guest(*this);
  work();
  m_machine.leave_guest(*this);
}

void Cpu::tell_absent_pages(bool wanted, bool at_cpl0) {
  m_tells_absent_pages = wanted;
  m_context->absence_at_cpl0 = at_cpl0;
  m_context->absence_epoch = 0;
  look_for_absent_pages();
}

void Cpu::look_for_absent_pages() {
  if (m_tells_absent_pages) m_context->absence_epoch = m_machine.absent_pages().look(m_machine.memory());
}

// --- Breakpoints ---

void Cpu::set_guest_debug(const GuestDebug& debug) {
  m_private->guest_debug = debug;
  mode_changed();
}

// What is known of pages that get a breakpoint is forgotten: translated code must not reach them by itself.
void Cpu::watch_pages() {
  const bool watched_before = m_watching;
  const Breakpoints breakpoints = m_private->breakpoints(*m_state);
  m_watching = breakpoints.any_enabled();
  if (!m_watching && !watched_before) return;
  const WatchedPages pages = m_watching ? WatchedPages(breakpoints) : WatchedPages();
  if (pages == m_private->watched) return;
  m_private->watched = pages;
  pages.each([this](Gva page) { flush_tlb_page(page); });
}

bool Cpu::watches_data_near(Gva address) const { return m_watching && m_private->watched.data(address); }
bool Cpu::met_breakpoint() const { return m_private->debug_hits; }

const GuestDebug& Cpu::guest_debug() const { return m_private->guest_debug; }

void Cpu::watch_data(Gva address, unsigned size, bool write) {
  m_private->debug_hits |= matching_data(m_private->breakpoints(*m_state), address, size, write);
}

void Cpu::watch_port(u16 port, unsigned size) {
  if (m_state->cr4 & kCr4De)
    m_private->debug_hits |= matching_port(m_private->breakpoints(*m_state), port, size);
}

void Cpu::step_trap_after_instruction() { m_private->debug_hits |= kDr6Bs; }

u64 Cpu::take_held_back_breakpoints() {
  constexpr u64 kBreakpoints = 0xf;
  return std::exchange(m_private->debug_hits, 0) & kBreakpoints;
}

// --- Exits and I/O ---

void Cpu::exit_after_instruction(const Exit& exit) {
  m_private->exit = exit;
  m_private->exit_after = true;
}

GuestStop Cpu::stop_for_client(const Exit& exit) {
  m_private->exit = exit;
  return GuestStop::exit();
}

void Cpu::complete_io(const void* data, bool refused) { m_private->replay.complete(data, refused); }
Guest<bool> Cpu::client_msr(u32 index, bool write, u32 reason, u64* value) {
  return m_private->replay.msr(index, write, reason, value, m_private->exit);
}
bool Cpu::client_msr_answered(u32 index, bool write) const {
  return m_private->replay.msr_answered(index, write);
}
Guest<u64> Cpu::client_hypercall(u32 code) { return m_private->replay.call(code, m_private->exit); }
std::optional<u32> Cpu::answered_hypercall() const { return m_private->replay.answered_call(); }
bool Cpu::io_pending() const { return m_private->replay.pending(); }
void Cpu::io_done() { m_private->replay.done(); }
void Cpu::io_element_done() { m_private->replay.element_done(); }
u64 Cpu::io_rip() const { return m_private->replay.rip(); }
void Cpu::io_begin(u64 rip) { m_private->replay.begin_instruction(rip); }

Guest<void> Cpu::mmio_read(Gpa address, void* data, unsigned size) {
  return m_private->replay.read(BusAddress::memory(address), data, size, m_platform, m_private->exit);
}
Guest<void> Cpu::mmio_write(Gpa address, const void* data, unsigned size) {
  return m_private->replay.write(BusAddress::memory(address), data, size, m_platform, m_private->exit);
}
Guest<void> Cpu::pio_read(u16 port, void* data, unsigned size) {
  if (m_watching) watch_port(port, size);
  return m_private->replay.read(BusAddress::io_port(port), data, size, m_platform, m_private->exit);
}
Guest<void> Cpu::pio_read_ahead(u16 port, void* data, unsigned size, unsigned count) {
  return m_private->replay.read(BusAddress::io_port(port), data, size, m_platform, m_private->exit, count);
}
Guest<void> Cpu::pio_write(u16 port, const void* data, unsigned size) {
  if (m_watching) watch_port(port, size);
  return m_private->replay.write(BusAddress::io_port(port), data, size, m_platform, m_private->exit);
}

u64 Cpu::read_tsc() const {
  u64 host = __rdtsc();
  if (m_state->tsc_ratio == kTscUnscaled) return host + m_state->tsc_offset;
  auto scaled = static_cast<unsigned __int128>(host) * m_state->tsc_ratio >> 32;
  return static_cast<u64>(scaled) + m_state->tsc_offset;
}

}  // namespace anykvm::x86
