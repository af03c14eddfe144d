#pragma once
// A device on the I/O ports, the bus that finds it, and the interrupt line it drives.
// Owner: the machine owns devices; the bus only points at them. The bus is immutable once vCPUs run; devices
// lock themselves.

#include <functional>
#include <span>
#include <vector>

#include "base/types.h"

namespace anykvm::devices {

// Drives one interrupt input of the machine; called with the device's lock held, so it must not call back.
using IrqLine = std::function<void(bool level)>;

class PortDevice {
 public:
  virtual ~PortDevice() = default;
  // `offset` counts from the first port the device was added at; `data` is 1, 2 or 4 bytes.
  virtual void read(u16 offset, std::span<u8> data) = 0;
  virtual void write(u16 offset, std::span<const u8> data) = 0;
};

// A device with an 8-bit data path: wider accesses arrive as one cycle per byte at consecutive ports, as on
// ISA.
class BytePortDevice : public PortDevice {
 public:
  void read(u16 offset, std::span<u8> data) final {
    for (size_t i = 0; i < data.size(); ++i) data[i] = read_byte(static_cast<u16>(offset + i));
  }
  void write(u16 offset, std::span<const u8> data) final {
    for (size_t i = 0; i < data.size(); ++i) write_byte(static_cast<u16>(offset + i), data[i]);
  }

  virtual u8 read_byte(u16 offset) = 0;
  virtual void write_byte(u16 offset, u8 value) = 0;
};

// Finds the device that claims the first port of an access. Nobody there: reads are all-ones, writes vanish.
// So the PCI address register at 0CF8H, which we do not have, swallows a 32-bit write although 0CF9H is the
// reset register.
class PortBus {
 public:
  void add(u16 first, u16 count, PortDevice& device) { m_ranges.push_back({first, count, &device}); }
  void read(u16 port, std::span<u8> data) const;
  void write(u16 port, std::span<const u8> data) const;

 private:
  struct Range {
    u16 first;
    u16 count;
    PortDevice* device;
  };
  const Range* find(u16 port) const;

  std::vector<Range> m_ranges;
};

}  // namespace anykvm::devices
