#include "user_state.h"

#include <fmt/format.h>

#include <cstring>

#include "x86/state/xsave.h"

namespace anykvm::isa {
namespace {

using x86::xsave_component;

constexpr u32 kMxcsrAt = 24, kStAt = 32, kXmmAt = 160, kHeaderAt = 512;

template <class T>
void put(u8* at, T value) {
  std::memcpy(at, &value, sizeof value);
}
template <class T>
T get(const u8* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Calls `part(component, offset in the image, register, offset in the register, size)` for each piece of a
// vector register that the host has.
template <class Part>
void each_vector_part(Part part) {
  for (unsigned i = 0; i < 16; ++i) {
    part(1, kXmmAt + 16 * i, i, 0, 16);
    if (u32 at = xsave_component(2).offset) part(2, at + 16 * i, i, 16, 16);
    if (u32 at = xsave_component(6).offset) part(6, at + 32 * i, i, 32, 32);
    if (u32 at = xsave_component(7).offset) part(7, at + 64 * i, 16 + i, 0, 64);
  }
}

}  // namespace

void UserState::to_xsave(u8* image) const {
  put(image, fcw);
  put(image + 2, fsw);
  put(image + 4, ftw);
  std::memset(image + 5, 0, 19);
  put(image + kMxcsrAt, mxcsr);
  for (unsigned i = 0; i < 8; ++i) {
    std::memset(image + kStAt + 16 * i, 0, 16);
    std::memcpy(image + kStAt + 16 * i, st[i].data(), 10);
  }
  each_vector_part([&](unsigned, u32 at, unsigned number, unsigned offset, unsigned size) {
    std::memcpy(image + at, zmm[number].data() + offset, size);
  });
  if (u32 at = xsave_component(5).offset) std::memcpy(image + at, k.data(), sizeof k);
  put(image + kHeaderAt, get<u64>(image + kHeaderAt) | x86::host_xcr0_usable());
}

void UserState::from_xsave(const u8* image) {
  u64 in_use = get<u64>(image + kHeaderAt);
  auto holds = [&](unsigned component) { return (in_use >> component) & 1; };
  fcw = 0x37f, fsw = 0, ftw = 0;
  st = {};
  if (holds(0)) {
    fcw = get<u16>(image);
    fsw = get<u16>(image + 2);
    ftw = image[4];
    for (unsigned i = 0; i < 8; ++i) std::memcpy(st[i].data(), image + kStAt + 16 * i, 10);
  }
  mxcsr = get<u32>(image + kMxcsrAt);
  zmm = {};
  each_vector_part([&](unsigned component, u32 at, unsigned number, unsigned offset, unsigned size) {
    if (holds(component)) std::memcpy(zmm[number].data() + offset, image + at, size);
  });
  k = {};
  u32 opmask = xsave_component(5).offset;
  if (opmask && holds(5)) std::memcpy(k.data(), image + opmask, sizeof k);
}

// --- Random values ---

u64 random_pointer(Random& random) {
  switch (random.below(8)) {
    case 0:  // around the border of two pages
      return kDataBase + 0x1000 - random.below(80);
    case 1:  // before the page that may only be read
      return kReadOnlyBase - random.below(80);
    case 2:  // before the end
      return kDataEnd - random.below(80);
    case 3:
      return kDataBase + random.below(64);
    case 4:
      return kDataBase + 64 * random.below(kWritableSize / 64);
    default:
      return kDataBase + 512 + random.below(kWritableSize - 1024);
  }
}

u64 harmless_pointer(Random& random) {
  if (random.one_in(6)) return kDataBase + 0x1000 - random.below(80);  // around the border of two pages
  u64 at = kDataBase + 512 + random.below(kWritableSize - 1024);
  return random.one_in(8) ? at : at & ~u64{63};
}

u64 random_integer(Random& random) {
  switch (random.below(10)) {
    case 0:
      return random.below(256);
    case 1:
      return ~random.below(256);
    case 2:
      return u64{1} << random.below(64);
    case 3:
      return (u64{1} << random.below(64)) - 1;
    case 4:
      return u64{0x80} << (8 * random.below(8));
    case 5:
      return random.next() >> random.below(64);
    case 6:
      return 0;
    default:
      return random.next();
  }
}

namespace {

float random_float(Random& random) {
  static const float kSpecial[] = {0.0f,
                                   -0.0f,
                                   1.0f,
                                   -1.0f,
                                   0.5f,
                                   1.5f,
                                   2.5f,
                                   1e38f,
                                   -1e38f,
                                   1e-38f,
                                   1e-45f,
                                   65504.0f,
                                   2147483648.0f,
                                   4294967296.0f,
                                   9.3e18f,
                                   __builtin_inff(),
                                   -__builtin_inff(),
                                   __builtin_nanf(""),
                                   __builtin_nansf("")};
  if (random.one_in(2)) return kSpecial[random.below(std::size(kSpecial))];
  return static_cast<float>(static_cast<i64>(random.next())) / static_cast<float>(1ull << random.below(64));
}

void random_floats(Random& random, u8* bytes, unsigned size) {
  for (unsigned i = 0; i + 4 <= size; i += 4) put(bytes + i, random_float(random));
}
void random_doubles(Random& random, u8* bytes, unsigned size) {
  for (unsigned i = 0; i + 8 <= size; i += 8) put(bytes + i, static_cast<double>(random_float(random)));
}

// 80-bit values of every class: zero, denormal, normal, infinity, NaN, and some that are none (SDM 1 8.2).
void random_extended(Random& random, u8* bytes) {
  u64 significand = random.next();
  u16 exponent = static_cast<u16>(0x3fff - 32 + random.below(96));
  switch (random.below(12)) {
    case 0:
      significand = 0, exponent = 0;
      break;
    case 1:
      exponent = 0x7fff, significand = random.one_in(2) ? u64{1} << 63 : significand | u64{1} << 63;
      break;
    case 2:
      exponent = 0, significand &= ~(u64{1} << 63);
      break;
    case 3:
      break;
    case 4:
      exponent = static_cast<u16>(random.below(0x8000));
      [[fallthrough]];
    default:
      significand |= u64{1} << 63;
      if (random.one_in(2)) significand &= ~u64{0} << random.below(64);
      break;
  }
  if (random.one_in(3)) exponent |= 0x8000;
  put(bytes, significand);
  put(bytes + 8, exponent);
}

}  // namespace

void random_vector(Random& random, u8* bytes, unsigned size) {
  switch (random.below(6)) {
    case 0:
      random_floats(random, bytes, size);
      break;
    case 1:
      random_doubles(random, bytes, size);
      break;
    case 2:
      for (unsigned i = 0; i < size; i += 8) put(bytes + i, random_integer(random));
      break;
    case 3: {
      u8 same = static_cast<u8>(random.next());
      std::memset(bytes, same, size);
      break;
    }
    default:
      for (unsigned i = 0; i < size; i += 8) put(bytes + i, random.next());
      break;
  }
}

UserState random_state(Random& random, unsigned code_bits) {
  UserState s;
  for (unsigned i = 0; i < 16; ++i) s.gpr[i] = random_integer(random);
  s.gpr[4] = kDataBase + 0x800 + 8 * random.below(0x100);
  if (random.one_in(8)) s.gpr[4] = random_pointer(random);
  if (code_bits != 64) {
    for (unsigned i = 0; i < 16; ++i) s.gpr[i] = i < 8 ? static_cast<u32>(s.gpr[i]) : 0;
  }
  s.rflags = 0x202 | (random.next() & 0x8d5);
  if (random.one_in(8)) s.rflags |= 0x400;

  if (random.one_in(4)) s.fcw = static_cast<u16>(0x7f | random.below(16) << 8);
  if (random.one_in(16)) s.fcw = static_cast<u16>(0x40 | random.below(64) | random.below(16) << 8);
  s.fsw = static_cast<u16>(random.below(8) << 11 | (random.next() & 0x4700));
  s.ftw = static_cast<u8>(random.next() | random.next());
  if (random.one_in(3)) s.ftw = 0xff;
  for (auto& st : s.st) random_extended(random, st.data());

  s.mxcsr = 0x1f80;
  if (random.one_in(4)) s.mxcsr |= static_cast<u32>(random.below(4) << 13 | (random.next() & 0x8040));
  if (random.one_in(16)) s.mxcsr = static_cast<u32>(random.next() & 0xffc0);
  for (auto& zmm : s.zmm) random_vector(random, zmm.data(), 64);
  for (auto& k : s.k) k = random_integer(random);
  return s;
}

void random_memory(Random& random, Memory* memory) {
  for (unsigned i = 0; i < kWritableSize; i += 64) random_vector(random, memory->data() + i, 64);
  static const auto read_only = [] {
    std::array<u8, kDataSize - kWritableSize> page;
    fill_read_only_page(page.data());
    return page;
  }();
  std::memcpy(memory->data() + kWritableSize, read_only.data(), read_only.size());
}

void fill_read_only_page(u8* page) {
  Random random(1);
  for (unsigned i = 0; i < kDataSize - kWritableSize; i += 64) random_vector(random, page + i, 64);
}

// --- Comparison ---

namespace {

const char* const kNames[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                              "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
const char* const kMaskNames[] = {"k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"};
const char* const kSegmentNames[] = {"es", "cs", "ss", "ds", "fs", "gs"};

std::string hex(const u8* bytes, unsigned size) {
  std::string text;
  for (unsigned i = size; i-- > 0;) text += fmt::format("{:02x}{}", bytes[i], i && i % 8 == 0 ? "_" : "");
  return text;
}

// Hardly anything ever differs: names are put together for what does.
class Report {
 public:
  void value(const char* name, u64 native, u64 guest) {
    if (native != guest) text += fmt::format("  * {:8} native {:016x}  guest {:016x}\n", name, native, guest);
  }
  // `name` has {} for the number.
  void bytes(const char* name, u64 number, const u8* native, const u8* guest, unsigned size) {
    if (std::memcmp(native, guest, size) == 0) return;
    text += fmt::format("  * {:8} native {}\n             guest  {}\n",
                        fmt::format(fmt::runtime(name), number), hex(native, size), hex(guest, size));
  }
  template <class Values>
  void values(const char* const* names, const Values& native, const Values& guest) {
    for (std::size_t i = 0; i < native.size(); ++i) value(names[i], native[i], guest[i]);
  }
  std::string text;
};

void compare_memory(const Memory& native, const Memory& guest, Report* report) {
  if (native == guest) return;
  unsigned shown = 0;
  for (unsigned i = 0; i < kDataSize && shown < 8; i += 16) {
    if (std::memcmp(&native[i], &guest[i], 16) == 0) continue;
    report->bytes("[{:x}]", kDataBase + i, &native[i], &guest[i], 16);
    ++shown;
  }
}

}  // namespace

namespace {

constexpr u8 kUd = 6, kSs = 12, kGp = 13, kPf = 14, kMf = 16, kAc = 17;

// The kernel hides what is mapped beyond the programs' part of the address space: there it always says
// present.
u32 visible_error(const Outcome& outcome) {
  constexpr u64 kEndOfPrograms = 0x7ffffffff000;
  bool hidden = outcome.vector == kPf && outcome.cr2 >= kEndOfPrograms;
  return hidden ? outcome.error & ~1u : outcome.error;
}

// Known differences (docs/quirks.md): the translator looks at the page before the host looks at alignment,
// and before the host finds that it does not have the instruction at all.
bool page_looked_at_first(const Outcome& native, const Outcome& guest) {
  bool same_place = native.state.rip == guest.state.rip;
  bool address_fault = guest.vector == kPf || guest.vector == kSs || guest.vector == kGp;
  bool alignment = native.vector == kGp && address_fault;
  bool earlier = native.vector == kUd || native.vector == kMf;
  // An operand that goes on behind the end of the address space: here that comes first.
  constexpr u64 kEnd32 = u64{1} << 32, kEnd48 = u64{1} << 47;
  auto before = [&](u64 end) { return native.cr2 >= end - 0x1000 && native.cr2 < end; };
  bool wraps = native.vector == kPf && (before(kEnd32) || before(kEnd48));
  if (same_place && earlier && guest.vector == kAc) return true;
  return same_place && (alignment || earlier || wraps) && address_fault;
}

}  // namespace

std::string differences(const Outcome& native, const Outcome& guest, const Comparison& comparison) {
  const UserState &n = native.state, &g = guest.state;
  Report report;
  if (comparison.only_rip) {
    report.value("rip", n.rip, g.rip);
    return report.text;
  }
  if (!page_looked_at_first(native, guest)) {
    report.value("vector", native.vector, guest.vector);
    report.value("error", visible_error(native), visible_error(guest));
  }
  if (native.vector == kPf && guest.vector == kPf) report.value("cr2", native.cr2, guest.cr2);
  report.value("rip", n.rip, g.rip);
  unsigned gprs = comparison.code_bits == 64 ? 16 : 8;
  for (unsigned i = 0; i < gprs; ++i) {
    u64 mask = comparison.code_bits == 64 ? ~u64{0} : 0xffffffff;
    report.value(kNames[i], n.gpr[i] & mask, g.gpr[i] & mask);
  }
  report.value("rflags", n.rflags & comparison.flags, g.rflags & comparison.flags);
  report.value("fs base", n.fs_base, g.fs_base);
  report.value("gs base", n.gs_base, g.gs_base);
  report.value("fcw", n.fcw, g.fcw);
  report.value("fsw", n.fsw, g.fsw);
  report.value("ftw", n.ftw, g.ftw);
  report.value("mxcsr", n.mxcsr, g.mxcsr);
  for (unsigned i = 0; i < 8; ++i) report.bytes("st{}", i, n.st[i].data(), g.st[i].data(), 10);
  // Outside 64-bit mode there are eight; VZEROUPPER and VZEROALL change the others too (docs/quirks.md).
  unsigned vectors = !comparison.vectors ? 0 : comparison.code_bits == 64 ? 32 : 8;
  for (unsigned i = 0; i < vectors; ++i) report.bytes("zmm{}", i, n.zmm[i].data(), g.zmm[i].data(), 64);
  report.values(kMaskNames, n.k, g.k);
  // The kernel's way back to the program clears the RPL of null selectors (SDM 2A IRET).
  auto without_rpl = [](u16 selector) { return selector < 4 ? 0u : selector; };
  for (std::size_t i = 0; i < n.selectors.size(); ++i)
    report.value(kSegmentNames[i], without_rpl(n.selectors[i]), without_rpl(g.selectors[i]));
  compare_memory(native.memory, guest.memory, &report);
  return report.text;
}

std::string describe(const UserState& s) {
  std::string text;
  for (unsigned i = 0; i < 16; ++i)
    text += fmt::format("  {:6} {:016x}{}", kNames[i], s.gpr[i], i % 4 == 3 ? "\n" : "");
  text += fmt::format("  rip {:x} rflags {:x} fs {:x} gs {:x} fcw {:x} fsw {:x} ftw {:x} mxcsr {:x}\n", s.rip,
                      s.rflags, s.fs_base, s.gs_base, s.fcw, s.fsw, s.ftw, s.mxcsr);
  for (unsigned i = 0; i < 8; ++i) text += fmt::format("  k{} {:016x}{}", i, s.k[i], i % 4 == 3 ? "\n" : "");
  return text;
}

}  // namespace anykvm::isa
