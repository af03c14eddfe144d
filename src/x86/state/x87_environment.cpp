#include "x86/state/x87_environment.h"

#include <cstring>

#include "x86/state/xsave_image.h"

namespace anykvm::x86 {
namespace {

constexpr u32 kFcw = 0, kFsw = 2, kAbridgedFtw = 4, kRegisters = 32, kRegisterStride = 16,
              kRegisterBytes = 10;
constexpr u16 kExceptions = 0x3f, kSummary = 0x8080;  // ES and B
constexpr unsigned kEmpty = 3;

u16 word_at(const u8* bytes) {
  u16 value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}
void put_word(u8* bytes, u16 value) { std::memcpy(bytes, &value, sizeof value); }

unsigned top_of(u16 fsw) { return (fsw >> 11) & 7; }

// Tag of a register that is not empty: 0 valid, 1 zero, 2 special (SDM 1 8.1.7).
unsigned tag_of(const u8* reg) {
  u64 mantissa;
  std::memcpy(&mantissa, reg, sizeof mantissa);
  unsigned exponent = word_at(reg + 8) & 0x7fff;
  if (exponent == 0) return mantissa == 0 ? 1 : 2;
  if (exponent == 0x7fff) return 2;
  return mantissa >> 63 ? 0 : 2;
}

// Two bits per register from the image's one bit and the contents. Both words number registers R0 to R7; the
// image holds them from ST(0) on.
u16 full_tag_word(const u8* x87) {
  unsigned top = top_of(word_at(x87 + kFsw));
  unsigned tags = 0;
  for (unsigned physical = 0; physical < 8; ++physical) {
    const u8* reg = x87 + kRegisters + ((physical - top) & 7) * kRegisterStride;
    unsigned tag = has_bit(x87[kAbridgedFtw], physical) ? tag_of(reg) : kEmpty;
    tags |= tag << (2 * physical);
  }
  return static_cast<u16>(tags);
}

u8 abridged_tag_word(u16 tags) {
  unsigned abridged = 0;
  for (unsigned physical = 0; physical < 8; ++physical) {
    if (((tags >> (2 * physical)) & 3) != kEmpty) abridged |= 1u << physical;
  }
  return static_cast<u8>(abridged);
}

void rotate_registers(u8* x87, unsigned by) {
  std::array<u8, 8 * kRegisterStride> old;
  std::memcpy(old.data(), x87 + kRegisters, old.size());
  for (unsigned i = 0; i < 8; ++i) {
    std::memcpy(x87 + kRegisters + i * kRegisterStride, &old[((i + by) & 7) * kRegisterStride],
                kRegisterStride);
  }
}

}  // namespace

u16 x87_control_word(u16 loaded) { return static_cast<u16>((loaded & 0x1f3f) | 0x40); }

u16 x87_status_word(u16 loaded, u16 fcw) {
  auto fsw = static_cast<u16>(loaded & ~kSummary);
  bool pending = fsw & ~fcw & kExceptions;
  return pending ? fsw | kSummary : fsw;
}

void store_x87_environment(const CpuState& state, bool wide, X87Image* out) {
  const u8* x87 = xsave_component_bytes(state, 0);
  const u16 words[] = {word_at(x87 + kFcw), word_at(x87 + kFsw), full_tag_word(x87)};
  u32 stride = wide ? 4 : 2;
  for (u32 i = 0; i < 3; ++i) {
    put_word(&out->bytes[i * stride], words[i]);
    if (wide) put_word(&out->bytes[i * stride + 2], 0xffff);
  }
  std::memset(&out->bytes[3 * stride], 0, 4 * stride);
  if (wide) put_word(&out->bytes[26], 0xffff);  // above the data selector
}

void store_x87_stack(const CpuState& state, bool wide, X87Image* out) {
  const u8* x87 = xsave_component_bytes(state, 0);
  u8* to = &out->bytes[x87_environment_size(wide)];
  for (unsigned i = 0; i < 8; ++i) {
    std::memcpy(to + i * kRegisterBytes, x87 + kRegisters + i * kRegisterStride, kRegisterBytes);
  }
}

void load_x87_environment(CpuState& state, bool wide, const X87Image& image) {
  u8* x87 = xsave_component_for_change(state, 0);
  u32 stride = wide ? 4 : 2;
  u16 fcw = x87_control_word(word_at(&image.bytes[0]));
  u16 fsw = x87_status_word(word_at(&image.bytes[stride]), fcw);
  // The registers stay where they are while TOP moves, and the image holds them from ST(0) on.
  unsigned old_top = top_of(word_at(x87 + kFsw));
  rotate_registers(x87, (top_of(fsw) - old_top) & 7);
  put_word(x87 + kFcw, fcw);
  put_word(x87 + kFsw, fsw);
  x87[kAbridgedFtw] = abridged_tag_word(word_at(&image.bytes[2 * stride]));
}

void load_x87_stack(CpuState& state, bool wide, const X87Image& image) {
  u8* x87 = xsave_component_for_change(state, 0);
  const u8* from = &image.bytes[x87_environment_size(wide)];
  std::memset(x87 + kRegisters, 0, 8 * kRegisterStride);
  for (unsigned i = 0; i < 8; ++i) {
    std::memcpy(x87 + kRegisters + i * kRegisterStride, from + i * kRegisterBytes, kRegisterBytes);
  }
}

void mask_x87_exceptions(CpuState& state) {
  u8* x87 = xsave_component_for_change(state, 0);
  auto fcw = static_cast<u16>(word_at(x87 + kFcw) | kExceptions);
  put_word(x87 + kFcw, fcw);
  put_word(x87 + kFsw, x87_status_word(word_at(x87 + kFsw), fcw));
}

// FNINIT leaves the registers' contents alone and calls them empty.
void initialize_x87(CpuState& state) {
  u8* x87 = xsave_component_for_change(state, 0);
  rotate_registers(x87, (0 - top_of(word_at(x87 + kFsw))) & 7);
  put_word(x87 + kFcw, 0x37f);
  put_word(x87 + kFsw, 0);
  x87[kAbridgedFtw] = 0;
}

bool x87_exception_pending(const CpuState& state) {
  const u8* x87 = xsave_component_bytes(state, 0);
  return word_at(x87 + kFsw) & ~word_at(x87 + kFcw) & kExceptions;
}

std::array<u64, 8> mmx_registers(const CpuState& state) {
  const u8* x87 = xsave_component_bytes(state, 0);
  unsigned top = top_of(word_at(x87 + kFsw));
  std::array<u64, 8> registers{};
  for (unsigned physical = 0; physical < 8; ++physical) {
    std::memcpy(&registers[physical], x87 + kRegisters + ((physical - top) & 7) * kRegisterStride, 8);
  }
  return registers;
}

void enter_mmx(CpuState& state) {
  u8* x87 = xsave_component_for_change(state, 0);
  u16 fsw = word_at(x87 + kFsw);
  rotate_registers(x87, (0 - top_of(fsw)) & 7);
  put_word(x87 + kFsw, static_cast<u16>(fsw & ~(7u << 11)));
  x87[kAbridgedFtw] = 0xff;
}

}  // namespace anykvm::x86
