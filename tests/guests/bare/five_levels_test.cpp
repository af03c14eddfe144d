// Five-level paging (SDM 3A 4.5, CR4.LA57). Long mode is left to switch it on and off.

#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
extern u64 boot_pml4[];
void change_paging(u64 cr3, u64 cr4);
}

namespace {

constexpr u64 kFarAddress = bit(52) | bit(39) | 0x3000;  // not canonical with four levels

Caught reading(u64 address) {
  return catch_trap([=] { asm volatile("mov (%0), %%rax" : : "r"(address) : "rax"); });
}

// Runs `body` with five levels; what it throws away is the whole TLB.
template <class Body>
void with_five_levels(const AddressSpace& space, Body body) {
  const u64 cr4 = read_cr4();
  change_paging(space.root(), cr4 | kCr4La57);
  body();
  change_paging(reinterpret_cast<u64>(boot_pml4), cr4);
}

bool missing() {
  if (has_la57()) return false;
  skip("no 5-level paging");
  return true;
}

}  // namespace

BARE_TEST(five_levels, addresses_have_57_bits) {
  if (missing()) return;
  CHECK_EQ(reading(kFarAddress).vector, kGp);
  AddressSpace space(5);
  const u64 frame = allocate_frame();
  *at_physical(frame) = 0x1122334455667788;
  space.map(kFarAddress, frame, kPresent | kWritable);
  space.map(~u64{0xfff}, frame, kPresent | kWritable);
  with_five_levels(space, [=] {
    CHECK_EQ(*at_physical<volatile u64>(kFarAddress), 0x1122334455667788);
    *at_physical<volatile u64>(~u64{0xfff} + 8) = 99;
    CHECK_EQ(*at_physical<volatile u64>(kFarAddress + 8), 99);
    Caught caught = reading(bit(55));
    CHECK_EQ(caught.vector, kPf);
    CHECK_EQ(caught.cr2, bit(55));
    CHECK_EQ(reading(bit(56)).vector, kGp);
    CHECK_EQ(reading(bit(57)).vector, kGp);
    CHECK_EQ(reading(~u64{0} << 56).vector, kPf);
  });
  CHECK_EQ(reading(kFarAddress).vector, kGp);
}

BARE_TEST(five_levels, the_top_entry_counts_for_permissions) {
  if (missing()) return;
  AddressSpace space(5);
  const u64 frame = allocate_frame();
  space.map(kFarAddress, frame, kPresent | kWritable);
  u64& top = space.entry(kFarAddress, 5);
  const u64 good = top;
  with_five_levels(space, [&] {
    struct {
      u64 set, clear;
      unsigned vector;
      u64 error;
    } const cases[] = {{0, 0, kNone, 0},
                       {0, kWritable, kPf, kPfPresent | kPfWrite},
                       {0, kPresent, kPf, kPfWrite},
                       {kLarge, 0, kPf, kPfPresent | kPfWrite | kPfReserved}};
    for (const auto& c : cases) {
      top = (good | c.set) & ~c.clear;
      flush_tlb();
      Caught caught = catch_trap([] { asm volatile("movb $1, (%0)" : : "r"(kFarAddress) : "memory"); });
      CHECK_EQ(caught.vector, c.vector);
      CHECK_EQ(caught.error, c.error);
    }
    top = good;
    flush_tlb();
    *at_physical<volatile u8>(kFarAddress) = 1;
    flush_tlb();
    CHECK_EQ(top & kAccessed, kAccessed);
    top = good;
    space.entry(kFarAddress) = 0;
    invlpg(kFarAddress);
    CHECK_EQ(reading(kFarAddress).vector, kPf);
  });
}

BARE_TEST(five_levels, segment_bases_of_57_bits_reach_memory) {
  if (missing()) return;
  AddressSpace space(5);
  const u64 frame = allocate_frame();
  *at_physical(frame + 0x10) = 4711;
  space.map(kFarAddress, frame, kPresent | kWritable);
  const u64 before = rdmsr(kMsrGsBase);
  with_five_levels(space, [] {
    wrmsr(kMsrGsBase, kFarAddress);
    u64 value;
    asm volatile("mov %%gs:0x10, %0" : "=r"(value));
    CHECK_EQ(value, 4711);
  });
  wrmsr(kMsrGsBase, before);
}

BARE_TEST(five_levels, branches_go_to_57_bit_addresses) {
  if (missing()) return;
  AddressSpace space(5);
  const u64 frame = allocate_frame();
  const u8 code[] = {0xb8, 0x2a, 0, 0, 0, 0xc3};  // mov $42, %eax; ret
  for (size_t i = 0; i < sizeof code; ++i) at_physical<u8>(frame)[i] = code[i];
  space.map(kFarAddress, frame, kPresent);
  with_five_levels(space, [] {
    u32 value;
    asm volatile("call *%1" : "=a"(value) : "r"(kFarAddress) : "memory");
    CHECK_EQ(value, 42u);
    u64 bad = bit(57);
    Caught caught = catch_trap([=] { asm volatile("jmp *%0" : : "r"(bad)); });
    CHECK_EQ(caught.vector, kGp);
  });
}

}  // namespace bare
