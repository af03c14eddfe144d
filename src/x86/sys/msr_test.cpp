#include "x86/sys/msr.h"

#include <gmock/gmock.h>
#include <linux/kvm.h>

#include <ctime>
#include <optional>
#include <set>
#include <string>

#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

using testing::Contains;
using testing::Eq;
using testing::Not;
using testing::Optional;

// The rows of msrs.def, as data for parameterised tests.
struct Row {
  const char* name;
  u32 index;
  std::optional<Feature> feature;
  u64 value;     // reset value, or the constant
  u64 reserved;  // STORED rows
};

namespace rows {
using enum Feature;
constexpr std::optional<Feature> kNone = std::nullopt;

#define ANYKVM_MSR_STORED(index, name, feature, reset, reserved, lists) \
  {#name, index, feature, reset, reserved},
#define ANYKVM_MSR_CANONICAL(index, name, feature, lists)
#define ANYKVM_MSR_CONSTANT(index, name, feature, value, lists)
#define ANYKVM_MSR_FUNCTIONS(first, last, name, feature, lists)
constexpr Row kStored[] = {
#include "x86/tables/msrs.def"
};
#undef ANYKVM_MSR_STORED
#undef ANYKVM_MSR_CANONICAL
#define ANYKVM_MSR_STORED(index, name, feature, reset, reserved, lists)
#define ANYKVM_MSR_CANONICAL(index, name, feature, lists) {#name, index, feature, 0, 0},
constexpr Row kCanonical[] = {
#include "x86/tables/msrs.def"
};
#undef ANYKVM_MSR_CANONICAL
#undef ANYKVM_MSR_CONSTANT
#define ANYKVM_MSR_CANONICAL(index, name, feature, lists)
#define ANYKVM_MSR_CONSTANT(index, name, feature, value, lists) {#name, index, feature, value, 0},
constexpr Row kConstant[] = {
#include "x86/tables/msrs.def"
};
#undef ANYKVM_MSR_CONSTANT
#undef ANYKVM_MSR_FUNCTIONS
#define ANYKVM_MSR_CONSTANT(index, name, feature, value, lists)
#define ANYKVM_MSR_FUNCTIONS(first, last, name, feature, lists) \
  {#name, first, feature, 0, 0}, {#name, last, feature, 0, 0},
constexpr Row kFunctions[] = {
#include "x86/tables/msrs.def"
};
#undef ANYKVM_MSR_STORED
#undef ANYKVM_MSR_CANONICAL
#undef ANYKVM_MSR_CONSTANT
#undef ANYKVM_MSR_FUNCTIONS
}  // namespace rows

// One CPU with every offered feature for all tests of this file; each test works on fresh MSRs.
class Msrs : public testing::Test {
 protected:
  static void SetUpTestSuite() { s_guest = new Guest64; }
  static void TearDownTestSuite() {
    delete s_guest;
    s_guest = nullptr;
  }
  void SetUp() override {
    cpu().model().set_entries(supported_cpuid());
    cpu().state().msrs = {};
    cpu().state().msrs.mcg_cap = 0x520;  // all banks, MCG_CTL, CMCI
    cpu().state().tsc_offset = 0;
  }

  static Cpu& cpu() { return *s_guest->cpu; }
  static std::optional<u64> read(u32 index, MsrAccess access = MsrAccess::kGuest) {
    return read_msr(cpu(), index, access);
  }
  static bool write(u32 index, u64 value, MsrAccess access = MsrAccess::kGuest) {
    return write_msr(cpu(), index, value, access);
  }
  static bool client_writes(u32 index, u64 value) { return write(index, value, MsrAccess::kClient); }

  inline static Guest64* s_guest = nullptr;
};

class MsrRow : public Msrs, public testing::WithParamInterface<Row> {};
std::string row_name(const testing::TestParamInfo<Row>& info) {
  return std::string(info.param.name) + "_" + std::to_string(info.param.index);
}

using StoredMsr = MsrRow;
INSTANTIATE_TEST_SUITE_P(Table, StoredMsr, testing::ValuesIn(rows::kStored), row_name);

TEST_P(StoredMsr, starts_with_its_reset_value) {
  EXPECT_THAT(read(GetParam().index, MsrAccess::kClient), Optional(Eq(GetParam().value)));
}

TEST_P(StoredMsr, every_bit_that_is_not_reserved_is_kept) {
  u64 all = ~GetParam().reserved;
  ASSERT_TRUE(client_writes(GetParam().index, all));
  EXPECT_THAT(read(GetParam().index, MsrAccess::kClient), Optional(Eq(all)));
  ASSERT_TRUE(client_writes(GetParam().index, 0));
  EXPECT_THAT(read(GetParam().index, MsrAccess::kClient), Optional(Eq(0u)));
}

TEST_P(StoredMsr, reserved_bits_are_refused) {
  u64 before = *read(GetParam().index, MsrAccess::kClient);
  for (u64 left = GetParam().reserved; left; left &= left - 1) {
    EXPECT_FALSE(write(GetParam().index, left & -left)) << std::hex << (left & -left);
  }
  EXPECT_THAT(read(GetParam().index, MsrAccess::kClient), Optional(Eq(before)));
}

TEST_P(StoredMsr, without_its_feature_the_guest_does_not_see_it) {
  cpu().model().set_entries({{0, 0, 0, 1, 0, 0, 0}});
  EXPECT_EQ(read(GetParam().index).has_value(), !GetParam().feature.has_value());
  EXPECT_TRUE(read(GetParam().index, MsrAccess::kClient).has_value());
}

using CanonicalMsr = MsrRow;
INSTANTIATE_TEST_SUITE_P(Table, CanonicalMsr, testing::ValuesIn(rows::kCanonical), row_name);

TEST_P(CanonicalMsr, canonical_addresses_are_kept) {
  ASSERT_TRUE(write(GetParam().index, 0xff00123456789abc));
  EXPECT_THAT(read(GetParam().index), Optional(Eq(0xff00123456789abcu)));
}

TEST_P(CanonicalMsr, other_addresses_are_refused) {
  EXPECT_FALSE(write(GetParam().index, 0x0100000000000000));
  EXPECT_THAT(read(GetParam().index), Optional(Eq(0u)));
}

TEST_P(CanonicalMsr, without_la57_48_bits_count) {
  cpu().model().set_entries({{0, 0, 0, 1, 0, 0, 0}});
  EXPECT_FALSE(write(GetParam().index, 0xff00123456789abc));
  EXPECT_TRUE(write(GetParam().index, 0xffff923456789abc));
}

using ConstantMsr = MsrRow;
INSTANTIATE_TEST_SUITE_P(Table, ConstantMsr, testing::ValuesIn(rows::kConstant), row_name);

TEST_P(ConstantMsr, reads_as_its_value) {
  EXPECT_THAT(read(GetParam().index, MsrAccess::kClient), Optional(Eq(GetParam().value)));
}

TEST_P(ConstantMsr, guest_cannot_write_it) { EXPECT_FALSE(write(GetParam().index, GetParam().value)); }

TEST_P(ConstantMsr, client_can_write_back_only_the_same) {
  EXPECT_TRUE(client_writes(GetParam().index, GetParam().value));
  EXPECT_FALSE(client_writes(GetParam().index, ~GetParam().value));
}

// Without the APIC's and Hyper-V's, which the fixture's platform lacks, and the write-only command.
std::vector<Row> readable_functions() {
  std::vector<Row> readable;
  for (const Row& row : rows::kFunctions) {
    std::string name = row.name;
    if (name != "apic" && name != "hyperv" && name != "pred_cmd") readable.push_back(row);
  }
  return readable;
}
// A row of a single index stands in the list twice.
std::string function_name(const testing::TestParamInfo<Row>& info) {
  return row_name(info) + "_" + std::to_string(info.index % 2);
}

using FunctionMsr = MsrRow;
INSTANTIATE_TEST_SUITE_P(Table, FunctionMsr, testing::ValuesIn(readable_functions()), function_name);

TEST_P(FunctionMsr, client_can_write_back_what_it_read) {
  std::optional<u64> value = read(GetParam().index, MsrAccess::kClient);
  ASSERT_TRUE(value.has_value());
  EXPECT_TRUE(client_writes(GetParam().index, *value));
}

TEST_F(Msrs, unknown_index_is_refused) {
  EXPECT_EQ(read(0x12345678), std::nullopt);
  EXPECT_FALSE(write(0x12345678, 0));
  EXPECT_EQ(read(0x210), std::nullopt);
}

TEST_F(Msrs, tsc_guest_write_moves_tsc_adjust) {
  u64 before = *read(0x10);
  ASSERT_TRUE(write(0x10, before + 1'000'000'000'000));
  EXPECT_GE(*read(0x10), before + 1'000'000'000'000);
  EXPECT_EQ(cpu().state().msrs.tsc_adjust, cpu().state().tsc_offset);
}

TEST_F(Msrs, tsc_client_write_keeps_tsc_adjust) {
  ASSERT_TRUE(client_writes(0x10, 5));
  EXPECT_LT(*read(0x10), 5u + 10'000'000'000);
  EXPECT_THAT(read(0x3b), Optional(Eq(0u)));
}

TEST_F(Msrs, tsc_adjust_guest_write_moves_the_tsc) {
  ASSERT_TRUE(write(0x3b, 1000));
  EXPECT_EQ(cpu().state().tsc_offset, 1000u);
  ASSERT_TRUE(write(0x3b, 400));
  EXPECT_EQ(cpu().state().tsc_offset, 400u);
}

TEST_F(Msrs, tsc_adjust_client_write_leaves_the_tsc_alone) {
  ASSERT_TRUE(client_writes(0x3b, 1000));
  EXPECT_EQ(cpu().state().tsc_offset, 0u);
}

TEST_F(Msrs, pat_invalid_type_is_refused) {
  EXPECT_FALSE(write(0x277, 0x0007040600070402));
  EXPECT_FALSE(write(0x277, 0x0807040600070406));
  EXPECT_TRUE(write(0x277, 0x0407050600070106));
}

TEST_F(Msrs, mtrr_ranges_check_types_and_width) {
  EXPECT_TRUE(write(0x200, 0x80000006));
  EXPECT_FALSE(write(0x200, 0x80000002));
  EXPECT_FALSE(write(0x200, 0x80000106));
  EXPECT_TRUE(write(0x201, 0xfff80000800));
  EXPECT_FALSE(write(0x201, 0xfff80000001));
  EXPECT_FALSE(write(0x20f, bit(60)));
  EXPECT_TRUE(write(0x26f, 0x0606060606060606));
  EXPECT_FALSE(write(0x26f, 0x0606060606060603));
  EXPECT_TRUE(write(0x2ff, 0xc06));
  EXPECT_FALSE(write(0x2ff, 0x1c06));
}

TEST_F(Msrs, mtrr_fixed_ranges_are_distinct) {
  constexpr u32 kIndices[] = {0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f};
  for (u32 index : kIndices) EXPECT_THAT(read(index), Optional(Eq(0u)));
  for (u32 index : kIndices) EXPECT_TRUE(write(index, index == 0x250 ? 0x06 : 0x05));
  EXPECT_THAT(read(0x250), Optional(Eq(0x06u)));
  EXPECT_THAT(cpu().state().msrs.mtrr_fixed, Not(Contains(0)));
}

TEST_F(Msrs, tsc_aux_upper_half_faults_on_intel_only) {
  cpu().model().set_entries({{0, 0, 0, 1, 0x756e6547, 0, 0}, {0x80000001, 0, 0, 0, 0, 0, 1u << 27}});
  EXPECT_FALSE(write(0xc0000103, bit(32) | 7));
  cpu().model().set_entries({{0, 0, 0, 1, 0x68747541, 0, 0}, {0x80000001, 0, 0, 0, 0, 0, 1u << 27}});
  EXPECT_TRUE(write(0xc0000103, bit(32) | 7));
  EXPECT_THAT(read(0xc0000103), Optional(Eq(7u)));
}

TEST_F(Msrs, seed_X2_tsx_ctrl_is_there_without_transactional_memory) {
  EXPECT_THAT(feature_msr_index_list(), Contains(0x122));
  EXPECT_THAT(read_feature_msr(0x10a).value_or(0) & bit(7), Eq(bit(7)));
  cpu().model().set_entries(supported_cpuid());
  EXPECT_FALSE(cpu().model().has(Feature::kRtm));
  EXPECT_TRUE(write(0x122, 3));
  EXPECT_THAT(read(0x122), Optional(Eq(3u)));
  EXPECT_FALSE(write(0x122, 4));
}

TEST_F(Msrs, seed_X2_tsx_ctrl_is_absent_where_arch_capabilities_says_so) {
  cpu().model().set_entries(supported_cpuid());
  EXPECT_TRUE(client_writes(0x10a, 0));
  EXPECT_FALSE(read(0x122));
  EXPECT_FALSE(write(0x122, 1));
  EXPECT_TRUE(client_writes(0x122, 1));  // it comes with a migration all the same
}

TEST_F(Msrs, seed_X2_tsx_ctrl_hides_hle_and_rtm) {
  constexpr u32 kHle = 1u << 4, kRtm = 1u << 11;
  cpu().model().set_entries({{0, 0, 0, 7, 0x756e6547, 0, 0},
                             {7, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 0, kHle | kRtm | 1, 0, 1u << 29}});
  EXPECT_EQ(cpu().model().cpuid(7, 0, cpu().state()).ebx, kHle | kRtm | 1);
  EXPECT_TRUE(write(0x122, 2));
  EXPECT_EQ(cpu().model().cpuid(7, 0, cpu().state()).ebx, 1u);
}

TEST_F(Msrs, feature_control_locks) {
  EXPECT_TRUE(write(0x3a, 1));
  EXPECT_FALSE(write(0x3a, 0));
  EXPECT_TRUE(client_writes(0x3a, 0));
}

TEST_F(Msrs, mcg_status_guest_may_only_clear_it) {
  EXPECT_FALSE(write(0x17a, 1));
  EXPECT_TRUE(client_writes(0x17a, 4));
  EXPECT_TRUE(write(0x17a, 0));
}

TEST_F(Msrs, mc_control_takes_all_or_nothing) {
  EXPECT_TRUE(write(0x400, ~u64{0}));
  EXPECT_TRUE(write(0x400, ~bit(10)));
  EXPECT_FALSE(write(0x400, 5));
}

TEST_F(Msrs, mc_banks_end_where_mcg_cap_says) {
  cpu().state().msrs.mcg_cap = 0x50a;
  EXPECT_TRUE(read(0x427).has_value());
  EXPECT_FALSE(read(0x428).has_value());
}

TEST_F(Msrs, mc_status_is_writable_with_mc_status_wr_en) {
  EXPECT_FALSE(write(0x401, 1));
  ASSERT_TRUE(write(0xc0010015, bit(18) | bit(24)));
  EXPECT_TRUE(write(0x401, 1));
}

TEST_F(Msrs, counters_that_need_no_cpuid_bit_read_zero_and_drop_writes) {
  for (u32 index : {0xc1u, 0x187u, 0xc0010000u, 0xc0010007u}) {
    EXPECT_TRUE(write(index, 0x530000));
    EXPECT_THAT(read(index), Optional(Eq(0u)));
  }
  EXPECT_FALSE(write(0xc0010200, 0));  // the Core family's counters have a CPUID bit
}

TEST_F(Msrs, spec_ctrl_needs_its_feature) {
  EXPECT_FALSE(write(0x48, 1));
  EXPECT_FALSE(write(0x49, 1));
  cpu().model().set_entries({{7, 0, 1, 0, 0, 0, 1u << 26}});
  EXPECT_TRUE(write(0x48, 1));
  EXPECT_TRUE(write(0x49, 1));
  EXPECT_FALSE(write(0x48, 8));
}

TEST_F(Msrs, fs_base_lands_in_the_segment) {
  ASSERT_TRUE(write(0xc0000100, 0x1234));
  EXPECT_EQ(cpu().state().segments[kFs].base, 0x1234u);
  EXPECT_FALSE(write(0xc0000100, bit(60)));
}

TEST_F(Msrs, lists_name_readable_registers_once) {
  std::vector<u32> list = msr_index_list();
  EXPECT_THAT(list, Contains(0x10));
  EXPECT_THAT(list, Contains(0x4b564d01));
  EXPECT_THAT(list, Not(Contains(0x800)));
  EXPECT_THAT(std::set<u32>(list.begin(), list.end()), testing::SizeIs(list.size()));
}

TEST_F(Msrs, every_feature_msr_can_be_read) {
  for (u32 index : feature_msr_index_list())
    EXPECT_TRUE(read_feature_msr(index).has_value()) << std::hex << index;
  EXPECT_EQ(read_feature_msr(0x10), std::nullopt);
}

// --- kvmclock ---

struct TimeInfo {
  u32 version, pad0;
  u64 tsc_timestamp, system_time;
  u32 mul;
  i8 shift;
  u8 flags, pad[2];
};

TEST_F(Msrs, kvm_system_time_fills_the_guests_record) {
  s_guest->write<TimeInfo>(Guest64::kData, {7, 0, 0, 0, 0, 0, 2, {}});
  ASSERT_TRUE(write(0x4b564d01, Guest64::kData | 1));
  auto info = s_guest->read<TimeInfo>(Guest64::kData);
  EXPECT_EQ(info.version % 2, 0u);
  EXPECT_GT(info.version, 7u);
  EXPECT_NE(info.tsc_timestamp, 0u);
  EXPECT_EQ(info.shift, 1);  // the fixture's TSC runs at 1 GHz: one tick is 2 * 1/2 nanoseconds
  EXPECT_EQ(info.mul, 0x80000000u);
  EXPECT_EQ(info.flags, 3);  // stable, and the guest's own "stopped" bit
}

TEST_F(Msrs, kvm_system_time_disabled_writes_nothing) {
  s_guest->write<TimeInfo>(Guest64::kData, {7, 0, 0, 0, 0, 0, 0, {}});
  ASSERT_TRUE(write(0x12, Guest64::kData));
  EXPECT_EQ(s_guest->read<u32>(Guest64::kData), 7u);
}

TEST_F(Msrs, kvm_system_time_after_a_guest_tsc_write_is_not_stable) {
  ASSERT_TRUE(write(0x12, Guest64::kData | 1));
  ASSERT_TRUE(write(0x3b, 1));
  EXPECT_EQ(s_guest->read<TimeInfo>(Guest64::kData).flags & 1, 0);
}

TEST_F(Msrs, kvm_system_time_outside_ram_is_ignored) { EXPECT_TRUE(write(0x12, 0xfffff000 | 1)); }

TEST_F(Msrs, kvm_wall_clock_set_to_its_reset_value_leaves_the_vector_table_alone) {
  const u64 before = s_guest->read<u64>(0);
  ASSERT_TRUE(client_writes(0x11, 0));
  EXPECT_EQ(s_guest->read<u64>(0), before);
}

TEST_F(Msrs, kvm_wall_clock_is_the_time_at_kvmclock_zero) {
  ASSERT_TRUE(write(0x11, Guest64::kData));
  auto seconds = s_guest->read<u32>(Guest64::kData + 4);
  EXPECT_NEAR(seconds, static_cast<double>(time(nullptr)), 2);
}

}  // namespace
}  // namespace anykvm::x86
