#include "base/counters.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <mutex>
#include <span>

#include "base/counters_file.h"
#include "base/fd.h"

namespace anykvm::counters {
namespace {

struct Row {
  std::string_view name, description;
};
constexpr Row kProcessRows[] = {
#define ANYKVM_COUNTER(name, description) {#name, description},
#define ANYKVM_CPU_COUNTER(name, description)
#include "base/counters.def"
#undef ANYKVM_COUNTER
#undef ANYKVM_CPU_COUNTER
};
constexpr Row kCpuRows[] = {
#define ANYKVM_COUNTER(name, description)
#define ANYKVM_CPU_COUNTER(name, description) {#name, description},
#include "base/counters.def"
#undef ANYKVM_COUNTER
#undef ANYKVM_CPU_COUNTER
};
static_assert(sizeof(Counters) == sizeof(u64) * std::size(kProcessRows));
static_assert(sizeof(CpuCounts) == sizeof(u64) * std::size(kCpuRows));

// vCPUs beyond these count where nobody looks.
constexpr u32 kLines = 1024;

// On cache lines of its own: vCPUs count at the same time.
struct alignas(64) Line {
  u64 flags;
  CpuCounts counts;
};

struct File {
  FileHeader header;
  CounterName names[std::size(kProcessRows) + std::size(kCpuRows)];
  alignas(64) Counters process;
  Line lines[kLines];
};

Counters g_unpublished;
std::mutex g_mutex;
File* g_file = nullptr;  // g_mutex

template <std::size_t Size>
void copy_text(char (&to)[Size], std::string_view text) {
  memcpy(to, text.data(), std::min(text.size(), Size - 1));
}

void describe(File& file) {
  CounterName* to = file.names;
  for (std::span<const Row> rows : {std::span<const Row>(kProcessRows), std::span<const Row>(kCpuRows)}) {
    for (const Row& row : rows) {
      copy_text(to->name, row.name);
      copy_text(to++->description, row.description);
    }
  }
  file.header = {kFileMagic,
                 static_cast<u32>(getpid()),
                 static_cast<u32>(std::size(kProcessRows)),
                 static_cast<u32>(std::size(kCpuRows)),
                 kLines,
                 offsetof(File, process),
                 offsetof(File, lines),
                 sizeof(Line)};
}

// The parent goes on counting in its file; what the child counts is its own.
void leave_file_in_child() {
  new (&g_mutex) std::mutex;
  g_file = nullptr;
  g_counters.store(&g_unpublished);
}

File* make_file() {
  Fd fd = out_of_the_way(Fd(memfd_create(kFileName, MFD_CLOEXEC | MFD_ALLOW_SEALING)));
  if (!fd.valid() || ftruncate(fd.get(), sizeof(File)) != 0) return nullptr;
  // SAFETY: nobody can shrink the file under the mapping.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) return nullptr;
  void* mapping = mmap(nullptr, sizeof(File), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (mapping == MAP_FAILED) return nullptr;
  // Open for as long as the process lives; a child gives its parent's back.
  static Fd& descriptor = *new Fd;
  descriptor = std::move(fd);
  return static_cast<File*>(mapping);
}

u64* values(CpuCounts& counts) { return reinterpret_cast<u64*>(&counts); }

void add(CpuCounts& to, CpuCounts& from) {
  for (std::size_t i = 0; i < std::size(kCpuRows); ++i) values(to)[i] += values(from)[i];
}

}  // namespace

std::atomic<Counters*> g_counters{&g_unpublished};

void publish() {
  std::lock_guard lock(g_mutex);
  if (g_file || !(g_file = make_file())) return;
  [[maybe_unused]] static const int watch_fork = pthread_atfork(nullptr, nullptr, leave_file_in_child);
  describe(*g_file);
  g_counters.store(&g_file->process);
}

CpuCounts* take_cpu_counts() {
  std::lock_guard lock(g_mutex);
  if (g_file) {
    for (Line& line : std::span(g_file->lines).subspan(1)) {
      if (line.flags) continue;
      line.flags = kLineInUse;
      return &line.counts;
    }
  }
  return new CpuCounts;
}

void give_back(CpuCounts* counts) {
  std::lock_guard lock(g_mutex);
  const auto* at = reinterpret_cast<const u8*>(counts);
  const auto* file = reinterpret_cast<const u8*>(g_file);
  if (!file || at < file || at >= file + sizeof(File)) return delete counts;
  Line& line = *reinterpret_cast<Line*>(reinterpret_cast<u8*>(counts) - offsetof(Line, counts));
  add(g_file->lines[0].counts, line.counts);
  line = {};
}

std::string summary() {
  std::lock_guard lock(g_mutex);
  std::string text;
  auto show = [&text](std::string_view name, u64 value) {
    if (value) text += fmt::format("{}={} ", name, value);
  };
  const auto* process = reinterpret_cast<const u64*>(g_counters.load());
  for (std::size_t i = 0; i < std::size(kProcessRows); ++i) show(kProcessRows[i].name, process[i]);
  if (!g_file) return text;
  CpuCounts sums;
  for (Line& line : g_file->lines) add(sums, line.counts);
  for (std::size_t i = 0; i < std::size(kCpuRows); ++i) show(kCpuRows[i].name, values(sums)[i]);
  return text;
}

}  // namespace anykvm::counters
