// What the host kernel offers for code memory and for noticing writes to guest memory.

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>

#include "base/types.h"
#include "cli/host_checks.h"

namespace anykvm::cli {
namespace {

// Newer than some systems' headers: linux/userfaultfd.h of Linux 5.11.
constexpr int kUserModeOnly = 1;
constexpr u64 kFeatureWriteProtect = 1 << 0;

class Descriptor {
 public:
  explicit Descriptor(int fd) : m_fd(fd) {}
  ~Descriptor() {
    if (m_fd >= 0) close(m_fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  bool valid() const { return m_fd >= 0; }
  int get() const { return m_fd; }

 private:
  int m_fd;
};

constexpr const char* kWithoutUserfaultfd =
    "translated code is verified again after each entry into the guest instead of being protected";

int open_userfaultfd() {
  return static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | kUserModeOnly));
}

// The features that the kernel says it has, or nothing without userfaultfd.
std::optional<u64> userfaultfd_features() {
  Descriptor uffd(open_userfaultfd());
  uffdio_api api{};
  api.api = UFFD_API;
  if (!uffd.valid() || ioctl(uffd.get(), UFFDIO_API, &api) < 0) return std::nullopt;
  return api.features;
}

}  // namespace

// The same pages writable at one address and executable at another, as the code cache wants them.
Check check_jit_memory() {
  constexpr const char* kName = "code memory, mapped twice";
  constexpr size_t kSize = 4096;
  Descriptor memory(memfd_create("anykvm-doctor", MFD_CLOEXEC));
  if (!memory.valid() || ftruncate(memory.get(), kSize) < 0) {
    return {kName, Finding::kBlocking, strerror(errno), "no memory for translated code"};
  }
  void* writable = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  void* executable = mmap(nullptr, kSize, PROT_READ | PROT_EXEC, MAP_SHARED, memory.get(), 0);
  int error = errno;
  bool ok = writable != MAP_FAILED && executable != MAP_FAILED;
  if (writable != MAP_FAILED) munmap(writable, kSize);
  if (executable != MAP_FAILED) munmap(executable, kSize);
  if (ok) return {kName, Finding::kPresent, "", ""};
  return {kName, Finding::kBlocking, strerror(error),
          "translated code cannot be executed; ask who set the policy"};
}

Check check_userfaultfd() {
  constexpr const char* kName = "userfaultfd";
  Descriptor uffd(open_userfaultfd());
  if (uffd.valid()) return {kName, Finding::kPresent, "", ""};
  return {kName, Finding::kMissing, strerror(errno), kWithoutUserfaultfd};
}

Check check_write_protection() {
  constexpr const char* kName = "userfaultfd write-protect";
  auto features = userfaultfd_features();
  if (features && (*features & kFeatureWriteProtect)) return {kName, Finding::kPresent, "", ""};
  return {kName, Finding::kMissing, features ? "the kernel lacks it" : "no userfaultfd", kWithoutUserfaultfd};
}

Check check_huge_pages() {
  constexpr const char* kName = "transparent huge pages";
  constexpr const char* kCost = "more TLB misses and page faults in guest memory";
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (text.empty()) return {kName, Finding::kMissing, "the kernel lacks them", kCost};
  if (text.find("[never]") != std::string::npos) return {kName, Finding::kMissing, "switched off", kCost};
  bool always = text.find("[always]") != std::string::npos;
  return {kName, Finding::kPresent, always ? "always" : "on request, which anykvm makes", ""};
}

}  // namespace anykvm::cli
