/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of this room share about a loop and its coroutines. Not for
 * other rooms.
 */
#ifndef LOOP_LOOP_IMPL_H
#define LOOP_LOOP_IMPL_H

#include "loop/co_sanitizer.h"
#include "loop/co_switch.h"
#include "loop/loop.h"
#include <pthread.h>
#include <stdatomic.h>

struct engine;
struct workers;

enum co_state {
    CO_READY,       /* on its loop's ready or yielded list */
    CO_RUNNING,
    CO_SUSPENDED,   /* on no list of the loop's: somebody has its pointer and will wake it */
    CO_ENDED,
};

/* Lies at the top of its own stack. */
struct co {
    struct co_ctx ctx;
    enum co_state state;
    unsigned wakes;          /* that came before the co_suspend they are for */
    struct loop *loop;
    struct list link;        /* ready, yielded, or idle stacks */
    struct list all;         /* loop->coroutines */
    co_fn *fn;
    void *arg;
    char *mapping;           /* the lowest address: the guard page */
    struct san_stack san;
};

/* Something for a loop to do, from any thread. The poster owns the memory and
 * must keep it until fn runs; fn may free or reuse it. */
struct loop_msg {
    struct loop_msg *next;
    void (*fn)(struct loop_msg *msg);
};

enum loop_end {
    LOOP_LIVE,
    LOOP_QUIET,     /* the kernel and the workers hold nothing of ours any more */
    LOOP_STUCK,     /* they do, and were waited for long enough */
};

struct timers {
    struct loop_timer **heap;   /* 1-based; NULL until the first is armed */
    size_t n, room;
};

/* Whether buffered writes of this loop are quick enough to be made inline; the
 * story is in co_io.c. */
struct inline_writes {
    unsigned skip;      /* so many go to the engine before the next is tried inline */
    unsigned backoff;   /* what skip is set to when a write was slow; 0: none ever was */
    unsigned quick;     /* inline writes in a row that were quick since then */
};

/* Whether to poll before sleeping; the story is in loop.c. */
struct polling {
    int score;          /* what polling brought lately, less what it cost */
    unsigned skip;      /* so many waits go without it */
    unsigned pause;     /* what skip was set to last; 0: long ago */
};

struct loop {
    /* Never changed after loop_new. */
    char name[16];
    int wake_fd;                /* an eventfd: ends the engine's sleep */
    struct engine *engine;
    struct workers *workers;

    /* The loop's own thread only. */
    struct co *current;
    struct co_ctx ctx;          /* of loop_run, while a coroutine runs */
    struct san_stack san;
    struct list ready;          /* of struct co: run in this turn */
    struct list yielded;        /* of struct co: run in the next turn */
    struct list coroutines;     /* every one that has not ended */
    struct list idle_stacks;    /* of ended coroutines, kept for the next */
    unsigned n_idle_stacks, n_stacks_made;
    struct list defers;
    struct timers timers;
    struct inline_writes inline_writes;
    struct polling polling;
    unsigned turns_timed;       /* loop_time_turns */
    uint64_t turn_began;        /* when the loop last looked for completions */
    uint64_t turn_came;         /* see loop_turn_came */
    int schedstat_fd;           /* cpu_wait.c, while turns are timed; -1: not to be had */
    bool running;
    bool ran;                   /* at least once: the engine belongs to this thread */
    pthread_t thread;
    enum loop_end end;

    /* Any thread. */
    _Atomic(struct loop_msg *) inbox;   /* newest first */
    atomic_bool sleeping;       /* it will not look at the inbox before wake_fd is written */
    atomic_bool stop;
    atomic_uint visitors;       /* threads inside loop_post or loop_stop */

    /* Whoever spawned it. */
    pthread_t spawned_thread;
    bool spawned;
};

/* co.c */
void co_run(struct loop *loop, struct co *co);
void co_drop_all(struct loop *loop);   /* suspended ones, and the pool of stacks */

/* loop.c */
void loop_post_msg(struct loop *loop, struct loop_msg *msg);   /* any thread */

/* cpu_wait.c */
void cpu_wait_open(struct loop *loop);
void cpu_wait_close(struct loop *loop);

/* timer.c. timers_next gives the first deadline, UINT64_MAX when there is none. */
uint64_t timers_next(const struct timers *t);
void timers_run(struct timers *t);
void timers_done(struct timers *t);

#endif
