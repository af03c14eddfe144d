// No irqchip: the client has the interrupt controllers, local APICs included.
#include "kvm.h"

namespace anykvm::test {
namespace {

unsigned exit_of(const Guest& guest) { return guest.shared->exit_reason; }

TEST(ClientApic, lowering_cr8_exits_and_raising_it_does_not) {
  // mov eax,3; mov cr8,rax; mov eax,5; mov cr8,rax; mov eax,3; mov cr8,rax; hlt
  Guest guest({0xb8, 3,    0,    0,    0,    0x44, 0x0f, 0x22, 0xc0, 0xb8, 5,    0,    0,    0,
               0x44, 0x0f, 0x22, 0xc0, 0xb8, 3,    0,    0,    0,    0x44, 0x0f, 0x22, 0xc0, 0xf4});
  guest.enter_long_mode();
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_SET_TPR));
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 27);
  EXPECT_EQ(guest.shared->cr8, 3u);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
}

TEST(ClientApic, cr8_of_kvm_run_is_the_guests) {
  Guest guest({0x44, 0x0f, 0x20, 0xc0, 0xf4});  // mov rax,cr8; hlt
  guest.enter_long_mode();
  guest.shared->cr8 = 7;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.regs().rax, 7u);
  guest.shared->cr8 = 16;
  EXPECT_EQ(guest.run(), -EINVAL);
}

TEST(ClientApic, apic_base_of_the_guest_is_shown) {
  // mov ecx,1bh; mov eax,fee10900h; xor edx,edx; wrmsr; hlt
  Guest guest({0xb9, 0x1b, 0, 0, 0, 0xb8, 0, 0x09, 0xe1, 0xfe, 0x31, 0xd2, 0x0f, 0x30, 0xf4});
  guest.enter_long_mode();
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.shared->apic_base, 0xfee10900u);
}

TEST(ClientApic, apic_base_that_no_apic_can_have_is_einval) {
  Guest guest;
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.apic_base = 0xfee00401;  // x2APIC without enable, and a reserved bit
  EXPECT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), -EINVAL);
}

TEST(ClientApic, apic_page_is_the_clients) {
  Guest guest({0x66, 0xa1, 0x20, 0x00, 0xf4});  // mov eax,[20h]; hlt
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.ds.base = 0xfee00000;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.phys_addr, 0xfee00020u);
}

TEST(ClientApic, interrupt_given_at_a_port_exit_comes_after_the_instruction) {
  Guest guest({0xe4, 0x60, 0xeb, 0xfe});  // in al,60h; jmp $
  guest.set_handler(0x21, 0x3000, {0xf4});
  kvm_regs regs = guest.regs();
  regs.rflags |= 0x200;
  guest.set_regs(regs);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->ready_for_interrupt_injection, 1);
  kvm_interrupt interrupt{0x21};
  ASSERT_EQ(call(guest.vcpu, KVM_INTERRUPT, &interrupt), 0);
  reinterpret_cast<std::uint8_t*>(guest.shared)[guest.shared->io.data_offset] = 0x42;
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(guest.regs().rip, 0x3001u);
  EXPECT_EQ(guest.regs().rax & 0xff, 0x42u);
}

TEST(ClientApic, states_other_than_runnable_are_einval) {
  Guest guest;
  kvm_mp_state state{KVM_MP_STATE_HALTED};
  EXPECT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &state), -EINVAL);
}

// --- KVM_TPR_ACCESS_REPORTING ---

TEST(TprAccessReporting, write_to_the_apics_page_exits_with_the_instructions_address) {
  // nop; mov dword [80h],20h; jmp $
  Guest guest({0x90, 0x66, 0xc7, 0x06, 0x80, 0x00, 0x20, 0x00, 0x00, 0x00, 0xeb, 0xfe},
              Guest::Chips::kIrqchip);
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.ds.base = 0xfee00000;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  kvm_tpr_access_ctl control{};
  control.enabled = 1;
  ASSERT_EQ(call(guest.vcpu, KVM_TPR_ACCESS_REPORTING, &control), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_TPR_ACCESS));
  EXPECT_EQ(guest.shared->tpr_access.rip, Guest::kCode + 1);
  EXPECT_EQ(guest.shared->tpr_access.is_write, 1u);
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 10);
}

TEST(TprAccessReporting, unknown_flags_are_einval) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  kvm_tpr_access_ctl control{};
  control.flags = 1;
  EXPECT_EQ(call(guest.vcpu, KVM_TPR_ACCESS_REPORTING, &control), -EINVAL);
  EXPECT_EQ(call(guest.vcpu, KVM_TPR_ACCESS_REPORTING, kBadPointer), -EFAULT);
}

// --- KVM_SET_VAPIC_ADDR ---

// nop; mov eax,[80h]; out 10h,al, with DS at the APIC's page: the word's lowest byte becomes the TPR.
TEST(VapicAddress, task_priority_in_memory_is_the_apics) {
  Guest guest({0x90, 0x66, 0xa1, 0x80, 0x00, 0xe6, 0x10}, Guest::Chips::kIrqchip);
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.ds.base = 0xfee00000;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  kvm_vapic_addr address{0x5000};
  ASSERT_EQ(call(guest.vcpu, KVM_SET_VAPIC_ADDR, &address), 0);
  guest.memory.data()[0x5000] = 0x40;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.regs().rax & 0xff, 0x40u);
  address.vapic_addr = 0x10000000;
  EXPECT_EQ(call(guest.vcpu, KVM_SET_VAPIC_ADDR, &address), -EINVAL);
}

// --- Quirks of the local APIC ---

TEST(Quirks, lint0_is_masked_after_reset_if_the_quirk_is_off) {
  Vm with, without;
  kvm_lapic_state state{};
  ASSERT_EQ(call(with.vm, KVM_CREATE_IRQCHIP), 0);
  Handle first(call(with.vm, KVM_CREATE_VCPU));
  ASSERT_EQ(call(first, KVM_GET_LAPIC, &state), 0);
  EXPECT_EQ(state.regs[0x351], 7);  // ExtINT
  ASSERT_EQ(enable_cap(without.vm, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_LINT0_REENABLED), 0);
  ASSERT_EQ(call(without.vm, KVM_CREATE_IRQCHIP), 0);
  Handle second(call(without.vm, KVM_CREATE_VCPU));
  ASSERT_EQ(call(second, KVM_GET_LAPIC, &state), 0);
  EXPECT_EQ(state.regs[0x352], 1);  // masked
}

// mov al,[0]; hlt, with DS at the page that the APIC leaves in x2APIC mode.
TEST(Quirks, page_of_an_apic_in_x2apic_mode_is_the_clients_if_the_quirk_is_off) {
  Guest guest({0xa0, 0x00, 0x00, 0xe6, 0x10, 0xeb, 0xf9}, Guest::Chips::kIrqchip);
  kvm_sregs sregs{};
  ASSERT_EQ(call(guest.vcpu, KVM_GET_SREGS, &sregs), 0);
  sregs.ds.base = 0xfee00000;
  sregs.apic_base |= 0xc00;
  ASSERT_EQ(call(guest.vcpu, KVM_SET_SREGS, &sregs), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.regs().rax & 0xff, 0xffu);
  ASSERT_EQ(enable_cap(guest.vm, KVM_CAP_DISABLE_QUIRKS, KVM_X86_QUIRK_LAPIC_MMIO_HOLE), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_MMIO));
  EXPECT_EQ(guest.shared->mmio.phys_addr, 0xfee00000u);
}

}  // namespace
}  // namespace anykvm::test
