// Events whose delivery needs the client half-way: the stack or the vector table is MMIO. They must neither
// get lost nor come twice.
#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr std::uint64_t kOutside = 0xc0000;  // no memory slot

unsigned exit_of(const Guest& guest) { return guest.shared->exit_reason; }

// Answers up to `most` MMIO exits (reads give `answer`) and returns how many there were.
unsigned run_through_mmio(Guest& guest, std::uint32_t answer = 0, unsigned most = 20) {
  unsigned count = 0;
  while (guest.run() == 0 && exit_of(guest) == KVM_EXIT_MMIO && count < most) {
    ++count;
    std::memcpy(guest.shared->mmio.data, &answer, sizeof answer);
  }
  return count;
}

void put_stack_outside(Guest& guest) {
  kvm_sregs sregs{};
  EXPECT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.ss.base = kOutside;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
}

// The handler is at 3000H: hlt.
struct Halts : Guest {
  explicit Halts(std::uint8_t vector, std::initializer_list<std::uint8_t> code = {0xeb, 0xfe}) : Guest(code) {
    set_handler(vector, 0x3000, {0xf4});
  }
  void expect_handled() {
    EXPECT_EQ(exit_of(*this), static_cast<unsigned>(KVM_EXIT_HLT));
    EXPECT_EQ(regs().rip, 0x3001u);
    EXPECT_EQ(regs().rsp, 0x8000u - 6);
  }
};

TEST(Delivery, nmi_with_its_stack_outside_memory) {
  Halts guest(2);
  put_stack_outside(guest);
  ASSERT_EQ(call(guest.vcpu, KVM_NMI), 0);
  EXPECT_GE(run_through_mmio(guest), 1u);
  guest.expect_handled();
}

TEST(Delivery, nmi_shows_as_injected_while_the_client_acts) {
  Halts guest(2);
  put_stack_outside(guest);
  ASSERT_EQ(call(guest.vcpu, KVM_NMI), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  kvm_vcpu_events events{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_VCPU_EVENTS, &events), 0);
  EXPECT_EQ(events.nmi.injected, 1);
  EXPECT_EQ(guest.regs().rip, Guest::kCode);
}

TEST(Delivery, immediate_exit_completes_it) {
  Halts guest(2);
  put_stack_outside(guest);
  ASSERT_EQ(call(guest.vcpu, KVM_NMI), 0);
  const unsigned writes = run_through_mmio(guest, 0, 20);
  Halts again(2);
  put_stack_outside(again);
  ASSERT_EQ(call(again.vcpu, KVM_NMI), 0);
  run_through_mmio(again, 0, writes - 1);  // leaves the last one open
  again.shared->immediate_exit = 1;
  EXPECT_EQ(again.run(), -EINTR);
  EXPECT_EQ(again.regs().rip, 0x3000u);
}

TEST(Delivery, interrupt_of_the_client_with_its_stack_outside_memory) {
  Halts guest(0x21);
  put_stack_outside(guest);
  kvm_regs regs = guest.regs();
  regs.rflags |= 0x200;
  guest.set_regs(regs);
  kvm_interrupt interrupt{0x21};
  ASSERT_EQ(call(guest.vcpu, KVM_INTERRUPT, &interrupt), 0);
  EXPECT_GE(run_through_mmio(guest), 1u);
  guest.expect_handled();
}

TEST(Delivery, interrupt_of_the_local_apic_with_its_stack_outside_memory) {
  Guest guest({0xeb, 0xfe}, Guest::Chips::kSplit);
  guest.set_handler(0x41, 0x3000, {0xe6, 0x10});  // out 10h,al
  guest.set_lapic(0xf0, 0x1ff);
  put_stack_outside(guest);
  kvm_regs regs = guest.regs();
  regs.rflags |= 0x200;
  guest.set_regs(regs);
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.data = 0x41;
  ASSERT_EQ(call(guest.vm, KVM_SIGNAL_MSI, &msi), 1);
  EXPECT_GE(run_through_mmio(guest), 1u);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
}

TEST(Delivery, exception_with_its_stack_outside_memory) {
  Halts guest(0, {0x31, 0xc9, 0xf7, 0xf1});  // xor cx,cx; div cx
  put_stack_outside(guest);
  EXPECT_GE(run_through_mmio(guest), 1u);
  guest.expect_handled();
}

TEST(Delivery, vector_table_outside_memory) {
  Halts guest(2);
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.idt.base = kOutside;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  ASSERT_EQ(call(guest.vcpu, KVM_NMI), 0);
  EXPECT_EQ(run_through_mmio(guest, 0x00003000), 1u);
  guest.expect_handled();
}

TEST(Delivery, event_that_the_client_takes_back_half_way_does_not_come) {
  Halts guest(2, {0xf4});
  put_stack_outside(guest);
  ASSERT_EQ(call(guest.vcpu, KVM_NMI), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  kvm_vcpu_events events{};
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VCPU_EVENTS, &events), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 1);
}

}  // namespace
}  // namespace anykvm::test
