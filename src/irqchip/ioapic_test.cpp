#include "irqchip/ioapic.h"

#include <gtest/gtest.h>

#include "irqchip/test_support.h"

namespace anykvm::irqchip {
namespace {

using testing::TestVm;

constexpr u32 kLevel = 1u << 15, kRemoteIrr = 1u << 14, kMask = 1u << 16, kLogical = 1u << 11;

// IOAPIC pins by way of their GSIs (pin = GSI in the default table); the PICs stay masked by nobody
// acknowledging them.
struct IoapicTest : ::testing::Test {
  IoapicTest() : vm(2) { vm.cpu(0).write(kApicLvtLint0, kMask); }
  int high(u32 pin, unsigned source = kSourceClient) { return vm.chip.set_irq_line(pin, true, source); }
  void low(u32 pin, unsigned source = kSourceClient) { vm.chip.set_irq_line(pin, false, source); }
  void eoi(unsigned cpu = 0) { vm.cpu(cpu).write(kApicEoi, 0); }
  bool remote_irr(unsigned pin) { return vm.ioapic_read(0x10 + 2 * pin) & kRemoteIrr; }

  TestVm vm;
};

TEST_F(IoapicTest, registers_after_reset) {
  EXPECT_EQ(vm.ioapic_read(1), 0x170011u);
  EXPECT_EQ(vm.ioapic_read(0), 0u);
  EXPECT_EQ(vm.ioapic_read(0x10), kMask);
  EXPECT_EQ(vm.ioapic_read(0x11), 0u);
  EXPECT_EQ(vm.ioapic_read(0x3e), kMask);
}

TEST_F(IoapicTest, id_has_four_bits) {
  vm.ioapic_write(0, 0xff000000);
  EXPECT_EQ(vm.ioapic_read(0), 0x0f000000u);
  EXPECT_EQ(vm.ioapic_read(2), 0x0f000000u);
}

TEST_F(IoapicTest, masked_pin_is_ignored) { EXPECT_EQ(high(20), -1); }

TEST_F(IoapicTest, edge_sends_once_per_rise) {
  vm.redirect(20, 0x51, 1);
  EXPECT_EQ(high(20), 1);
  EXPECT_EQ(vm.cpu(1).take(), 0x51);
  eoi(1);
  EXPECT_EQ(high(20), 0);
  EXPECT_EQ(vm.cpu(1).pending(), -1);
  low(20);
  EXPECT_EQ(high(20), 1);
  EXPECT_EQ(vm.cpu(1).pending(), 0x51);
}

TEST_F(IoapicTest, edge_while_masked_is_lost) {
  high(20);
  vm.redirect(20, 0x51);
  EXPECT_EQ(vm.cpu(0).pending(), -1);
}

TEST_F(IoapicTest, logical_destination_and_lowest_priority) {
  vm.cpu(0).logical_id(1, ~0u);
  vm.cpu(1).logical_id(2, ~0u);
  vm.cpu(0).write(kApicTpr, 0x20);
  vm.redirect(20, kLogical | 0x151, 3);
  EXPECT_EQ(high(20), 1);
  EXPECT_EQ(vm.cpu(0).requested(0x51), false);
  EXPECT_EQ(vm.cpu(1).pending(), 0x51);
}

TEST_F(IoapicTest, level_sets_remote_irr_until_eoi) {
  vm.redirect(20, kLevel | 0x51);
  high(20);
  EXPECT_TRUE(remote_irr(20));
  EXPECT_EQ(vm.cpu(0).take(), 0x51);
  EXPECT_EQ(high(20), 0);
  low(20);
  EXPECT_TRUE(remote_irr(20));
  eoi();
  EXPECT_FALSE(remote_irr(20));
  EXPECT_EQ(vm.cpu(0).pending(), -1);
}

TEST_F(IoapicTest, level_still_high_at_eoi_is_sent_again) {
  vm.redirect(20, kLevel | 0x51);
  high(20);
  vm.cpu(0).take();
  eoi();
  EXPECT_EQ(vm.cpu(0).take(), 0x51);
  EXPECT_TRUE(remote_irr(20));
}

TEST_F(IoapicTest, level_high_while_masked_is_sent_on_unmask) {
  vm.redirect(20, kLevel | kMask | 0x51);
  high(20);
  EXPECT_EQ(vm.cpu(0).pending(), -1);
  vm.redirect(20, kLevel | 0x51);
  EXPECT_EQ(vm.cpu(0).pending(), 0x51);
}

TEST_F(IoapicTest, level_is_not_sent_twice_while_remote_irr_is_set) {
  vm.redirect(20, kLevel | 0x51);
  high(20);
  vm.cpu(0).take();
  vm.redirect(20, kLevel | kMask | 0x51);
  vm.redirect(20, kLevel | 0x51);
  EXPECT_FALSE(vm.cpu(0).requested(0x51));
}

TEST_F(IoapicTest, level_nobody_takes_leaves_remote_irr_clear) {
  vm.redirect(20, kLevel | 0x51, 9);
  EXPECT_EQ(high(20), -1);
  EXPECT_FALSE(remote_irr(20));
}

TEST_F(IoapicTest, polarity_is_ignored) {
  constexpr u32 kActiveLow = 1u << 13;
  vm.redirect(20, kLevel | kActiveLow | 0x51);
  EXPECT_EQ(high(20), 1);
  EXPECT_EQ(vm.cpu(0).pending(), 0x51);
}

TEST_F(IoapicTest, going_to_edge_clears_remote_irr) {
  vm.redirect(20, kLevel | 0x51);
  high(20);
  vm.redirect(20, kMask | 0x51);
  EXPECT_FALSE(remote_irr(20));
}

TEST_F(IoapicTest, read_only_bits_of_the_entry_keep) {
  vm.redirect(20, kMask | kRemoteIrr | 1u << 12 | kLevel | 0x51);
  EXPECT_EQ(vm.ioapic_read(0x10 + 40), kMask | kLevel | 0x51u);
}

TEST_F(IoapicTest, two_level_pins_with_one_vector_both_come_back) {
  vm.redirect(20, kLevel | 0x51);
  vm.redirect(21, kLevel | 0x51);
  high(20);
  high(21);
  vm.cpu(0).take();
  low(20);
  eoi();
  EXPECT_EQ(vm.cpu(0).pending(), 0x51);
  EXPECT_FALSE(remote_irr(20));
  EXPECT_TRUE(remote_irr(21));
}

TEST_F(IoapicTest, nmi_entry_delivers_nmi) {
  vm.redirect(20, 0x400, 1);
  EXPECT_EQ(high(20), 1);
  EXPECT_EQ(vm.cpu(1).host.nmis, 1);
}

TEST_F(IoapicTest, state_round_trip_sends_a_level_again) {
  vm.redirect(20, kLevel | kMask | 0x51);
  high(20);
  kvm_irqchip chip{};
  chip.chip_id = KVM_IRQCHIP_IOAPIC;
  ASSERT_TRUE(vm.chip.get_chip(&chip).ok());
  EXPECT_EQ(chip.chip.ioapic.irr, 1u << 20);
  EXPECT_EQ(chip.chip.ioapic.base_address, kIoapicDefaultAddress);
  chip.chip.ioapic.redirtbl[20].fields.mask = 0;
  ASSERT_TRUE(vm.chip.set_chip(chip).ok());
  EXPECT_EQ(vm.cpu(0).pending(), 0x51);
}

TEST_F(IoapicTest, edge_already_sent_is_no_request_in_the_saved_state) {
  vm.redirect(20, 0x51);
  high(20);
  kvm_irqchip chip{};
  chip.chip_id = KVM_IRQCHIP_IOAPIC;
  ASSERT_TRUE(vm.chip.get_chip(&chip).ok());
  EXPECT_EQ(chip.chip.ioapic.irr, 0u);
}

}  // namespace
}  // namespace anykvm::irqchip
