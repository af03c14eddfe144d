// run_legacy(): down to 32-bit protected mode and back (legacy.h).

#include "layout.h"
#include "sequences.h"

#define RUN_CR0 0
#define RUN_CR3 4
#define RUN_CR4 8
#define RUN_NX 12
#define RUN_EIP 16
#define RUN_CS 20
#define RUN_EFLAGS 24
#define RUN_ESP 28
#define RUN_SS 32
#define RUN_DS 36
#define RUN_ES 40
#define RUN_FS 44
#define RUN_GS 48
#define RUN_EAX 52
#define RUN_ECX 56
#define RUN_EDX 60
#define RUN_EBX 64
#define RUN_VECTOR 68
#define RUN_ERROR 72
#define RUN_CR2 76
#define RUN_OUT_EIP 80
#define RUN_OUT_CS 84
#define RUN_OUT_EFLAGS 88
#define RUN_OUT_ESP 92
#define RUN_OUT_SS 96
#define RUN_OUT_EAX 100
#define RUN_OUT_ECX 104
#define RUN_OUT_EDX 108
#define RUN_OUT_EBX 112
#define RUN_OUT_CR0 116

#define FLAG_VM_WORD2 2  // RFLAGS.VM in the upper half

  .text
  .code64
  .global enter_legacy
enter_legacy:  // void enter_legacy(LegacyRun*)
  push_kept_registers
  mov %edi, legacy_run
  mov %rsp, saved_rsp
  mov %cr3, %rax
  mov %eax, saved_cr3
  mov %cr4, %rax
  mov %eax, saved_cr4
  mov %cr0, %rax
  mov %eax, saved_cr0
  sidt saved_idt
  to_compatibility_mode
  load_segments SEL_DATA, ds, es, ss
  mov $legacy_stack_top, %esp
  clear_paging
  mov legacy_run, %ebx
  mov $MSR_EFER, %ecx
  rdmsr
  and $~(EFER_LME | EFER_NXE), %eax
  cmpl $0, RUN_NX(%ebx)
  je 2f
  or $EFER_NXE, %eax
2:
  wrmsr
  mov RUN_CR4(%ebx), %eax
  mov %eax, %cr4
  mov RUN_CR3(%ebx), %eax
  mov %eax, %cr3
  mov RUN_CR0(%ebx), %eax
  mov %eax, %cr0
  jmp 3f
3:
  lidt legacy_idt_pointer
  mov $SEL_TSS32, %eax
  ltr %ax
  testb $FLAG_VM_WORD2, RUN_EFLAGS + 2(%ebx)
  jnz to_v86
  testb $3, RUN_CS(%ebx)
  jnz to_ring3
  mov RUN_ESP(%ebx), %eax
  test %eax, %eax
  jz start
  mov %eax, %esp
  jmp start
to_v86:
  pushl RUN_GS(%ebx)
  pushl RUN_FS(%ebx)
  pushl RUN_DS(%ebx)
  pushl RUN_ES(%ebx)
  jmp 5f
to_ring3:
  mov RUN_DS(%ebx), %eax
  mov %eax, %ds
  mov %eax, %es
5:
  pushl RUN_SS(%ebx)
  pushl RUN_ESP(%ebx)
start:
  pushl RUN_EFLAGS(%ebx)
  pushl RUN_CS(%ebx)
  pushl RUN_EIP(%ebx)
  mov RUN_EAX(%ebx), %eax
  mov RUN_ECX(%ebx), %ecx
  mov RUN_EDX(%ebx), %edx
  mov RUN_EBX(%ebx), %ebx
  iretl

  .macro entry32 number, has_error
  .if \has_error == 0
  pushl $0
  .endif
  pushl $\number
  jmp leave_legacy
  .align 16
  .endm
  .align 16
  .global legacy_entries
legacy_entries:
  .set vector, 0
  .rept 256
  .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
  entry32 vector, 1
  .else
  entry32 vector, 0
  .endif
  .set vector, vector + 1
  .endr

  // On the stack: vector, error, EIP, CS, EFLAGS, from an outer level ESP and SS.
leave_legacy:
  pushal
  load_segments SEL_DATA, ds, es
  mov legacy_run, %edi
  mov 28(%esp), %eax
  mov %eax, RUN_OUT_EAX(%edi)
  mov 24(%esp), %eax
  mov %eax, RUN_OUT_ECX(%edi)
  mov 20(%esp), %eax
  mov %eax, RUN_OUT_EDX(%edi)
  mov 16(%esp), %eax
  mov %eax, RUN_OUT_EBX(%edi)
  mov 32(%esp), %eax
  mov %eax, RUN_VECTOR(%edi)
  mov 36(%esp), %eax
  mov %eax, RUN_ERROR(%edi)
  mov 40(%esp), %eax
  mov %eax, RUN_OUT_EIP(%edi)
  mov 44(%esp), %eax
  mov %eax, RUN_OUT_CS(%edi)
  mov 48(%esp), %eax
  mov %eax, RUN_OUT_EFLAGS(%edi)
  mov 52(%esp), %eax
  mov %eax, RUN_OUT_ESP(%edi)
  mov 56(%esp), %eax
  mov %eax, RUN_OUT_SS(%edi)
  mov %cr2, %eax
  mov %eax, RUN_CR2(%edi)
  mov %cr0, %eax
  mov %eax, RUN_OUT_CR0(%edi)

  and $0x7fffffff, %eax
  mov %eax, %cr0
  mov saved_cr4, %eax
  mov %eax, %cr4
  mov saved_cr3, %eax
  mov %eax, %cr3
  mov $MSR_EFER, %ecx
  rdmsr
  or $EFER_LME | EFER_NXE, %eax
  wrmsr
  mov saved_cr0, %eax
  mov %eax, %cr0
  to_64_bit_mode
  load_segments SEL_DATA, ds, es, ss
  lidt saved_idt
  andb $~2, gdt + SEL_TSS + 5  // not busy
  mov $SEL_TSS, %eax
  ltr %ax
  mov saved_rsp, %rsp
  pushq $2
  popf
  pop_kept_registers
  ret

  .data
  .align 8
  .global legacy_idt_pointer, legacy_stack_top
legacy_idt_pointer:
  .word 256 * 8 - 1
  .long legacy_idt
  .bss
  .align 4096
  .skip 8192
legacy_stack_top:
  .skip 64
legacy_run: .skip 8
saved_rsp: .skip 8
saved_cr0: .skip 4
saved_cr3: .skip 4
saved_cr4: .skip 4
saved_idt: .skip 16
  .section .note.GNU-stack, "", @progbits
