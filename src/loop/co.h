/* SPDX-License-Identifier: Apache-2.0
 *
 * Stackful coroutines, each pinned for life to the loop that it was started on.
 * Code reads top to bottom: a function whose name starts with co_ may suspend
 * the calling coroutine; every other function never does.
 *
 * One rule makes scheduling easy to reason about: a coroutine is entered only
 * by its loop. co_start and co_wake put it on the loop's ready queue (first in,
 * first out); nothing runs inside the caller.
 */
#ifndef LOOP_CO_H
#define LOOP_CO_H

#include "base/base.h"

struct co;
typedef void co_fn(void *arg);

/* Make a coroutine that runs fn(arg) on the calling thread's loop, and queue
 * it. Stacks come from a pool with a guard page under each. Never fails for a
 * small number; aborts when memory for stacks is out. Loop thread only. */
void co_start(co_fn *fn, void *arg);

/* The running coroutine; NULL in plain loop callbacks. */
struct co *co_self(void);

/* Suspend until somebody calls co_wake on this coroutine. Spurious wake-ups do
 * not happen, but the state waited for may have changed again: look again. */
void co_suspend(void);

/* Queue a suspended coroutine to run. Exactly one co_wake for one co_suspend;
 * it may come before the co_suspend. Same loop only. */
void co_wake(struct co *co);

/* Let everybody else who is ready run first. */
void co_yield(void);

#endif
