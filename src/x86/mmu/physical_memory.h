#pragma once
// Guest physical memory: which ranges are RAM, where the client keeps them, which pages were written.
// Owner: x86::Machine. Lookups from any vCPU thread inside Cpu::run(); changes only while the world is
// stopped (Machine::stop_the_world), so lookups need no lock.

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "base/types.h"

namespace anykvm::x86 {

// What the translator knows about one guest page frame; see translate/code_pages.
struct PageMeta {
  std::atomic<u8> has_code{0};  // translated code was made from bytes of this page
  std::atomic<u8> writer{
      0};                    // 0: in nobody's TLB for writing; n: only in vCPU n-1's; 255: perhaps in several
  std::atomic<u8> guard{0};  // how writes of the client are noticed while there is code (mmu/client_writes)
  std::atomic<u8> seen{0};   // the host had the page when its absence was looked for last (mmu/absent_pages)
};

// PageMeta for each page of a slot, all zero at first. Host memory is taken only for what is touched: a slot
// may be large and sparse.
class PageMetas {
 public:
  // Null: the host has no address space for so many.
  static std::shared_ptr<PageMetas> create(u64 pages);
  ~PageMetas();
  PageMetas(const PageMetas&) = delete;
  PageMetas& operator=(const PageMetas&) = delete;

  u64 size() const { return m_size; }
  PageMeta& operator[](u64 page) const { return m_pages[page]; }

 private:
  PageMetas(PageMeta* pages, u64 size) : m_pages(pages), m_size(size) {}

  PageMeta* m_pages;
  u64 m_size;
};

// Hears of pages that become dirty (KVM API 8.29, dirty rings). Any vCPU's thread; it must not block.
class DirtyListener {
 public:
  virtual ~DirtyListener() = default;
  virtual void page_dirtied(u32 slot, u64 page) = 0;
};

// One memory slot (KVM API 4.35). `host` is the client's userspace_addr; RAM is never copied.
struct MemorySlot {
  u32 id = 0;  // slot number as the client gave it: address space in bits 31:16
  Gpa base{};
  u64 size = 0;  // bytes, a multiple of 4096
  u8* host = nullptr;
  bool read_only = false;
  // Bit per page, set when the guest or the CPU's page walker writes; null when logging is off.
  std::shared_ptr<std::vector<std::atomic<u64>>> dirty_bitmap{};
  DirtyListener* dirty_listener = nullptr;  // is told of each bit that goes up
  std::shared_ptr<PageMetas> pages{};

  bool contains(Gpa address) const { return address >= base && address - base < size; }
  PageMeta& meta(Gpa address) const { return (*pages)[(address - base) / kPageSize]; }
  void mark_dirty(Gpa address) const {
    if (!dirty_bitmap) return;
    const u64 page = (address - base) / kPageSize, mask = u64{1} << (page % 64);
    const u64 before = (*dirty_bitmap)[page / 64].fetch_or(mask, std::memory_order_relaxed);
    if (dirty_listener && !(before & mask)) dirty_listener->page_dirtied(id, page);
  }
};

// Memory as CPUs in system-management mode see it is an address space of its own (KVM API 4.35): its slots
// lie at their guest addresses plus this, beyond all physical addresses.
inline constexpr u64 kManagementSpace = u64{1} << 52;

class PhysicalMemory {
 public:
  // The slot that holds `address`, or null: then the address is MMIO (SEEDS X9).
  const MemorySlot* find(Gpa address) const;

  // Where a CPU in system-management mode finds what is at `address`: there itself, if both address spaces
  // have the same memory (or none), so that code and its pages are known by one address.
  Gpa in_management_space(Gpa address) const;

  // Host address of `size` bytes at `address`, or null if they are not all in one slot.
  u8* host(Gpa address, u64 size) const;

  // The slots that begin at `gone` go, then those of `come` are there. Only while the world is stopped.
  void change_slots(std::span<const Gpa> gone, std::vector<MemorySlot> come);
  // Replaces the whole layout. Only while the world is stopped.
  void set_slots(std::vector<MemorySlot> slots);
  const std::vector<MemorySlot>& slots() const { return m_slots; }

 private:
  std::vector<MemorySlot> m_slots;  // sorted by base, without overlap
};

}  // namespace anykvm::x86
