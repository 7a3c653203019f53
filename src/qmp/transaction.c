/* SPDX-License-Identifier: Apache-2.0
 *
 * The order in which the actions of a transaction are prepared, cut, committed or
 * undone, and the doors of their disks. What an action does is in the cmd_*.c of
 * its area.
 */
#include "qmp/transaction.h"
#include "base/mem.h"
#include "block/disk.h"

/* A bitmap that is held until the end. */
struct held {
    struct node *node;           /* a reference */
    struct dirty_bitmap *bm;     /* NULL: somebody else holds it now */
    const struct action *reserved;    /* by this one alone; NULL: by all */
};

struct transaction {
    struct held *held;
    size_t n_held;
};

/* ---- doors --------------------------------------------------------------------------- */

/* The doors of one disk. */
struct doors {
    struct doorman *man;
    struct node *disk;           /* borrowed from an action */
    bool shut;
    struct err err;              /* why not */
};

struct doorman {
    struct doors *doors;
    size_t n;
    uint64_t deadline;           /* one for all */
    unsigned busy;               /* coroutines */
    struct waitq done;
};

static void add_disk(struct doorman *m, struct node *disk)
{
    for (size_t i = 0; i < m->n; i++) {
        if (m->doors[i].disk == disk)
            return;
    }
    m->doors = xrealloc(m->doors, (m->n + 1) * sizeof(*m->doors));
    m->doors[m->n++] = (struct doors){ .man = m, .disk = disk, .err = ERR_INIT };
}

static int co_shut_there(void *arg)
{
    struct doors *d = arg;

    return co_shut_doors_by(d->disk, d->man->deadline, &d->err) ? 0 : -ETIMEDOUT;
}

static int open_there(void *arg)
{
    struct doors *d = arg;

    open_doors(d->disk);
    return 0;
}

static void co_shut(void *arg)
{
    struct doors *d = arg;

    d->shut = co_node_call(d->disk, co_shut_there, d) == 0;
    d->man->busy--;
    waitq_wake_all(&d->man->done);
}

/* I-D4: nobody waits here for anything but requests that are inside. So the time that
 * guests stand still is that of the slowest disk, not the sum, and two
 * transactions at once cannot wait for each other. */
static bool co_shut_all(struct doorman *m, struct err *err)
{
    m->deadline = loop_now() + INSTANT_TIMEOUT_NS;
    for (size_t i = 0; i < m->n; i++) {
        m->busy++;
        co_start(co_shut, &m->doors[i]);
    }
    while (m->busy)
        co_waitq_wait(&m->done);
    for (size_t i = 0; i < m->n; i++) {
        if (m->doors[i].shut)
            continue;
        if (err)
            *err = m->doors[i].err;
        return false;
    }
    return true;
}

static void co_open_all(struct doorman *m)
{
    for (size_t i = 0; i < m->n; i++) {
        if (m->doors[i].shut)
            (void)co_node_call(m->doors[i].disk, open_there, &m->doors[i]);
    }
}

/* ---- the actions --------------------------------------------------------------------- */

static int cut_there(void *arg)
{
    struct action *a = arg;

    a->ops->cut(a);
    return 0;
}

static int announce_there(void *arg)
{
    struct action *a = arg;

    job_announce(a->job);
    return 0;
}

static int commit_there(void *arg)
{
    struct action *a = arg;

    a->ops->commit(a);
    return 0;
}

/* I-D5: no door opens before the last disk was cut. */
static bool co_cut_all(struct action *actions, size_t n, struct err *err)
{
    struct doorman m = { 0 };
    bool ok;

    waitq_init(&m.done);
    for (size_t i = 0; i < n; i++) {
        if (!actions[i].disk || !actions[i].ops->cut)
            continue;
        add_disk(&m, actions[i].disk);
        for (size_t k = 0; k < actions[i].n_others; k++)
            add_disk(&m, actions[i].others[k]);
    }
    ok = co_shut_all(&m, err);
    for (size_t i = 0; ok && i < n; i++) {
        if (actions[i].disk && actions[i].ops->cut)
            (void)co_node_call(actions[i].disk, cut_there, &actions[i]);
    }
    co_open_all(&m);
    free(m.doors);
    return ok;
}

/* Events come in QEMU's order: all jobs are created, then they run. */
static void co_commit_all(struct action *actions, size_t n, struct job_txn *group)
{
    for (size_t i = 0; i < n; i++) {
        if (!actions[i].job)
            continue;
        (void)co_node_call(actions[i].disk, announce_there, &actions[i]);
        if (group)
            job_txn_add(group, actions[i].job);
    }
    if (group)
        job_txn_start(group);
    for (size_t i = 0; i < n; i++) {
        struct action *a = &actions[i];

        a->committed = true;
        if (a->ops->commit && a->disk)
            (void)co_node_call(a->disk, commit_there, a);
        else if (a->ops->commit)
            a->ops->commit(a);
    }
}

static void co_abort_all(struct action *actions, size_t n)
{
    while (n-- > 0) {
        if (actions[n].ops->co_abort)
            actions[n].ops->co_abort(&actions[n]);
    }
}

static void co_clean_all(struct action *actions, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct action *a = &actions[i];

        if (a->ops->co_clean)
            a->ops->co_clean(a);
        node_unref(MOVE(a->disk));
    }
}

/* ---- bitmaps --------------------------------------------------------------------------- */

static struct held *find_held(struct transaction *t, const struct dirty_bitmap *bm)
{
    for (size_t i = 0; i < t->n_held; i++) {
        if (t->held[i].bm == bm)
            return &t->held[i];
    }
    return NULL;
}

bool action_hold_bitmap(struct action *a, struct dirty_bitmap *bm, unsigned allow,
                        struct err *err)
{
    struct transaction *t = a->txn;
    const struct held *h = find_held(t, bm);

    if (!dirty_bitmap_check(bm, h && !h->reserved ? allow | DIRTY_BUSY_OK : allow, err))
        return false;
    if (h)
        return true;
    dirty_bitmap_hold(bm);
    t->held = xrealloc(t->held, (t->n_held + 1) * sizeof(*t->held));
    t->held[t->n_held++] = (struct held){ node_ref(dirty_bitmap_node(bm)), bm, NULL };
    return true;
}

void action_reserve_bitmap(struct action *a, struct dirty_bitmap *bm)
{
    struct held *h = find_held(a->txn, bm);

    assert(h);
    h->reserved = a;
}

void action_unreserve_bitmap(struct action *a, struct dirty_bitmap *bm)
{
    struct held *h = find_held(a->txn, bm);

    assert(h && h->reserved == a);
    h->reserved = NULL;
}

bool action_yield_bitmap(struct action *a, struct dirty_bitmap *bm)
{
    struct held *h = find_held(a->txn, bm);

    if (!h || (h->reserved && h->reserved != a))
        return false;
    h->bm = NULL;
    dirty_bitmap_let_go(bm);
    return true;
}

static int let_go_there(void *arg)
{
    struct held *h = arg;

    dirty_bitmap_let_go(h->bm);
    return 0;
}

static void co_release_bitmaps(struct transaction *t)
{
    for (size_t i = 0; i < t->n_held; i++) {
        if (t->held[i].bm)
            (void)co_node_call(t->held[i].node, let_go_there, &t->held[i]);
        node_unref(t->held[i].node);
    }
    free(t->held);
}

/* ---- the whole -------------------------------------------------------------------------- */

bool co_transaction(const struct qmp_call *call, struct action *actions, size_t n, bool group,
                    struct err *err)
{
    CLEANUP(job_txn_unref) struct job_txn *job_txn = group ? job_txn_new() : NULL;
    struct transaction t = { 0 };
    bool ok = true;
    size_t prepared;

    for (prepared = 0; prepared < n; prepared++) {
        struct action *a = &actions[prepared];

        a->call = call;
        a->txn = &t;
        a->group = job_txn;
        a->state = xzalloc(a->ops->state_size + 1);
        ok = a->ops->co_prepare(a, err);
        if (!ok)
            break;
    }
    ok = ok && co_cut_all(actions, n, err);
    if (ok)
        co_commit_all(actions, n, job_txn);
    else
        co_abort_all(actions, prepared);
    co_clean_all(actions, prepared);
    co_release_bitmaps(&t);
    for (size_t i = 0; i < n; i++)
        free(MOVE(actions[i].state));
    return ok;
}

bool co_transaction_single(const struct qmp_call *call, const struct action_ops *ops,
                           const void *args, void *ret, struct err *err)
{
    struct action a = { .ops = ops, .args = args, .ret = ret };

    return co_transaction(call, &a, 1, false, err);
}
