#pragma once
// The KVM ABI as the tests see it: on anykvm, or with ANYKVM_TEST_ACCEL=kvm on the machine's own /dev/kvm, so
// that what the tests expect can be checked against the kernel. Owner: each test makes its own VM. One
// thread.

#include <errno.h>
#include <gtest/gtest.h>
#include <linux/kvm.h>
#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace anykvm::test {

bool on_real_kvm();

// AddressSanitizer's own allocator hangs in the child when another thread allocates during a fork, and ends
// the process when there is no memory: what tests of these see would be the sanitizer.
#ifdef __SANITIZE_ADDRESS__
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif

int kvm_open();
int kvm_ioctl(int fd, unsigned long request, unsigned long argument);
void* kvm_mmap(std::size_t size, int fd);
int kvm_close(int fd);

// What an ioctl came to: its value, or minus the errno.
template <class T>
long call(int fd, unsigned long request, T* argument) {
  int result = kvm_ioctl(fd, request, reinterpret_cast<unsigned long>(argument));
  return result < 0 ? -errno : result;
}
inline long call(int fd, unsigned long request, unsigned long argument = 0) {
  int result = kvm_ioctl(fd, request, argument);
  return result < 0 ? -errno : result;
}

// An address that is mapped in no process.
inline void* const kBadPointer = reinterpret_cast<void*>(8);

class Handle {
 public:
  Handle() = default;
  explicit Handle(long fd) : m_fd(static_cast<int>(fd)) {}
  Handle(Handle&& other) noexcept : m_fd(other.release()) {}
  Handle& operator=(Handle&& other) noexcept {
    reset();
    m_fd = other.release();
    return *this;
  }
  ~Handle() { reset(); }
  operator int() const { return m_fd; }
  int release() {
    int fd = m_fd;
    m_fd = -1;
    return fd;
  }
  void reset() {
    if (m_fd >= 0) kvm_close(m_fd);
    m_fd = -1;
  }

 private:
  int m_fd = -1;
};

// Pages that a test gives to a guest.
class Pages {
 public:
  explicit Pages(std::size_t size);
  ~Pages() { munmap(m_base, m_size); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::uint8_t* data() const { return m_base; }
  std::size_t size() const { return m_size; }
  std::uint64_t address() const { return reinterpret_cast<std::uint64_t>(m_base); }

 private:
  std::size_t m_size;
  std::uint8_t* m_base;
};

// From here on SIGUSR1 does nothing but end KVM_RUN.
void make_kickable();

long enable_cap(int fd, std::uint32_t cap, std::uint64_t argument, std::uint32_t flags = 0);

struct SupportedCpuid {
  kvm_cpuid2 header;
  kvm_cpuid_entry2 entries[256];
};

struct System {
  SupportedCpuid supported_cpuid() const;

  Handle fd{kvm_open()};
};

struct Vm : System {
  Handle vm{call(fd, KVM_CREATE_VM)};

  long set_region(std::uint32_t slot, std::uint64_t gpa, std::uint64_t size, std::uint64_t host,
                  std::uint32_t flags = 0) {
    kvm_userspace_memory_region region{slot, flags, gpa, size, host};
    return call(vm, KVM_SET_USER_MEMORY_REGION, &region);
  }
};

// One vCPU, mapped, in real mode, about to run `code` at 1000H of its 64 KiB of memory.
struct Guest : Vm {
  enum class Chips { kNone, kIrqchip, kSplit };  // kSplit: the client's IOAPIC has pins 0 to 23
  static constexpr std::uint64_t kCode = 0x1000;

  explicit Guest(std::initializer_list<std::uint8_t> code = {0xf4}, Chips chips = Chips::kNone);
  ~Guest();

  long run() { return call(vcpu, KVM_RUN); }
  // The same, and 20 ms later a signal from another thread.
  long run_until_kicked();
  kvm_regs regs();
  void set_regs(const kvm_regs& regs) { EXPECT_EQ(call(vcpu, KVM_SET_REGS, &regs), 0); }
  // What KVM_SET_MSRS came to: 1, or 0 if the value or the register is not accepted.
  long set_msr(std::uint32_t index, std::uint64_t value) const;
  std::uint64_t msr(std::uint32_t index) const;
  // A 32-bit register of the local APIC at `offset`.
  void set_lapic(unsigned offset, std::uint32_t value);
  // The real-mode handler of `vector` is at `address`.
  void set_handler(std::uint8_t vector, std::uint16_t address, std::initializer_list<std::uint8_t> code);
  // 64-bit mode with what KVM_GET_SUPPORTED_CPUID offers, the first 2 MiB mapped as they are.
  void enter_long_mode();
  // CPUID shows Hyper-V's interface instead of KVM's own. `features` false: but no feature of it.
  void show_hyperv(bool features = true);
  void set_code(std::initializer_list<std::uint8_t> code);
  void start_at_code();

  Pages memory{0x10000};
  Handle vcpu;
  kvm_run* shared = nullptr;
  std::size_t shared_size = 0;
};

}  // namespace anykvm::test
