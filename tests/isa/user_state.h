#pragma once
// What a user-mode program sees of a CPU: the start and the end of a differential test case.
// Owner: nobody; plain values. Any thread.

#include <array>
#include <string>

#include "base/types.h"
#include "random.h"

namespace anykvm::isa {

// Linear addresses, the same natively and in the guest. All below 4 GiB, so that 32-bit addresses reach them.
inline constexpr u64 kCodeBase = 0x36a00000, kCodeSize = 8u << 20;
// What a program may be allowed to write to: a pair of pages.
inline constexpr u64 kCodePair = 0x2000;
inline constexpr u64 code_pair(u64 address) { return address & ~(kCodePair - 1); }
inline constexpr u64 kDataBase = 0x20000000;
inline constexpr u64 kWritableSize = 0x2000;  // two pages that may be written,
inline constexpr u64 kDataSize =
    kWritableSize + 0x1000;  // one that may only be read; nothing mapped on either side
inline constexpr u64 kReadOnlyBase = kDataBase + kWritableSize;
inline constexpr u64 kDataEnd = kDataBase + kDataSize;

using Memory = std::array<u8, kDataSize>;

struct UserState {
  std::array<u64, 16> gpr{};
  u64 rip = 0;
  u64 rflags = 0x202;
  u64 fs_base = 0, gs_base = 0;

  u16 fcw = 0x37f, fsw = 0;
  u8 ftw = 0;  // abridged: one bit for each register that is not empty
  u32 mxcsr = 0x1f80;
  std::array<std::array<u8, 16>, 8> st{};  // 80 bits each, ST0 first
  std::array<std::array<u8, 64>, 32> zmm{};
  std::array<u64, 8> k{};
  std::array<u16, 6> selectors{};  // ES, CS, SS, DS, FS, GS; of a state that something ended in

  // To and from a standard-format XSAVE image of the host. Bytes that hold none of the above are left alone.
  void to_xsave(u8* image) const;
  void from_xsave(const u8* image);
};

// How a case ended: an instruction raised `vector`. The HLT behind every case raises #GP in user mode.
struct Outcome {
  UserState state;
  Memory memory{};
  // Ends that are no exceptions: taken out by the harness.
  static constexpr u8 kSystemCall = 0xfd, kEndless = 0xfe, kLost = 0xff;
  u8 vector = 0;
  u32 error = 0;
  u64 cr2 = 0;  // #PF only
  // What LSL gives for kProcessorNode: which CPU it was. Of the host.
  u32 processor_node = 0;
};

// Random values that are likely to be interesting.
u64 random_integer(Random& random);
u64 random_pointer(Random& random);
u64 harmless_pointer(Random& random);  // with memory that may be written around it
void random_vector(Random& random, u8* bytes, unsigned size);
UserState random_state(Random& random, unsigned code_bits);
// Random but for the page that may only be read, which is always the same.
void random_memory(Random& random, Memory* memory);
void fill_read_only_page(u8* page);

// Which parts of two outcomes are looked at.
struct Comparison {
  u64 flags = 0x254dd5;  // bits of RFLAGS: arithmetic, TF, DF, NT, RF, AC, ID
  unsigned code_bits = 64;
  bool vectors = true;
  bool only_rip = false;
};
// Empty if they agree; otherwise one line for each difference, marked by a star.
std::string differences(const Outcome& native, const Outcome& guest, const Comparison& comparison);
std::string describe(const UserState& state);

}  // namespace anykvm::isa
