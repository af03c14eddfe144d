#pragma once
// What MOVS, STOS ... and INS, OUTS have in common: pointers, counter, direction (SDM 1 7.3.9).
// Owner: nobody; functions over a Cpu. Only the vCPU's thread, inside Cpu::run().

#include <algorithm>

#include "x86/ops/ops.h"

namespace anykvm::x86 {

// Work after which a REP returns with RIP at itself, so that interrupts do not wait.
inline constexpr u64 kStringBurstBytes = 64 * 1024;

// The segment of the source operand, and of XLAT's: DS or the last override. The destination is always in ES.
SegmentIndex string_source_segment(const Insn& insn);

// One string instruction in progress. Registers in CpuState are exact after every advance().
class StringRun {
 public:
  StringRun(Cpu& cpu, const Insn& insn)
      : m_cpu(cpu),
        m_insn(insn),
        m_state(cpu.state()),
        m_mask(low_bits(insn.address_size * 8)),
        m_repeated(insn.rep || insn.repne),
        m_backward(cpu.state().rflags & kFlagDf) {
    m_budget = std::max<u64>(kStringBurstBytes / insn.operand_size, 1);
    if (m_state.rflags & kFlagTf)
      m_budget = 1;  // a single-step trap follows each iteration (SDM 3B 18.3.1.4)
  }

  unsigned size() const { return m_insn.operand_size; }
  bool backward() const { return m_backward; }
  // Iterations left in all, and in this burst.
  u64 count() const { return m_repeated ? m_state.gpr[kRcx] & m_mask : 1; }
  u64 left() const { return m_done ? 0 : std::min(count(), m_budget); }
  u64 rsi() const { return m_state.gpr[kRsi] & m_mask; }
  u64 rdi() const { return m_state.gpr[kRdi] & m_mask; }
  // From one element in host memory to the next.
  i64 step() const { return backward() ? -i64{size()} : i64{size()}; }
  // Elements from `offset` on, in the direction of the run, that lie within the page of `address` (which is
  // offset's linear address) and before the address wraps.
  u64 elements_in_page(u64 offset, Gva address) const;

  // `elements` are complete; `source` and `destination` say which pointers move.
  void advance(u64 elements, bool source, bool destination);
  // No further iteration, whatever the counter says (SCAS and CMPS).
  void stop() { m_finished = m_done = true; }
  // Ends the instruction, or puts RIP back for the iterations that remain.
  void finish();

 private:
  void move(Gpr reg, u64 delta);

  Cpu& m_cpu;
  const Insn& m_insn;
  CpuState& m_state;
  u64 m_mask;
  u64 m_budget;
  bool m_repeated, m_backward;
  bool m_done = false;      // this burst
  bool m_finished = false;  // the instruction
};

}  // namespace anykvm::x86
