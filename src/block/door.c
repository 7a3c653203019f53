/* SPDX-License-Identifier: Apache-2.0
 *
 * Shutting doors. What counts is the node that is to be still: every disk whose
 * requests can write to it has its door shut, and so does a disk that is made
 * above it meanwhile. An image that only reads it as its backing file is left
 * alone: its requests change nothing here, and may take as long as they like (it
 * may be the slow target of a backup with sync=none). Requests that are inside go
 * on to their end; those that wait outside come in one after another, in order,
 * when the last who shut the door has opened it.
 *
 * I-door: while a door is open and somebody waits outside, the first of them has
 * been woken. It wakes the second as it goes in, and so on, so that nobody who
 * comes later gets ahead.
 */
#include "block/door.h"
#include "block/disk.h"
#include "base/mem.h"

struct disk *disk_new(struct node *n)
{
    CLEANUP_NODE_SET struct node_set below = { 0 };
    struct disk *d = xnew(struct disk);

    d->node = n;
    list_init(&d->waiting);
    waitq_init(&d->quiet);
    node_set_walk(&below, n, WALK_DOWN | WALK_WRITES);
    for (size_t i = 0; i < below.n; i++)
        d->shut += below.nodes[i]->core->doors_shut;
    n->core->disk = d;
    return d;
}

void disk_drop_unused(struct disk *d)
{
    if (d->users || d->closers)
        return;
    assert(!d->in_flight && list_empty(&d->waiting));
    d->node->core->disk = NULL;
    free(d);
}

/* ---- waiting outside ----------------------------------------------------------- */

struct outside {
    struct list link;
    struct co *co;
    bool woken;
};

static void wake_first(struct disk *d)
{
    struct outside *first = list_first(&d->waiting, struct outside, link);

    if (!first || first->woken)
        return;
    first->woken = true;
    co_wake(first->co);
}

void co_door_wait(struct disk *d)
{
    struct outside me = { .co = co_self() };

    list_push_tail(&d->waiting, &me.link);
    do {
        co_suspend();
        me.woken = false;
    } while (d->shut);
    assert(d->waiting.next == &me.link);
    list_del(&me.link);
    wake_first(d);
}

void door_went_quiet(struct disk *d)
{
    waitq_wake_all(&d->quiet);
}

/* ---- shutting and opening -------------------------------------------------------- */

/* A disk above @n that may write to it and still has requests inside. */
static struct disk *find_busy(struct node *n)
{
    CLEANUP_NODE_SET struct node_set above = { 0 };

    node_set_walk(&above, n, WALK_UP | WALK_WRITES);
    for (size_t i = 0; i < above.n; i++) {
        struct disk *d = above.nodes[i]->core->disk;

        if (d && d->in_flight)
            return d;
    }
    return NULL;
}

int co_shut_doors(struct node *n, uint64_t deadline)
{
    CLEANUP_NODE_SET struct node_set above = { 0 };
    struct disk *busy;
    bool in_time = true;

    node_set_walk(&above, n, WALK_UP | WALK_WRITES);
    n->core->doors_shut++;
    for (size_t i = 0; i < above.n; i++) {
        if (above.nodes[i]->core->disk)
            above.nodes[i]->core->disk->shut++;
    }
    while ((busy = find_busy(n)) && in_time) {
        /* The disk and its node stay while we look at them. */
        struct node *node = node_ref(busy->node);

        busy->closers++;
        in_time = co_waitq_wait_until(&busy->quiet, deadline);
        busy->closers--;
        disk_drop_unused(busy);
        node_unref(node);
    }
    if (!busy)
        return 0;
    open_doors(n);
    return -ETIMEDOUT;
}

bool co_shut_doors_by(struct node *n, uint64_t deadline, struct err *err)
{
    int r = co_shut_doors(n, deadline);

    return r == 0 ||
           err_errno(err, r, "Requests in flight on node '%s' did not finish within %llu seconds",
                     n->name, INSTANT_TIMEOUT_NS / NSEC_PER_SEC);
}

void open_doors(struct node *n)
{
    CLEANUP_NODE_SET struct node_set above = { 0 };

    assert(n->core->doors_shut > 0);
    n->core->doors_shut--;
    node_set_walk(&above, n, WALK_UP | WALK_WRITES);
    for (size_t i = 0; i < above.n; i++) {
        struct disk *d = above.nodes[i]->core->disk;

        if (!d)
            continue;
        assert(d->shut > 0);
        if (--d->shut == 0)
            wake_first(d);
    }
}
