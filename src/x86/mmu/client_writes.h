#pragma once
// Notices that the client, behind our back, changed guest memory from which code was translated (DESIGN D10,
// docs/decisions/client-writes.md).
// Owner: Machine. change_slots() with the world stopped; verify() and the notes of vCPUs inside Cpu::run().
// Own lock; it is taken before CodeCache's.

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "x86/mmu/physical_memory.h"

struct uffd_msg;

namespace anykvm::x86 {

class CodeCache;

class ClientWrites {
 public:
  // Best last. What ANYKVM_CLIENT_WRITES=verify, scan or watch allows at most; each piece of memory gets the
  // best that it can have.
  enum class Level : u8 {
    kVerify,  // the bytes are compared at each verify()
    kScan,    // the kernel notes which pages were written; their bytes are compared at each verify()
    kWatch,   // writers wait until the page's code is gone
  };

  static std::unique_ptr<ClientWrites> create(CodeCache& code);
  ~ClientWrites();

  // What private anonymous memory gets.
  Level level() const;

  // The slots of `gone` go, then those of `come` are there.
  void change_slots(const std::vector<MemorySlot>& gone, const std::vector<MemorySlot>& come);
  // The page is about to be translated from; PageMeta::has_code is set.
  void claim(const MemorySlot& slot, Gpa address);
  // The guest is about to write to a page with code: beside the code, or the code is gone now.
  void guest_writes_beside_code(const MemorySlot& slot, Gpa address);
  void guest_overwrote_code(const MemorySlot& slot, Gpa address);
  // Drops what is no longer as it was translated, of the pages that are not merely watched.
  void verify();

 private:
  // A piece of guest memory, as a copy that the watching thread may read.
  struct Range {
    u8* host;
    u64 size;
    Gpa base;
    std::shared_ptr<PageMetas> pages;
    Level level;
    u64 begin() const { return reinterpret_cast<u64>(host); }
    u64 end() const { return begin() + size; }
  };

  // A page whose bytes are compared.
  struct Listed {
    u8* host;
    Gpa page;
    PageMeta* meta;
    std::shared_ptr<PageMetas> pages;  // keeps `meta`
    bool shared;                       // may be written through other mappings or files
    bool scanned;                      // the kernel says whether it was written
    bool suspect;                      // it did
    unsigned age;                      // verify() calls
  };

  explicit ClientWrites(CodeCache& code) : m_code(code) {}
  void start_watching();
  void start_scanning();

  bool register_range(const Fd& fd, u8* host, u64 size);
  void unregister_range(u8* host, u64 size);
  Level register_best(u8* host, u64 size);
  void add_range(const MemorySlot& slot, Level level);
  std::optional<Range> take_range(Gpa base);
  void release_gone(const Range& range);
  // The ranges that share memory with [begin, end), by ascending host address.
  std::vector<Range*> ranges_at(u64 begin, u64 end);
  bool protect(const Fd& fd, u8* page, bool on);
  bool protect_anew(const Fd& fd, const Range& range, u8* page);
  bool shared_with_others(const u8* page);
  Range* range_of(Gpa address);

  void list_page(const MemorySlot& slot, Gpa address, bool shared, bool scanned);
  void unlist_page(const PageMeta& meta);
  void scan();
  void suspect(Listed& item);
  void scan_run(std::span<Listed> items);
  bool matches(const Listed& item);
  bool watch_again(Listed& item);

  void watch_thread();
  void wait_for_watcher();
  void handle_message(const uffd_msg& message);
  void page_written(u8* page);
  void memory_replaced(u64 begin, u64 end);
  void drop(Range& range, u64 offset);

  CodeCache& m_code;
  Fd m_watch_fd, m_scan_fd;  // userfaultfds; invalid where the level is not to be had
  Fd m_pagemap, m_stop_fd;
  std::thread m_thread;
  std::mutex m_mutex;
  std::map<u64, Range> m_ranges;         // m_mutex; by guest address
  std::multimap<u64, Range*> m_by_host;  // m_mutex; into m_ranges
  u64 m_longest = 0;                     // m_mutex; no range is larger
  std::vector<Listed> m_listed;          // m_mutex; sorted by host address
  std::atomic<unsigned> m_listed_count{0};
  std::atomic<bool> m_handling{false};  // the watching thread is between a message and its consequences
};

}  // namespace anykvm::x86
