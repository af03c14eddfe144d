#include <gtest/gtest.h>

#include <cstring>

#include "x86/ops/ops.h"
#include "x86/state/xsave_image.h"
#include "x86/translate/decode.h"
#include "x86/translate/guest_fixture.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kHole = Guest64::kRam;  // the first address without a page

class GatherScatter : public testing::Test {
 protected:
  GatherScatter() {
    guest.write<u64>(Guest64::kTables + 0x2000 + 8 * (kHole >> 21), 0);
    guest.cpu->state_replaced();
  }

  Guest<void> run(std::vector<u8> bytes) {
    Decoded d;
    EXPECT_EQ(decode(bytes.data(), static_cast<unsigned>(bytes.size()), 64, 8, Guest64::kCode, &d),
              DecodeStatus::kOk);
    return op_gather_scatter(*guest.cpu, d.insn);
  }

  template <class T>
  void set_part(unsigned component, unsigned at, std::vector<T> values) {
    std::memcpy(xsave_component_for_change(guest.state(), component) + at, values.data(),
                values.size() * sizeof(T));
  }
  template <class T>
  T part(unsigned component, unsigned at) {
    T value;
    std::memcpy(&value, xsave_component_bytes(guest.state(), component) + at, sizeof value);
    return value;
  }
  void xmm(unsigned number, std::vector<u32> values) { set_part(1, number * 16, values); }
  u32 xmm_element(unsigned number, unsigned i) { return part<u32>(1, number * 16 + 4 * i); }

  Guest64 guest;
};

constexpr u32 kOn = 0x80000000;

TEST_F(GatherScatter, vex_gather_loads_active_elements_and_clears_mask_and_upper_half) {
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.write<u32>(Guest64::kData + 8, 0x11111111);
  guest.write<u32>(Guest64::kData - 4, 0x22222222);
  xmm(1, {0xa, 0xb, 0xc, 0xd});
  xmm(2, {2, 7, ~u32{0}, 9});
  xmm(3, {kOn, 0x7fffffff, kOn, 0});
  set_part<u32>(2, 16, {5, 5, 5, 5});
  ASSERT_TRUE(run({0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x93}).ok());  // vpgatherdd xmm1, [rbx+xmm2*4], xmm3
  EXPECT_EQ(xmm_element(1, 0), 0x11111111u);
  EXPECT_EQ(xmm_element(1, 1), 0xbu);
  EXPECT_EQ(xmm_element(1, 2), 0x22222222u);
  EXPECT_EQ(xmm_element(1, 3), 0xdu);
  EXPECT_EQ(part<u32>(2, 16), 0u);
  EXPECT_EQ(xmm_element(3, 0), 0u);
  EXPECT_EQ(xmm_element(3, 1), 0u);
}

TEST_F(GatherScatter, vex_gather_that_faults_keeps_what_is_done_and_the_mask_of_the_rest) {
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.write<u32>(Guest64::kData, 0x33333333);
  xmm(1, {0xa, 0xb, 0xc, 0xd});
  xmm(2, {0, (kHole - Guest64::kData) / 4, 0, 0});
  xmm(3, {kOn, kOn, kOn, 0});
  auto result = run({0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x93});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().fault.vector, kVectorPf);
  EXPECT_EQ(result.error().fault.payload, kHole);
  EXPECT_EQ(xmm_element(1, 0), 0x33333333u);
  EXPECT_EQ(xmm_element(1, 1), 0xbu);
  EXPECT_EQ(xmm_element(3, 0), 0u);
  EXPECT_EQ(xmm_element(3, 1), kOn);
  EXPECT_EQ(xmm_element(3, 2), kOn);
  EXPECT_EQ(xmm_element(3, 3), 0u);
}

TEST_F(GatherScatter, vex_gather_with_qword_indices_writes_half_a_register) {
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.write<u32>(Guest64::kData, 0x44444444);
  guest.write<u32>(Guest64::kData + 1, 0x55555555);
  xmm(1, {0xa, 0xb, 0xc, 0xd});
  xmm(2, {0, 0, 1, 0});
  xmm(3, {kOn, kOn, kOn, kOn});
  ASSERT_TRUE(run({0xc4, 0xe2, 0x61, 0x91, 0x0c, 0x13}).ok());  // vpgatherqd xmm1, [rbx+xmm2], xmm3
  EXPECT_EQ(xmm_element(1, 0), 0x55555544u);
  EXPECT_EQ(xmm_element(1, 1), 0x55555555u);
  EXPECT_EQ(xmm_element(1, 2), 0u);
  EXPECT_EQ(xmm_element(3, 3), 0u);
}

TEST_F(GatherScatter, equal_registers_are_undefined) {
  Decoded d;
  std::vector<u8> same_data_and_index{0xc4, 0xe2, 0x61, 0x90, 0x14, 0x93};
  EXPECT_EQ(decode(same_data_and_index.data(), 6, 64, 8, 0, &d), DecodeStatus::kInvalid);
  std::memcpy(d.insn.bytes, same_data_and_index.data(), 6);
  d.insn.length = 6;
  auto result = op_gather_scatter(*guest.cpu, d.insn);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().fault.vector, kVectorUd);
}

class WideGatherScatter : public GatherScatter {
 protected:
  void SetUp() override {
    if (!xsave_component(5).size) GTEST_SKIP() << "no AVX-512 here";
  }
};

TEST_F(WideGatherScatter, evex_scatter_stores_low_elements_first_and_clears_the_opmask) {
  guest.state().gpr[kRbx] = Guest64::kData;
  xmm(1, {1, 2, 3, 4});
  xmm(2, {0, 0, 8, 16});
  set_part<u64>(5, 8, {0xf7});
  ASSERT_TRUE(
      run({0x62, 0xf2, 0x7d, 0x09, 0xa0, 0x4c, 0x13, 0x01}).ok());  // vpscatterdd [rbx+xmm2+4]{k1}, xmm1
  EXPECT_EQ(guest.read<u32>(Guest64::kData + 4), 2u);
  EXPECT_EQ(guest.read<u32>(Guest64::kData + 12), 3u);
  EXPECT_EQ(guest.read<u32>(Guest64::kData + 20), 0u);
  EXPECT_EQ(part<u64>(5, 8), 0u);
}

TEST_F(WideGatherScatter, evex_scatter_that_faults_has_stored_the_elements_before) {
  guest.state().gpr[kRbx] = Guest64::kData;
  xmm(1, {1, 2, 3, 4});
  xmm(2, {0, kHole - Guest64::kData, 8, 12});
  set_part<u64>(5, 8, {0xf});
  auto result = run({0x62, 0xf2, 0x7d, 0x09, 0xa0, 0x0c, 0x13});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().fault.error, kPfWrite);
  EXPECT_EQ(guest.read<u32>(Guest64::kData), 1u);
  EXPECT_EQ(part<u64>(5, 8), 0xeu);
}

TEST_F(WideGatherScatter, evex_gather_reaches_register_31) {
  guest.state().gpr[kRbx] = Guest64::kData;
  guest.write<u64>(Guest64::kData + 64, 0x123456789abcdef0);
  set_part<u64>(7, 15 * 64, {1, 2, 3, 4, 5, 6, 7, 8});
  set_part<u32>(1, 2 * 16, {0, 0, 0, 8});
  set_part<u64>(5, 16, {0x8});
  // vpgatherdq ymm31{k2}, [rbx+xmm2*8]
  ASSERT_TRUE(run({0x62, 0x62, 0xfd, 0x2a, 0x90, 0x3c, 0xd3}).ok());
  EXPECT_EQ(part<u64>(7, 15 * 64), 1u);
  EXPECT_EQ(part<u64>(7, 15 * 64 + 24), 0x123456789abcdef0u);
  EXPECT_EQ(part<u64>(7, 15 * 64 + 32), 0u);
  EXPECT_EQ(part<u64>(5, 16), 0u);
}

}  // namespace
}  // namespace anykvm::x86
