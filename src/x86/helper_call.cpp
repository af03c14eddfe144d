// What a translated block calls for an instruction that C++ carries out. Compiled without vector
// instructions: the guest's may be in the host's registers (kOpKeepsVector).
#include "x86/cpu_private.h"
#include "x86/mmu/client_writes.h"
#include "x86/no_memory.h"
#include "x86/translate/thunks.h"

namespace anykvm::x86 {

class HelperCall {
 public:
  HelperCall(Context& context, const HelperSite& site)
      : m_context(context),
        m_state(context.state),
        m_cpu(*context.cpu),
        m_private(*context.cpu->m_private),
        m_site(site),
        m_moved(site.roams ? context.code_pages[site.code_page] - Block::kNowhere : 0) {}

  u64 run() {
    m_context.rflags_from_image();
    m_state.rip = m_site.next_rip + m_moved;
    const u64 mode = m_context.stamp.word & ~u64{0xff};
    m_private.replay.begin_instruction(m_site.rip + m_moved);
    const u64 rounds = rounds_left();
    if (m_site.counts.any()) count(1);
    Guest<void> done =
        m_site.roams && m_site.insn.memory.rip_relative ? execute_moved() : execute(m_site.insn);
    if (m_site.counts.any()) {
      if (!done.ok() || goes_on_later()) count(-1);
      if (repeated()) count_accesses(rounds - rounds_left());
    }
    m_context.image_from_rflags();
    if (!done.ok()) return stop(done.error());
    m_private.replay.done();
    m_context.leave = Leave::kLookup;
    if (m_site.serializes && m_cpu.is_behind()) return m_cpu.catch_up(), kHelperLeaves;
    if (m_private.exit_after || m_cpu.met_breakpoint()) return kHelperLeaves;
    if (m_site.ends_block) return m_site.continues ? next_block() : kHelperLeaves;
    bool stays = m_state.rip == m_site.next_rip + m_moved && m_context.stamp.word == mode;
    return stays ? kHelperStays : kHelperLeaves;
  }

 private:
  // It counts from its beginning, at the privilege level that it has then; the accesses of a repeated one by
  // the iterations done.
  void count(i64 times) {
    count({Counted::kInstructions, Counted::kBranches}, static_cast<u64>(times));
    if (!repeated()) count_accesses(static_cast<u64>(times));
  }
  void count_accesses(u64 times) {
    count({Counted::kAccesses, Counted::kLoads, Counted::kStores, Counted::kUpdates}, times);
  }
  void count(std::initializer_list<Counted> kinds, u64 times) {
    for (Counted kind : kinds) {
      const auto i = static_cast<unsigned>(kind);
      m_context.events_left[i] -= m_site.counts.of[i] * times;
    }
  }
  bool repeated() const { return m_site.insn.rep || m_site.insn.repne; }
  u64 rounds_left() const { return m_state.gpr[kRcx] & low_bits(8u * m_site.insn.address_size); }
  // A repeated instruction with iterations left.
  bool goes_on_later() const { return repeated() && m_state.rip == m_site.rip + m_moved; }

  Guest<void> execute(const Insn& insn) {
    return or_no_memory(m_cpu, [&] { return m_site.op(m_cpu, insn); });
  }

  Guest<void> execute_moved() {
    Insn insn = m_site.insn;
    const u64 moved = static_cast<u64>(insn.memory.displacement) + m_moved;
    insn.memory.displacement = static_cast<i64>(moved & low_bits(8u * insn.address_size));
    return execute(insn);
  }

  u64 stop(const GuestStop& why) {
    m_state.rip = m_site.rip + m_moved;
    m_context.stop = why;
    m_context.leave = Leave::kHelperStop;
    return kHelperLeaves;
  }

  // As the dispatcher would go on (Dispatcher::step), if that has nothing else to do.
  u64 next_block() {
    if (m_private.recheck_events || m_state.events.triple_fault || (m_state.rflags & kFlagRf))
      return kHelperLeaves;
    const JumpEntry& entry = m_context.jumps[jump_cache_index(m_state.rip, m_context.user())];
    // With an attention bit set the sum is never 0 (LinkStamp).
    if (static_cast<u64>(entry.tag) + m_state.rip + m_context.stamp.word != 0) return kHelperLeaves;
    m_state.events.shadow = 0;
    return entry.target;
  }

  Context& m_context;
  CpuState& m_state;
  Cpu& m_cpu;
  Cpu::Private& m_private;
  const HelperSite& m_site;
  const u64 m_moved;  // from where the block was made for to where it runs
};

bool Cpu::is_behind() const { return m_private->moment != m_machine.client_writes().moment(); }

// Links stay within a page, so pages are entered through the jump cache or by CodeFinder, which looks at them
// first.
void Cpu::catch_up() {
  const ClientWrites& writes = m_machine.client_writes();
  m_private->moment = writes.moment();
  const u64 changes = writes.changes();
  if (m_private->compared_changes == changes) return m_context->flush_jumps_to_compared_pages();
  m_private->compared_changes = changes;
  m_context->flush_jump_cache();
}

extern "C" u64 anykvm_run_helper(Context* context, const HelperSite* site) {
  return HelperCall(*context, *site).run();
}

}  // namespace anykvm::x86
