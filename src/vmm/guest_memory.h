#pragma once
// The guest's RAM as the VMM sees it: one anonymous mapping, shown to the guest below the hole at 3 GiB and
// above 4 GiB. Owner: the machine. The layout is constant; the contents are shared with running vCPUs.

#include <array>
#include <span>
#include <string_view>
#include <vector>

#include "base/types.h"
#include "vmm/failure.h"

namespace anykvm::vmm {

inline constexpr u64 kMiB = u64{1} << 20, kGiB = u64{1} << 30;
inline constexpr u64 kHoleStart = 3 * kGiB;  // PCI windows, APICs, the KVM's own pages
inline constexpr u64 kHoleEnd = 4 * kGiB;

// A stretch of guest RAM. `host` is where it is in this process.
struct RamRange {
  Gpa start;
  u64 size;
  u8* host;
};

class GuestMemory {
 public:
  static Outcome<GuestMemory> create(u64 size);
  GuestMemory(GuestMemory&& other) noexcept;
  GuestMemory& operator=(GuestMemory&&) = delete;
  ~GuestMemory();

  u64 size() const { return m_size; }
  u64 low_end() const { return m_ranges[0].size; }
  const std::vector<RamRange>& ranges() const { return m_ranges; }

  // The host bytes of [start, start + length), or nothing if they are not all RAM.
  u8* at(Gpa start, u64 length) const;
  // False: not all of it is RAM.
  bool write(Gpa start, std::span<const u8> bytes) const;
  template <class T>
  bool write_object(Gpa start, const T& object) const {
    // SAFETY: T is a plain structure of the boot protocol; its bytes are copied as they stand.
    return write(start, {reinterpret_cast<const u8*>(&object), sizeof object});
  }

 private:
  GuestMemory() = default;
  u8* m_host = nullptr;
  u64 m_size = 0;
  std::vector<RamRange> m_ranges;
};

}  // namespace anykvm::vmm
