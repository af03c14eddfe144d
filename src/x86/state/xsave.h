#pragma once
// Layouts of x87/SSE/AVX state: struct kvm_fpu, XSAVE standard and compacted formats.
// Owner: nobody; functions over CpuState::xsave (standard format). Only the vCPU's thread. SDM 1 13.4.

#include "base/types.h"
#include "x86/state/cpu_state.h"

namespace anykvm::x86 {

// Components that live in CpuState::xsave and may be loaded into the host's registers: what the host has,
// less what we do not switch. Never PKRU, which a guest must not load into the host.
u64 host_xcr0_usable();
// XCR0 bits that guests may set: the above, and PKRU, which is emulated.
u64 guest_xcr0_supported();
// Of these, what KVM_GET_SUPPORTED_CPUID shows: clients lay XSAVE images out as the host's CPUID says, so protection keys
// are not offered where the host has no place for them.
u64 guest_xcr0_offered();
// Bytes of a standard-format image that holds the components of `xcr0`; of a compacted one.
u32 xsave_standard_size(u64 xcr0);
u32 xsave_compacted_size(u64 components);
// Offset and size of component `index` in the standard format; 0 where the host has none.
struct XsaveComponent {
  u32 offset = 0, size = 0;
  bool aligned64 = false;  // in the compacted format
};
XsaveComponent xsave_component(unsigned index);

// Puts the area into its state after power-up or FNINIT+LDMXCSR default (FCW 037FH or 0040H at reset, MXCSR
// 1F80H).
void reset_xsave(CpuState& state, bool init);

}  // namespace anykvm::x86
