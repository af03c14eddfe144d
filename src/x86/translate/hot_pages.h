#pragma once
// Which pages of code much of the time goes to: a sample at each interrupt tells. Owner: CodeCache, whose
// mutex is held.

#include <array>

#include "base/types.h"

namespace anykvm::x86 {

class HotPages {
 public:
  // Control was in the page just now. True: it is there so often that its code is worth more than the usual.
  bool sample(Gpa page) {
    if (++m_samples % kWindow == 0) {
      for (Entry& entry : m_entries) entry.count /= 2;
    }
    const u64 number = page.value >> 12;
    Entry& entry = m_entries[(number ^ number >> 10) % m_entries.size()];
    if (entry.page != number && entry.count) return --entry.count, false;
    if (entry.page != number) entry = {number, 0};
    return ++entry.count >= kHot;
  }

  // A kernel interrupts itself 100 to 1,000 times a second. A page that has every twentieth sample gets here
  // within a second, while those of a program that is everywhere at once hardly ever do.
  static constexpr u32 kWindow = 256, kHot = 12;

 private:
  struct Entry {
    u64 page = 0;
    u32 count = 0;
  };
  u32 m_samples = 0;
  std::array<Entry, 1024> m_entries{};
};

}  // namespace anykvm::x86
