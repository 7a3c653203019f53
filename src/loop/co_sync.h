/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting between coroutines of one loop. Nothing here is thread-safe and
 * nothing needs to be. After every wait the world may have changed: waiters
 * loop and look again.
 */
#ifndef LOOP_CO_SYNC_H
#define LOOP_CO_SYNC_H

#include "base/list.h"
#include "loop/loop.h"

#define DEADLINE_NEVER UINT64_MAX

/* A queue of waiting coroutines, woken first in first out. */
struct waitq {
    struct list waiters;
};

void waitq_init(struct waitq *q);
void co_waitq_wait(struct waitq *q);
/* False when @deadline (loop_now time) passed before a wake-up came. */
MUST_CHECK bool co_waitq_wait_until(struct waitq *q, uint64_t deadline);
bool waitq_wake_one(struct waitq *q);   /* whether there was one */
void waitq_wake_all(struct waitq *q);
static inline bool waitq_empty(const struct waitq *q)
{
    return list_empty(&q->waiters);
}

/* Mutual exclusion across suspension, fair. */
struct co_mutex {
    bool locked;
    struct waitq waiters;
};
void co_mutex_init(struct co_mutex *m);
void co_mutex_lock(struct co_mutex *m);
void co_mutex_unlock(struct co_mutex *m);   /* does not suspend */

/* A counted resource, granted first in first out so that a large claim is not
 * starved. A claim larger than the whole is granted when all is free. */
struct co_sem {
    uint64_t total, used;
    struct list waiters;
};
void co_sem_init(struct co_sem *s, uint64_t total);
void co_sem_acquire(struct co_sem *s, uint64_t n);
bool co_sem_try_acquire(struct co_sem *s, uint64_t n);   /* does not suspend */
void co_sem_release(struct co_sem *s, uint64_t n);       /* does not suspend */

void co_sleep_until(uint64_t deadline);
void co_sleep(uint64_t ns);

#endif
