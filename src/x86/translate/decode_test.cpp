#include "x86/translate/decode.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace anykvm::x86
