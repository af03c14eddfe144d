#include "program/virtualization.h"

#include <cpuid.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <optional>

#include "program/detour.h"
#include "program/functions.h"

namespace anykvm::program {
namespace {

constexpr ExtraFeature kVmx{1, 5};           // SDM 3C 24.6
constexpr ExtraFeature kSvm{0x80000001, 2};  // APM 2 15.4

// What the CPU's vendor calls it, unless the CPU says it already.
std::optional<ExtraFeature> missing_feature() {
  u32 eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx)) return std::nullopt;
  const ExtraFeature feature = ebx == signature_INTEL_ebx ? kVmx : kSvm;
  if (!__get_cpuid(feature.leaf, &eax, &ebx, &ecx, &edx)) return std::nullopt;
  if (ecx >> feature.bit & 1) return std::nullopt;
  return feature;
}

// Room for the detours, as near to the program as memory is free.
class Room {
 public:
  Room(const u8* near, std::size_t bytes) : m_bytes(bytes) {
    constexpr uintptr_t kStep = 1 << 20, kReach = uintptr_t{1} << 30, kLowest = 1 << 20;
    const uintptr_t middle = reinterpret_cast<uintptr_t>(near) & ~(kStep - 1);
    for (uintptr_t distance = kStep; distance < kReach && !m_at; distance += kStep) {
      if (middle > distance + kLowest) try_at(middle - distance);
      if (!m_at) try_at(middle + distance);
    }
  }
  u8* at() const { return m_at; }
  void give_back() const { munmap(m_at, m_bytes); }
  bool seal() const { return mprotect(m_at, m_bytes, PROT_READ | PROT_EXEC) == 0; }

 private:
  void try_at(uintptr_t address) {
    void* got = mmap(reinterpret_cast<void*>(address), m_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != MAP_FAILED) m_at = static_cast<u8*>(got);
  }
  std::size_t m_bytes;
  u8* m_at = nullptr;
};

// Bytes that may be a CPUID, or parts of something else.
std::vector<const u8*> candidates(const std::vector<Range>& code) {
  constexpr u8 kCpuid[] = {0x0f, 0xa2};
  std::vector<const u8*> found;
  for (const Range& range : code) {
    const u8* at = range.begin;
    while (const void* next = memmem(at, static_cast<std::size_t>(range.end - at), kCpuid, sizeof kCpuid)) {
      found.push_back(static_cast<const u8*>(next));
      at = found.back() + 1;
    }
  }
  return found;
}

bool write_code(const u8* to, const std::vector<u8>& bytes) {
  const auto page = static_cast<uintptr_t>(getpagesize());
  const auto first = reinterpret_cast<uintptr_t>(to) & ~(page - 1);
  const auto size = reinterpret_cast<uintptr_t>(to) + bytes.size() - first;
  if (mprotect(reinterpret_cast<void*>(first), size, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) return false;
  memcpy(const_cast<u8*>(to), bytes.data(), bytes.size());
  return mprotect(reinterpret_cast<void*>(first), size, PROT_READ | PROT_EXEC) == 0;
}

}  // namespace

void show_virtualization(const Image& image) {
  const auto feature = missing_feature();
  if (!feature) return;
  const auto found = candidates(image.code);
  if (found.empty()) return;
  const Room room(found.front(), found.size() * kMaxDetourBytes);
  if (!room.at()) return;
  const Functions functions(image.unwind_table);
  std::vector<std::pair<Detour, const u8*>> detours;
  u8* place = room.at();
  for (const u8* cpuid : found) {
    const auto function = functions.around(cpuid);
    auto detour = function ? make_detour(*function, cpuid, place, *feature) : std::nullopt;
    if (!detour) continue;
    memcpy(place, detour->code.data(), detour->code.size());
    detours.emplace_back(std::move(*detour), place);
    place += kMaxDetourBytes;
  }
  if (detours.empty()) return room.give_back();
  if (!room.seal()) return;
  for (const auto& [detour, at] : detours)
    if (!write_code(detour.from, way_into(detour, at))) return;
}

}  // namespace anykvm::program
