#include "core/hyperv/features.h"

#include <stdio.h>
#include <string.h>

#include <array>
#include <string_view>

#include "core/hyperv/partition.h"

namespace anykvm::core::hyperv {
namespace {

// Which bit of kLeafFeatures.EAX opens an MSR; 0: none does.
u32 msr_privilege(u32 index) {
  switch (index) {
    case kMsrGuestOsId:
    case kMsrHypercall:
      return kAccessHypercalls;
    case kMsrVpIndex:
      return kAccessVpIndex;
    case kMsrReset:
      return kAccessReset;
    case kMsrVpRuntime:
      return kAccessVpRuntime;
    case kMsrReferenceCounter:
      return kAccessReferenceCounter;
    case kMsrReferenceTsc:
      return kAccessReferenceTsc;
    case kMsrTscFrequency:
    case kMsrApicFrequency:
      return kAccessFrequencies;
    case kMsrReenlightenmentControl:
    case kMsrTscEmulationControl:
    case kMsrTscEmulationStatus:
      return kAccessReenlightenment;
    case kMsrInvariantTscControl:
      return kAccessInvariantTsc;
    default:
      break;
  }
  if (index >= kMsrEoi && index <= kMsrAssistPage) return kAccessApic;
  if (index >= kMsrSynicControl && index <= kMsrSint15) return kAccessSynic;
  if (index >= kMsrTimer0Config && index <= kMsrTimer3Count) return kAccessSyntheticTimers;
  return 0;
}

bool is_debug_msr(u32 index) {
  return (index >= kMsrDebugControl && index <= kMsrDebugPendingPage) || index == kMsrDebugOptions;
}

// Can two threads of the host share a core with strangers? (CPUID.40000004H:EAX[18] says that they cannot.)
bool smt_possible() {
  FILE* file = fopen("/sys/devices/system/cpu/smt/control", "re");
  if (!file) return true;
  char text[32] = {};
  const bool read = fgets(text, sizeof text, file) != nullptr;
  fclose(file);
  const std::string_view control = text;
  return !read || !(control.starts_with("forceoff") || control.starts_with("notsupported"));
}

x86::CpuidEntry entry(u32 leaf, u32 eax, u32 ebx = 0, u32 ecx = 0, u32 edx = 0) {
  return {leaf, 0, 0, eax, ebx, ecx, edx};
}

x86::CpuidEntry vendor_entry(u32 leaf, u32 last_leaf) {
  std::array<u32, 3> name{};
  memcpy(name.data(), "Linux KVM Hv", sizeof name);
  return entry(leaf, last_leaf, name[0], name[1], name[2]);
}

x86::CpuidEntry features_entry(bool has_apic) {
  const u32 msrs = kAccessVpRuntime | kAccessReferenceCounter | kAccessSynic | kAccessSyntheticTimers |
                   kAccessApic | kAccessHypercalls | kAccessVpIndex | kAccessReset | kAccessReferenceTsc |
                   kAccessFrequencies | kAccessReenlightenment | kAccessInvariantTsc;
  const u32 calls = kPostMessages | kSignalEvents | kDebugging | kExtendedHypercalls;
  const u32 others = kGuestDebugging | kXmmInput | kFrequencyMsrs | kCrashMsrs | kDebugMsrs |
                     kExtendedFlushRanges | (has_apic ? kDirectTimers : 0);
  return entry(kLeafFeatures, msrs, calls, 0, others);
}

x86::CpuidEntry recommendations_entry(bool has_apic) {
  constexpr u32 kSpinRetries = 0xfff;
  const u32 recommended = kRemoteFlush | kApicMsrs | kRelaxedTiming | kNoAutoEoi | kProcessorSets |
                          (has_apic ? kClusterIpi : 0) | (smt_possible() ? 0 : kNoCoreSharing);
  return entry(kLeafRecommendations, recommended, kSpinRetries);
}

}  // namespace

Features Features::of(const std::vector<x86::CpuidEntry>& entries) {
  Features features;
  for (const x86::CpuidEntry& leaf : entries) {
    switch (leaf.function) {
      case kLeafInterface:
        features.present = leaf.eax == kInterfaceSignature;
        break;
      case kLeafFeatures:
        features.msrs = leaf.eax;
        features.calls = leaf.ebx;
        features.others = leaf.edx;
        break;
      case kLeafRecommendations:
        features.recommendations = leaf.eax;
        features.spin_retries = leaf.ebx;
        break;
      case kLeafNested:
        features.nested = leaf.eax;
        break;
      case kLeafDebugCapabilities:
        features.kernel_debugging = leaf.eax & kAllowKernelDebugging;
        break;
      default:
        break;
    }
  }
  return features;
}

bool Features::permit_msr(u32 index) const {
  if (index >= kMsrCrash0 && index <= kMsrCrashControl) return others & kCrashMsrs;
  if (is_debug_msr(index)) return others & kDebugMsrs;
  return msrs & msr_privilege(index);
}

bool Features::permit_call(u16 code) const {
  const bool sets = recommendations & kProcessorSets;
  switch (code) {
    case kCallLongSpinWait:
      return spin_retries != 0 && spin_retries != ~u32{0};
    case kCallPostMessage:
      return calls & kPostMessages;
    case kCallSignalEvent:
      return calls & kSignalEvents;
    // Without a debugger there are no such calls at all, which is another answer.
    case kCallPostDebugData:
    case kCallRetrieveDebugData:
    case kCallResetDebugSession:
      return !kernel_debugging || (calls & kDebugging);
    case kCallFlushSpace:
    case kCallFlushList:
      return recommendations & kRemoteFlush;
    case kCallFlushSpaceEx:
    case kCallFlushListEx:
      return sets && (recommendations & kRemoteFlush);
    case kCallSendIpi:
      return recommendations & kClusterIpi;
    case kCallSendIpiEx:
      return sets && (recommendations & kClusterIpi);
    default:
      return code < kCallFirstExtended || code > kCallLastExtended || (calls & kExtendedHypercalls);
  }
}

std::vector<x86::CpuidEntry> supported_cpuid(bool has_apic) {
  constexpr u32 kLogicalProcessors = 64;
  constexpr u32 kBuild = 0x3839, kVersion10 = 10u << 16;  // what Windows Server 2016 shows
  constexpr u32 kDebugSignature = 0x31235356;             // "VS#1"
  return {
      vendor_entry(kLeafVendor, kLeafDebugCapabilities),
      entry(kLeafInterface, kInterfaceSignature),
      entry(kLeafVersion, kBuild, kVersion10),
      features_entry(has_apic),
      recommendations_entry(has_apic),
      entry(kLeafLimits, kMaxProcessors, kLogicalProcessors),
      vendor_entry(kLeafDebugVendor, 0),
      entry(kLeafDebugInterface, kDebugSignature),
      entry(kLeafDebugCapabilities, kAllowKernelDebugging),
      entry(kLeafNested, kNestedDirectFlush | kNestedMsrBitmap),
  };
}

}  // namespace anykvm::core::hyperv
