// x87, SSE, AVX ... state: KVM_GET/SET_FPU, _XSAVE, _XCRS.
#include <errno.h>

#include "abi/handlers.h"
#include "core/vcpu.h"
#include "x86/state/client_fpu.h"
#include "x86/state/xsave.h"

namespace anykvm::abi::vcpu {
namespace {

using Image = std::array<u8, sizeof(kvm_xsave)>;

// SDM 1 13.3: which combinations XSETBV takes.
bool valid_xcr0(u64 value, u64 usable) {
  if (!(value & x86::kXcr0X87) || (value & ~usable)) return false;
  if ((value & x86::kXcr0Avx) && !(value & x86::kXcr0Sse)) return false;
  const u64 avx512 = value & x86::kXcr0Avx512;
  return avx512 == 0 || (avx512 == x86::kXcr0Avx512 && (value & x86::kXcr0Avx));
}

}  // namespace

Result<long> get_fpu(core::Vcpu& vcpu, kvm_fpu& fpu) {
  fpu = x86::get_client_fpu(vcpu.state());
  return 0;
}

Result<long> set_fpu(core::Vcpu& vcpu, const kvm_fpu& fpu) {
  x86::set_client_fpu(vcpu.state(), fpu);
  vcpu.cpu().state_replaced();
  return 0;
}

Result<long> get_xsave(core::Vcpu& vcpu, ClientPtr<kvm_xsave> to) {
  Image image;
  x86::get_client_xsave(vcpu.state(), image.data(), sizeof image);
  TRY(ClientPtr<Image>(to.address()).write(image));
  return 0;
}

Result<long> get_xsave2(core::Vcpu& vcpu, ClientPtr<kvm_xsave> to) { return get_xsave(vcpu, to); }

Result<long> set_xsave(core::Vcpu& vcpu, ClientPtr<kvm_xsave> from) {
  const Image image = TRY(ClientPtr<Image>(from.address()).read());
  if (!x86::set_client_xsave(vcpu.state(), image.data(), sizeof image))
    return Error{EINVAL, "components that this host lacks, or reserved bits in header or MXCSR"};
  vcpu.cpu().state_replaced();
  return 0;
}

Result<long> get_xcrs(core::Vcpu& vcpu, kvm_xcrs& xcrs) {
  xcrs.nr_xcrs = 1;
  xcrs.xcrs[0].value = vcpu.state().xcr0;
  return 0;
}

Result<long> set_xcrs(core::Vcpu& vcpu, const kvm_xcrs& xcrs) {
  if (xcrs.nr_xcrs > KVM_MAX_XCRS || xcrs.flags) return Error{EINVAL, "too many XCRs, or flags"};
  const u64 usable = vcpu.cpu().model().xcr0_supported() | x86::kXcr0X87;
  for (u32 i = 0; i < xcrs.nr_xcrs; ++i) {
    if (xcrs.xcrs[i].xcr != 0) continue;  // only XCR0 is known, others are ignored as in the kernel
    if (!valid_xcr0(xcrs.xcrs[i].value, usable)) return Error{EINVAL, "XCR0 that this CPU cannot have"};
    vcpu.state().xcr0 = xcrs.xcrs[i].value;
    vcpu.cpu().state_replaced();
    break;
  }
  return 0;
}

}  // namespace anykvm::abi::vcpu
