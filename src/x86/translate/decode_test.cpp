#include "x86/translate/decode.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace anykvm::x86 {
namespace {

DecodeStatus status_of(const std::vector<u8>& bytes, unsigned size) {
  Decoded decoded;
  return decode(bytes.data(), size, 64, 8, 0, &decoded);
}

TEST(Decode, bytes_that_lack_their_end_ask_for_more_whatever_their_prefixes) {
  // F3 and 66 with 0F 76, which has no such form, behind prefixes that change nothing.
  const std::vector<u8> bytes = {0xf3, 0x3e, 0x48, 0x66, 0x2e, 0x66, 0x64, 0x67, 0x3e,
                                 0x48, 0x0f, 0x76, 0x84, 0x24, 0x00, 0x00, 0x00, 0x00};
  for (unsigned size = 1; size < 15; ++size)
    EXPECT_EQ(status_of(bytes, size), DecodeStatus::kTruncated) << size;
  EXPECT_EQ(status_of(bytes, 15), DecodeStatus::kTooLong);
}

TEST(Decode, complete_instructions_that_are_none_are_invalid) {
  EXPECT_EQ(status_of({0xf3, 0x66, 0x0f, 0x76, 0xc0}, 5), DecodeStatus::kInvalid);
  EXPECT_EQ(status_of({0x06}, 1), DecodeStatus::kInvalid);  // PUSH ES
  EXPECT_EQ(status_of({0xf0, 0x90, 0x90}, 3), DecodeStatus::kInvalid);
}

// {loads, stores, updates}
std::array<unsigned, 3> accesses_of(const std::vector<u8>& bytes, unsigned code_bits = 64) {
  Decoded d;
  EXPECT_EQ(decode(bytes.data(), static_cast<unsigned>(bytes.size()), code_bits, code_bits / 8, 0, &d),
            DecodeStatus::kOk);
  return {d.loads, d.stores, d.updates};
}
using Accesses = std::array<unsigned, 3>;

TEST(Decode, accesses_of_named_operands) {
  EXPECT_EQ(accesses_of({0x8b, 0x03}), (Accesses{1, 0, 0}));                    // mov eax, [rbx]
  EXPECT_EQ(accesses_of({0x89, 0x03}), (Accesses{0, 1, 0}));                    // mov [rbx], eax
  EXPECT_EQ(accesses_of({0xff, 0x03}), (Accesses{0, 0, 1}));                    // inc dword [rbx]
  EXPECT_EQ(accesses_of({0x39, 0x03}), (Accesses{1, 0, 0}));                    // cmp [rbx], eax
  EXPECT_EQ(accesses_of({0x87, 0x03}), (Accesses{0, 0, 1}));                    // xchg [rbx], eax
  EXPECT_EQ(accesses_of({0xf0, 0x0f, 0xb1, 0x0b}), (Accesses{0, 0, 1}));        // lock cmpxchg [rbx], ecx
  EXPECT_EQ(accesses_of({0x0f, 0x95, 0x03}), (Accesses{0, 1, 0}));              // setne [rbx]
  EXPECT_EQ(accesses_of({0x0f, 0x44, 0x03}), (Accesses{1, 0, 0}));              // cmove eax, [rbx]
  EXPECT_EQ(accesses_of({0xa1, 0, 0, 0, 0, 0, 0, 0, 0}), (Accesses{1, 0, 0}));  // mov eax, [0]
  EXPECT_EQ(accesses_of({0xc5, 0xfe, 0x7f, 0x03}), (Accesses{0, 1, 0}));        // vmovdqu [rbx], ymm0
  EXPECT_EQ(accesses_of({0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x93}), (Accesses{1, 0, 0}));  // vpgatherdd
  EXPECT_EQ(accesses_of({0xd9, 0x1b}), (Accesses{0, 1, 0}));                          // fstp dword [rbx]
}

TEST(Decode, accesses_of_implied_operands) {
  EXPECT_EQ(accesses_of({0x50}), (Accesses{0, 1, 0}));                        // push rax
  EXPECT_EQ(accesses_of({0xff, 0x33}), (Accesses{1, 1, 0}));                  // push qword [rbx]
  EXPECT_EQ(accesses_of({0x58}), (Accesses{1, 0, 0}));                        // pop rax
  EXPECT_EQ(accesses_of({0x8f, 0x03}), (Accesses{1, 1, 0}));                  // pop qword [rbx]
  EXPECT_EQ(accesses_of({0x9c}), (Accesses{0, 1, 0}));                        // pushf
  EXPECT_EQ(accesses_of({0x9d}), (Accesses{1, 0, 0}));                        // popf
  EXPECT_EQ(accesses_of({0xe8, 0, 0, 0, 0}), (Accesses{0, 1, 0}));            // call
  EXPECT_EQ(accesses_of({0xff, 0x13}), (Accesses{1, 1, 0}));                  // call [rbx]
  EXPECT_EQ(accesses_of({0xc3}), (Accesses{1, 0, 0}));                        // ret
  EXPECT_EQ(accesses_of({0xc9}), (Accesses{1, 0, 0}));                        // leave
  EXPECT_EQ(accesses_of({0xa4}), (Accesses{1, 1, 0}));                        // movsb
  EXPECT_EQ(accesses_of({0xf3, 0xaa}), (Accesses{0, 1, 0}));                  // rep stosb
  EXPECT_EQ(accesses_of({0xf3, 0xa6}), (Accesses{2, 0, 0}));                  // repe cmpsb
  EXPECT_EQ(accesses_of({0xd7}), (Accesses{1, 0, 0}));                        // xlat
  EXPECT_EQ(accesses_of({0x60}, 32), (Accesses{0, 8, 0}));                    // pusha
  EXPECT_EQ(accesses_of({0x61}, 32), (Accesses{8, 0, 0}));                    // popa
  EXPECT_EQ(accesses_of({0xc8, 0x10, 0x00, 0x00}, 32), (Accesses{0, 1, 0}));  // enter 16, 0
}

TEST(Decode, what_touches_no_data_has_no_accesses) {
  EXPECT_EQ(accesses_of({0x8d, 0x03}), (Accesses{}));        // lea eax, [rbx]
  EXPECT_EQ(accesses_of({0x0f, 0x1f, 0x00}), (Accesses{}));  // nop [rax]
  EXPECT_EQ(accesses_of({0x0f, 0x18, 0x0b}), (Accesses{}));  // prefetcht0 [rbx]
  EXPECT_EQ(accesses_of({0x0f, 0x0d, 0x0b}), (Accesses{}));  // prefetchw [rbx]
  EXPECT_EQ(accesses_of({0x01, 0xc8}), (Accesses{}));        // add eax, ecx
}

}  // namespace
}  // namespace anykvm::x86
