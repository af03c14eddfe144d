#include "irqchip/routing.h"

#include <cerrno>

#include "irqchip/msi.h"

namespace anykvm::irqchip {

namespace {

constexpr u32 kPicPins = 8;

Result<> check_flags(const kvm_irq_routing_entry& entry) {
  u32 allowed = entry.type == KVM_IRQ_ROUTING_MSI ? KVM_MSI_VALID_DEVID : 0;
  if (entry.flags & ~allowed) return Error{EINVAL, "routing entry has unknown flags"};
  return {};
}

Result<> check_pin(const kvm_irq_routing_irqchip& route, std::span<const RoutableChip> chips) {
  for (const RoutableChip& chip : chips) {
    if (chip.chip != route.irqchip) continue;
    if (route.pin >= chip.pins) return Error{EINVAL, "the interrupt chip has no such pin"};
    return {};
  }
  return Error{EINVAL, "no such interrupt chip"};
}

// Two-level event channels of a 64-bit guest; a 32-bit one has fewer.
Result<> check_event(const kvm_irq_routing_xen_evtchn& route) {
  constexpr u32 kPorts = 4096;
  if (route.port >= kPorts || route.priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
    return Error{EINVAL, "no such event channel"};
  return {};
}

Result<> check_entry(const kvm_irq_routing_entry& entry, std::span<const RoutableChip> chips,
                     bool ids_32bit) {
  if (entry.gsi >= kMaxIrqRoutes) return Error{EINVAL, "GSI out of range"};
  TRY(check_flags(entry));
  if (entry.type == KVM_IRQ_ROUTING_MSI) return check_msi(entry.u.msi.address_hi, ids_32bit);
  if (entry.type == KVM_IRQ_ROUTING_IRQCHIP) return check_pin(entry.u.irqchip, chips);
  if (entry.type == KVM_IRQ_ROUTING_HV_SINT) return {};
  if (entry.type == KVM_IRQ_ROUTING_XEN_EVTCHN) return check_event(entry.u.xen_evtchn);
  return Error{EINVAL, "unknown type of route"};
}

// A GSI may stand for one pin on each of several chips; an MSI has its GSI for itself.
bool can_share_gsi(const kvm_irq_routing_entry& a, const kvm_irq_routing_entry& b) {
  return a.type == KVM_IRQ_ROUTING_IRQCHIP && b.type == KVM_IRQ_ROUTING_IRQCHIP &&
         a.u.irqchip.irqchip != b.u.irqchip.irqchip;
}

kvm_irq_routing_entry pin_route(u32 gsi, u32 chip, u32 pin) {
  kvm_irq_routing_entry entry{};
  entry.gsi = gsi;
  entry.type = KVM_IRQ_ROUTING_IRQCHIP;
  entry.u.irqchip = {chip, pin};
  return entry;
}

}  // namespace

Result<std::shared_ptr<const RoutingTable>> RoutingTable::create(
    std::span<const kvm_irq_routing_entry> entries, std::span<const RoutableChip> chips, bool ids_32bit) {
  if (entries.size() > kMaxIrqRoutes) return Error{EINVAL, "too many routes"};
  auto table = std::make_shared<RoutingTable>();
  for (const kvm_irq_routing_entry& entry : entries) {
    TRY(check_entry(entry, chips, ids_32bit));
    auto& routes = table->m_by_gsi[entry.gsi];
    for (const kvm_irq_routing_entry& other : routes)
      if (!can_share_gsi(entry, other)) return Error{EINVAL, "GSI routed twice"};
    routes.push_back(entry);
    if (entry.type == KVM_IRQ_ROUTING_IRQCHIP)
      table->m_gsi_of_pin[{entry.u.irqchip.irqchip, entry.u.irqchip.pin}] = entry.gsi;
    if (entry.type == KVM_IRQ_ROUTING_HV_SINT)
      table->m_gsi_of_sint[{entry.u.hv_sint.vcpu, entry.u.hv_sint.sint}] = entry.gsi;
  }
  return std::shared_ptr<const RoutingTable>(std::move(table));
}

std::span<const kvm_irq_routing_entry> RoutingTable::routes(u32 gsi) const {
  auto found = m_by_gsi.find(gsi);
  if (found == m_by_gsi.end()) return {};
  return found->second;
}

std::optional<u32> RoutingTable::gsi_of_pin(u32 chip, u32 pin) const {
  auto found = m_gsi_of_pin.find({chip, pin});
  if (found == m_gsi_of_pin.end()) return std::nullopt;
  return found->second;
}

std::optional<u32> RoutingTable::gsi_of_sint(u32 vp_index, u32 sint) const {
  auto found = m_gsi_of_sint.find({vp_index, sint});
  if (found == m_gsi_of_sint.end()) return std::nullopt;
  return found->second;
}

std::span<const RoutableChip> full_irqchip() {
  static constexpr RoutableChip kChips[] = {{KVM_IRQCHIP_PIC_MASTER, kPicPins},
                                            {KVM_IRQCHIP_PIC_SLAVE, kPicPins},
                                            {KVM_IRQCHIP_IOAPIC, KVM_IOAPIC_NUM_PINS}};
  return kChips;
}

std::vector<kvm_irq_routing_entry> default_routing() {
  std::vector<kvm_irq_routing_entry> entries;
  for (u32 gsi = 0; gsi < KVM_IOAPIC_NUM_PINS; gsi++) {
    entries.push_back(pin_route(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    if (gsi < 2 * kPicPins) entries.push_back(pin_route(gsi, gsi / kPicPins, gsi % kPicPins));
  }
  return entries;
}

}  // namespace anykvm::irqchip
