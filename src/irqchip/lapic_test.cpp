#include "irqchip/lapic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>

#include "irqchip/test_support.h"

namespace anykvm::irqchip {
namespace {

using testing::FakeClock;
using testing::FakeHost;
using testing::TestCpu;

struct LapicTest : ::testing::Test {
  LapicTest() : cpu(bus, clock, 0) { bus.add(cpu.lapic); }
  void request(u8 vector, bool level = false) { cpu.lapic.accept(DeliveryMode::kFixed, vector, level, true); }
  bool read_msr(u32 offset, u64* value) { return cpu.lapic.msr_read(kMsrX2ApicFirst + (offset >> 4), value); }
  bool can_read_msr(u32 offset) {
    u64 ignored;
    return read_msr(offset, &ignored);
  }
  u64 msr(u32 offset) {
    u64 value = 0xdeadbeef;
    EXPECT_TRUE(read_msr(offset, &value));
    return value;
  }
  bool write_msr(u32 offset, u64 value) {
    return cpu.lapic.msr_write(kMsrX2ApicFirst + (offset >> 4), value);
  }

  FakeClock clock;
  ApicBus bus;
  TestCpu cpu;
};

// --- reset ---

TEST_F(LapicTest, reset_state_is_the_manuals) {
  FakeHost host;
  Lapic ap(bus, clock, host, 3, false);
  auto read = [&](u32 offset) {
    u32 value;
    ap.mmio_read(offset, &value, 4);
    return value;
  };
  EXPECT_EQ(ap.apic_base(), 0xfee00800u);
  EXPECT_EQ(read(kApicId), 3u << 24);
  EXPECT_EQ(read(kApicVersion), 0x50014u);
  EXPECT_EQ(read(kApicSvr), 0xffu);
  EXPECT_EQ(read(kApicDfr), 0xffffffffu);
  EXPECT_EQ(read(kApicLdr), 0u);
  EXPECT_EQ(read(kApicTpr), 0u);
  EXPECT_EQ(read(kApicLvtTimer), kLvtMasked);
  EXPECT_EQ(read(kApicLvtLint0), kLvtMasked);
  EXPECT_EQ(read(kApicLvtError), kLvtMasked);
}

TEST_F(LapicTest, boot_processor_resets_into_virtual_wire_mode) {
  cpu.lapic.reset(false);
  EXPECT_EQ(cpu.read(kApicLvtLint0), 0x700u);
  EXPECT_TRUE(cpu.lapic.accepts_pic());
  EXPECT_TRUE(cpu.lapic.is_bsp());
}

TEST_F(LapicTest, init_keeps_apic_base_and_clears_requests) {
  cpu.enter_x2apic();
  request(0x40);
  cpu.lapic.reset(true);
  EXPECT_TRUE(cpu.lapic.x2apic_mode());
  EXPECT_EQ(cpu.pending(), -1);
  EXPECT_EQ(msr(kApicIrr + 0x20), 0u);
  cpu.lapic.reset(false);
  EXPECT_FALSE(cpu.lapic.x2apic_mode());
  EXPECT_EQ(cpu.lapic.apic_base(), 0xfee00900u);
}

// --- requests and priorities ---

TEST_F(LapicTest, request_is_announced_once_and_merges_while_pending) {
  EXPECT_EQ(cpu.lapic.accept(DeliveryMode::kFixed, 0x40, false, true), Lapic::Accepted::kYes);
  EXPECT_EQ(cpu.lapic.accept(DeliveryMode::kFixed, 0x40, false, true), Lapic::Accepted::kMerged);
  EXPECT_EQ(cpu.host.posted, 1);
  EXPECT_EQ(cpu.pending(), 0x40);
}

TEST_F(LapicTest, acknowledge_moves_highest_request_to_service) {
  request(0x41);
  request(0xf3);
  EXPECT_EQ(cpu.take(), 0xf3);
  EXPECT_EQ(cpu.read(kApicIsr + 0x70), 1u << 19);
  EXPECT_EQ(cpu.read(kApicIrr + 0x70), 0u);
  EXPECT_EQ(cpu.read(kApicPpr), 0xf0u);
  EXPECT_EQ(cpu.pending(), -1);  // 41H waits
  cpu.write(kApicEoi, 0);
  EXPECT_EQ(cpu.take(), 0x41);
}

TEST_F(LapicTest, same_class_waits_and_higher_class_preempts) {
  request(0x41);
  EXPECT_EQ(cpu.take(), 0x41);
  request(0x4f);
  EXPECT_EQ(cpu.pending(), -1);
  request(0x50);
  EXPECT_EQ(cpu.take(), 0x50);
}

TEST_F(LapicTest, request_during_service_of_the_same_vector_is_kept) {
  request(0x41);
  cpu.take();
  request(0x41);
  EXPECT_EQ(cpu.pending(), -1);
  cpu.write(kApicEoi, 0);
  EXPECT_EQ(cpu.take(), 0x41);
}

TEST_F(LapicTest, eoi_announces_what_it_uncovers) {
  request(0x50);
  cpu.take();
  request(0x41);
  cpu.host.posted = 0;
  cpu.write(kApicEoi, 0);
  EXPECT_EQ(cpu.host.posted, 1);
}

TEST_F(LapicTest, tpr_holds_back_its_class_and_below) {
  cpu.write(kApicTpr, 0x40);
  request(0x4f);
  EXPECT_EQ(cpu.pending(), -1);
  request(0x50);
  EXPECT_EQ(cpu.pending(), 0x50);
}

TEST_F(LapicTest, lowering_cr8_announces) {
  cpu.lapic.set_cr8(0xf);
  EXPECT_EQ(cpu.read(kApicTpr), 0xf0u);
  request(0xe0);
  cpu.host.posted = 0;
  cpu.lapic.set_cr8(3);
  EXPECT_EQ(cpu.host.posted, 1);
  EXPECT_EQ(cpu.lapic.cr8(), 3);
  EXPECT_EQ(cpu.read(kApicPpr), 0x30u);
}

TEST_F(LapicTest, ppr_is_tpr_when_its_class_is_not_below_service) {
  request(0x51);
  cpu.take();
  cpu.write(kApicTpr, 0x57);
  EXPECT_EQ(cpu.read(kApicPpr), 0x57u);
  cpu.write(kApicTpr, 0x47);
  EXPECT_EQ(cpu.read(kApicPpr), 0x50u);
}

TEST_F(LapicTest, eoi_with_nothing_in_service_does_nothing) {
  request(0x60);
  cpu.write(kApicEoi, 0);
  EXPECT_EQ(cpu.pending(), 0x60);
}

TEST_F(LapicTest, tmr_follows_the_last_delivery) {
  request(0x61, true);
  EXPECT_EQ(cpu.read(kApicTmr + 0x30), 2u);
  cpu.take();
  request(0x61, false);
  EXPECT_EQ(cpu.read(kApicTmr + 0x30), 0u);
}

// --- software and hardware disable ---

TEST_F(LapicTest, software_disabled_refuses_fixed_but_takes_nmi_init_and_sipi) {
  cpu.write(kApicSvr, 0xff);
  EXPECT_EQ(cpu.lapic.accept(DeliveryMode::kFixed, 0x40, false, true), Lapic::Accepted::kNo);
  cpu.lapic.accept(DeliveryMode::kNmi, 0, false, true);
  cpu.lapic.accept(DeliveryMode::kInit, 0, false, true);
  cpu.lapic.accept(DeliveryMode::kStartup, 0x9a, false, true);
  EXPECT_EQ(cpu.host.nmis, 1);
  EXPECT_EQ(cpu.host.inits, 1);
  EXPECT_EQ(cpu.host.sipi_vector, 0x9a);
}

TEST_F(LapicTest, software_disable_masks_lvts_and_keeps_them_masked) {
  cpu.write(kApicLvtTimer, 0x40);
  cpu.write(kApicSvr, 0xff);
  EXPECT_EQ(cpu.read(kApicLvtTimer), 0x40u | kLvtMasked);
  cpu.write(kApicLvtTimer, 0x41);
  EXPECT_EQ(cpu.read(kApicLvtTimer), 0x41u | kLvtMasked);
}

TEST_F(LapicTest, smi_goes_to_the_cpu) {
  EXPECT_EQ(cpu.lapic.accept(DeliveryMode::kSmi, 0, false, true), Lapic::Accepted::kYes);
  EXPECT_EQ(cpu.host.smis, 1);
}

TEST_F(LapicTest, hardware_disabled_passes_pic_and_loses_state) {
  cpu.write(kApicLvtLint0, 0x10700);
  EXPECT_FALSE(cpu.lapic.accepts_pic());
  request(0x40);
  EXPECT_TRUE(cpu.lapic.set_apic_base(0xfee00100, false));
  EXPECT_TRUE(cpu.lapic.accepts_pic());
  EXPECT_EQ(cpu.pending(), -1);
  EXPECT_TRUE(cpu.lapic.set_apic_base(0xfee00900, false));
  EXPECT_EQ(cpu.read(kApicSvr), 0xffu);
  EXPECT_EQ(cpu.pending(), -1);
}

// --- errors ---

TEST_F(LapicTest, illegal_vector_is_shown_after_a_write_to_esr) {
  request(0x0f);
  EXPECT_EQ(cpu.read(kApicEsr), 0u);
  cpu.write(kApicEsr, 0);
  EXPECT_EQ(cpu.read(kApicEsr), kEsrReceiveIllegalVector);
  cpu.write(kApicEsr, 0);
  EXPECT_EQ(cpu.read(kApicEsr), 0u);
}

TEST_F(LapicTest, error_interrupts_through_its_lvt_once) {
  cpu.write(kApicLvtError, 0xfe);
  request(0x0f);
  EXPECT_EQ(cpu.take(), 0xfe);
  request(0x0e);
  EXPECT_FALSE(cpu.requested(0xfe));
}

TEST_F(LapicTest, error_lvt_with_illegal_vector_does_not_recurse) {
  cpu.write(kApicLvtError, 0x05);
  request(0x0f);
  cpu.write(kApicEsr, 0);
  EXPECT_EQ(cpu.read(kApicEsr), kEsrReceiveIllegalVector);
}

TEST_F(LapicTest, sending_an_illegal_vector_is_an_error) {
  cpu.write(kApicIcr, 0x4000f);
  cpu.write(kApicEsr, 0);
  EXPECT_EQ(cpu.read(kApicEsr), kEsrSendIllegalVector);
}

TEST_F(LapicTest, register_that_does_not_exist_is_an_error) {
  EXPECT_EQ(cpu.read(0x3f0), 0u);
  cpu.write(kApicEsr, 0);
  EXPECT_EQ(cpu.read(kApicEsr), kEsrIllegalRegister);
}

// --- xAPIC page ---

TEST_F(LapicTest, narrow_read_gives_part_of_a_register_and_narrow_write_nothing) {
  u8 byte = 0;
  cpu.lapic.mmio_read(kApicVersion + 2, &byte, 1);
  EXPECT_EQ(byte, 5);
  u8 tpr = 0x50;
  cpu.lapic.mmio_write(kApicTpr, &tpr, 1);
  EXPECT_EQ(cpu.read(kApicTpr), 0u);
}

TEST_F(LapicTest, cmci_entry_exists_where_it_was_set_up) {
  cpu.write(kApicLvtCmci, 0x45);
  EXPECT_EQ(cpu.read(kApicLvtCmci), 0u);
  cpu.lapic.set_has_cmci(true);
  EXPECT_EQ(cpu.read(kApicVersion), 0x60014u);
  EXPECT_EQ(cpu.read(kApicLvtCmci), kLvtMasked);
  cpu.lapic.raise_cmci();
  EXPECT_EQ(cpu.lapic.highest_requested(), -1);
  cpu.write(kApicLvtCmci, 0x45);
  cpu.lapic.raise_cmci();
  EXPECT_EQ(cpu.lapic.highest_requested(), 0x45);
}

TEST_F(LapicTest, read_only_registers_ignore_writes) {
  cpu.write(kApicVersion, 0);
  cpu.write(kApicIrr, 0xffffffff);
  EXPECT_EQ(cpu.read(kApicVersion), 0x50014u);
  EXPECT_EQ(cpu.read(kApicIrr), 0u);
}

TEST_F(LapicTest, xapic_id_can_be_written_until_the_mode_changes) {
  cpu.write(kApicId, 0x07ffffff);
  EXPECT_EQ(cpu.read(kApicId), 0x07000000u);
  cpu.lapic.reset(true);  // INIT keeps it
  EXPECT_EQ(cpu.read(kApicId), 0x07000000u);
  kvm_lapic_state page;
  cpu.lapic.get_state(&page);
  TestCpu other(bus, clock, 0);
  ASSERT_TRUE(other.lapic.set_state(page).ok());
  EXPECT_EQ(other.read(kApicId), 0x07000000u);
  const u64 base = cpu.lapic.apic_base();
  ASSERT_TRUE(cpu.lapic.set_apic_base(base & ~kApicBaseEnable, false));
  ASSERT_TRUE(cpu.lapic.set_apic_base(base, false));
  EXPECT_EQ(cpu.read(kApicId), 0u);
}

TEST_F(LapicTest, reserved_bits_of_the_page_are_dropped) {
  cpu.write(kApicLdr, 0xffffffff);
  cpu.write(kApicDfr, 0);
  cpu.write(kApicLvtError, 0xffffffff);
  EXPECT_EQ(cpu.read(kApicLdr), 0xff000000u);
  EXPECT_EQ(cpu.read(kApicDfr), 0x0fffffffu);
  EXPECT_EQ(cpu.read(kApicLvtError), 0x100ffu);
}

TEST_F(LapicTest, lint_delivers_as_its_lvt_says) {
  cpu.write(kApicLvtLint0, 0x71);
  cpu.write(kApicLvtLint1, 0x400);
  cpu.lapic.raise_lint(0);
  cpu.lapic.raise_lint(1);
  EXPECT_EQ(cpu.pending(), 0x71);
  EXPECT_EQ(cpu.host.nmis, 1);
  cpu.write(kApicLvtLint1, 0x10400);
  cpu.lapic.raise_lint(1);
  EXPECT_EQ(cpu.host.nmis, 1);
}

// --- APIC base ---

TEST_F(LapicTest, apic_base_transitions_follow_figure_10_27) {
  constexpr u64 kOff = 0xfee00100, kXapic = 0xfee00900, kX2apic = 0xfee00d00, kInvalid = 0xfee00500;
  EXPECT_FALSE(cpu.lapic.set_apic_base(kInvalid, false));
  EXPECT_TRUE(cpu.lapic.set_apic_base(kX2apic, false));
  EXPECT_FALSE(cpu.lapic.set_apic_base(kXapic, false));
  EXPECT_TRUE(cpu.lapic.set_apic_base(kX2apic, false));
  EXPECT_TRUE(cpu.lapic.set_apic_base(kOff, false));
  EXPECT_FALSE(cpu.lapic.set_apic_base(kX2apic, false));
  EXPECT_FALSE(cpu.lapic.set_apic_base(kInvalid, false));
  EXPECT_TRUE(cpu.lapic.set_apic_base(kXapic, false));
}

TEST_F(LapicTest, client_may_set_any_valid_mode) {
  EXPECT_TRUE(cpu.lapic.set_apic_base(0xfee00100, true));
  EXPECT_TRUE(cpu.lapic.set_apic_base(0xfee00d00, true));
  EXPECT_TRUE(cpu.lapic.set_apic_base(0xfee00900, true));
  EXPECT_FALSE(cpu.lapic.set_apic_base(0xfee00500, true));
}

TEST_F(LapicTest, apic_base_reserved_bits_are_refused) {
  cpu.lapic.set_features({.x2apic = false, .tsc_deadline = false, .physical_bits = 40});
  EXPECT_FALSE(cpu.lapic.set_apic_base(0xfee00901, false));
  EXPECT_FALSE(cpu.lapic.set_apic_base(0xfee00b00, false));
  EXPECT_FALSE(cpu.lapic.set_apic_base(0xfee00d00, false));
  EXPECT_FALSE(cpu.lapic.set_apic_base(0x100fee00900, false));
  EXPECT_TRUE(cpu.lapic.set_apic_base(0xfffee00900, false));
}

// --- x2APIC ---

struct X2ApicTest : LapicTest {
  X2ApicTest() { cpu.enter_x2apic(); }
};

TEST_F(LapicTest, x2apic_msrs_fault_in_xapic_mode) {
  EXPECT_FALSE(can_read_msr(kApicId));
  EXPECT_FALSE(write_msr(kApicTpr, 0));
}

TEST_F(X2ApicTest, ids_have_32_bits_and_the_logical_one_is_derived) {
  TestCpu big(bus, clock, 0x123);
  big.enter_x2apic();
  u64 id = 0, ldr = 0;
  EXPECT_TRUE(big.lapic.msr_read(0x802, &id));
  EXPECT_TRUE(big.lapic.msr_read(0x80d, &ldr));
  EXPECT_EQ(id, 0x123u);
  EXPECT_EQ(ldr, 0x120008u);
}

TEST_F(X2ApicTest, registers_that_only_the_page_has_fault) {
  EXPECT_FALSE(can_read_msr(kApicDfr));
  EXPECT_FALSE(can_read_msr(kApicIcr2));
  EXPECT_FALSE(can_read_msr(kApicApr));
  EXPECT_FALSE(can_read_msr(kApicRrd));
  EXPECT_FALSE(write_msr(kApicDfr, 0xffffffff));
  EXPECT_FALSE(write_msr(kApicIcr2, 0));
}

TEST_F(X2ApicTest, write_only_registers_fault_on_reads) {
  EXPECT_FALSE(can_read_msr(kApicEoi));
  EXPECT_FALSE(can_read_msr(kApicSelfIpi));
}

TEST_F(X2ApicTest, read_only_registers_fault_on_writes) {
  EXPECT_FALSE(write_msr(kApicId, 0));
  EXPECT_FALSE(write_msr(kApicVersion, 0));
  EXPECT_FALSE(write_msr(kApicPpr, 0));
  EXPECT_FALSE(write_msr(kApicLdr, 0));
  EXPECT_FALSE(write_msr(kApicIsr, 0));
  EXPECT_FALSE(write_msr(kApicTmr, 0));
  EXPECT_FALSE(write_msr(kApicIrr, 0));
  EXPECT_FALSE(write_msr(kApicTimerCurrent, 0));
}

TEST_F(X2ApicTest, reserved_bits_fault) {
  EXPECT_FALSE(write_msr(kApicTpr, 0x100));
  EXPECT_FALSE(write_msr(kApicEoi, 1));
  EXPECT_FALSE(write_msr(kApicEsr, 1));
  EXPECT_FALSE(write_msr(kApicSvr, 0x11ff));
  EXPECT_FALSE(write_msr(kApicTimerDivide, 4));
  EXPECT_FALSE(write_msr(kApicSelfIpi, 0x140));
  EXPECT_FALSE(write_msr(kApicLvtError, 0x20000));
  EXPECT_FALSE(write_msr(kApicLvtTimer, 0x700));
  EXPECT_FALSE(write_msr(kApicIcr, 0x100000));
  EXPECT_FALSE(write_msr(kApicIcr, 0x20030));
  EXPECT_FALSE(write_msr(kApicTimerInitial, 0x1'00000000));
}

TEST_F(X2ApicTest, good_writes_are_taken) {
  EXPECT_TRUE(write_msr(kApicTpr, 0x20));
  EXPECT_TRUE(write_msr(kApicEoi, 0));
  EXPECT_TRUE(write_msr(kApicEsr, 0));
  EXPECT_TRUE(write_msr(kApicSvr, 0x1ff));
  EXPECT_TRUE(write_msr(kApicLvtTimer, 0x400ec));
  EXPECT_EQ(msr(kApicTpr), 0x20u);
  EXPECT_EQ(msr(kApicLvtTimer), 0x400ecu);
}

TEST_F(X2ApicTest, msrs_without_a_register_fault) {
  EXPECT_FALSE(can_read_msr(kApicLvtCmci));
  EXPECT_FALSE(cpu.lapic.msr_write(0x800, 0));
  EXPECT_FALSE(cpu.lapic.msr_write(0x840, 0));
  EXPECT_FALSE(cpu.lapic.msr_write(0x8ff, 0));
}

TEST_F(X2ApicTest, icr_is_one_64_bit_register) {
  EXPECT_TRUE(write_msr(kApicIcr, 0x00000007'00004040));
  EXPECT_EQ(msr(kApicIcr), 0x00000007'00004040u);
}

TEST_F(X2ApicTest, self_ipi_arrives_edge_triggered) {
  EXPECT_TRUE(write_msr(kApicSelfIpi, 0x77));
  EXPECT_EQ(cpu.pending(), 0x77);
  EXPECT_EQ(msr(kApicTmr + 0x30), 0u);
}

TEST_F(X2ApicTest, self_ipi_with_illegal_vector_is_an_error) {
  EXPECT_TRUE(write_msr(kApicSelfIpi, 0x07));
  EXPECT_TRUE(write_msr(kApicEsr, 0));
  EXPECT_EQ(msr(kApicEsr), kEsrSendIllegalVector);
}

TEST_F(X2ApicTest, eoi_by_msr_ends_service) {
  request(0x90);
  cpu.take();
  EXPECT_TRUE(write_msr(kApicEoi, 0));
  EXPECT_EQ(msr(kApicPpr), 0u);
}

// --- state ---

TEST_F(LapicTest, state_round_trip_keeps_everything_the_guest_sees) {
  cpu.write(kApicTpr, 0x10);
  cpu.write(kApicLdr, 0x04000000);
  cpu.write(kApicLvtTimer, 0x200ec);
  cpu.write(kApicTimerDivide, 0xb);
  cpu.write(kApicTimerInitial, 5'000'000);
  request(0x50);
  cpu.take();
  request(0x70, true);
  clock.ns += 1'000'000;
  kvm_lapic_state saved;
  cpu.lapic.get_state(&saved);

  TestCpu other(bus, clock, 0);
  ASSERT_TRUE(other.lapic.set_state(saved).ok());
  kvm_lapic_state again;
  other.lapic.get_state(&again);
  EXPECT_EQ(std::memcmp(&saved, &again, sizeof saved), 0);
  EXPECT_EQ(other.pending(), 0x70);
  EXPECT_EQ(other.read(kApicTimerCurrent), 4'000'000u);
  EXPECT_EQ(other.lapic.next_deadline_ns(), clock.ns + 4'000'000);
  EXPECT_GE(other.host.posted, 1);
}

TEST_F(X2ApicTest, state_with_another_cpus_id_is_einval) {
  kvm_lapic_state page;
  cpu.lapic.get_state(&page, true);
  page.regs[kApicId] = 9;
  EXPECT_EQ(cpu.lapic.set_state(page, true).error().code, EINVAL);
}

TEST_F(X2ApicTest, state_id_is_shifted_in_the_8_bit_format) {
  TestCpu five(bus, clock, 5);
  five.enter_x2apic();
  kvm_lapic_state page;
  five.lapic.get_state(&page, false);
  EXPECT_EQ(page.regs[kApicId + 3], 5);
  five.lapic.get_state(&page, true);
  EXPECT_EQ(page.regs[kApicId], 5);
}

}  // namespace
}  // namespace anykvm::irqchip
