#include "x86/mmu/tlb.h"

namespace anykvm::x86 {

TlbTable::Extent TlbTable::extent_around(Gva address, bool write) const {
  const u64* tags = write ? write_tag : read_tag;
  const u64 page = address.page().value, wanted = delta[index_of(address)];
  auto serves = [&](u64 neighbour) {
    const unsigned index = index_of(Gva(neighbour));
    return tags[index] == neighbour && delta[index] == wanted;
  };
  // Outside 64-bit mode addresses wrap at 4 GiB, so no run goes across.
  constexpr u64 kReach = kExtentReach * kPageSize;
  const u64 region = page & ~low_bits(32), region_end = region + low_bits(32);
  const u64 lowest = page - region > kReach ? page - kReach : region;
  const u64 highest = region_end - page > kReach ? page + kReach : Gva(region_end).page().value;
  u64 first = page, last = page;
  while (first > lowest && serves(first - kPageSize)) first -= kPageSize;
  while (last < highest && serves(last + kPageSize)) last += kPageSize;
  return {first, last - first + kPageSize};
}

void TlbTable::flush() {
  flush_non_global();
  global.take_all([this](unsigned i) { forget(i); });
}

void TlbTable::flush_non_global() {
  local.take_all([this](unsigned i) { forget(i); });
  forget_bus_pages();
}

void TlbTable::forget_bus_pages() {
  if (!has_bus_pages) return;
  for (BusPage& entry : bus) entry = {};
  has_bus_pages = false;
}

void TlbTable::flush_page(Gva address) {
  forget(index_of(address));
  bus_entry(address) = {};
}

void TlbTable::forbid_writes(const u8* host_page) {
  u64 wanted = reinterpret_cast<u64>(host_page);
  const auto forbid = [&](unsigned i) {
    if (host[i] == wanted) write_tag[i] = never(i);
  };
  global.for_each(forbid);
  local.for_each(forbid);
}

}  // namespace anykvm::x86
