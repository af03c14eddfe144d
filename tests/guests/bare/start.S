// Start-up: from the 64-bit Linux entry (anykvm run) or the 32-bit PVH entry (QEMU) to bare_main(), the other CPUs from SIPI to
// cpu_main(), and the ways into trap() and back out of a fault.

#include "layout.h"
#include "sequences.h"

  // XEN_ELFNOTE_PHYS32_ENTRY
  .section .note.pvh, "a"
  .align 4
  .long 4, 4, 18
  .asciz "Xen"
  .long entry32

  .text
  // RSI: struct boot_params. Long mode is left and entered again, so that both ways in are one.
  .code64
  .global entry64
entry64:
  cli
  mov $1, %ebp
  mov %esi, %ebx
  lgdt gdt_pointer
  to_compatibility_mode
  load_segments SEL_DATA, ds, ss
  clear_paging
  jmp boot32

  // EBX: struct hvm_start_info. Protected mode without paging.
  .global entry32
entry32:
  cli
  xor %ebp, %ebp
  lgdt gdt_pointer
  ljmp $SEL_CODE32, $boot32
boot32:
  load_segments SEL_DATA, ds, es, ss
  mov $cpu_stacks + CPU_STACK, %esp
  mov %ebp, boot_by_linux_protocol
  mov %ebx, boot_information
  // Identity map of 4 GiB in 2 MiB pages, of which users see the one with the .user section.
  mov $0x83, %eax
  xor %ecx, %ecx
2:
  mov %eax, boot_directories(, %ecx, 8)
  movl $0, boot_directories + 4(, %ecx, 8)
  add $0x200000, %eax
  inc %ecx
  cmp $2048, %ecx
  jne 2b
  orl $4, boot_directories + 8
  mov $boot_directories + 7, %eax
  xor %ecx, %ecx
3:
  mov %eax, boot_pdpt(, %ecx, 8)
  add $0x1000, %eax
  inc %ecx
  cmp $4, %ecx
  jne 3b
  movl $boot_pdpt + 7, boot_pml4
  xor %edi, %edi  // CPU 0
  call enter_long_mode
  .code64
  xor %ebp, %ebp
  call bare_main
4:
  cli
  hlt
  jmp 4b

  // From 32-bit protected mode without paging; returns in 64-bit mode. EDI is kept.
  .code32
enter_long_mode:
  pop %esi
  mov %cr4, %eax
  or $0x20, %eax  // PAE
  mov %eax, %cr4
  mov $boot_pml4, %eax
  mov %eax, %cr3
  mov $MSR_EFER, %ecx
  xor %edx, %edx
  mov $(EFER_NXE | EFER_LME | EFER_SCE), %eax
  wrmsr
  mov $0x80010033, %eax  // PG, WP, NE, ET, MP, PE
  mov %eax, %cr0
  to_64_bit_mode
  load_segments 0, fs, gs
  load_segments SEL_DATA, ds, es, ss
  mov %esi, %esi
  jmp *%rsi

  // --- The other CPUs. Copied to AP_START; started by SIPI in real mode, one after another ---
  .code16
  .global ap_begin, ap_end
ap_begin:
  cli
  xor %ax, %ax
  mov %ax, %ds
  lgdtl AP_START + ap_gdt_pointer - ap_begin
  mov $0x11, %eax
  mov %eax, %cr0
  ljmpl $SEL_CODE32, $ap_start32
ap_gdt_pointer:
  .word GDT_ENTRIES * 8 - 1
  .long gdt
ap_end:
  .code32
ap_start32:
  load_segments SEL_DATA, ds, es, ss
  mov $1, %edi
  lock xadd %edi, next_cpu
  cmp $MAX_CPUS, %edi
  jae 6f
  mov %edi, %esp
  inc %esp
  imul $CPU_STACK, %esp
  add $cpu_stacks, %esp
  call enter_long_mode
  .code64
  xor %ebp, %ebp
  call cpu_main  // cpu_main(number)
6:
  cli
  hlt
  jmp 6b

  // --- Exceptions and interrupts: struct Trap on the stack (traps.h) ---
  .macro trap_entry number, has_error
  .if \has_error == 0
  pushq $0
  .endif
  pushq $\number
  jmp enter_trap
  .align 16
  .endm
  .align 16
  .global trap_entries
trap_entries:
  .set vector, 0
  .rept 256
  .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
  trap_entry vector, 1
  .else
  trap_entry vector, 0
  .endif
  .set vector, vector + 1
  .endr
enter_trap:
  push %rax
  push %rcx
  push %rdx
  push %rbx
  push %rbp
  push %rsi
  push %rdi
  push %r8
  push %r9
  push %r10
  push %r11
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, %rdi
  cld
  mov %rsp, %rbp
  and $~15, %rsp
  call trap
  mov %rbp, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %r11
  pop %r10
  pop %r9
  pop %r8
  pop %rdi
  pop %rsi
  pop %rbp
  pop %rbx
  pop %rdx
  pop %rcx
  pop %rax
  add $16, %rsp
  iretq

  // bool call_until_trap(void (*function)(void*), void* argument, u64* stack): true if a trap ended it. trap() continues at
  // after_trap with RSP as stored in *stack.
  .global call_until_trap, after_trap
call_until_trap:
  push_kept_registers
  sub $8, %rsp
  mov %rsp, (%rdx)
  mov %rdi, %rax
  mov %rsi, %rdi
  call *%rax
  xor %eax, %eax
  jmp 7f
after_trap:
  mov $1, %eax
7:
  add $8, %rsp
  pop_kept_registers
  ret

  // void enter_user(u64 rip, u64 rsp, u64 cs, u64 argument): to ring 3 with the argument in RDI; a trap ends it.
  .global enter_user
enter_user:
  pushq $SEL_USER_DATA
  push %rsi
  pushf
  push %rdx
  push %rdi
  mov %rcx, %rdi
  iretq

  .data
  .align 16
  .global gdt
gdt:
  .quad 0
  .quad 0x00af9b000000ffff  // SEL_CODE64
  .quad 0x00cf93000000ffff  // SEL_DATA
  .quad 0x00cf9b000000ffff  // SEL_CODE32
  .quad 0x00009b000000ffff  // SEL_CODE16
  .quad 0x00cffb000000ffff  // SEL_USER_CODE32
  .quad 0x00cff3000000ffff  // SEL_USER_DATA
  .quad 0x00affb000000ffff  // SEL_USER_CODE64
  .quad 0x000093000000ffff  // SEL_DATA16
  .fill GDT_ENTRIES - 9, 8, 0
gdt_pointer:
  .word GDT_ENTRIES * 8 - 1
  .quad gdt
  .global next_cpu, boot_information, boot_by_linux_protocol
next_cpu: .long 1
boot_information: .long 0
boot_by_linux_protocol: .long 0

  .bss
  .align 4096
  .global boot_pml4, boot_pdpt, boot_directories
boot_pml4: .skip 0x1000
boot_pdpt: .skip 0x1000
boot_directories: .skip 0x4000
cpu_stacks: .skip CPU_STACK * MAX_CPUS
  .section .note.GNU-stack, "", @progbits
