#include "devices/port_device.h"

#include <algorithm>

namespace anykvm::devices {

const PortBus::Range* PortBus::find(u16 port) const {
  auto it = std::find_if(m_ranges.begin(), m_ranges.end(),
                         [&](const Range& r) { return port >= r.first && port - r.first < r.count; });
  return it == m_ranges.end() ? nullptr : &*it;
}

void PortBus::read(u16 port, std::span<u8> data) const {
  std::fill(data.begin(), data.end(), u8{0xff});
  if (const Range* range = find(port)) range->device->read(static_cast<u16>(port - range->first), data);
}

void PortBus::write(u16 port, std::span<const u8> data) const {
  if (const Range* range = find(port)) range->device->write(static_cast<u16>(port - range->first), data);
}

}  // namespace anykvm::devices
