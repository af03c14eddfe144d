// XCR0, XSAVE and its like (SDM 1 13, SDM 2C XSETBV).

#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {
namespace {

constexpr u64 kX87 = bit(0), kSse = bit(1), kAvx = bit(2), kAvx512 = bit(5) | bit(6) | bit(7);
constexpr u64 kHeader = 512, kCompacted = bit(63);

void xsetbv(u32 index, u64 value) {
  asm volatile("xsetbv"
               :
               : "c"(index), "a"(static_cast<u32>(value)), "d"(static_cast<u32>(value >> 32))
               : "memory");
}
u64 xgetbv(u32 index) {
  u32 low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(index) : "memory");
  return u64{high} << 32 | low;
}

#define BARE_XSAVE(name)                                                                     \
  void name(u64 area, u64 mask) {                                                            \
    asm volatile(#name "64 (%0)"                                                             \
                 :                                                                           \
                 : "r"(area), "a"(static_cast<u32>(mask)), "d"(static_cast<u32>(mask >> 32)) \
                 : "memory");                                                                \
  }
BARE_XSAVE(xsave)
BARE_XSAVE(xsavec)
BARE_XSAVE(xrstor)
#undef BARE_XSAVE

u64 supported() {
  CpuidResult r = cpuid(0xd);
  return u64{r.edx} << 32 | r.eax;
}

// CR4.OSXSAVE and every component for the time of a test; false: the CPU has no XSAVE.
class Enabled {
 public:
  Enabled() : m_cr4(read_cr4()) {
    if (!*this) {
      skip("no XSAVE");
      return;
    }
    write_cr4(m_cr4 | kCr4Osfxsr | kCr4Osxsave);
    m_xcr0 = xgetbv(0);
    xsetbv(0, supported());
  }
  ~Enabled() {
    if (!*this) return;
    xsetbv(0, m_xcr0);
    write_cr4(m_cr4);
  }
  explicit operator bool() const { return cpuid(1).ecx & bit(26); }

 private:
  u64 m_cr4, m_xcr0 = 0;
};

unsigned setting_xcr0(u64 value) {
  return catch_trap([=] { xsetbv(0, value); }).vector;
}

// Two frames side by side, cleared: an image of every component.
u64 area() {
  u64 first = allocate_frame();
  allocate_frame();
  return first;
}

void set_xmm3(u64 value) { asm volatile("movq %0, %%xmm3" : : "r"(value)); }
u64 xmm3() {
  u64 value;
  asm volatile("movq %%xmm3, %0" : "=r"(value));
  return value;
}

}  // namespace

BARE_TEST(xsave, xcr0_takes_what_belongs_together) {
  Enabled enabled;
  if (!enabled) return;
  const u64 all = supported();
  CHECK_EQ(setting_xcr0(kX87), kNone);
  CHECK_EQ(setting_xcr0(0), kGp);
  CHECK_EQ(setting_xcr0(kSse), kGp);
  CHECK_EQ(setting_xcr0(kX87 | kSse), kNone);
  CHECK_EQ(setting_xcr0(kX87 | bit(63)), kGp);
  CHECK_EQ(setting_xcr0(kX87 | bit(62)), kGp);
  if (all & kAvx) {
    CHECK_EQ(setting_xcr0(kX87 | kAvx), kGp);
    CHECK_EQ(setting_xcr0(kX87 | kSse | kAvx), kNone);
    CHECK_EQ(xgetbv(0), kX87 | kSse | kAvx);
  }
  if ((all & kAvx512) == kAvx512) {
    CHECK_EQ(setting_xcr0(kX87 | kSse | kAvx | bit(5)), kGp);
    CHECK_EQ(setting_xcr0(kX87 | kSse | kAvx512), kGp);
    CHECK_EQ(setting_xcr0(kX87 | kSse | kAvx | kAvx512), kNone);
  }
  for (unsigned n = 0; n < 64; ++n) {
    if (!(all & bit(n))) CHECK_EQ(setting_xcr0(kX87 | kSse | bit(n)), kGp);
  }
  CHECK_EQ(catch_trap([] { xsetbv(1, kX87); }).vector, kGp);
  CHECK_EQ(catch_trap([] { xgetbv(2); }).vector, kGp);
}

BARE_TEST(xsave, sizes_follow_xcr0) {
  Enabled enabled;
  if (!enabled) return;
  const u32 largest = cpuid(0xd).ecx;
  CHECK_EQ(cpuid(0xd).ebx, largest);
  xsetbv(0, kX87 | kSse);
  CHECK_EQ(cpuid(0xd).ebx, 576u);
  CHECK_EQ(cpuid(0xd).ecx, largest);
  if (supported() & kAvx) {
    xsetbv(0, kX87 | kSse | kAvx);
    CHECK_EQ(cpuid(0xd, 2).eax, 256u);
    CHECK_EQ(cpuid(0xd).ebx, cpuid(0xd, 2).ebx + 256u);
  }
}

BARE_TEST(xsave, does_not_exist_without_osxsave) {
  Enabled enabled;
  if (!enabled) return;
  const u64 at = area();
  write_cr4(read_cr4() & ~kCr4Osxsave);
  CHECK_EQ(catch_trap([] { xgetbv(0); }).vector, kUd);
  CHECK_EQ(catch_trap([=] { xsave(at, 3); }).vector, kUd);
  CHECK_EQ(catch_trap([=] { xrstor(at, 3); }).vector, kUd);
  write_cr4(read_cr4() | kCr4Osxsave);
  write_cr0(read_cr0() | kCr0Ts);
  CHECK_EQ(catch_trap([=] { xsave(at, 3); }).vector, kNm);
  CHECK_EQ(catch_trap([] { xgetbv(0); }).vector, kNone);
  asm volatile("clts");
}

BARE_TEST(xsave, what_is_saved_comes_back) {
  Enabled enabled;
  if (!enabled) return;
  const u64 at = area();
  set_xmm3(0x123456789abcdef0);
  xsave(at, kX87 | kSse);
  CHECK_EQ(at_physical(at + 160 + 3 * 16)[0], 0x123456789abcdef0);
  CHECK_EQ(at_physical(at + kHeader)[0] & kSse, kSse);
  set_xmm3(1);
  xrstor(at, kX87);  // not asked for
  CHECK_EQ(xmm3(), 1);
  xrstor(at, kSse);
  CHECK_EQ(xmm3(), 0x123456789abcdef0);
  at_physical(at + kHeader)[0] = 0;  // asked for, but in its initial state
  xrstor(at, kSse);
  CHECK_EQ(xmm3(), 0);
}

BARE_TEST(xsave, components_that_are_not_asked_for_stay_in_memory) {
  Enabled enabled;
  if (!enabled) return;
  const u64 at = area();
  at_physical(at + 160 + 3 * 16)[0] = 7;
  at_physical(at + kHeader)[0] = kSse;
  set_xmm3(8);
  xsave(at, kX87);
  CHECK_EQ(at_physical(at + 160 + 3 * 16)[0], 7);
  CHECK_EQ(at_physical(at + kHeader)[0] & kSse, kSse);
}

BARE_TEST(xsave, images_are_checked) {
  Enabled enabled;
  if (!enabled) return;
  const u64 at = area();
  auto restoring = [=](u64 address) { return catch_trap([=] { xrstor(address, kX87 | kSse); }).vector; };
  xsave(at, kX87 | kSse);
  CHECK_EQ(restoring(at), kNone);
  CHECK_EQ(restoring(at + 8), kGp);
  CHECK_EQ(catch_trap([=] { xsave(at + 8, 3); }).vector, kGp);
  u64* header = at_physical(at + kHeader);
  header[0] |= bit(61);  // a component that XCR0 has not
  CHECK_EQ(restoring(at), kGp);
  header[0] &= ~bit(61);
  header[1] = 1;  // XCOMP_BV of the standard form
  CHECK_EQ(restoring(at), kGp);
  header[1] = 0;
  header[2] = 1;  // reserved
  CHECK_EQ(restoring(at), kGp);
  header[2] = 0;
  *at_physical<u32>(at + 24) = ~0u;  // MXCSR
  CHECK_EQ(restoring(at), kGp);
  *at_physical<u32>(at + 24) = 0x1f80;
  CHECK_EQ(restoring(at), kNone);
}

BARE_TEST(xsave, compacted_images) {
  Enabled enabled;
  if (!enabled) return;
  if (!(cpuid(0xd, 1).eax & bit(1)) || !(supported() & kAvx)) return skip("no XSAVEC");
  const u64 at = area();
  set_xmm3(0x5555);
  asm volatile("vinsertf128 $1, %xmm3, %ymm3, %ymm3");
  xsavec(at, kSse | kAvx);
  u64* header = at_physical(at + kHeader);
  CHECK_EQ(header[1], kCompacted | kSse | kAvx);
  CHECK_EQ(at_physical(at + 576 + 3 * 16)[0], 0x5555);
  asm volatile("vzeroall");
  xrstor(at, kSse | kAvx);
  CHECK_EQ(xmm3(), 0x5555);
  header[1] &= ~kAvx;  // in XSTATE_BV, but not there
  CHECK_EQ(catch_trap([=] { xrstor(at, kSse | kAvx); }).vector, kGp);
  asm volatile("vzeroall");
}

BARE_TEST(xsave, an_image_that_ends_on_an_absent_page_faults) {
  Enabled enabled;
  if (!enabled) return;
  AddressSpace space;
  constexpr u64 kAddress = bit(39), kAt = kAddress + kPageSize - 512;
  space.map(kAddress, allocate_frame(), kPresent | kWritable);
  space.enter();
  Caught caught = catch_trap([] { xsave(kAt, kX87 | kSse); });
  AddressSpace::leave();
  CHECK_EQ(caught.vector, kPf);
  CHECK_EQ(caught.error & ~kPfWrite, 0);  // the header is read, too
  CHECK_EQ(caught.cr2 & ~u64{63}, kAddress + kPageSize);
}

}  // namespace bare
