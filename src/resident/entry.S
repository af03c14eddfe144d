// Code of the area (code_area.h): copied there, so it must not depend on where it lies.
        .text
        .globl  anykvm_area_code, anykvm_area_code_end
        .globl  anykvm_area_system_call, anykvm_area_restorer, anykvm_area_sigreturn, anykvm_area_exit
        .hidden anykvm_area_code, anykvm_area_code_end
        .hidden anykvm_area_system_call, anykvm_area_restorer, anykvm_area_sigreturn, anykvm_area_exit
        .balign 16
anykvm_area_code:
anykvm_area_system_call:        // (number, a, b, c, d, e, f)
        movq    %rdi, %rax
        movq    %rsi, %rdi
        movq    %rdx, %rsi
        movq    %rcx, %rdx
        movq    %r8, %r10
        movq    %r9, %r8
        movq    8(%rsp), %r9
        syscall
        ret
anykvm_area_sigreturn:          // (stack pointer)
        movq    %rdi, %rsp
anykvm_area_restorer:
        movl    $15, %eax       // rt_sigreturn
        syscall
        hlt
anykvm_area_exit:               // (stack, its size, exit code)
        movq    %rdx, %rbx
        movl    $11, %eax       // munmap
        syscall
        movl    %ebx, %edi
        movl    $60, %eax       // exit
        syscall
        hlt
anykvm_area_code_end:

// Where a new task begins: on its stack the address to go on at, and behind it 128 bytes that may be in use.
        .macro  task_entry name function
        .globl  \name
        .hidden \name, \function
        .type   \name, @function
\name:
        pushq   %rbx
        pushq   %rbp
        pushq   %rdi
        pushq   %rsi
        pushq   %rdx
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r12
        movq    %rsp, %rbx
        andq    $-16, %rsp
        cld
        call    \function
        movq    %rbx, %rsp
        popq    %r12
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdx
        popq    %rsi
        popq    %rdi
        popq    %rbp
        popq    %rbx
        xorl    %eax, %eax
        ret     $128
        .size   \name, . - \name
        .endm
        task_entry anykvm_task_shares_memory anykvm_begin_sharing_task
        task_entry anykvm_task_has_copy anykvm_begin_copied_task

// (entry point, stack pointer, selector): into the program.
        .globl  anykvm_enter_program
        .hidden anykvm_enter_program
        .type   anykvm_enter_program, @function
anykvm_enter_program:
        movq    %rsi, %rsp
        movb    $1, (%rdx)      // SYSCALL_DISPATCH_FILTER_BLOCK
        pushq   %rdi
        xorl    %eax, %eax
        xorl    %ebx, %ebx
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        xorl    %esi, %esi
        xorl    %edi, %edi
        xorl    %ebp, %ebp
        ret
        .size   anykvm_enter_program, . - anykvm_enter_program
        .section .note.GNU-stack, "", @progbits
