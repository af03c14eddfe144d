// MSRs that describe or configure the processor model.

#include <fstream>
#include <string>

#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {
namespace {

// Bits of IA32_ARCH_CAPABILITIES (SDM 4 table 2-2) that say "this weakness is absent", by the file under
// /sys/devices/system/cpu/vulnerabilities in which the host's kernel says the same.
struct Immunity {
  const char* file;
  u64 bits;
};
constexpr Immunity kImmunities[] = {
    {"meltdown", bit(0)},
    {"l1tf", bit(3)},
    {"spec_store_bypass", bit(4)},
    {"mds", bit(5)},
    {"itlb_multihit", bit(6)},
    {"tsx_async_abort", bit(8)},
    {"mmio_stale_data", bit(13) | bit(14) | bit(15)},
    {"gather_data_sampling", bit(26)},
    {"reg_file_data_sampling", bit(27)},
};

bool host_not_affected(const char* weakness) {
  std::ifstream file(std::string("/sys/devices/system/cpu/vulnerabilities/") + weakness);
  std::string line;
  return std::getline(file, line) && line.rfind("Not affected", 0) == 0;
}

u64 read_host_immunities() {
  u64 value = 0;
  for (const Immunity& row : kImmunities) {
    if (host_not_affected(row.file)) value |= row.bits;
  }
  return value;
}

bool has_any(const CpuModel& model, std::initializer_list<Feature> features) {
  for (Feature feature : features) {
    if (model.has(feature)) return true;
  }
  return false;
}

bool spec_ctrl_visible(const Cpu& cpu, MsrAccess access) {
  return access == MsrAccess::kClient ||
         has_any(cpu.model(), {Feature::kSpecCtrl, Feature::kStibp, Feature::kSsbd, Feature::kAmdIbrs,
                               Feature::kAmdStibp, Feature::kAmdSsbd});
}

}  // namespace

// IA32_TSX_CTRL is there whatever the host has (SEEDS X2): transactional memory never is, so that it controls
// nothing but what CPUID shows.
constexpr u64 kArchHasTsxCtrl = bit(7);

u64 default_arch_capabilities() {
  static const u64 value = read_host_immunities() | kArchHasTsxCtrl;
  return value;
}

std::optional<u64> get_arch_capabilities(Cpu& cpu, u32, MsrAccess) {
  return cpu.state().msrs.arch_capabilities;
}
bool set_arch_capabilities(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (access == MsrAccess::kGuest) return false;
  cpu.state().msrs.arch_capabilities = value;
  return true;
}

// What KVM's guests start with: the revision is in the upper half on Intel's CPUs, in the lower on AMD's.
u64 default_microcode_revision() { return host_is_amd() ? 0x01000065 : u64{1} << 32; }

// Intel: the guest writes 0, executes CPUID and reads the revision (SDM 3A 10.11.7.1). The revision never
// changes.
std::optional<u64> get_microcode_revision(Cpu& cpu, u32, MsrAccess) {
  return cpu.state().msrs.microcode_revision;
}
bool set_microcode_revision(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (access == MsrAccess::kClient) cpu.state().msrs.microcode_revision = value;
  return true;
}

// Update triggers. The CPU rejects every update, which shows as an unchanged revision.
std::optional<u64> get_microcode_update(Cpu&, u32, MsrAccess) { return 0; }
bool set_microcode_update(Cpu&, u32, u64, MsrAccess) { return true; }

std::optional<u64> get_feature_control(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.feature_control; }
bool set_feature_control(Cpu& cpu, u32, u64 value, MsrAccess access) {
  constexpr u64 kLocked = bit(0), kVmxInSmx = bit(1), kVmx = bit(2);
  u64& stored = cpu.state().msrs.feature_control;
  u64 valid = kLocked | (cpu.model().has(Feature::kVmx) ? kVmxInSmx | kVmx : 0);
  if (value & ~valid) return false;
  if (access == MsrAccess::kGuest && (stored & kLocked)) return false;
  stored = value;
  return true;
}

std::optional<u64> get_misc_enable(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.misc_enable; }
bool set_misc_enable(Cpu& cpu, u32, u64 value, MsrAccess access) {
  constexpr u64 kReadOnly = bit(11) | bit(12);  // branch trace and event sampling unavailable
  u64& stored = cpu.state().msrs.misc_enable;
  if (access == MsrAccess::kGuest && ((value ^ stored) & kReadOnly)) return false;
  stored = value;
  return true;
}

std::optional<u64> get_tsx_ctrl(Cpu& cpu, u32, MsrAccess access) {
  const bool has = cpu.state().msrs.arch_capabilities & kArchHasTsxCtrl;
  if (access == MsrAccess::kGuest && !has) return std::nullopt;
  return cpu.state().msrs.tsx_ctrl;
}
bool set_tsx_ctrl(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  constexpr u64 kRtmDisable = bit(0), kCpuidClear = bit(1);
  if (!get_tsx_ctrl(cpu, index, access) || value & ~(kRtmDisable | kCpuidClear)) return false;
  cpu.state().msrs.tsx_ctrl = value;
  return true;
}

std::optional<u64> get_spec_ctrl(Cpu& cpu, u32, MsrAccess access) {
  if (!spec_ctrl_visible(cpu, access)) return std::nullopt;
  return cpu.state().msrs.spec_ctrl;
}
bool set_spec_ctrl(Cpu& cpu, u32, u64 value, MsrAccess access) {
  constexpr u64 kIbrs = bit(0), kStibp = bit(1), kSsbd = bit(2);
  if (!spec_ctrl_visible(cpu, access) || value & ~(kIbrs | kStibp | kSsbd)) return false;
  cpu.state().msrs.spec_ctrl = value;
  return true;
}

// Write-only command.
std::optional<u64> get_pred_cmd(Cpu&, u32, MsrAccess) { return std::nullopt; }
bool set_pred_cmd(Cpu& cpu, u32, u64 value, MsrAccess access) {
  constexpr u64 kBarrier = bit(0);
  bool visible =
      access == MsrAccess::kClient || has_any(cpu.model(), {Feature::kSpecCtrl, Feature::kAmdIbpb});
  return visible && !(value & ~kBarrier);
}

std::optional<u64> get_hwcr(Cpu& cpu, u32, MsrAccess) { return cpu.state().msrs.hwcr; }
bool set_hwcr(Cpu& cpu, u32, u64 value, MsrAccess) {
  // Linux and firmware set these for errata of old processors: cache disable, TLB flush filter, IGNNE
  // emulation.
  constexpr u64 kDropped = bit(3) | bit(6) | bit(8);
  constexpr u64 kMcStatusWrEn = bit(18), kTscFreqSel = bit(24);
  value &= ~kDropped;
  if (value & ~(kMcStatusWrEn | kTscFreqSel)) return false;
  cpu.state().msrs.hwcr = value;
  return true;
}

// Turbo ratios and the like: the client says. Bit 31 would say that CPUID faulting exists.
std::optional<u64> get_platform_info(Cpu& cpu, u32, MsrAccess access) {
  if (access == MsrAccess::kGuest && !cpu.platform().platform_info_readable()) return std::nullopt;
  return cpu.state().msrs.platform_info;
}
bool set_platform_info(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (access == MsrAccess::kGuest || (value & bit(31))) return false;
  cpu.state().msrs.platform_info = value;
  return true;
}

}  // namespace anykvm::x86
