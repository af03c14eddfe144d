#include "vmm/vcpu_setup.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <type_traits>

#include "vmm/boot_cpu.h"

namespace anykvm::vmm {
namespace {

using Entries = std::vector<kvm_cpuid_entry2>;

// A kernel structure that ends in a flexible array, with room for `count` elements.
template <class Header, class Element>
class WithArray {
 public:
  explicit WithArray(size_t count) : m_words((sizeof(Header) + count * sizeof(Element) + 7) / 8) {}
  // SAFETY: the storage is zeroed, aligned for any of the kernel's structures and large enough.
  Header* get() { return reinterpret_cast<Header*>(m_words.data()); }
  Element* elements() {
    return reinterpret_cast<Element*>(reinterpret_cast<u8*>(m_words.data()) + sizeof(Header));
  }

 private:
  std::vector<u64> m_words;
};

using CpuidList = WithArray<kvm_cpuid2, kvm_cpuid_entry2>;
using MsrList = WithArray<kvm_msrs, kvm_msr_entry>;

// The kernel wants a list at least as long as its answer and says E2BIG until it is.
Outcome<Entries> supported_cpuid(const KvmFd& kvm) {
  constexpr u32 kMost = 4096;
  for (u32 count = 128; count <= kMost; count *= 2) {
    CpuidList list(count);
    list.get()->nent = count;
    if (kvm.ioctl(KVM_GET_SUPPORTED_CPUID, list.get()) == 0) {
      return Entries(list.elements(), list.elements() + list.get()->nent);
    }
    if (errno != E2BIG) break;
  }
  return failure("cannot ask for the supported CPUID: {}", strerror(errno));
}

Outcome<> set_cpuid(const Vcpu& vcpu, const Entries& entries) {
  CpuidList list(entries.size());
  list.get()->nent = static_cast<u32>(entries.size());
  std::copy(entries.begin(), entries.end(), list.elements());
  if (vcpu.fd().ioctl(KVM_SET_CPUID2, list.get()) == 0) return {};
  return failure("cannot set the CPUID of vCPU {}: {}", vcpu.index(), strerror(errno));
}

// What firmware does to the local APIC of a PC: the PIC comes in at LINT0, NMI at LINT1 (virtual wire mode).
Outcome<> wire_local_apic(const Vcpu& vcpu) {
  constexpr size_t kLint0 = 0x350, kLint1 = 0x360;
  constexpr u32 kDeliveryMask = 0x700, kNmi = 0x400, kExtInt = 0x700, kMasked = 0x10000;
  kvm_lapic_state lapic{};
  if (vcpu.fd().ioctl(KVM_GET_LAPIC, &lapic) < 0) {
    return failure("cannot read the local APIC of vCPU {}: {}", vcpu.index(), strerror(errno));
  }
  auto set_mode = [&](size_t reg, u32 mode) {
    u32 value;
    std::memcpy(&value, lapic.regs + reg, sizeof value);
    value = (value & ~(kDeliveryMask | kMasked)) | mode;
    std::memcpy(lapic.regs + reg, &value, sizeof value);
  };
  set_mode(kLint0, kExtInt);
  set_mode(kLint1, kNmi);
  if (vcpu.fd().ioctl(KVM_SET_LAPIC, &lapic) == 0) return {};
  return failure("cannot set the local APIC of vCPU {}: {}", vcpu.index(), strerror(errno));
}

// Also firmware's work: fast string operations on, all memory write-back. A KVM without one of these MSRs
// takes the ones before it and reports how many; Linux runs on without them.
Outcome<> set_msrs(const Vcpu& vcpu) {
  constexpr u32 kMiscEnable = 0x1a0, kMtrrDefaultType = 0x2ff;
  constexpr u64 kFastStrings = 1, kMtrrEnabledWriteBack = 0x806;
  constexpr u32 kHwcr = 0xc0010015;
  constexpr u64 kTscFreqSel = 1 << 24;  // the TSC counts at a constant rate (AMD)
  MsrList list(3);
  list.get()->nmsrs = 3;
  list.elements()[0] = {kMtrrDefaultType, 0, kMtrrEnabledWriteBack};
  list.elements()[1] = {kMiscEnable, 0, kFastStrings};
  list.elements()[2] = {kHwcr, 0, kTscFreqSel};
  if (vcpu.fd().ioctl(KVM_SET_MSRS, list.get()) >= 0) return {};
  return failure("cannot set the MSRs of vCPU {}: {}", vcpu.index(), strerror(errno));
}

}  // namespace

Outcome<VcpuSetup> VcpuSetup::create(const KvmFd& kvm, u32 cpus) {
  VcpuSetup setup;
  setup.m_supported = TRY(supported_cpuid(kvm));
  setup.m_cpus = cpus;
  setup.m_tsc_deadline = kvm.ioctl(KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
  return setup;
}

Outcome<> VcpuSetup::apply(const Vcpu& vcpu) const {
  TRY(set_cpuid(vcpu, cpuid_for_vcpu(m_supported, {vcpu.index(), m_cpus, m_tsc_deadline})));
  TRY(set_msrs(vcpu));
  return wire_local_apic(vcpu);
}

Outcome<> VcpuSetup::apply_boot_state(const Vcpu& vcpu, Gpa entry) const {
  kvm_sregs sregs{};
  if (vcpu.fd().ioctl(KVM_GET_SREGS, &sregs) < 0)
    return failure("cannot read the registers: {}", strerror(errno));
  set_boot_sregs(sregs);
  if (vcpu.fd().ioctl(KVM_SET_SREGS, &sregs) < 0) {
    return failure("cannot set the control registers: {}", strerror(errno));
  }
  kvm_regs regs = boot_regs(entry);
  if (vcpu.fd().ioctl(KVM_SET_REGS, &regs) < 0)
    return failure("cannot set the registers: {}", strerror(errno));
  return {};
}

}  // namespace anykvm::vmm
