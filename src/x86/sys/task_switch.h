#pragma once
// Hardware task switches (SDM 3A 7.3), through 16- and 32-bit TSSs.
// Owner: nobody; functions over a Cpu. Only the vCPU's thread. Outside IA-32e mode only.

#include <optional>

#include "x86/sys/segments.h"

namespace anykvm::x86 {

enum class TaskSwitch : u8 { kJump, kCall, kIret, kGate };

// A stop: nothing has changed. Otherwise the new task is current, with the fault (if any) that loading its
// segments raised, or the #DB that its T flag asks for; that fault belongs to the new task and is still to be
// delivered. state.rip must be what the old task resumes at. `error_code` is pushed on the new task's stack.
Guest<std::optional<GuestFault>> switch_task(Cpu& cpu, u16 tss_selector, TaskSwitch kind,
                                             std::optional<u32> error_code = {});

// As switch_task for instructions: delivers the new task's fault itself.
Guest<void> switch_task_and_deliver(Cpu& cpu, u16 tss_selector, TaskSwitch kind);

// The selector in the link field of the current TSS, for IRET with NT set.
Guest<u16> previous_task(Cpu& cpu);

}  // namespace anykvm::x86
