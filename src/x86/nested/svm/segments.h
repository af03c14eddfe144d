#pragma once
// Segment registers as the VMCB holds them.
// Owner: nobody; plain values. Any thread.

#include "x86/state/cpu_state.h"

namespace anykvm::x86::svm {

//   11 G | 10 D/B | 9 L | 8 AVL | 7 P | 6:5 DPL | 4 S | 3:0 type
inline VmcbSegment stored(const Segment& s) {
  const unsigned present = s.present && !s.unusable;
  const unsigned attributes =
      s.type | s.s << 4 | s.dpl << 5 | present << 7 | s.avl << 8 | s.l << 9 | s.db << 10 | s.g << 11;
  return {s.selector, static_cast<u16>(attributes), s.limit, s.base};
}

inline Segment loaded(const VmcbSegment& from) {
  auto field = [&](unsigned last, unsigned first) {
    return static_cast<u8>(bits(from.attributes, last, first));
  };
  Segment s;
  s.base = from.base;
  s.limit = from.limit;
  s.selector = from.selector;
  s.type = field(3, 0);
  s.s = field(4, 4);
  s.dpl = field(6, 5);
  s.present = field(7, 7);
  s.avl = field(8, 8);
  s.l = field(9, 9);
  s.db = field(10, 10);
  s.g = field(11, 11);
  s.unusable = !s.present;
  return s;
}

inline VmcbSegment stored(const DescriptorTable& t) { return {0, 0, t.limit, t.base}; }
inline DescriptorTable loaded_table(const VmcbSegment& from) {
  return {from.base, static_cast<u16>(from.limit)};
}

}  // namespace anykvm::x86::svm
