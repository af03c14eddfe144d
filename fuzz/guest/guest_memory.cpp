#include "guest_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace anykvm::fuzz {
namespace {

constexpr u64 kReserved = 64u << 20, kGuardSize = 256u << 10;
constexpr u8 kPattern = 0xa5;

u64 sum_of(const u8* bytes, u64 size) {
  u64 sum = 0;
  for (u64 at = 0; at < size; at += 8) {
    u64 word;
    std::memcpy(&word, bytes + at, sizeof word);
    sum = (sum ^ word) * 0x100000001b3;
  }
  return sum;
}

}  // namespace

GuestMemory::GuestMemory() {
  void* all = mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) {
    std::perror("guest memory");
    std::abort();
  }
  m_all = static_cast<u8*>(all);
  m_used = kGuardSize;
  add_slot(0, 1u << 20, false, false);
  add_slot(0x100000, 1u << 20, false, true);
  add_slot(0x300000, 64u << 10, true, false);  // behind a hole
  add_slot(0xfffff000, 0x1000, false, false);  // where CPUs start
  add_slot(u64{1} << 32, 256u << 10, false, false);
}

GuestMemory::~GuestMemory() { munmap(m_all, kReserved); }

void GuestMemory::add_slot(u64 base, u64 size, bool read_only, bool logged) {
  u8* host = m_all + m_used;
  mprotect(host, size + kGuardSize, PROT_READ | PROT_WRITE);
  std::memset(host + size, kPattern, kGuardSize);
  m_patterns.push_back({host + size, kGuardSize});
  m_slots.push_back({static_cast<u32>(m_slots.size()), base, size, host, read_only, logged});
  m_used += size + 2 * kGuardSize;  // inaccessible behind the pattern, and so before the next slot
}

void GuestMemory::fill(Random& random) {
  for (const Slot& slot : m_slots) {
    // Some of each page: most guests see little of their memory.
    u64 step = slot.size > 0x10000 ? 0x1000 : 0x400;
    for (u64 at = 0; at < slot.size; at += step) {
      for (unsigned i = 0; i < 32; ++i) {
        u64 word = random.next();
        std::memcpy(slot.host + at + 8 * i, &word, sizeof word);
      }
    }
    if (slot.read_only) m_read_only_sum = sum_of(slot.host, slot.size);
  }
}

std::string GuestMemory::damage() const {
  std::string text;
  for (const Guard& guard : m_patterns) {
    for (u64 at = 0; at < guard.size; ++at) {
      if (guard.host[at] == kPattern) continue;
      text += fmt::format("byte {} behind a slot was overwritten by {:#x}\n", at, guard.host[at]);
      break;
    }
  }
  for (const Slot& slot : m_slots) {
    if (slot.read_only && sum_of(slot.host, slot.size) != m_read_only_sum)
      text += fmt::format("the read-only slot at {:#x} has changed\n", slot.base);
  }
  return text;
}

}  // namespace anykvm::fuzz
