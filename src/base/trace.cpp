#include "base/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace anykvm::trace {
namespace {

constexpr std::string_view kNames[] = {
#define ANYKVM_TRACE_CATEGORY(name, description) #name,
#include "base/trace.def"
#undef ANYKVM_TRACE_CATEGORY
};

u32 category_bit(std::string_view name) {
  if (name == "all") return ~u32{0};
  for (unsigned i = 0; i < std::size(kNames); ++i)
    if (kNames[i] == name) return u32{1} << i;
  return 0;
}

u32 from_environment() {
  const char* list = getenv("ANYKVM_TRACE");
  return list ? parse_categories(list) : 0;
}

}  // namespace

u32 g_enabled = from_environment();

u32 parse_categories(std::string_view list) {
  u32 enabled = 0;
  while (!list.empty()) {
    std::size_t comma = list.find(',');
    enabled |= category_bit(list.substr(0, comma));
    list = comma == std::string_view::npos ? std::string_view() : list.substr(comma + 1);
  }
  return enabled;
}

void write_line(Category category, std::string_view text) {
  int saved_errno = errno;
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  std::string line = fmt::format("anykvm {}.{:06} {} {}: {}\n", now.tv_sec, now.tv_nsec / 1000,
                                 syscall(SYS_gettid), kNames[static_cast<unsigned>(category)], text);
  [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  errno = saved_errno;
}

}  // namespace anykvm::trace
