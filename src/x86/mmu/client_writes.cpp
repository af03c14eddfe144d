#include "x86/mmu/client_writes.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "base/bits.h"
#include "base/counters.h"
#include "base/guarded_memory.h"
#include "base/helper_thread.h"
#include "base/trace.h"
#include "x86/translate/code_cache.h"

namespace anykvm::x86 {
namespace {

// PageMeta::guard.
constexpr u8 kProtected = 1;  // the watching thread hears of the next write
constexpr u8 kCompared = 2;   // in m_compared

// So few pages are compared at once: a moment then costs less than finding the way into pages anew.
constexpr std::size_t kFewPages = 8;

// /proc/PID/pagemap: bit 61 of a page's word.
constexpr u64 kPageIsFileOrShared = bit(61);

using Level = ClientWrites::Level;

Level best_level_wanted() {
  const char* setting = secure_getenv("ANYKVM_CLIENT_WRITES");
  return std::string_view(setting ? setting : "") == "verify" ? Level::kVerify : Level::kWatch;
}

Fd open_userfaultfd(u64 features) {
  Fd fd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (fd.valid() && ioctl(fd.get(), UFFDIO_API, &api) != 0) fd.reset();
  return out_of_the_way(std::move(fd));
}

const char* name_of(Level level) { return level == Level::kWatch ? "watched" : "verified"; }

}  // namespace

std::unique_ptr<ClientWrites> ClientWrites::create(CodeCache& code) {
  std::unique_ptr<ClientWrites> writes(new ClientWrites(code));
  if (best_level_wanted() == Level::kWatch) writes->start_watching();
  ANYKVM_TRACE(memory, "client's writes to code are {}", name_of(writes->level()));
  return writes;
}

Level ClientWrites::level() const { return m_watch_fd.valid() ? Level::kWatch : Level::kVerify; }

// Faults of the kernel's own accesses (read(2) into guest memory) must reach us too, so it takes the right to
// handle those: without it such calls of the client would fail.
void ClientWrites::start_watching() {
  Fd fault_fd =
      open_userfaultfd(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                       UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_REMAP);
  m_pagemap = out_of_the_way(Fd(open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)));
  m_stop_fd = out_of_the_way(Fd(eventfd(0, EFD_CLOEXEC)));
  if (!fault_fd.valid() || !m_stop_fd.valid()) return;
  m_watch_fd = std::move(fault_fd);
  m_thread = start_helper_thread("anykvm-writes", [this] { watch_thread(); });
}

// Memory is given back while the thread still answers: a forked child may hold a copy of the descriptor, so
// closing ours need not wake those who wait.
ClientWrites::~ClientWrites() {
  for (const auto& [base, range] : m_ranges) unregister_range(range.host, range.size);
  if (!m_thread.joinable()) return;
  eventfd_write(m_stop_fd.get(), 1);
  m_thread.join();
}

// --- Ranges ---

bool ClientWrites::register_range(u8* host, u64 size) {
  if (!m_watch_fd.valid()) return false;
  uffdio_register request{};
  request.range = {reinterpret_cast<u64>(host), size};
  request.mode = UFFDIO_REGISTER_MODE_WP;
  return ioctl(m_watch_fd.get(), UFFDIO_REGISTER, &request) == 0 &&
         (request.ioctls & (u64{1} << _UFFDIO_WRITEPROTECT));
}

// Wakes whoever waits there, and lifts the protection.
void ClientWrites::unregister_range(u8* host, u64 size) {
  uffdio_range range{reinterpret_cast<u64>(host), size};
  if (m_watch_fd.valid()) ioctl(m_watch_fd.get(), UFFDIO_UNREGISTER, &range);
}

bool ClientWrites::watches(Gpa base) {
  std::lock_guard lock(m_mutex);
  auto range = m_ranges.find(base.value);
  return range != m_ranges.end() && range->second.level == Level::kWatch;
}

// m_mutex. False as well where there is nothing to protect, and while mappings change (EAGAIN).
bool ClientWrites::protect(u8* page, bool on) {
  uffdio_writeprotect request{};
  request.range = {reinterpret_cast<u64>(page), kPageSize};
  request.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  return ioctl(m_watch_fd.get(), UFFDIO_WRITEPROTECT, &request) == 0;
}

// m_mutex. Another mapping may have taken the place of the one that was registered.
bool ClientWrites::protect_anew(const Range& range, u8* page) {
  return protect(page, true) || (register_range(range.host, range.size) && protect(page, true));
}

// m_mutex.
void ClientWrites::add_range(const MemorySlot& slot, Level level) {
  Range& range = m_ranges[slot.base.value] = {slot.host, slot.size, slot.base, slot.pages, level};
  m_by_host.emplace(range.begin(), &range);
  m_longest = std::max(m_longest, range.size);
}

// m_mutex.
std::optional<ClientWrites::Range> ClientWrites::take_range(Gpa base) {
  auto known = m_ranges.find(base.value);
  if (known == m_ranges.end()) return std::nullopt;
  auto [first, last] = m_by_host.equal_range(known->second.begin());
  m_by_host.erase(std::find_if(first, last, [&](auto& entry) { return entry.second == &known->second; }));
  Range range = std::move(known->second);
  m_ranges.erase(known);
  return range;
}

std::vector<ClientWrites::Range*> ClientWrites::ranges_at(u64 begin, u64 end) {
  std::vector<Range*> found;
  auto entry = m_by_host.lower_bound(begin > m_longest ? begin - m_longest : 0);
  for (; entry != m_by_host.end() && entry->first < end; ++entry)
    if (entry->second->end() > begin) found.push_back(entry->second);
  return found;
}

// m_mutex. Gives memory back that no slot has any longer, so that the client may use it as it likes.
void ClientWrites::release_gone(const Range& range) {
  u64 from = range.begin();
  auto release_until = [&](u64 to) {
    if (from < to) unregister_range(reinterpret_cast<u8*>(from), to - from);
  };
  for (const Range* other : ranges_at(range.begin(), range.end())) {
    release_until(other->begin());
    from = std::max(from, other->end());
  }
  release_until(range.end());
}

// Code of what goes for good is dropped already. Pages that stay protected are released by the first write to
// them.
void ClientWrites::change_slots(const std::vector<MemorySlot>& gone, const std::vector<MemorySlot>& come) {
  std::lock_guard lock(m_mutex);
  std::vector<Range> before;
  for (const MemorySlot& slot : gone) {
    if (auto range = take_range(slot.base)) before.push_back(std::move(*range));
  }
  for (const MemorySlot& slot : come) {
    auto same = std::find_if(before.begin(), before.end(), [&](const Range& old) {
      return old.host == slot.host && old.size == slot.size && old.level != Level::kVerify;
    });
    const bool watched = same != before.end() || register_range(slot.host, slot.size);
    add_range(slot, watched ? Level::kWatch : Level::kVerify);
  }
  for (const Range& range : before) release_gone(range);
  std::erase_if(m_compared, [&](const auto& entry) {
    const Range* range = range_of(entry.second.page);
    if (range && range->pages == entry.second.pages) return false;
    entry.first->guard.store(0);
    return true;
  });
  count_compared();
}

// m_mutex.
ClientWrites::Range* ClientWrites::range_of(Gpa address) {
  auto after = m_ranges.upper_bound(address.value);
  if (after == m_ranges.begin()) return nullptr;
  Range& range = std::prev(after)->second;
  return address - range.base < range.size ? &range : nullptr;
}

// --- Pages ---

// Pages of files and of shared memory can be written where our page tables do not see it: through another
// mapping, by another process (vhost-user), with write(2).
bool ClientWrites::shared_with_others(const u8* page) {
  u64 entry = kPageIsFileOrShared;
  const auto offset = static_cast<off_t>(reinterpret_cast<u64>(page) / kPageSize * sizeof entry);
  if (pread(m_pagemap.get(), &entry, sizeof entry, offset) != sizeof entry) return true;
  return entry & kPageIsFileOrShared;
}

void ClientWrites::claim(const MemorySlot& slot, Gpa address) {
  PageMeta& meta = slot.meta(address);
  if (meta.guard.load()) return;
  std::lock_guard lock(m_mutex);
  if (meta.guard.load()) return;
  u8* host = slot.host + (address.page() - slot.base);
  u8 byte;
  // The page must be there to be protected; reading it brings it.
  const bool there = guarded_copy(&byte, host, 1);
  const Range* range = range_of(address);
  const Level level = there && range ? range->level : Level::kVerify;
  const bool watched = level == Level::kWatch && protect_anew(*range, host);
  const bool shared = level == Level::kWatch && shared_with_others(host);
  if (!watched || shared) compare_from_now_on(slot, address, shared);
  if (watched) meta.guard.fetch_or(kProtected);
}

// m_mutex.
void ClientWrites::compare_from_now_on(const MemorySlot& slot, Gpa address, bool shared) {
  PageMeta& meta = slot.meta(address);
  u8* host = slot.host + (address.page() - slot.base);
  m_compared.insert_or_assign(&meta, Compared{host, address.page(), slot.pages, shared, 0});
  meta.guard.fetch_or(kCompared);
  count_compared();
}

// m_mutex.
void ClientWrites::do_not_compare(PageMeta& meta) {
  m_compared.erase(&meta);
  count_compared();
}

// Code and data share the page: every such write would cost a fault, so from here on it is compared instead.
void ClientWrites::guest_writes_beside_code(const MemorySlot& slot, Gpa address) {
  PageMeta& meta = slot.meta(address);
  if (!(meta.guard.load() & kProtected)) return;
  std::lock_guard lock(m_mutex);
  const u8 guard = meta.guard.load();
  if (!(guard & kProtected)) return;
  if (!(guard & kCompared)) compare_from_now_on(slot, address, false);
  meta.guard.store(kCompared);
  ++m_changes;
  protect(slot.host + (address.page() - slot.base), false);
}

// Pages that are overwritten again and again (code that a guest generates or patches) are compared for a
// while rather than protected anew each time.
void ClientWrites::guest_overwrote_code(const MemorySlot& slot, Gpa address) {
  PageMeta& meta = slot.meta(address);
  std::lock_guard lock(m_mutex);
  const u8 guard = meta.guard.load();
  if (guard & kProtected) {
    const bool again = overwritten_lately(meta);
    if (again && !(guard & kCompared)) compare_from_now_on(slot, address, false);
    if (!again && (guard & kCompared)) do_not_compare(meta);
    meta.guard.store(again ? kCompared : 0);
    ++m_changes;
  }
  meta.has_code.store(0);
  if (guard & kProtected) protect(slot.host + (address.page() - slot.base), false);
}

// m_mutex. And notes it.
bool ClientWrites::overwritten_lately(const PageMeta& meta) {
  if (std::ranges::find(m_overwritten, &meta) != m_overwritten.end()) return true;
  m_overwritten[m_next_overwritten++ % m_overwritten.size()] = &meta;
  return false;
}

// --- Comparing ---

// munmap(2) and its like return as soon as their event is read, perhaps before the code is dropped.
void ClientWrites::wait_for_watcher() {
  while (m_handling.load()) m_handling.wait(true);
}

// Where there are many such pages, a vCPU compares those that it comes to: between two moments it runs in few
// of them.
bool ClientWrites::begin_moment() {
  if (m_handling.load()) [[unlikely]]
    wait_for_watcher();
  const std::size_t count = m_compared_count.load(std::memory_order_acquire);
  if (!count) return false;
  if (count > kFewPages) return ++m_moment, true;
  std::lock_guard lock(m_mutex);
  for (auto item = m_compared.begin(); item != m_compared.end();)
    item = compare(*item->first, item->second) ? std::next(item) : m_compared.erase(item);
  count_compared();
  return false;
}

bool ClientWrites::compares(const PageMeta& meta) { return meta.guard.load() & kCompared; }

void ClientWrites::entering(PageMeta& meta, Gpa page, u8* host) {
  const u8 guard = meta.guard.load();
  if (!(guard & kCompared)) return;
  const bool may_be_watched = m_watch_fd.valid() && !(guard & kProtected);
  if (!may_be_watched && m_code.still_as(page, host)) return;
  std::lock_guard lock(m_mutex);
  auto item = m_compared.find(&meta);
  if (item == m_compared.end() || compare(meta, item->second)) return;
  m_compared.erase(item);
  count_compared();
}

// m_mutex. False: it need not be compared any more.
bool ClientWrites::compare(PageMeta& meta, Compared& item) {
  const bool watched = watch_again(meta, item);
  if (!m_code.still_as(item.page, item.host)) return drop_changed(meta, item), false;
  if (!watched || item.shared) return true;
  meta.guard.store(kProtected);
  return false;
}

// m_mutex. Guests patch most pages of their kernel's text a few times and then never again: after a while a
// page is watched again. The caller compares once more, now that nobody can write unnoticed.
bool ClientWrites::watch_again(PageMeta& meta, Compared& item) {
  constexpr unsigned kTrialAge = 64;
  if (!m_watch_fd.valid() || (meta.guard.load() & kProtected)) return false;
  if (++item.age < kTrialAge) return false;
  item.age = 0;
  const Range* range = range_of(item.page);
  if (!range || range->level != Level::kWatch || !protect(item.host, true)) return false;
  meta.guard.fetch_or(kProtected);
  return true;
}

// m_mutex. In this order: see drop(Range&, u64).
void ClientWrites::drop_changed(PageMeta& meta, const Compared& item) {
  const bool was_protected = meta.guard.exchange(0) & kProtected;
  if (meta.has_code.exchange(0)) ANYKVM_COUNT(client_code_writes);
  m_code.drop(item.page);
  if (was_protected) protect(item.host, false);
}

// --- The watching thread ---

void ClientWrites::watch_thread() {
  pollfd waits[2] = {{m_watch_fd.get(), POLLIN, 0}, {m_stop_fd.get(), POLLIN, 0}};
  for (;;) {
    if (poll(waits, 2, -1) < 0) continue;
    uffd_msg message;
    m_handling.store(true);
    // Reading an event lets its thread go on, so that comes before the lock: the thread may hold one that
    // somebody in here waits for (malloc's, while it gives memory back).
    const bool got = read(m_watch_fd.get(), &message, sizeof message) == sizeof message;
    if (got) handle_message(message);
    m_handling.store(false);
    m_handling.notify_all();
    if (!got && (waits[1].revents || (waits[0].revents & (POLLERR | POLLNVAL)))) return;
  }
}

void ClientWrites::handle_message(const uffd_msg& message) {
  std::lock_guard lock(m_mutex);
  if (message.event == UFFD_EVENT_PAGEFAULT)
    page_written(reinterpret_cast<u8*>(message.arg.pagefault.address & ~(kPageSize - 1)));
  else if (message.event == UFFD_EVENT_UNMAP || message.event == UFFD_EVENT_REMOVE)
    memory_replaced(message.arg.remove.start, message.arg.remove.end);
  else if (message.event == UFFD_EVENT_REMAP)
    memory_replaced(message.arg.remap.from, message.arg.remap.from + message.arg.remap.len);
}

// m_mutex. A vCPU that claims the page sets has_code before it looks at guard, so it either sees that the
// guard is gone, or finds its claim lost when it translates, or its block is dropped here.
void ClientWrites::drop(Range& range, u64 offset) {
  PageMeta& meta = (*range.pages)[offset / kPageSize];
  if (meta.guard.exchange(0) & kCompared) do_not_compare(meta);
  if (!meta.has_code.exchange(0)) return;
  ANYKVM_COUNT(client_code_writes);
  m_code.drop(range.base + (offset & ~(kPageSize - 1)));
}

// m_mutex. The writer waits until the page is released; a page can be guest memory at several addresses.
void ClientWrites::page_written(u8* page) {
  const u64 address = reinterpret_cast<u64>(page);
  for (Range* range : ranges_at(address, address + kPageSize)) drop(*range, address - range->begin());
  if (protect(page, false)) return;
  // Mappings are changing (EAGAIN), or this one is gone: the writer looks again, and we hear of it again.
  uffdio_range range{reinterpret_cast<u64>(page), kPageSize};
  ioctl(m_watch_fd.get(), UFFDIO_WAKE, &range);
}

// m_mutex. munmap(2), mmap(2) over it, madvise(2): other memory may be there now.
void ClientWrites::memory_replaced(u64 begin, u64 end) {
  for (Range* range : ranges_at(begin, end)) {
    const u64 from = std::max(begin, range->begin()), to = std::min(end, range->end());
    for (u64 page = from; page < to; page += kPageSize) drop(*range, page - range->begin());
  }
}

}  // namespace anykvm::x86
