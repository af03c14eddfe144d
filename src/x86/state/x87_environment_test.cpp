#include "x86/state/x87_environment.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "x86/state/xsave_image.h"

namespace anykvm::x86 {
namespace {

struct alignas(64) Fxsave {
  std::array<u8, 512> bytes{};
};

std::string first_difference(const u8* ours, const u8* expected, unsigned size) {
  for (unsigned i = 0; i < size; ++i) {
    if (ours[i] != expected[i]) {
      return "byte " + std::to_string(i) + ": " + std::to_string(ours[i]) + " instead of " +
             std::to_string(expected[i]);
    }
  }
  return "";
}

// The instruction under test runs on the host with the x87 state `loaded`; the state afterwards comes back in
// `after`.
#define ANYKVM_HOST_X87(name, instruction)                                     \
  void name(const Fxsave& loaded, X87Image* image, Fxsave* after) {            \
    Fxsave own{};                                                              \
    asm volatile("fxsave64 %[own]\n\tfxrstor64 %[loaded]\n\t" instruction      \
                 " %[image]\n\tfxsave64 %[after]\n\tfxrstor64 %[own]"          \
                 : [own] "+m"(own), [image] "+m"(*image), [after] "+m"(*after) \
                 : [loaded] "m"(loaded)                                        \
                 : "memory");                                                  \
  }
ANYKVM_HOST_X87(host_fnstenv, "fnstenv")
ANYKVM_HOST_X87(host_fnsave, "fnsave")
ANYKVM_HOST_X87(host_fldenv, "fldenv")
ANYKVM_HOST_X87(host_frstor, "frstor")
ANYKVM_HOST_X87(host_fnstenv16, "data16 fnstenv")
#undef ANYKVM_HOST_X87

struct X87Words {
  const char* name;
  u16 fcw, fsw;
  u8 ftw;
};

// Registers of every class: valid, zero, denormal, infinity, NaN, unnormal, negative zero, pseudo-denormal.
Fxsave x87_state(const X87Words& words) {
  struct {
    u64 mantissa;
    u16 exponent;
  } registers[8] = {{0x8000000000000000, 0x3fff}, {0, 0},      {1, 0},      {0x8000000000000000, 0x7fff},
                    {0xc000000000000000, 0x7fff}, {5, 0x4000}, {0, 0x8000}, {0x8000000000000001, 0}};
  Fxsave state;
  u32 mxcsr = 0x1f80;
  std::memcpy(&state.bytes[0], &words.fcw, 2);
  std::memcpy(&state.bytes[2], &words.fsw, 2);
  state.bytes[4] = words.ftw;
  std::memcpy(&state.bytes[24], &mxcsr, 4);
  for (unsigned i = 0; i < 8; ++i) {
    std::memcpy(&state.bytes[32 + 16 * i], &registers[i].mantissa, 8);
    std::memcpy(&state.bytes[32 + 16 * i + 8], &registers[i].exponent, 2);
  }
  return state;
}

CpuState cpu_state_of(const Fxsave& image) {
  CpuState state;
  std::memcpy(state.xsave.data(), image.bytes.data(), 512);
  state.xsave[512] = kXcr0X87 | kXcr0Sse;
  return state;
}

// FCW, FSW, FTW and the registers; pointers are not compared.
std::string x87_difference(const CpuState& ours, const Fxsave& expected) {
  const u8* x87 = xsave_component_bytes(ours, 0);
  std::string control = first_difference(x87, expected.bytes.data(), 5);
  return control.empty() ? first_difference(x87 + 32, &expected.bytes[32], 128) : control;
}

class X87Oracle : public testing::TestWithParam<X87Words> {
 protected:
  Fxsave m_loaded = x87_state(GetParam()), m_after{};
  X87Image m_expected{}, m_ours{};
  CpuState m_state = cpu_state_of(m_loaded);
};
INSTANTIATE_TEST_SUITE_P(States, X87Oracle,
                         testing::Values(X87Words{"full", 0x37f, 0x0000, 0xff},
                                         X87Words{"empty", 0x37f, 0x0000, 0},
                                         X87Words{"top5", 0x27f, 0x2800, 0x3c},
                                         X87Words{"flags", 0x37f, 0x4700, 0x81},
                                         X87Words{"masked_exception", 0x37f, 0x3821, 0x55}),
                         [](const auto& info) { return info.param.name; });

TEST_P(X87Oracle, fnstenv_writes_what_the_host_writes) {
  host_fnstenv(m_loaded, &m_expected, &m_after);
  store_x87_environment(m_state, true, &m_ours);
  mask_x87_exceptions(m_state);
  EXPECT_EQ(first_difference(m_ours.bytes.data(), m_expected.bytes.data(), 12), "");
  EXPECT_EQ(x87_difference(m_state, m_after), "");
}

TEST_P(X87Oracle, fnstenv_16_bit_form_writes_what_the_host_writes) {
  host_fnstenv16(m_loaded, &m_expected, &m_after);
  store_x87_environment(m_state, false, &m_ours);
  EXPECT_EQ(first_difference(m_ours.bytes.data(), m_expected.bytes.data(), 6), "");
}

TEST_P(X87Oracle, fnsave_writes_what_the_host_writes) {
  host_fnsave(m_loaded, &m_expected, &m_after);
  store_x87_environment(m_state, true, &m_ours);
  store_x87_stack(m_state, true, &m_ours);
  initialize_x87(m_state);
  EXPECT_EQ(first_difference(m_ours.bytes.data(), m_expected.bytes.data(), 12), "");
  EXPECT_EQ(first_difference(&m_ours.bytes[28], &m_expected.bytes[28], kX87StackBytes), "");
  EXPECT_EQ(first_difference(xsave_component_bytes(m_state, 0), m_after.bytes.data(), 5), "");
}

TEST_P(X87Oracle, fldenv_loads_what_the_host_loads) {
  X87Image image;
  u32 words[] = {0xffff027e, 0xffff1800, 0xffff3c5a};
  std::memcpy(image.bytes.data(), words, sizeof words);
  X87Image copy = image;
  host_fldenv(m_loaded, &copy, &m_after);
  load_x87_environment(m_state, true, image);
  EXPECT_EQ(x87_difference(m_state, m_after), "");
}

TEST_P(X87Oracle, frstor_loads_what_the_host_loads) {
  X87Image image;
  host_fnsave(m_loaded, &image, &m_after);
  X87Image copy = image;
  host_frstor(Fxsave{m_loaded}, &copy, &m_after);
  CpuState state = cpu_state_of(x87_state({"other", 0x37f, 0x1000, 0x0f}));
  load_x87_environment(state, true, image);
  load_x87_stack(state, true, image);
  EXPECT_EQ(x87_difference(state, m_after), "");
}

TEST(X87Environment, load_unmasked_exception_sets_summary) {
  CpuState state;
  X87Image image;
  u32 words[] = {0x37e, 0x0001, 0xffff};
  std::memcpy(image.bytes.data(), words, sizeof words);
  load_x87_environment(state, true, image);
  EXPECT_TRUE(x87_exception_pending(state));
  store_x87_environment(state, true, &image);
  EXPECT_EQ(image.bytes[4], 0x81);
  EXPECT_EQ(image.bytes[5], 0x80);
}

TEST(X87Environment, pointers_are_given_out_as_zero) {
  CpuState state = cpu_state_of(x87_state({"", 0x37f, 0, 0xff}));
  std::memset(&state.xsave[6], 0xee, 18);
  X87Image image;
  image.bytes.fill(0xcc);
  store_x87_environment(state, true, &image);
  EXPECT_EQ(first_difference(&image.bytes[12], std::array<u8, 14>{}.data(), 14), "");
}

TEST(X87Environment, mmx_registers_are_physical) {
  CpuState state = cpu_state_of(x87_state({"", 0x37f, 0x2800, 0xff}));  // TOP = 5: ST(0) is R5
  EXPECT_EQ(mmx_registers(state)[5], 0x8000000000000000u);
  EXPECT_EQ(mmx_registers(state)[7], 1u);
}

TEST(X87Environment, enter_mmx_keeps_the_registers_and_clears_top) {
  CpuState state = cpu_state_of(x87_state({"", 0x37f, 0x2800, 0x00}));
  std::array<u64, 8> before = mmx_registers(state);
  enter_mmx(state);
  EXPECT_EQ(mmx_registers(state), before);
  EXPECT_EQ(state.xsave[3] & 0x38, 0);
  EXPECT_EQ(state.xsave[4], 0xff);
}

}  // namespace
}  // namespace anykvm::x86
