#include "x86/translate/block.h"

#include <algorithm>

#include "base/bits.h"

namespace anykvm::x86::site_words {
namespace {

constexpr unsigned kOffsetAt = 14, kGuestOffsetAt = 4, kFaultAt = 3, kFlagsAt = 1;
constexpr u32 kMore = 1;

bool is_recovered(FlagsAt flags) { return flags == FlagsAt::kRecovered || flags == FlagsAt::kRound; }

}  // namespace

std::vector<u32> pack(std::vector<Site> sites) {
  std::stable_sort(sites.begin(), sites.end(),
                   [](const Site& a, const Site& b) { return a.offset < b.offset; });
  std::vector<u32> words;
  words.reserve(sites.size());
  for (const Site& site : sites) {
    const bool more = site.borrowed[0] != kNoRegister || site.borrowed[1] != kNoRegister;
    words.push_back(site.offset << kOffsetAt | u32{site.guest_offset} << kGuestOffsetAt |
                    u32{site.fault} << kFaultAt | static_cast<u32>(site.flags) << kFlagsAt |
                    (more ? kMore : 0));
    if (more) words.push_back(u32{site.borrowed[0]} | u32{site.borrowed[1]} << 8);
    if (is_recovered(site.flags)) words.push_back(site.recovery);
  }
  return words;
}

bool find(std::span<const u32> words, u32 offset, bool fault, Site* out) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    const u32 word = words[i];
    const bool wanted = word >> kOffsetAt == offset && (word >> kFaultAt & 1) == fault;
    const u32 more = word & kMore ? words[++i] : u32{kNoRegister} << 8 | kNoRegister;
    const auto flags = static_cast<FlagsAt>(word >> kFlagsAt & 3);
    const RecordRef recovery = is_recovered(flags) ? words[++i] : kNoRecord;
    if (!wanted) continue;
    *out = {offset,
            static_cast<u16>(word >> kGuestOffsetAt & low_bits(kOffsetAt - kGuestOffsetAt)),
            fault,
            flags,
            {static_cast<u8>(more), static_cast<u8>(more >> 8)},
            recovery};
    return true;
  }
  return false;
}

}  // namespace anykvm::x86::site_words
