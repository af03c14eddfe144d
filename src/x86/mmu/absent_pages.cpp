#include "x86/mmu/absent_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>
#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "base/bits.h"
#include "base/trace.h"
#include "x86/mmu/client_writes.h"

namespace anykvm::x86 {
namespace {

// Host TSC: some tens of milliseconds.
constexpr u64 kInterval = u64{1} << 27;
// So many pages are asked about at once.
constexpr u64 kAround = 512;

// /proc/PID/pagemap
constexpr u64 kPresent = bit(63), kSwapped = bit(62);

u64 major_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<u64>(usage.ru_majflt);
}

bool host_has_swapped() {
  struct sysinfo info {};
  return sysinfo(&info) == 0 && info.freeswap != info.totalswap;
}

struct Mapping {
  u64 begin = 0, end = 0, inode = 0;
  std::string path;
};

std::vector<Mapping> mappings() {
  std::vector<Mapping> found;
  FILE* maps = fopen("/proc/self/maps", "re");
  if (!maps) return found;
  char* line = nullptr;
  std::size_t room = 0;
  while (getline(&line, &room, maps) > 0) {
    unsigned long long begin = 0, end = 0, inode = 0;
    int path = 0;
    if (sscanf(line, "%llx-%llx %*s %*s %*s %llu %n", &begin, &end, &inode, &path) != 3) continue;
    std::string name(path ? line + path : "");
    while (!name.empty() && name.back() == '\n') name.pop_back();
    found.push_back({begin, end, inode, std::move(name)});
  }
  free(line);
  fclose(maps);
  return found;
}

// Pages of memory's own file systems come at once when they are touched for the first time.
bool is_on_storage(const Mapping& mapping) {
  if (!mapping.inode) return false;
  for (const char* memory : {"/memfd:", "/dev/zero", "/SYSV", "/anon_hugepage", "/dev/shm/"})
    if (mapping.path.starts_with(memory)) return false;
  // The file itself may be gone by now.
  const std::size_t name = mapping.path.rfind('/');
  if (name == std::string::npos) return false;
  struct statfs where {};
  if (statfs(mapping.path.substr(0, name + 1).c_str(), &where) != 0) return true;
  return where.f_type != TMPFS_MAGIC && where.f_type != HUGETLBFS_MAGIC && where.f_type != RAMFS_MAGIC;
}

Fd open_probe() {
  Fd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd.valid())
    fd = Fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  uffdio_api api{};
  api.api = UFFD_API;
  if (fd.valid() && ioctl(fd.get(), UFFDIO_API, &api) != 0) fd.reset();
  return out_of_the_way(std::move(fd));
}

}  // namespace

// --- What memory may be absent ---

bool AbsentPages::is_time_to_look() {
  const u64 now = __rdtsc();
  if (!m_stale.load() && now < m_next_look.load(std::memory_order_relaxed)) return false;
  m_next_look.store(now + kInterval, std::memory_order_relaxed);
  return true;
}

u8 AbsentPages::look(const PhysicalMemory& memory) {
  if (!is_time_to_look()) [[likely]]
    return m_epoch.load();
  std::unique_lock lock(m_mutex, std::try_to_lock);
  if (!lock) return m_epoch.load();
  const u64 faults = major_faults();
  if (!m_stale.exchange(false) && faults == m_major_faults) return m_epoch.load();
  m_major_faults = faults;
  m_swapping = host_has_swapped();
  find_ranges(memory);
  const u8 next = static_cast<u8>(m_epoch.load() % 255 + 1);
  m_epoch = m_swapping || !m_ranges.empty() ? next : u8{0};
  ANYKVM_TRACE(memory, "{} ranges may be absent{}", m_ranges.size(),
               m_swapping ? ", and what is swapped out" : "");
  return m_epoch.load();
}

// A page that is registered with some userfaultfd can be filled by way of any; from an address without
// memory, the kernel says which it is and changes nothing.
bool AbsentPages::has_foreign_userfaultfd(u64 page) const {
  if (!m_probe.valid()) return false;
  uffdio_copy copy{};
  copy.dst = page;
  copy.src = 0;
  copy.len = kPageSize;
  return ioctl(m_probe.get(), UFFDIO_COPY, &copy) != 0 && (errno == EFAULT || errno == EEXIST);
}

// m_mutex.
void AbsentPages::find_ranges(const PhysicalMemory& memory) {
  m_ranges.clear();
  const std::vector<Mapping> all = mappings();
  if (!m_probe.valid()) m_probe = open_probe();
  for (const MemorySlot& slot : memory.slots()) {
    const u64 begin = reinterpret_cast<u64>(slot.host), end = begin + slot.size;
    const bool ours = m_client_writes.watches(slot.base);
    auto mapping = std::ranges::lower_bound(all, begin + 1, {}, &Mapping::end);
    for (; mapping != all.end() && mapping->begin < end; ++mapping) {
      const Range part{std::max(begin, mapping->begin), std::min(end, mapping->end), is_on_storage(*mapping)};
      if (part.file || (!ours && has_foreign_userfaultfd(part.begin))) m_ranges.push_back(part);
    }
  }
  std::ranges::sort(m_ranges, {}, &Range::begin);
}

const AbsentPages::Range* AbsentPages::range_of(u64 page) const {
  auto after = std::ranges::upper_bound(m_ranges, page, {}, &Range::begin);
  if (after == m_ranges.begin()) return nullptr;
  const Range& range = *std::prev(after);
  return page < range.end ? &range : nullptr;
}

// --- Pages ---

bool AbsentPages::is_absent(const MemorySlot& slot, Gpa address, u8 epoch) {
  std::lock_guard lock(m_mutex);
  if (!m_pagemap.valid()) m_pagemap = out_of_the_way(Fd(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)));
  const u64 wanted = (address - slot.base) / kPageSize, first = wanted - wanted % kAround;
  const u64 count = std::min(kAround, slot.size / kPageSize - first);
  u8* const host = slot.host + first * kPageSize;
  std::array<u64, kAround> pages{};
  std::array<unsigned char, kAround> cached{};
  const auto bytes = static_cast<ssize_t>(count * sizeof(u64));
  const auto offset = static_cast<off_t>(reinterpret_cast<u64>(host) / kPageSize * sizeof(u64));
  const bool known = pread(m_pagemap.get(), pages.data(), static_cast<std::size_t>(bytes), offset) == bytes;
  const bool knows_cached = mincore(host, count * kPageSize, cached.data()) == 0;
  auto absent = [&](u64 i) {
    if (!known || (pages[i] & kPresent)) return false;
    if (pages[i] & kSwapped) return m_swapping;
    const Range* range = range_of(reinterpret_cast<u64>(host) + i * kPageSize);
    return range && !(range->file && (!knows_cached || (cached[i] & 1)));
  };
  for (u64 i = 0; i < count; ++i)
    if (!absent(i)) (*slot.pages)[first + i].seen.store(epoch, std::memory_order_relaxed);
  return absent(wanted - first);
}

}  // namespace anykvm::x86
