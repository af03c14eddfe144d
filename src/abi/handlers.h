#pragma once
// The handlers of all ioctls, declared from ioctls.def, and what the dispatcher and the C interface share.
// Owner: nobody; functions. Any thread; those of abi::vcpu with the vCPU's mutex held.

#include <linux/kvm.h>
#include <linux/kvm_para.h>

#include "anykvm/anykvm.h"
#include "anykvm/ioregion.h"
#include "base/client_memory.h"
#include "base/expected.h"
#include "base/types.h"

namespace anykvm::core {
class Vm;
class Vcpu;
}  // namespace anykvm::core

namespace anykvm::abi {

struct System;
struct Object;

// The argument kinds of ioctls.def: how each appears in a handler's signature.
struct Value {
  using Parameter = u64;
};
template <class T>
struct In {
  using Parameter = const T&;
  using Struct = T;
};
template <class T>
struct Out {
  using Parameter = T&;
  using Struct = T;
};
template <class T>
struct InOut {
  using Parameter = T&;
  using Struct = T;
};
template <class T>
struct Client {
  using Parameter = ClientPtr<T>;
};

namespace system {
using Target = System;
}
namespace vm {
using Target = core::Vm;
}
namespace vcpu {
using Target = core::Vcpu;
}

// ioctls.def writes In(T); templates want In<T>.
#define ANYKVM_ARGUMENT_Value Value
#define ANYKVM_ARGUMENT_In(...) In<__VA_ARGS__>
#define ANYKVM_ARGUMENT_Out(...) Out<__VA_ARGS__>
#define ANYKVM_ARGUMENT_InOut(...) InOut<__VA_ARGS__>
#define ANYKVM_ARGUMENT_Client(...) Client<__VA_ARGS__>
#define ANYKVM_NAMESPACE_System system
#define ANYKVM_NAMESPACE_Vm vm
#define ANYKVM_NAMESPACE_Vcpu vcpu

#define ANYKVM_IOCTL(klass, request, handler, argument)                                         \
  namespace ANYKVM_NAMESPACE_##klass {                                                          \
    Result<long> handler(Target& object, typename ANYKVM_ARGUMENT_##argument::Parameter value); \
  }
#include "abi/ioctls.def"
#undef ANYKVM_IOCTL

#define ANYKVM_ENABLED_CAPABILITY(klass, number, handler)                \
  namespace ANYKVM_NAMESPACE_##klass {                                   \
    Result<long> handler(Target& object, const kvm_enable_cap& request); \
  }
#include "abi/enabled_capabilities.def"
#undef ANYKVM_ENABLED_CAPABILITY

// The deviations from hardware that exist here and that a client can switch off.
inline constexpr u64 kQuirks = KVM_X86_QUIRK_LINT0_REENABLED | KVM_X86_QUIRK_LAPIC_MMIO_HOLE |
                               KVM_X86_QUIRK_OUT_7E_INC_RIP | KVM_X86_QUIRK_FIX_HYPERCALL_INSN;

// Exits that can be switched off. PAUSE never exits; MWAIT is undefined.
inline constexpr u64 kDisableExits = KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE;

// The hypercalls that the client may ask to answer, by number.
inline constexpr u64 kClientHypercalls = u64{1} << KVM_HC_MAP_GPA_RANGE;

// What KVM_SET_GUEST_DEBUG understands.
inline constexpr u32 kGuestDebugFlags =
    KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP |
    KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_BLOCKIRQ;

// What KVM_CHECK_EXTENSION answers, on either descriptor.
long capability(u64 number);

// Runs the ioctl `request` on `object`; EINVAL or ENOTTY for a request that has no row.
Result<long> dispatch(const Object& object, unsigned long request, u64 argument);

}  // namespace anykvm::abi
