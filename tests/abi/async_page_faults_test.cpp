// Asynchronous page faults (Linux: Documentation/virt/kvm/x86/msr.rst, MSR_KVM_ASYNC_PF_*). The page that is
// missing is one that only the test can fill, by a userfaultfd: nothing depends on how long things take.
#include <fcntl.h>
#include <linux/kvm_para.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <deque>
#include <set>
#include <thread>

#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint32_t kEnable = 0x4b564d02, kInterrupt = 0x4b564d06, kAcknowledge = 0x4b564d07;
constexpr std::uint64_t kEnabled = 1, kAtCpl0 = 2, kToNested = 4, kByInterrupt = 8;
constexpr std::uint64_t kRecord = 0xc000, kLate = 0x100000;
constexpr std::uint8_t kVector = 0x40;
constexpr std::uint8_t kFaulted = 0x10, kReady = 0x11, kDone = 0x12;
constexpr std::uint32_t kWakeAll = ~0u;

// Memory whose pages nobody has until the test fills them. The address is never used again: a thread that
// waited for a page goes on when the descriptor is closed, and must not bring in one of the next test's.
class LatePages {
 public:
  explicit LatePages(std::size_t pages) : m_pages(all_pages().emplace_back(pages * 4096)) {
    madvise(m_pages.data(), m_pages.size(), MADV_DONTNEED);
    m_fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
    uffdio_api api{};
    api.api = UFFD_API;
    uffdio_register range{};
    range.range = {m_pages.address(), m_pages.size()};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    m_usable = m_fd >= 0 && ioctl(m_fd, UFFDIO_API, &api) == 0 && ioctl(m_fd, UFFDIO_REGISTER, &range) == 0;
  }
  ~LatePages() { close(m_fd); }
  LatePages(const LatePages&) = delete;
  LatePages& operator=(const LatePages&) = delete;

  bool usable() const { return m_usable; }
  std::uint64_t address() const { return m_pages.address(); }
  std::size_t size() const { return m_pages.size(); }

  // Waits until somebody needs a page, and says where.
  std::uint64_t wait_for_fault() const {
    uffd_msg message{};
    EXPECT_EQ(read(m_fd, &message, sizeof message), static_cast<ssize_t>(sizeof message));
    return (message.arg.pagefault.address - address()) & ~std::uint64_t{4095};
  }
  void fill(std::uint64_t offset, std::uint8_t value) const {
    alignas(4096) static thread_local std::array<std::uint8_t, 4096> page;
    page.fill(value);
    uffdio_copy copy{};
    copy.dst = address() + offset;
    copy.src = reinterpret_cast<std::uint64_t>(page.data());
    copy.len = 4096;
    EXPECT_EQ(ioctl(m_fd, UFFDIO_COPY, &copy), 0);
  }

 private:
  static std::deque<Pages>& all_pages() {
    static std::deque<Pages> pages;
    return pages;
  }

  Pages& m_pages;
  int m_fd = -1;
  bool m_usable = false;
};

// 64-bit code at CPL 0 that touches a late page and says so at port 12H. Its #PF handler says so at port 10H
// and halts; its handler of the interrupt says so at 11H and acknowledges. Interrupts are enabled.
struct AsyncGuest : Guest {
  explicit AsyncGuest(std::uint64_t late_host, std::size_t late_size)
      : Guest({0x8a, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00,  // mov al,[100000h]
               0xe6, kDone},                              // out 12h,al
              Chips::kIrqchip) {
    enter_long_mode();
    EXPECT_EQ(set_region(1, kLate, late_size, late_host), 0);
    const std::uint64_t gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00affb000000ffff,
                                 0x00cff3000000ffff};
    std::memcpy(memory.data() + 0x2000, gdt, sizeof gdt);
    set_gate(14, 0x4000,
             {0xe6, kFaulted,          // out 10h,al
              0xfb, 0xf4,              // sti; hlt
              0x48, 0x83, 0xc4, 0x08,  // add rsp,8
              0x48, 0xcf});            // iretq
    set_gate(kVector, 0x5000,
             {0xe6, kReady,                  // out 11h,al
              0xb9, 0x07, 0x4d, 0x56, 0x4b,  // mov ecx,MSR_KVM_ASYNC_PF_ACK
              0xb8, 0x01, 0x00, 0x00, 0x00,  // mov eax,1
              0x31, 0xd2, 0x0f, 0x30,        // xor edx,edx; wrmsr
              0x48, 0xcf});                  // iretq
    kvm_sregs sregs = special();
    sregs.gdt = {0x2000, sizeof gdt - 1, {}};
    sregs.idt = {0x3000, 0xfff, {}};
    sregs.cs.selector = 8;
    EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
    set_flags(0x202);
    set_lapic(0xf0, 0x1ff);
  }

  void set_gate(std::uint8_t vector, std::uint16_t address, std::initializer_list<std::uint8_t> code) {
    const std::uint64_t gate[] = {address | 8u << 16 | 0x8eull << 40, 0};
    std::memcpy(memory.data() + 0x3000 + vector * 16u, gate, sizeof gate);
    std::copy(code.begin(), code.end(), memory.data() + address);
  }
  kvm_sregs special() {
    kvm_sregs sregs{};
    EXPECT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
    return sregs;
  }
  void set_flags(std::uint64_t flags) {
    kvm_regs now = regs();
    now.rflags = flags;
    set_regs(now);
  }
  // At CPL 3, from which faults and interrupts come to a stack at 7800H.
  void enter_user_mode() {
    for (unsigned table : {0x9000u, 0xa000u, 0xb000u}) memory.data()[table] |= 4;
    const std::uint64_t stack = 0x7800;
    std::memcpy(memory.data() + 0x6004, &stack, sizeof stack);
    kvm_sregs sregs = special();
    sregs.tr.base = 0x6000;
    sregs.tr.limit = 0x67;
    sregs.tr.type = 0xb;
    sregs.tr.present = 1;
    sregs.cs.selector = 0x1b;
    sregs.cs.dpl = 3;
    sregs.ss = {0, 0xffffffff, 0x23, 3, 1, 3, 1, 1, 0, 1, 0, 0, 0};
    EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
    set_flags(0x3202);  // may use ports
  }

  // The first interrupt after that says that whoever waits is to look again. The guest is back at its code
  // then.
  void enable(std::uint64_t more = kAtCpl0) {
    const kvm_regs before = regs();
    EXPECT_EQ(set_msr(kInterrupt, kVector), 1);
    EXPECT_EQ(set_msr(kEnable, kRecord | kEnabled | kByInterrupt | more), 1);
    EXPECT_EQ(run_to_port(), kReady);
    EXPECT_EQ(token(), kWakeAll);
    finish_interrupt();
    set_regs(before);
    EXPECT_EQ(set_msr(kAcknowledge, 1), 1);
  }

  // The port that the guest writes to next; 0: it did something else.
  int run_to_port() {
    EXPECT_EQ(run(), 0);
    return shared->exit_reason == KVM_EXIT_IO ? shared->io.port : 0;
  }
  std::uint8_t written() const { return reinterpret_cast<std::uint8_t*>(shared)[shared->io.data_offset]; }

  std::uint32_t word(std::uint64_t at) const {
    std::uint32_t value = 0;
    std::memcpy(&value, memory.data() + at, sizeof value);
    return value;
  }
  void set_word(std::uint64_t at, std::uint32_t value) {
    std::memcpy(memory.data() + at, &value, sizeof value);
  }
  std::uint32_t flags() const { return word(kRecord); }
  std::uint32_t token() const { return word(kRecord + 4); }
  void take_fault() { set_word(kRecord, 0); }
  void finish_interrupt() {
    set_word(kRecord + 4, 0);
    set_lapic(0x120, 0);  // in service no more
  }
};

#define SKIP_WITHOUT_USERFAULTFD(pages) \
  if (!(pages).usable()) GTEST_SKIP() << "no userfaultfd here"

// --- Registers ---

TEST(AsyncPageFaultMsr, values_are_kept_and_listed) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  EXPECT_EQ(guest.set_msr(kInterrupt, 0xf3), 1);
  EXPECT_EQ(guest.set_msr(kEnable, kRecord | kEnabled | kAtCpl0 | kByInterrupt), 1);
  EXPECT_EQ(guest.msr(kInterrupt), 0xf3u);
  EXPECT_EQ(guest.msr(kEnable), kRecord | kEnabled | kAtCpl0 | kByInterrupt);
  EXPECT_EQ(guest.set_msr(kAcknowledge, 1), 1);
  EXPECT_EQ(guest.msr(kAcknowledge), 0u);
  std::vector<std::uint32_t> list(1001);  // struct kvm_msr_list
  list[0] = 1000;
  ASSERT_EQ(call(guest.fd, KVM_GET_MSR_INDEX_LIST, list.data()), 0);
  const std::set<std::uint32_t> listed(list.begin() + 1, list.begin() + 1 + list[0]);
  EXPECT_TRUE(listed.contains(kEnable) && listed.contains(kInterrupt) && listed.contains(kAcknowledge));
}

TEST(AsyncPageFaultMsr, reserved_bits_and_addresses_without_memory_are_refused) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  EXPECT_EQ(guest.set_msr(kEnable, kRecord | 0x10), 0);
  EXPECT_EQ(guest.set_msr(kEnable, kRecord | 0x20), 0);
  EXPECT_EQ(guest.set_msr(kEnable, 0x10000000 | kEnabled | kByInterrupt), 0);
  EXPECT_EQ(guest.set_msr(kEnable, 0x10000000), 1);
  EXPECT_EQ(guest.set_msr(kInterrupt, 0x100), 0);
  EXPECT_EQ(guest.set_msr(kEnable, kRecord | kEnabled | kToNested | kByInterrupt), 1);
  EXPECT_EQ(enable_cap(guest.vcpu, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1), 0);
  EXPECT_EQ(guest.set_msr(kEnable, kRecord | kEnabled | kToNested | kByInterrupt), 0);
}

TEST(AsyncPageFaultMsr, nothing_can_be_enabled_without_a_local_apic) {
  Guest guest;
  EXPECT_EQ(guest.set_msr(kEnable, kRecord | kEnabled | kByInterrupt), 0);
  EXPECT_EQ(guest.set_msr(kEnable, 0), 1);
  EXPECT_EQ(guest.set_msr(kInterrupt, 0xf3), 0);
}

TEST(AsyncPageFaultMsr, init_switches_them_off) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  EXPECT_EQ(guest.set_msr(kInterrupt, 0xf3), 1);
  EXPECT_EQ(guest.set_msr(kEnable, kRecord | kEnabled | kByInterrupt), 1);
  kvm_vcpu_events events{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_VCPU_EVENTS, &events), 0);
  events.flags = KVM_VCPUEVENT_VALID_SMM;
  events.smi.latched_init = 1;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  guest.run();  // there is no memory where the CPU begins
  EXPECT_EQ(guest.msr(kInterrupt), 0u);
  EXPECT_EQ(guest.msr(kEnable), 0u);
}

TEST(AsyncPageFaultMsr, features_and_capabilities_say_that_they_are_there) {
  System system;
  EXPECT_EQ(call(system.fd, KVM_CHECK_EXTENSION, KVM_CAP_ASYNC_PF), 1);
  EXPECT_EQ(call(system.fd, KVM_CHECK_EXTENSION, KVM_CAP_ASYNC_PF_INT), 1);
  const SupportedCpuid cpuid = system.supported_cpuid();
  std::uint32_t features = 0;
  for (unsigned i = 0; i < cpuid.header.nent; ++i)
    if (cpuid.entries[i].function == KVM_CPUID_FEATURES) features = cpuid.entries[i].eax;
  EXPECT_TRUE(features >> KVM_FEATURE_ASYNC_PF & 1);
  EXPECT_TRUE(features >> KVM_FEATURE_ASYNC_PF_INT & 1);
}

// --- Pages ---

TEST(AsyncPageFault, guest_runs_on_until_it_hears_that_the_page_is_there) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable();
  ASSERT_EQ(guest.run_to_port(), kFaulted);
  const auto token = static_cast<std::uint32_t>(guest.special().cr2);
  EXPECT_NE(token, 0u);
  EXPECT_NE(token, kWakeAll);
  EXPECT_EQ(guest.flags(), 1u);
  EXPECT_EQ(guest.token(), 0u);
  EXPECT_EQ(guest.word(guest.regs().rsp), 0u);  // error code
  EXPECT_EQ(late.wait_for_fault(), 0u);
  guest.take_fault();
  late.fill(0, 0x5a);
  ASSERT_EQ(guest.run_to_port(), kReady);
  EXPECT_EQ(guest.token(), token);
  guest.finish_interrupt();
  ASSERT_EQ(guest.run_to_port(), kDone);
  EXPECT_EQ(guest.written(), 0x5a);
}

TEST(AsyncPageFault, user_code_needs_no_permission) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable(0);
  guest.enter_user_mode();
  ASSERT_EQ(guest.run_to_port(), kFaulted);
  EXPECT_EQ(guest.flags(), 1u);
  late.fill(0, 0x5b);
  guest.take_fault();
  ASSERT_EQ(guest.run_to_port(), kReady);
  guest.finish_interrupt();
  ASSERT_EQ(guest.run_to_port(), kDone);
  EXPECT_EQ(guest.written(), 0x5b);
}

TEST(AsyncPageFault, code_on_a_late_page_is_waited_for_as_data_is) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable();
  kvm_regs regs = guest.regs();
  regs.rip = kLate;
  guest.set_regs(regs);
  ASSERT_EQ(guest.run_to_port(), kFaulted);
  EXPECT_EQ(guest.flags(), 1u);
}

// The token's place is taken until the guest says that it is done.
TEST(AsyncPageFault, next_page_is_told_of_when_the_guest_is_done_with_the_last) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable();
  ASSERT_EQ(guest.run_to_port(), kFaulted);
  const auto token = static_cast<std::uint32_t>(guest.special().cr2);
  guest.take_fault();
  guest.set_word(kRecord + 4, 0x1234);
  late.fill(0, 1);
  guest.run_until_kicked();
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_INTR));
  EXPECT_EQ(guest.token(), 0x1234u);
  guest.set_word(kRecord + 4, 0);
  EXPECT_EQ(guest.set_msr(kAcknowledge, 1), 1);
  ASSERT_EQ(guest.run_to_port(), kReady);
  EXPECT_EQ(guest.token(), token);
}

TEST(AsyncPageFault, what_is_under_way_is_forgotten_when_the_guest_switches_it_off) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable();
  ASSERT_EQ(guest.run_to_port(), kFaulted);
  guest.take_fault();
  EXPECT_EQ(guest.set_msr(kEnable, kRecord), 1);
  late.fill(0, 1);
  guest.run_until_kicked();
  EXPECT_EQ(guest.shared->exit_reason, static_cast<unsigned>(KVM_EXIT_INTR));
  EXPECT_EQ(guest.token(), 0u);
}

TEST(AsyncPageFault, vm_ends_while_a_page_is_still_awaited) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  {
    AsyncGuest guest(late.address(), late.size());
    guest.enable();
    ASSERT_EQ(guest.run_to_port(), kFaulted);
    EXPECT_EQ(late.wait_for_fault(), 0u);
  }
  late.fill(0, 1);
}

// The vCPU waits itself: the guest says nothing before it has the page.
void expect_wait(AsyncGuest& guest, const LatePages& late) {
  std::thread filler([&] {
    EXPECT_EQ(late.wait_for_fault(), 0u);
    late.fill(0, 0x5c);
  });
  const std::uint32_t flags = guest.flags();
  EXPECT_EQ(guest.run_to_port(), kDone);
  EXPECT_EQ(guest.written(), 0x5c);
  EXPECT_EQ(guest.flags(), flags);
  filler.join();
}

TEST(AsyncPageFault, guest_that_did_not_ask_waits) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  expect_wait(guest, late);
}

TEST(AsyncPageFault, guest_that_takes_no_interrupts_for_them_waits) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  EXPECT_EQ(guest.set_msr(kEnable, kRecord | kEnabled | kAtCpl0), 1);
  expect_wait(guest, late);
}

TEST(AsyncPageFault, kernel_code_waits_unless_the_guest_wants_them_there) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable(0);
  expect_wait(guest, late);
}

TEST(AsyncPageFault, code_with_interrupts_disabled_waits) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable();
  guest.set_flags(2);
  expect_wait(guest, late);
}

TEST(AsyncPageFault, guest_that_has_not_taken_the_last_fault_waits) {
  LatePages late(1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable();
  guest.set_word(kRecord, 1);
  expect_wait(guest, late);
}

// Each fault's handler touches the next page. The vCPU waits at the 65th.
TEST(AsyncPageFault, at_most_64_pages_are_awaited_at_once) {
  constexpr unsigned kMost = 64;
  LatePages late(kMost + 1);
  SKIP_WITHOUT_USERFAULTFD(late);
  AsyncGuest guest(late.address(), late.size());
  guest.enable();
  guest.set_gate(14, 0x4000, {0xc7, 0x04,    0x25, 0x00, 0xc0, 0x00, 0x00, 0, 0, 0, 0,  // mov dword [c000h],0
                              0x48, 0x81,    0xc3, 0x00, 0x10, 0x00, 0x00,              // add rbx,1000h
                              0xfb,                                                     // sti
                              0x8a, 0x03,                                               // mov al,[rbx]
                              0xfa,                                                     // cli
                              0xe6, kFaulted});                                         // out 10h,al
  kvm_regs regs = guest.regs();
  regs.rbx = kLate;
  guest.set_regs(regs);
  std::set<std::uint64_t> wanted;
  std::thread filler([&] {
    while (wanted.size() <= kMost) wanted.insert(late.wait_for_fault());
    for (std::uint64_t page : wanted) late.fill(page, static_cast<std::uint8_t>(page >> 12));
  });
  int port = guest.run_to_port();
  for (; port == kReady; port = guest.run_to_port()) guest.finish_interrupt();
  EXPECT_EQ(port, kFaulted);
  EXPECT_EQ(guest.written(), kMost);
  filler.join();
}

// A file's page that the host does not have in memory, where such a file can be made.
TEST(AsyncPageFault, page_of_a_file_that_is_not_in_memory_is_awaited) {
  char path[] = "/var/tmp/anykvm-test-XXXXXX";
  const int fd = mkostemp(path, O_CLOEXEC);
  ASSERT_GE(fd, 0);
  unlink(path);
  const std::array<std::uint8_t, 4096> page{0x5d};
  ASSERT_EQ(write(fd, page.data(), page.size()), 4096);
  ASSERT_EQ(fsync(fd), 0);
  ASSERT_EQ(posix_fadvise(fd, 0, 4096, POSIX_FADV_DONTNEED), 0);
  void* const mapped = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  ASSERT_NE(mapped, MAP_FAILED);
  unsigned char in_memory = 1;
  ASSERT_EQ(mincore(mapped, 4096, &in_memory), 0);
  if (!(in_memory & 1)) {
    AsyncGuest guest(reinterpret_cast<std::uint64_t>(mapped), 4096);
    guest.enable();
    EXPECT_EQ(guest.run_to_port(), kFaulted);
    const auto token = static_cast<std::uint32_t>(guest.special().cr2);
    guest.take_fault();
    EXPECT_EQ(guest.run_to_port(), kReady);
    EXPECT_EQ(guest.token(), token);
    guest.finish_interrupt();
    EXPECT_EQ(guest.run_to_port(), kDone);
    EXPECT_EQ(guest.written(), 0x5d);
  }
  munmap(mapped, 4096);
  if (in_memory & 1) GTEST_SKIP() << "files under /var/tmp stay in memory";
}

}  // namespace
}  // namespace anykvm::test
