#include "core/msr_filter.h"

#include <errno.h>

#include "base/bits.h"
#include "base/client_memory.h"

namespace anykvm::core {
namespace {

constexpr u32 kRangeFlags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;

bool is_x2apic(u32 index) { return index >= 0x800 && index <= 0x8ff; }

}  // namespace

Result<> MsrFilter::set(const kvm_msr_filter& filter) {
  if (filter.flags & ~u32{KVM_MSR_FILTER_DEFAULT_DENY}) return Error{EINVAL, "unknown filter flags"};
  auto rules = std::make_shared<Rules>();
  rules->default_allow = !(filter.flags & KVM_MSR_FILTER_DEFAULT_DENY);
  for (const kvm_msr_filter_range& range : filter.ranges) {
    if (range.nmsrs == 0) continue;
    if (range.flags == 0 || (range.flags & ~kRangeFlags)) return Error{EINVAL, "unknown range flags"};
    const u64 bytes = align_up(u64{range.nmsrs}, 64) / 8;
    if (bytes > KVM_MSR_FILTER_MAX_BITMAP_SIZE) return Error{EINVAL, "a range is too large"};
    Range copy{range.flags, range.base, range.nmsrs, std::vector<u8>(bytes)};
    TRY(copy_from_client(copy.bitmap.data(), reinterpret_cast<u64>(range.bitmap), bytes));
    rules->ranges.push_back(std::move(copy));
  }
  if (rules->ranges.empty() && !rules->default_allow) return Error{EINVAL, "everything would be denied"};
  m_rules.store(std::move(rules));
  return {};
}

// The x2APIC's registers are never filtered.
bool MsrFilter::denies(u32 index, bool write) const {
  const auto rules = m_rules.load();
  if (!rules || is_x2apic(index)) return false;
  const u32 kind = write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ;
  for (const Range& range : rules->ranges) {
    if (!(range.flags & kind) || index < range.base || index - range.base >= range.count) continue;
    const u32 number = index - range.base;
    return !(range.bitmap[number / 8] >> (number % 8) & 1);
  }
  return !rules->default_allow;
}

}  // namespace anykvm::core
