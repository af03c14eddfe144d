// Is there a /dev/kvm of the machine's own, and does a guest run on it?

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "cli/host_checks.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm_backend.h"
#include "vmm/vcpu.h"

namespace anykvm::cli {
namespace {

using vmm::failure;
using vmm::KvmFd;
using vmm::Outcome;

// The smallest guest: HLT in real mode.
Outcome<> run_halt(const KvmFd& kvm) {
  constexpr u8 kHlt = 0xf4;
  constexpr u64 kSize = kPageSize, kStart = 0x1000;
  KvmFd vm(kvm.backend(), kvm.ioctl(KVM_CREATE_VM));
  if (!vm.valid()) return failure("cannot create a virtual machine: {}", strerror(errno));
  vmm::GuestMemory memory = TRY(vmm::GuestMemory::create(kSize));
  memory.write_object(Gpa(0), kHlt);
  kvm_userspace_memory_region region{};
  region.guest_phys_addr = kStart;
  region.memory_size = kSize;
  region.userspace_addr = reinterpret_cast<u64>(memory.at(Gpa(0), kSize));
  if (vm.ioctl(KVM_SET_USER_MEMORY_REGION, &region) < 0)
    return failure("no guest memory: {}", strerror(errno));
  KvmFd vcpu(kvm.backend(), vm.ioctl(KVM_CREATE_VCPU));
  kvm_sregs sregs{};
  if (!vcpu.valid() || vcpu.ioctl(KVM_GET_SREGS, &sregs) < 0) return failure("no vCPU: {}", strerror(errno));
  sregs.cs.base = sregs.cs.selector = 0;
  kvm_regs regs{};
  regs.rip = kStart;
  regs.rflags = 2;
  if (vcpu.ioctl(KVM_SET_SREGS, &sregs) < 0 || vcpu.ioctl(KVM_SET_REGS, &regs) < 0) {
    return failure("cannot set registers: {}", strerror(errno));
  }
  void* run = kvm.backend().mmap(nullptr, sizeof(kvm_run), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.get(), 0);
  if (run == MAP_FAILED) return failure("cannot map a vCPU: {}", strerror(errno));
  int result = vcpu.ioctl(KVM_RUN);
  int error = errno;
  unsigned reason = static_cast<kvm_run*>(run)->exit_reason;
  munmap(run, sizeof(kvm_run));
  if (result < 0) return failure("a guest cannot run: {}", strerror(error));
  if (reason != KVM_EXIT_HLT) return failure("a guest of one HLT ended with exit reason {}", reason);
  return {};
}

}  // namespace

// Its absence is what anykvm is for, so it blocks nothing.
Check check_real_kvm() {
  constexpr const char* kName = "the machine's own /dev/kvm";
  constexpr const char* kCost = "--accel kvm is not available; use anykvm";
  auto backend = vmm::make_kernel_backend();
  KvmFd kvm(*backend, backend->open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm.valid()) {
    const char* why = errno == ENOENT ? "does not exist" : strerror(errno);
    return {kName, Finding::kMissing, why, kCost};
  }
  auto outcome = run_halt(kvm);
  if (!outcome) return {kName, Finding::kMissing, outcome.error().text, kCost};
  return {kName, Finding::kPresent, "runs a guest of one instruction", ""};
}

}  // namespace anykvm::cli
