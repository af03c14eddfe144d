#include "vmm/unpack.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <string>

namespace anykvm::vmm {
namespace {

std::string unpack(const std::vector<u8>& packed) {
  auto bytes = unpack_kernel(packed);
  return bytes ? std::string(bytes.value().begin(), bytes.value().end()) : "error: " + bytes.error().text;
}

// "abc", then 9 bytes from 3 back, then "!" as the last literals; 13 bytes.
std::vector<u8> lz4() {
  return {0x02, 0x21, 0x4c, 0x18, 8, 0, 0, 0, 0x35, 'a', 'b', 'c', 3, 0, 0x10, '!', 13, 0, 0, 0};
}

constexpr const char* kDamaged = "error: the kernel's compressed part is damaged";

TEST(UnpackKernel, lz4_match_may_overlap_itself) { EXPECT_EQ(unpack(lz4()), "abcabcabcabc!"); }

TEST(UnpackKernel, lz4_long_lengths_continue_over_bytes) {
  std::vector<u8> packed = {0x02, 0x21, 0x4c, 0x18, 8,    0,   0,  0, 0x1f, 'x',
                            1,    0,    255,  26,   0x10, 'y', 46, 1, 0,    0};
  std::string expected = std::string(301, 'x') + 'y';
  EXPECT_EQ(unpack(packed), expected);
}

TEST(UnpackKernel, lz4_distance_before_the_start_is_damage) {
  auto packed = lz4();
  packed[12] = 4;
  EXPECT_EQ(unpack(packed), kDamaged);
}

TEST(UnpackKernel, lz4_of_another_size_is_damage) {
  auto packed = lz4();
  packed[16] = 12;
  EXPECT_EQ(unpack(packed), kDamaged);
  packed[16] = 14;
  EXPECT_EQ(unpack(packed), kDamaged);
}

TEST(UnpackKernel, lz4_block_past_the_end_is_damage) {
  auto packed = lz4();
  packed[4] = 9;
  EXPECT_EQ(unpack(packed), kDamaged);
}

TEST(UnpackKernel, zstd_is_unpacked) {
  std::string text(1000, 'z');
  std::vector<u8> packed(ZSTD_compressBound(text.size()));
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 1));
  packed.insert(packed.end(), {0xe8, 0x03, 0, 0});
  EXPECT_EQ(unpack(packed), text);
}

TEST(UnpackKernel, other_compression_and_nothing_are_refused) {
  EXPECT_EQ(unpack({0xfd, '7', 'z', 'X', 'Z', 0, 0, 0, 0, 0, 0, 0}),
            "error: the kernel is compressed with neither LZ4 nor Zstandard");
  EXPECT_EQ(unpack({1, 2, 3}), "error: the kernel has no compressed part");
}

}  // namespace
}  // namespace anykvm::vmm
