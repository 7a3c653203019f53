/* SPDX-License-Identifier: Apache-2.0
 *
 * Stack switch for aarch64 (AAPCS64): the callee-saved registers are x19-x28,
 * the frame pointer x29, the link register x30, the stack pointer, and the low
 * halves of v8-v15. Contract in co_switch.h.
 *
 * A stack at rest, from its saved pointer upwards: x19..x30, d8..d15 (160
 * bytes). The property note says BTI: every indirect entry has "bti c".
 */
#define FRAME 160

    .text

    .globl co_ctx_switch
    .hidden co_ctx_switch
    .type co_ctx_switch, %function
    .p2align 4
co_ctx_switch:
    .cfi_startproc
    hint #34                /* bti c */
    sub sp, sp, #FRAME
    .cfi_adjust_cfa_offset FRAME
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    .cfi_rel_offset x29, 80
    .cfi_rel_offset x30, 88
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    ldr x9, [x1]
    mov sp, x9              /* both stacks have the same layout here */
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #FRAME
    .cfi_adjust_cfa_offset -FRAME
    .cfi_restore x29
    .cfi_restore x30
    ret
    .cfi_endproc
    .size co_ctx_switch, . - co_ctx_switch

/* co_ctx_init(ctx: x0, base: x1, top: x2, fn: x3, arg: x4) */
    .globl co_ctx_init
    .hidden co_ctx_init
    .type co_ctx_init, %function
    .p2align 4
co_ctx_init:
    .cfi_startproc
    hint #34
    and x2, x2, #-16
    sub x2, x2, #FRAME
    stp x3, x4, [x2, #0]    /* x19: fn, x20: arg */
    adr x9, co_ctx_entry
    stp xzr, x9, [x2, #80]  /* x29: no frame above; x30: where to go */
    str x2, [x0]            /* all other registers start undefined */
    ret
    .cfi_endproc
    .size co_ctx_init, . - co_ctx_init

    .type co_ctx_entry, %function
    .p2align 4
co_ctx_entry:
    .cfi_startproc
    .cfi_undefined x30      /* backtraces end here */
    mov x0, x20
    blr x19
    brk #1
    .cfi_endproc
    .size co_ctx_entry, . - co_ctx_entry

    .section .note.gnu.property, "a"
    .p2align 3
    .long 4, 16, 5          /* name size, descriptor size, NT_GNU_PROPERTY_TYPE_0 */
    .asciz "GNU"
    .long 0xc0000000, 4, 1  /* GNU_PROPERTY_AARCH64_FEATURE_1_AND: BTI */
    .long 0

    .section .note.GNU-stack, "", %progbits
