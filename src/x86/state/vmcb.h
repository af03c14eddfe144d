#pragma once
// The virtual machine control block, by which a hypervisor says what its guest is to be (APM 2 appendix B),
// and what a CPU keeps of it while that guest runs. Owner: SvmState is part of CpuState; the rest are layouts
// of guest memory. Only the vCPU's thread.

#include <cstddef>

#include "base/types.h"

namespace anykvm::x86 {

// Numbers of the intercept bits from offset 00CH on. The exit code of each is kExitFirstIntercept more.
enum class Intercept : u8 {
  kIntr = 0,
  kNmi,
  kSmi,
  kInit,
  kVintr,
  kCr0SelectiveWrite,
  kIdtrRead,
  kGdtrRead,
  kLdtrRead,
  kTrRead,
  kIdtrWrite,
  kGdtrWrite,
  kLdtrWrite,
  kTrWrite,
  kRdtsc,
  kRdpmc,
  kPushf,
  kPopf,
  kCpuid,
  kRsm,
  kIret,
  kIntn,
  kInvd,
  kPause,
  kHlt,
  kInvlpg,
  kInvlpga,
  kIoio,
  kMsr,
  kTaskSwitch,
  kFerrFreeze,
  kShutdown,
  kVmrun = 32,
  kVmmcall,
  kVmload,
  kVmsave,
  kStgi,
  kClgi,
  kSkinit,
  kRdtscp,
  kIcebp,
  kWbinvd,
  kMonitor,
  kMwait,
  kMwaitArmed,
  kXsetbv,
  kInvpcid = 66,
};

// Exit codes, APM 2 appendix C.
enum SvmExitCode : u64 {
  kExitReadCr0 = 0x00,
  kExitWriteCr0 = 0x10,
  kExitReadDr0 = 0x20,
  kExitWriteDr0 = 0x30,
  kExitException0 = 0x40,
  kExitFirstIntercept = 0x60,
  kExitShutdown = 0x7f,
  kExitNestedPageFault = 0x400,
  kExitInvalid = ~u64{0},
};

// Control area's int_ctl (offset 060H).
enum VirtualInterruptControl : u32 {
  kVTprMask = 0xff,
  kVIrq = 1u << 8,
  kVGif = 1u << 9,
  kVIgnoreTpr = 1u << 20,
  kVIntrMasking = 1u << 24,
  kVGifEnable = 1u << 25,
};
inline constexpr unsigned kVPriorityShift = 16;

// EVENTINJ and EXITINTINFO:  63:32 error code | 31 valid | 11 has error code | 10:8 type | 7:0 vector
enum SvmEventBits : u64 { kSvmEventValid = u64{1} << 31, kSvmEventHasError = u64{1} << 11 };
inline constexpr unsigned kSvmEventTypeShift = 8;
enum class SvmEventType : u8 { kInterrupt = 0, kNmi = 2, kException = 3, kSoftware = 4 };

// What a nested page fault's EXITINFO1 says beyond a page fault's error code.
inline constexpr u64 kNpfFinal = u64{1} << 32;      // the guest's access itself
inline constexpr u64 kNpfTableWalk = u64{1} << 33;  // its CPU's access to the guest's page tables

enum TlbControl : u8 { kTlbKeep = 0, kTlbFlushAll = 1, kTlbFlushAsid = 3, kTlbFlushAsidLocal = 7 };

struct VmcbSegment {
  u16 selector, attributes;  // bits 55:52 and 47:40 of a descriptor side by side
  u32 limit;                 // in bytes
  u64 base;
};

// APM 2 table B-1: the first KiB.
struct VmcbControl {
  u16 cr_read, cr_write, dr_read, dr_write;
  u32 exceptions;
  u32 intercepts[3];  // by Intercept
  u8 reserved1[0x3c - 0x18];
  u16 pause_filter_threshold, pause_filter_count;
  u64 iopm_base, msrpm_base;
  u64 tsc_offset;
  u32 asid;
  u8 tlb_control, reserved2[3];
  u32 int_ctl, int_vector;
  u32 int_state, reserved3;
  u64 exit_code, exit_info_1, exit_info_2;
  u64 exit_int_info;
  u64 nested_ctl;
  u64 reserved4[2];
  u64 event_inj;
  u64 nested_cr3;
  u64 virtualization_ext;
  u32 clean, reserved5;
  u64 next_rip;
  u8 instruction_length, instruction[15];
  u8 reserved6[0x3e0 - 0xe0];
  u8 software[32];
};
static_assert(sizeof(VmcbControl) == 0x400 && offsetof(VmcbControl, iopm_base) == 0x40 &&
              offsetof(VmcbControl, int_ctl) == 0x60 && offsetof(VmcbControl, exit_int_info) == 0x88 &&
              offsetof(VmcbControl, event_inj) == 0xa8 && offsetof(VmcbControl, next_rip) == 0xc8);

// APM 2 table B-2: what follows the control area.
struct VmcbSave {
  VmcbSegment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
  u8 reserved1[0xcb - 0xa0];
  u8 cpl;
  u32 reserved2;
  u64 efer;
  u64 reserved3[14];
  u64 cr4, cr3, cr0, dr7, dr6, rflags, rip;
  u64 reserved4[11];
  u64 rsp;
  u64 s_cet, ssp, interrupt_ssp_table;
  u64 rax;
  u64 star, lstar, cstar, sfmask, kernel_gs_base;
  u64 sysenter_cs, sysenter_esp, sysenter_eip;
  u64 cr2;
  u64 reserved5[4];
  u64 g_pat;
  u64 debugctl, last_branch_from, last_branch_to, last_exception_from, last_exception_to;
};
static_assert(offsetof(VmcbSave, cpl) == 0xcb && offsetof(VmcbSave, efer) == 0xd0 &&
              offsetof(VmcbSave, cr4) == 0x148 && offsetof(VmcbSave, rsp) == 0x1d8 &&
              offsetof(VmcbSave, rax) == 0x1f8 && offsetof(VmcbSave, cr2) == 0x240 &&
              offsetof(VmcbSave, g_pat) == 0x268);
inline constexpr u64 kVmcbSaveOffset = sizeof(VmcbControl);

// Secure virtual machine (APM 2 chapter 15). The CPU runs the guest of a hypervisor that is a guest itself
// while `guest_mode`; the registers in CpuState are then that guest's.
struct SvmState {
  bool gif = true;  // global interrupt flag
  bool guest_mode = false;
  u64 vm_cr = 0, hsave_pa = 0;
  u64 vmcb_pa = 0;        // of VMRUN
  VmcbControl control{};  // as VMRUN read it; int_ctl changes with the virtual interrupt, event_inj is valid
                          // until the event is delivered
  VmcbSave host{};        // the hypervisor's registers; g_pat while its guest has a PAT of its own
  u64 tsc_ratio = u64{1} << 32;  // TSC_RATIO: of nested guests against their hypervisor
  u64 tsc_offset = 0;            // of the guest against its hypervisor; 0 while the hypervisor runs

  bool nested_paging() const { return guest_mode && (control.nested_ctl & 1); }
  bool intercepts(Intercept which) const {
    const auto number = static_cast<unsigned>(which);
    return guest_mode && (control.intercepts[number / 32] >> number % 32 & 1);
  }
  bool intercepts_exception(u8 vector) const { return guest_mode && (control.exceptions >> vector & 1); }
  // The TSC of whoever runs, where that of the hypervisor is `tsc` (APM 2 15.30.5).
  u64 running_tsc(u64 tsc) const {
    if (!guest_mode) return tsc;
    return static_cast<u64>(static_cast<unsigned __int128>(tsc) * tsc_ratio >> 32) + tsc_offset;
  }
  bool scales_tsc() const { return guest_mode && tsc_ratio != u64{1} << 32; }
  // The guest's RFLAGS.IF and CR8 are about virtual interrupts only.
  bool masks_interrupts() const { return guest_mode && (control.int_ctl & kVIntrMasking); }
};

}  // namespace anykvm::x86
