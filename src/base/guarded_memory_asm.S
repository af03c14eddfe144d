// The accesses of guarded_memory.h. Leaf functions that leave the stack alone, so that a fault anywhere between the
// two labels can go on at the landing, which returns 0 for them.
        .text
        .globl  anykvm_guarded_begin, anykvm_guarded_end, anykvm_guarded_landing
        .hidden anykvm_guarded_begin, anykvm_guarded_end, anykvm_guarded_landing

        .macro  guarded_function name
        .globl  \name
        .hidden \name
        .type   \name, @function
        .balign 16
\name:
        .endm

anykvm_guarded_begin:

// to RDI, from RSI, size RDX
guarded_function anykvm_guarded_copy
        .cfi_startproc
        cmpq    $8, %rdx
        je      8f
        cmpq    $4, %rdx
        je      4f
        cmpq    $1, %rdx
        je      1f
        cmpq    $2, %rdx
        je      2f
        cmpq    $16, %rdx
        je      3f
        movq    %rdx, %rcx
        rep movsb
        movl    $1, %eax
        ret
8:      movq    (%rsi), %rax
        movq    %rax, (%rdi)
        movl    $1, %eax
        ret
4:      movl    (%rsi), %eax
        movl    %eax, (%rdi)
        movl    $1, %eax
        ret
1:      movzbl  (%rsi), %eax
        movb    %al, (%rdi)
        movl    $1, %eax
        ret
2:      movzwl  (%rsi), %eax
        movw    %ax, (%rdi)
        movl    $1, %eax
        ret
3:      movq    (%rsi), %rax
        movq    8(%rsi), %rcx
        movq    %rax, (%rdi)
        movq    %rcx, 8(%rdi)
        movl    $1, %eax
        ret
        .cfi_endproc

// a RDI, b RSI, size RDX: 64 bytes at a time
guarded_function anykvm_guarded_compare
        .cfi_startproc
        xorl    %ecx, %ecx
1:      cmpq    %rdx, %rcx
        jae     2f
        .irp    n, 0, 1, 2, 3
        movdqu  16*\n(%rdi,%rcx), %xmm\n
        movdqu  16*\n(%rsi,%rcx), %xmm4
        pcmpeqb %xmm4, %xmm\n
        .endr
        pand    %xmm1, %xmm0
        pand    %xmm3, %xmm2
        pand    %xmm2, %xmm0
        pmovmskb %xmm0, %eax
        addq    $64, %rcx
        cmpl    $0xffff, %eax
        je      1b
        movl    $2, %eax
        ret
2:      movl    $1, %eax
        ret
        .cfi_endproc

// at RDI, expected RSI, desired RDX, size ECX
guarded_function anykvm_guarded_compare_exchange
        .cfi_startproc
        movq    (%rsi), %rax
        cmpl    $4, %ecx
        je      4f
        ja      8f
        cmpl    $2, %ecx
        je      2f
        lock cmpxchgb %dl, (%rdi)
        jmp     3f
2:      lock cmpxchgw %dx, (%rdi)
        jmp     3f
4:      lock cmpxchgl %edx, (%rdi)
        jmp     3f
8:      lock cmpxchgq %rdx, (%rdi)
3:      jne     5f
        movl    $1, %eax
        ret
5:      movq    %rax, (%rsi)
        movl    $2, %eax
        ret
        .cfi_endproc

// to RDI, from RSI, elements RDX, size ECX
guarded_function anykvm_guarded_movs
        .cfi_startproc
        movl    %ecx, %eax
        movq    %rdx, %rcx
        cmpl    $4, %eax
        je      4f
        ja      8f
        cmpl    $2, %eax
        je      2f
        rep movsb
        jmp     3f
2:      rep movsw
        jmp     3f
4:      rep movsl
        jmp     3f
8:      rep movsq
3:      movl    $1, %eax
        ret
        .cfi_endproc

// to RDI, value RSI, elements RDX, size ECX
guarded_function anykvm_guarded_stos
        .cfi_startproc
        movl    %ecx, %r8d
        movq    %rdx, %rcx
        movq    %rsi, %rax
        cmpl    $4, %r8d
        je      4f
        ja      8f
        cmpl    $2, %r8d
        je      2f
        rep stosb
        jmp     3f
2:      rep stosw
        jmp     3f
4:      rep stosl
        jmp     3f
8:      rep stosq
3:      movl    $1, %eax
        ret
        .cfi_endproc

anykvm_guarded_end:

anykvm_guarded_landing:
        .cfi_startproc
        xorl    %eax, %eax
        ret
        .cfi_endproc

        .section .note.GNU-stack, "", @progbits
