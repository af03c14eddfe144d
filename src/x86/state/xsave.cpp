#include "x86/state/xsave.h"

#include <cpuid.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace anykvm::x86 {
namespace {

constexpr unsigned kComponents = 10, kPkruComponent = 9;
constexpr u32 kLegacySize = 512, kHeaderEnd = 576;

struct HostLayout {
  bool pkru = false;  // the host itself has a place for PKRU
  u64 usable = kXcr0X87 | kXcr0Sse;
  std::array<XsaveComponent, kComponents> components{};
};

u64 read_host_xcr0() {
  u32 low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return u64{high} << 32 | low;
}

HostLayout read_host_layout() {
  HostLayout layout;
  layout.components[0] = {0, 160, false};
  layout.components[1] = {160, 256, false};
  u32 eax, ebx, ecx, edx;
  bool osxsave = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_OSXSAVE);
  if (osxsave) layout.usable |= read_host_xcr0() & (kXcr0Avx | kXcr0Avx512);
  if ((layout.usable & kXcr0Avx512) != kXcr0Avx512) layout.usable &= ~kXcr0Avx512;

  u32 end = kHeaderEnd;
  for (unsigned index = 2; index < kComponents; ++index) {
    if (!has_bit(layout.usable | kXcr0Pkru, index)) continue;
    if (osxsave) {
      __cpuid_count(0xd, index, eax, ebx, ecx, edx);
    } else {
      eax = 0;
    }
    // A host without protection keys has no place for PKRU: guests get it behind everything else.
    layout.pkru |= index == kPkruComponent && eax != 0;
    if (eax == 0) eax = 8, ebx = static_cast<u32>(align_up(end, 64)), ecx = 0;
    layout.components[index] = {ebx, eax, (ecx & 2) != 0};
    end = std::max(end, ebx + eax);
  }
  return layout;
}

const HostLayout& host_layout() {
  static const HostLayout layout = read_host_layout();
  return layout;
}

}  // namespace

u64 host_xcr0_usable() { return host_layout().usable; }
u64 guest_xcr0_supported() { return host_layout().usable | kXcr0Pkru; }

u64 guest_xcr0_offered() { return host_layout().usable | (host_layout().pkru ? u64{kXcr0Pkru} : 0); }

XsaveComponent xsave_component(unsigned index) {
  return index < kComponents ? host_layout().components[index] : XsaveComponent{};
}

u32 xsave_standard_size(u64 xcr0) {
  u32 size = kHeaderEnd;
  for (unsigned index = 2; index < kComponents; ++index) {
    XsaveComponent component = xsave_component(index);
    if (has_bit(xcr0, index)) size = std::max(size, component.offset + component.size);
  }
  return size;
}

u32 xsave_compacted_size(u64 components) {
  u64 size = kHeaderEnd;
  for (unsigned index = 2; index < kComponents; ++index) {
    if (!has_bit(components, index)) continue;
    XsaveComponent component = xsave_component(index);
    if (component.aligned64) size = align_up(size, 64);
    size += component.size;
  }
  return static_cast<u32>(size);
}

// SDM 3A table 10-1: power-up clears the registers; INIT keeps them all, as it keeps XCR0 and the x87 state.
void reset_xsave(CpuState& state, bool init) {
  if (init) return;
  state.xsave.fill(0);
  constexpr u16 kFcwAtReset = 0x40;
  constexpr u8 kAbridgedFtwAtReset = 0xff;  // FTW 5555H: every register holds +0.0, so none is empty
  constexpr u32 kMxcsrAtReset = 0x1f80;
  std::memcpy(&state.xsave[0], &kFcwAtReset, sizeof kFcwAtReset);
  std::memcpy(&state.xsave[4], &kAbridgedFtwAtReset, sizeof kAbridgedFtwAtReset);
  std::memcpy(&state.xsave[24], &kMxcsrAtReset, sizeof kMxcsrAtReset);
  u64 in_use = kXcr0X87;
  std::memcpy(&state.xsave[kLegacySize], &in_use, sizeof in_use);
}

}  // namespace anykvm::x86
