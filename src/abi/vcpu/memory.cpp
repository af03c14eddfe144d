// KVM_PRE_FAULT_MEMORY (KVM API 4.143).
#include <errno.h>

#include "abi/handlers.h"
#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::abi::vcpu {

Result<long> pre_fault_memory(core::Vcpu& vcpu, kvm_pre_fault_memory& range) {
  constexpr u64 kInPage = kPageSize - 1;
  if (range.flags) return Error{EINVAL, "flags must be 0"};
  if ((range.gpa & kInPage) || (range.size & kInPage) || range.size == 0 ||
      range.gpa + range.size <= range.gpa)
    return Error{EINVAL, "not a range of whole pages"};
  const u64 done = TRY(vcpu.vm().pre_fault(range.gpa, range.size));
  range.gpa += done;
  range.size -= done;
  return 0;
}

}  // namespace anykvm::abi::vcpu
