// KVM_CAP_SPLIT_IRQCHIP: local APICs inside, PIC and IOAPIC in the client.
#include <sys/eventfd.h>

#include <thread>

#include "kvm.h"

namespace anykvm::test {
namespace {

constexpr unsigned kLint0 = 0x350, kSpurious = 0xf0;
constexpr std::uint32_t kExtInt = 0x700, kMasked = 1u << 16, kLevel = 1u << 15;

unsigned exit_of(const Guest& guest) { return guest.shared->exit_reason; }

kvm_irq_routing_entry msi_route(std::uint32_t gsi, std::uint32_t data) {
  kvm_irq_routing_entry entry{};
  entry.gsi = gsi;
  entry.type = KVM_IRQ_ROUTING_MSI;
  entry.u.msi.address_lo = 0xfee00000;
  entry.u.msi.data = data;
  return entry;
}

long set_route(int vm, const kvm_irq_routing_entry& entry) {
  struct {
    kvm_irq_routing header;
    kvm_irq_routing_entry entry;
  } table{};
  table.header.nr = 1;
  table.entry = entry;
  return call(vm, KVM_SET_GSI_ROUTING, &table);
}

long pulse(int vm, std::uint32_t gsi) {
  kvm_irq_level level{};
  level.irq = gsi;
  level.level = 1;
  return call(vm, KVM_IRQ_LINE, &level);
}

long interrupt(const Guest& guest, std::uint32_t vector) {
  kvm_interrupt request{vector};
  return call(guest.vcpu, KVM_INTERRUPT, &request);
}

void open_interrupts(Guest& guest) {
  kvm_regs regs = guest.regs();
  regs.rflags |= 0x200;
  guest.set_regs(regs);
}

TEST(SplitIrqchip, is_made_once_and_before_vcpus) {
  Vm vm, late;
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_SPLIT_IRQCHIP, 4097), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_SPLIT_IRQCHIP, 24, 1), -EINVAL);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_SPLIT_IRQCHIP, 24), 0);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_SPLIT_IRQCHIP, 24), -EEXIST);
  EXPECT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), -EEXIST);
  Handle vcpu(call(late.vm, KVM_CREATE_VCPU));
  EXPECT_EQ(enable_cap(late.vm, KVM_CAP_SPLIT_IRQCHIP, 24), -EEXIST);
}

TEST(SplitIrqchip, excludes_a_full_one_made_before) {
  Vm vm;
  ASSERT_EQ(call(vm.vm, KVM_CREATE_IRQCHIP), 0);
  EXPECT_EQ(enable_cap(vm.vm, KVM_CAP_SPLIT_IRQCHIP, 24), -EEXIST);
}

TEST(SplitIrqchip, has_no_pic_ioapic_and_pit) {
  Guest guest({0xf4}, Guest::Chips::kSplit);
  kvm_irqchip chip{};
  kvm_pit_config pit{};
  kvm_pit_state2 state{};
  EXPECT_EQ(call(guest.vm, KVM_GET_IRQCHIP, &chip), -ENXIO);
  EXPECT_EQ(call(guest.vm, KVM_SET_IRQCHIP, &chip), -ENXIO);
  EXPECT_EQ(call(guest.vm, KVM_CREATE_PIT2, &pit), -ENOENT);
  EXPECT_EQ(call(guest.vm, KVM_GET_PIT2, &state), -ENXIO);
}

TEST(SplitIrqchip, routes_are_messages_only) {
  Guest guest({0xf4}, Guest::Chips::kSplit);
  kvm_irq_routing_entry pin{};
  pin.type = KVM_IRQ_ROUTING_IRQCHIP;
  EXPECT_EQ(set_route(guest.vm, pin), -EINVAL);
  EXPECT_EQ(set_route(guest.vm, msi_route(3, 0x41)), 0);
}

TEST(SplitIrqchip, irqfd_works_but_not_with_resampling) {
  Guest guest({0xf4}, Guest::Chips::kSplit);
  Handle event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(static_cast<int>(event));
  request.flags = KVM_IRQFD_FLAG_RESAMPLE;
  request.resamplefd = request.fd;
  EXPECT_EQ(call(guest.vm, KVM_IRQFD, &request), -EINVAL);
  request.flags = 0;
  EXPECT_EQ(call(guest.vm, KVM_IRQFD, &request), 0);
}

// --- Messages and their end ---

// jmp $; the handler: mov dword [b0h],0 (EOI, with DS at the APIC's page); out 10h,al; hlt
struct WithHandler : Guest {
  WithHandler() : Guest({0xeb, 0xfe}, Chips::kSplit) {
    set_handler(0x41, 0x3000, {0x66, 0xc7, 0x06, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0xe6, 0x10, 0xf4});
    kvm_sregs sregs{};
    EXPECT_EQ(call(vcpu, KVM_GET_SREGS, &sregs), 0);
    sregs.ds.base = 0xfee00000;
    EXPECT_EQ(call(vcpu, KVM_SET_SREGS, &sregs), 0);
    set_lapic(kSpurious, 0x1ff);
    open_interrupts(*this);
  }
};

TEST(SplitIrqchip, eoi_of_a_level_pin_exits) {
  WithHandler guest;
  guest.memory.data()[0x3009] = 0xeb;  // jmp $
  guest.memory.data()[0x300a] = 0xfe;
  ASSERT_EQ(set_route(guest.vm, msi_route(23, 0x41 | kLevel)), 0);
  ASSERT_EQ(pulse(guest.vm, 23), 0);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IOAPIC_EOI));
  EXPECT_EQ(guest.shared->eoi.vector, 0x41);
  EXPECT_EQ(guest.regs().rip, 0x3009u);
}

TEST(SplitIrqchip, eoi_of_an_edge_pin_does_not_exit) {
  WithHandler guest;
  ASSERT_EQ(set_route(guest.vm, msi_route(23, 0x41)), 0);
  ASSERT_EQ(pulse(guest.vm, 23), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
}

TEST(SplitIrqchip, eoi_above_the_reserved_pins_does_not_exit) {
  WithHandler guest;
  ASSERT_EQ(set_route(guest.vm, msi_route(24, 0x41 | kLevel)), 0);
  ASSERT_EQ(pulse(guest.vm, 24), 0);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
}

TEST(SplitIrqchip, signalled_message_is_delivered) {
  WithHandler guest;
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.data = 0x41;
  ASSERT_EQ(call(guest.vm, KVM_SIGNAL_MSI, &msi), 1);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
}

// --- ExtINT ---

TEST(SplitIrqchip, interrupt_of_the_clients_pic_is_delivered_through_lint0) {
  Guest guest({0xeb, 0xfe}, Guest::Chips::kSplit);
  guest.set_handler(0x21, 0x3000, {0xe6, 0x10});
  guest.set_lapic(kLint0, kExtInt);
  open_interrupts(guest);
  EXPECT_EQ(interrupt(guest, 256), -EINVAL);
  EXPECT_EQ(interrupt(guest, 0x21), 0);
  EXPECT_EQ(interrupt(guest, 0x22), -EEXIST);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(interrupt(guest, 0x22), 0);
}

TEST(SplitIrqchip, interrupt_with_a_pic_inside_is_enxio) {
  Guest guest({0xf4}, Guest::Chips::kIrqchip);
  EXPECT_EQ(interrupt(guest, 0x21), -ENXIO);
}

TEST(SplitIrqchip, interrupt_wakes_a_halted_vcpu) {
  Guest guest({0xf4, 0xe6, 0x20}, Guest::Chips::kSplit);  // hlt; out 20h,al
  guest.set_handler(0x21, 0x3000, {0xcf});                // iret
  guest.set_lapic(kLint0, kExtInt);
  open_interrupts(guest);
  kvm_mp_state halted{KVM_MP_STATE_HALTED};
  ASSERT_EQ(call(guest.vcpu, KVM_SET_MP_STATE, &halted), 0);
  ASSERT_EQ(interrupt(guest, 0x21), 0);
  kvm_regs regs = guest.regs();
  regs.rip = Guest::kCode + 1;
  guest.set_regs(regs);
  ASSERT_EQ(guest.run(), 0);
  ASSERT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->io.port, 0x20);
}

TEST(SplitIrqchip, window_opens_after_sti) {
  Guest guest({0x90, 0xfb, 0x90, 0xeb, 0xfe}, Guest::Chips::kSplit);  // nop; sti; nop; jmp $
  guest.set_lapic(kLint0, kExtInt);
  guest.shared->request_interrupt_window = 1;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IRQ_WINDOW_OPEN));
  EXPECT_EQ(guest.shared->ready_for_interrupt_injection, 1);
  EXPECT_EQ(guest.regs().rip, Guest::kCode + 3);
}

TEST(SplitIrqchip, window_stays_shut_while_lint0_is_masked) {
  Guest guest({0xfb, 0x90, 0x90, 0xe6, 0x10}, Guest::Chips::kSplit);  // sti; nop; nop; out 10h,al
  guest.set_lapic(kLint0, kExtInt | kMasked);
  guest.shared->request_interrupt_window = 1;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(guest.shared->ready_for_interrupt_injection, 0);
}

TEST(SplitIrqchip, room_for_an_interrupt_is_gone_once_one_waits) {
  Guest guest({0xe6, 0x10, 0xe6, 0x10}, Guest::Chips::kSplit);  // out 10h,al; out 10h,al
  guest.set_lapic(kLint0, kExtInt);
  open_interrupts(guest);
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(guest.shared->ready_for_interrupt_injection, 1);
  guest.shared->immediate_exit = 1;
  ASSERT_EQ(interrupt(guest, 0x21), 0);
  ASSERT_EQ(guest.run(), -EINTR);
  EXPECT_EQ(guest.shared->ready_for_interrupt_injection, 0);
}

TEST(SplitIrqchip, window_opens_again_once_the_interrupt_is_taken) {
  Guest guest({0xeb, 0xfe}, Guest::Chips::kSplit);  // jmp $
  guest.set_handler(0x21, 0x3000, {0xfb, 0x90, 0x90, 0xeb, 0xfe});
  guest.set_lapic(kLint0, kExtInt);
  open_interrupts(guest);
  ASSERT_EQ(interrupt(guest, 0x21), 0);
  guest.shared->request_interrupt_window = 1;
  ASSERT_EQ(guest.run(), 0);
  EXPECT_EQ(exit_of(guest), static_cast<unsigned>(KVM_EXIT_IRQ_WINDOW_OPEN));
  EXPECT_EQ(guest.regs().rip, 0x3002u);
}

}  // namespace
}  // namespace anykvm::test
