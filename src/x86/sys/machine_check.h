#pragma once
// The machine-check banks: how many there are, and errors that the client reports in them (SDM 3B chapter 16;
// KVM API 4.105 to 4.107). Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include "x86/cpu.h"

namespace anykvm::x86 {

// Bits of IA32_MCG_CAP: IA32_MCG_CTL exists, corrected errors interrupt, software can recover.
inline constexpr u64 kMcgCtlP = u64{1} << 8, kMcgCmciP = u64{1} << 10, kMcgSerP = u64{1} << 24;
// What the client may choose besides the number of banks.
inline constexpr u64 kMcgSupported = kMcgCtlP | kMcgCmciP | kMcgSerP;

// Makes the banks anew. False: no such capabilities or number of banks.
bool set_up_machine_check(Cpu& cpu, u64 mcg_cap);

struct MachineCheckError {
  u8 bank = 0;
  u64 status = 0, address = 0, misc = 0, mcg_status = 0;
};
enum class MachineCheckReport : u8 {
  kInvalid,   // no such bank, or the status is not valid
  kDone,      // recorded or ignored; #MC or a shutdown is on its way if it is due
  kInterrupt  // recorded, and the CMCI entry of the local APIC is to be delivered
};
MachineCheckReport report_machine_check(Cpu& cpu, const MachineCheckError& error);

}  // namespace anykvm::x86
