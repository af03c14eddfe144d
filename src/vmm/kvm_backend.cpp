#include "vmm/kvm_backend.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <utility>

namespace anykvm::vmm {
namespace {

class KernelBackend final : public KvmBackend {
 public:
  int open(const char* path, int flags) override { return ::open(path, flags); }
  int ioctl(int fd, unsigned long request, unsigned long argument) override {
    return ::ioctl(fd, request, argument);
  }
  void* mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) override {
    return ::mmap(address, length, protection, flags, fd, offset);
  }
  int close(int fd) override { return ::close(fd); }
};

}  // namespace

const char* accelerator_name(Accelerator accelerator) {
  return accelerator == Accelerator::kAnykvm ? "anykvm" : "kvm";
}

std::unique_ptr<KvmBackend> make_kernel_backend() { return std::make_unique<KernelBackend>(); }

KvmFd::KvmFd(KvmFd&& other) noexcept : m_backend(other.m_backend), m_fd(std::exchange(other.m_fd, -1)) {}

KvmFd& KvmFd::operator=(KvmFd&& other) noexcept {
  std::swap(m_backend, other.m_backend);
  std::swap(m_fd, other.m_fd);
  return *this;
}

KvmFd::~KvmFd() {
  if (m_fd >= 0) m_backend->close(m_fd);
}

}  // namespace anykvm::vmm
