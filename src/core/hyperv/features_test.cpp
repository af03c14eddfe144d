#include "core/hyperv/features.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace anykvm::core::hyperv {
namespace {

x86::CpuidEntry leaf(const std::vector<x86::CpuidEntry>& entries, u32 function) {
  auto found = std::ranges::find(entries, function, &x86::CpuidEntry::function);
  return found == entries.end() ? x86::CpuidEntry{} : *found;
}

TEST(HypervFeatures, no_interface_without_its_signature) {
  EXPECT_FALSE(Features::of({}).present);
  EXPECT_FALSE(Features::of({{kLeafInterface, 0, 0, 0x12345678, 0, 0, 0}}).present);
  EXPECT_TRUE(Features::of({{kLeafInterface, 0, 0, kInterfaceSignature, 0, 0, 0}}).present);
}

TEST(HypervFeatures, what_is_offered_permits_all_that_there_is) {
  const Features features = Features::of(supported_cpuid(true));
  for (u32 index : {kMsrGuestOsId, kMsrVpIndex, kMsrReset, kMsrVpRuntime, kMsrReferenceTsc, kMsrApicFrequency,
                    kMsrAssistPage, kMsrSynicControl, kMsrSint15, kMsrTimer3Count, kMsrDebugOptions,
                    kMsrCrashControl, kMsrTscEmulationStatus, kMsrInvariantTscControl})
    EXPECT_TRUE(features.permit_msr(index)) << std::hex << index;
  for (u16 code : {kCallFlushSpace, kCallFlushListEx, kCallLongSpinWait, kCallSendIpiEx, kCallPostMessage,
                   kCallSignalEvent, kCallResetDebugSession, kCallFirstExtended})
    EXPECT_TRUE(features.permit_call(code)) << std::hex << code;
}

TEST(HypervFeatures, nested_guests_flush_directly_and_have_the_enlightened_msr_map) {
  EXPECT_EQ(Features::of(supported_cpuid(true)).nested, kNestedDirectFlush | kNestedMsrBitmap);
  EXPECT_EQ(Features::of({}).nested, 0u);
}

TEST(HypervFeatures, nothing_shown_permits_nothing) {
  const Features features = Features::of({{kLeafInterface, 0, 0, kInterfaceSignature, 0, 0, 0}});
  EXPECT_FALSE(features.permit_msr(kMsrGuestOsId));
  EXPECT_FALSE(features.permit_msr(kMsrCrash0));
  EXPECT_FALSE(features.permit_msr(kMsrDebugControl));
  EXPECT_FALSE(features.permit_call(kCallFlushSpace));
  EXPECT_FALSE(features.permit_call(kCallFirstExtended));
}

TEST(HypervFeatures, calls_with_processor_sets_need_both_bits) {
  Features features;
  features.recommendations = kRemoteFlush | kClusterIpi;
  EXPECT_TRUE(features.permit_call(kCallFlushList));
  EXPECT_FALSE(features.permit_call(kCallFlushListEx));
  EXPECT_FALSE(features.permit_call(kCallSendIpiEx));
}

TEST(HypervFeatures, without_local_apic_nothing_that_needs_one_is_offered) {
  const auto entries = supported_cpuid(false);
  EXPECT_FALSE(leaf(entries, kLeafFeatures).edx & kDirectTimers);
  EXPECT_FALSE(leaf(entries, kLeafRecommendations).eax & kClusterIpi);
}

}  // namespace
}  // namespace anykvm::core::hyperv
