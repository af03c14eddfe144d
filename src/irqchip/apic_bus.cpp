#include "irqchip/apic_bus.h"

#include <algorithm>

#include "irqchip/lapic.h"

namespace anykvm::irqchip {

namespace {

constexpr u32 kBroadcastXapic = 0xff;
constexpr u32 kBroadcastX2apic = 0xffffffff;
constexpr u32 kDfrFlat = 0xf;

bool matches_physical(u32 destination, const Lapic& target) {
  if (target.x2apic_mode()) return destination == target.id();
  // A CPU numbered above 255 cannot be named in 8 bits while it is still in xAPIC mode; KVM lets its full
  // number through, so that the INIT that starts it arrives.
  return destination == target.xapic_id() || (target.id() > 0xff && destination == target.id());
}

// SDM 3A 10.6.2.2 (flat and cluster model) and 10.12.10.1 (x2APIC: cluster in the upper half, a bit each in
// the lower).
bool matches_logical(u32 destination, const Lapic& target) {
  if (target.x2apic_mode())
    return destination >> 16 == target.ldr() >> 16 && (destination & target.ldr() & 0xffff) != 0;
  u32 logical_id = target.ldr() >> 24;
  if (target.dfr() >> 28 == kDfrFlat) return (destination & logical_id & 0xff) != 0;
  return (destination & 0xf0) == (logical_id & 0xf0) && (destination & logical_id & 0xf) != 0;
}

int count_delivery(int so_far, Lapic::Accepted accepted) {
  if (accepted == Lapic::Accepted::kNo) return so_far;
  return std::max(so_far, 0) + (accepted == Lapic::Accepted::kYes ? 1 : 0);
}

Lapic::Accepted give(Lapic& target, const Message& message) {
  return target.accept(message.mode, message.vector, message.level_triggered, message.assert_level);
}

bool picks_one(const Message& message) {
  return message.mode == DeliveryMode::kLowest ||
         (message.lowest_hint && message.mode == DeliveryMode::kFixed);
}

}  // namespace

bool ApicBus::add(Lapic& lapic) {
  std::lock_guard lock(m_mutex);
  unsigned used = count();
  for (unsigned i = 0; i < used; i++) {
    if (at(i)) continue;
    m_lapics[i].store(&lapic, std::memory_order_release);
    return true;
  }
  if (used == kMaxLapics) return false;
  m_lapics[used].store(&lapic, std::memory_order_release);
  m_count.store(used + 1, std::memory_order_release);
  return true;
}

void ApicBus::remove(Lapic& lapic) {
  std::lock_guard lock(m_mutex);
  for (auto& slot : m_lapics)
    if (slot.load(std::memory_order_relaxed) == &lapic) slot.store(nullptr, std::memory_order_release);
}

bool ApicBus::matches(const Message& message, const Lapic& target, const Lapic* source) const {
  if (!target.hardware_enabled()) return false;
  switch (message.shorthand) {
    case Shorthand::kSelf:
      return &target == source;
    case Shorthand::kAllIncludingSelf:
      return true;
    case Shorthand::kAllExcludingSelf:
      return &target != source;
    case Shorthand::kNone:
      break;
  }
  return matches_destination(message, target, source);
}

bool ApicBus::matches_destination(const Message& message, const Lapic& target, const Lapic* source) const {
  if (source && source->x2apic_mode()) {
    if (message.destination == kBroadcastX2apic) return true;
  } else if (message.destination == kBroadcastXapic) {
    // IOAPIC and MSI have 8 bits for the destination, so FFH means all for x2APICs too, unless the client
    // took the quirk away.
    bool quirk = !source && m_broadcast_quirk.load(std::memory_order_relaxed);
    if (!target.x2apic_mode() || quirk) return true;
  } else if (message.destination == kBroadcastX2apic && target.x2apic_mode()) {
    return true;
  }
  return message.logical ? matches_logical(message.destination, target)
                         : matches_physical(message.destination, target);
}

// The common case without a search: CPU n is the n-th on the bus, and named by number.
Lapic* ApicBus::single_target(const Message& message, const Lapic* source) const {
  if (message.shorthand == Shorthand::kSelf) return const_cast<Lapic*>(source);
  if (message.logical || message.shorthand != Shorthand::kNone || message.destination >= count())
    return nullptr;
  if (message.destination == kBroadcastXapic || !m_ids_are_numbers.load(std::memory_order_relaxed))
    return nullptr;
  Lapic* lapic = at(message.destination);
  return lapic && lapic->id() == message.destination ? lapic : nullptr;
}

int ApicBus::deliver(const Message& message, Lapic* source) {
  if (Lapic* target = single_target(message, source))
    return target->hardware_enabled() ? count_delivery(-1, give(*target, message)) : -1;
  if (picks_one(message)) return deliver_lowest(message, source);
  int delivered = -1;
  for (unsigned i = 0; i < count(); i++) {
    Lapic* lapic = at(i);
    if (lapic && matches(message, *lapic, source))
      delivered = count_delivery(delivered, give(*lapic, message));
  }
  return delivered;
}

bool ApicBus::has_destination(const Message& message) const {
  for (unsigned i = 0; i < count(); i++) {
    if (const Lapic* lapic = at(i); lapic && matches(message, *lapic, nullptr)) return true;
  }
  return false;
}

// SDM 3A 10.6.2.4: the lowest processor priority wins. Among equals the vector chooses, so that one interrupt
// stays with one CPU.
int ApicBus::deliver_lowest(const Message& message, Lapic* source) {
  auto candidate = [&](unsigned i) {
    Lapic* lapic = at(i);
    return lapic && lapic->software_enabled() && matches(message, *lapic, source) ? lapic : nullptr;
  };
  unsigned lowest = 256, equals = 0;
  for (unsigned i = 0; i < count(); i++) {
    Lapic* lapic = candidate(i);
    if (!lapic) continue;
    unsigned priority = lapic->ppr() >> 4;
    if (priority < lowest) lowest = priority, equals = 0;
    equals += priority == lowest;
  }
  if (equals == 0) return -1;
  // Priorities move while we look again; any candidate seen last will do then.
  unsigned skip = message.vector % equals;
  Lapic* chosen = nullptr;
  for (unsigned i = 0; i < count(); i++) {
    Lapic* lapic = candidate(i);
    if (!lapic) continue;
    bool equal = unsigned(lapic->ppr() >> 4) <= lowest;
    if (equal || !chosen) chosen = lapic;
    if (equal && skip-- == 0) break;
  }
  return chosen ? count_delivery(-1, give(*chosen, message)) : -1;
}

}  // namespace anykvm::irqchip
