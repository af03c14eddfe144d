// Single-stepping, breakpoints and the interrupt shadows (SDM 3B 18.2, 18.3; SDM 3A 6.8.3).

#include "report.h"
#include "traps.h"

namespace bare {
namespace {

constexpr u64 kDr6Reserved = 0xffff0ff0, kDr6Bs = bit(14), kDr6Bd = bit(13);
constexpr u64 kDr7Reserved = 0x400, kDr7Gd = bit(13);

struct Step {
  u64 rip, dr6;
};
Step s_steps[8];
volatile unsigned s_count;

void begin(Handler handler) {
  s_count = 0;
  write_dr6(0);
  set_handler(kDb, handler);
}
void end() {
  set_handler(kDb, nullptr);
  write_dr7(kDr7Reserved);
  write_dr6(0);
}

void note(Trap& t) {
  if (s_count < 8) s_steps[s_count] = {t.rip, read_dr6()};
  s_count = s_count + 1;
  if (s_count >= 8) t.rflags &= ~kFlagTf;
  write_dr6(0);
}
void note_and_go_on(Trap& t) {
  note(t);
  t.rflags |= kFlagRf;
}

// The first trap ends the stepping.
u64 s_user_cs;
void note_in_user(Trap& t) {
  note(t);
  s_user_cs = t.cs;
  t.rflags &= ~kFlagTf;
}

// SYSCALL with TF set, which the mask clears; back with TF set again.
asm(R"(
  .pushsection .user, "awx"
step_user_syscall:
  pushf
  orl $0x100, (%rsp)
  popf
  syscall
step_after_syscall:
  int $0x80
  .popsection
step_syscall_target:
  or $0x100, %r11
  sysretq
)");

u64 address_of(const void* p) { return reinterpret_cast<u64>(p); }

extern "C" {
extern const u8 hlt_after[], icebp_after[], step_syscall_target[], step_after_syscall[];
void step_user_syscall();
extern const u8 step_first[], step_second[], step_last[], shadow_after[], break_here[], watch_after[],
    sti_next[];
}

// DR7 with breakpoint 0 on, of `kind` (0 execute, 1 write, 3 access) and 2^size bytes (encoded as the manual
// does).
constexpr u64 dr7(u64 kind, u64 length) { return kDr7Reserved | 2 | kind << 16 | length << 18; }

}  // namespace

BARE_TEST(debug, single_step_traps_after_each_instruction) {
  begin(note);
  asm volatile(
      "pushf; orl $0x100, (%%rsp); popf\n\t"
      "nop\n"
      "step_first: nop\n"
      "step_second: pushf; andl $~0x100, (%%rsp)\n\t"
      "popf\n"
      "step_last:"
      :
      :
      : "memory", "cc");
  end();
  CHECK_EQ(s_count, 5u);
  CHECK_EQ(s_steps[0].rip, address_of(step_first));
  CHECK_EQ(s_steps[0].dr6, kDr6Reserved | kDr6Bs);
  CHECK_EQ(s_steps[1].rip, address_of(step_second));
  CHECK_EQ(s_steps[4].rip, address_of(step_last));
}

BARE_TEST(debug, mov_ss_holds_the_step_trap_back) {
  begin(note);
  const u64 ss = SEL_DATA;
  asm volatile(
      "pushf; orl $0x100, (%%rsp); popf\n\t"
      "mov %0, %%ss\n\t"
      "nop\n"
      "shadow_after: pushf; andl $~0x100, (%%rsp); popf\n"
      :
      : "r"(ss)
      : "memory", "cc");
  end();
  CHECK_EQ(s_steps[0].rip, address_of(shadow_after));
}

BARE_TEST(debug, instruction_breakpoint_is_a_fault_that_rf_suppresses) {
  begin(note_and_go_on);
  write_dr0(address_of(break_here));
  write_dr7(dr7(0, 0));
  asm volatile("break_here: nop");
  end();
  CHECK_EQ(s_count, 1u);
  CHECK_EQ(s_steps[0].rip, address_of(break_here));
  CHECK_EQ(s_steps[0].dr6, kDr6Reserved | 1);
}

BARE_TEST(debug, data_breakpoint_traps_after_the_access) {
  static volatile u64 watched;
  begin(note);
  write_dr0(address_of(const_cast<u64*>(&watched)));
  write_dr7(dr7(1, 2));  // 8 bytes, writes
  u64 value = watched;
  CHECK_EQ(s_count, 0u);
  asm volatile("mov %0, %1\nwatch_after:" : : "r"(value), "m"(watched) : "memory");
  CHECK_EQ(s_count, 1u);
  CHECK_EQ(s_steps[0].rip, address_of(watch_after));
  CHECK_EQ(s_steps[0].dr6, kDr6Reserved | 1);
  write_dr7(dr7(3, 2));
  value = watched;
  CHECK_EQ(s_count, 2u);
  end();
}

BARE_TEST(debug, data_breakpoint_covers_its_length_only) {
  static volatile u32 watched[4] = {};
  begin(note);
  write_dr0(address_of(const_cast<u32*>(watched + 1)));
  write_dr7(dr7(1, 3));  // 4 bytes
  watched[0] = 1;
  watched[2] = 1;
  CHECK_EQ(s_count, 0u);
  watched[1] = 1;
  CHECK_EQ(s_count, 1u);
  // A wider access that overlaps it counts.
  asm volatile("movq $2, %0" : "=m"(watched) : : "memory");
  CHECK_EQ(s_count, 2u);
  end();
}

BARE_TEST(debug, general_detect_faults_before_the_access_and_clears_itself) {
  write_dr7(kDr7Reserved | kDr7Gd);
  Caught caught = catch_trap([] { write_dr0(1); });
  CHECK_EQ(caught.vector, kDb);
  CHECK_EQ(read_dr7(), kDr7Reserved);
  CHECK_EQ(read_dr6(), kDr6Reserved | kDr6Bd);
  write_dr6(0);
}

BARE_TEST(debug, registers_have_their_fixed_bits) {
  write_dr6(0);
  CHECK_EQ(read_dr6(), kDr6Reserved);
  write_dr7(0);
  CHECK_EQ(read_dr7(), kDr7Reserved);
  CHECK_EQ(catch_trap([] { write_dr6(bit(32)); }).vector, kGp);
  CHECK_EQ(catch_trap([] { write_dr7(bit(32)); }).vector, kGp);
}

BARE_TEST(debug, dr4_and_dr5_are_gone_with_debug_extensions) {
  const u64 cr4 = read_cr4();
  write_cr4(cr4 & ~kCr4De);
  CHECK_EQ(catch_trap([] { asm volatile("mov %%dr4, %%rax" : : : "rax"); }).vector, kNone);
  write_cr4(cr4 | kCr4De);
  CHECK_EQ(catch_trap([] { asm volatile("mov %%dr4, %%rax" : : : "rax"); }).vector, kUd);
  CHECK_EQ(catch_trap([] { asm volatile("mov %%rax, %%dr5" : : :); }).vector, kUd);
  write_cr4(cr4);
}

BARE_TEST(debug, icebp_is_a_trap_without_dr6_bits) {
  write_dr6(0);
  Caught caught = catch_trap([] { asm volatile(".byte 0xf1"); });
  CHECK_EQ(caught.vector, kDb);
  CHECK_EQ(read_dr6(), kDr6Reserved);
}

BARE_TEST(debug, step_trap_ends_a_hlt_with_interrupts_off) {
  begin(note);
  asm volatile(
      "pushf; orl $0x100, (%%rsp); popf\n\t"
      "hlt\n"
      "hlt_after: pushf; andl $~0x100, (%%rsp); popf\n"
      :
      :
      : "memory", "cc");
  end();
  CHECK_EQ(s_count, 4u);
  CHECK_EQ(s_steps[0].rip, address_of(hlt_after));
}

BARE_TEST(debug, icebp_after_mov_ss_swallows_the_step_trap) {
  begin(note);
  const u64 ss = SEL_DATA;
  asm volatile(
      "pushf; orl $0x100, (%%rsp); popf\n\t"
      "mov %0, %%ss\n\t"
      ".byte 0xf1\n"
      "icebp_after: pushf; andl $~0x100, (%%rsp); popf\n"
      :
      : "r"(ss)
      : "memory", "cc");
  end();
  CHECK_EQ(s_count, 4u);  // INT1, PUSHF, AND, POPF
  CHECK_EQ(s_steps[0].rip, address_of(icebp_after));
  CHECK_EQ(s_steps[0].dr6, kDr6Reserved);
  CHECK_EQ(s_steps[1].dr6, kDr6Reserved | kDr6Bs);
}

BARE_TEST(debug, breakpoint_held_back_by_mov_ss_joins_icebp_and_follows_int) {
  static u64 watched = SEL_DATA;
  begin(note);
  write_dr0(address_of(&watched));
  write_dr7(dr7(3, 2));
  asm volatile("mov %0, %%ss; .byte 0xf1" : : "m"(watched) : "memory");
  CHECK_EQ(s_count, 1u);
  asm volatile("mov %0, %%ss; int $1" : : "m"(watched) : "memory");
  CHECK_EQ(s_count, 3u);  // the second before the first instruction of INT 1's handler
  end();
}

// TF decides at their end, not at their beginning as elsewhere.
BARE_TEST(debug, sysret_that_sets_tf_traps_at_once_and_syscall_that_clears_it_does_not) {
  begin(note_in_user);
  wrmsr(kMsrStar, u64{SEL_USER_CODE32} << 48 | u64{SEL_CODE64} << 32);
  wrmsr(kMsrLstar, address_of(step_syscall_target));
  wrmsr(kMsrSyscallMask, kFlagTf);
  s_user_cs = 0;
  Caught caught = run_user(step_user_syscall);
  end();
  CHECK_EQ(caught.vector, kDone);
  CHECK_EQ(s_count, 1u);
  CHECK_EQ(s_steps[0].rip, address_of(step_after_syscall));
  CHECK_EQ(s_user_cs, SEL_USER_CODE64);
}

BARE_TEST(debug, repeated_string_steps_element_by_element) {
  static u8 from[4] = {1, 2, 3, 4}, to[4];
  begin(note);
  u64 count = 3;
  const void* source = from;
  void* target = to;
  asm volatile(
      "pushf; orl $0x100, (%%rsp); popf\n\t"
      "rep movsb\n\t"
      "pushf; andl $~0x100, (%%rsp); popf\n"
      : "+c"(count), "+S"(source), "+D"(target)
      :
      : "memory", "cc");
  end();
  CHECK_EQ(s_count, 6u);  // three elements, PUSHF, AND, POPF
  CHECK_EQ(s_steps[0].rip, s_steps[1].rip);
  CHECK_EQ(s_steps[2].rip, s_steps[1].rip + 2);
}

}  // namespace bare
