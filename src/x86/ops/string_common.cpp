#include "x86/ops/string_common.h"

namespace anykvm::x86 {

SegmentIndex string_source_segment(const Insn& insn) {
  SegmentIndex segment = kDs;
  // 64-bit mode ignores all overrides but FS and GS, also behind those (SDM 1 3.3.7.1).
  auto old_override = [&](SegmentIndex which) { segment = insn.code_bits == 64 ? segment : which; };
  for (unsigned i = 0; i < insn.length; ++i) {
    bool rex = insn.code_bits == 64 && insn.bytes[i] >> 4 == 4;  // perhaps a void one among the prefixes
    if (rex) continue;
    switch (insn.bytes[i]) {
      case 0x26:
        old_override(kEs);
        break;
      case 0x2e:
        old_override(kCs);
        break;
      case 0x36:
        old_override(kSs);
        break;
      case 0x3e:
        old_override(kDs);
        break;
      case 0x64:
        segment = kFs;
        break;
      case 0x65:
        segment = kGs;
        break;
      case 0x66:
      case 0x67:
      case 0xf0:
      case 0xf2:
      case 0xf3:
        break;
      default:
        return segment;  // the first byte that is no prefix
    }
  }
  return segment;
}

void StringRun::move(Gpr reg, u64 delta) {
  u64 value = (m_state.gpr[reg] + delta) & m_mask;
  // A 32-bit result clears the upper half; a 16-bit one leaves the rest alone (SDM 1 3.4.1.1).
  u64 kept = m_mask == 0xffff ? m_state.gpr[reg] & ~m_mask : 0;
  m_state.gpr[reg] = kept | value;
}

u64 StringRun::elements_in_page(u64 offset, Gva address) const {
  u64 to_page_end = kPageSize - address.page_offset();
  u64 to_wrap = m_mask - offset;  // one byte short of the truth, so that it fits 64 bits
  if (!m_backward) return std::min(to_wrap, to_page_end) / size();
  if (to_page_end < size() || to_wrap < size()) return 0;
  return std::min(offset, u64{address.page_offset()}) / size() + 1;
}

void StringRun::advance(u64 elements, bool source, bool destination) {
  u64 bytes = elements * size();
  u64 delta = m_backward ? -bytes : bytes;
  if (source) move(kRsi, delta);
  if (destination) move(kRdi, delta);
  if (m_repeated) move(kRcx, -elements);
  m_budget -= std::min(m_budget, elements);
  if (!m_repeated) m_done = m_finished = true;
  if (m_cpu.met_breakpoint()) m_done = true;  // the trap comes before the next iteration (SDM 3B 18.3.1.2)
  m_cpu.io_element_done();
}

void StringRun::finish() {
  if (m_finished || count() == 0) return m_cpu.io_done();
  m_state.rip = (m_state.rip - m_insn.length) & low_bits(m_insn.code_bits == 64 ? 64 : 32);
}

}  // namespace anykvm::x86
