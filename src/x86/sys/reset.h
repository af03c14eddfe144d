#pragma once
// Power-up and INIT state of a guest CPU.
// Owner: nobody; a function over its state. Only the vCPU's thread, or while the vCPU is not inside KVM_RUN.

#include "x86/state/cpu_state.h"
#include "x86/sys/cpu_model.h"

namespace anykvm::x86 {

// SDM 3A 10.1 and table 10-1. INIT keeps what the table says it keeps: vector state, XCR0, most MSRs, the
// cache bits of CR0. mp_state and the TSC's ratio and offset are left alone.
void reset_cpu(CpuState& state, const CpuModel& model, bool init);

}  // namespace anykvm::x86
