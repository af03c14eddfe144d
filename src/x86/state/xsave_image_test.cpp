#include "x86/state/xsave_image.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

namespace anykvm::x86 {
namespace {

constexpr u32 kAreaBytes = kXsaveAreaSize;
struct alignas(64) Area {
  std::array<u8, kAreaBytes> bytes{};
};

// Where two images differ first, for the message of a failing test.
std::string first_difference(const Area& ours, const Area& expected) {
  for (u32 i = 0; i < kAreaBytes; ++i) {
    if (ours.bytes[i] == expected.bytes[i]) continue;
    return "byte " + std::to_string(i) + ": " + std::to_string(ours.bytes[i]) + " instead of " +
           std::to_string(expected.bytes[i]);
  }
  return "";
}

// One XSAVE instruction executed by the host with the state of `loaded` (all components) in its registers;
// the test's own state comes back afterwards.
#define ANYKVM_HOST_SAVE(name, instruction)                                                         \
  void name(const Area& loaded, u64 mask, Area* out) {                                              \
    Area own{};                                                                                     \
    auto all = static_cast<u32>(host_xcr0_usable()), eax = all;                                     \
    asm volatile("xsave64 %[own]\n\txrstor64 %[loaded]\n\tmov %[mask], %%eax\n\t" instruction       \
                 " %[out]\n\tmov %[all], %%eax\n\txrstor64 %[own]"                                  \
                 : [own] "+m"(own), [out] "+m"(*out), "+&a"(eax)                                    \
                 : [loaded] "m"(loaded), [mask] "r"(static_cast<u32>(mask)), [all] "r"(all), "d"(0) \
                 : "memory");                                                                       \
  }
ANYKVM_HOST_SAVE(host_xsave, "xsave64")
ANYKVM_HOST_SAVE(host_xsavec, "xsavec64")
ANYKVM_HOST_SAVE(host_fxsave, "fxsave64")
#undef ANYKVM_HOST_SAVE

// XRSTOR of `image` over the state `before`; all components afterwards.
void host_xrstor(const Area& before, const Area& image, u64 mask, Area* after) {
  Area own{};
  auto all = static_cast<u32>(host_xcr0_usable()), eax = all;
  asm volatile(
      "xsave64 %[own]\n\txrstor64 %[before]\n\tmov %[mask], %%eax\n\txrstor64 %[image]\n\tmov %[all], "
      "%%eax\n\t"
      "xsave64 %[after]\n\txrstor64 %[own]"
      : [own] "+m"(own), [after] "+m"(*after), "+&a"(eax)
      : [before] "m"(before), [image] "m"(image), [mask] "r"(static_cast<u32>(mask)), [all] "r"(all), "d"(0)
      : "memory");
}

// A standard image with random contents in the components `in_use`.
Area random_image(u64 in_use, unsigned seed) {
  std::mt19937 random(seed);
  Area area;
  for (u8& byte : area.bytes) byte = static_cast<u8>(random());
  std::memset(&area.bytes[0], 0, 32);
  std::memset(&area.bytes[416], 0, 160);  // software area, header
  u16 fcw = 0x27f, fsw = 0x3800;
  u8 ftw = 0x5a;
  u32 mxcsr = 0x1fa0;
  std::memcpy(&area.bytes[0], &fcw, 2);
  std::memcpy(&area.bytes[2], &fsw, 2);
  std::memcpy(&area.bytes[4], &ftw, 1);
  std::memcpy(&area.bytes[24], &mxcsr, 4);
  for (unsigned i = 0; i < 8; ++i) std::memset(&area.bytes[32 + 16 * i + 10], 0, 6);
  std::memcpy(&area.bytes[512], &in_use, 8);
  return area;
}

CpuState state_of(const Area& area) {
  CpuState state;
  std::memcpy(state.xsave.data(), area.bytes.data(), kAreaBytes);
  return state;
}

void carry_out(const XsaveWrites& writes, Area* out) {
  for (unsigned i = 0; i < writes.count; ++i) {
    std::memcpy(&out->bytes[writes.pieces[i].offset], writes.pieces[i].data, writes.pieces[i].size);
  }
}

Area filled(u8 value) {
  Area area;
  area.bytes.fill(value);
  std::memset(&area.bytes[512], 0, 64);
  return area;
}

Area our_xsave(const CpuState& state, XsaveForm form, u64 mask, const Area& before) {
  Area out = before;
  u64 old_bits;
  std::memcpy(&old_bits, &out.bytes[512], 8);
  XsaveWrites writes;
  plan_xsave(state, form, mask & host_xcr0_usable(), old_bits, true, &writes);
  carry_out(writes, &out);
  return out;
}

Area everything(const CpuState& state) { return our_xsave(state, XsaveForm::kStandard, ~u64{0}, Area{}); }

// {components in use, components asked for}
struct Masks {
  u64 in_use, requested;
};
class XsaveOracle : public testing::TestWithParam<Masks> {
 protected:
  u64 in_use() const { return GetParam().in_use & host_xcr0_usable(); }
  u64 requested() const { return GetParam().requested & host_xcr0_usable(); }
};
INSTANTIATE_TEST_SUITE_P(Components, XsaveOracle,
                         testing::Values(Masks{0xff, 0xff}, Masks{0xff, 0x1}, Masks{0xff, 0x2},
                                         Masks{0xff, 0x4}, Masks{0xff, 0x6}, Masks{0xff, 0xe0},
                                         Masks{0xff, 0xc1}, Masks{0x3, 0xff}, Masks{0x7, 0xff},
                                         Masks{0x7, 0xe7}, Masks{0xe3, 0xff}, Masks{0xff, 0}));

TEST_P(XsaveOracle, xsave_writes_what_the_host_writes) {
  Area image = random_image(in_use(), 1);
  Area expected = filled(0xcc);
  host_xsave(image, requested(), &expected);
  EXPECT_EQ(
      first_difference(our_xsave(state_of(image), XsaveForm::kStandard, requested(), filled(0xcc)), expected),
      "");
}

TEST_P(XsaveOracle, xsavec_writes_what_the_host_writes) {
  Area image = random_image(in_use(), 2);
  Area expected = filled(0xcc);
  host_xsavec(image, requested(), &expected);
  EXPECT_EQ(first_difference(our_xsave(state_of(image), XsaveForm::kCompacted, requested(), filled(0xcc)),
                             expected),
            "");
}

TEST_P(XsaveOracle, xrstor_of_a_standard_image_loads_what_the_host_loads) {
  Area before = random_image(host_xcr0_usable(), 3), image = random_image(in_use(), 4);
  Area expected;
  host_xrstor(before, image, requested(), &expected);
  CpuState state = state_of(before);
  apply_xrstor(state, image.bytes.data(), requested(), true);
  EXPECT_EQ(first_difference(everything(state), expected), "");
}

TEST_P(XsaveOracle, xrstor_of_a_compacted_image_loads_what_the_host_loads) {
  Area before = random_image(host_xcr0_usable(), 5);
  Area image = filled(0);
  host_xsavec(random_image(in_use(), 6), host_xcr0_usable(), &image);
  Area expected;
  host_xrstor(before, image, requested(), &expected);
  CpuState state = state_of(before);
  apply_xrstor(state, image.bytes.data(), requested(), true);
  EXPECT_EQ(first_difference(everything(state), expected), "");
}

TEST(XsaveImage, fxsave_writes_what_the_host_writes) {
  Area image = random_image(0x3, 7);
  Area expected = filled(0xcc);
  host_fxsave(image, 0, &expected);
  Area ours = filled(0xcc);
  XsaveWrites writes;
  CpuState state = state_of(image);  // `writes` points into it
  plan_fxsave(state, true, true, &writes);
  carry_out(writes, &ours);
  EXPECT_EQ(first_difference(ours, expected), "");
}

TEST(XsaveImage, fxrstor_after_fxsave_is_a_round_trip) {
  CpuState before = state_of(random_image(0x3, 8));
  Area image;
  XsaveWrites writes;
  plan_fxsave(before, true, true, &writes);
  carry_out(writes, &image);
  CpuState after = state_of(random_image(0x3, 9));
  apply_fxrstor(after, image.bytes.data(), true, true);
  EXPECT_EQ(first_difference(everything(after), everything(before)), "");
}

TEST(XsaveImage, xsaveopt_leaves_initial_components_alone) {
  CpuState state = state_of(random_image(0x1, 10));
  Area out = our_xsave(state, XsaveForm::kOptimized, 0x7, filled(0xcc));
  EXPECT_EQ(out.bytes[160], 0xcc);
  EXPECT_EQ(out.bytes[512], 0x1);
}

TEST(XsaveImage, xsave_pointers_of_the_host_stay_hidden) {
  CpuState state = state_of(random_image(0x1, 11));
  std::memset(&state.xsave[6], 0xee, 18);
  Area out = our_xsave(state, XsaveForm::kStandard, 0x1, filled(0xcc));
  EXPECT_EQ(out.bytes[6], 0);
  EXPECT_EQ(out.bytes[8], 0);
  EXPECT_EQ(out.bytes[23], 0);
}

TEST(XsaveImage, xsave_pkru_comes_from_the_state) {
  CpuState state;
  reset_xsave(state, false);
  state.pkru = 0x55555554;
  XsaveWrites writes;
  plan_xsave(state, XsaveForm::kStandard, kXcr0Pkru, 0, true, &writes);
  Area out = filled(0xcc);
  carry_out(writes, &out);
  u32 offset = xsave_component(9).offset;
  EXPECT_EQ(out.bytes[offset], 0x54);
  EXPECT_EQ(out.bytes[offset + 7], 0);
  EXPECT_EQ(out.bytes[513], 0x2);
}

TEST(XsaveImage, xrstor_without_pkru_in_the_image_clears_it) {
  CpuState state;
  state.pkru = 5;
  apply_xrstor(state, Area{}.bytes.data(), kXcr0Pkru, true);
  EXPECT_EQ(state.pkru, 0u);
}

TEST(XsaveImage, xsave_outside_64_bit_mode_covers_eight_registers) {
  CpuState state = state_of(random_image(0x7, 12));
  XsaveWrites writes;
  plan_xsave(state, XsaveForm::kStandard, 0x7, 0, false, &writes);
  Area out = filled(0xcc);
  carry_out(writes, &out);
  EXPECT_EQ(out.bytes[287], state.xsave[287]);
  EXPECT_EQ(out.bytes[288], 0xcc);
  EXPECT_EQ(out.bytes[415], 0xcc);
}

TEST(XsaveImage, xrstor_outside_64_bit_mode_keeps_the_upper_registers) {
  CpuState state = state_of(random_image(0x7, 13));
  u8 upper = state.xsave[288 + 5];
  apply_xrstor(state, Area{}.bytes.data(), 0x7, false);
  Area after = everything(state);
  EXPECT_EQ(after.bytes[160], 0);
  EXPECT_EQ(after.bytes[288 + 5], upper);
}

struct HeaderCase {
  const char* name;
  XsaveHeader header;
  u32 mxcsr;
  bool compacted_allowed, valid;
};
class XrstorHeader : public testing::TestWithParam<HeaderCase> {};
INSTANTIATE_TEST_SUITE_P(
    Checks, XrstorHeader,
    testing::Values(
        HeaderCase{"plain", {0x7, 0, {}}, 0x1f80, true, true},
        HeaderCase{"component_not_in_xcr0", {0x10, 0, {}}, 0x1f80, true, false},
        HeaderCase{"xcomp_without_compaction", {0x7, 0x7, {}}, 0x1f80, true, false},
        HeaderCase{"tail", {0x7, 0, {0, 0, 0, 0, 0, 1}}, 0x1f80, true, true},
        HeaderCase{"reserved", {0x7, 0, {1}}, 0x1f80, true, false},
        HeaderCase{"compacted_tail", {0x7, kXcompCompacted | 7, {0, 0, 0, 0, 0, 1}}, 0x1f80, true, false},
        HeaderCase{"mxcsr_reserved", {0x7, 0, {}}, 0x80001f80, true, false},
        HeaderCase{"mxcsr_checked_although_initial", {0x1, 0, {}}, 0x80001f80, true, false},
        HeaderCase{"compacted", {0x3, kXcompCompacted | 0x7, {}}, 0x1f80, true, true},
        HeaderCase{"compacted_unknown_to_cpuid", {0x3, kXcompCompacted | 0x7, {}}, 0x1f80, false, false},
        HeaderCase{"compacted_beyond_layout", {0x7, kXcompCompacted | 0x3, {}}, 0x1f80, true, false},
        HeaderCase{"compacted_layout_not_in_xcr0", {0x1, kXcompCompacted | 0x11, {}}, 0x1f80, true, false},
        HeaderCase{"compacted_mxcsr_not_loaded", {0x1, kXcompCompacted | 0x7, {}}, 0x80001f80, true, true}),
    [](const auto& info) { return info.param.name; });
TEST_P(XrstorHeader, is_judged_by_the_manual) {
  const HeaderCase& c = GetParam();
  EXPECT_EQ(valid_xrstor(c.header, c.mxcsr, 0x7, 0x7, c.compacted_allowed), c.valid);
}

TEST(Xsave, sizes_match_the_hosts_cpuid) {
  u32 eax = 0xd, ebx, ecx = 0, edx;
  asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  EXPECT_EQ(xsave_standard_size(host_xcr0_usable()), ebx);
}

}  // namespace
}  // namespace anykvm::x86
