// run_real(): down to real mode and back (real.h), and change_paging(). The task register keeps the 64-bit TSS, which nothing uses
// meanwhile. The upper halves of registers are undefined after 32-bit code.

#include "layout.h"

#define MSR_EFER 0xc0000080
#define EFER_LME 0x100

  .text
  .code64
  .global enter_real
enter_real:  // void enter_real()
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, real_rsp
  mov %cr0, %rax
  mov %eax, real_cr0
  sidt real_idt
  pushq $SEL_CODE32
  pushq $1f
  lretq
  .code32
1:
  mov $SEL_DATA, %eax
  mov %eax, %ds
  mov %eax, %ss
  mov %cr0, %eax
  and $0x7fffffff, %eax
  mov %eax, %cr0
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
  mov $SEL_DATA16, %ax
  mov %ax, %ds
  mov %ax, %es
  mov %ax, %fs
  mov %ax, %gs
  mov %ax, %ss
  mov %cr0, %eax
  and $~1, %eax
  mov %eax, %cr0
  ljmp $0, $(REAL_ENTRY + 2f - real_begin)
2:
  xor %ax, %ax
  mov %ax, %ds
  mov %ax, %es
  mov %ax, %fs
  mov %ax, %gs
  mov %ax, %ss
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
  mov $SEL_DATA, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  mov $MSR_EFER, %ecx
  rdmsr
  or $EFER_LME, %eax
  wrmsr
  mov real_cr0, %eax
  mov %eax, %cr0
  ljmp $SEL_CODE64, $3f
  .code64
3:
  mov $SEL_DATA, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %ss
  xor %eax, %eax
  mov %eax, %fs
  mov %eax, %gs
  lidt real_idt
  mov real_rsp, %rsp
  pushq $2
  popf
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret

  // void change_paging(u64 cr3, u64 cr4): CR4.LA57 can change outside long mode only.
  .global change_paging
change_paging:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, real_rsp
  pushq $SEL_CODE32
  pushq $4f
  lretq
  .code32
4:
  mov $SEL_DATA, %eax
  mov %eax, %ds
  mov %eax, %ss
  mov %cr0, %eax
  and $0x7fffffff, %eax
  mov %eax, %cr0
  mov %esi, %cr4
  mov %edi, %cr3
  or $0x80000000, %eax
  mov %eax, %cr0
  ljmp $SEL_CODE64, $5f
  .code64
5:
  mov $SEL_DATA, %eax
  mov %eax, %ds
  mov %eax, %ss
  mov real_rsp, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
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
