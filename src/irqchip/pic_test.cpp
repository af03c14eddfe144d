#include "irqchip/pic.h"

#include <gtest/gtest.h>

#include <cstring>

namespace anykvm::irqchip {
namespace {

constexpr u16 kCommand = 0x20, kData = 0x21, kSlaveCommand = 0xa0, kSlaveData = 0xa1;
constexpr u8 kEoi = 0x20, kSpecificEoi = 0x60;

struct PicTest : ::testing::Test {
  PicTest() { init(1); }
  void init(u8 icw4) {
    pic.write(kCommand, 0x11), pic.write(kData, 0x20), pic.write(kData, 4), pic.write(kData, icw4);
    pic.write(kSlaveCommand, 0x11), pic.write(kSlaveData, 0x28), pic.write(kSlaveData, 2),
        pic.write(kSlaveData, icw4);
  }
  void pulse(unsigned irq) {
    pic.set_line(irq, true);
    pic.set_line(irq, false);
  }
  u8 isr(u16 port = kCommand) {
    pic.write(port, 0x0b);
    return pic.read(port);
  }
  u8 irr(u16 port = kCommand) {
    pic.write(port, 0x0a);
    return pic.read(port);
  }

  Pic pic;
};

TEST_F(PicTest, edge_is_latched_until_acknowledged) {
  pulse(1);
  EXPECT_TRUE(pic.intr());
  EXPECT_EQ(irr(), 2);
  EXPECT_EQ(pic.acknowledge(), 0x21);
  EXPECT_FALSE(pic.intr());
  EXPECT_EQ(irr(), 0);
  EXPECT_EQ(isr(), 2);
}

TEST_F(PicTest, line_that_stays_high_is_one_edge) {
  EXPECT_EQ(pic.set_line(1, true), 1);
  pic.acknowledge();
  pic.write(kCommand, kEoi);
  EXPECT_EQ(pic.set_line(1, true), 0);
  EXPECT_FALSE(pic.intr());
}

TEST_F(PicTest, lower_number_has_priority_and_lower_waits_for_eoi) {
  pulse(4);
  pulse(1);
  EXPECT_EQ(pic.acknowledge(), 0x21);
  EXPECT_FALSE(pic.intr());
  pic.write(kCommand, kEoi);
  EXPECT_EQ(pic.acknowledge(), 0x24);
}

TEST_F(PicTest, higher_priority_interrupts_service) {
  pulse(4);
  pic.acknowledge();
  pulse(0);
  EXPECT_TRUE(pic.intr());
  EXPECT_EQ(pic.acknowledge(), 0x20);
  EXPECT_EQ(isr(), 0x11);
  pic.write(kCommand, kEoi);
  EXPECT_EQ(isr(), 0x10);
}

TEST_F(PicTest, masked_line_waits_and_says_so) {
  pic.write(kData, 0x02);
  EXPECT_EQ(pic.set_line(1, true), -1);
  EXPECT_FALSE(pic.intr());
  pic.write(kData, 0);
  EXPECT_TRUE(pic.intr());
  EXPECT_EQ(pic.read(kData), 0);
}

TEST_F(PicTest, request_that_goes_away_is_spurious_irq_7) {
  pulse(1);
  pic.write(kData, 0xff);
  EXPECT_EQ(pic.acknowledge(), 0x27);
  EXPECT_EQ(isr(), 0);
}

TEST_F(PicTest, slave_interrupt_goes_through_the_cascade) {
  pulse(12);
  EXPECT_EQ(pic.acknowledge(), 0x2c);
  EXPECT_EQ(isr(), 4);
  EXPECT_EQ(isr(kSlaveCommand), 0x10);
}

TEST_F(PicTest, slave_request_after_both_eois_is_not_lost) {
  pulse(12);
  pulse(14);
  EXPECT_EQ(pic.acknowledge(), 0x2c);
  pic.write(kSlaveCommand, kEoi);
  pic.write(kCommand, kEoi);
  EXPECT_TRUE(pic.intr());
  EXPECT_EQ(pic.acknowledge(), 0x2e);
}

TEST_F(PicTest, specific_eoi_ends_the_named_one) {
  pulse(4);
  pic.acknowledge();
  pulse(1);
  pic.acknowledge();
  pic.write(kCommand, kSpecificEoi | 4);
  EXPECT_EQ(isr(), 2);
}

TEST_F(PicTest, level_line_asks_again_until_it_falls) {
  pic.write(0x4d0, 0x20);
  pic.set_line(5, true);
  EXPECT_EQ(pic.acknowledge(), 0x25);
  pic.write(kCommand, kEoi);
  EXPECT_TRUE(pic.intr());
  pic.set_line(5, false);
  EXPECT_FALSE(pic.intr());
}

TEST_F(PicTest, elcr_keeps_board_lines_edge_triggered) {
  pic.write(0x4d0, 0xff);
  pic.write(0x4d1, 0xff);
  EXPECT_EQ(pic.read(0x4d0), 0xf8);
  EXPECT_EQ(pic.read(0x4d1), 0xde);
}

TEST_F(PicTest, state_of_the_client_is_kept_as_it_is) {
  kvm_pic_state state{};
  state.irq_base = 10;
  state.elcr = 0x21;
  pic.set_state(0, state);
  const kvm_pic_state kept = pic.state(0);
  EXPECT_EQ(std::memcmp(&kept, &state, sizeof state), 0);
}

TEST_F(PicTest, auto_eoi_leaves_nothing_in_service) {
  init(3);
  pulse(3);
  EXPECT_EQ(pic.acknowledge(), 0x23);
  EXPECT_EQ(isr(), 0);
  EXPECT_EQ(pic.take_completed(), 1u << 3);
}

TEST_F(PicTest, rotate_on_auto_eoi_makes_the_served_one_lowest) {
  init(3);
  pic.write(kCommand, 0x80);
  pulse(3);
  pic.acknowledge();
  pulse(3);
  pulse(4);
  EXPECT_EQ(pic.acknowledge(), 0x24);
}

TEST_F(PicTest, rotating_eoi_makes_the_served_one_lowest) {
  pulse(1);
  pic.acknowledge();
  pic.write(kCommand, 0xa0);
  pulse(1);
  pulse(6);
  EXPECT_EQ(pic.acknowledge(), 0x26);
}

TEST_F(PicTest, set_priority_names_the_lowest) {
  pic.write(kCommand, 0xc4);
  pulse(0);
  pulse(5);
  EXPECT_EQ(pic.acknowledge(), 0x25);
}

TEST_F(PicTest, special_mask_mode_lets_lower_ones_through_a_masked_service) {
  pulse(1);
  pic.acknowledge();
  pulse(4);
  EXPECT_FALSE(pic.intr());
  pic.write(kData, 0x02);
  EXPECT_FALSE(pic.intr());
  pic.write(kCommand, 0x68);
  EXPECT_TRUE(pic.intr());
  EXPECT_EQ(pic.acknowledge(), 0x24);
  pic.write(kCommand, kEoi);  // means 4, since 1 is masked
  EXPECT_EQ(isr(), 2);
}

TEST_F(PicTest, special_fully_nested_mode_lets_a_higher_slave_line_in) {
  pulse(12);
  pic.acknowledge();
  pulse(8);
  EXPECT_FALSE(pic.intr());
  init(0x11);
  pulse(12);
  pic.acknowledge();
  pulse(8);
  EXPECT_TRUE(pic.intr());
  EXPECT_EQ(pic.acknowledge(), 0x28);
}

TEST_F(PicTest, poll_acknowledges_and_names_the_line) {
  pulse(3);
  pic.write(kCommand, 0x0c);
  EXPECT_EQ(pic.read(kCommand), 0x83);
  EXPECT_EQ(isr(), 8);
  EXPECT_FALSE(pic.intr());
  pic.write(kCommand, 0x0c);
  EXPECT_EQ(pic.read(kCommand), 0);
}

TEST_F(PicTest, initialization_forgets_edges_masks_and_service) {
  pic.write(kData, 0xf0);
  pulse(1);
  pulse(3);
  pic.acknowledge();
  init(1);
  EXPECT_EQ(pic.read(kData), 0);
  EXPECT_EQ(isr(), 0);
  EXPECT_FALSE(pic.intr());
}

TEST_F(PicTest, irq_2_is_the_cascade_and_no_line) {
  EXPECT_EQ(pic.set_line(2, true), -1);
  EXPECT_FALSE(pic.intr());
}

TEST_F(PicTest, completed_service_is_reported_once) {
  pulse(12);
  pic.acknowledge();
  pic.write(kSlaveCommand, kEoi);
  pic.write(kCommand, kEoi);
  EXPECT_EQ(pic.take_completed(), 1u << 12 | 1u << 2);
  EXPECT_EQ(pic.take_completed(), 0);
}

TEST_F(PicTest, state_round_trip_keeps_the_request) {
  pulse(6);
  Pic other;
  other.set_state(0, pic.state(0));
  other.set_state(1, pic.state(1));
  EXPECT_TRUE(other.intr());
  EXPECT_EQ(other.acknowledge(), 0x26);
}

TEST_F(PicTest, ports_are_the_pcs) {
  EXPECT_TRUE(Pic::owns_port(0x20));
  EXPECT_TRUE(Pic::owns_port(0x21));
  EXPECT_TRUE(Pic::owns_port(0xa0));
  EXPECT_TRUE(Pic::owns_port(0xa1));
  EXPECT_TRUE(Pic::owns_port(0x4d1));
  EXPECT_FALSE(Pic::owns_port(0x22));
  EXPECT_FALSE(Pic::owns_port(0x4d2));
  EXPECT_FALSE(Pic::owns_port(0xa2));
}

}  // namespace
}  // namespace anykvm::irqchip
