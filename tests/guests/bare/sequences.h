// Assembler sequences that several of the ways between modes have in common.
#pragma once

#define MSR_EFER 0xc0000080
#define EFER_SCE 0x001
#define EFER_LME 0x100
#define EFER_NXE 0x800

  // The registers that a C++ function must keep, in 64-bit mode.
  .macro push_kept_registers
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  .endm
  .macro pop_kept_registers
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  .endm

  // load_segments SELECTOR, ds, es ...: changes EAX. A selector that a 16-bit register holds will do in every mode.
  .macro load_segments selector, registers:vararg
  mov $\selector, %eax
  .irp register, \registers
  mov %eax, %\register
  .endr
  .endm

  // From 64-bit mode to 32-bit code; paging and EFER.LMA stay until clear_paging.
  .macro to_compatibility_mode
  pushq $SEL_CODE32
  pushq $.Lcompatibility\@
  lretq
  .code32
.Lcompatibility\@:
  .endm

  // CR0.PG off; EAX keeps the new CR0.
  .macro clear_paging
  mov %cr0, %eax
  and $0x7fffffff, %eax
  mov %eax, %cr0
  .endm

  // From 32-bit code with EFER.LMA set to 64-bit mode.
  .macro to_64_bit_mode
  ljmp $SEL_CODE64, $.Lwide\@
  .code64
.Lwide\@:
  .endm
