// Real mode, and 16-bit code in protected mode (SDM 3B 21).

#include "real.h"
#include "legacy.h"
#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
extern const u8 real_segments[], real_interrupt[], real_interrupt_done[], real_wide[], real_big_limit[],
    real_stack[], real_strings[], real_test_end[];
}

// Each is copied to REAL_CODE; absolute addresses are reckoned from there.
asm(R"(
  .code16
real_segments:
  mov $0x1234, %ax
  mov %ax, %es
  movw $0xbeef, %es:0x10
  mov $0xffff, %ax
  mov %ax, %es
  movw $0xcafe, %es:0x20
  mov %es, 0x6000
  ret
real_interrupt:
  movw $(0x9000 + 1f - real_interrupt), 4 * 0x60
  sti
  int $0x60
real_interrupt_done:
  pushf
  pop 0x6002
  cli
  ret
1:
  pushf
  pop 0x6000
  mov %sp, %bp
  mov (%bp), %ax
  mov %ax, 0x6004
  mov 4(%bp), %ax
  mov %ax, 0x6006
  iret
real_wide:
  mov $0x12345678, %eax
  push %eax
  pop %ecx
  mov $0x6000, %ebx
  mov $4, %edx
  mov %ecx, (%ebx, %edx, 2)
  lea 0x12345(%ebx), %eax
  mov %eax, 0x6004
  ret
real_big_limit:
  mov %cr0, %eax
  or $1, %al
  mov %eax, %cr0
  jmp 2f
2:
  mov $0x10, %bx
  mov %bx, %es
  and $0xfe, %al
  mov %eax, %cr0
  jmp 3f
3:
  xor %bx, %bx
  mov %bx, %es
  mov $0x1000000, %ebx
  mov %es:(%ebx), %eax
  mov %eax, 0x6000
  ret
real_stack:
  mov %sp, %bp
  xor %sp, %sp
  pushw $0x1357
  mov %sp, 0x6000
  pop 0x6002
  mov %sp, 0x6004
  mov %bp, %sp
  ret
real_strings:
  cld
  mov $0xfffe, %di
  mov $2, %cx
  mov $0x2468, %ax
  rep stosw
  mov %di, 0x6000
  mov $0xfffe, %si
  lodsw
  mov %ax, 0x6002
  mov %si, 0x6004
  ret
real_test_end:
  .code64
)");

namespace {

// Runs one instruction in real mode with EBX = 10000H, CL = 0. The IP that the handler of `vector` finds,
// relative to the instruction; kNoFault if it is not called.
constexpr u16 kNoFault = 0xffff;

u16 faulting_ip(u8 vector, std::initializer_list<u8> instruction) {
  static u8 code[80];
  unsigned size = 0;
  auto put = [&](std::initializer_list<u8> bytes) {
    for (u8 byte : bytes) code[size++] = byte;
  };
  auto low = [](unsigned value) { return static_cast<u8>(value); };
  auto high = [](unsigned value) { return static_cast<u8>(value >> 8); };
  const unsigned entry = vector * 4u;
  put({0xc7, 0x06, low(entry), high(entry), 0, 0});  // movw $handler, entry
  put({0x89, 0x26, 0x06, high(REAL_DATA)});          // mov %sp, REAL_DATA + 6
  put({0x66, 0xbb, 0, 0, 1, 0, 0xb1, 0});            // mov $0x10000, %ebx; mov $0, %cl
  const unsigned at = REAL_CODE + size;
  put(instruction);
  put({0xc7, 0x06, 0, high(REAL_DATA), 0xff, 0xff, 0xc3});  // movw $-1, REAL_DATA; ret
  const unsigned handler = REAL_CODE + size;
  code[4] = low(handler);
  code[5] = high(handler);
  put({0x58, 0xa3, 0, high(REAL_DATA), 0x58, 0x58});     // pop %ax; mov %ax, REAL_DATA; pop %ax; pop %ax
  put({0x89, 0xe0, 0x2b, 0x06, 0x06, high(REAL_DATA)});  // mov %sp, %ax; sub REAL_DATA + 6, %ax
  put({0xa3, 0x02, high(REAL_DATA), 0xc3});              // mov %ax, REAL_DATA + 2; ret
  run_real(code, code + size);
  CHECK_EQ(real_word(1), 0);  // IP, CS and FLAGS were all that lay on the stack
  return real_word(0) == kNoFault ? kNoFault : static_cast<u16>(real_word(0) - at);
}

}  // namespace

BARE_TEST(real, segments_are_paragraphs_and_nothing_wraps_at_1_mib) {
  *at_physical<volatile u16>(0x12350) = 0;
  *at_physical<volatile u16>(0x100010) = 0;
  run_real(real_segments, real_interrupt);
  CHECK_EQ(*at_physical<volatile u16>(0x12350), 0xbeef);
  CHECK_EQ(*at_physical<volatile u16>(0x100010), 0xcafe);
  CHECK_EQ(real_word(0), 0xffff);
}

BARE_TEST(real, interrupts_go_through_the_table_at_0) {
  run_real(real_interrupt, real_wide);
  CHECK_EQ(real_word(0) & kFlagIf, 0);
  CHECK_EQ(real_word(1) & kFlagIf, kFlagIf);
  CHECK_EQ(real_word(2), REAL_CODE + (real_interrupt_done - real_interrupt));
  CHECK_EQ(real_word(3) & kFlagIf, kFlagIf);  // as pushed
}

BARE_TEST(real, faults_push_no_error_code) {
  CHECK_EQ(faulting_ip(kDe, {0xf6, 0xf1}), 0);               // div %cl
  CHECK_EQ(faulting_ip(kBp, {0xcc}), 1);                     // a trap
  CHECK_EQ(faulting_ip(kUd, {0x0f, 0x0b}), 0);               // ud2
  CHECK_EQ(faulting_ip(kUd, {0x0f, 0x00, 0xd0}), 0);         // lldt %ax
  CHECK_EQ(faulting_ip(kUd, {0x0f, 0x00, 0xd8}), 0);         // ltr %ax
  CHECK_EQ(faulting_ip(kUd, {0x0f, 0x02, 0xc0}), 0);         // lar %ax, %ax
  CHECK_EQ(faulting_ip(kUd, {0x63, 0xc0}), 0);               // arpl %ax, %ax
  CHECK_EQ(faulting_ip(kGp, {0xa1, 0xff, 0xff}), 0);         // mov 0xffff, %ax: beyond the limit
  CHECK_EQ(faulting_ip(kGp, {0x67, 0x8b, 0x03}), 0);         // mov (%ebx), %ax: so is this
  CHECK_EQ(faulting_ip(kGp, {0xa0, 0xff, 0xff}), kNoFault);  // mov 0xffff, %al
}

BARE_TEST(real, prefixes_make_operands_and_addresses_32_bit) {
  run_real(real_wide, real_big_limit);
  CHECK_EQ(real_word(4), 0x5678);
  CHECK_EQ(real_word(5), 0x1234);
  CHECK_EQ(real_word(2), 0x8345);
  CHECK_EQ(real_word(3), 1);
}

BARE_TEST(real, limits_of_protected_mode_stay) {
  const u64 frame = 0x1000000;
  *at_physical<volatile u32>(frame) = 0x600df00d;
  run_real(real_big_limit, real_stack);
  CHECK_EQ(real_word(0), 0xf00d);
  CHECK_EQ(real_word(1), 0x600d);
}

BARE_TEST(real, the_stack_pointer_wraps) {
  run_real(real_stack, real_strings);
  CHECK_EQ(real_word(0), 0xfffe);
  CHECK_EQ(real_word(1), 0x1357);
  CHECK_EQ(real_word(2), 0);
}

BARE_TEST(real, string_pointers_wrap) {
  run_real(real_strings, real_test_end);
  CHECK_EQ(real_word(0), 2);
  CHECK_EQ(real_word(1), 0x2468);
  CHECK_EQ(real_word(2), 0);
}

BARE_TEST(real, returning_leaves_64_bit_mode_as_it_was) {
  const u64 cr0 = read_cr0(), cr3 = read_cr3(), cr4 = read_cr4(), efer = rdmsr(kMsrEfer);
  run_real(real_wide, real_big_limit);
  CHECK_EQ(read_cr0(), cr0);
  CHECK_EQ(read_cr3(), cr3);
  CHECK_EQ(read_cr4(), cr4);
  CHECK_EQ(rdmsr(kMsrEfer), efer);
}

BARE_TEST(legacy, code_of_16_bits_in_protected_mode) {
  static const u8 code[] = {
      0xb8, 0x34,        0x12,                    // mov $0x1234, %ax
      0x66, 0xb9,        0x78, 0x56, 0x34, 0x12,  // mov $0x12345678, %ecx
      0xe8, 0x02,        0x00,                    // call over the next
      0xcd, VECTOR_DONE,                          // int
      0x41,                                       // inc %cx
      0x67, 0x8b,        0x1c, 0x24,              // mov (%esp), %bx
      0xc3,
  };
  auto* target = reinterpret_cast<volatile u8*>(REAL_CODE);
  for (u8 byte : code) *target++ = byte;
  LegacyRun run;
  run.cs = SEL_CODE16;
  run.eip = REAL_CODE;
  run.eax = 0xffff0000;
  run.ebx = 0xeeee0000;
  run_legacy(run);
  CHECK_EQ(run.vector, kDone);
  CHECK_EQ(run.out_eax, 0xffff1234u);
  CHECK_EQ(run.out_ecx, 0x12345679u);
  CHECK_EQ(run.out_ebx, 0xeeee0000u + REAL_CODE + 12);
  CHECK_EQ(run.out_eip, REAL_CODE + 14u);
  CHECK_EQ(run.out_cs, SEL_CODE16);
}

}  // namespace bare
