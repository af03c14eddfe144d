#pragma once
// x87/SSE/AVX state as the client sees it: struct kvm_fpu and the images of KVM_GET_XSAVE, KVM_GET_XSAVE2
// (KVM API 4.26, 4.42, 4.134). Owner: nobody; functions over CpuState. Only while no other thread uses the
// state.

#include <linux/kvm.h>

#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

kvm_fpu get_client_fpu(const CpuState& state);
// Drops reserved bits of MXCSR, which would fault when the guest's state is loaded: KVM_SET_FPU cannot
// refuse.
void set_client_fpu(CpuState& state, const kvm_fpu& fpu);

// Fills `image` (`size` bytes) with a standard-format image of every component that fits.
void get_client_xsave(const CpuState& state, u8* image, u32 size);
// False, and nothing changed: a component that guests cannot have, or reserved bits in header or MXCSR
// (EINVAL). PKRU keeps its value where the image has none, as in KVM; other components become initial.
bool set_client_xsave(CpuState& state, const u8* image, u32 size);

}  // namespace anykvm::x86
