#include "hypervisor.h"

#include <algorithm>

namespace anykvm::test {
namespace {

using u64 = std::uint64_t;

constexpr std::uint16_t kCodeSelector = 8, kDataSelector = 0x10;
constexpr unsigned kSpuriousRegister = 0xf0;
constexpr std::uint64_t kHypervisorHandlers = 0xc000, kGuestHandlers = 0xd000;
constexpr unsigned kVectors = 0x80;

struct Gate {
  std::uint16_t offset_low, selector;
  std::uint8_t stack, type;
  std::uint16_t offset_high;
  u64 rest;
};

Gate gate_to(u64 address) {
  return {static_cast<std::uint16_t>(address),
          kCodeSelector,
          0,
          0x8e,
          static_cast<std::uint16_t>(address >> 16),
          0};
}

struct Segment {
  std::uint16_t selector, attributes;
  std::uint32_t limit;
  u64 base;
};

}  // namespace

Hypervisor::Hypervisor(Code guest_code, Chips chips, State state) : Guest({0xf4}, chips) {
  EXPECT_EQ(set_region(1, kFar, far.size(), far.address()), 0);
  enter_long_mode();
  if (state == State::kBlank) return;
  add_efer(kSvme);
  EXPECT_EQ(set_msr(kHostSaveMsr, kHostSave), 1);
  if (chips == Chips::kIrqchip) set_lapic(kSpuriousRegister, 0x1ff);
  // clgi; sti; again: mov eax,100000h; vmrun; out 10h,al; jmp again
  set_code({0x0f, 0x01, 0xdd, 0xfb, 0xb8, 0x00, 0x00, 0x10, 0x00, 0x0f, 0x01, 0xd8, 0xe6, 0x10, 0xeb, 0xf4});
  set_guest_code(guest_code);
  make_tables();
  make_vmcb();
}

void Hypervisor::make_tables() {
  put(kGdt + kCodeSelector, u64{0x00af9b000000ffff});
  put(kGdt + kDataSelector, u64{0x00cf93000000ffff});
  for (unsigned vector = 0; vector < kVectors; ++vector) {
    const auto number = static_cast<std::uint8_t>(vector);
    const u64 own = kHypervisorHandlers + vector * 16, guests = kGuestHandlers + vector * 16;
    put(kIdt + vector * sizeof(Gate), gate_to(own));
    put(kGuestIdt + vector * sizeof(Gate), gate_to(guests));
    set_guest_code({0xb0, number, 0xe6, kHypervisorVectorPort, 0xf4}, own);
    set_guest_code({0xb0, number, 0xe6, kGuestVectorPort, 0x0f, 0x01, 0xd9}, guests);
  }
  for (unsigned level = 0; level < 3; ++level)
    put(kNestedTables + level * 0x1000, kNestedTables + (level + 1) * 0x1000 + 7);
  for (u64 page = 0; page < 0x200; ++page) set_nested_page(page * 0x1000, page * 0x1000 + 7);
  kvm_sregs sregs{};
  EXPECT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.gdt = {kGdt, 0x1f, {}};
  sregs.idt = {kIdt, 0xfff, {}};
  sregs.cs.selector = kCodeSelector;
  EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
}

void Hypervisor::make_vmcb() {
  constexpr Segment kData = {kDataSelector, 0xc93, 0xffffffff, 0};
  set(vmcb::kCs, Segment{kCodeSelector, 0xa9b, 0xffffffff, 0});
  set(vmcb::kEs, kData);
  set(vmcb::kSs, kData);
  set(vmcb::kDs, kData);
  set(vmcb::kGdtr, Segment{0, 0, 0x1f, kGdt});
  set(vmcb::kIdtr, Segment{0, 0, 0xfff, kGuestIdt});
  set(vmcb::kEfer, kSvme | 0x500);
  set(vmcb::kCr0, u64{0x80000011});
  set(vmcb::kCr3, u64{0x9000});
  set(vmcb::kCr4, u64{0x20});
  set(vmcb::kDr6, u64{0xffff0ff0});
  set(vmcb::kDr7, u64{0x400});
  set(vmcb::kRflags, u64{2});
  set(vmcb::kRip, kGuestCode);
  set(vmcb::kRsp, kGuestStack);
  set(vmcb::kPat, u64{0x0007040600070406});
  set(vmcb::kIopm, kIopm);
  set(vmcb::kMsrpm, kMsrpm);
  set(vmcb::kAsid, std::uint32_t{1});
  intercept(vmcb::kVmrun);
  intercept(vmcb::kVmmcall);
}

void Hypervisor::intercept(unsigned which) {
  const unsigned offset = vmcb::kIntercepts1 + which / 32 * 4;
  set(offset, get<std::uint32_t>(offset) | 1u << which % 32);
}

void Hypervisor::use_nested_paging() {
  set(vmcb::kNestedControl, u64{1});
  set(vmcb::kNestedCr3, kNestedTables);
}

void Hypervisor::set_guest_code(Code code, std::uint64_t address) {
  std::copy(code.begin(), code.end(), host(address));
}

void Hypervisor::add_efer(std::uint64_t bits) {
  kvm_sregs sregs{};
  EXPECT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.efer |= bits;
  EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
}

void Hypervisor::send(std::uint8_t vector) const {
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.data = vector;
  EXPECT_EQ(call(vm, KVM_SIGNAL_MSI, &msi), 1);
}

int Hypervisor::run_to_port() {
  EXPECT_EQ(run(), 0);
  EXPECT_EQ(shared->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  return shared->exit_reason == KVM_EXIT_IO ? shared->io.port : -1;
}

std::uint8_t Hypervisor::written() const {
  return *(reinterpret_cast<const std::uint8_t*>(shared) + shared->io.data_offset);
}

std::uint64_t Hypervisor::exit() {
  EXPECT_EQ(run_to_port(), kExitPort);
  return get<std::uint64_t>(vmcb::kExitCode);
}

std::uint64_t Hypervisor::exit_of(unsigned which, Code code) {
  Hypervisor hypervisor(code);
  hypervisor.intercept(which);
  return hypervisor.exit();
}

}  // namespace anykvm::test
