#include "core/counter_filter.h"

#include <errno.h>

#include "base/bits.h"
#include "x86/sys/cpu_model.h"

namespace anykvm::core {
namespace {

using Event = CounterFilter::Rules::Event;

constexpr u64 kUnitMask = 0xff00, kSelect = 0xff | u64{0xf} << 32;
// Of masked entries: match, exclude and mask stand around the event.
constexpr unsigned kMatchShift = 8, kExcludeBit = 55, kMaskShift = 56;

u16 select_of(u64 value) { return static_cast<u16>((value & 0xff) | (value >> 24 & 0xf00)); }

Event exact_event(u64 entry) {
  return {select_of(entry), 0xff, static_cast<u8>(entry >> kMatchShift), false};
}
Event masked_event(u64 entry) {
  return {select_of(entry), static_cast<u8>(entry >> kMaskShift), static_cast<u8>(entry >> kMatchShift),
          has_bit(entry, kExcludeBit)};
}

}  // namespace

Result<> CounterFilter::check(const kvm_pmu_event_filter& header) {
  if (header.action != KVM_PMU_EVENT_ALLOW && header.action != KVM_PMU_EVENT_DENY)
    return Error{EINVAL, "neither allow nor deny"};
  if (header.flags & ~KVM_PMU_EVENT_FLAG_MASKED_EVENTS) return Error{EINVAL, "unknown flags"};
  if (header.nevents > kMostFilterEvents) return Error{E2BIG, "too many events"};
  return {};
}

Result<CounterFilter::Rules> CounterFilter::rules_of(const kvm_pmu_event_filter& header,
                                                     const std::vector<u64>& events) {
  const bool masked = header.flags & KVM_PMU_EVENT_FLAG_MASKED_EVENTS;
  const u64 select_bits = x86::host_is_amd() ? kSelect : kSelect & 0xff;  // Intel's have 8 (KVM API 4.120)
  const u64 masked_bits = select_bits | kUnitMask | u64{1} << kExcludeBit | u64{0xff} << kMaskShift;
  Rules rules{
      .allow = header.action == KVM_PMU_EVENT_ALLOW, .fixed = header.fixed_counter_bitmap, .events = {}};
  for (u64 entry : events) {
    if (masked && (entry & ~masked_bits)) return Error{EINVAL, "bits that no masked event has"};
    // No counter can select these.
    if (!masked && (entry & ~(kSelect | kUnitMask))) continue;
    rules.events.push_back(masked ? masked_event(entry) : exact_event(entry));
  }
  return rules;
}

void CounterFilter::set(Rules rules) { m_rules = std::make_shared<const Rules>(std::move(rules)); }

// An event is named if an entry matches it, and none that excludes does.
bool CounterFilter::allows(u64 select) const {
  const std::shared_ptr<const Rules> rules = m_rules.load();
  if (!rules) return true;
  const auto matches = [&](const Event& event) {
    const auto unit_mask = static_cast<u8>((select & kUnitMask) >> kMatchShift);
    return event.select == select_of(select) && (unit_mask & event.mask) == event.match;
  };
  bool included = false, excluded = false;
  for (const Event& event : rules->events) {
    if (matches(event)) (event.exclude ? excluded : included) = true;
  }
  return (included && !excluded) == rules->allow;
}

bool CounterFilter::allows_fixed(unsigned index) const {
  const std::shared_ptr<const Rules> rules = m_rules.load();
  return !rules || (rules->fixed >> index & 1) == rules->allow;
}

}  // namespace anykvm::core
