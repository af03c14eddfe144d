#include "vmm/unpack.h"

#include <zstd.h>

#include <cstring>
#include <optional>

namespace anykvm::vmm {
namespace {

constexpr u32 kLz4LegacyMagic = 0x184c2102, kZstdMagic = 0xfd2fb528;
constexpr u32 kMostUnpacked = u32{1} << 30;

u32 word_at(std::span<const u8> bytes, size_t offset) {
  u32 value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// One LZ4 block (lz4_Block_format): literals and matches in turn, each length a nibble that 255s continue.
class Lz4Block {
 public:
  Lz4Block(std::span<const u8> input, std::vector<u8>& output, size_t limit)
      : m_input(input), m_output(output), m_start(output.size()), m_limit(limit) {}

  bool unpack() {
    while (m_at < m_input.size()) {
      u8 token = m_input[m_at++];
      if (!copy_literals(token >> 4)) return false;
      if (m_at == m_input.size()) return true;  // the last sequence has no match
      if (!copy_match(token & 15)) return false;
    }
    return true;
  }

 private:
  std::optional<size_t> length(size_t nibble) {
    if (nibble < 15) return nibble;
    for (u8 more = 255; more == 255; nibble += more) {
      if (m_at == m_input.size()) return std::nullopt;
      more = m_input[m_at++];
    }
    return nibble;
  }

  bool has_room(size_t count) const { return count <= m_limit - m_output.size(); }

  bool copy_literals(size_t nibble) {
    auto count = length(nibble);
    if (!count || *count > m_input.size() - m_at || !has_room(*count)) return false;
    auto first = m_input.begin() + static_cast<ptrdiff_t>(m_at);
    m_output.insert(m_output.end(), first, first + static_cast<ptrdiff_t>(*count));
    m_at += *count;
    return true;
  }

  // A match may overlap what it produces, so byte by byte.
  bool copy_match(size_t nibble) {
    constexpr size_t kShortestMatch = 4;
    if (m_input.size() - m_at < 2) return false;
    size_t distance = m_input[m_at] | m_input[m_at + 1] << 8;
    m_at += 2;
    auto count = length(nibble);
    if (!count || distance == 0 || distance > m_output.size() - m_start) return false;
    if (!has_room(*count + kShortestMatch)) return false;
    for (size_t i = 0; i < *count + kShortestMatch; ++i)
      m_output.push_back(m_output[m_output.size() - distance]);
    return true;
  }

  std::span<const u8> m_input;
  std::vector<u8>& m_output;
  size_t m_start;  // matches do not reach into the block before
  size_t m_limit;
  size_t m_at = 0;
};

// The legacy frame: a magic number, then blocks with their sizes.
bool unpack_lz4(std::span<const u8> packed, std::vector<u8>& output, size_t size) {
  output.reserve(size);
  for (size_t at = sizeof(u32); at < packed.size();) {
    if (packed.size() - at < sizeof(u32)) return false;
    size_t block = word_at(packed, at);
    at += sizeof(u32);
    if (block > packed.size() - at) return false;
    if (!Lz4Block(packed.subspan(at, block), output, size).unpack()) return false;
    at += block;
  }
  return output.size() == size;
}

bool unpack_zstd(std::span<const u8> packed, std::vector<u8>& output, size_t size) {
  output.resize(size);
  return ZSTD_decompress(output.data(), size, packed.data(), packed.size()) == size;
}

}  // namespace

Outcome<std::vector<u8>> unpack_kernel(std::span<const u8> packed) {
  if (packed.size() < 2 * sizeof(u32)) return failure("the kernel has no compressed part");
  size_t size = word_at(packed, packed.size() - sizeof(u32));
  u32 magic = word_at(packed, 0);
  std::span<const u8> frame = packed.first(packed.size() - sizeof(u32));
  if (size > kMostUnpacked) return failure("the kernel's compressed part is damaged");
  std::vector<u8> output;
  bool done = false;
  switch (magic) {
    case kLz4LegacyMagic:
      done = unpack_lz4(frame, output, size);
      break;
    case kZstdMagic:
      done = unpack_zstd(frame, output, size);
      break;
    default:
      return failure("the kernel is compressed with neither LZ4 nor Zstandard");
  }
  if (!done) return failure("the kernel's compressed part is damaged");
  return output;
}

}  // namespace anykvm::vmm
