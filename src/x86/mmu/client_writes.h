#pragma once
// Notices that the client, behind our back, changed guest memory from which code was translated (DESIGN D10,
// docs/decisions/client-writes.md).
// Owner: Machine. change_slots() with the world stopped; begin_moment(), entering() and the notes of vCPUs
// inside Cpu::run(). Own lock; it is taken before CodeCache's.

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "x86/mmu/physical_memory.h"

struct uffd_msg;

namespace anykvm::x86 {

class CodeCache;

class ClientWrites {
 public:
  // Best last. What ANYKVM_CLIENT_WRITES=verify or watch allows at most; each piece of memory gets the best
  // that it can have.
  enum class Level : u8 {
    kVerify,  // the bytes are compared after each moment, before they run
    kWatch,   // writers wait until the page's code is gone
  };

  static std::unique_ptr<ClientWrites> create(CodeCache& code);
  ~ClientWrites();

  // What private anonymous memory gets.
  Level level() const;

  // Is the memory of the slot at `base` registered with the userfaultfd of ours? Then it is with no other.
  bool watches(Gpa base);

  // The slots of `gone` go, then those of `come` are there.
  void change_slots(const std::vector<MemorySlot>& gone, const std::vector<MemorySlot>& come);
  // The page is about to be translated from; PageMeta::has_code is set.
  void claim(const MemorySlot& slot, Gpa address);
  // The guest is about to write to a page with code: beside the code, or the code is gone now.
  void guest_writes_beside_code(const MemorySlot& slot, Gpa address);
  void guest_overwrote_code(const MemorySlot& slot, Gpa address);

  // Moments: when a vCPU enters guest code, or takes an interrupt, it must see what was written before.
  // True: what it has found so far is void, and pages are to be looked at before their code is entered
  // (entering()). False: whatever had changed is gone.
  bool begin_moment();
  // Of the whole machine; it goes up with each begin_moment() that returns true.
  u64 moment() const { return m_moment.load(std::memory_order_acquire); }
  // Is the page, whose code the vCPU has entered, one of those?
  static bool compares(const PageMeta& meta);
  // Goes up when pages become such ones after their code was entered: what a vCPU had to know of a page
  // before has changed.
  u64 changes() const { return m_changes.load(std::memory_order_acquire); }
  // A vCPU is about to enter code of the page for the first time since its moment. Drops the code if it is
  // no longer as it was translated.
  void entering(PageMeta& meta, Gpa page, u8* host);

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
  struct Compared {
    u8* host;
    Gpa page;
    std::shared_ptr<PageMetas> pages;  // keeps the key in m_compared
    bool shared;                       // may be written through other mappings or files
    unsigned age;                      // comparisons since it was watched last
  };
  using ComparedPages = std::unordered_map<PageMeta*, Compared>;

  explicit ClientWrites(CodeCache& code) : m_code(code) {}
  void start_watching();

  bool register_range(u8* host, u64 size);
  void unregister_range(u8* host, u64 size);
  void add_range(const MemorySlot& slot, Level level);
  std::optional<Range> take_range(Gpa base);
  void release_gone(const Range& range);
  // The ranges that share memory with [begin, end), by ascending host address.
  std::vector<Range*> ranges_at(u64 begin, u64 end);
  bool protect(u8* page, bool on);
  bool protect_anew(const Range& range, u8* page);
  bool shared_with_others(const u8* page);
  Range* range_of(Gpa address);

  void compare_from_now_on(const MemorySlot& slot, Gpa address, bool shared);
  void do_not_compare(PageMeta& meta);
  bool compare(PageMeta& meta, Compared& item);
  bool watch_again(PageMeta& meta, Compared& item);
  void drop_changed(PageMeta& meta, const Compared& item);
  bool overwritten_lately(const PageMeta& meta);
  void count_compared() { m_compared_count = m_compared.size(); }

  void watch_thread();
  void wait_for_watcher();
  void handle_message(const uffd_msg& message);
  void page_written(u8* page);
  void memory_replaced(u64 begin, u64 end);
  void drop(Range& range, u64 offset);

  CodeCache& m_code;
  Fd m_watch_fd;  // a userfaultfd; invalid where the level is not to be had
  Fd m_pagemap, m_stop_fd;
  std::thread m_thread;
  std::mutex m_mutex;
  std::map<u64, Range> m_ranges;         // m_mutex; by guest address
  std::multimap<u64, Range*> m_by_host;  // m_mutex; into m_ranges
  u64 m_longest = 0;                     // m_mutex; no range is larger
  ComparedPages m_compared;              // m_mutex
  std::atomic<std::size_t> m_compared_count{0};
  std::array<const PageMeta*, 8> m_overwritten{};  // m_mutex; only compared: they may be gone
  unsigned m_next_overwritten = 0;                 // m_mutex
  std::atomic<u64> m_moment{0}, m_changes{0};
  std::atomic<bool> m_handling{false};  // the watching thread is between a message and its consequences
};

}  // namespace anykvm::x86
