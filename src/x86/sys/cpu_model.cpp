#include "x86/sys/cpu_model.h"

#include <linux/kvm.h>

#include <algorithm>
#include <utility>

#include "x86/state/cpu_state.h"
#include "x86/state/xsave.h"
#include "x86/sys/feature_table.h"

namespace anykvm::x86 {
namespace {

// What a guest has before the client sets CPUID entries: the features of the x86-64-v1 level that no client
// goes without.
constexpr Feature kBaseline[] = {
    Feature::kFpu,  Feature::kVme, Feature::kDe,   Feature::kPse,     Feature::kTsc,   Feature::kMsr,
    Feature::kPae,  Feature::kMce, Feature::kCx8,  Feature::kApic,    Feature::kSep,   Feature::kMtrr,
    Feature::kPge,  Feature::kMca, Feature::kCmov, Feature::kPat,     Feature::kPse36, Feature::kMmx,
    Feature::kFxsr, Feature::kSse, Feature::kSse2, Feature::kSyscall, Feature::kNx,    Feature::kLm};

// CR4 bits that KVM lets every guest set, whatever its CPUID says.
constexpr u64 kCr4Always = kCr4Vme | kCr4Pvi | kCr4Tsd | kCr4De | kCr4Pse | kCr4Pae | kCr4Mce | kCr4Pge |
                           kCr4Pce | kCr4Osfxsr | kCr4Osxmmexcpt;

struct ControlBit {
  Feature feature;
  u64 mask;
};
constexpr ControlBit kCr4Optional[] = {{Feature::kUmip, kCr4Umip},         {Feature::kLa57, kCr4La57},
                                       {Feature::kFsgsbase, kCr4Fsgsbase}, {Feature::kPcid, kCr4Pcide},
                                       {Feature::kXsave, kCr4Osxsave},     {Feature::kSmep, kCr4Smep},
                                       {Feature::kSmap, kCr4Smap},         {Feature::kPku, kCr4Pke}};
constexpr ControlBit kEferOptional[] = {{Feature::kSyscall, kEferSce},
                                        {Feature::kLm, kEferLme | kEferLma},
                                        {Feature::kNx, kEferNx},
                                        {Feature::kFfxsr, kEferFfxsr},
                                        {Feature::kSvm, kEferSvme}};

constexpr u32 kGenuineIntelEbx = 0x756e6547;  // "Genu"
constexpr u32 kAuthenticAmdEbx = 0x68747541;  // "Auth"
constexpr u32 kHygonGenuineEbx = 0x6f677948;  // "Hygo"

// Has the CPU that KVM_GET_SUPPORTED_CPUID describes this feature?
bool supported(Feature feature) {
  static const auto& entries = *new std::vector<CpuidEntry>(supported_cpuid());  // vCPUs may outlive statics
  const FeatureRow& row = kFeatureRows[static_cast<std::size_t>(feature)];
  return std::any_of(entries.begin(), entries.end(), [&row](const CpuidEntry& entry) {
    return entry.function == row.leaf && entry.index == row.subleaf &&
           has_bit(cpuid_register(entry, row.reg), row.bitnr);
  });
}

bool depends_on_index(const CpuidEntry& entry) { return entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX; }

}  // namespace

CpuModel::CpuModel() { recompute(); }

void CpuModel::set_entries(std::vector<CpuidEntry> entries) {
  m_entries = std::move(entries);
  recompute();
}

bool CpuModel::has(Feature feature) const { return m_features[static_cast<std::size_t>(feature)]; }

bool CpuModel::canonical_register(u64 value) const {
  return sign_extend(value, has(Feature::kLa57) ? 57 : 48) == value;
}

const CpuidEntry* CpuModel::find(u32 leaf, u32 subleaf) const {
  for (const CpuidEntry& entry : m_entries) {
    if (entry.function == leaf && (!depends_on_index(entry) || entry.index == subleaf)) return &entry;
  }
  return nullptr;
}

// SDM 2A CPUID: a leaf above the maximum of its class answers as the highest basic leaf; AMD answers zero
// (APM 3 E.3).
const CpuidEntry* CpuModel::find_out_of_range(u32 leaf, u32 subleaf) const {
  const CpuidEntry* basic = find(0, 0);
  if (!basic || basic->ebx == kAuthenticAmdEbx || basic->ebx == kHygonGenuineEbx) return nullptr;
  u32 class_leaf = leaf & 0x80000000;
  if (leaf >= 0x40000000 && leaf <= 0x4fffffff) class_leaf = leaf & 0xffffff00;
  if (leaf >= 0xc0000000) class_leaf = 0xc0000000;
  const CpuidEntry* leader = find(class_leaf, 0);
  if (leader && leaf <= leader->eax) return nullptr;
  return find(basic->eax, subleaf);
}

// KVM's leaves move up where another hypervisor's stand first (Linux: Documentation/virt/kvm/x86/cpuid.rst).
const CpuidEntry* CpuModel::find_pv_features() const {
  constexpr u32 kFirst = 0x40000000, kLast = 0x40010000, kStep = 0x100;
  constexpr u32 kKvmk = 0x4b4d564b, kVmkv = 0x564b4d56, kM = 0x4d;  // "KVMKVMKVM\0\0\0"
  for (const CpuidEntry& entry : m_entries) {
    if (entry.function < kFirst || entry.function >= kLast || entry.function % kStep) continue;
    if (entry.ebx == kKvmk && entry.ecx == kVmkv && entry.edx == kM) return find(entry.function + 1, 0);
  }
  return nullptr;
}

void CpuModel::recompute() {
  m_features.assign(std::size(kFeatureRows), false);
  const CpuidEntry* pv_features = find_pv_features();
  for (const FeatureRow& row : kFeatureRows) {
    const CpuidEntry* entry = row.leaf == kPvFeaturesLeaf ? pv_features : find(row.leaf, row.subleaf);
    if (entry)
      m_features[static_cast<std::size_t>(row.feature)] = has_bit(cpuid_register(*entry, row.reg), row.bitnr);
  }
  if (m_entries.empty()) {
    for (Feature feature : kBaseline) m_features[static_cast<std::size_t>(feature)] = true;
  }

  const CpuidEntry* vendor = find(0, 0);
  m_intel = vendor && vendor->ebx == kGenuineIntelEbx;

  const CpuidEntry* sizes = find(0x80000008, 0);
  m_physical_address_bits = sizes ? sizes->eax & 0xff : 36;
  m_physical_address_bits = std::clamp(m_physical_address_bits, 32u, 52u);

  const CpuidEntry* xsave = find(0xd, 0);
  m_xcr0_supported = kXcr0X87;
  if (xsave) m_xcr0_supported |= (u64{xsave->edx} << 32 | xsave->eax) & guest_xcr0_supported();

  m_cr4_supported = kCr4Always;
  for (const ControlBit& row : kCr4Optional) {
    // Before KVM_SET_CPUID2 the client may set what any model could have (KVM_SET_SREGS first, CPUID later).
    if (m_entries.empty() ? supported(row.feature) : has(row.feature)) m_cr4_supported |= row.mask;
  }
  m_efer_supported = 0;
  for (const ControlBit& row : kEferOptional) {
    if (has(row.feature)) m_efer_supported |= row.mask;
  }
}

// The bits of an entry that follow the state of the CPU.
CpuidEntry CpuModel::with_state(CpuidEntry entry, const CpuState& state) const {
  auto copy_bit = [](u32& reg, unsigned number, bool value) {
    reg = (reg & ~(1u << number)) | (u32{value} << number);
  };
  const bool compacts = has(Feature::kXsavec) || has(Feature::kXsaves);
  if (entry.function == 0x1) copy_bit(entry.ecx, 27, state.cr4 & kCr4Osxsave);
  if (entry.function == 0x7 && entry.index == 0) copy_bit(entry.ecx, 4, state.cr4 & kCr4Pke);
  if (entry.function == 0xd && entry.index == 0) entry.ebx = xsave_standard_size(state.xcr0);
  if (entry.function == 0xd && entry.index == 1 && compacts) entry.ebx = xsave_compacted_size(state.xcr0);
  return entry;
}

std::vector<CpuidEntry> CpuModel::entries_now(const CpuState& state) const {
  std::vector<CpuidEntry> entries = m_entries;
  if (!(state.cr4 & (kCr4Osxsave | kCr4Pke)) && state.xcr0 == kXcr0X87) return entries;
  for (CpuidEntry& entry : entries) entry = with_state(entry, state);
  return entries;
}

bool CpuModel::shows_the_same(const std::vector<CpuidEntry>& entries, const CpuState& state) const {
  return std::ranges::equal(entries, m_entries, [&](const CpuidEntry& a, const CpuidEntry& b) {
    return with_state(a, state) == with_state(b, state);
  });
}

CpuidResult CpuModel::cpuid(u32 leaf, u32 subleaf, const CpuState& state) const {
  const CpuidEntry* entry = find(leaf, subleaf);
  if (!entry) entry = find_out_of_range(leaf, subleaf);
  if (!entry) {
    // SDM 2A: sub-leaves past the last topology level still give the level number and the x2APIC ID.
    const CpuidEntry* first = leaf == 0xb || leaf == 0x1f ? find(leaf, 0) : nullptr;
    if (!first) return {};
    return {0, 0, subleaf & 0xff, first->edx};
  }
  const CpuidEntry now = with_state(*entry, state);
  CpuidResult result{now.eax, now.ebx, now.ecx, now.edx};
  // IA32_TSX_CTRL.TSX_CPUID_CLEAR hides HLE and RTM.
  constexpr u32 kHleAndRtm = 1u << 4 | 1u << 11;
  if (entry->function == 0x7 && entry->index == 0 && (state.msrs.tsx_ctrl & 2)) result.ebx &= ~kHleAndRtm;
  return result;
}

}  // namespace anykvm::x86
