// The client changes guest code behind the engine's back (docs/decisions/client-writes.md), with each way of
// noticing it forced in turn. On the kernel's KVM all of them hold as well.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint64_t kImmediate = Guest::kCode + 1;

// The engine reads the setting when a VM is made. x86/mmu/client_writes_test.cpp checks that it gets the
// level.
struct Forced {
  explicit Forced(const char* level) { setenv("ANYKVM_CLIENT_WRITES", level, 1); }
  ~Forced() { unsetenv("ANYKVM_CLIENT_WRITES"); }
};

// read(2) puts one byte there.
void read_into(std::uint8_t* to, std::uint8_t value) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(write(ends[1], &value, 1), 1);
  EXPECT_EQ(read(ends[0], to, 1), 1);
  close(ends[0]);
  close(ends[1]);
}

// A page with the same bytes but one, mapped over the old one.
void map_over(std::uint8_t* byte, std::uint8_t value) {
  auto* page =
      reinterpret_cast<std::uint8_t*>(reinterpret_cast<std::uintptr_t>(byte) & ~std::uintptr_t{4095});
  auto* fresh = static_cast<std::uint8_t*>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  memcpy(fresh, page, 4096);
  fresh[byte - page] = value;
  ASSERT_EQ(mremap(fresh, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, page), page);
}

// What the level "watch" stands on.
bool userfaultfd_allowed() {
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
  if (fd >= 0) close(fd);
  return fd >= 0;
}

// The thread of this process that has the name, which it may get a little later; 0 if there is none.
pid_t thread_called(const std::string& name) {
  for (unsigned attempt = 0; attempt < 200; ++attempt, usleep(5'000)) {
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      std::string found;
      std::ifstream comm(task.path() / "comm");
      if (std::getline(comm, found) && found == name) return std::stoi(task.path().filename());
    }
  }
  return 0;
}

// While it lives, the calling thread stays on one CPU, on which threads of low priority hardly get a turn.
class OnOneCpu {
 public:
  OnOneCpu() {
    sched_getaffinity(0, sizeof m_before, &m_before);
    CPU_ZERO(&m_cpu);
    CPU_SET(sched_getcpu(), &m_cpu);
    sched_setaffinity(0, sizeof m_cpu, &m_cpu);
  }
  ~OnOneCpu() { sched_setaffinity(0, sizeof m_before, &m_before); }
  const cpu_set_t& cpu() const { return m_cpu; }

 private:
  cpu_set_t m_before, m_cpu;
};

class ClientWrites : public testing::TestWithParam<const char*> {
 protected:
  Forced level{GetParam()};
  // mov al, 1; out 10H, al; and again
  Guest guest{0xb0, 0x01, 0xe6, 0x10, 0xeb, 0xfa};

  int next_output() {
    EXPECT_EQ(guest.run(), 0);
    EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
    return reinterpret_cast<std::uint8_t*>(guest.shared)[guest.shared->io.data_offset];
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, ClientWrites, testing::Values("watch", "verify"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(ClientWrites, plain_store_is_seen) {
  EXPECT_EQ(next_output(), 1);
  EXPECT_EQ(next_output(), 1);
  guest.memory.data()[kImmediate] = 2;
  EXPECT_EQ(next_output(), 2);
}

TEST_P(ClientWrites, second_store_to_the_same_page_is_seen) {
  EXPECT_EQ(next_output(), 1);
  guest.memory.data()[kImmediate] = 2;
  EXPECT_EQ(next_output(), 2);
  guest.memory.data()[kImmediate] = 3;
  EXPECT_EQ(next_output(), 3);
}

TEST_P(ClientWrites, store_of_another_thread_is_seen) {
  EXPECT_EQ(next_output(), 1);
  std::thread([this] { guest.memory.data()[kImmediate] = 2; }).join();
  EXPECT_EQ(next_output(), 2);
}

TEST_P(ClientWrites, read_into_guest_memory_is_seen) {
  EXPECT_EQ(next_output(), 1);
  read_into(guest.memory.data() + kImmediate, 2);
  EXPECT_EQ(next_output(), 2);
}

TEST_P(ClientWrites, mapping_over_guest_memory_is_seen) {
  EXPECT_EQ(next_output(), 1);
  std::uint8_t* page = guest.memory.data() + Guest::kCode;
  ASSERT_EQ(mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), page);
  guest.set_code({0xb0, 0x02, 0xe6, 0x10, 0xeb, 0xfa});
  EXPECT_EQ(next_output(), 2);
  guest.memory.data()[kImmediate] = 3;
  EXPECT_EQ(next_output(), 3);
}

TEST_P(ClientWrites, discarded_memory_is_seen) {
  EXPECT_EQ(next_output(), 1);
  ASSERT_EQ(madvise(guest.memory.data() + Guest::kCode, 4096, MADV_DONTNEED), 0);
  guest.set_code({0xb0, 0x02, 0xe6, 0x10, 0xeb, 0xfa});
  EXPECT_EQ(next_output(), 2);
}

// mov [1800H], al beside the code, over and over: the page leaves the watch, and is still looked after.
TEST_P(ClientWrites, store_to_a_page_that_the_guest_writes_itself_is_seen) {
  guest.set_code({0xb0, 0x01, 0xa2, 0x00, 0x18, 0xe6, 0x10, 0xeb, 0xf7});
  EXPECT_EQ(next_output(), 1);
  EXPECT_EQ(next_output(), 1);
  guest.memory.data()[kImmediate] = 2;
  EXPECT_EQ(next_output(), 2);
  EXPECT_EQ(guest.memory.data()[0x1800], 2);
}

TEST_P(ClientWrites, memory_that_was_away_is_looked_after_when_it_is_back) {
  EXPECT_EQ(next_output(), 1);
  std::uint8_t* page = guest.memory.data() + Guest::kCode;
  ASSERT_EQ(munmap(page, 4096), 0);
  ASSERT_EQ(mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), page);
  for (std::uint8_t value = 2; value < 5; ++value) {
    guest.set_code({0xb0, value, 0xe6, 0x10, 0xeb, 0xfa});
    EXPECT_EQ(next_output(), value);
  }
}

// Writes that do not go through the mapping that the guest has: vhost-user back ends do that.
TEST_P(ClientWrites, shared_memory_written_elsewhere_is_seen) {
  const int file = memfd_create("guest", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, static_cast<off_t>(guest.memory.size())), 0);
  auto map = [&](void* where, int fixed) {
    return mmap(where, guest.memory.size(), PROT_READ | PROT_WRITE, MAP_SHARED | fixed, file, 0);
  };
  ASSERT_EQ(map(guest.memory.data(), MAP_FIXED), guest.memory.data());
  auto* elsewhere = static_cast<std::uint8_t*>(map(nullptr, 0));
  guest.set_code({0xb0, 0x01, 0xe6, 0x10, 0xeb, 0xfa});
  EXPECT_EQ(next_output(), 1);
  elsewhere[kImmediate] = 2;
  EXPECT_EQ(next_output(), 2);
  EXPECT_EQ(pwrite(file, "\x03", 1, kImmediate), 1);
  EXPECT_EQ(next_output(), 3);
  guest.memory.data()[kImmediate] = 4;
  EXPECT_EQ(next_output(), 4);
  munmap(elsewhere, guest.memory.size());
  close(file);
}

// Code on sixteen pages of shared memory, more than are compared at once: from the guest's code to 1000H:0,
// from page to page, and on the last one `last`.
class LongWay {
 public:
  static constexpr std::size_t kLast = 0xf000;

  LongWay(Guest& guest, std::initializer_list<std::uint8_t> last) {
    EXPECT_EQ(ftruncate(m_file, kSize), 0);
    here = map();
    elsewhere = map();
    for (std::size_t page = 0; page < kLast; page += 0x1000) memcpy(here + page, "\xe9\xfd\x0f", 3);  // jmp
    memcpy(here + kLast, last.begin(), last.size());
    EXPECT_EQ(guest.set_region(1, 0x10000, kSize, reinterpret_cast<std::uintptr_t>(here)), 0);
  }
  ~LongWay() {
    munmap(here, kSize);
    munmap(elsewhere, kSize);
    close(m_file);
  }
  LongWay(const LongWay&) = delete;
  LongWay& operator=(const LongWay&) = delete;

  std::uint8_t *here, *elsewhere;  // the guest's mapping, and another one

 private:
  static constexpr std::size_t kSize = 0x10000;
  std::uint8_t* map() const {
    return static_cast<std::uint8_t*>(mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, m_file, 0));
  }
  const int m_file = memfd_create("way", MFD_CLOEXEC);
};

TEST_P(ClientWrites, change_elsewhere_of_one_among_many_pages_is_seen) {
  // mov al, 1; out 10H, al; jmp 0:1000H
  LongWay way(guest, {0xb0, 0x01, 0xe6, 0x10, 0xea, 0x00, 0x10, 0x00, 0x00});
  guest.set_code({0xea, 0x00, 0x00, 0x00, 0x10});  // jmp 1000H:0
  EXPECT_EQ(next_output(), 1);
  EXPECT_EQ(next_output(), 1);
  way.elsewhere[LongWay::kLast + 1] = 2;
  EXPECT_EQ(next_output(), 2);
  way.here[LongWay::kLast + 1] = 3;
  EXPECT_EQ(next_output(), 3);
  // In the middle: mov al, 5; out 10H, al; jmp to the next page
  memcpy(way.elsewhere + 0x7000, "\xb0\x05\xe6\x10\xe9\xf9\x0f", 7);
  EXPECT_EQ(next_output(), 5);
  EXPECT_EQ(next_output(), 3);
  EXPECT_EQ(next_output(), 5);
}

// The vCPU has found its way to the page while that was watched, and the guest then writes beside its code.
TEST_P(ClientWrites, store_to_a_page_that_joins_many_after_it_was_entered_is_seen) {
  LongWay way(guest, {0xea, 0x02, 0x10, 0x00, 0x00});  // jmp 0:1002H
  // jmp 1002H; 1002H: mov al, 1; out 10H, al; mov [1800H], al; jmp 1000H:0
  guest.set_code({0xeb, 0x00, 0xb0, 0x01, 0xe6, 0x10, 0xa2, 0x00, 0x18, 0xea, 0x00, 0x00, 0x00, 0x10});
  EXPECT_EQ(next_output(), 1);
  EXPECT_EQ(next_output(), 1);
  guest.memory.data()[kImmediate + 2] = 2;
  EXPECT_EQ(next_output(), 2);
}

// The vCPU stays in KVM_RUN; what a device writes shows when its interrupt comes.
TEST_P(ClientWrites, change_elsewhere_shows_with_an_interrupt) {
  Guest busy({0xea, 0x00, 0x00, 0x00, 0x10}, Guest::Chips::kIrqchip);  // jmp 1000H:0
  // mov al, 1; cmp al, 2; jne back; out 10H, al; back: jmp 0:1000H
  LongWay way(busy, {0xb0, 0x01, 0x3c, 0x02, 0x75, 0x02, 0xe6, 0x10, 0xea, 0x00, 0x10, 0x00, 0x00});
  busy.set_handler(2, 0x2000, {0xcf});
  kvm_regs regs = busy.regs();
  regs.rsp = 0x8000;
  busy.set_regs(regs);
  std::atomic<bool> done{false};
  std::thread device([&] {
    usleep(10'000);
    way.elsewhere[LongWay::kLast + 1] = 2;
    kvm_msi nmi{};
    nmi.address_lo = 0xfee00000;
    nmi.data = 0x400;
    for (; !done; usleep(1000)) call(busy.vm, KVM_SIGNAL_MSI, &nmi);
  });
  EXPECT_EQ(busy.run(), 0);
  EXPECT_EQ(busy.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  done = true;
  device.join();
}

// SDM 3A 9.1.3: a CPU that is told of new code executes a serializing instruction first. Here the one that
// tells it saw the device's exit or interrupt, and it had neither itself.
TEST_P(ClientWrites, change_elsewhere_shows_to_another_vcpu_after_a_serializing_instruction) {
  constexpr std::uint64_t kReady = 0x3000, kGo = 0x3004;
  LongWay way(guest, {0xb0, 0x01, 0xcb});  // mov al, 1; retf
  // call 1000H:0; mov [kReady], al; wait: cmp byte [kGo], 0; je wait; cpuid; call 1000H:0; out 10H, al
  guest.set_code({0x9a, 0x00, 0x00, 0x00, 0x10, 0xa2, 0x00, 0x30, 0x80, 0x3e, 0x04, 0x30,
                  0x00, 0x74, 0xf9, 0x0f, 0xa2, 0x9a, 0x00, 0x00, 0x00, 0x10, 0xe6, 0x10});
  kvm_regs regs = guest.regs();
  regs.rsp = 0x8000;
  guest.set_regs(regs);
  kvm_sregs sregs{};
  EXPECT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  Handle other(call(guest.vm, KVM_CREATE_VCPU, 1));
  EXPECT_EQ(call(other, KVM_SET_SREGS, &sregs), 0);
  regs.rip = 0x2000;
  EXPECT_EQ(call(other, KVM_SET_REGS, &regs), 0);
  memcpy(guest.memory.data() + 0x2000, "\xc6\x06\x04\x30\x01\xf4", 6);  // mov byte [kGo], 1; hlt
  std::thread waits([&] { EXPECT_EQ(next_output(), 2); });
  std::atomic_ref ready(guest.memory.data()[kReady]);
  while (!ready) usleep(100);
  way.elsewhere[LongWay::kLast + 1] = 2;
  EXPECT_EQ(call(other, KVM_RUN), 0);
  EXPECT_EQ(guest.memory.data()[kGo], 1);
  waits.join();
}

TEST_P(ClientWrites, memory_of_a_new_slot_is_looked_after) {
  EXPECT_EQ(next_output(), 1);
  EXPECT_EQ(guest.set_region(0, 0, 0, 0), 0);
  guest.memory.data()[kImmediate] = 2;
  EXPECT_EQ(guest.set_region(0, 0, guest.memory.size(), guest.memory.address()), 0);
  EXPECT_EQ(next_output(), 2);
  guest.memory.data()[kImmediate] = 3;
  EXPECT_EQ(next_output(), 3);
}

TEST_P(ClientWrites, forked_child_writes_its_own_copy) {
  EXPECT_EQ(next_output(), 1);
  const pid_t child = fork();
  if (child == 0) {
    guest.memory.data()[kImmediate] = 2;
    _exit(guest.memory.data()[kImmediate]);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 2);
  EXPECT_EQ(next_output(), 1);
}

TEST_P(ClientWrites, memory_is_free_after_the_vm_is_gone) {
  Pages memory(0x10000);
  pid_t child = 0;
  {
    Guest other{0xf4};
    ASSERT_EQ(other.set_region(1, 0x10000, memory.size(), memory.address()), 0);
    // jmp 1000H:0, where a HLT is
    other.set_code({0xea, 0x00, 0x00, 0x00, 0x10});
    memory.data()[0] = 0xf4;
    EXPECT_EQ(other.run(), 0);
    EXPECT_EQ(other.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
    // It has copies of all descriptors.
    child = fork();
    if (child == 0) {
      pause();
      _exit(0);
    }
  }
  memory.data()[0] = 1;
  read_into(memory.data(), 2);
  EXPECT_EQ(memory.data()[0], 2);
  EXPECT_EQ(munmap(memory.data() + 4096, 4096), 0);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

// Nobody can tell from outside when the guest has halted. So the NMI's handler goes back to the start of the
// code, whether it came before the HLT or after it.
TEST_P(ClientWrites, store_while_halted_is_seen) {
  Guest halted({0xb0, 0x01, 0xe6, 0x10, 0xf4, 0xeb, 0xf9}, Guest::Chips::kIrqchip);
  // mov bp, sp; mov word [bp], 1000H; iret
  halted.set_handler(2, 0x2000, {0x89, 0xe5, 0xc7, 0x46, 0x00, 0x00, 0x10, 0xcf});
  kvm_regs regs = halted.regs();
  regs.rsp = 0x8000;
  halted.set_regs(regs);
  EXPECT_EQ(halted.run(), 0);
  for (std::uint8_t value = 2; value < 6; ++value) {
    std::thread later([&] {
      usleep(5'000);  // it is halted by then, most likely
      halted.memory.data()[kImmediate] = value;
      kvm_msi nmi{};
      nmi.address_lo = 0xfee00000;
      nmi.data = 0x400;
      EXPECT_EQ(call(halted.vm, KVM_SIGNAL_MSI, &nmi), 1);
    });
    EXPECT_EQ(halted.run(), 0);
    later.join();
    ASSERT_EQ(halted.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
    EXPECT_EQ(reinterpret_cast<std::uint8_t*>(halted.shared)[halted.shared->io.data_offset], value);
  }
}

// mmap(2) returns when the watching thread has read its event, however late that thread acts upon it.
TEST(ClientWritesWatched, mapping_is_seen_although_the_watching_thread_is_slow) {
  if (on_real_kvm()) GTEST_SKIP() << "the kernel needs no thread to watch";
  if (!userfaultfd_allowed()) GTEST_SKIP() << "userfaultfd(2) is not allowed here";
  Forced level("watch");
  Guest guest{0xb0, 0x01, 0xe6, 0x10, 0xeb, 0xfa};
  const pid_t watcher = thread_called("anykvm-writes");
  ASSERT_NE(watcher, 0);
  const sched_param lowest{};
  ASSERT_EQ(sched_setscheduler(watcher, SCHED_IDLE, &lowest), 0);
  OnOneCpu one;
  cpu_set_t here = one.cpu();
  ASSERT_EQ(sched_setaffinity(watcher, sizeof here, &here), 0);
  std::uint8_t* page = guest.memory.data() + Guest::kCode;
  for (unsigned i = 0; i < 100; ++i) {
    const auto value = static_cast<std::uint8_t>(i);
    ASSERT_EQ(mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), page);
    guest.set_code({0xb0, value, 0xe6, 0x10, 0xeb, 0xfa});
    ASSERT_EQ(guest.run(), 0);
    ASSERT_EQ(reinterpret_cast<std::uint8_t*>(guest.shared)[guest.shared->io.data_offset], value);
  }
}

// The guest waits in a loop for its own code to change; `change` comes from another thread. With `kicks` the
// vCPU leaves KVM_RUN now and then, which the lower levels need.
void expect_seen_while_running(const std::function<void(std::uint8_t*)>& change, bool kicks) {
  make_kickable();
  // again: mov al, 1; cmp al, 2; jne again; out 10H, al
  Guest guest{0xb0, 0x01, 0x3c, 0x02, 0x75, 0xfa, 0xe6, 0x10};
  const pthread_t runner = pthread_self();
  std::atomic<bool> done{false};
  std::thread later([&] {
    usleep(10'000);
    change(guest.memory.data() + kImmediate);
    for (; kicks && !done; usleep(1000)) pthread_kill(runner, SIGUSR1);
  });
  long result = 0;
  while ((result = guest.run()) == -EINTR) {
  }
  EXPECT_EQ(result, 0);
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  done = true;
  later.join();
}

TEST_P(ClientWrites, running_guest_sees_a_store) {
  expect_seen_while_running([](std::uint8_t* byte) { *byte = 2; }, true);
}
TEST_P(ClientWrites, running_guest_sees_a_read) {
  expect_seen_while_running([](std::uint8_t* byte) { read_into(byte, 2); }, true);
}
TEST_P(ClientWrites, running_guest_sees_a_mapping) {
  expect_seen_while_running([](std::uint8_t* byte) { map_over(byte, 2); }, true);
}

// Stores and runs in a race: what was stored before KVM_RUN began is what runs.
TEST_P(ClientWrites, each_run_sees_the_store_before_it) {
  std::thread noise;
  std::atomic<bool> done{false};
  noise = std::thread([&] {  // the same page, beside the code
    std::atomic_ref data(guest.memory.data()[0x1f00]);
    while (!done) ++data;
  });
  for (unsigned i = 0; i < 300; ++i) {
    guest.memory.data()[kImmediate] = static_cast<std::uint8_t>(i);
    ASSERT_EQ(next_output(), static_cast<std::uint8_t>(i));
  }
  done = true;
  noise.join();
}

TEST_P(ClientWrites, memory_that_the_client_watches_itself_is_compared) {
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
  if (fd < 0) GTEST_SKIP() << "userfaultfd(2) is not allowed here";
  uffdio_api api{};
  api.api = UFFD_API;
  ASSERT_EQ(ioctl(fd, UFFDIO_API, &api), 0);
  Pages memory(0x1000);
  memset(memory.data(), 0xf4, 4096);
  uffdio_register request{};
  request.range = {memory.address(), memory.size()};
  request.mode = UFFDIO_REGISTER_MODE_WP;
  ASSERT_EQ(ioctl(fd, UFFDIO_REGISTER, &request), 0);
  Guest other{0xea, 0x00, 0x00, 0x00, 0x10};  // jmp 1000H:0
  ASSERT_EQ(other.set_region(1, 0x10000, memory.size(), memory.address()), 0);
  EXPECT_EQ(other.run(), 0);
  EXPECT_EQ(other.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  memory.data()[0] = 0xe6;  // out F4H, al
  other.start_at_code();
  EXPECT_EQ(other.run(), 0);
  EXPECT_EQ(other.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  close(fd);
}

TEST(ClientWritesWatched, running_guest_sees_changes_without_any_exit) {
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
  if (fd < 0) GTEST_SKIP() << "userfaultfd(2) is not allowed here";
  close(fd);
  Forced level("watch");
  expect_seen_while_running([](std::uint8_t* byte) { *byte = 2; }, false);
  expect_seen_while_running([](std::uint8_t* byte) { read_into(byte, 2); }, false);
  expect_seen_while_running([](std::uint8_t* byte) { map_over(byte, 2); }, false);
}

}  // namespace
}  // namespace anykvm::test
