#include "cli/top.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <thread>

#include "base/counters_file.h"
#include "base/fd.h"

namespace anykvm::cli {
namespace {

using namespace counters;
using vmm::failure;
using vmm::Outcome;

// More than any version's file has: what claims to be longer is none.
constexpr off_t kMostBytes = 16 << 20;

// Values at offsets that the file itself names: nothing outside of it is read.
class FileView {
 public:
  explicit FileView(const std::vector<u8>& bytes) : m_bytes(bytes) {}

  template <class T>
  bool read(u64 offset, T* to) const {
    if (offset > m_bytes.size() || m_bytes.size() - offset < sizeof(T)) return false;
    memcpy(to, m_bytes.data() + offset, sizeof(T));
    return true;
  }

 private:
  const std::vector<u8>& m_bytes;
};

template <std::size_t Size>
std::string text_of(const char (&text)[Size]) {
  return {text, strnlen(text, Size)};
}

bool read_names(const FileView& file, const FileHeader& header, CounterSample& sample) {
  const u64 count = u64{header.process_counters} + header.cpu_counters;
  for (u64 i = 0; i < count; ++i) {
    CounterName name;
    if (!file.read(sizeof(FileHeader) + i * sizeof name, &name)) return false;
    sample.rows.push_back({text_of(name.name), text_of(name.description), 0});
  }
  return true;
}

bool read_values(const FileView& file, const FileHeader& header, CounterSample& sample) {
  for (u64 i = 0; i < header.process_counters; ++i)
    if (!file.read(header.process_offset + i * sizeof(u64), &sample.rows[i].value)) return false;
  for (u64 line = 0; line < header.lines; ++line) {
    const u64 at = header.lines_offset + line * header.line_size;
    u64 flags = 0;
    if (!file.read(at, &flags)) return false;
    if (flags & kLineInUse) ++sample.vcpus;
    for (u64 i = 0; i < header.cpu_counters; ++i) {
      u64 value = 0;
      if (!file.read(at + (1 + i) * sizeof(u64), &value)) return false;
      sample.rows[header.process_counters + i].value += value;
    }
  }
  return true;
}

std::vector<u8> read_all(int fd) {
  struct stat status {};
  if (fstat(fd, &status) != 0 || status.st_size > kMostBytes) return {};
  std::vector<u8> bytes(static_cast<std::size_t>(status.st_size));
  const ssize_t got = pread(fd, bytes.data(), bytes.size(), 0);
  bytes.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  return bytes;
}

bool is_counter_file(const std::string& link) {
  char target[64] = {};
  const std::string wanted = fmt::format("/memfd:{} ", kFileName);
  return readlink(link.c_str(), target, sizeof target - 1) > 0 &&
         std::string_view(target).starts_with(wanted);
}

// Among the process's open files.
Outcome<Fd> open_counters(int process) {
  const std::string directory = fmt::format("/proc/{}/fd", process);
  const std::unique_ptr<DIR, int (*)(DIR*)> files(opendir(directory.c_str()), closedir);
  if (!files && errno == ENOENT) return failure("top {}: there is no such process", process);
  if (!files) return failure("top {}: cannot look into the process: {}", process, strerror(errno));
  while (const dirent* entry = readdir(files.get())) {
    const std::string link = fmt::format("{}/{}", directory, entry->d_name);
    if (!is_counter_file(link)) continue;
    Fd fd(open(link.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return failure("top {}: cannot look into the process: {}", process, strerror(errno));
    if (parse_counters(read_all(fd.get()), process)) return fd;
  }
  return failure("top {}: the process has made no guest on anykvm", process);
}

bool is_alive(int process) {
  struct stat status {};
  return stat(fmt::format("/proc/{}", process).c_str(), &status) == 0;
}

}  // namespace

std::optional<CounterSample> parse_counters(const std::vector<u8>& bytes, int process) {
  const FileView file(bytes);
  FileHeader header{};
  if (!file.read(0, &header) || header.magic != kFileMagic || header.pid != static_cast<u32>(process))
    return {};
  CounterSample sample;
  if (!read_names(file, header, sample) || !read_values(file, header, sample)) return {};
  return sample;
}

std::string counter_table(const CounterSample& before, const CounterSample& now, double seconds) {
  std::string text =
      fmt::format("{:<24} {:>16} {:>14}   {} vCPUs\n", "counter", "total", "a second", now.vcpus);
  for (std::size_t i = 0; i < now.rows.size(); ++i) {
    const CounterSample::Row& row = now.rows[i];
    const u64 difference = row.value - (i < before.rows.size() ? before.rows[i].value : 0);
    text += fmt::format("{:<24} {:>16} {:>14.0f}   {}\n", row.name, row.value,
                        static_cast<double>(difference) / seconds, row.description);
  }
  return text;
}

Outcome<void> top(const TopOptions& options) {
  const Fd fd = TRY(open_counters(options.process));
  const bool terminal = isatty(STDOUT_FILENO);
  auto before = parse_counters(read_all(fd.get()), options.process);
  for (u32 shown = 0; before && (options.samples == 0 || shown < options.samples); ++shown) {
    std::this_thread::sleep_for(options.interval);
    auto now = parse_counters(read_all(fd.get()), options.process);
    if (!now || !is_alive(options.process)) break;
    const std::string table =
        counter_table(*before, *now, std::chrono::duration<double>(options.interval).count());
    // On a terminal each table replaces the last.
    if (fputs(((terminal ? "\x1b[H\x1b[2J"
                : shown  ? "\n"
                         : "") +
               table)
                  .c_str(),
              stdout) < 0 ||
        fflush(stdout))
      return failure("top: cannot write: {}", strerror(errno));
    before = std::move(now);
  }
  return {};
}

}  // namespace anykvm::cli
