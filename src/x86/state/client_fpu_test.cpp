#include "x86/state/client_fpu.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "x86/state/xsave.h"

namespace anykvm::x86 {
namespace {

CpuState fresh_state() {
  CpuState state;
  reset_xsave(state, false);
  return state;
}

std::vector<u8> client_image(const CpuState& state) {
  std::vector<u8> image(sizeof(kvm_xsave));
  get_client_xsave(state, image.data(), static_cast<u32>(image.size()));
  return image;
}

bool set_image(CpuState& state, const std::vector<u8>& image) {
  return set_client_xsave(state, image.data(), static_cast<u32>(image.size()));
}

TEST(ClientFpu, kvm_fpu_is_a_round_trip) {
  CpuState state = fresh_state();
  kvm_fpu fpu{};
  fpu.fcw = 0x27f, fpu.fsw = 0x3800, fpu.ftwx = 0x81, fpu.mxcsr = 0x1fa0;
  fpu.fpr[3][7] = 9;
  fpu.xmm[15][15] = 8;
  set_client_fpu(state, fpu);
  kvm_fpu out = get_client_fpu(state);
  EXPECT_EQ(std::memcmp(&out, &fpu, sizeof fpu), 0);
}

TEST(ClientFpu, set_client_fpu_drops_reserved_bits_of_mxcsr) {
  CpuState state = fresh_state();
  kvm_fpu fpu{};
  fpu.mxcsr = 0x80001f80;
  set_client_fpu(state, fpu);
  EXPECT_EQ(get_client_fpu(state).mxcsr, 0x1f80u);
}

TEST(ClientFpu, xsave_image_is_a_round_trip) {
  CpuState state = fresh_state();
  state.pkru = 0x1234;
  kvm_fpu fpu{};
  fpu.mxcsr = 0x1f80, fpu.fcw = 0x37f, fpu.xmm[3][1] = 77;
  set_client_fpu(state, fpu);
  CpuState copy = fresh_state();
  ASSERT_TRUE(set_image(copy, client_image(state)));
  EXPECT_EQ(copy.pkru, 0x1234u);
  EXPECT_EQ(client_image(copy), client_image(state));
}

TEST(ClientFpu, set_client_xsave_unknown_component_is_refused) {
  CpuState state = fresh_state();
  std::vector<u8> image = client_image(state);
  image[512 + 2] |= 0x06;  // AMX tiles
  EXPECT_FALSE(set_image(state, image));
}

TEST(ClientFpu, set_client_xsave_compacted_image_is_refused) {
  CpuState state = fresh_state();
  std::vector<u8> image = client_image(state);
  image[520 + 7] = 0x80;
  EXPECT_FALSE(set_image(state, image));
}

TEST(ClientFpu, set_client_xsave_without_pkru_keeps_it) {
  CpuState state = fresh_state();
  std::vector<u8> image = client_image(state);
  state.pkru = 3;
  image[513] &= static_cast<u8>(~0x02);
  ASSERT_TRUE(set_image(state, image));
  EXPECT_EQ(state.pkru, 3u);
}

TEST(ClientFpu, set_client_xsave_without_sse_has_initial_mxcsr) {
  CpuState state = fresh_state();
  std::vector<u8> image = client_image(state);
  image[512] = 0x1;
  image[24] = 0xff;
  ASSERT_TRUE(set_image(state, image));
  EXPECT_EQ(get_client_fpu(state).mxcsr, 0x1f80u);
}

}  // namespace
}  // namespace anykvm::x86
