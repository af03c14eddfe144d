#pragma once
// A message-signalled interrupt: address and data to a Message (SDM 3A 10.11), with KVM's rule for
// destinations above 8 bits. Owner: nobody; pure functions. Any thread.

#include <linux/kvm.h>

#include "base/expected.h"
#include "base/types.h"
#include "irqchip/apic_bus.h"

namespace anykvm::irqchip {

// `ids_32bit` (KVM_X2APIC_API_USE_32BIT_IDS): address_hi[31:8] are destination bits 31:8. Bits 7:0 of it must
// then be 0: EINVAL.
Result<> check_msi(u32 address_hi, bool ids_32bit);
Message decode_msi(u32 address_lo, u32 address_hi, u32 data, bool ids_32bit);
inline Message decode_msi(const kvm_irq_routing_msi& route, bool ids_32bit) {
  return decode_msi(route.address_lo, route.address_hi, route.data, ids_32bit);
}

}  // namespace anykvm::irqchip
