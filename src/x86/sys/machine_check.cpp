#include "x86/sys/machine_check.h"

#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kAllOnes = ~u64{0};
constexpr u64 kBankCount = 0xff, kExtendedCount = 0xff0000;  // fields of IA32_MCG_CAP
constexpr u64 kMcipInStatus = bit(2);                        // IA32_MCG_STATUS.MCIP
// IA32_MCi_STATUS, SDM 3B figure 16-6.
constexpr u64 kValid = bit(63), kOverflow = bit(62), kUncorrected = bit(61), kContextCorrupt = bit(57),
              kSignalled = bit(56), kActionRequired = bit(55);
constexpr u64 kCmciEnable = bit(30), kCmciThreshold = 0x7fff;  // IA32_MCi_CTL2
constexpr u32 kFirstBankMsr = 0x400, kFirstCtl2Msr = 0x280;
enum BankRegister : u32 { kCtl, kStatus, kAddr, kMisc };

u32 bank_count(const MsrState& msrs) { return static_cast<u32>(msrs.mcg_cap & kBankCount); }

// Uncorrected, but nobody has used what is broken: told by an interrupt at most (SDM 3B 16.6.3, UCNA).
bool needs_no_action(const MachineCheckError& error) {
  return !error.mcg_status && (error.status & kUncorrected) &&
         !(error.status & (kContextCorrupt | kSignalled | kActionRequired));
}

void record(MsrState& msrs, const MachineCheckError& error, u64 more_status) {
  u64* bank = &msrs.mc_banks[4u * error.bank];
  bank[kStatus] = error.status | more_status;
  bank[kAddr] = error.address;
  bank[kMisc] = error.misc;
}

void raise_machine_check(CpuState& state) {
  auto& exception = state.events.exception;
  exception = {};
  exception.injected = true;
  exception.vector = kVectorMc;
}

void report_uncorrected(CpuState& state, const MachineCheckError& error, u64 overflow) {
  MsrState& msrs = state.msrs;
  const bool control_off = (msrs.mcg_cap & kMcgCtlP) && msrs.mcg_ctl != kAllOnes;
  if (control_off || msrs.mc_banks[4u * error.bank + kCtl] != kAllOnes) return;
  if ((msrs.mcg_status & kMcipInStatus) || !(state.cr4 & kCr4Mce)) {
    state.events.triple_fault = true;
    return;
  }
  record(msrs, error, overflow);
  msrs.mcg_status = error.mcg_status;
  raise_machine_check(state);
}

}  // namespace

bool set_up_machine_check(Cpu& cpu, u64 mcg_cap) {
  const u64 banks = mcg_cap & kBankCount;
  if (banks == 0 || banks > kMachineCheckBanks) return false;
  if (mcg_cap & ~(kMcgSupported | kBankCount | kExtendedCount)) return false;
  MsrState& msrs = cpu.state().msrs;
  msrs.mcg_cap = mcg_cap;
  if (mcg_cap & kMcgCtlP) msrs.mcg_ctl = kAllOnes;
  for (u32 bank = 0; bank < banks; ++bank) {
    msrs.mc_banks[4 * bank + kCtl] = kAllOnes;
    if (mcg_cap & kMcgCmciP) msrs.mc_ctl2[bank] = 0;
  }
  return true;
}

MachineCheckReport report_machine_check(Cpu& cpu, const MachineCheckError& error) {
  CpuState& state = cpu.state();
  MsrState& msrs = state.msrs;
  if (error.bank >= bank_count(msrs) || !(error.status & kValid)) return MachineCheckReport::kInvalid;
  if (needs_no_action(error)) {
    record(msrs, error, 0);
    msrs.mcg_status = 0;
    const bool interrupts = (msrs.mcg_cap & kMcgCmciP) && (msrs.mc_ctl2[error.bank] & kCmciEnable);
    return interrupts ? MachineCheckReport::kInterrupt : MachineCheckReport::kDone;
  }
  u64& status = msrs.mc_banks[4u * error.bank + kStatus];
  const u64 overflow = status & kValid ? kOverflow : 0;
  if (error.status & kUncorrected) {
    report_uncorrected(state, error, overflow);
  } else if ((status & kValid) && (status & kUncorrected)) {
    status |= kOverflow;  // the worse error stays (SDM 3B table 16-8)
  } else {
    record(msrs, error, overflow);
  }
  cpu.request(kAttentionEvent);
  return MachineCheckReport::kDone;
}

// --- Registers ---

std::optional<u64> get_mcg_cap(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.mcg_cap; }
bool set_mcg_cap(Cpu& cpu, u32, u64 value, MsrAccess access) {
  return access == MsrAccess::kClient && value == cpu.state().msrs.mcg_cap;
}

std::optional<u64> get_mcg_status(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.mcg_status; }
bool set_mcg_status(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (access == MsrAccess::kGuest && value != 0) return false;  // SDM 3B 16.3.1.2
  cpu.state().msrs.mcg_status = value;
  return true;
}

std::optional<u64> get_mcg_ctl(Cpu& cpu, u32, MsrAccess access) {
  const MsrState& msrs = cpu.state().msrs;
  if (access == MsrAccess::kGuest && !(msrs.mcg_cap & kMcgCtlP)) return std::nullopt;
  return msrs.mcg_ctl;
}
bool set_mcg_ctl(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  if (!get_mcg_ctl(cpu, index, access)) return false;
  if (value != 0 && (value != kAllOnes || !(cpu.state().msrs.mcg_cap & kMcgCtlP))) return false;
  cpu.state().msrs.mcg_ctl = value;
  return true;
}

std::optional<u64> get_mc_bank(Cpu& cpu, u32 index, MsrAccess) {
  const MsrState& msrs = cpu.state().msrs;
  if (index - kFirstBankMsr >= 4 * bank_count(msrs)) return std::nullopt;
  return msrs.mc_banks[index - kFirstBankMsr];
}
bool set_mc_bank(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  MsrState& msrs = cpu.state().msrs;
  if (!get_mc_bank(cpu, index, access)) return false;
  const u32 which = (index - kFirstBankMsr) % 4;
  // All or nothing; Linux and UnixWare leave one bit out on some processors.
  constexpr u64 kErrata = bit(10) | bit(0);
  if (which == kCtl && value != 0 && (value | kErrata) != kAllOnes) return false;
  const bool status_writable = msrs.hwcr & bit(18);  // McStatusWrEn, APM 2 9.3.2.2
  if (access == MsrAccess::kGuest && which == kStatus && value != 0 && !status_writable) return false;
  msrs.mc_banks[index - kFirstBankMsr] = value;
  return true;
}

std::optional<u64> get_mc_ctl2(Cpu& cpu, u32 index, MsrAccess access) {
  const MsrState& msrs = cpu.state().msrs;
  if (index - kFirstCtl2Msr >= bank_count(msrs)) return std::nullopt;
  if (access == MsrAccess::kGuest && !(msrs.mcg_cap & kMcgCmciP)) return std::nullopt;
  return msrs.mc_ctl2[index - kFirstCtl2Msr];
}
bool set_mc_ctl2(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  MsrState& msrs = cpu.state().msrs;
  if (!get_mc_ctl2(cpu, index, access)) return false;
  if ((value && !(msrs.mcg_cap & kMcgCmciP)) || (value & ~(kCmciEnable | kCmciThreshold))) return false;
  msrs.mc_ctl2[index - kFirstCtl2Msr] = value;
  return true;
}

}  // namespace anykvm::x86
