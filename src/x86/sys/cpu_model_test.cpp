#include "x86/sys/cpu_model.h"

#include <gmock/gmock.h>
#include <linux/kvm.h>

#include "x86/state/cpu_state.h"
#include "x86/state/xsave.h"
#include "x86/sys/feature_table.h"

namespace anykvm::x86 {

namespace {

using testing::ElementsAreArray;

CpuModel model_of(std::vector<CpuidEntry> entries) {
  CpuModel model;
  model.set_entries(std::move(entries));
  return model;
}

CpuModel supported_model() { return model_of(supported_cpuid()); }

constexpr u32 kGenu = 0x756e6547, kAuth = 0x68747541;

TEST(CpuModel, set_entries_any_list_is_kept_exactly_X1) {
  // Unsorted, a duplicate, nonsense flags, a leaf nobody knows.
  std::vector<CpuidEntry> entries = {
      {7, 0, 1, 1, 2, 3, 4}, {0, 9, 0, 5, 6, 7, 8}, {7, 0, 1, 9, 9, 9, 9}, {0x12345678, 3, 0xff, 1, 1, 1, 1}};
  CpuModel model = model_of(entries);
  EXPECT_THAT(model.entries(), ElementsAreArray(entries));
}

TEST(CpuModel, set_entries_empty_list_is_kept_X1) {
  CpuModel model = supported_model();
  model.set_entries({});
  EXPECT_TRUE(model.entries().empty());
}

TEST(CpuModel, has_before_entries_are_set_is_baseline) {
  CpuModel model;
  EXPECT_TRUE(model.has(Feature::kSse2));
  EXPECT_FALSE(model.has(Feature::kAvx));
  EXPECT_FALSE(model.has(Feature::kXsave));
}

TEST(CpuModel, cr4_before_entries_are_set_is_all_that_any_model_has) {
  EXPECT_EQ(CpuModel().cr4_supported(), supported_model().cr4_supported());
}

TEST(CpuModel, cpuid_unindexed_leaf_ignores_subleaf) {
  CpuModel model = model_of({{1, 0, 0, 11, 12, 0, 14}});
  EXPECT_EQ(model.cpuid(1, 77, {}).eax, 11u);
}

TEST(CpuModel, cpuid_indexed_leaf_needs_its_subleaf) {
  CpuModel model = model_of({{0, 0, 0, 7, kGenu, 0, 0}, {4, 2, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 5, 0, 0, 0}});
  EXPECT_EQ(model.cpuid(4, 2, {}).eax, 5u);
  EXPECT_EQ(model.cpuid(4, 1, {}).eax, 0u);
}

TEST(CpuModel, cpuid_above_maximum_on_intel_answers_highest_basic_leaf) {
  CpuModel model = model_of({{0, 0, 0, 2, kGenu, 0, 0}, {2, 0, 0, 0x22, 0, 0, 0}});
  EXPECT_EQ(model.cpuid(0x99, 0, {}).eax, 0x22u);
  EXPECT_EQ(model.cpuid(0x80000099, 0, {}).eax, 0x22u);
}

TEST(CpuModel, cpuid_above_maximum_on_amd_answers_zero) {
  CpuModel model = model_of({{0, 0, 0, 2, kAuth, 0, 0}, {2, 0, 0, 0x22, 0, 0, 0}});
  EXPECT_EQ(model.cpuid(0x99, 0, {}).eax, 0u);
}

TEST(CpuModel, cpuid_topology_past_last_level_gives_level_and_x2apic_id) {
  CpuModel model =
      model_of({{0, 0, 0, 0xb, kGenu, 0, 0}, {0xb, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 1, 2, 0x100, 42}});
  CpuidResult result = model.cpuid(0xb, 5, {});
  EXPECT_EQ(result.ecx, 5u);
  EXPECT_EQ(result.edx, 42u);
}

TEST(CpuModel, cpuid_osxsave_and_ospke_follow_cr4) {
  CpuModel model = supported_model();
  CpuState state;
  EXPECT_FALSE(has_bit(model.cpuid(1, 0, state).ecx, 27));
  EXPECT_FALSE(has_bit(model.cpuid(7, 0, state).ecx, 4));
  state.cr4 |= kCr4Osxsave | kCr4Pke;
  EXPECT_TRUE(has_bit(model.cpuid(1, 0, state).ecx, 27));
  EXPECT_TRUE(has_bit(model.cpuid(7, 0, state).ecx, 4));
}

TEST(CpuModel, cpuid_leaf_0d_size_follows_xcr0) {
  CpuModel model = supported_model();
  CpuState state;
  state.xcr0 = kXcr0X87 | kXcr0Sse;
  EXPECT_EQ(model.cpuid(0xd, 0, state).ebx, 576u);
  state.xcr0 |= kXcr0Avx;
  EXPECT_EQ(model.cpuid(0xd, 0, state).ebx, 832u);
}

TEST(CpuModel, recompute_physical_address_bits_come_from_leaf_80000008) {
  CpuModel model = model_of({{0x80000008, 0, 0, 0x3027, 0, 0, 0}});
  EXPECT_EQ(model.physical_address_bits(), 39u);
}

TEST(CpuModel, recompute_cr4_and_efer_follow_features) {
  EXPECT_FALSE(model_of({{1, 0, 0, 0, 0, 0, 0}}).cr4_supported() & kCr4Smep);
  EXPECT_TRUE(supported_model().cr4_supported() & kCr4Smep);
  EXPECT_FALSE(supported_model().cr4_supported() & kCr4Vmxe);
  EXPECT_EQ(supported_model().efer_supported(), kEferSce | kEferLme | kEferLma | kEferNx | kEferSvme);
}

class FeatureRows : public testing::TestWithParam<FeatureRow> {};
INSTANTIATE_TEST_SUITE_P(Table, FeatureRows, testing::ValuesIn(kFeatureRows));

// KVM's own features count behind its signature only.
constexpr CpuidEntry kKvmSignature{0x40000000, 0, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d};

// A model whose CPUID shows this bit and no other has this feature.
TEST_P(FeatureRows, has_reads_the_bit_of_the_row) {
  const FeatureRow& row = GetParam();
  CpuidEntry entry{row.leaf, row.subleaf, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 0, 0, 0, 0};
  EXPECT_FALSE(model_of({kKvmSignature, entry}).has(row.feature));
  cpuid_register(entry, row.reg) = 1u << row.bitnr;
  EXPECT_TRUE(model_of({kKvmSignature, entry}).has(row.feature));
}

TEST(CpuModel, kvm_features_stand_behind_the_signature_wherever_it_is) {
  CpuidEntry hyperv{0x40000001, 0, 0, ~0u, 0, 0, 0}, features{0x40000101, 0, 0, 1u << 5, 0, 0, 0};
  CpuidEntry signature = kKvmSignature;
  EXPECT_FALSE(model_of({hyperv}).has(Feature::kKvmStealTime));
  signature.function = 0x40000100;
  const CpuModel moved = model_of({hyperv, signature, features});
  EXPECT_TRUE(moved.has(Feature::kKvmStealTime));
  EXPECT_FALSE(moved.has(Feature::kKvmPvUnhalt));
}

class AlwaysOffered : public testing::TestWithParam<Feature> {};
INSTANTIATE_TEST_SUITE_P(Emulated, AlwaysOffered,
                         testing::Values(Feature::kPcid, Feature::kInvpcid, Feature::kSmep, Feature::kSmap,
                                         Feature::kUmip, Feature::kFsgsbase, Feature::kLa57, Feature::kNx,
                                         Feature::kPage1g, Feature::kRdtscp, Feature::kSyscall, Feature::kLm,
                                         Feature::kX2apic, Feature::kHypervisor, Feature::kArat,
                                         Feature::kKvmClocksource, Feature::kKvmClocksource2,
                                         Feature::kKvmNopIoDelay, Feature::kKvmClocksourceStable));
TEST_P(AlwaysOffered, supported_cpuid_has_it) { EXPECT_TRUE(supported_model().has(GetParam())); }

class NeverOffered : public testing::TestWithParam<Feature> {};
INSTANTIATE_TEST_SUITE_P(Missing, NeverOffered,
                         testing::Values(Feature::kVmx, Feature::kHle, Feature::kRtm, Feature::kMpx,
                                         Feature::kAmxTile, Feature::kCetShadowStack, Feature::kCetIbt,
                                         Feature::kWaitpkg, Feature::kEnqcmd, Feature::kUintr, Feature::kLam,
                                         Feature::kMonitor, Feature::kSpecCtrl, Feature::kAmdIbpb,
                                         Feature::kTscDeadline));
TEST_P(NeverOffered, supported_cpuid_lacks_it) { EXPECT_FALSE(supported_model().has(GetParam())); }

TEST(SupportedCpuid, signature_leaf_is_kvms) {
  CpuidResult result = supported_model().cpuid(0x40000000, 0, {});
  EXPECT_EQ(result.eax, 0x40000001u);
  EXPECT_EQ(result.ebx, 0x4b4d564bu);
  EXPECT_EQ(result.ecx, 0x564b4d56u);
  EXPECT_EQ(result.edx, 0x4du);
}

TEST(SupportedCpuid, performance_counters_are_absent) {
  EXPECT_EQ(supported_model().cpuid(0xa, 0, {}).eax, 0u);
}

TEST(SupportedCpuid, maximum_leaves_cover_what_is_offered) {
  EXPECT_GE(supported_model().cpuid(0, 0, {}).eax, 7u);
  EXPECT_GE(supported_model().cpuid(0x80000000, 0, {}).eax, 0x80000008u);
}

TEST(SupportedCpuid, xsave_components_are_all_of_xcr0) {
  CpuModel model = supported_model();
  EXPECT_EQ(model.xcr0_supported(), guest_xcr0_offered());
  EXPECT_EQ(model.cpuid(0xd, 0, {}).ecx, xsave_standard_size(guest_xcr0_offered()));
  EXPECT_EQ(model.cpuid(0xd, 9, {}).eax, guest_xcr0_offered() & kXcr0Pkru ? 8u : 0u);
}

}  // namespace
}  // namespace anykvm::x86
