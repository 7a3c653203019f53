/* SPDX-License-Identifier: Apache-2.0
 *
 * The one machine-dependent piece: changing stacks. Two functions, three
 * implementations, one of which meson.build picks: co_switch_x86_64.S,
 * co_switch_aarch64.S, and co_switch_ucontext.c for every other machine.
 * Knows nothing of loops and coroutines. Used by co.c only.
 */
#ifndef LOOP_CO_SWITCH_H
#define LOOP_CO_SWITCH_H

#ifdef CO_SWITCH_UCONTEXT
#include <ucontext.h>
#endif

/* Where a stack that does not run goes on. Pinned: must not be copied. */
struct co_ctx {
#ifdef CO_SWITCH_UCONTEXT
    ucontext_t uc;
    void (*fn)(void *arg);
    void *arg;
#else
    void *sp;   /* callee-saved registers and the return address lie there */
#endif
};

/* Make @ctx such that switching to it calls fn(arg) on the stack whose bytes
 * are [base, top). fn must never return: it switches away for good. */
void co_ctx_init(struct co_ctx *ctx, void *base, void *top, void (*fn)(void *arg), void *arg);

/* Save this place in @from and go on at @to. Returns when somebody switches to
 * @from. Registers that a call may change are lost, as with any call; the
 * floating-point control words and the signal mask are not touched, since
 * nothing in this program changes them per coroutine. */
void co_ctx_switch(struct co_ctx *from, struct co_ctx *to);

#endif
