#pragma once
// x87/SSE/AVX state as the client sees it: struct kvm_fpu and the images of KVM_GET_XSAVE, KVM_GET_XSAVE2
// (KVM API 4.26, 4.42, 4.134). Owner: nobody; functions over CpuState. Only while no other thread uses the
// state.

#include <linux/kvm.h>

#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

kvm_fpu get_client_fpu(const CpuState& state);
// False: MXCSR has a reserved bit (EINVAL).
bool set_client_fpu(CpuState& state, const kvm_fpu& fpu);

// Bytes of the image that KVM_GET_XSAVE2 gives, at least sizeof(kvm_xsave): what KVM_CAP_XSAVE2 answers.
u32 client_xsave_size();
// Fills `image` (client_xsave_size() or sizeof(kvm_xsave) bytes) with a standard-format image of every
// component.
void get_client_xsave(const CpuState& state, u8* image, u32 size);
// False, and nothing changed: a component that guests cannot have, or reserved bits in header or MXCSR
// (EINVAL).
bool set_client_xsave(CpuState& state, const u8* image, u32 size);

}  // namespace anykvm::x86
