#pragma once
// The four calls through which the VMM reaches a KVM: the kernel's, or libanykvm's. Nothing else in the VMM
// knows which. Owner: whoever made it, beyond the life of every descriptor opened through it. Thread-safe.

#include <sys/types.h>

#include <memory>

#include "base/types.h"

namespace anykvm::vmm {

enum class Accelerator { kAnykvm, kKernel };

const char* accelerator_name(Accelerator accelerator);

// Each call is the system call of its name: -1 (MAP_FAILED) and errno on failure.
class KvmBackend {
 public:
  virtual ~KvmBackend() = default;
  virtual int open(const char* path, int flags) = 0;
  virtual int ioctl(int fd, unsigned long request, unsigned long argument) = 0;
  virtual void* mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) = 0;
  virtual int close(int fd) = 0;
};

// The kernel's KVM. The anykvm one is made by cli/, which alone links the engine.
std::unique_ptr<KvmBackend> make_kernel_backend();

// A KVM descriptor that is closed with its owner.
class KvmFd {
 public:
  KvmFd() = default;
  KvmFd(KvmBackend& backend, int fd) : m_backend(&backend), m_fd(fd) {}
  KvmFd(KvmFd&& other) noexcept;
  KvmFd& operator=(KvmFd&& other) noexcept;
  ~KvmFd();

  bool valid() const { return m_fd >= 0; }
  int get() const { return m_fd; }
  KvmBackend& backend() const { return *m_backend; }

  int ioctl(unsigned long request, unsigned long argument = 0) const {
    return m_backend->ioctl(m_fd, request, argument);
  }
  template <class T>
  int ioctl(unsigned long request, T* argument) const {
    return m_backend->ioctl(m_fd, request, reinterpret_cast<unsigned long>(argument));
  }

 private:
  KvmBackend* m_backend = nullptr;
  int m_fd = -1;
};

}  // namespace anykvm::vmm
