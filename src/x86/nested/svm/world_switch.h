#pragma once
// VMRUN and #VMEXIT: from a hypervisor that is a guest to its own guest and back (APM 2 15.5, 15.6).
// Owner: nobody; functions over a Cpu. Only the vCPU's thread, inside Cpu::run().

#include "x86/cpu.h"
#include "x86/fault.h"
#include "x86/nested/svm/exits.h"

namespace anykvm::x86::svm {

// The stop of an instruction whose VMCB is not in RAM, which the client is told of.
GuestStop no_vmcb(Cpu& cpu);
// VMRUN of the VMCB at `vmcb`, with RIP behind the instruction. A state that no
// guest may have is an exit at once (kExitInvalid).
Guest<void> enter_guest(Cpu& cpu, Gpa vmcb);

// #VMEXIT. `delivering`: the event that was on its way into the guest, as EXITINTINFO shows it, or 0.
// Translated code does not run.
void leave_guest(Cpu& cpu, const PendingExit& exit, u64 delivering);

// System-management mode begins while a nested guest runs, whose registers are saved in SMRAM: its VMCB and
// the hypervisor's registers (in the host save area) go to memory. RSM brings both back into `next`, which
// has the guest's registers already; false: there is no such VMCB any more.
void suspend_guest(Cpu& cpu);
bool resume_guest(Cpu& cpu, CpuState& next, Gpa vmcb);

// The event that VMRUN's EVENTINJ or an exit's EXITINTINFO describes.
u64 describe_event(SvmEventType type, u8 vector, bool has_error, u32 error);

// May a guest be in this state (APM 2 15.5.1)? `control` is what else VMRUN read.
bool valid_guest(const CpuModel& model, const VmcbControl& control, const VmcbSave& save);
// The part of it that is about `control` alone.
bool valid_control(const CpuModel& model, const VmcbControl& control);

// The registers that VMRUN and #VMEXIT exchange, to and from `area`.
void store_registers(const CpuState& state, VmcbSave& area);
void load_registers(CpuState& state, const VmcbSave& area);

// Where CR8 of a nested guest is V_TPR: the priority class, 0 to 15.
u8 virtual_cr8(const CpuState& state);
void set_virtual_cr8(CpuState& state, u8 value);

}  // namespace anykvm::x86::svm
