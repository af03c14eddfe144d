// KVM_GET_SUPPORTED_CPUID: the host's answers, each bit filtered by its row in tables/features.def.

#include <asm/kvm_para.h>
#include <cpuid.h>
#include <linux/kvm.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "x86/state/cpu_state.h"
#include "x86/state/xsave.h"
#include "x86/sys/cpu_model.h"
#include "x86/sys/feature_table.h"

namespace anykvm::x86 {

bool host_is_amd() {
  u32 eax = 0, ebx = 0, ecx = 0, edx = 0;
  __cpuid(0, eax, ebx, ecx, edx);
  return ebx == 0x68747541 || ebx == 0x6f677948;  // "Auth", "Hygo"
}

namespace {

constexpr u32 kLastBasicLeaf = 0x1f;
constexpr u32 kLastExtendedLeaf = 0x80000021;
constexpr u32 kSvmLeaf = 0x8000000a;

CpuidResult host_cpuid(u32 leaf, u32 subleaf = 0) {
  u32 maximum = __get_cpuid_max(leaf & 0x80000000, nullptr);
  if (leaf > maximum) return {};
  CpuidResult result{};
  __cpuid_count(leaf, subleaf, result.eax, result.ebx, result.ecx, result.edx);
  return result;
}

CpuidEntry entry_of(u32 leaf, const CpuidResult& answer) {
  return {leaf, 0, 0, answer.eax, answer.ebx, answer.ecx, answer.edx};
}

CpuidEntry indexed_entry(u32 leaf, u32 subleaf, const CpuidResult& answer) {
  return {leaf, subleaf, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, answer.eax, answer.ebx, answer.ecx, answer.edx};
}

// Features whose registers the host's operating system may have left switched off in XCR0.
bool registers_usable(const FeatureRow& row) {
  u64 usable = host_xcr0_usable();
  bool avx = (usable & kXcr0Avx) == kXcr0Avx;
  bool avx512 = avx && (usable & kXcr0Avx512) == kXcr0Avx512;
  switch (row.feature) {
    case Feature::kFma:
    case Feature::kAvx:
    case Feature::kF16c:
    case Feature::kAvx2:
    case Feature::kVaes:
    case Feature::kVpclmulqdq:
    case Feature::kAvxVnni:
      return avx;
    case Feature::kAvx512f:
    case Feature::kAvx512dq:
    case Feature::kAvx512ifma:
    case Feature::kAvx512pf:
    case Feature::kAvx512er:
    case Feature::kAvx512cd:
    case Feature::kAvx512bw:
    case Feature::kAvx512vl:
    case Feature::kAvx512vbmi:
    case Feature::kAvx512vbmi2:
    case Feature::kAvx512vnni:
    case Feature::kAvx512bitalg:
    case Feature::kAvx512vpopcntdq:
    case Feature::kAvx512vp2intersect:
    case Feature::kAvx512fp16:
    case Feature::kAvx512bf16:
      return avx512;
    default:
      return true;
  }
}

// ANYKVM_NESTED=0, as the kernel's modules have a parameter for it.
bool offers_nesting() {
  static const bool offers = [] {
    const char* setting = secure_getenv("ANYKVM_NESTED");
    return !setting || std::string_view(setting) != "0";
  }();
  return offers;
}

bool offered(const FeatureRow& row) {
  const bool for_nesting = row.feature == Feature::kSvm || row.leaf == kSvmLeaf;
  if (for_nesting && !offers_nesting()) return false;
  if (row.requirement == FeatureRequirement::kSchedstat) return host_tells_waiting_time();
  if (row.requirement == FeatureRequirement::kAlways) return true;
  if (row.requirement == FeatureRequirement::kModel) return false;
  if (row.requirement == FeatureRequirement::kAmdHost) return host_is_amd();
  if (row.requirement == FeatureRequirement::kIntelHost) return !host_is_amd();
  CpuidResult host = host_cpuid(row.leaf, row.subleaf);
  return has_bit(cpuid_register(host, row.reg), row.bitnr) && registers_usable(row);
}

// All feature bits of one sub-leaf; the registers' other bits are zero.
CpuidResult offered_features(u32 leaf, u32 subleaf) {
  CpuidResult result{};
  for (const FeatureRow& row : kFeatureRows) {
    if (row.leaf != leaf || row.subleaf != subleaf || !offered(row)) continue;
    cpuid_register(result, row.reg) |= 1u << row.bitnr;
  }
  return result;
}

// Family, model and stepping, CLFLUSH line size and features; the APIC ID and core count are the client's to
// fill in.
CpuidEntry leaf_1() {
  CpuidResult result = offered_features(1, 0);
  CpuidResult host = host_cpuid(1);
  result.eax = host.eax;
  result.ebx = host.ebx & 0xff00;
  return entry_of(1, result);
}

// Deterministic cache parameters (Intel's leaf 4, AMD's 8000001DH): a list that ends with cache type 0.
void add_cache_leaf(std::vector<CpuidEntry>& entries, u32 leaf) {
  constexpr u32 kMostCaches = 16;
  for (u32 subleaf = 0; subleaf < kMostCaches; ++subleaf) {
    CpuidResult host = host_cpuid(leaf, subleaf);
    entries.push_back(indexed_entry(leaf, subleaf, host));
    if ((host.eax & 0x1f) == 0) return;
  }
}

void add_leaf_7(std::vector<CpuidEntry>& entries) {
  CpuidResult first = offered_features(7, 0);
  first.eax = 1;
  entries.push_back(indexed_entry(7, 0, first));
  entries.push_back(indexed_entry(7, 1, offered_features(7, 1)));
}

void add_leaf_0d(std::vector<CpuidEntry>& entries) {
  u64 components = guest_xcr0_offered();
  // EBX is the size for what XCR0 enables: here, as after reset.
  entries.push_back(indexed_entry(0xd, 0,
                                  {static_cast<u32>(components), xsave_standard_size(kXcr0X87),
                                   xsave_standard_size(components), static_cast<u32>(components >> 32)}));
  CpuidResult extensions = offered_features(0xd, 1);
  extensions.ebx = xsave_compacted_size(kXcr0X87);
  entries.push_back(indexed_entry(0xd, 1, extensions));
  for (unsigned index = 2; index < 63; ++index) {
    if (!has_bit(components, index)) continue;
    XsaveComponent component = xsave_component(index);
    u32 ecx = component.aligned64 ? 2 : 0;
    entries.push_back(indexed_entry(0xd, index, {component.size, component.offset, ecx, 0}));
  }
}

// Architectural performance monitoring, version 2 (SDM 3B 19.2): four counters, the first three fixed ones,
// and those of the seven architectural events that can be counted truly (sys/pmu.cpp).
CpuidEntry leaf_0a() {
  if (host_is_amd()) return entry_of(0xa, {});
  constexpr u32 kVersion = 2, kCounters = 4, kWidth = 48, kEvents = 7, kFixed = 3;
  constexpr u32 kAbsent = 1u << 3 | 1u << 4 | 1u << 6;  // cache references and misses, mispredicted branches
  constexpr u32 kNoAnyThread = 1u << 15;
  return entry_of(0xa, {kVersion | kCounters << 8 | kWidth << 16 | kEvents << 24, kAbsent, 0,
                        kFixed | kWidth << 5 | kNoAnyThread});
}

void add_basic_leaves(std::vector<CpuidEntry>& entries) {
  CpuidResult host = host_cpuid(0);
  bool xsave = offered_features(1, 0).ecx & bit_XSAVE;
  u32 least = xsave ? 0xd : 7;  // features that are always offered need their leaves
  host.eax = std::clamp(host.eax, least, kLastBasicLeaf);
  entries.push_back(entry_of(0, host));
  entries.push_back(leaf_1());
  entries.push_back(entry_of(2, host_cpuid(2)));
  if (!host_is_amd()) add_cache_leaf(entries, 4);
  entries.push_back(entry_of(6, offered_features(6, 0)));
  add_leaf_7(entries);
  entries.push_back(leaf_0a());
  entries.push_back(indexed_entry(0xb, 0, {}));
  if (xsave) add_leaf_0d(entries);
  if (host.eax >= 0x1d) entries.push_back(indexed_entry(0x1d, 0, {}));
  if (host.eax >= 0x1e) entries.push_back(indexed_entry(0x1e, 0, {}));
  if (host.eax >= 0x1f) entries.push_back(indexed_entry(0x1f, 0, {}));
}

void add_kvm_leaves(std::vector<CpuidEntry>& entries) {
  constexpr u32 kKvmk = 0x4b4d564b, kVmkv = 0x564b4d56, kM = 0x4d;  // "KVMKVMKVM\0\0\0"
  entries.push_back(entry_of(KVM_CPUID_SIGNATURE, {KVM_CPUID_FEATURES, kKvmk, kVmkv, kM}));
  entries.push_back(entry_of(KVM_CPUID_FEATURES, offered_features(KVM_CPUID_FEATURES, 0)));
}

CpuidEntry leaf_80000001() {
  CpuidResult result = offered_features(0x80000001, 0);
  result.eax = host_cpuid(0x80000001).eax;
  // APM 3 E.4.2: bits 0-9, 12-17, 23 and 24 repeat those of leaf 1.
  if (host_is_amd()) result.edx |= offered_features(1, 0).edx & 0x0183f3ff;
  return entry_of(0x80000001, result);
}

// Secure virtual machines: revision 1, and how many address space identifiers there are.
CpuidEntry leaf_8000000a() {
  constexpr u32 kAsids = 64;
  if (!offers_nesting()) return entry_of(kSvmLeaf, {});
  CpuidResult result = offered_features(kSvmLeaf, 0);
  result.eax = 1;
  result.ebx = kAsids;
  return entry_of(kSvmLeaf, result);
}

// Address widths. With 5-level paging on offer, linear addresses have 57 bits.
CpuidEntry leaf_80000008() {
  CpuidResult result = offered_features(0x80000008, 0);
  u32 physical = host_cpuid(0x80000008).eax & 0xff;
  result.eax = 57u << 8 | std::max(physical, 36u);
  return entry_of(0x80000008, result);
}

void add_extended_leaves(std::vector<CpuidEntry>& entries) {
  CpuidResult host = host_cpuid(0x80000000);
  host.eax = std::clamp(host.eax, 0x8000000au, kLastExtendedLeaf);
  entries.push_back(entry_of(0x80000000, host));
  entries.push_back(leaf_80000001());
  for (u32 leaf = 0x80000002; leaf <= 0x80000006; ++leaf) entries.push_back(entry_of(leaf, host_cpuid(leaf)));
  entries.push_back(entry_of(0x80000007, offered_features(0x80000007, 0)));
  entries.push_back(leaf_80000008());
  entries.push_back(leaf_8000000a());
  for (u32 leaf : {0x80000019u, 0x8000001au}) {
    if (host.eax >= leaf) entries.push_back(entry_of(leaf, host_cpuid(leaf)));
  }
  if (host.eax >= 0x8000001d) add_cache_leaf(entries, 0x8000001d);
  if (host.eax >= 0x8000001e) entries.push_back(entry_of(0x8000001e, {}));
  if (host.eax >= 0x80000021) entries.push_back(entry_of(0x80000021, offered_features(0x80000021, 0)));
}

CpuidResult features_beyond_host(u32 leaf, u32 subleaf) {
  const CpuidResult host = host_cpuid(leaf, subleaf);
  CpuidResult result = offered_features(leaf, subleaf);
  result.eax &= ~host.eax;
  result.ebx &= ~host.ebx;
  result.ecx &= ~host.ecx;
  result.edx &= ~host.edx;
  return result;
}

}  // namespace

// CONFIG_SCHED_INFO.
bool host_tells_waiting_time() {
  static const bool tells = access("/proc/thread-self/schedstat", R_OK) == 0;
  return tells;
}

std::vector<CpuidEntry> emulated_cpuid() {
  return {entry_of(0, {7, 0, 0, 0}), entry_of(1, features_beyond_host(1, 0)),
          indexed_entry(7, 0, features_beyond_host(7, 0))};
}

std::vector<CpuidEntry> supported_cpuid() {
  std::vector<CpuidEntry> entries;
  add_basic_leaves(entries);
  add_kvm_leaves(entries);
  add_extended_leaves(entries);
  return entries;
}

}  // namespace anykvm::x86
