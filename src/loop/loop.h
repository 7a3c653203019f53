/* SPDX-License-Identifier: Apache-2.0
 *
 * A loop is a thread with an I/O engine: it owns coroutines, timers and
 * everything that the disks on it consist of. Loops share nothing; they talk by
 * loop_post and co_loop_call. A loop never runs inside itself.
 */
#ifndef LOOP_LOOP_H
#define LOOP_LOOP_H

#include "base/err.h"
#include "base/list.h"
#include "loop/co.h"

struct loop;

enum loop_engine {
    LOOP_ENGINE_AUTO,   /* uring where the kernel allows it, else pool */
    LOOP_ENGINE_URING,
    LOOP_ENGINE_POOL,   /* worker threads and epoll */
};

/* NULL with @err set when the engine cannot be had. Under AUTO a refusal of
 * uring is not an error; loop_engine_name tells which one it became. @name is
 * copied (thread name, 15 bytes). */
struct loop *loop_new(enum loop_engine engine, const char *name, struct err *err);

/* Only when it does not run any more and nobody will post to it: in the thread
 * that ran it, or anywhere after loop_join. Coroutines that are still suspended
 * are dropped with their stacks, once the kernel and the workers have let go of
 * them; if they do not within two seconds, the memory is left to them for ever.
 * Takes NULL. */
void loop_free(struct loop *loop);

/* Run in the calling thread until loop_stop; always the same thread. */
void loop_run(struct loop *loop);

/* Run in a thread of its own; loop_join waits for its end after loop_stop. */
MUST_CHECK bool loop_spawn(struct loop *loop, struct err *err);
void loop_join(struct loop *loop);

/* Make loop_run return after the current turn, or the next; what was posted
 * before is still run. Any thread. */
void loop_stop(struct loop *loop);

/* The loop of the calling thread; NULL outside any. */
struct loop *loop_current(void);

const char *loop_engine_name(const struct loop *loop);

/* Monotonic nanoseconds, read afresh. */
uint64_t loop_now(void);

/* For who measures how long requests take: when what is dealt with in this turn came
 * in, about. It waited since the loop last looked, half of the turn before on average.
 * Only while somebody has asked for it by loop_time_turns(true); each must take that
 * back. Loop thread only. */
void loop_time_turns(bool on);
uint64_t loop_turn_came(void);

/* For the same: how long the loop's thread has been ready to run and had no CPU, and how
 * often it got one, since it began. False: the kernel does not tell. Costs 2 us. */
struct loop_cpu_wait {
    uint64_t ns, times;
};
MUST_CHECK bool loop_cpu_wait(struct loop_cpu_wait *ret);

/* Run fn(arg) on @loop, later, as a plain callback (it must not suspend; it may
 * co_start). Any thread; order between two posts of one thread is kept. Posts
 * that have not run when the loop is freed are dropped. */
void loop_post(struct loop *loop, void (*fn)(void *arg), void *arg);

/* Run fn(arg) as a coroutine on @loop and suspend the caller until it returns;
 * gives its result. With the caller's own loop it is a plain call. Coroutine
 * only. */
int co_loop_call(struct loop *loop, int (*fn)(void *arg), void *arg);

/* Ask for fn(arg) once, after every coroutine that is ready in this turn has
 * run and before the loop sleeps: the place to send what a turn has gathered.
 * Asking again before it ran does nothing. Loop thread only. */
struct loop_defer {
    struct list link;
    void (*fn)(void *arg);
    void *arg;
};
void loop_defer_init(struct loop_defer *d, void (*fn)(void *arg), void *arg);
void loop_defer(struct loop_defer *d);
void loop_defer_cancel(struct loop_defer *d);

/* A timer calls fn(arg) as a plain callback on its loop at or after @deadline
 * (loop_now time). Arming an armed timer moves it. Loop thread only. */
struct loop_timer {
    uint64_t deadline;
    size_t slot;           /* place in the loop's heap; 0: not armed */
    void (*fn)(void *arg);
    void *arg;
};
void loop_timer_init(struct loop_timer *t, void (*fn)(void *arg), void *arg);
void loop_timer_arm(struct loop_timer *t, uint64_t deadline);
void loop_timer_cancel(struct loop_timer *t);

#endif
