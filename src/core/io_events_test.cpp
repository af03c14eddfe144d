#include "core/io_events.h"

#include <errno.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace anykvm::core {
namespace {

class IoEventsTest : public testing::Test {
 protected:
  Fd m_fd{eventfd(0, EFD_NONBLOCK)};
  IoEvents m_events;

  kvm_ioeventfd request(u64 address, u32 length, u32 flags = 0, u64 match = 0) {
    kvm_ioeventfd request{};
    request.addr = address;
    request.len = length;
    request.flags = flags;
    request.datamatch = match;
    request.fd = m_fd.get();
    return request;
  }
  u64 count() {
    u64 count = 0;
    return read(m_fd.get(), &count, sizeof count) == sizeof count ? count : 0;
  }
  bool write(IoBus bus, u64 address, u64 value, unsigned size) {
    return m_events.write(bus, address, &value, size);
  }
};

TEST_F(IoEventsTest, seed_G2_write_signals_and_is_consumed) {
  ASSERT_TRUE(m_events.change(request(0x1000, 4)).ok());
  EXPECT_TRUE(write(IoBus::kMmio, 0x1000, 7, 4));
  EXPECT_EQ(count(), 1u);
}

TEST_F(IoEventsTest, seed_G2_other_address_size_or_bus_does_not_match) {
  ASSERT_TRUE(m_events.change(request(0x1000, 4)).ok());
  EXPECT_FALSE(write(IoBus::kMmio, 0x1004, 7, 4));
  EXPECT_FALSE(write(IoBus::kMmio, 0x1000, 7, 2));
  EXPECT_FALSE(write(IoBus::kPio, 0x1000, 7, 4));
  EXPECT_EQ(count(), 0u);
}

TEST_F(IoEventsTest, seed_G2_datamatch_compares_the_written_value) {
  ASSERT_TRUE(m_events.change(request(0x1000, 2, KVM_IOEVENTFD_FLAG_DATAMATCH, 5)).ok());
  EXPECT_FALSE(write(IoBus::kMmio, 0x1000, 4, 2));
  EXPECT_TRUE(write(IoBus::kMmio, 0x1000, 5, 2));
}

TEST_F(IoEventsTest, seed_G2_length_zero_matches_any_size) {
  ASSERT_TRUE(m_events.change(request(0x1000, 0)).ok());
  EXPECT_TRUE(write(IoBus::kMmio, 0x1000, 5, 1));
  EXPECT_TRUE(write(IoBus::kMmio, 0x1000, 5, 8));
  EXPECT_EQ(count(), 2u);
}

TEST_F(IoEventsTest, seed_G2_pio_event_answers_ports) {
  ASSERT_TRUE(m_events.change(request(0x60, 1, KVM_IOEVENTFD_FLAG_PIO)).ok());
  EXPECT_TRUE(write(IoBus::kPio, 0x60, 5, 1));
  EXPECT_FALSE(write(IoBus::kMmio, 0x60, 5, 1));
}

TEST_F(IoEventsTest, colliding_events_are_eexist) {
  ASSERT_TRUE(m_events.change(request(0x1000, 4)).ok());
  EXPECT_EQ(m_events.change(request(0x1000, 4)).error().code, EEXIST);
  EXPECT_EQ(m_events.change(request(0x1000, 0)).error().code, EEXIST);
  EXPECT_EQ(m_events.change(request(0x1000, 4, KVM_IOEVENTFD_FLAG_DATAMATCH, 1)).error().code, EEXIST);
}

TEST_F(IoEventsTest, events_with_different_data_share_an_address) {
  ASSERT_TRUE(m_events.change(request(0x1000, 4, KVM_IOEVENTFD_FLAG_DATAMATCH, 1)).ok());
  EXPECT_TRUE(m_events.change(request(0x1000, 4, KVM_IOEVENTFD_FLAG_DATAMATCH, 2)).ok());
}

TEST_F(IoEventsTest, bad_arguments_are_refused) {
  EXPECT_EQ(m_events.change(request(0x1000, 3)).error().code, EINVAL);
  EXPECT_EQ(m_events.change(request(~u64{0}, 4)).error().code, EINVAL);
  EXPECT_EQ(m_events.change(request(0x1000, 4, 1u << 9)).error().code, EINVAL);
  EXPECT_EQ(m_events.change(request(0x1000, 0, KVM_IOEVENTFD_FLAG_DATAMATCH)).error().code, EINVAL);
}

TEST_F(IoEventsTest, bad_descriptors_are_refused) {
  kvm_ioeventfd bad = request(0x1000, 4);
  bad.fd = 99999;
  EXPECT_EQ(m_events.change(bad).error().code, EBADF);
  Fd pipe_end(dup(STDERR_FILENO));
  bad.fd = pipe_end.get();
  EXPECT_EQ(m_events.change(bad).error().code, EINVAL);
}

TEST_F(IoEventsTest, deassign_through_another_descriptor_of_the_same_eventfd_works) {
  ASSERT_TRUE(m_events.change(request(0x1000, 4)).ok());
  Fd duplicate(dup(m_fd.get()));
  kvm_ioeventfd remove = request(0x1000, 4, KVM_IOEVENTFD_FLAG_DEASSIGN);
  remove.fd = duplicate.get();
  ASSERT_TRUE(m_events.change(remove).ok());
  EXPECT_FALSE(write(IoBus::kMmio, 0x1000, 7, 4));
  EXPECT_EQ(m_events.change(remove).error().code, ENOENT);
}

}  // namespace
}  // namespace anykvm::core
