/* SPDX-License-Identifier: Apache-2.0
 *
 * A few coroutines that take piece after piece.
 */
#include "app/sweep.h"
#include "base/mem.h"
#include "loop/co.h"
#include "loop/co_sync.h"

/* Enough to keep a disk and a CPU busy; each holds SWEEP_BUFFERS pieces of memory. */
#define WORKERS 6

struct sweeping {
    const struct sweep *s;
    uint64_t next;               /* looked at up to here */
    bool over;                   /* nothing is left, or it failed */
    int result;
    struct co_mutex finding;
    unsigned running;
    struct waitq ended;
};

static void fail(struct sweeping *w, int r)
{
    if (w->result == 0)
        w->result = r;
    w->over = true;
}

static bool co_take(struct sweeping *w, struct sweep_piece *p)
{
    bool taken = false;
    int r;

    co_mutex_lock(&w->finding);
    if (!watch_step(w->s->watch, MIN(w->next, w->s->to), w->s->to))
        fail(w, -ECANCELED);
    if (!w->over) {
        r = w->s->co_find(w->s->arg, w->next, p);
        if (r < 0)
            fail(w, r);
        else if (!p->len)
            w->over = true;
        taken = !w->over;
    }
    if (taken) {
        assert(p->len <= SWEEP_PIECE && p->off >= w->next);
        w->next = p->off + p->len;
    }
    co_mutex_unlock(&w->finding);
    return taken;
}

static void co_worker(void *arg)
{
    struct sweeping *w = arg;
    uint8_t *buf = try_alloc_aligned(SWEEP_BUFFERS * SWEEP_PIECE);
    struct sweep_piece p = { 0 };

    if (!buf)
        fail(w, -ENOMEM);
    for (int i = 0; buf && i < SWEEP_BUFFERS; i++)
        p.buf[i] = buf + i * SWEEP_PIECE;
    while (buf && co_take(w, &p)) {
        int r = w->s->co_do(w->s->arg, &p);

        if (r < 0)
            fail(w, r);
    }
    free(buf);
    w->running--;
    waitq_wake_all(&w->ended);
}

int co_sweep(const struct sweep *s)
{
    struct sweeping w = { .s = s, .next = s->from };

    co_mutex_init(&w.finding);
    waitq_init(&w.ended);
    for (; w.running < WORKERS; w.running++)
        co_start(co_worker, &w);
    while (w.running)
        co_waitq_wait(&w.ended);
    return w.result;
}
