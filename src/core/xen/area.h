#pragma once
// A structure of Xen's that the client has placed in guest memory, by guest or by host address.
// Owner: Domain or Vcpu of core/xen, under the domain's mutex. Accesses are guarded: the client may unmap the
// memory. The layout of guest memory must not change meanwhile (see Domain).

#include <optional>

#include "base/bits.h"
#include "base/guarded_memory.h"
#include "x86/mmu/physical_memory.h"

namespace anykvm::core::xen {

class Area {
 public:
  void clear() { m_gpa.reset(), m_host = nullptr; }
  void set_gpa(Gpa gpa) { m_gpa = gpa, m_host = nullptr; }
  void set_host(u64 address) { m_gpa.reset(), m_host = reinterpret_cast<u8*>(address); }
  bool active() const { return m_gpa || m_host; }
  // What the client set, or ~0 and 0.
  u64 gpa() const { return m_gpa ? m_gpa->value : ~u64{0}; }
  u64 host() const { return reinterpret_cast<u64>(m_host); }

  // Null: not (all) in one memory slot.
  u8* at(const x86::PhysicalMemory& memory, u32 offset, u32 size) const {
    return m_gpa ? memory.host(*m_gpa + offset, size) : m_host ? m_host + offset : nullptr;
  }
  bool load(const x86::PhysicalMemory& memory, u32 offset, void* data, u32 size) const {
    const u8* from = at(memory, offset, size);
    return from && guarded_copy(data, from, size);
  }
  bool store(const x86::PhysicalMemory& memory, u32 offset, const void* data, u32 size) const {
    u8* to = at(memory, offset, size);
    if (!to || !guarded_copy(to, data, size)) return false;
    if (m_gpa) mark_dirty(memory, *m_gpa + offset, size);
    return true;
  }
  // Sets a bit of a bitmap that begins at `offset`, as other CPUs see it at once. Was it set before?
  std::optional<bool> set_bit(const x86::PhysicalMemory& memory, u32 offset, unsigned number) const {
    const u32 word = offset + number / 32 * 4;
    u8* to = at(memory, word, sizeof(u32));
    const u64 mask = bit(number % 32);
    const auto before =
        to ? guarded_update(to, sizeof(u32), [mask](u64 value) { return value | mask; }) : std::nullopt;
    if (!before) return std::nullopt;
    if (m_gpa) mark_dirty(memory, *m_gpa + word, sizeof(u32));
    return (*before & mask) != 0;
  }
  std::optional<bool> test_bit(const x86::PhysicalMemory& memory, u32 offset, unsigned number) const {
    u32 word = 0;
    if (!load(memory, offset + number / 32 * 4, &word, sizeof word)) return std::nullopt;
    return has_bit(word, number % 32);
  }

 private:
  static void mark_dirty(const x86::PhysicalMemory& memory, Gpa first, u32 size) {
    for (Gpa page = first.page(); page < first + size; page += kPageSize)
      if (const x86::MemorySlot* slot = memory.find(page)) slot->mark_dirty(page);
  }

  std::optional<Gpa> m_gpa;
  u8* m_host = nullptr;
};

}  // namespace anykvm::core::xen
