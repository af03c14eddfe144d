#pragma once
// The software TLB that translated code looks into, as three tables: supervisor, user, supervisor with
// EFLAGS.AC set (SMAP lifted), and three more for nested guests. An entry has separate tags for reading and
// writing, so permissions, dirty tracking and pages with translated code cost nothing on a hit. Owner:
// Context of one vCPU. Only the vCPU's thread.
//
//   index = linear[23:12]      hit: linear - tag <= 4096 - size
//   host address = linear - tag + host[index] = linear + delta[index]
//
// Translated code takes `delta` where the operand's registers still give the linear address: one addition
// less on the way to the bytes.
//
// Beside it, for C++ code only: pages lately found to be no memory but the bus's, so that MMIO need not walk.

#include "base/types.h"
#include "base/zeroed_memory.h"
#include "x86/mmu/entry_set.h"

namespace anykvm::x86 {

// A kernel's stacks, per-CPU data, page tables and lists begin at round addresses, so with few entries some
// of them would always drive each other out.
inline constexpr unsigned kTlbEntries = 4096;

enum MmuIndex : u8 {
  kMmuSupervisor = 0,
  kMmuUser = 1,
  kMmuSupervisorAc = 2,
  kMmuNested = 3,  // the same three for the guest of a hypervisor that is a guest
  kMmuNestedUser = kMmuNested + kMmuUser,
  kMmuIndexCount = 6
};

constexpr bool is_user(MmuIndex mmu) { return mmu == kMmuUser || mmu == kMmuNestedUser; }

// A guest polls few devices at a time.
inline constexpr unsigned kBusPages = 8;

// SAFETY: only ever made by `new`, by itself or in a Context, so what no initializer names is zero.
struct TlbTable : InZeroedMemory {
  u64 read_tag[kTlbEntries];
  u64 write_tag[kTlbEntries];
  u64 host[kTlbEntries];         // host address of the page
  u64 delta[kTlbEntries];        // host address - linear address
  EntrySet<kTlbEntries> global;  // filled, and kept by MOV to CR3 (SDM 3A 4.10.2.4)
  EntrySet<kTlbEntries> local;   // the others that are filled

  struct BusPage {
    u64 read_tag, write_tag;  // linear page + 1, if there is one for this kind of access
    Gpa page;
  };
  BusPage bus[kBusPages];
  bool has_bus_pages;

  TlbTable() { forget(0); }

  static constexpr unsigned index_of(Gva address) { return (address.value >> 12) % kTlbEntries; }
  // A page that can never be looked up at this index, so its tag never matches. So zeros are forgotten
  // entries but for one.
  static constexpr u64 never(unsigned index) { return index == 0 ? kPageSize : 0; }

  void fill(Gva address, u8* host_page, bool write, bool is_global) {
    const unsigned index = index_of(address);
    const u64 page = address.page().value;
    const bool same = read_tag[index] == page && host[index] == reinterpret_cast<u64>(host_page);
    read_tag[index] = page;
    host[index] = reinterpret_cast<u64>(host_page);
    delta[index] = host[index] - page;
    if (write) {
      write_tag[index] = page;
    } else if (!same) {
      write_tag[index] = never(index);
    }
    (is_global ? global : local).add(index);
    (is_global ? local : global).remove(index);
  }
  // Host address of `size` bytes within the page; null: not here.
  u8* find(Gva address, unsigned size, bool write) const {
    const unsigned index = index_of(address);
    const u64 offset = address.value - (write ? write_tag : read_tag)[index];
    return offset <= kPageSize - size ? reinterpret_cast<u8*>(host[index] + offset) : nullptr;
  }

  void fill_bus(Gva address, Gpa gpa, bool write) {
    BusPage& entry = bus_entry(address);
    const u64 tag = address.page().value + 1;
    const bool same = (entry.read_tag == tag || entry.write_tag == tag) && entry.page == gpa.page();
    if (!same) entry = {0, 0, gpa.page()};
    (write ? entry.write_tag : entry.read_tag) = tag;
    has_bus_pages = true;
  }
  // The physical page, if an access of this kind goes to the bus.
  const Gpa* find_bus(Gva address, bool write) const {
    const BusPage& entry = bus[bus_index(address)];
    return (write ? entry.write_tag : entry.read_tag) == address.page().value + 1 ? &entry.page : nullptr;
  }

  // The longest run of linear pages around `page`, whose entry is there, that one difference between host and
  // linear addresses serves: at most kExtentReach pages further on each side.
  static constexpr u64 kExtentReach = 512;
  struct Extent {
    u64 first, bytes;  // linear
  };
  Extent extent_around(Gva page, bool write) const;

  void flush();
  void flush_non_global();
  void flush_page(Gva address);
  // Forbids writes through every entry that maps `host_page`.
  void forbid_writes(const u8* host_page);

 private:
  static constexpr unsigned bus_index(Gva address) { return (address.value >> 12) % kBusPages; }
  BusPage& bus_entry(Gva address) { return bus[bus_index(address)]; }
  void forget_bus_pages();
  void forget(unsigned index) { read_tag[index] = write_tag[index] = never(index); }
};

}  // namespace anykvm::x86
