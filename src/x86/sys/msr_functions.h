#pragma once
// The get and set functions that rows of tables/msrs.def name.
// Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include "x86/sys/msr.h"

namespace anykvm::x86 {

// Nothing / false: the value may not be read or written that way, as in read_msr() and write_msr().
#define ANYKVM_MSR_STORED(index, name, feature, reset, reserved, lists)
#define ANYKVM_MSR_CANONICAL(index, name, feature, lists)
#define ANYKVM_MSR_CONSTANT(index, name, feature, value, lists)
#define ANYKVM_MSR_FUNCTIONS(first, last, name, feature, lists)         \
  std::optional<u64> get_##name(Cpu& cpu, u32 index, MsrAccess access); \
  bool set_##name(Cpu& cpu, u32 index, u64 value, MsrAccess access);
#include "x86/tables/msrs.def"
#undef ANYKVM_MSR_STORED
#undef ANYKVM_MSR_CANONICAL
#undef ANYKVM_MSR_CONSTANT
#undef ANYKVM_MSR_FUNCTIONS

}  // namespace anykvm::x86
