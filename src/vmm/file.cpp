#include "vmm/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "vmm/guest_memory.h"

namespace anykvm::vmm {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : m_fd(fd) {}
  ~Descriptor() {
    if (m_fd >= 0) close(m_fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return m_fd; }

 private:
  int m_fd;
};

}  // namespace

Outcome<std::vector<u8>> read_file(const std::string& path, const char* what, u64 limit) {
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (file.get() < 0 || fstat(file.get(), &info) < 0) {
    return failure("cannot open the {} {}: {}", what, path, strerror(errno));
  }
  if (S_ISDIR(info.st_mode)) return failure("the {} {} is a directory", what, path);
  if (static_cast<u64>(info.st_size) > limit) {
    return failure("the {} {} ({} MiB) does not fit in {} MiB of guest memory", what, path,
                   (static_cast<u64>(info.st_size) + kMiB - 1) / kMiB, limit / kMiB);
  }
  std::vector<u8> bytes(static_cast<size_t>(info.st_size));
  size_t done = 0;
  // A pipe or /proc file has size 0 and grows while it is read.
  for (;;) {
    if (done == bytes.size()) bytes.resize(done + 65536);
    ssize_t count = read(file.get(), bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return failure("cannot read the {} {}: {}", what, path, strerror(errno));
    if (count == 0) break;
    done += static_cast<size_t>(count);
    if (done > limit)
      return failure("the {} {} does not fit in {} MiB of guest memory", what, path, limit / kMiB);
  }
  bytes.resize(done);
  return bytes;
}

}  // namespace anykvm::vmm
