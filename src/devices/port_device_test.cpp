#include "devices/port_device.h"

#include <gtest/gtest.h>

#include <array>

namespace anykvm::devices {
namespace {

class Recorder : public BytePortDevice {
 public:
  u8 read_byte(u16 offset) override { return static_cast<u8>(0x10 + offset); }
  void write_byte(u16 offset, u8 value) override { written.push_back({offset, value}); }
  std::vector<std::pair<u16, u8>> written;
};

TEST(PortBus, read_of_unclaimed_port_is_all_ones) {
  PortBus bus;
  std::array<u8, 4> data{};
  bus.read(0xcfc, data);
  EXPECT_EQ(data, (std::array<u8, 4>{0xff, 0xff, 0xff, 0xff}));
}

TEST(PortBus, wide_access_of_byte_device_is_one_cycle_per_byte) {
  PortBus bus;
  Recorder device;
  bus.add(0x70, 4, device);
  std::array<u8, 2> data{};
  bus.read(0x71, data);
  EXPECT_EQ(data, (std::array<u8, 2>{0x11, 0x12}));
  bus.write(0x70, std::array<u8, 2>{0xaa, 0xbb});
  EXPECT_EQ(device.written, (std::vector<std::pair<u16, u8>>{{0, 0xaa}, {1, 0xbb}}));
}

TEST(PortBus, wide_write_that_starts_below_a_device_does_not_reach_it) {
  PortBus bus;
  Recorder device;
  bus.add(0xcf9, 1, device);
  bus.write(0xcf8, std::array<u8, 4>{0, 0xff, 0, 0x80});
  EXPECT_TRUE(device.written.empty());
}

}  // namespace
}  // namespace anykvm::devices
