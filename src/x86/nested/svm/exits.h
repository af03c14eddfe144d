#pragma once
// What makes a nested guest's CPU go back to its hypervisor: intercepted instructions, exceptions and events
// (APM 2 15.7 to 15.14). Whoever carries out an instruction asks here at the place that the manual gives to
// the intercept among the instruction's other checks. Owner: nobody; functions over a Cpu. Only the vCPU's
// thread.

#include "x86/cpu.h"
#include "x86/fault.h"
#include "x86/translate/insn.h"

namespace anykvm::x86::svm {

// An exit to come, as the VMCB will show it.
struct PendingExit {
  u64 code = 0, info_1 = 0, info_2 = 0;
  u64 next_rip = 0;  // of an instruction; else 0
};

// What the translations of nested guests in the TLB depend on.
struct TlbTags {
  u32 asid = 0;
  u64 cr0 = 0, cr3 = 0, cr4 = 0, efer = 0, nested_cr3 = 0, nested_ctl = 0;
  bool operator==(const TlbTags&) const = default;
};

// The stop that makes the dispatcher leave the nested guest with `code`; RIP stays at the instruction.
// Compiled without vector instructions (kOpKeepsVector).
GuestStop stop_for_hypervisor(Cpu& cpu, u64 code, u64 info_1 = 0, u64 info_2 = 0);

// For the instruction that is being carried out.
inline Guest<void> check(Cpu& cpu, Intercept which, u64 info_1 = 0, u64 info_2 = 0) {
  if (!cpu.state().svm.intercepts(which)) [[likely]]
    return {};
  return stop_for_hypervisor(cpu, kExitFirstIntercept + static_cast<u64>(which), info_1, info_2);
}

// The port access of an instruction.
struct PortAccess {
  u16 port = 0;
  unsigned size = 0;
  bool in = false, string = false;
  SegmentIndex segment = kEs;  // of a string
};

// Those below, once a nested guest runs.
namespace nested {
Guest<void> check_cr(Cpu& cpu, unsigned number, bool write);
Guest<void> check_dr(Cpu& cpu, unsigned number, bool write);
Guest<void> check_msr(Cpu& cpu, u32 index, bool write);
Guest<void> check_io(Cpu& cpu, const Insn& insn, const PortAccess& access);
}  // namespace nested

// MOV from and to CR0, CR2, CR3, CR4, CR8 and DR0 to DR7, and what else reads or writes CR0.
inline Guest<void> check_cr_read(Cpu& cpu, unsigned number) {
  return cpu.state().svm.guest_mode ? nested::check_cr(cpu, number, false) : Guest<void>{};
}
inline Guest<void> check_cr_write(Cpu& cpu, unsigned number) {
  return cpu.state().svm.guest_mode ? nested::check_cr(cpu, number, true) : Guest<void>{};
}
inline Guest<void> check_dr(Cpu& cpu, unsigned number, bool write) {
  return cpu.state().svm.guest_mode ? nested::check_dr(cpu, number, write) : Guest<void>{};
}
// MOV to CR0 also asks this: does it change anything but TS and MP?
inline Guest<void> check_cr0_selective_write(Cpu& cpu, u64 value) {
  constexpr u64 kNotSelected = kCr0Ts | kCr0Mp;
  const bool selected = (cpu.state().cr0 ^ value) & ~kNotSelected;
  return selected ? check(cpu, Intercept::kCr0SelectiveWrite) : Guest<void>{};
}
// By the permission maps in the hypervisor's memory (APM 2 15.10, 15.11).
inline Guest<void> check_msr(Cpu& cpu, u32 index, bool write) {
  return cpu.state().svm.guest_mode ? nested::check_msr(cpu, index, write) : Guest<void>{};
}
inline Guest<void> check_io(Cpu& cpu, const Insn& insn, const PortAccess& access) {
  return cpu.state().svm.guest_mode ? nested::check_io(cpu, insn, access) : Guest<void>{};
}

}  // namespace anykvm::x86::svm
