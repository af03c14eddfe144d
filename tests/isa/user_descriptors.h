#pragma once
// Segments that programs may load: what Linux has in every GDT, and for the fuzzer some of our own in an LDT,
// the same on the host CPU and in the guest. Owner: nobody; plain values. Any thread.

#include "base/types.h"

namespace anykvm::isa {

// Linux: arch/x86/include/asm/segment.h
inline constexpr u16 kUserCs32 = 0x23, kUserDs = 0x2b, kUserCs64 = 0x33, kProcessorNode = 0x7b,
                     kFirstLdt = 0x07;
inline constexpr unsigned kGdtEntries = 16, kLdtEntries = 10;

// As modify_ldt(2) takes them: always ring 3, always accessed.
struct UserDescriptor {
  enum Contents : u8 { kData, kExpandDown, kCode, kConforming };
  u32 base = 0, limit = 0xfffff;
  Contents contents = kData;
  bool restricted = false;  // data that may not be written, code that may not be read
  bool wide = true;         // 32-bit
  bool pages = true;        // the limit counts pages
  bool present = true;

  constexpr u64 raw() const {
    u64 type = 1u | (restricted ? 0u : 2u) | unsigned{contents} << 2;
    u64 rights = type | 0x70 | u64{present} << 7;
    u64 low = (limit & 0xffff) | u64{base & 0xffffff} << 16 | rights << 40;
    return low | u64{limit >> 16 & 0xf} << 48 | u64{wide} << 54 | u64{pages} << 55 | u64{base >> 24} << 56;
  }
};

extern const UserDescriptor kLdtDescriptors[kLdtEntries];

}  // namespace anykvm::isa
