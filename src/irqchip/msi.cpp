#include "irqchip/msi.h"

#include <cerrno>

#include "base/bits.h"

namespace anykvm::irqchip {

Result<> check_msi(u32 address_hi, bool ids_32bit) {
  if (ids_32bit && (address_hi & 0xff)) return Error{EINVAL, "MSI address bits 39:32 are not 0"};
  return {};
}

Message decode_msi(u32 address_lo, u32 address_hi, u32 data, bool ids_32bit) {
  Message message;
  message.destination = static_cast<u32>(bits(address_lo, 19, 12));
  if (ids_32bit) message.destination |= address_hi & 0xffffff00;
  message.logical = has_bit(address_lo, 2);
  message.lowest_hint = has_bit(address_lo, 3);
  message.vector = static_cast<u8>(data);
  message.mode = static_cast<DeliveryMode>(bits(data, 10, 8));
  // Bit 14 would de-assert a level; an MSI has no line to hold, so each write counts as an assertion.
  message.level_triggered = has_bit(data, 15);
  return message;
}

}  // namespace anykvm::irqchip
