// run_real(): down to real mode and back (real.h), and change_paging(). The task register keeps the 64-bit TSS, which nothing uses
// meanwhile. The upper halves of registers are undefined after 32-bit code.

#include "layout.h"
#include "sequences.h"

  .text
  .code64
  .global enter_real
enter_real:  // void enter_real()
  push_kept_registers
  mov %rsp, real_rsp
  mov %cr0, %rax
  mov %eax, real_cr0
  sidt real_idt
  to_compatibility_mode
  load_segments SEL_DATA, ds, ss
  clear_paging
  mov $MSR_EFER, %ecx
  rdmsr
  and $~EFER_LME, %eax
  wrmsr
  lidt real_vectors
  ljmp $SEL_CODE16, $REAL_ENTRY

  // Copied to REAL_ENTRY. Real mode keeps the limits that these descriptors have.
  .code16
  .global real_begin, real_end
real_begin:
  load_segments SEL_DATA16, ds, es, fs, gs, ss
  mov %cr0, %eax
  and $~1, %eax
  mov %eax, %cr0
  ljmp $0, $(REAL_ENTRY + 2f - real_begin)
2:
  load_segments 0, ds, es, fs, gs, ss
  mov $REAL_STACK, %sp
  mov $REAL_CODE, %ax
  call *%ax
  cli
  mov %cr0, %eax
  or $1, %eax
  mov %eax, %cr0
  ljmpl $SEL_CODE32, $real_back
real_end:

  .code32
real_back:
  load_segments SEL_DATA, ds, es, ss
  mov $MSR_EFER, %ecx
  rdmsr
  or $EFER_LME, %eax
  wrmsr
  mov real_cr0, %eax
  mov %eax, %cr0
  to_64_bit_mode
  load_segments SEL_DATA, ds, es, ss
  load_segments 0, fs, gs
  lidt real_idt
  mov real_rsp, %rsp
  pushq $2
  popf
  pop_kept_registers
  ret

  // void change_paging(u64 cr3, u64 cr4): CR4.LA57 can change outside long mode only.
  .global change_paging
change_paging:
  push_kept_registers
  mov %rsp, real_rsp
  to_compatibility_mode
  load_segments SEL_DATA, ds, ss
  clear_paging
  mov %esi, %cr4
  mov %edi, %cr3
  or $0x80000000, %eax
  mov %eax, %cr0
  to_64_bit_mode
  load_segments SEL_DATA, ds, ss
  mov real_rsp, %rsp
  pop_kept_registers
  ret

  .data
  .align 8
real_vectors:
  .word 0x3ff
  .long 0
  .bss
  .align 8
real_rsp: .skip 8
real_cr0: .skip 8
real_idt: .skip 16
  .section .note.GNU-stack, "", @progbits
