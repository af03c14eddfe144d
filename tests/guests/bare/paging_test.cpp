// What page-table entries permit, and what error code says why not (SDM 3A 4.6, 4.7), against a model of its
// own.

#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
void user_read();
void user_write();
void user_jump();
}

asm(R"(
  .pushsection .user, "awx"
user_read:
  mov (%rdi), %rax
  int $0x80
user_write:
  mov %rax, (%rdi)
  int $0x80
user_jump:
  jmp *%rdi
  .popsection
)");

namespace {

enum class Access { kRead, kWrite, kFetch };
constexpr Access kAccesses[] = {Access::kRead, Access::kWrite, Access::kFetch};

constexpr u64 kAddress = bit(39) + 5 * kPageSize;
constexpr u64 kUserCode = 16;  // offset in the page

// RET for a supervisor that calls it, INT 80H for a user who jumps there.
u64 frame_with_code(u64 frame) {
  at_physical<u8>(frame)[0] = 0xc3;
  at_physical<u8>(frame)[kUserCode] = 0xcd;
  at_physical<u8>(frame)[kUserCode + 1] = VECTOR_DONE;
  return frame;
}

Caught access_as_user(Access access, u64 address) {
  switch (access) {
    case Access::kRead:
      return run_user(user_read, address);
    case Access::kWrite:
      return run_user(user_write, address + 64);
    case Access::kFetch:
      return run_user(user_jump, address + kUserCode);
  }
  return {};
}

Caught access_as_supervisor(Access access, u64 address, bool ac) {
  return catch_trap([=] {
    if (ac) write_flags(read_flags() | kFlagAc);
    switch (access) {
      case Access::kRead:
        asm volatile("mov (%0), %%rax" : : "r"(address) : "rax", "memory");
        break;
      case Access::kWrite:
        asm volatile("mov %%rax, 64(%0)" : : "r"(address) : "memory");
        break;
      case Access::kFetch:
        asm volatile("call *%0" : : "r"(address) : "memory");
        break;
    }
    write_flags(2);
  });
}

// Which address the access above names.
u64 touched(Access access, bool user, u64 address) {
  if (access == Access::kWrite) return address + 64;
  return access == Access::kFetch && user ? address + kUserCode : address;
}

// What the CPU is told to check.
struct Rules {
  bool wp, smep, smap, nx;

  static Rules numbered(unsigned n) {
    return {(n & 1) != 0, (n & 2) && has_smep(), (n & 4) && has_smap(), (n & 8) != 0};
  }
  void apply() const {
    write_cr0((read_cr0() & ~kCr0Wp) | (wp ? kCr0Wp : 0));
    write_cr4((read_cr4() & ~(kCr4Smep | kCr4Smap)) | (smep ? kCr4Smep : 0) | (smap ? kCr4Smap : 0));
    wrmsr(kMsrEfer, (rdmsr(kMsrEfer) & ~kEferNx) | (nx ? kEferNx : 0));
  }
  static void usual() { Rules{true, false, false, true}.apply(); }
};

u64 reserved_bit() { return physical_bits() < 52 ? bit(51) : 0; }

struct Expected {
  bool faults = false;
  u64 error = 0;
};

// `entries`: the table's and the page's.
Expected expect(const Rules& rules, const u64 (&entries)[2], unsigned count, Access access, bool user,
                bool ac) {
  u64 code = (user ? kPfUser : 0) | (access == Access::kWrite ? kPfWrite : 0);
  if (access == Access::kFetch && (rules.nx || rules.smep)) code |= kPfFetch;
  u64 reserved = reserved_bit() | (rules.nx ? 0 : kNoExecute);
  u64 all = ~u64{0}, any = 0;
  for (unsigned i = 0; i < count; ++i) {
    if (!(entries[i] & kPresent)) return {true, code};
    if (entries[i] & reserved) return {true, code | kPfPresent | kPfReserved};
    all &= entries[i];
    any |= entries[i];
  }
  const bool user_page = all & kUser;
  bool allowed = true;
  if (user && !user_page) allowed = false;
  if (!user && user_page && access == Access::kFetch && rules.smep) allowed = false;
  if (!user && user_page && access != Access::kFetch && rules.smap && !ac) allowed = false;
  if (access == Access::kWrite && !(all & kWritable) && (user || rules.wp)) allowed = false;
  if (access == Access::kFetch && (any & kNoExecute)) allowed = false;
  return {!allowed, allowed ? 0 : code | kPfPresent};
}

constexpr unsigned kFlagSets = 32;
u64 flag_set(unsigned n) {
  return (n & 1 ? kPresent : 0) | (n & 2 ? kWritable : 0) | (n & 4 ? kUser : 0) | (n & 8 ? kNoExecute : 0) |
         (n & 16 ? reserved_bit() : 0);
}

void check_one(AddressSpace& space, const Rules& rules, const u64 (&entries)[2], unsigned count,
               Access access, bool user, bool ac) {
  u64& table = space.entry(kAddress, 2);
  u64& page = count == 2 ? at_physical(table & 0xfffff000)[kAddress >> 12 & 511] : table;
  const u64 table_before = table, page_before = page;
  table = (count == 2 ? table & 0xfffff000 : table & 0xffe00000) | entries[0];
  if (count == 2) page = (page & 0xfffff000) | entries[1];
  invlpg(kAddress);
  Caught caught = user ? access_as_user(access, kAddress) : access_as_supervisor(access, kAddress, ac);
  Expected expected = expect(rules, entries, count, access, user, ac);
  const bool faulted = caught.vector == kPf;
  CHECK_EQ(faulted, expected.faults);
  if (faulted) CHECK_EQ(caught.error, expected.error);
  if (faulted) CHECK_EQ(caught.cr2, touched(access, user, kAddress));
  if (!expected.faults) {
    CHECK(page & kAccessed);
    CHECK_EQ((page & kDirty) != 0, access == Access::kWrite);
  }
  table = table_before;
  page = page_before;
}

void check_matrix(unsigned count) {
  AddressSpace space;
  if (count == 2) {
    space.map(kAddress, frame_with_code(allocate_frame()), 0);
  } else {
    u64 start = (allocate_frame() + kLargePageSize) & ~(kLargePageSize - 1);
    frame_with_code(start + (kAddress & (kLargePageSize - 1)));
    space.entry(kAddress, 2) = start;
  }
  space.enter();
  for (unsigned r = 0; r < 16; ++r) {
    const Rules rules = Rules::numbered(r);
    rules.apply();
    for (unsigned t = 0; t < (count == 2 ? kFlagSets : 1); ++t) {
      for (unsigned p = 0; p < kFlagSets; ++p) {
        u64 entries[2] = {flag_set(t), flag_set(p)};
        if (count == 1) entries[0] = flag_set(p) | kLarge;
        for (Access access : kAccesses) {
          check_one(space, rules, entries, count, access, true, false);
          check_one(space, rules, entries, count, access, false, false);
          if (rules.smap) check_one(space, rules, entries, count, access, false, true);
        }
      }
    }
  }
  Rules::usual();
  AddressSpace::leave();
}

// A read through an entry of `level` with `extra` bits set.
Caught read_with(unsigned level, u64 extra, unsigned levels = 4) {
  AddressSpace space(levels);
  space.map(kAddress, allocate_frame(), kPresent | kWritable | kUser);
  space.entry(kAddress, level) |= extra;
  space.enter();
  Caught caught = access_as_supervisor(Access::kRead, kAddress, false);
  AddressSpace::leave();
  release_frames();
  return caught;
}

Caught read_huge_page_with(u64 extra) {
  AddressSpace space;
  space.entry(kAddress, 3) = kPresent | kLarge | extra;  // the first GiB
  space.enter();
  Caught caught = access_as_supervisor(Access::kRead, kAddress, false);
  AddressSpace::leave();
  release_frames();
  return caught;
}

constexpr u64 kReservedError = kPfPresent | kPfReserved;

}  // namespace

BARE_TEST(paging, small_page_permission_matrix) { check_matrix(2); }
BARE_TEST(paging, large_page_permission_matrix) { check_matrix(1); }

BARE_TEST(paging, bit_8_of_upper_entries_is_ignored) {
  CHECK_EQ(read_with(3, kGlobal).vector, kNone);
  CHECK_EQ(read_with(2, kGlobal).vector, kNone);
}

BARE_TEST(paging, page_size_bit_of_a_pml4e_is_reserved) {
  Caught caught = read_with(4, kLarge);
  CHECK_EQ(caught.vector, kPf);
  CHECK_EQ(caught.error, kReservedError);
}

BARE_TEST(paging, ignored_bits_are_ignored) {
  for (unsigned level = 1; level <= 4; ++level)
    CHECK_EQ(read_with(level, bit(9) | bit(10) | bit(11) | bit(52) | bit(58)).vector, kNone);
}

BARE_TEST(paging, address_bits_of_large_pages_below_their_size_are_reserved) {
  if (!(cpuid(0x80000001).edx & bit(26))) return skip("no 1 GiB pages");
  CHECK_EQ(read_huge_page_with(0).vector, kNone);
  CHECK_EQ(read_huge_page_with(bit(12)).vector, kNone);  // PAT
  for (unsigned n = 13; n < 30; ++n) CHECK_EQ(read_huge_page_with(bit(n)).error, kReservedError);
}

BARE_TEST(paging, a_reserved_bit_wins_over_an_absent_page_below) {
  if (!reserved_bit()) return skip("all physical address bits are in use");
  AddressSpace space;
  space.map(kAddress, allocate_frame(), 0);
  space.entry(kAddress, 2) |= reserved_bit();
  space.enter();
  CHECK_EQ(access_as_supervisor(Access::kRead, kAddress, false).error, kReservedError);
  AddressSpace::leave();
}

BARE_TEST(paging, write_of_one_page_is_seen_at_all_its_addresses) {
  AddressSpace space;
  const u64 frame = allocate_frame();
  for (u64 i = 0; i < 4; ++i) space.map(kAddress + i * kPageSize, frame, kPresent | kWritable);
  space.enter();
  for (u64 i = 0; i < 4; ++i) *at_physical<volatile u64>(kAddress + i * kPageSize + 8 * i) = i + 1;
  for (u64 i = 0; i < 4; ++i) CHECK_EQ(at_physical(frame)[i], i + 1);
  AddressSpace::leave();
}

BARE_TEST(paging, virtual_space_beyond_4_gib_does_not_wrap) {
  AddressSpace space;
  VirtualSpace addresses;
  const size_t pages = (size_t{5} << 30) / kPageSize;
  const u64 first = addresses.allocate(pages), second = addresses.allocate(1);
  const u64 far = first + (u64{1} << 32);
  CHECK(second >= first + pages * kPageSize);
  for (u64 address : {first, far, second}) space.map(address, allocate_frame(), kPresent | kWritable);
  space.enter();
  u64 n = 0;
  for (u64 address : {first, far, second}) *at_physical<volatile u64>(address) = ++n;
  n = 0;
  for (u64 address : {first, far, second}) CHECK_EQ(u64{*at_physical<volatile u64>(address)}, ++n);
  AddressSpace::leave();
}

BARE_TEST(paging, non_canonical_addresses_are_general_protection) {
  const u64 address = (read_cr4() & kCr4La57) ? bit(56) : bit(47);
  CHECK_EQ(access_as_supervisor(Access::kRead, address, false).vector, kGp);
  CHECK_EQ(access_as_supervisor(Access::kWrite, address, false).error, 0);
  Caught stack = catch_trap([=] {
    asm volatile("mov %0, %%rbp; mov (%%rbp), %%rax" : : "r"(address) : "rax", "memory");
  });
  CHECK_EQ(stack.vector, kSs);
}

}  // namespace bare
