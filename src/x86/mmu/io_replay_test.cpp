#include "x86/mmu/io_replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "x86/quiet_platform.h"

namespace anykvm::x86 {
namespace {

using testing::_;
using testing::Return;
using testing::StrictMock;

class MockPlatform : public QuietPlatform {
 public:
  MOCK_METHOD(bool, pio_read, (u16 port, void* data, unsigned size), (override));
  MOCK_METHOD(bool, pio_write, (u16 port, const void* data, unsigned size), (override));
  MOCK_METHOD(bool, mmio_read, (Gpa address, void* data, unsigned size), (override));
  MOCK_METHOD(bool, mmio_write, (Gpa address, const void* data, unsigned size), (override));
};

MATCHER_P(Bytes, expected, "") { return std::memcmp(arg, &expected, sizeof expected) == 0; }
ACTION_P(Answer, value) {
  std::memcpy(arg1, &value, sizeof value);
  return true;
}

constexpr BusAddress kDevice = {false, 0xfebc0010}, kOther = {false, 0xfebc0020}, kPort = {true, 0x3f8};

class IoReplayTest : public testing::Test {
 protected:
  // Value of the read, or nothing where it stops for the client.
  std::optional<u32> read(BusAddress where) {
    u32 value = 0;
    auto result = m_replay.read(where, &value, sizeof value, m_platform, m_exit);
    if (!result.ok()) {
      EXPECT_EQ(result.error().kind, GuestStop::Kind::kExit);
      return {};
    }
    return value;
  }
  bool write(BusAddress where, u32 value) {
    return m_replay.write(where, &value, sizeof value, m_platform, m_exit).ok();
  }
  void complete(u32 value) { m_replay.complete(&value); }

  StrictMock<MockPlatform> m_platform;
  IoReplay m_replay;
  Exit m_exit;
};

TEST_F(IoReplayTest, read_answered_by_the_platform_does_not_stop) {
  EXPECT_CALL(m_platform, mmio_read(Gpa(0xfebc0010), _, 4)).WillOnce(Answer(u32{0x11223344}));
  EXPECT_EQ(read(kDevice), 0x11223344u);
  EXPECT_FALSE(m_replay.pending());
  EXPECT_TRUE(m_replay.in_progress());
}

TEST_F(IoReplayTest, read_that_nobody_answers_stops_with_the_access_in_the_exit) {
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Return(false));
  EXPECT_EQ(read(kDevice), std::nullopt);
  EXPECT_TRUE(m_replay.pending());
  EXPECT_EQ(m_exit.reason, Exit::Reason::kMmio);
  EXPECT_EQ(m_exit.gpa, 0xfebc0010u);
  EXPECT_EQ(m_exit.size, 4);
  EXPECT_FALSE(m_exit.write);
}

TEST_F(IoReplayTest, port_read_stops_with_port_and_one_item) {
  EXPECT_CALL(m_platform, pio_read(0x3f8, _, 4)).WillOnce(Return(false));
  EXPECT_EQ(read(kPort), std::nullopt);
  EXPECT_EQ(m_exit.reason, Exit::Reason::kPio);
  EXPECT_EQ(m_exit.port, 0x3f8);
  EXPECT_EQ(m_exit.count, 1u);
}

TEST_F(IoReplayTest, read_after_completion_gives_the_clients_answer_without_asking_again) {
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Return(false));
  EXPECT_EQ(read(kDevice), std::nullopt);
  complete(0xcafe);
  EXPECT_FALSE(m_replay.pending());
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 0xcafeu);
}

TEST_F(IoReplayTest, write_taken_by_the_platform_happens_once_over_two_attempts) {
  EXPECT_CALL(m_platform, mmio_write(Gpa(0xfebc0010), Bytes(u32{7}), 4)).WillOnce(Return(true));
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Return(false));
  EXPECT_TRUE(write(kDevice, 7));
  EXPECT_EQ(read(kOther), std::nullopt);
  complete(9);
  m_replay.begin_instruction();
  EXPECT_TRUE(write(kDevice, 7));
  EXPECT_EQ(read(kOther), 9u);
}

TEST_F(IoReplayTest, read_answered_in_here_is_the_same_on_the_next_attempt) {
  EXPECT_CALL(m_platform, mmio_read(Gpa(0xfebc0010), _, 4)).WillOnce(Answer(u32{1}));
  EXPECT_CALL(m_platform, mmio_write).WillOnce(Return(false));
  EXPECT_EQ(read(kDevice), 1u);
  EXPECT_FALSE(write(kOther, 2));
  m_replay.complete(nullptr);
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 1u);
  EXPECT_TRUE(write(kOther, 2));
}

TEST_F(IoReplayTest, write_for_the_client_carries_the_data_and_counts_as_done_afterwards) {
  EXPECT_CALL(m_platform, pio_write(0x3f8, Bytes(u32{0xaabbccdd}), 4)).WillOnce(Return(false));
  EXPECT_FALSE(write(kPort, 0xaabbccdd));
  EXPECT_TRUE(m_exit.write);
  EXPECT_EQ(m_exit.data[0], 0xdd);
  EXPECT_EQ(m_exit.data[3], 0xaa);
  m_replay.complete(nullptr);
  m_replay.begin_instruction();
  EXPECT_TRUE(write(kPort, 0xaabbccdd));
}

TEST_F(IoReplayTest, many_fragments_stop_one_after_the_other) {
  EXPECT_CALL(m_platform, mmio_read).Times(2).WillRepeatedly(Return(false));
  EXPECT_EQ(read(kDevice), std::nullopt);
  complete(1);
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 1u);
  EXPECT_EQ(read(kOther), std::nullopt);
  EXPECT_EQ(m_exit.gpa, 0xfebc0020u);
  complete(2);
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 1u);
  EXPECT_EQ(read(kOther), 2u);
}

TEST_F(IoReplayTest, same_address_read_twice_keeps_both_answers_in_order) {
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Answer(u32{1})).WillOnce(Answer(u32{2}));
  EXPECT_EQ(read(kDevice), 1u);
  EXPECT_EQ(read(kDevice), 2u);
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 1u);
  EXPECT_EQ(read(kDevice), 2u);
}

TEST_F(IoReplayTest, attempt_without_completion_stops_again_and_does_not_ask_the_platform) {
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Return(false));
  EXPECT_EQ(read(kDevice), std::nullopt);
  m_exit = Exit{};
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), std::nullopt);
  EXPECT_EQ(m_exit.gpa, 0xfebc0010u);
}

TEST_F(IoReplayTest, done_forgets_so_that_the_next_instruction_asks_again) {
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Answer(u32{1})).WillOnce(Answer(u32{2}));
  EXPECT_EQ(read(kDevice), 1u);
  m_replay.done();
  EXPECT_FALSE(m_replay.in_progress());
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 2u);
}

TEST_F(IoReplayTest, other_access_than_logged_drops_the_rest_of_the_log) {
  EXPECT_CALL(m_platform, mmio_read(Gpa(0xfebc0010), _, 4)).WillOnce(Return(false)).WillOnce(Answer(u32{6}));
  EXPECT_CALL(m_platform, mmio_read(Gpa(0xfebc0020), _, 4)).WillOnce(Answer(u32{5}));
  EXPECT_EQ(read(kDevice), std::nullopt);
  complete(1);
  m_replay.begin_instruction();
  EXPECT_EQ(read(kOther), 5u);
  EXPECT_EQ(read(kDevice), 6u);
}

TEST_F(IoReplayTest, same_access_by_an_instruction_elsewhere_happens_again) {
  EXPECT_CALL(m_platform, mmio_write).WillOnce(Return(false)).WillOnce(Return(true));
  m_replay.begin_instruction(0x1000);
  EXPECT_FALSE(write(kDevice, 7));
  m_replay.complete(nullptr);
  m_replay.begin_instruction(0xfff0);
  EXPECT_FALSE(m_replay.in_progress());
  EXPECT_TRUE(write(kDevice, 7));
}

TEST_F(IoReplayTest, same_access_by_the_instruction_at_the_same_place_counts_as_done) {
  EXPECT_CALL(m_platform, mmio_write).WillOnce(Return(false));
  m_replay.begin_instruction(0x1000);
  EXPECT_FALSE(write(kDevice, 7));
  m_replay.complete(nullptr);
  m_replay.begin_instruction(0x1000);
  EXPECT_TRUE(write(kDevice, 7));
}

TEST_F(IoReplayTest, read_is_not_answered_by_a_logged_write_or_port) {
  EXPECT_CALL(m_platform, mmio_write).WillOnce(Return(true));
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Answer(u32{3}));
  EXPECT_TRUE(write(kDevice, 7));
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 3u);
}

TEST_F(IoReplayTest, complete_without_open_exit_changes_nothing) {
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Answer(u32{1}));
  EXPECT_EQ(read(kDevice), 1u);
  complete(99);
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 1u);
}

TEST_F(IoReplayTest, read_with_null_answer_gives_zero) {
  EXPECT_CALL(m_platform, mmio_read).WillOnce(Return(false));
  EXPECT_EQ(read(kDevice), std::nullopt);
  m_replay.complete(nullptr);
  m_replay.begin_instruction();
  EXPECT_EQ(read(kDevice), 0u);
}

TEST_F(IoReplayTest, items_read_ahead_answer_the_next_elements) {
  EXPECT_CALL(m_platform, pio_read).WillOnce(Return(false));
  u16 value = 0;
  EXPECT_FALSE(m_replay.read(kPort, &value, 2, m_platform, m_exit, 3).ok());
  EXPECT_EQ(m_exit.count, 3u);
  const u16 answers[] = {0x1111, 0x2222, 0x3333};
  m_replay.complete(answers);
  m_replay.begin_instruction();
  ASSERT_TRUE(m_replay.read(kPort, &value, 2, m_platform, m_exit, 3).ok());
  EXPECT_EQ(value, 0x1111);
  m_replay.element_done();
  ASSERT_TRUE(m_replay.read(kPort, &value, 2, m_platform, m_exit, 2).ok());
  EXPECT_EQ(value, 0x2222);
  m_replay.element_done();
  EXPECT_TRUE(m_replay.in_progress());
  ASSERT_TRUE(m_replay.read(kPort, &value, 2, m_platform, m_exit, 1).ok());
  EXPECT_EQ(value, 0x3333);
  m_replay.element_done();
  EXPECT_FALSE(m_replay.in_progress());
}

TEST_F(IoReplayTest, items_read_ahead_are_dropped_by_a_read_elsewhere_and_at_the_end) {
  EXPECT_CALL(m_platform, pio_read).WillRepeatedly(Return(false));
  u16 value = 0;
  EXPECT_FALSE(m_replay.read(kPort, &value, 2, m_platform, m_exit, 2).ok());
  const u16 answers[] = {0x1111, 0x2222};
  m_replay.complete(answers);
  m_replay.done();
  EXPECT_FALSE(m_replay.in_progress());
  EXPECT_FALSE(m_replay.read(kPort, &value, 2, m_platform, m_exit).ok());
}

}  // namespace
}  // namespace anykvm::x86
