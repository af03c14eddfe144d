#include "irqchip/pit.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "irqchip/test_support.h"

namespace anykvm::irqchip {
namespace {

using testing::FakeClock;

struct PitTest : ::testing::Test {
  PitTest() : pit(clock, {[this] { return ticks++, taken; }, [this] { deadline_changes++; }}, true) {}
  // Forward by `clocks` PIT clocks, rounded up to where the last one has passed.
  void advance(u64 clocks) {
    clock.ns += (clocks * 1'000'000'000 + kPitHz - 1) / kPitHz;
    pit.expire(clock.ns);
  }
  void program(unsigned counter, u8 mode, u16 count, u8 bcd = 0) {
    pit.write(0x43, counter << 6 | 0x30 | mode << 1 | bcd);
    pit.write(0x40 + counter, count & 0xff);
    pit.write(0x40 + counter, count >> 8);
  }
  u16 read_word(unsigned counter) {
    u16 low = pit.read(0x40 + counter);
    return low | pit.read(0x40 + counter) << 8;
  }
  u16 latch(unsigned counter) {
    pit.write(0x43, counter << 6);
    return read_word(counter);
  }
  bool out2() { return pit.read(0x61) & 0x20; }
  u8 status(unsigned counter) {
    pit.write(0x43, 0xe0 | 2u << counter);
    return pit.read(0x40 + counter);
  }

  FakeClock clock;
  int ticks = 0, deadline_changes = 0;
  bool taken = true;
  Pit pit;
};

TEST_F(PitTest, unprogrammed_counter_never_fires) { EXPECT_EQ(pit.next_deadline_ns(), kNever); }

TEST_F(PitTest, mode_0_fires_once_at_terminal_count) {
  program(0, 0, 1000);
  EXPECT_EQ(pit.next_deadline_ns(), clock.ns + 838'096);  // 1000 clocks, rounded up
  EXPECT_GE(deadline_changes, 1);
  advance(999);
  EXPECT_EQ(ticks, 0);
  advance(1);
  EXPECT_EQ(ticks, 1);
  EXPECT_EQ(pit.next_deadline_ns(), kNever);
}

TEST_F(PitTest, mode_2_fires_each_period_without_drift) {
  pit.set_reinject(false);
  program(0, 2, 11932);  // 100 Hz
  u64 start = clock.ns;
  advance(11932);
  EXPECT_EQ(ticks, 1);
  advance(5000);
  EXPECT_EQ(ticks, 1);
  clock.ns = pit.next_deadline_ns();
  pit.expire(clock.ns);
  EXPECT_EQ(ticks, 2);
  EXPECT_EQ(pit.next_deadline_ns(), start + 30'000'453);  // 3 * 11932 clocks
}

TEST_F(PitTest, mode_3_counts_by_two_and_its_output_is_square) {
  program(2, 3, 1000);
  pit.write(0x61, 1);
  EXPECT_TRUE(out2());
  advance(100);
  EXPECT_EQ(latch(2), 800);
  advance(400);
  EXPECT_FALSE(out2());
  advance(500);
  EXPECT_TRUE(out2());
}

// Of 7 clocks OUT is high for 4.
TEST_F(PitTest, mode_3_shows_even_counts_of_an_odd_period) {
  pit.write(0x61, 1);
  program(2, 3, 7);
  std::vector<u16> counts;
  std::vector<bool> outputs;
  for (unsigned clocks = 0; clocks < 8; ++clocks) {
    counts.push_back(latch(2));
    outputs.push_back(out2());
    advance(1);
  }
  EXPECT_EQ(counts, (std::vector<u16>{6, 4, 2, 0, 6, 4, 2, 6}));
  EXPECT_EQ(outputs, (std::vector<bool>{true, true, true, true, false, false, false, true}));
}

TEST_F(PitTest, mode_4_strobes_one_clock_after_the_count) {
  program(0, 4, 100);
  advance(100);
  EXPECT_EQ(ticks, 0);
  EXPECT_EQ(status(0) & 0x80, 0);
  advance(1);
  EXPECT_EQ(ticks, 1);
  EXPECT_EQ(status(0) & 0x80, 0x80);
}

TEST_F(PitTest, modes_1_and_5_wait_for_an_edge_of_the_gate) {
  program(0, 1, 100);
  advance(1000);
  program(0, 5, 100);
  advance(1000);
  EXPECT_EQ(ticks, 0);
  program(2, 1, 100);
  EXPECT_TRUE(out2());
  pit.write(0x61, 1);
  EXPECT_FALSE(out2());
  advance(100);
  EXPECT_TRUE(out2());
  pit.write(0x61, 0);
  pit.write(0x61, 1);
  EXPECT_FALSE(out2());
}

// What Linux does to learn the TSC's rate: gate up, speaker off, mode 0, and wait for OUT.
TEST_F(PitTest, counter_2_can_be_timed_through_port_61) {
  pit.write(0x61, (pit.read(0x61) & ~2) | 1);
  program(2, 0, 0x2e9b);
  EXPECT_FALSE(out2());
  advance(0x2e9a);
  EXPECT_FALSE(out2());
  advance(1);
  EXPECT_TRUE(out2());
}

TEST_F(PitTest, gate_pauses_mode_0) {
  pit.write(0x61, 1);
  program(2, 0, 1000);
  advance(300);
  pit.write(0x61, 0);
  advance(5000);
  EXPECT_EQ(latch(2), 700);
  pit.write(0x61, 1);
  advance(600);
  EXPECT_FALSE(out2());
  advance(101);
  EXPECT_TRUE(out2());
}

TEST_F(PitTest, gate_halts_modes_2_and_3_with_their_output_high) {
  for (u8 mode : {2, 3}) {
    pit.write(0x61, 1);
    program(2, mode, 1000);
    advance(mode == 2 ? 999 : 700);
    EXPECT_FALSE(out2());
    const u16 count = latch(2);
    pit.write(0x61, 0);
    EXPECT_TRUE(out2());
    advance(123);
    EXPECT_TRUE(out2());
    EXPECT_EQ(latch(2), count);
  }
}

TEST_F(PitTest, gate_restarts_mode_2) {
  pit.write(0x61, 1);
  program(2, 2, 1000);
  advance(300);
  pit.write(0x61, 0);
  EXPECT_TRUE(out2());
  pit.write(0x61, 1);
  EXPECT_EQ(latch(2), 1000);
}

TEST_F(PitTest, latched_count_stands_still_until_read) {
  program(0, 2, 1000);
  advance(100);
  pit.write(0x43, 0x00);
  advance(100);
  pit.write(0x43, 0x00);  // ignored: the first is not read yet
  EXPECT_EQ(read_word(0), 900);
  EXPECT_EQ(latch(0), 800);
}

TEST_F(PitTest, single_byte_access_reads_and_loads_one_byte) {
  pit.write(0x43, 0x14);  // counter 0, low byte, mode 2
  pit.write(0x40, 200);
  EXPECT_EQ(pit.read(0x40), 200);
  pit.write(0x43, 0x24);  // high byte
  pit.write(0x40, 2);
  EXPECT_EQ(pit.read(0x40), 2);
  EXPECT_EQ(pit.next_deadline_ns(), clock.ns + 429'105);  // 512 clocks
}

TEST_F(PitTest, count_of_zero_is_65536) {
  program(0, 2, 0);
  EXPECT_EQ(pit.next_deadline_ns(), clock.ns + 54'925'402);
  EXPECT_EQ(latch(0), 0);
}

TEST_F(PitTest, bcd_counts_in_decimal) {
  program(0, 2, 0x1000, 1);
  advance(1);
  EXPECT_EQ(latch(0), 0x0999);
}

TEST_F(PitTest, read_back_gives_status_with_null_count) {
  pit.write(0x43, 0x34);
  EXPECT_EQ(status(0), 0xf4);  // OUT high, no count yet, two bytes, mode 2
  pit.write(0x40, 1), pit.write(0x40, 1);
  EXPECT_EQ(status(0), 0xb4);
}

TEST_F(PitTest, read_back_latches_count_and_status_together) {
  program(0, 2, 1000);
  advance(1);
  pit.write(0x43, 0xc2);
  EXPECT_EQ(pit.read(0x40), 0xb4);
  EXPECT_EQ(read_word(0), 999);
}

TEST_F(PitTest, port_61_keeps_the_speaker_bit_and_toggles_refresh) {
  pit.write(0x61, 2);
  u8 first = pit.read(0x61);
  EXPECT_EQ(first & 3, 2);
  clock.ns += 15'085;
  EXPECT_NE(pit.read(0x61) & 0x10, first & 0x10);
}

TEST_F(PitTest, port_61_belongs_to_the_pit_only_with_a_speaker) {
  Pit silent(clock, {[] { return true; }, [] {}}, false);
  EXPECT_FALSE(silent.owns_port(0x61));
  EXPECT_TRUE(pit.owns_port(0x61));
  EXPECT_TRUE(silent.owns_port(0x43));
  EXPECT_FALSE(silent.owns_port(0x44));
}

TEST_F(PitTest, reinjection_keeps_missed_ticks_until_acknowledged) {
  program(0, 2, 10000);
  advance(30000);
  EXPECT_EQ(ticks, 1);
  pit.irq0_acknowledged();
  pit.irq0_acknowledged();
  EXPECT_EQ(ticks, 3);
  pit.irq0_acknowledged();
  EXPECT_EQ(ticks, 3);
}

TEST_F(PitTest, without_reinjection_missed_ticks_are_lost) {
  pit.set_reinject(false);
  program(0, 2, 10000);
  advance(30000);
  pit.irq0_acknowledged();
  EXPECT_EQ(ticks, 1);
}

TEST_F(PitTest, tick_that_nobody_took_is_not_waited_for) {
  taken = false;
  program(0, 2, 10000);
  advance(10000);
  taken = true;
  advance(10000);
  EXPECT_EQ(ticks, 2);
}

TEST_F(PitTest, very_short_period_is_stretched) {
  program(0, 2, 2);
  EXPECT_EQ(pit.next_deadline_ns(), clock.ns + 200'000);
}

TEST_F(PitTest, hpet_legacy_flag_disconnects_irq_0) {
  program(0, 2, 10000);
  kvm_pit_state2 state = pit.state();
  state.flags |= KVM_PIT_FLAGS_HPET_LEGACY;
  pit.set_state(state);
  EXPECT_EQ(pit.next_deadline_ns(), kNever);
}

TEST_F(PitTest, state_round_trip_keeps_the_counters) {
  program(0, 2, 10000);
  pit.write(0x61, 1);
  program(2, 0, 1000);
  advance(400);
  pit.write(0x61, 0);
  kvm_pit_state2 state = pit.state();
  EXPECT_EQ(state.channels[0].count, 10000u);
  EXPECT_EQ(state.channels[0].mode, 2);
  pit.reset();
  EXPECT_EQ(pit.next_deadline_ns(), kNever);
  pit.set_state(state);
  EXPECT_EQ(pit.next_deadline_ns(), clock.ns + 8'380'952);
  EXPECT_EQ(latch(2), 600);
}

TEST_F(PitTest, nonsense_from_the_client_is_brought_into_range) {
  kvm_pit_state2 state;
  std::memset(&state, 0xff, sizeof state);
  pit.set_state(state);
  EXPECT_EQ(pit.next_deadline_ns(), kNever);
  pit.read(0x40);
  pit.write(0x40, 1);
  EXPECT_EQ(pit.state().channels[0].count, 0x10000u);
}

}  // namespace
}  // namespace anykvm::irqchip
