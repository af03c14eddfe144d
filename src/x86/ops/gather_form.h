#pragma once
// What the encoding of a gather or scatter says. Owner: nobody; a pure function. Any thread.

#include "x86/ops/ops.h"

namespace anykvm::x86 {

struct GatherForm {
  bool scatter = false;
  bool vector_mask = false;  // VEX: the mask is the sign bits of a vector register
  u8 data = 0, index = 0, mask = 0;
  u8 scale = 1;
  unsigned data_size = 4, index_size = 4, count = 0;
};

// #UD: no such instruction, or registers that must not be the same.
Guest<GatherForm> gather_form(const Insn& insn);

}  // namespace anykvm::x86
