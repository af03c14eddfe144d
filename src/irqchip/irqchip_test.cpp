#include "irqchip/irqchip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "irqchip/test_support.h"

namespace anykvm::irqchip {
namespace {

using ::testing::ElementsAre;
using testing::TestVm;

constexpr u32 kLevel = 1u << 15, kMask = 1u << 16;

struct IrqChipTest : ::testing::Test {
  IrqChipTest() : vm(2) {}
  void pulse(u32 gsi) {
    vm.chip.set_irq_line(gsi, true);
    vm.chip.set_irq_line(gsi, false);
  }
  bool ready(unsigned cpu) { return vm.chip.interrupt_ready(vm.cpu(cpu).lapic); }

  TestVm vm;
};

// --- PIC through LINT0 ---

TEST_F(IrqChipTest, pic_interrupts_the_boot_processor_only) {
  vm.cpu(0).lapic.reset(false);
  vm.init_pics();
  vm.cpu(0).host.posted = 0;
  pulse(4);
  EXPECT_EQ(vm.cpu(0).host.posted, 1);
  EXPECT_EQ(vm.cpu(1).host.posted, 0);
  EXPECT_TRUE(ready(0));
  EXPECT_FALSE(ready(1));
  EXPECT_EQ(vm.take(), 0x24);
  EXPECT_FALSE(ready(0));
}

TEST_F(IrqChipTest, pic_waits_while_lint0_is_masked) {
  vm.init_pics();
  vm.cpu(0).write(kApicLvtLint0, kMask | 0x700);
  pulse(4);
  EXPECT_FALSE(ready(0));
  vm.cpu(0).host.posted = 0;
  vm.cpu(0).write(kApicLvtLint0, 0x700);
  EXPECT_TRUE(ready(0));
  EXPECT_GE(vm.cpu(0).host.posted, 1);
}

TEST_F(IrqChipTest, pic_reaches_a_cpu_whose_apic_is_off) {
  vm.init_pics();
  vm.cpu(0).lapic.set_apic_base(0xfee00100, false);
  pulse(1);
  EXPECT_EQ(vm.take(), 0x21);
}

TEST_F(IrqChipTest, pic_comes_before_the_local_apic) {
  vm.cpu(0).write(kApicLvtLint0, 0x700);
  vm.init_pics();
  vm.cpu(0).lapic.accept(DeliveryMode::kFixed, 0xf0, false, true);
  pulse(4);
  EXPECT_EQ(vm.take(), 0x24);
  EXPECT_EQ(vm.take(), 0xf0);
}

// --- lines ---

TEST_F(IrqChipTest, line_is_high_while_any_source_holds_it) {
  vm.redirect(20, kLevel | 0x51);
  vm.chip.set_irq_line(20, true, kSourceClient);
  vm.chip.set_irq_line(20, true, kSourceResample);
  vm.chip.set_irq_line(20, false, kSourceClient);
  vm.take();
  vm.cpu(0).write(kApicEoi, 0);
  EXPECT_EQ(vm.take(), 0x51);
  vm.chip.set_irq_line(20, false, kSourceResample);
  vm.cpu(0).write(kApicEoi, 0);
  EXPECT_EQ(vm.take(), -1);
}

TEST_F(IrqChipTest, gsi_without_route_is_ignored) {
  EXPECT_EQ(vm.chip.set_irq_line(24, true), -1);
  EXPECT_EQ(vm.chip.set_irq_line(~0u, true), -1);
}

TEST_F(IrqChipTest, new_routing_moves_irq_0_to_pin_2) {
  kvm_irq_routing_entry entry{};
  entry.gsi = 0;
  entry.type = KVM_IRQ_ROUTING_IRQCHIP;
  entry.u.irqchip = {KVM_IRQCHIP_IOAPIC, 2};
  ASSERT_TRUE(vm.chip.set_routing({&entry, 1}).ok());
  vm.redirect(2, 0x30, 1);
  EXPECT_EQ(vm.chip.set_irq_line(0, true), 1);
  EXPECT_EQ(vm.take(1), 0x30);
}

TEST_F(IrqChipTest, refused_routing_changes_nothing) {
  kvm_irq_routing_entry entry{};
  entry.type = 77;
  EXPECT_EQ(vm.chip.set_routing({&entry, 1}).error().code, EINVAL);
  EXPECT_EQ(vm.chip.routing()->routes(5).size(), 2u);
}

TEST_F(IrqChipTest, msi_route_delivers_on_rise_only) {
  kvm_irq_routing_entry entry{};
  entry.gsi = 40;
  entry.type = KVM_IRQ_ROUTING_MSI;
  entry.u.msi = {0xfee01000, 0, 0x61, {0}};
  ASSERT_TRUE(vm.chip.set_routing({&entry, 1}).ok());
  EXPECT_EQ(vm.chip.set_irq_line(40, false), -1);
  EXPECT_EQ(vm.chip.set_irq_line(40, true), 1);
  EXPECT_EQ(vm.take(1), 0x61);
}

TEST_F(IrqChipTest, signal_msi_delivers_and_says_how_many) {
  kvm_msi msi{};
  msi.address_lo = 0xfee01000;
  msi.data = 0x61;
  EXPECT_EQ(vm.chip.signal_msi(msi).value(), 1);
  EXPECT_EQ(vm.take(1), 0x61);
  msi.address_lo = 0xfee09000;
  EXPECT_EQ(vm.chip.signal_msi(msi).error().code, EPERM);
  msi.flags = 2;
  EXPECT_EQ(vm.chip.signal_msi(msi).error().code, EINVAL);
}

TEST_F(IrqChipTest, signal_msi_with_wide_ids_checks_the_address) {
  vm.chip.set_x2apic_api(true, false);
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.address_hi = 1;
  msi.data = 0x61;
  EXPECT_EQ(vm.chip.signal_msi(msi).error().code, EINVAL);
}

// --- acknowledgement ---

TEST_F(IrqChipTest, listener_hears_of_ioapic_eoi_and_may_lower_the_line) {
  std::vector<u32> heard;
  vm.chip.set_ack_listener([&](u32 gsi) {
    heard.push_back(gsi);
    vm.chip.set_irq_line(gsi, false, kSourceResample);
  });
  vm.redirect(20, kLevel | 0x51);
  vm.chip.set_irq_line(20, true, kSourceResample);
  vm.take();
  vm.cpu(0).write(kApicEoi, 0);
  EXPECT_THAT(heard, ElementsAre(20));
  EXPECT_EQ(vm.take(), -1);
}

TEST_F(IrqChipTest, listener_hears_of_pic_eoi) {
  std::vector<u32> heard;
  vm.chip.set_ack_listener([&](u32 gsi) { heard.push_back(gsi); });
  vm.cpu(0).write(kApicLvtLint0, 0x700);
  vm.init_pics();
  pulse(5);
  vm.take();
  vm.out(0x20, 0x20);
  EXPECT_THAT(heard, ElementsAre(5));
}

// --- ports and memory ---

TEST_F(IrqChipTest, local_apic_page_reads_ones_when_it_is_off_or_in_x2apic_mode) {
  u32 value = 0;
  EXPECT_TRUE(vm.chip.mmio_read(vm.cpu(1).lapic, Gpa{0xfee00020}, &value, 4));
  EXPECT_EQ(value, 1u << 24);
  vm.cpu(1).enter_x2apic();
  EXPECT_TRUE(vm.chip.mmio_read(vm.cpu(1).lapic, Gpa{0xfee00020}, &value, 4));
  EXPECT_EQ(value, ~0u);
}

TEST_F(IrqChipTest, moved_local_apic_page_is_found) {
  u32 value = 0;
  vm.cpu(1).lapic.set_apic_base(0xfef00800, false);
  EXPECT_TRUE(vm.chip.mmio_read(vm.cpu(1).lapic, Gpa{0xfef00030}, &value, 4));
  EXPECT_EQ(value, 0x50014u);
  EXPECT_FALSE(vm.chip.mmio_read(vm.cpu(1).lapic, Gpa{0xfee00030}, &value, 4));
}

TEST_F(IrqChipTest, foreign_ports_and_addresses_are_left_to_the_client) {
  u8 byte;
  u32 word;
  EXPECT_FALSE(vm.chip.pio_read(0x3f8, &byte, 1));
  EXPECT_FALSE(vm.chip.pio_read(0x40, &byte, 1));  // no PIT yet
  EXPECT_FALSE(vm.chip.mmio_read(vm.cpu(0).lapic, Gpa{0xfec01000}, &word, 4));
}

// --- PIT ---

TEST_F(IrqChipTest, pit_drives_irq_0_and_its_eoi_is_the_acknowledge) {
  ASSERT_TRUE(vm.chip.create_pit(vm.clock, true, [] {}).ok());
  vm.cpu(0).write(kApicLvtLint0, kMask | 0x700);
  vm.redirect(0, 0x30);
  vm.out(0x43, 0x34), vm.out(0x40, 0x9c), vm.out(0x40, 0x2e);
  vm.clock.ns += 20'100'000;
  vm.chip.pit()->expire(vm.clock.ns);  // two ticks
  EXPECT_EQ(vm.take(), 0x30);
  EXPECT_EQ(vm.take(), -1);
  vm.cpu(0).write(kApicEoi, 0);
  EXPECT_EQ(vm.take(), 0x30);
  vm.cpu(0).write(kApicEoi, 0);
  EXPECT_EQ(vm.take(), -1);
}

// The PIC is open from reset, so the first tick waits in it for ever once the guest masks LINT0.
TEST_F(IrqChipTest, pit_tick_stuck_in_the_pic_does_not_hold_back_the_ioapic) {
  ASSERT_TRUE(vm.chip.create_pit(vm.clock, true, [] {}).ok());
  vm.cpu(0).write(kApicLvtLint0, kMask | 0x700);
  vm.out(0x43, 0x34), vm.out(0x40, 0x9c), vm.out(0x40, 0x2e);
  vm.clock.ns += 10'100'000;
  vm.chip.pit()->expire(vm.clock.ns);
  vm.redirect(0, 0x30);
  vm.clock.ns += 10'000'000;
  vm.chip.pit()->expire(vm.clock.ns);
  EXPECT_EQ(vm.take(), 0x30);
}

TEST_F(IrqChipTest, second_pit_is_eexist) {
  ASSERT_TRUE(vm.chip.create_pit(vm.clock, true, [] {}).ok());
  EXPECT_EQ(vm.chip.create_pit(vm.clock, true, [] {}).error().code, EEXIST);
}

// --- state ---

TEST_F(IrqChipTest, unknown_chip_id_is_einval) {
  kvm_irqchip chip{};
  chip.chip_id = 3;
  EXPECT_EQ(vm.chip.get_chip(&chip).error().code, EINVAL);
  EXPECT_EQ(vm.chip.set_chip(chip).error().code, EINVAL);
}

TEST_F(IrqChipTest, pic_state_round_trip_by_chip_id) {
  vm.init_pics();
  kvm_irqchip chip{};
  chip.chip_id = KVM_IRQCHIP_PIC_SLAVE;
  ASSERT_TRUE(vm.chip.get_chip(&chip).ok());
  EXPECT_EQ(chip.chip.pic.irq_base, 0x28);
  chip.chip.pic.imr = 0x5a;
  ASSERT_TRUE(vm.chip.set_chip(chip).ok());
  EXPECT_EQ(vm.in(0xa1), 0x5a);
}

// --- split ---

TEST(SplitIrqChip, has_no_pic_ioapic_or_pit) {
  TestVm vm(1, IrqChip::Kind::kSplit);
  u32 value;
  kvm_irqchip chip{};
  EXPECT_FALSE(vm.chip.pio_read(0x20, &value, 1));
  EXPECT_FALSE(vm.chip.mmio_read(vm.cpu(0).lapic, Gpa{kIoapicDefaultAddress}, &value, 4));
  EXPECT_EQ(vm.chip.get_chip(&chip).error().code, ENXIO);
  EXPECT_EQ(vm.chip.create_pit(vm.clock, true, [] {}).error().code, ENOENT);
  EXPECT_EQ(vm.chip.set_irq_line(4, true), -1);
}

constexpr u32 kMsiLevel = 1u << 15;

kvm_irq_routing_entry msi_route(u32 gsi, u32 data, u32 destination = 0) {
  kvm_irq_routing_entry entry{};
  entry.gsi = gsi;
  entry.type = KVM_IRQ_ROUTING_MSI;
  entry.u.msi.address_lo = 0xfee00000 | destination << 12;
  entry.u.msi.data = data;
  return entry;
}

// Pins 0 to 3 belong to the client's IOAPIC.
struct SplitIrqChipWithPins : ::testing::Test {
  TestVm vm{2, IrqChip::Kind::kSplit, 4};

  void route(std::vector<kvm_irq_routing_entry> routes) { ASSERT_TRUE(vm.chip.set_routing(routes).ok()); }
  void serve(u32 gsi, unsigned cpu = 0) {
    vm.chip.set_irq_line(gsi, true);
    vm.take(cpu);
    vm.cpu(cpu).write(kApicEoi, 0);
  }
  const std::vector<int>& heard(unsigned cpu = 0) { return vm.cpu(cpu).host.client_eois; }
};

TEST_F(SplitIrqChipWithPins, eoi_of_a_level_route_is_told) {
  route({msi_route(1, 0x41 | kMsiLevel), msi_route(2, 0x42)});
  serve(1);
  serve(2);
  EXPECT_THAT(heard(), ElementsAre(0x41));
}

TEST_F(SplitIrqChipWithPins, eoi_of_a_route_above_the_reserved_pins_is_not_told) {
  route({msi_route(4, 0x41 | kMsiLevel)});
  serve(4);
  EXPECT_THAT(heard(), ElementsAre());
}

TEST_F(SplitIrqChipWithPins, eoi_is_told_although_the_pin_has_been_sent_elsewhere_meanwhile) {
  route({msi_route(1, 0x41 | kMsiLevel, 0)});
  vm.chip.set_irq_line(1, true);
  vm.take();
  route({msi_route(1, 0x41 | kMsiLevel, 1)});
  vm.cpu(0).write(kApicEoi, 0);
  EXPECT_THAT(heard(), ElementsAre(0x41));
}

TEST_F(SplitIrqChipWithPins, same_vector_as_edge_on_another_cpu_is_not_told) {
  route({msi_route(1, 0x41 | kMsiLevel, 0), msi_route(2, 0x41, 1)});
  serve(2, 1);
  EXPECT_THAT(heard(1), ElementsAre());
}

TEST_F(SplitIrqChipWithPins, pin_routes_are_einval) {
  kvm_irq_routing_entry entry{};
  entry.type = KVM_IRQ_ROUTING_IRQCHIP;
  std::vector routes{entry};
  EXPECT_EQ(vm.chip.set_routing(routes).error().code, EINVAL);
}

TEST_F(SplitIrqChipWithPins, client_vector_comes_through_lint0) {
  EXPECT_TRUE(vm.cpu(0).lapic.offer_client_vector(0x21));
  EXPECT_FALSE(vm.cpu(0).lapic.offer_client_vector(0x22));
  EXPECT_FALSE(vm.chip.interrupt_ready(vm.cpu(1).lapic));
  EXPECT_EQ(vm.take(), 0x21);
  EXPECT_FALSE(vm.chip.interrupt_ready(vm.cpu(0).lapic));
}

TEST_F(SplitIrqChipWithPins, client_vector_waits_while_lint0_is_masked) {
  vm.cpu(0).write(kApicLvtLint0, kLvtMasked);
  vm.cpu(0).lapic.offer_client_vector(0x21);
  EXPECT_FALSE(vm.chip.interrupt_ready(vm.cpu(0).lapic));
  vm.cpu(0).write(kApicLvtLint0, 0x700);
  EXPECT_EQ(vm.take(), 0x21);
}

}  // namespace
}  // namespace anykvm::irqchip
