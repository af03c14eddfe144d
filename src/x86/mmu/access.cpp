#include "x86/mmu/access.h"

#include <algorithm>
#include <cstring>

#include "base/guarded_memory.h"
#include "x86/machine.h"
#include "x86/mmu/nested_paging.h"
#include "x86/mmu/resolve.h"
#include "x86/translate/context.h"
#include "x86/translate/mode.h"

namespace anykvm::x86 {

namespace {

// An access cut at the page boundary; accesses are at most a page long, so there are at most two parts.
struct Part {
  PageAccess page{};
  unsigned offset = 0;  // of this part within the data
  unsigned size = 0;    // 0: there is no such part
};
struct Parts {
  Part first{}, second{};
};

// Host address of the bytes if the TLB knows that the access is permitted: RAM within one page, and for a
// write also that it is dirty and holds no code. Null: resolve() finds out.
u8* find_in_tlb(Cpu& cpu, Gva address, unsigned size, Access access, Privilege privilege) {
  return cpu.context().tlb[mmu_of(cpu.state(), privilege)].find(address, size, access == Access::kWrite);
}

// The address behind the end of the first page. Outside 64-bit mode linear addresses wrap at 4 GiB (SDM
// 3A 3.3.1); in compatibility mode too, unless the access is one of the CPU's own to a table that lies above.
Gva following_page(const CpuState& state, Gva address) {
  u64 next = address.page().value + kPageSize;
  bool wraps = !state.code64() && address.value <= low_bits(32);
  return Gva(wraps ? next & low_bits(32) : next);
}

Guest<Parts> resolve_parts(Cpu& cpu, Gva address, unsigned size, Access access, Privilege privilege) {
  Parts parts;
  auto room = static_cast<unsigned>(kPageSize - address.page_offset());
  parts.first = {TRY(resolve(cpu, address, access, privilege)), 0, std::min(size, room)};
  if (size <= room) return parts;
  Gva next = following_page(cpu.state(), address);
  parts.second = {TRY(resolve(cpu, next, access, privilege)), room, size - room};
  return parts;
}

constexpr unsigned kBusWidth = 8;

Guest<void> bus_read(Cpu& cpu, const Part& part, u8* data) {
  for (unsigned done = 0; done < part.size; done += kBusWidth) {
    unsigned piece = std::min(kBusWidth, part.size - done);
    TRY(cpu.mmio_read(part.page.gpa + done, data + part.offset + done, piece));
  }
  return {};
}

Guest<void> bus_write(Cpu& cpu, const Part& part, const u8* data) {
  for (unsigned done = 0; done < part.size; done += kBusWidth) {
    unsigned piece = std::min(kBusWidth, part.size - done);
    TRY(cpu.mmio_write(part.page.gpa + done, data + part.offset + done, piece));
  }
  return {};
}

Guest<void> read_part(Cpu& cpu, const Part& part, u8* data) {
  if (!part.page.host) return bus_read(cpu, part, data);
  if (!guarded_copy(data + part.offset, part.page.host, part.size)) return GuestStop::unmapped();
  return {};
}

Guest<void> write_ram(Cpu& cpu, const Part& part, const u8* data) {
  if (!part.size || !part.page.host) return {};
  prepare_write(cpu, part.page, part.size);
  if (!guarded_copy(part.page.host, data + part.offset, part.size)) return GuestStop::unmapped();
  return {};
}

}  // namespace

Guest<void> read_linear(Cpu& cpu, Gva address, void* data, unsigned size, Privilege privilege) {
  if (const u8* host = find_in_tlb(cpu, address, size, Access::kRead, privilege)) {
    if (!guarded_copy(data, host, size)) return GuestStop::unmapped();
    return {};
  }
  if (cpu.watching() && privilege == Privilege::kCurrent) cpu.watch_data(address, size, false);
  Parts parts = TRY(resolve_parts(cpu, address, size, Access::kRead, privilege));
  auto* bytes = static_cast<u8*>(data);
  TRY(read_part(cpu, parts.first, bytes));
  if (parts.second.size) TRY(read_part(cpu, parts.second, bytes));
  return {};
}

Guest<void> write_linear(Cpu& cpu, Gva address, const void* data, unsigned size, Privilege privilege) {
  if (u8* host = find_in_tlb(cpu, address, size, Access::kWrite, privilege)) {
    if (!guarded_copy(host, data, size)) return GuestStop::unmapped();
    return {};
  }
  if (cpu.watching() && privilege == Privilege::kCurrent) cpu.watch_data(address, size, true);
  Parts parts = TRY(resolve_parts(cpu, address, size, Access::kWrite, privilege));
  auto* bytes = static_cast<const u8*>(data);
  // The bus first: it may stop for the client, and the instruction that runs again must find RAM as it was.
  if (!parts.first.page.host) TRY(bus_write(cpu, parts.first, bytes));
  if (parts.second.size && !parts.second.page.host) TRY(bus_write(cpu, parts.second, bytes));
  TRY(write_ram(cpu, parts.first, bytes));
  return write_ram(cpu, parts.second, bytes);
}

Guest<void> probe_write(Cpu& cpu, Gva address, unsigned size, Privilege privilege) {
  TRY(resolve_parts(cpu, address, size, Access::kWrite, privilege));
  return {};
}

Guest<u8*> host_pointer(Cpu& cpu, Gva address, unsigned size, Access access, Privilege privilege) {
  if (u8* host = find_in_tlb(cpu, address, size, access, privilege)) return host;
  // Bulk copies go piece by piece near a breakpoint, so that the trap comes after the right piece.
  bool bulk = size > 8;
  if (cpu.watches_data_near(address) && bulk) return static_cast<u8*>(nullptr);
  if (cpu.watching() && privilege == Privilege::kCurrent)
    cpu.watch_data(address, size, access == Access::kWrite);
  Parts parts = TRY(resolve_parts(cpu, address, size, access, privilege));
  const PageAccess& page = parts.first.page;
  if (parts.second.size || !page.host) return static_cast<u8*>(nullptr);
  if (access == Access::kWrite) {
    prepare_write(cpu, page, size);
    remember_write(cpu, address, page, privilege);
  }
  return page.host;
}

Guest<bool> replace_across_pages(Cpu& cpu, Gva address, const void* before, const void* after,
                                 unsigned size) {
  Parts parts = TRY(resolve_parts(cpu, address, size, Access::kWrite, Privilege::kCurrent));
  if (!parts.second.size || !parts.first.page.host || !parts.second.page.host) {
    TRY(write_linear(cpu, address, after, size));
    return true;
  }
  if (cpu.watching()) cpu.watch_data(address, size, true);
  bool same = false;
  Guest<void> done;
  cpu.with_others_stopped([&] {
    u64 now = 0;
    auto* bytes = reinterpret_cast<u8*>(&now);
    done = read_part(cpu, parts.first, bytes);
    if (done.ok()) done = read_part(cpu, parts.second, bytes);
    same = done.ok() && std::memcmp(bytes, before, size) == 0;
    if (same) done = write_ram(cpu, parts.first, static_cast<const u8*>(after));
    if (same && done.ok()) done = write_ram(cpu, parts.second, static_cast<const u8*>(after));
  });
  TRY(done);
  return same;
}

bool read_code_byte(Cpu& cpu, unsigned offset, u8* byte) {
  const CpuState& state = cpu.state();
  const u64 rip = state.rip + offset;
  const Gva address(state.code64() ? rip : (state.segments[kCs].base + rip) & low_bits(32));
  const auto page = resolve(cpu, address, Access::kFetch, Privilege::kCurrent);
  if (!page.ok() || !page.value().host) return false;
  return guarded_copy(byte, page.value().host, 1);
}

bool read_physical(Cpu& cpu, Gpa address, void* data, unsigned size) {
  const u8* host = cpu.machine().memory().host(address, size);
  if (!host) return false;
  return guarded_copy(data, host, size);
}

bool read_guest_physical(Cpu& cpu, Gpa address, void* data, unsigned size) {
  const CpuState& state = cpu.state();
  if (!state.svm.nested_paging()) return read_physical(cpu, address, data, size);
  for (unsigned done = 0; done < size;) {
    const Gpa at = address + done;
    const auto part = static_cast<unsigned>(std::min<u64>(size - done, at.page() + kPageSize - at));
    const auto found = translate_nested(state, cpu.machine().memory(), at, Access::kRead, Stage::kFinal,
                                        cpu.model().physical_address_bits());
    if (!found.ok() || !read_physical(cpu, found.value().gpa, static_cast<u8*>(data) + done, part))
      return false;
    done += part;
  }
  return true;
}

bool write_physical(Cpu& cpu, Gpa address, const void* data, unsigned size) {
  const PhysicalMemory& memory = cpu.machine().memory();
  u8* host = memory.host(address, size);
  const MemorySlot* slot = memory.find(address);
  if (!host || slot->read_only) return false;
  for (Gpa page = address.page(); page < address + size; page += kPageSize) {
    Gpa first = std::max(page, address);
    Gpa end = std::min(page + kPageSize, address + size);
    prepare_write(cpu, {first, host, slot}, static_cast<unsigned>(end - first));
  }
  return guarded_copy(host, data, size);
}

}  // namespace anykvm::x86
