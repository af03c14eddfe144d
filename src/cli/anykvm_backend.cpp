#include "cli/anykvm_backend.h"

#include "anykvm/anykvm.h"

namespace anykvm::cli {
namespace {

class AnykvmBackend final : public vmm::KvmBackend {
 public:
  int open(const char* path, int flags) override { return anykvm_open(path, flags); }
  int ioctl(int fd, unsigned long request, unsigned long argument) override {
    return anykvm_ioctl(fd, request, argument);
  }
  void* mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) override {
    return anykvm_mmap(address, length, protection, flags, fd, offset);
  }
  int close(int fd) override { return anykvm_close(fd); }
};

}  // namespace

std::unique_ptr<vmm::KvmBackend> make_anykvm_backend() { return std::make_unique<AnykvmBackend>(); }

}  // namespace anykvm::cli
