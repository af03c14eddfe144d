#include "base/fd.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>

namespace anykvm {
namespace {

// The kernel's table of descriptors grows with the highest number, so not too far.
int first_number() {
  constexpr rlim_t kFarEnough = 4096;
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<int>(std::min(kFarEnough, limit.rlim_cur / 2));
}

}  // namespace

Fd duplicate_out_of_the_way(int number) {
  Fd copy(fcntl(number, F_DUPFD_CLOEXEC, first_number()));
  return copy.valid() ? std::move(copy) : Fd(fcntl(number, F_DUPFD_CLOEXEC, 3));
}

Fd out_of_the_way(Fd fd) {
  Fd copy(fd.valid() ? fcntl(fd.get(), F_DUPFD_CLOEXEC, first_number()) : -1);
  return copy.valid() ? std::move(copy) : std::move(fd);
}

}  // namespace anykvm
