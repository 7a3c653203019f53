/* SPDX-License-Identifier: Apache-2.0
 *
 * Coroutines: their stacks, their states, and the switch between one and its
 * loop. A coroutine always switches to its loop and never to another one, so
 * that the order in which they run is the order of the ready list and nothing
 * else.
 *
 *            co_start                 co_run                    fn returns
 *   (none) -----------> CO_READY -----------------> CO_RUNNING -----------> CO_ENDED
 *                          ^  ^      co_yield          |   |
 *                          |  +------------------------+   | co_suspend
 *                          |            co_wake            v
 *                          +-------------------------- CO_SUSPENDED
 */
#include "loop/co.h"
#include "loop/loop_impl.h"
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

/* Sanitizers put red zones round every local. */
#if defined(CO_ASAN) || defined(CO_TSAN)
#define STACK_BYTES (512 * KiB)
#else
#define STACK_BYTES (256 * KiB)
#endif

/* Stacks kept for reuse by one loop: as many as a few deep queues have requests.
 * Each holds the pages that it ever touched, commonly 8 to 16 KiB. */
#define IDLE_STACKS 512

/* Linux 6.13: a guard that needs no mapping of its own, so that neighbouring
 * stacks stay one mapping and vm.max_map_count is not used up by them. */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* The stack of @co grows down from @co itself to the guard page. */
static char *stack_base(const struct co *co)
{
    return co->mapping + page_bytes();
}

static _Noreturn void out_of_stacks(const char *what)
{
    fprintf(stderr, "stillpoint: no memory for the stack of a coroutine: %s: %s\n", what,
            strerror(errno));
    abort();
}

/* Stacks lie a power of two apart, so that the frames of all coroutines would fall
 * into the same few sets of the cache: let them begin at different lines. Resuming
 * 512 in turn takes a quarter less. */
#define COLOURS 16
#define COLOUR_BYTES 448

static struct co *stack_new(struct loop *loop)
{
    size_t guard = page_bytes(), colour = loop->n_stacks_made++ % COLOURS * COLOUR_BYTES;
    char *p = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

    if (p == MAP_FAILED)
        out_of_stacks("mmap");
    if (madvise(p, guard, MADV_GUARD_INSTALL) < 0 && mprotect(p, guard, PROT_NONE) < 0)
        out_of_stacks("mprotect");
    /* A huge page for a stack that uses two small ones would be waste. Best effort:
     * kernels without huge pages refuse. */
    (void)madvise(p, STACK_BYTES, MADV_NOHUGEPAGE);

    uintptr_t top = (uintptr_t)p + STACK_BYTES - sizeof(struct co) - colour;
    struct co *co = (struct co *)align_down(top, 64);

    co->mapping = p;
    san_stack_init(&co->san, stack_base(co), (size_t)((char *)co - stack_base(co)));
    return co;
}

static void stack_free(struct co *co)
{
    san_stack_done(&co->san, stack_base(co), (size_t)((char *)co - stack_base(co)));
    munmap(co->mapping, STACK_BYTES);
}

static void switch_to_loop(struct co *co)
{
    struct loop *loop = co->loop;

    san_leave(&co->san, &loop->san);
    co_ctx_switch(&co->ctx, &loop->ctx);
    san_arrive(&co->san, &loop->san);
}

static SAN_NO_RETURN void co_main(void *arg)
{
    struct co *co = arg;
    struct loop *loop = co->loop;

    san_arrive(&co->san, &loop->san);
    co->fn(co->arg);
    co->state = CO_ENDED;
    san_leave_forever(&co->san, &loop->san);
    co_ctx_switch(&co->ctx, &loop->ctx);
    abort();
}

void co_start(co_fn *fn, void *arg)
{
    struct loop *loop = loop_current();
    assert(loop);
    struct co *co = list_pop_head(&loop->idle_stacks, struct co, link);

    if (co)
        loop->n_idle_stacks--;
    else
        co = stack_new(loop);
    co->loop = loop;
    co->fn = fn;
    co->arg = arg;
    co->wakes = 0;
    co->state = CO_READY;
    co_ctx_init(&co->ctx, stack_base(co), co, co_main, co);
    list_push_tail(&loop->coroutines, &co->all);
    list_push_tail(&loop->ready, &co->link);
}

void co_run(struct loop *loop, struct co *co)
{
    assert(co->state == CO_READY);
    co->state = CO_RUNNING;
    loop->current = co;
    san_thread_stack(&loop->san);
    san_leave(&loop->san, &co->san);
    co_ctx_switch(&loop->ctx, &co->ctx);
    san_arrive(&loop->san, &co->san);
    loop->current = NULL;
    if (co->state != CO_ENDED)
        return;
    /* A wake left over was meant for a co_suspend that never came. */
    assert(co->wakes == 0);
    list_del(&co->all);
    if (loop->n_idle_stacks == IDLE_STACKS) {
        stack_free(co);
        return;
    }
    /* The stack used last is the one in the cache: reuse it first. */
    list_push_head(&loop->idle_stacks, &co->link);
    loop->n_idle_stacks++;
}

struct co *co_self(void)
{
    struct loop *loop = loop_current();

    return loop ? loop->current : NULL;
}

void co_suspend(void)
{
    struct co *co = co_self();
    assert(co);

    if (co->wakes) {
        co->wakes--;
        return;
    }
    co->state = CO_SUSPENDED;
    switch_to_loop(co);
}

void co_wake(struct co *co)
{
    assert(co->loop == loop_current());
    assert(co->state != CO_ENDED);
    if (co->state != CO_SUSPENDED) {
        co->wakes++;
        return;
    }
    co->state = CO_READY;
    list_push_tail(&co->loop->ready, &co->link);
}

void co_yield(void)
{
    struct co *co = co_self();
    assert(co);

    co->state = CO_READY;
    list_push_tail(&co->loop->yielded, &co->link);
    switch_to_loop(co);
}

void co_drop_all(struct loop *loop)
{
    struct co *co;

    while ((co = list_pop_head(&loop->coroutines, struct co, all)))
        stack_free(co);
    while ((co = list_pop_head(&loop->idle_stacks, struct co, link)))
        stack_free(co);
    loop->n_idle_stacks = 0;
}
