// The signal restorer that stands in for libc's while a thread may be inside KVM_RUN. The kernel returns here when a
// client's handler is done, with RSP at the ucontext; every register is restored from it by rt_sigreturn(2), so any may
// be used.
        .text
        .globl  anykvm_signal_restorer
        .hidden anykvm_signal_restorer
        .hidden anykvm_signal_returned
        .type   anykvm_signal_restorer, @function

// Saved registers for unwinders: DW_CFA_expression, register, {DW_OP_breg7 offset}.
        .macro  saved_register number offset
        .cfi_escape 0x10, \number, 3, 0x77, (\offset & 0x7f) | 0x80, \offset >> 7
        .endm

        .cfi_startproc
        .cfi_signal_frame
        // The interrupted RSP is the canonical frame address: DW_CFA_def_cfa_expression {breg7 160, deref}.
        .cfi_escape 0x0f, 4, 0x77, 0xa0, 0x01, 0x06
        saved_register 8, 40
        saved_register 9, 48
        saved_register 10, 56
        saved_register 11, 64
        saved_register 12, 72
        saved_register 13, 80
        saved_register 14, 88
        saved_register 15, 96
        saved_register 5, 104
        saved_register 4, 112
        saved_register 6, 120
        saved_register 3, 128
        saved_register 1, 136
        saved_register 0, 144
        saved_register 2, 152
        saved_register 7, 160
        saved_register 16, 168
        nop                     // unwinders look one byte before a return address
anykvm_signal_restorer:
        movq    %rsp, %rdi
        movq    %rsp, %rbx
        andq    $-16, %rsp
        call    anykvm_signal_returned
        movq    %rbx, %rsp
        movl    $15, %eax       // rt_sigreturn
        syscall
        hlt
        .cfi_endproc
        .size   anykvm_signal_restorer, . - anykvm_signal_restorer
        .section .note.GNU-stack, "", @progbits
