#include "irqchip/apic_bus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "irqchip/test_support.h"

namespace anykvm::irqchip {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::TestVm;

// Four CPUs in xAPIC mode, logical IDs 1, 2, 4, 8 in the flat model.
struct ApicBusTest : ::testing::Test {
  ApicBusTest() : vm(4) {
    for (u32 i = 0; i < 4; i++) vm.cpu(i).logical_id(1u << i, 0xffffffff);
  }
  static Message physical(u32 destination) { return {.destination = destination, .vector = 0x40}; }
  static Message logical(u32 destination) {
    return {.destination = destination, .logical = true, .vector = 0x40};
  }
  static Message with(Shorthand shorthand) { return {.vector = 0x40, .shorthand = shorthand}; }
  void enter_x2apic() {
    for (auto& cpu : vm.cpus) cpu->enter_x2apic();
  }
  // Numbers of the CPUs that the message reaches.
  std::vector<unsigned> addressed(const Message& message, Lapic* source = nullptr) {
    std::vector<unsigned> result;
    for (unsigned i = 0; i < vm.cpus.size(); i++)
      if (vm.chip.bus().matches(message, vm.cpu(i).lapic, source)) result.push_back(i);
    return result;
  }
  std::vector<unsigned> pending() {
    std::vector<unsigned> result;
    for (unsigned i = 0; i < vm.cpus.size(); i++)
      if (vm.cpu(i).pending() >= 0) result.push_back(i);
    return result;
  }
  Lapic* lapic(unsigned i) { return &vm.cpu(i).lapic; }
  ApicBus& bus() { return vm.chip.bus(); }

  TestVm vm;
};

TEST_F(ApicBusTest, physical_destination_names_one_cpu) {
  EXPECT_THAT(addressed(physical(2)), ElementsAre(2));
  EXPECT_THAT(addressed(physical(9)), IsEmpty());
}

TEST_F(ApicBusTest, physical_destination_goes_by_the_written_id_and_reaches_all_that_share_it) {
  vm.cpu(1).write(kApicId, 3u << 24);
  bus().deliver(physical(1), nullptr);
  EXPECT_THAT(pending(), IsEmpty());
  bus().deliver(physical(3), nullptr);
  EXPECT_THAT(pending(), ElementsAre(1, 3));
}

TEST_F(ApicBusTest, physical_ff_is_everybody) {
  EXPECT_THAT(addressed(physical(0xff)), ElementsAre(0, 1, 2, 3));
}

TEST_F(ApicBusTest, logical_flat_is_a_bit_mask) {
  EXPECT_THAT(addressed(logical(0x05)), ElementsAre(0, 2));
  EXPECT_THAT(addressed(logical(0xff)), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(addressed(logical(0x00)), IsEmpty());
}

TEST_F(ApicBusTest, logical_cluster_matches_cluster_number_and_bit) {
  vm.cpu(0).logical_id(0x11, 0x0fffffff);
  vm.cpu(1).logical_id(0x12, 0x0fffffff);
  vm.cpu(2).logical_id(0x21, 0x0fffffff);
  vm.cpu(3).logical_id(0x22, 0x0fffffff);
  EXPECT_THAT(addressed(logical(0x13)), ElementsAre(0, 1));
  EXPECT_THAT(addressed(logical(0x22)), ElementsAre(3));
  EXPECT_THAT(addressed(logical(0x31)), IsEmpty());
  EXPECT_THAT(addressed(logical(0xff)), ElementsAre(0, 1, 2, 3));
}

TEST_F(ApicBusTest, shorthands_ignore_the_destination) {
  EXPECT_THAT(addressed(with(Shorthand::kSelf), lapic(1)), ElementsAre(1));
  EXPECT_THAT(addressed(with(Shorthand::kAllIncludingSelf), lapic(1)), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(addressed(with(Shorthand::kAllExcludingSelf), lapic(1)), ElementsAre(0, 2, 3));
}

TEST_F(ApicBusTest, hardware_disabled_cpu_is_never_addressed) {
  lapic(2)->set_apic_base(0xfee00000, true);
  EXPECT_THAT(addressed(physical(2)), IsEmpty());
  EXPECT_THAT(addressed(physical(0xff)), ElementsAre(0, 1, 3));
  EXPECT_EQ(bus().deliver(physical(2), nullptr), -1);
}

TEST_F(ApicBusTest, x2apic_physical_has_32_bits) {
  enter_x2apic();
  EXPECT_THAT(addressed(physical(3), lapic(0)), ElementsAre(3));
  EXPECT_THAT(addressed(physical(0x103), lapic(0)), IsEmpty());
  EXPECT_THAT(addressed(physical(0xffffffff), lapic(0)), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(addressed(physical(0xff), lapic(0)), IsEmpty());
}

TEST_F(ApicBusTest, x2apic_logical_is_cluster_and_mask) {
  TestVm big(18);
  for (auto& cpu : big.cpus) cpu->enter_x2apic();
  EXPECT_TRUE(big.chip.bus().matches(logical(0x00010001), big.cpu(16).lapic, lapic(0)));
  EXPECT_TRUE(big.chip.bus().matches(logical(0x00010003), big.cpu(17).lapic, lapic(0)));
  EXPECT_FALSE(big.chip.bus().matches(logical(0x00010001), big.cpu(17).lapic, lapic(0)));
  EXPECT_FALSE(big.chip.bus().matches(logical(0x00010001), big.cpu(0).lapic, lapic(0)));
  EXPECT_TRUE(big.chip.bus().matches(logical(0x00008001), big.cpu(15).lapic, lapic(0)));
}

TEST_F(ApicBusTest, msi_to_ff_reaches_x2apics_until_the_quirk_is_off) {
  enter_x2apic();
  EXPECT_THAT(addressed(physical(0xff)), ElementsAre(0, 1, 2, 3));
  bus().disable_broadcast_quirk();
  EXPECT_THAT(addressed(physical(0xff)), IsEmpty());
  EXPECT_THAT(addressed(physical(0xffffffff)), ElementsAre(0, 1, 2, 3));
}

TEST_F(ApicBusTest, xapic_cpu_above_255_answers_to_its_full_number) {
  testing::FakeHost host;
  Lapic far(bus(), vm.clock, host, 0x102, false);
  EXPECT_TRUE(bus().matches(physical(0x102), far, lapic(0)));
}

TEST_F(ApicBusTest, delivery_counts_who_took_it_and_merges) {
  EXPECT_EQ(bus().deliver(logical(0x0f), nullptr), 4);
  EXPECT_EQ(bus().deliver(physical(1), nullptr), 0);
  EXPECT_EQ(bus().deliver(physical(7), nullptr), -1);
}

TEST_F(ApicBusTest, software_disabled_target_does_not_take_it) {
  vm.cpu(1).write(kApicSvr, 0xff);
  EXPECT_EQ(bus().deliver(physical(1), nullptr), -1);
  EXPECT_EQ(bus().deliver(physical(0xff), nullptr), 3);
}

TEST_F(ApicBusTest, lowest_priority_takes_one_the_least_busy) {
  vm.cpu(0).write(kApicTpr, 0x30);
  vm.cpu(1).write(kApicTpr, 0x20);
  vm.cpu(2).write(kApicTpr, 0x10);
  vm.cpu(3).write(kApicTpr, 0x20);
  Message message = logical(0x0f);
  message.mode = DeliveryMode::kLowest;
  EXPECT_EQ(bus().deliver(message, nullptr), 1);
  EXPECT_THAT(pending(), ElementsAre(2));
}

TEST_F(ApicBusTest, lowest_priority_among_equals_is_chosen_by_vector) {
  Message message = logical(0x0f);
  message.mode = DeliveryMode::kLowest;
  message.vector = 0x41;
  bus().deliver(message, nullptr);
  message.vector = 0x43;
  bus().deliver(message, nullptr);
  EXPECT_THAT(pending(), ElementsAre(1, 3));
}

TEST_F(ApicBusTest, lowest_priority_passes_over_software_disabled_cpus) {
  vm.cpu(0).write(kApicSvr, 0xff);
  Message message = logical(0x03);
  message.mode = DeliveryMode::kLowest;
  EXPECT_EQ(bus().deliver(message, nullptr), 1);
  EXPECT_THAT(pending(), ElementsAre(1));
}

TEST_F(ApicBusTest, redirection_hint_makes_a_fixed_msi_pick_one) {
  Message message = logical(0x0f);
  message.lowest_hint = true;
  EXPECT_EQ(bus().deliver(message, nullptr), 1);
  EXPECT_EQ(pending().size(), 1u);
}

// --- sent by the guest ---

TEST_F(ApicBusTest, icr_sends_to_the_physical_destination) {
  vm.cpu(0).write(kApicIcr2, 3u << 24);
  vm.cpu(0).write(kApicIcr, 0x4045);
  EXPECT_EQ(vm.cpu(3).pending(), 0x45);
  EXPECT_EQ(vm.cpu(0).read(kApicIcr), 0x4045u);
  EXPECT_THAT(pending(), ElementsAre(3));
}

TEST_F(ApicBusTest, icr_writing_the_upper_half_sends_nothing) {
  vm.cpu(0).write(kApicIcr2, 3u << 24);
  EXPECT_THAT(pending(), IsEmpty());
}

TEST_F(ApicBusTest, icr_shorthand_all_but_self) {
  vm.cpu(2).write(kApicIcr, 0xc4045);
  EXPECT_THAT(pending(), ElementsAre(0, 1, 3));
}

TEST_F(ApicBusTest, icr_self) {
  vm.cpu(2).write(kApicIcr, 0x44045);
  EXPECT_THAT(pending(), ElementsAre(2));
}

TEST_F(ApicBusTest, fixed_ipi_is_edge_triggered_whatever_the_trigger_bit) {
  vm.cpu(0).write(kApicIcr2, 1u << 24);
  vm.cpu(0).write(kApicIcr, 0xc045);
  EXPECT_EQ(vm.cpu(1).read(kApicTmr + 0x20), 0u);
  EXPECT_EQ(vm.cpu(1).pending(), 0x45);
}

TEST_F(ApicBusTest, init_assert_arrives_and_deassert_does_not) {
  vm.cpu(0).write(kApicIcr2, 1u << 24);
  vm.cpu(0).write(kApicIcr, 0xc500);
  EXPECT_EQ(vm.cpu(1).host.inits, 1);
  vm.cpu(0).write(kApicIcr, 0x8500);
  EXPECT_EQ(vm.cpu(1).host.inits, 1);
}

TEST_F(ApicBusTest, startup_ipi_carries_its_vector_even_below_16) {
  vm.cpu(0).write(kApicIcr2, 1u << 24);
  vm.cpu(0).write(kApicIcr, 0x4608);
  EXPECT_EQ(vm.cpu(1).host.sipis, 1);
  EXPECT_EQ(vm.cpu(1).host.sipi_vector, 8);
}

TEST_F(ApicBusTest, nmi_to_all_but_self) {
  vm.cpu(0).write(kApicIcr, 0xc4400);
  EXPECT_EQ(vm.cpu(0).host.nmis, 0);
  EXPECT_EQ(vm.cpu(1).host.nmis, 1);
  EXPECT_EQ(vm.cpu(3).host.nmis, 1);
}

TEST_F(ApicBusTest, smi_reaches_its_destination_past_the_irr) {
  vm.cpu(0).write(kApicIcr2, 1u << 24);
  vm.cpu(0).write(kApicIcr, 0x4200);
  EXPECT_THAT(pending(), IsEmpty());
  EXPECT_EQ(vm.cpu(0).host.smis, 0);
  EXPECT_EQ(vm.cpu(1).host.smis, 1);
}

TEST_F(ApicBusTest, x2apic_icr_sends_by_32_bit_destination) {
  enter_x2apic();
  EXPECT_TRUE(lapic(0)->msr_write(0x830, 0x00000002'00004055));
  EXPECT_EQ(vm.cpu(2).pending(), 0x55);
  EXPECT_TRUE(lapic(0)->msr_write(0x830, 0x0000000a'00004856));  // logical: CPUs 1 and 3
  EXPECT_THAT(pending(), ElementsAre(1, 2, 3));
}

TEST_F(ApicBusTest, removed_lapic_is_out_and_its_place_is_used_again) {
  bus().remove(*lapic(3));
  EXPECT_EQ(bus().deliver(physical(3), nullptr), -1);
  EXPECT_TRUE(bus().add(*lapic(3)));
  EXPECT_EQ(bus().count(), 4u);
  EXPECT_EQ(bus().deliver(physical(3), nullptr), 1);
}

}  // namespace
}  // namespace anykvm::irqchip
