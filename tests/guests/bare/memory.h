#pragma once
// Physical frames, page tables of four or five levels, and virtual addresses. CPU 0, before and between
// tests.

#include "cpu.h"

namespace bare {

inline constexpr u64 kPageSize = 4096, kLargePageSize = 2 << 20, kHugePageSize = 1 << 30;
inline constexpr u64 kPresent = bit(0), kWritable = bit(1), kUser = bit(2), kAccessed = bit(5),
                     kDirty = bit(6), kLarge = bit(7), kGlobal = bit(8), kNoExecute = bit(63);
// Bits of #PF's error code.
inline constexpr u64 kPfPresent = 1, kPfWrite = 2, kPfUser = 4, kPfReserved = 8, kPfFetch = 16, kPfKey = 32;

// A zeroed frame. Frames are identity-mapped; all are free again at the next test (release_frames()).
u64 allocate_frame();
void release_frames();

// A frame or table by its physical address.
template <class T = u64>
T* at_physical(u64 address) {
  return reinterpret_cast<T*>(address);
}

// Page tables of their own, whose first 4 GiB are the boot tables'.
class AddressSpace {
 public:
  // `levels`: 4 or 5.
  explicit AddressSpace(unsigned levels = 4);

  u64 root() const { return m_root; }
  // Makes what is missing above `level` (1: the page table) and returns the entry for `address`. New tables
  // are present, writable and user-accessible.
  u64& entry(u64 address, unsigned level = 1);
  // Done when it returns: what the compiler stores later comes later.
  void map(u64 address, u64 frame, u64 flags) {
    entry(address) = frame | flags;
    asm volatile("" : : : "memory");
  }
  // Loads CR3; leave() goes back to the boot tables.
  void enter() const { write_cr3(m_root); }
  static void leave();

 private:
  unsigned m_levels;
  u64 m_root;
};

// Hands out virtual addresses, whole pages, from 512 GiB on.
class VirtualSpace {
 public:
  u64 allocate(size_t pages);

 private:
  u64 m_next = bit(39);
};

}  // namespace bare
