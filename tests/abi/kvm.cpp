#include "kvm.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "anykvm/anykvm.h"

namespace anykvm::test {

bool on_real_kvm() {
  const char* accel = getenv("ANYKVM_TEST_ACCEL");
  return accel && std::string(accel) == "kvm";
}

int kvm_open() {
  return on_real_kvm() ? open("/dev/kvm", O_RDWR | O_CLOEXEC) : anykvm_open("/dev/kvm", O_RDWR | O_CLOEXEC);
}

int kvm_ioctl(int fd, unsigned long request, unsigned long argument) {
  return on_real_kvm() ? ioctl(fd, request, argument) : anykvm_ioctl(fd, request, argument);
}

void* kvm_mmap(std::size_t size, int fd) {
  constexpr int kProtection = PROT_READ | PROT_WRITE;
  return on_real_kvm() ? mmap(nullptr, size, kProtection, MAP_SHARED, fd, 0)
                       : anykvm_mmap(nullptr, size, kProtection, MAP_SHARED, fd, 0);
}

int kvm_close(int fd) { return on_real_kvm() ? close(fd) : anykvm_close(fd); }

Pages::Pages(std::size_t size)
    : m_size(size),
      m_base(static_cast<std::uint8_t*>(
          mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}

long enable_cap(int fd, std::uint32_t cap, std::uint64_t argument, std::uint32_t flags) {
  kvm_enable_cap request{};
  request.cap = cap;
  request.flags = flags;
  request.args[0] = argument;
  return call(fd, KVM_ENABLE_CAP, &request);
}

SupportedCpuid System::supported_cpuid() const {
  SupportedCpuid cpuid{};
  cpuid.header.nent = 256;
  EXPECT_EQ(call(fd, KVM_GET_SUPPORTED_CPUID, &cpuid), 0);
  return cpuid;
}

void make_kickable() {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigaction(SIGUSR1, &action, nullptr);
}

Guest::Guest(std::initializer_list<std::uint8_t> code, Chips chips) {
  if (chips == Chips::kIrqchip) {
    EXPECT_EQ(call(vm, KVM_CREATE_IRQCHIP), 0);
  }
  if (chips == Chips::kSplit) {
    EXPECT_EQ(enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, 24), 0);
  }
  EXPECT_EQ(set_region(0, 0, memory.size(), memory.address()), 0);
  vcpu = Handle(call(vm, KVM_CREATE_VCPU));
  shared_size = static_cast<std::size_t>(call(fd, KVM_GET_VCPU_MMAP_SIZE));
  shared = static_cast<kvm_run*>(kvm_mmap(shared_size, vcpu));
  set_code(code);
  start_at_code();
}

Guest::~Guest() { munmap(shared, shared_size); }

kvm_regs Guest::regs() {
  kvm_regs regs{};
  EXPECT_EQ(call(vcpu, KVM_GET_REGS, &regs), 0);
  return regs;
}

void Guest::set_lapic(unsigned offset, std::uint32_t value) {
  kvm_lapic_state lapic{};
  EXPECT_EQ(call(vcpu, KVM_GET_LAPIC, &lapic), 0);
  std::memcpy(lapic.regs + offset, &value, sizeof value);
  EXPECT_EQ(call(vcpu, KVM_SET_LAPIC, &lapic), 0);
}

namespace {

struct OneMsr {
  kvm_msrs header;
  kvm_msr_entry entry;
};

}  // namespace

long Guest::set_msr(std::uint32_t index, std::uint64_t value) const {
  OneMsr list{};
  list.header.nmsrs = 1;
  list.entry = {index, 0, value};
  return call(vcpu, KVM_SET_MSRS, &list);
}

std::uint64_t Guest::msr(std::uint32_t index) const {
  OneMsr list{};
  list.header.nmsrs = 1;
  list.entry.index = index;
  EXPECT_EQ(call(vcpu, KVM_GET_MSRS, &list), 1);
  return list.entry.data;
}

long Guest::run_until_kicked() {
  make_kickable();
  std::thread kick([self = pthread_self()] {
    usleep(20'000);
    pthread_kill(self, SIGUSR1);
  });
  const long result = run();
  kick.join();
  return result;
}

void Guest::set_handler(std::uint8_t vector, std::uint16_t address,
                        std::initializer_list<std::uint8_t> code) {
  const std::uint16_t entry[2] = {address, 0};
  std::memcpy(memory.data() + vector * 4, entry, sizeof entry);
  std::copy(code.begin(), code.end(), memory.data() + address);
}

void Guest::enter_long_mode() {
  SupportedCpuid cpuid = supported_cpuid();
  EXPECT_EQ(call(vcpu, KVM_SET_CPUID2, &cpuid), 0);
  const std::uint64_t tables[] = {0xa003, 0xb003, 0x83};  // PML4 to PDPT to a PD with one large page
  for (unsigned level = 0; level < 3; ++level)
    std::memcpy(memory.data() + 0x9000 + level * 0x1000, &tables[level], sizeof tables[level]);
  kvm_sregs sregs{};
  EXPECT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.cs.l = 1;
  sregs.cs.type = 0xb;
  sregs.cs.g = 1;
  sregs.cs.limit = 0xffffffff;
  sregs.cr3 = 0x9000;
  sregs.cr4 = 0x20;
  sregs.cr0 |= 0x80000001;
  sregs.efer = 0x500;
  EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
}

void Guest::show_hyperv(bool features) {
  SupportedCpuid all = supported_cpuid(), theirs{};
  theirs.header.nent = 256;
  EXPECT_EQ(call(fd, KVM_GET_SUPPORTED_HV_CPUID, &theirs), 0);
  auto* end = std::remove_if(all.entries, all.entries + all.header.nent,
                             [](const kvm_cpuid_entry2& entry) { return entry.function >> 8 == 0x400000; });
  end = std::copy_if(theirs.entries, theirs.entries + theirs.header.nent, end,
                     [&](const kvm_cpuid_entry2& entry) { return features || entry.function <= 0x40000002; });
  all.header.nent = static_cast<std::uint32_t>(end - all.entries);
  EXPECT_EQ(call(vcpu, KVM_SET_CPUID2, &all), 0);
}

void Guest::set_code(std::initializer_list<std::uint8_t> code) {
  std::copy(code.begin(), code.end(), memory.data() + kCode);
}

void Guest::start_at_code() {
  kvm_sregs sregs{};
  EXPECT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
  kvm_regs regs{};
  regs.rip = kCode;
  regs.rsp = 0x8000;
  regs.rflags = 2;
  set_regs(regs);
}

}  // namespace anykvm::test
