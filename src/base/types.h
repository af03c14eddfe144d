#pragma once
// Fixed-width integer names and the three kinds of address.
// Owner: nobody; plain values. Any thread.

#include <compare>
#include <cstddef>
#include <cstdint>

namespace anykvm {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

// An address that cannot be mixed up with one of another kind. `value` is in bytes.
template <class Kind>
struct Address {
  u64 value = 0;

  constexpr Address() = default;
  constexpr explicit Address(u64 v) : value(v) {}
  constexpr auto operator<=>(const Address&) const = default;
  constexpr Address operator+(u64 bytes) const { return Address(value + bytes); }
  constexpr Address operator-(u64 bytes) const { return Address(value - bytes); }
  constexpr u64 operator-(Address other) const { return value - other.value; }
  constexpr Address& operator+=(u64 bytes) { return value += bytes, *this; }
  constexpr Address page() const { return Address(value & ~u64{0xfff}); }
  constexpr u64 page_offset() const { return value & 0xfff; }
};

using Gva = Address<struct GvaKind>;  // guest linear address (SDM 3A 3.3: after segmentation, before paging)
using Gpa = Address<struct GpaKind>;  // guest physical address

inline constexpr u64 kPageSize = 4096;

}  // namespace anykvm
