// A virtual machine with a device that interrupts: the guest sleeps in HLT until somebody presses a button,
// counts the presses, and says when there were five. The interrupt chips (PIC and local APIC) are KVM's; the
// button is a thread.
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace {

template <class T>
int must(const char* what, int fd, unsigned long request, T argument) {
  const int result = ioctl(fd, request, argument);
  if (result < 0) std::perror(what), std::exit(1);
  return result;
}

constexpr int kButton = 1;            // the IRQ line, as a keyboard's
constexpr std::uint8_t kVector = 33;  // where the guest has the PIC send it: 32 + line
constexpr std::uint16_t kHandler = 0x100, kStack = 0x1000;

constexpr std::uint8_t kCode[] = {
    0xb0, 0x11, 0xe6, 0x20,  // the PIC: initialize, with four words:
    0xb0, 32,   0xe6, 0x21,  //   vectors from 32 on,
    0xb0, 0x04, 0xe6, 0x21,  //   the second PIC at line 2,
    0xb0, 0x01, 0xe6, 0x21,  //   8086 mode
    0xb0, 0xfd, 0xe6, 0x21,  //   line 1 is open, the others are masked
    0x31, 0xdb,              // bx = 0, the presses so far
    0xb0, 0x00, 0xe6, 0x10,  // tell port 10H: ready
    0xfa, 0x80, 0xfb, 5,     // again: cli; five?
    0x74, 0x04, 0xfb, 0xf4,  //   then done; else sleep: sti; hlt
    0xeb, 0xf6,              //   and look again
    0xe6, 0x11, 0xf4         // done: tell port 11H
};
constexpr std::uint8_t kHandlerCode[] = {
    0x43, 0x88, 0xd8, 0xe6, 0x10,  // inc bx; tell port 10H the count
    0xb0, 0x20, 0xe6, 0x20, 0xcf   // end of interrupt; iret
};

void press(int vm) {
  for (std::uint32_t level : {1u, 0u}) {
    kvm_irq_level line{};
    line.irq = kButton;
    line.level = level;
    must("KVM_IRQ_LINE", vm, KVM_IRQ_LINE, &line);
  }
}

}  // namespace

int main() {
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  const int vm = must("no virtual machine", kvm, KVM_CREATE_VM, 0ul);
  must("KVM_CREATE_IRQCHIP", vm, KVM_CREATE_IRQCHIP, 0ul);  // before the CPU, which gets a local APIC by this
  const int cpu = must("KVM_CREATE_VCPU", vm, KVM_CREATE_VCPU, 0ul);

  constexpr std::size_t kSize = 0x1000;
  auto* memory = static_cast<std::uint8_t*>(
      mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  constexpr std::uint16_t kStart = 0x200, kEntry[2] = {kHandler, 0};
  std::memcpy(memory + 4 * kVector, kEntry, sizeof kEntry);  // the real-mode vector table is at 0
  std::memcpy(memory + kHandler, kHandlerCode, sizeof kHandlerCode);
  std::memcpy(memory + kStart, kCode, sizeof kCode);
  kvm_userspace_memory_region region{0, 0, 0, kSize, reinterpret_cast<std::uint64_t>(memory)};
  must("KVM_SET_USER_MEMORY_REGION", vm, KVM_SET_USER_MEMORY_REGION, &region);

  kvm_sregs sregs;
  must("KVM_GET_SREGS", cpu, KVM_GET_SREGS, &sregs);
  sregs.cs.base = sregs.cs.selector = 0;
  must("KVM_SET_SREGS", cpu, KVM_SET_SREGS, &sregs);
  kvm_regs regs{};
  regs.rip = kStart;
  regs.rsp = kStack;
  regs.rflags = 2;
  must("KVM_SET_REGS", cpu, KVM_SET_REGS, &regs);
  const int size = must("KVM_GET_VCPU_MMAP_SIZE", kvm, KVM_GET_VCPU_MMAP_SIZE, 0ul);
  auto* run = static_cast<kvm_run*>(
      mmap(nullptr, static_cast<std::size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0));

  std::jthread button;  // pressed again a little after the guest told us of the last press
  for (;;) {
    must("KVM_RUN", cpu, KVM_RUN, 0ul);
    if (run->exit_reason != KVM_EXIT_IO) return std::printf("unexpected exit %u\n", run->exit_reason), 1;
    if (run->io.port == 0x11) break;
    const int count = reinterpret_cast<std::uint8_t*>(run)[run->io.data_offset];
    std::printf(count ? "interrupt %d\n" : "the guest waits\n", count);
    if (count == 5) continue;
    if (button.joinable()) button.join();  // released: only a press that begins is seen
    button = std::jthread([vm] {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      press(vm);
    });
  }
  std::puts("done");
  return 0;
}
