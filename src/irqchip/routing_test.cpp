#include "irqchip/routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "irqchip/msi.h"

namespace anykvm::irqchip {
namespace {

kvm_irq_routing_entry pin(u32 gsi, u32 chip, u32 number) {
  kvm_irq_routing_entry entry{};
  entry.gsi = gsi;
  entry.type = KVM_IRQ_ROUTING_IRQCHIP;
  entry.u.irqchip = {chip, number};
  return entry;
}

kvm_irq_routing_entry msi(u32 gsi, u32 address_hi = 0) {
  kvm_irq_routing_entry entry{};
  entry.gsi = gsi;
  entry.type = KVM_IRQ_ROUTING_MSI;
  entry.u.msi = {0xfee00000, address_hi, 0x4041, {0}};
  return entry;
}

// 0, or the errno of building the table.
int errno_of(const std::vector<kvm_irq_routing_entry>& entries,
             std::span<const RoutableChip> chips = full_irqchip(), bool ids_32bit = false) {
  auto table = RoutingTable::create(entries, chips, ids_32bit);
  return table.ok() ? 0 : table.error().code;
}

TEST(Routing, default_table_is_pin_for_pin) {
  auto table = RoutingTable::create(default_routing(), full_irqchip(), false).value();
  EXPECT_EQ(table->routes(0).size(), 2u);
  EXPECT_EQ(table->routes(15).size(), 2u);
  EXPECT_EQ(table->routes(16).size(), 1u);
  EXPECT_EQ(table->routes(23).size(), 1u);
  EXPECT_TRUE(table->routes(24).empty());
  EXPECT_EQ(table->gsi_of_pin(KVM_IRQCHIP_PIC_SLAVE, 4), 12u);
  EXPECT_EQ(table->gsi_of_pin(KVM_IRQCHIP_IOAPIC, 23), 23u);
}

TEST(Routing, pin_outside_the_chip_is_einval) {
  EXPECT_EQ(errno_of({pin(0, KVM_IRQCHIP_PIC_MASTER, 7)}), 0);
  EXPECT_EQ(errno_of({pin(0, KVM_IRQCHIP_PIC_MASTER, 8)}), EINVAL);
  EXPECT_EQ(errno_of({pin(0, KVM_IRQCHIP_PIC_SLAVE, 8)}), EINVAL);
  EXPECT_EQ(errno_of({pin(0, KVM_IRQCHIP_IOAPIC, 23)}), 0);
  EXPECT_EQ(errno_of({pin(0, KVM_IRQCHIP_IOAPIC, 24)}), EINVAL);
  EXPECT_EQ(errno_of({pin(0, 3, 0)}), EINVAL);
}

// SEEDS O2: the number of pins belongs to the architecture's chip; with one adapter pin only pin 0 can be
// routed.
TEST(Routing, seed_o2_chip_with_one_pin_routes_pin_0_only) {
  const RoutableChip adapter[] = {{0, 1}};
  EXPECT_EQ(errno_of({pin(5, 0, 0)}, adapter), 0);
  EXPECT_EQ(errno_of({pin(5, 0, 1)}, adapter), EINVAL);
}

TEST(Routing, gsi_may_reach_several_chips_but_each_once) {
  EXPECT_EQ(errno_of({pin(4, KVM_IRQCHIP_PIC_MASTER, 4), pin(4, KVM_IRQCHIP_IOAPIC, 4)}), 0);
  EXPECT_EQ(errno_of({pin(4, KVM_IRQCHIP_IOAPIC, 4), pin(4, KVM_IRQCHIP_IOAPIC, 5)}), EINVAL);
}

TEST(Routing, msi_has_its_gsi_for_itself) {
  EXPECT_EQ(errno_of({msi(30)}), 0);
  EXPECT_EQ(errno_of({msi(30), msi(30)}), EINVAL);
  EXPECT_EQ(errno_of({msi(4), pin(4, KVM_IRQCHIP_IOAPIC, 4)}), EINVAL);
}

TEST(Routing, gsi_4096_is_einval) {
  EXPECT_EQ(errno_of({msi(4095)}), 0);
  EXPECT_EQ(errno_of({msi(4096)}), EINVAL);
}

TEST(Routing, more_than_4096_entries_are_einval) {
  EXPECT_EQ(errno_of(std::vector<kvm_irq_routing_entry>(4097, msi(1))), EINVAL);
}

TEST(Routing, unknown_flags_and_types_are_einval) {
  auto entry = pin(1, KVM_IRQCHIP_IOAPIC, 1);
  entry.flags = 1;
  EXPECT_EQ(errno_of({entry}), EINVAL);
  entry = msi(1);
  entry.flags = KVM_MSI_VALID_DEVID;
  EXPECT_EQ(errno_of({entry}), 0);
  entry.flags = 2;
  EXPECT_EQ(errno_of({entry}), EINVAL);
  entry = msi(1);
  entry.type = 77;
  EXPECT_EQ(errno_of({entry}), EINVAL);
}

TEST(Routing, synthetic_interrupt_has_its_gsi_for_itself) {
  kvm_irq_routing_entry entry{};
  entry.gsi = 5;
  entry.type = KVM_IRQ_ROUTING_HV_SINT;
  entry.u.hv_sint = {1, 3};
  EXPECT_EQ(errno_of({entry, msi(5)}), EINVAL);
  auto table = RoutingTable::create(std::span(&entry, 1), full_irqchip(), false).value();
  EXPECT_EQ(table->gsi_of_sint(1, 3), 5u);
  EXPECT_EQ(table->gsi_of_sint(1, 4), std::nullopt);
}

TEST(Routing, without_chips_only_msis_can_be_routed) {
  EXPECT_EQ(errno_of({msi(1)}, {}), 0);
  EXPECT_EQ(errno_of({pin(1, KVM_IRQCHIP_IOAPIC, 1)}, {}), EINVAL);
}

TEST(Routing, wide_ids_leave_the_low_byte_of_address_hi_zero) {
  EXPECT_EQ(errno_of({msi(1, 0x100)}, full_irqchip(), true), 0);
  EXPECT_EQ(errno_of({msi(1, 0x101)}, full_irqchip(), true), EINVAL);
  EXPECT_EQ(errno_of({msi(1, 0x101)}, full_irqchip(), false), 0);
}

TEST(Msi, fields_are_where_the_manual_has_them) {
  Message message = decode_msi(0xfee0500c, 0, 0x8131, false);
  EXPECT_EQ(message.destination, 5u);
  EXPECT_TRUE(message.logical);
  EXPECT_TRUE(message.lowest_hint);
  EXPECT_EQ(message.vector, 0x31);
  EXPECT_EQ(message.mode, DeliveryMode::kLowest);
  EXPECT_TRUE(message.level_triggered);
}

TEST(Msi, upper_destination_bits_count_only_with_wide_ids) {
  EXPECT_EQ(decode_msi(0xfee05000, 0x300, 0x31, true).destination, 0x305u);
  EXPECT_EQ(decode_msi(0xfee05000, 0x300, 0x31, false).destination, 5u);
}

}  // namespace
}  // namespace anykvm::irqchip
