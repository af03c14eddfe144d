#include "core/guest_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "base/raw_syscall.h"
#include "core/vm.h"

namespace anykvm::core {
namespace {

bool whole_pages(u64 value) { return value % kPageSize == 0; }

// A second descriptor of the file that can do nothing but fallocate(2): reading needs another mode, and
// writing at the end would make a sealed file longer.
Fd powerless_descriptor(const Fd& file) {
  const std::string path = fmt::format("/proc/self/fd/{}", file.get());
  return Fd(open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
}

}  // namespace

GuestMemory::GuestMemory(std::weak_ptr<Vm> vm, u64 size, u8* data, Fd client_fd)
    : m_vm(std::move(vm)), m_size(size), m_data(data), m_client_fd(std::move(client_fd)) {}

GuestMemory::~GuestMemory() { munmap(m_data, m_size); }

Result<std::shared_ptr<GuestMemory>> GuestMemory::create(std::weak_ptr<Vm> vm, u64 size) {
  if (size == 0 || !whole_pages(size) || size >> 63) return Error{EINVAL, "not a number of whole pages"};
  Fd file(memfd_create("anykvm-guest", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid()) return Error{errno, "no memfd for guest memory"};
  if (ftruncate(file.get(), static_cast<off_t>(size)) != 0 ||
      fcntl(file.get(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0)
    return Error{errno, "cannot size and seal the memfd"};
  Fd client_fd = powerless_descriptor(file);
  if (!client_fd.valid()) return Error{errno, "cannot open the memfd again"};
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file.get(), 0);
  if (data == MAP_FAILED) return Error{ENOMEM, "no address space for guest memory"};
  return std::shared_ptr<GuestMemory>(
      new GuestMemory(std::move(vm), size, static_cast<u8*>(data), std::move(client_fd)));
}

Result<> GuestMemory::allocate(int fd, int mode, i64 offset, i64 length) {
  if (offset < 0 || length <= 0) return Error{EINVAL, "no such range"};
  if (!(mode & FALLOC_FL_KEEP_SIZE) || (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)))
    return Error{EOPNOTSUPP, "guest memory has a fixed size"};
  if (!whole_pages(static_cast<u64>(offset)) || !whole_pages(static_cast<u64>(length)))
    return Error{EINVAL, "not whole pages"};
  const bool punches = mode & FALLOC_FL_PUNCH_HOLE;
  if (!punches && static_cast<u64>(offset) + static_cast<u64>(length) > m_size)
    return Error{EINVAL, "beyond the end"};
  // Not by the C library, whose functions may be interposed to come here.
  const long result = raw_syscall(SYS_fallocate, fd, mode, offset, length);
  if (result != 0) return Error{static_cast<int>(-result), "fallocate failed"};
  // What was translated from there is no more.
  if (auto vm = punches ? m_vm.lock() : nullptr) vm->machine().discard_code();
  return {};
}

void PrivateRanges::set(u64 first, u64 end, bool is_private) {
  // What overlaps or touches is taken out and put back as it is to be.
  auto range = m_ranges.upper_bound(first);
  if (range != m_ranges.begin() && std::prev(range)->second >= first) --range;
  u64 low = first, high = end;
  while (range != m_ranges.end() && range->first <= end) {
    low = std::min(low, range->first);
    high = std::max(high, range->second);
    range = m_ranges.erase(range);
  }
  if (is_private) {
    m_ranges[low] = high;
    return;
  }
  if (low < first) m_ranges[low] = first;
  if (end < high) m_ranges[end] = high;
}

bool PrivateRanges::contains(u64 address) const {
  auto range = m_ranges.upper_bound(address);
  return range != m_ranges.begin() && address < std::prev(range)->second;
}

std::vector<PrivateRanges::Piece> PrivateRanges::cut(u64 first, u64 end) const {
  std::vector<Piece> pieces;
  auto range = m_ranges.upper_bound(first);
  if (range != m_ranges.begin() && std::prev(range)->second > first) --range;
  for (; range != m_ranges.end() && range->first < end; ++range) {
    if (first < range->first) pieces.push_back({first, range->first, false});
    first = std::max(first, range->first);
    const u64 stop = std::min(end, range->second);
    pieces.push_back({first, stop, true});
    first = stop;
  }
  if (first < end) pieces.push_back({first, end, false});
  return pieces;
}

}  // namespace anykvm::core
