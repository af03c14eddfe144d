#pragma once
// The memory of a fuzzed guest, between regions that nobody may touch: inaccessible pages on one side, pages
// with a known pattern on the other, by turns. Owner: one fuzzed VM. The fuzzer's thread.

#include <string>
#include <vector>

#include "base/types.h"
#include "program.h"

namespace anykvm::fuzz {

class GuestMemory {
 public:
  struct Slot {
    u32 number;
    u64 base, size;
    u8* host;
    bool read_only, logged;
  };

  GuestMemory();
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  const std::vector<Slot>& slots() const { return m_slots; }
  // The first megabyte, where programs lie.
  u8* low() { return m_slots[0].host; }
  u64 low_size() const { return m_slots[0].size; }
  // Anything, with enough that looks like page tables, descriptors and code.
  void fill(Random& random);
  // What was touched that may not be: empty if nothing was.
  std::string damage() const;

 private:
  struct Guard {
    u8* host;
    u64 size;
  };
  void add_slot(u64 base, u64 size, bool read_only, bool logged);

  u8* m_all = nullptr;
  u64 m_used = 0;
  std::vector<Slot> m_slots;
  std::vector<Guard> m_patterns;
  u64 m_read_only_sum = 0;
};

}  // namespace anykvm::fuzz
