/* SPDX-License-Identifier: Apache-2.0
 *
 * Stack switch by the C library, for machines without one of our own. Correct
 * everywhere and thirty times slower: swapcontext saves the signal mask with a
 * system call. Contract in co_switch.h.
 */
#include "loop/co_switch.h"
#include "base/base.h"

/* makecontext passes ints only, so a pointer travels in two halves. */
static void entry(unsigned high, unsigned low)
{
    struct co_ctx *ctx = (struct co_ctx *)(uintptr_t)((uint64_t)high << 32 | low);

    ctx->fn(ctx->arg);
    abort();
}

void co_ctx_init(struct co_ctx *ctx, void *base, void *top, void (*fn)(void *arg), void *arg)
{
    uint64_t self = (uintptr_t)ctx;

    ctx->fn = fn;
    ctx->arg = arg;
    getcontext(&ctx->uc);
    ctx->uc.uc_stack.ss_sp = base;
    ctx->uc.uc_stack.ss_size = (size_t)((char *)top - (char *)base);
    ctx->uc.uc_link = NULL;
    makecontext(&ctx->uc, (void (*)(void))entry, 2, (unsigned)(self >> 32), (unsigned)self);
}

void co_ctx_switch(struct co_ctx *from, struct co_ctx *to)
{
    swapcontext(&from->uc, &to->uc);
}
