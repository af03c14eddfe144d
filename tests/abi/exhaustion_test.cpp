// What a client gets when the process has no more descriptors or no more memory: the errno that the kernel
// would give, and nothing half made. Limits are for a whole process, so each test has one of its own.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <thread>
#include <utility>

#include "kvm.h"

namespace anykvm::test {
namespace {

// The number of the step that failed in a child, or 0.
int in_child(int (*steps)()) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(steps());
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

class Limit {
 public:
  Limit(int resource, rlim_t value) : m_resource(resource) {
    getrlimit(m_resource, &m_before);
    rlimit limited = m_before;
    limited.rlim_cur = value;
    setrlimit(m_resource, &limited);
  }
  ~Limit() { setrlimit(m_resource, &m_before); }
  Limit(const Limit&) = delete;
  Limit& operator=(const Limit&) = delete;

 private:
  int m_resource;
  rlimit m_before{};
};

rlim_t first_free_descriptor() {
  const int fd = dup(0);
  close(fd);
  return static_cast<rlim_t>(fd);
}

rlim_t address_space_in_use() {
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  statm >> pages;
  return pages * 4096;
}

int without_descriptors() {
  Vm vm;
  Handle vcpu(call(vm.vm, KVM_CREATE_VCPU));
  {
    Limit limit(RLIMIT_NOFILE, first_free_descriptor());
    if (kvm_open() >= 0 || errno != EMFILE) return 1;
    if (call(vm.fd, KVM_CREATE_VM) != -EMFILE) return 2;
    if (call(vm.vm, KVM_CREATE_VCPU, 1ul) != -EMFILE) return 3;
    if (call(vm.vm, KVM_GET_STATS_FD) != -EMFILE) return 4;
    if (call(vcpu, KVM_GET_STATS_FD) != -EMFILE) return 5;
  }
  Handle other(call(vm.fd, KVM_CREATE_VM)), second(call(vm.vm, KVM_CREATE_VCPU, 1ul));
  return other < 0 || second < 0 ? 6 : 0;
}

TEST(Exhaustion, without_descriptors_is_emfile_and_leaves_nothing_behind) {
  EXPECT_EQ(in_child(without_descriptors), 0);
}

bool is_out_of_memory(long result) { return result == -ENOMEM; }

int without_address_space() {
  Vm vm;
  {
    Limit limit(RLIMIT_AS, address_space_in_use() + (1 << 20));
    if (!is_out_of_memory(call(vm.fd, KVM_CREATE_VM))) return 1;
    // A log and notes of pages for 4 TiB.
    if (!is_out_of_memory(vm.set_region(0, 0, std::uint64_t{1} << 42, 0x10000, KVM_MEM_LOG_DIRTY_PAGES)))
      return 2;
  }
  if (vm.set_region(0, 0, 0x1000, Pages(0x1000).address()) != 0) return 3;
  Handle other(call(vm.fd, KVM_CREATE_VM)), vcpu(call(vm.vm, KVM_CREATE_VCPU));
  return other < 0 || vcpu < 0 ? 4 : 0;
}

TEST(Exhaustion, without_address_space_is_enomem_and_leaves_nothing_behind) {
  EXPECT_EQ(in_child(without_address_space), 0);
}

// Whatever there is not enough for: the call works or says ENOMEM.
int with_less_and_less_memory() {
  for (rlim_t left = 8 << 20; left; left /= 2) {
    Vm vm;
    Limit limit(RLIMIT_AS, address_space_in_use() + left);
    kvm_irqchip chip{};
    const long results[] = {call(vm.vm, KVM_CREATE_IRQCHIP), call(vm.vm, KVM_CREATE_VCPU),
                            call(vm.vm, KVM_CREATE_VCPU, 1ul), call(vm.vm, KVM_GET_IRQCHIP, &chip),
                            call(vm.vm, KVM_GET_STATS_FD)};
    for (long result : results)
      if (result < 0 && result != -ENOMEM && result != -ENXIO && result != -EAGAIN) return 1;
  }
  return 0;
}

TEST(Exhaustion, every_call_works_or_says_that_there_is_no_memory) {
  if (kAddressSanitizer) GTEST_SKIP() << "AddressSanitizer cannot go on without memory";
  EXPECT_EQ(in_child(with_less_and_less_memory), 0);
}

// All memory that malloc can have, but for what give_back() returns to it.
class Hoard {
 public:
  Hoard() {
    for (std::size_t size = 1 << 20; size >= 16;) {
      auto* piece = static_cast<Piece*>(malloc(size));
      if (!piece) {
        size /= 2;
        continue;
      }
      piece->next = m_pieces;
      m_pieces = piece;
    }
  }
  ~Hoard() { give_back(~0u); }
  Hoard(const Hoard&) = delete;
  Hoard& operator=(const Hoard&) = delete;

  void give_back(unsigned pieces) {
    for (; m_pieces && pieces; --pieces) free(std::exchange(m_pieces, m_pieces->next));
  }

 private:
  struct Piece {
    Piece* next;
  };
  Piece* m_pieces = nullptr;
};

// Code that takes all the memory there is for its translation: 4000 jumps over as many pages, each adding 1
// to RAX. KVM_RUN says ENOMEM, and goes on where it was once there is memory.
int run_without_memory() {
  constexpr unsigned kJumps = 4000;
  Guest guest({0xf4}, Guest::Chips::kNone);
  Pages code(0x100000);
  guest.enter_long_mode();
  if (guest.run() != 0 || guest.set_region(1, 0x100000, code.size(), code.address()) != 0) return 1;
  // inc rax; jmp to 256 bytes further on
  const std::uint8_t step[] = {0x48, 0xff, 0xc0, 0xe9, 0xf8, 0x00, 0x00, 0x00};
  for (unsigned i = 0; i < kJumps; ++i) std::memcpy(code.data() + i * 256, step, sizeof step);
  code.data()[kJumps * 256] = 0xf4;  // hlt
  kvm_regs regs = guest.regs();
  regs.rip = 0x100000;
  regs.rax = 0;
  guest.set_regs(regs);
  unsigned refused = 0;
  long result = 0;
  {
    Limit limit(RLIMIT_AS, address_space_in_use());
    Hoard hoard;
    // The first attempts get further and further, or nowhere.
    for (unsigned attempt = 0; attempt < 50; ++attempt) {
      result = guest.run();
      if (result == 0) break;
      if (!is_out_of_memory(result)) return 2;
      ++refused;
      hoard.give_back(8);
    }
  }
  if (!refused) return 3;
  if (result != 0 && guest.run() != 0) return 4;
  if (guest.shared->exit_reason != KVM_EXIT_HLT) return 5;
  return guest.regs().rax == kJumps ? 0 : 6;
}

TEST(Exhaustion, run_without_memory_is_enomem_and_goes_on_when_there_is_some) {
  if (kAddressSanitizer) GTEST_SKIP() << "AddressSanitizer cannot go on without memory";
  EXPECT_EQ(in_child(run_without_memory), 0);
}

// What ended threads have left to new ones.
void use_up_spare_stacks() {
  for (unsigned i = 0; i < 32; ++i) std::thread([] { pause(); }).detach();
}

// A store that arms the local APIC's timer, whose thread there is no memory for.
int access_without_memory() {
  Guest guest(
      {0xbf, 0x80, 0x03, 0xe0, 0xfe, 0x89, 0x37, 0xe6, 0x10},  // mov edi,fee00380h; mov [rdi],esi; out
      Guest::Chips::kIrqchip);
  guest.enter_long_mode();
  const std::uint64_t directory = 0xc003, page = 0xfee00083;
  std::memcpy(guest.memory.data() + 0xa000 + 8 * 3, &directory, sizeof directory);
  std::memcpy(guest.memory.data() + 0xc000 + 8 * 503, &page, sizeof page);
  guest.set_lapic(0xf0, 0x1ff);
  guest.set_lapic(0x320, 0x40);  // one shot
  kvm_regs regs = guest.regs();
  const std::uint64_t begin = regs.rip;
  if (guest.run() != 0 || guest.shared->exit_reason != KVM_EXIT_IO) return 1;  // a count of 0 arms nothing
  regs.rsi = 0x10000000;
  guest.set_regs(regs);
  use_up_spare_stacks();
  {
    Limit limit(RLIMIT_AS, address_space_in_use() + (1 << 20));  // less than a stack
    if (!is_out_of_memory(guest.run())) return 2;
    if (guest.regs().rip != begin + 5) return 3;
  }
  if (guest.run() != 0 || guest.shared->exit_reason != KVM_EXIT_IO) return 4;
  kvm_lapic_state lapic{};
  if (call(guest.vcpu, KVM_GET_LAPIC, &lapic) != 0) return 5;
  std::uint32_t count = 0;
  std::memcpy(&count, lapic.regs + 0x390, sizeof count);
  return count ? 0 : 6;
}

TEST(Exhaustion, access_without_memory_is_enomem_and_is_made_when_there_is_some) {
  if (kAddressSanitizer) GTEST_SKIP() << "AddressSanitizer cannot go on without memory";
  EXPECT_EQ(in_child(access_without_memory), 0);
}

}  // namespace
}  // namespace anykvm::test
