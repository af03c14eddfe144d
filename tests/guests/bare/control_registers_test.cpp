// What MOV to control registers, WRMSR of EFER and XSETBV refuse, and what the bits do (SDM
// 3A 2.5, 4.1, 4.10.1).

#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
void user_rdtsc();
void user_sgdt();
void user_smsw();
void user_sldt();
void user_str();
void user_sidt();
void user_cli();
void user_hlt();
void user_rdmsr();
void user_mov_cr0();
}

asm(R"(
  .pushsection .user, "awx"
user_rdtsc:
  rdtsc
  int $0x80
user_sgdt:
  sub $16, %rsp
  sgdt (%rsp)
  int $0x80
user_sidt:
  sub $16, %rsp
  sidt (%rsp)
  int $0x80
user_sldt:
  sldt %eax
  int $0x80
user_str:
  str %eax
  int $0x80
user_smsw:
  smsw %eax
  int $0x80
user_cli:
  cli
  int $0x80
user_hlt:
  hlt
  int $0x80
user_rdmsr:
  mov $0xc0000080, %ecx
  rdmsr
  int $0x80
user_mov_cr0:
  mov %cr0, %rax
  int $0x80
  .popsection
)");

namespace {

unsigned writing_cr0(u64 value) {
  return catch_trap([=] { write_cr0(value); }).vector;
}
unsigned writing_cr3(u64 value) {
  return catch_trap([=] { write_cr3(value); }).vector;
}
// What is accepted goes again at once.
unsigned writing_cr4(u64 value) {
  const u64 before = read_cr4();
  const unsigned vector = catch_trap([=] { write_cr4(value); }).vector;
  write_cr4(before);
  return vector;
}
unsigned writing_cr8(u64 value) {
  return catch_trap([=] { write_cr8(value); }).vector;
}
unsigned writing_msr(u32 index, u64 value) {
  return catch_trap([=] { wrmsr(index, value); }).vector;
}
unsigned writing_xcr0(u64 value) {
  return catch_trap([=] {
           asm volatile("xsetbv"
                        :
                        : "c"(0), "a"(static_cast<u32>(value)), "d"(static_cast<u32>(value >> 32)));
         })
      .vector;
}

// CR4 for the length of a test.
class Cr4 {
 public:
  Cr4(u64 set, u64 clear = 0) : m_before(read_cr4()) { write_cr4((m_before & ~clear) | set); }
  ~Cr4() { write_cr4(m_before); }

 private:
  u64 m_before;
};

}  // namespace

BARE_TEST(cr0, bits_above_31_are_refused) {
  for (unsigned n = 32; n < 64; ++n) CHECK_EQ(writing_cr0(read_cr0() | bit(n)), kGp);
}
BARE_TEST(cr0, reserved_low_bits_are_ignored) {
  const u64 before = read_cr0();
  CHECK_EQ(writing_cr0(before | bit(10) | bit(17) | bit(28)), kNone);
  CHECK_EQ(read_cr0(), before);
}
BARE_TEST(cr0, paging_without_protection_is_refused) { CHECK_EQ(writing_cr0(read_cr0() & ~kCr0Pe), kGp); }
BARE_TEST(cr0, not_write_through_needs_cache_disable) {
  const u64 before = read_cr0();
  CHECK_EQ(writing_cr0(before | kCr0Nw), kGp);
  CHECK_EQ(writing_cr0(before | kCr0Nw | kCr0Cd), kNone);
  CHECK_EQ(writing_cr0(before), kNone);
}
BARE_TEST(cr0, paging_cannot_end_in_64_bit_mode) { CHECK_EQ(writing_cr0(read_cr0() & ~kCr0Pg), kGp); }
BARE_TEST(cr0, et_stays_set) {
  write_cr0(read_cr0() & ~kCr0Et);
  CHECK(read_cr0() & kCr0Et);
}
BARE_TEST(cr0, ts_makes_fpu_instructions_fault) {
  write_cr0(read_cr0() | kCr0Ts);
  CHECK_EQ(catch_trap([] { asm volatile("fninit"); }).vector, kNm);
  CHECK_EQ(catch_trap([] { asm volatile("fwait"); }).vector, kNm);  // with MP
  write_cr0(read_cr0() & ~kCr0Mp);
  CHECK_EQ(catch_trap([] { asm volatile("fwait"); }).vector, kNone);
  write_cr0(read_cr0() | kCr0Mp);
  asm volatile("clts");
  CHECK_EQ(catch_trap([] { asm volatile("fninit"); }).vector, kNone);
}
BARE_TEST(cr0, em_makes_sse_undefined) {
  Cr4 cr4(kCr4Osfxsr);
  write_cr0(read_cr0() | kCr0Em);
  CHECK_EQ(catch_trap([] { asm volatile("xorps %%xmm0, %%xmm0" : : : "memory"); }).vector, kUd);
  CHECK_EQ(catch_trap([] { asm volatile("fninit"); }).vector, kNm);
  write_cr0(read_cr0() & ~kCr0Em);
}
BARE_TEST(cr0, lmsw_sets_pe_ts_and_never_clears_pe) {
  asm volatile("lmsw %w0" : : "r"(kCr0Ts) : "memory");
  CHECK_EQ(read_cr0() & (kCr0Pe | kCr0Ts), kCr0Pe | kCr0Ts);
  write_cr0((read_cr0() & ~kCr0Ts) | kCr0Mp);
}

BARE_TEST(cr3, bits_above_the_address_width_are_refused) {
  if (physical_bits() >= 52) return skip("all physical address bits are in use");
  for (unsigned n = physical_bits(); n < 52; ++n) CHECK_EQ(writing_cr3(read_cr3() | bit(n)), kGp);
  CHECK_EQ(writing_cr3(read_cr3() | bit(63)), kGp);  // without PCIDs
}

BARE_TEST(cr4, bits_above_31_are_refused) {
  for (unsigned n = 33; n < 64; ++n) CHECK_EQ(writing_cr4(read_cr4() | bit(n)), kGp);
}
BARE_TEST(cr4, pae_stays_set_in_long_mode) { CHECK_EQ(writing_cr4(read_cr4() & ~kCr4Pae), kGp); }
// SEEDS X3.
BARE_TEST(cr4, la57_cannot_change_in_64_bit_mode) {
  if (!has_la57()) return skip("no 5-level paging");
  CHECK_EQ(writing_cr4(read_cr4() ^ kCr4La57), kGp);
}
BARE_TEST(cr4, features_that_cpuid_lacks_are_refused) {
  if (!has_smep()) CHECK_EQ(writing_cr4(read_cr4() | kCr4Smep), kGp);
  if (!has_smap()) CHECK_EQ(writing_cr4(read_cr4() | kCr4Smap), kGp);
  if (!has_umip()) CHECK_EQ(writing_cr4(read_cr4() | kCr4Umip), kGp);
  if (!has_pku()) CHECK_EQ(writing_cr4(read_cr4() | kCr4Pke), kGp);
  if (!has_pcid()) CHECK_EQ(writing_cr4(read_cr4() | kCr4Pcide), kGp);
  CHECK_EQ(writing_cr4(read_cr4() | bit(15)), kGp);
}
// SEEDS X4: bits that a hypervisor may leave to the guest.
BARE_TEST(cr4, tsd_hides_the_time_stamp_from_users) {
  CHECK_EQ(run_user(user_rdtsc).vector, kDone);
  Cr4 cr4(kCr4Tsd);
  CHECK_EQ(run_user(user_rdtsc).vector, kGp);
  CHECK_EQ(catch_trap([] { rdtsc(); }).vector, kNone);
}
BARE_TEST(cr4, pcide_needs_a_cr3_without_pcid) {
  if (!has_pcid()) return skip("no PCIDs");
  const u64 cr3 = read_cr3();
  write_cr3(cr3 | 8);
  CHECK_EQ(writing_cr4(read_cr4() | kCr4Pcide), kGp);
  write_cr3(cr3);
  Cr4 cr4(kCr4Pcide);
  CHECK_EQ(writing_cr0(read_cr0() & ~kCr0Pg), kGp);
  CHECK_EQ(writing_cr3(cr3 | 8 | bit(63)), kNone);
  CHECK_EQ(read_cr3(), cr3 | 8);
  write_cr3(cr3);
}
BARE_TEST(cr4, umip_hides_tables_from_users) {
  using Code = void (*)();
  for (Code code : {user_sgdt, user_sidt, user_sldt, user_str, user_smsw})
    CHECK_EQ(run_user(code).vector, kDone);
  if (!has_umip()) return skip("no UMIP");
  Cr4 cr4(kCr4Umip);
  for (Code code : {user_sgdt, user_sidt, user_sldt, user_str, user_smsw}) {
    Caught caught = run_user(code);
    CHECK_EQ(caught.vector, kGp);
    CHECK_EQ(caught.error, 0);
  }
  CHECK_EQ(catch_trap([] { asm volatile("str %%ax" : : : "rax"); }).vector, kNone);
}
BARE_TEST(cr4, sse_needs_osfxsr) {
  Cr4 cr4(0, kCr4Osfxsr);
  CHECK_EQ(catch_trap([] { asm volatile("xorps %%xmm0, %%xmm0" : : : "memory"); }).vector, kUd);
}
BARE_TEST(cr4, osxsave_shows_in_cpuid) {
  if (!(cpuid(1).ecx & bit(26))) return skip("no XSAVE");
  CHECK_EQ(writing_xcr0(1), kUd);
  Cr4 cr4(kCr4Osxsave);
  CHECK(cpuid(1).ecx & bit(27));
  CHECK_EQ(writing_xcr0(1), kNone);
  CHECK_EQ(writing_xcr0(0), kGp);  // x87 is always on
  CHECK_EQ(writing_xcr0(5), kGp);  // AVX without SSE
  CHECK_EQ(writing_xcr0(3 | bit(62)), kGp);
  CHECK_EQ(writing_xcr0(3), kNone);
}

BARE_TEST(cr8, is_the_task_priority_class) {
  write_cr8(9);
  CHECK_EQ(read_cr8(), 9);
  CHECK_EQ(writing_cr8(16), kGp);
  CHECK_EQ(read_cr8(), 9);
  write_cr8(0);
}

BARE_TEST(control_registers, others_do_not_exist) {
  CHECK_EQ(catch_trap([] { asm volatile(".byte 0x0f, 0x22, 0xc8"); }).vector, kUd);                    // CR1
  CHECK_EQ(catch_trap([] { asm volatile(".byte 0x0f, 0x20, 0xe8" : : : "rax"); }).vector, kUd);        // CR5
  CHECK_EQ(catch_trap([] { asm volatile(".byte 0x44, 0x0f, 0x20, 0xf8" : : : "rax"); }).vector, kUd);  // CR15
}

BARE_TEST(efer, reserved_bits_are_refused) {
  const u64 efer = rdmsr(kMsrEfer);
  for (unsigned n : {1, 2, 9, 16, 31, 32, 63}) CHECK_EQ(writing_msr(kMsrEfer, efer | bit(n)), kGp);
}
BARE_TEST(efer, lme_cannot_change_while_paging) {
  CHECK_EQ(writing_msr(kMsrEfer, rdmsr(kMsrEfer) & ~kEferLme), kGp);
}
BARE_TEST(efer, sce_gates_syscall) {
  const u64 efer = rdmsr(kMsrEfer);
  wrmsr(kMsrEfer, efer & ~kEferSce);
  CHECK_EQ(catch_trap([] { asm volatile("syscall" : : : "rcx", "r11"); }).vector, kUd);
  wrmsr(kMsrEfer, efer);
}

BARE_TEST(privilege, users_may_not) {
  for (void (*code)() : {user_cli, user_hlt, user_rdmsr, user_mov_cr0}) {
    Caught caught = run_user(code);
    CHECK_EQ(caught.vector, kGp);
    CHECK_EQ(caught.error, 0);
  }
}

BARE_TEST(msr, unknown_ones_fault) {
  CHECK_EQ(catch_trap([] { rdmsr(0x12345678); }).vector, kGp);
  CHECK_EQ(writing_msr(0x12345678, 0), kGp);
}
BARE_TEST(msr, addresses_must_be_canonical) {
  for (u32 index : {0xc0000082u, 0xc0000083u, 0xc0000100u, 0xc0000101u, 0xc0000102u}) {
    const u64 before = rdmsr(index);
    CHECK_EQ(writing_msr(index, bit(60)), kGp);
    CHECK_EQ(writing_msr(index, 0xffff800000001234), kNone);
    CHECK_EQ(rdmsr(index), 0xffff800000001234);
    wrmsr(index, before);
  }
}
// Registers that hold an address for later take the widest form that the CPU knows, whatever CR4.LA57 says.
BARE_TEST(msr, addresses_of_57_bits_are_good_wherever_5_level_paging_exists) {
  const u64 wide = bit(50);
  const unsigned expected = has_la57() ? unsigned{kNone} : unsigned{kGp};
  CHECK_EQ(writing_msr(kMsrLstar, wide), expected);
  TablePointer idt, changed;
  asm volatile("sidt %0" : "=m"(idt));
  changed = {idt.limit, wide};
  CHECK_EQ(catch_trap([&] { asm volatile("lidt %0; lidt %1" : : "m"(changed), "m"(idt)); }).vector, expected);
  changed.base = bit(60);
  CHECK_EQ(catch_trap([&] { asm volatile("lidt %0; lidt %1" : : "m"(changed), "m"(idt)); }).vector, kGp);
  asm volatile("lidt %0" : : "m"(idt));
}
BARE_TEST(msr, only_ecx_counts) {
  CHECK_EQ(catch_trap([] {
             asm volatile("rdmsr" : : "c"(bit(40) | kMsrEfer) : "rax", "rdx");
           }).vector,
           kNone);
}
BARE_TEST(msr, results_clear_upper_halves) {
  u64 rax, rdx;
  asm volatile("rdmsr" : "=a"(rax), "=d"(rdx) : "c"(kMsrEfer), "a"(~u64{0}), "d"(~u64{0}));
  CHECK_EQ(rax >> 32, 0);
  CHECK_EQ(rdx >> 32, 0);
}

}  // namespace bare
