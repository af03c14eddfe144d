// Protection keys of user pages (SDM 3A 4.6.2).

#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {
namespace {

constexpr u64 kAddress = bit(39), kKeyAt = 59, kKey = 5;
constexpr u32 kAccessDisable = 1 << (2 * kKey), kWriteDisable = 2 << (2 * kKey);

void wrpkru(u32 value) { asm volatile("wrpkru" : : "a"(value), "c"(0), "d"(0) : "memory"); }

Caught reading() {
  return catch_trap([] { asm volatile("mov (%0), %%al" : : "r"(kAddress) : "rax"); });
}
Caught writing() {
  return catch_trap([] { asm volatile("movb $0xc3, (%0)" : : "r"(kAddress) : "memory"); });
}
Caught fetching() {
  return catch_trap([] { asm volatile("call *%0" : : "r"(kAddress) : "memory"); });
}

bool missing() {
  if (has_pku()) return false;
  skip("no protection keys");
  return true;
}

void check(const Caught& caught, u64 error) {
  CHECK_EQ(caught.vector, error ? kPf : kNone);
  CHECK_EQ(caught.error, error);
}

}  // namespace

BARE_TEST(keys, exist_with_the_control_bit_only) {
  if (missing()) return;
  CHECK_EQ(catch_trap([] { wrpkru(0); }).vector, kUd);
  write_cr4(read_cr4() | kCr4Pke);
  CHECK_EQ(cpuid(7).ecx & bit(4), bit(4));
  CHECK_EQ(catch_trap([] { asm volatile("wrpkru" : : "a"(0), "c"(1), "d"(0)); }).vector, kGp);
  CHECK_EQ(catch_trap([] { asm volatile("wrpkru" : : "a"(0), "c"(0), "d"(1)); }).vector, kGp);
  wrpkru(0x12345678);
  u32 value, high;
  asm volatile("rdpkru" : "=a"(value), "=d"(high) : "c"(0));
  CHECK_EQ(value, 0x12345678u);
  CHECK_EQ(high, 0u);
  wrpkru(0);
  write_cr4(read_cr4() & ~kCr4Pke);
}

BARE_TEST(keys, user_pages_obey_them) {
  if (missing()) return;
  AddressSpace space;
  const u64 frame = allocate_frame();
  *at_physical<u8>(frame) = 0xc3;  // ret
  space.map(kAddress, frame, kPresent | kWritable | kUser | kKey << kKeyAt);
  space.enter();
  write_cr4(read_cr4() | kCr4Pke);
  check(reading(), 0);
  check(writing(), 0);
  wrpkru(kAccessDisable);  // no flush is needed
  check(reading(), kPfPresent | kPfKey);
  check(writing(), kPfPresent | kPfWrite | kPfKey);
  check(fetching(), 0);
  wrpkru(kWriteDisable);
  check(reading(), 0);
  check(writing(), kPfPresent | kPfWrite | kPfKey);
  // Supervisor writes go by CR0.WP.
  write_cr0(read_cr0() & ~kCr0Wp);
  check(writing(), 0);
  wrpkru(kAccessDisable);
  check(writing(), kPfPresent | kPfWrite | kPfKey);
  write_cr0(read_cr0() | kCr0Wp);
  wrpkru(~(kAccessDisable | kWriteDisable));  // all others
  check(writing(), 0);
  wrpkru(kAccessDisable);
  space.map(kAddress, frame, kPresent | kWritable | kKey << kKeyAt);  // a supervisor page
  invlpg(kAddress);
  check(writing(), 0);
  wrpkru(0);
  write_cr4(read_cr4() & ~kCr4Pke);
  AddressSpace::leave();
}

}  // namespace bare
