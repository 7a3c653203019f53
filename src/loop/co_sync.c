/* SPDX-License-Identifier: Apache-2.0
 *
 * Wait queues and what is made of them. Everything happens on one thread: a
 * waker takes the waiter off its queue and gives it what it waited for at once,
 * so nobody can step in between the wake-up and the run.
 */
#include "loop/co_sync.h"

/* Lies on the waiter's stack. */
struct waiter {
    struct list link;
    struct co *co;
    bool woken;        /* by a waker or by its deadline: co_wake was called */
    bool timed_out;
};

void waitq_init(struct waitq *q)
{
    list_init(&q->waiters);
}

void co_waitq_wait(struct waitq *q)
{
    struct waiter w = { .co = co_self() };

    list_push_tail(&q->waiters, &w.link);
    co_suspend();
}

static void waiter_timed_out(void *arg)
{
    struct waiter *w = arg;

    /* Woken already in this turn, and about to run: the wake-up counts. */
    if (w->woken)
        return;
    list_del(&w->link);
    w->woken = w->timed_out = true;
    co_wake(w->co);
}

bool co_waitq_wait_until(struct waitq *q, uint64_t deadline)
{
    struct waiter w = { .co = co_self() };
    struct loop_timer timer;

    if (deadline == DEADLINE_NEVER) {
        co_waitq_wait(q);
        return true;
    }
    list_push_tail(&q->waiters, &w.link);
    loop_timer_init(&timer, waiter_timed_out, &w);
    loop_timer_arm(&timer, deadline);
    co_suspend();
    loop_timer_cancel(&timer);
    return !w.timed_out;
}

bool waitq_wake_one(struct waitq *q)
{
    struct waiter *w = list_pop_head(&q->waiters, struct waiter, link);

    if (!w)
        return false;
    w->woken = true;
    co_wake(w->co);
    return true;
}

void waitq_wake_all(struct waitq *q)
{
    while (waitq_wake_one(q))
        ;
}

void co_mutex_init(struct co_mutex *m)
{
    m->locked = false;
    waitq_init(&m->waiters);
}

void co_mutex_lock(struct co_mutex *m)
{
    if (m->locked)
        co_waitq_wait(&m->waiters);   /* the mutex comes with the wake-up, still locked */
    else
        m->locked = true;
}

void co_mutex_unlock(struct co_mutex *m)
{
    assert(m->locked);
    if (!waitq_wake_one(&m->waiters))
        m->locked = false;
}

struct sem_waiter {
    struct list link;
    struct co *co;
    uint64_t n;
};

static bool sem_fits(const struct co_sem *s, uint64_t n)
{
    return s->used == 0 || (s->used <= s->total && n <= s->total - s->used);
}

void co_sem_init(struct co_sem *s, uint64_t total)
{
    s->total = total;
    s->used = 0;
    list_init(&s->waiters);
}

bool co_sem_try_acquire(struct co_sem *s, uint64_t n)
{
    if (!list_empty(&s->waiters) || !sem_fits(s, n))
        return false;
    s->used += n;
    return true;
}

void co_sem_acquire(struct co_sem *s, uint64_t n)
{
    struct sem_waiter w = { .co = co_self(), .n = n };

    if (co_sem_try_acquire(s, n))
        return;
    list_push_tail(&s->waiters, &w.link);
    co_suspend();
}

void co_sem_release(struct co_sem *s, uint64_t n)
{
    struct sem_waiter *w;

    assert(n <= s->used);
    s->used -= n;
    while ((w = list_first(&s->waiters, struct sem_waiter, link)) && sem_fits(s, w->n)) {
        list_del(&w->link);
        s->used += w->n;
        co_wake(w->co);
    }
}

static void sleep_over(void *arg)
{
    co_wake(arg);
}

void co_sleep_until(uint64_t deadline)
{
    struct loop_timer timer;

    loop_timer_init(&timer, sleep_over, co_self());
    loop_timer_arm(&timer, deadline);
    co_suspend();
}

void co_sleep(uint64_t ns)
{
    uint64_t now = loop_now();

    co_sleep_until(ns < UINT64_MAX - now ? now + ns : UINT64_MAX);
}
