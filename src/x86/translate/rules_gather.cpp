// VGATHERDPS, VPSCATTERDD and their relatives: the elements by the TLB, with the vector registers in place.
#include "x86/ops/gather_form.h"
#include "x86/translate/rules_families.h"

namespace anykvm::x86 {

using namespace asmjit::x86;  // register names
using host::kAddress;

namespace {

Vec vector(u8 number, unsigned bytes) {
  if (bytes <= 16) return xmm(number);
  return bytes == 32 ? Vec(ymm(number)) : Vec(zmm(number));
}

Mem field(std::size_t offset, unsigned size) { return host::gs(offsetof(Context, gather) + offset, size); }

}  // namespace

// Where the elements are not all at hand, the helper has done it, and the registers are in CpuState.
void emit_gather(Emitter& e, const Decoded& d, const Policy& policy) {
  const Guest<GatherForm> known = gather_form(d.insn);
  const GatherForm& form = known.value();
  const unsigned data_bytes = form.count * form.data_size, index_bytes = form.count * form.index_size;
  using Operands = decltype(Context::gather);
  const Mem data = field(offsetof(Operands, data), 0), index = field(offsetof(Operands, index), 0),
            mask = field(offsetof(Operands, mask), 0), base = field(offsetof(Operands, base), 8);
  e.ensure_vector();
  e.protect_flags(kFlagsArithmetic);
  e.effective_offset(d.insn);
  e.a.mov(base, kAddress);
  e.a.vmovups(data, vector(form.data, data_bytes));
  e.a.vmovups(index, vector(form.index, index_bytes));
  if (form.vector_mask) {
    e.a.vmovups(mask, vector(form.mask, data_bytes));
  } else {
    e.a.kmovw(mask, k(form.mask));
  }
  e.call_gather(d.insn, policy.helper, policy.flags, form);
  const asmjit::Label after = e.a.newLabel();
  e.a.cmp(field(offsetof(Operands, done), 8), 0);
  e.a.je(after);
  e.retire();
  if (!form.scatter) e.a.vmovups(vector(form.data, data_bytes), data);
  if (form.vector_mask) {
    e.a.vpxor(xmm(form.mask), xmm(form.mask), xmm(form.mask));
  } else {
    e.a.kxorw(k(form.mask), k(form.mask), k(form.mask));
  }
  e.a.bind(after);
}

}  // namespace anykvm::x86
