#pragma once
// GSI routing table: which interrupt-chip pins or which MSI a GSI stands for (KVM_SET_GSI_ROUTING).
// Owner: IrqChip. A built table never changes: share it between threads by pointer.

#include <linux/kvm.h>

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::irqchip {

inline constexpr u32 kMaxIrqRoutes = 4096;  // KVM_CAP_IRQ_ROUTING

// An interrupt chip that routes may name, and its number of pins. The architecture says which there are.
struct RoutableChip {
  u32 chip = 0;
  u32 pins = 0;
};

class RoutingTable {
 public:
  // Checks every entry before anything is built. EINVAL: too many entries, a GSI of 4096 or more, flags, a
  // chip or pin that is not in `chips`, a type other than IRQCHIP, MSI, HV_SINT and XEN_EVTCHN, a GSI twice
  // on one chip, another route that shares its GSI.
  static Result<std::shared_ptr<const RoutingTable>> create(std::span<const kvm_irq_routing_entry> entries,
                                                            std::span<const RoutableChip> chips,
                                                            bool ids_32bit);

  std::span<const kvm_irq_routing_entry> routes(u32 gsi) const;
  std::optional<u32> gsi_of_pin(u32 chip, u32 pin) const;
  // Of a synthetic interrupt (KVM_IRQ_ROUTING_HV_SINT).
  std::optional<u32> gsi_of_sint(u32 vp_index, u32 sint) const;

 private:
  std::map<u32, std::vector<kvm_irq_routing_entry>> m_by_gsi;
  std::map<std::pair<u32, u32>, u32> m_gsi_of_pin;   // (chip, pin)
  std::map<std::pair<u32, u32>, u32> m_gsi_of_sint;  // (virtual processor, source)
};

std::span<const RoutableChip> full_irqchip();  // both PICs and the IOAPIC
std::vector<kvm_irq_routing_entry>
default_routing();  // KVM's: 0-15 to PIC and IOAPIC, 16-23 to the IOAPIC, pin = GSI

}  // namespace anykvm::irqchip
