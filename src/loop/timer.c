/* SPDX-License-Identifier: Apache-2.0
 *
 * Timers: a binary heap of pointers, smallest deadline first. Each timer knows
 * its slot, so that arming, moving and cancelling cost log n and no search.
 * Slot 0 stays unused: it says "not armed".
 */
#include "base/mem.h"
#include "loop/loop_impl.h"

static void place(struct timers *t, size_t slot, struct loop_timer *timer)
{
    t->heap[slot] = timer;
    timer->slot = slot;
}

/* Find the place for @timer from the hole at @slot. */
static void sift(struct timers *t, size_t slot, struct loop_timer *timer)
{
    while (slot > 1 && t->heap[slot / 2]->deadline > timer->deadline) {
        place(t, slot, t->heap[slot / 2]);
        slot /= 2;
    }
    for (;;) {
        size_t child = slot * 2;

        if (child > t->n)
            break;
        if (child < t->n && t->heap[child + 1]->deadline < t->heap[child]->deadline)
            child++;
        if (t->heap[child]->deadline >= timer->deadline)
            break;
        place(t, slot, t->heap[child]);
        slot = child;
    }
    place(t, slot, timer);
}

static void take_out(struct timers *t, struct loop_timer *timer)
{
    size_t slot = timer->slot;
    struct loop_timer *last = t->heap[t->n--];

    assert(slot && slot <= t->n + 1);
    timer->slot = 0;
    if (last != timer)
        sift(t, slot, last);
}

void loop_timer_init(struct loop_timer *timer, void (*fn)(void *arg), void *arg)
{
    *timer = (struct loop_timer){ .fn = fn, .arg = arg };
}

void loop_timer_arm(struct loop_timer *timer, uint64_t deadline)
{
    assert(loop_current());
    struct timers *t = &loop_current()->timers;

    timer->deadline = deadline;
    if (timer->slot) {
        sift(t, timer->slot, timer);
        return;
    }
    if (t->n + 1 >= t->room) {
        t->room = MAX(t->room * 2, (size_t)64);
        t->heap = xrealloc(t->heap, t->room * sizeof(struct loop_timer *));
    }
    sift(t, ++t->n, timer);
}

void loop_timer_cancel(struct loop_timer *timer)
{
    if (timer->slot) {
        assert(loop_current());
        take_out(&loop_current()->timers, timer);
    }
}

uint64_t timers_next(const struct timers *t)
{
    return t->n ? t->heap[1]->deadline : UINT64_MAX;
}

void timers_run(struct timers *t)
{
    if (!t->n)
        return;

    uint64_t now = loop_now();

    /* No more than there were: one that arms itself for the past fires once a turn. */
    for (size_t left = t->n; left && t->n && t->heap[1]->deadline <= now; left--) {
        struct loop_timer *timer = t->heap[1];

        take_out(t, timer);
        timer->fn(timer->arg);
    }
}

void timers_done(struct timers *t)
{
    free(t->heap);
    *t = (struct timers){ 0 };
}
