/* SPDX-License-Identifier: Apache-2.0
 *
 * Write-back of metadata in the order that makes a crash leak clusters at worst,
 * and the life of clusters that are given up.
 *
 * One write-back takes the metadata of the moment at which it begins (freeze) and
 * brings that to the disk whatever changes meanwhile:
 *
 *     freeze L1 and refcount tables and L2 slices; take the dropped runs
 *     refcount slices                        (as they are: a count too high leaks)
 *       or, lazy, the dirty bit and a flush  I-Q10: instead, once
 *     flush, refcount table, if it changed   I-Q2: blocks before the table's entries
 *     flush (the data file too)              I-Q1, I-Q3: data, refcounts and new L2
 *     L2 slices, L1 table                      tables before entries that use them
 *     flush
 *     the dropped runs are freed             I-Q4: no entry on disk names them
 *
 * Flushes that come while one runs wait for the next, together. Freed runs wait
 * for the requests that may have seen their entries (the time of grace, I-Q5);
 * then the reaper discards and unrefs them, which is when they can be found free.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"

/* ---- runs ---------------------------------------------------------------- */

static void runs_add(struct qcow2_runs *runs, const struct qcow2_run *run)
{
    struct qcow2_run *last = runs->n ? &runs->v[runs->n - 1] : NULL;

    if (last && last->first + last->n == run->first && last->punch == run->punch &&
        last->n <= UINT32_MAX - run->n) {
        last->n += run->n;
        return;
    }
    if (runs->n == runs->cap) {
        runs->cap = MAX(runs->cap * 2, (size_t)16);
        runs->v = xrealloc(runs->v, runs->cap * sizeof(*runs->v));
    }
    runs->v[runs->n++] = *run;
}

static struct qcow2_runs runs_take(struct qcow2_runs *runs)
{
    struct qcow2_runs taken = *runs;

    *runs = (struct qcow2_runs){ 0 };
    return taken;
}

static void runs_append(struct qcow2_runs *to, struct qcow2_runs *from)
{
    if (!to->n) {
        free(to->v);
        *to = runs_take(from);
        return;
    }
    for (size_t i = 0; i < from->n; i++)
        runs_add(to, &from->v[i]);
    free(from->v);
    *from = (struct qcow2_runs){ 0 };
}

void qcow2_drop_clusters(struct qcow2 *s, uint64_t first, uint32_t n, bool punch)
{
    struct qcow2_run run = { .first = first, .n = n, .punch = punch };

    runs_add(&s->dropped, &run);
}

/* ---- the reaper ---------------------------------------------------------- */

/* Wait until every request has ended that is under way now. */
static void co_grace(struct qcow2 *s)
{
    unsigned old = s->epoch & 1;

    s->epoch++;
    while (s->in_flight[old])
        co_waitq_wait(&s->drained);
}

/* How many clusters from @first on, at most @most, are alike in this: whether they
 * have no other reference than the one that is given up. */
static int co_sole_references(struct qcow2 *s, uint64_t first, uint32_t most, uint32_t *ret_n,
                              bool *ret_sole)
{
    uint64_t count;
    int r = co_qcow2_refcount(s, first, &count);
    bool sole = count == 1;
    uint32_t n = 1;

    while (r == 0 && n < most) {
        r = co_qcow2_refcount(s, first + n, &count);
        if ((count == 1) != sole)
            break;
        n++;
    }
    *ret_n = n;
    *ret_sole = sole;
    return r;
}

static int co_release(struct qcow2 *s, const struct qcow2_run *run)
{
    uint64_t end = run->first + run->n;
    uint32_t n = run->n;
    bool sole;

    /* A cluster that has its last reference must not get another from here on. */
    qcow2_pack_close(s, run->first, run->n);
    for (uint64_t at = run->first; at < end; at += n) {
        int r = s->stopped ? -EIO : co_sole_references(s, at, (uint32_t)(end - at), &n, &sole);

        /* It must have ended before the clusters can be found free, or it would hit
         * their next owner's data. It may fail: then the file keeps the space. */
        if (r == 0 && sole && run->punch && !s->stopped) {
            int ignored = co_node_discard(s->file, at * s->cluster_size, n * s->cluster_size);

            (void)ignored;
        }
        if (r == 0) {
            qcow2_unpacker_drop(s, at, n);
            r = co_qcow2_unref(s, at, n);
        }
        if (r < 0)
            return r;
    }
    return 0;
}

static void co_reap(void *arg)
{
    struct qcow2 *s = arg;

    while (s->freed.n) {
        struct qcow2_runs runs = runs_take(&s->freed);

        co_grace(s);
        for (size_t i = 0; i < runs.n; i++) {
            int r = co_release(s, &runs.v[i]);

            (void)r;        /* what cannot be released is leaked */
        }
        free(runs.v);
        s->reaps++;
        waitq_wake_all(&s->reaped);
    }
    s->reaping = false;
    waitq_wake_all(&s->reaped);
}

static void free_runs(struct qcow2 *s, struct qcow2_runs *runs)
{
    runs_append(&s->freed, runs);
    if (s->freed.n && !s->reaping) {
        s->reaping = true;
        co_start(co_reap, s);
    }
}

/* ---- a write-back -------------------------------------------------------- */

static int co_write_meta(void *ctx, uint64_t off, const void *buf, uint32_t bytes)
{
    return co_qcow2_meta_write(ctx, off, bytes, buf);
}

static int freeze(struct qcow2 *s)
{
    int r = qcow2_table_freeze(&s->l1);

    if (r < 0)
        return r;
    r = qcow2_table_freeze(&s->reftable);
    if (r < 0) {
        qcow2_table_thaw(&s->l1, false);
        return r;
    }
    qcow2_cache_freeze(s->l2);
    return 0;
}

/* I-Q9: after a failure nobody can tell what of all that was written before is
 * there; the next flush might succeed and have lost it. */
int co_qcow2_flush_data(struct qcow2 *s)
{
    int r = s->geo.data_file ? co_node_flush(s->data) : 0;

    if (r < 0)
        s->flush_error = r;
    return s->flush_error;
}

int co_qcow2_flush_file(struct qcow2 *s)
{
    int r = co_node_flush(s->file);

    if (r < 0)
        s->flush_error = r;
    return s->flush_error;
}

/* Refcounts come first; with lazy ones it is enough that the image says that they
 * may be wrong (I-Q10). Those that were pushed out of the cache are on disk. */
static int co_secure_refcounts(struct qcow2 *s)
{
    if (!s->lazy)
        return co_qcow2_store_refcounts(s);
    return qcow2_cache_is_dirty(s->refcounts) ? co_qcow2_mark_dirty(s) : 0;
}

static int co_write_frozen(struct qcow2 *s)
{
    int r = co_secure_refcounts(s);

    if (r == 0 && s->reftable.n_frozen) {
        r = co_qcow2_flush_file(s);
        if (r == 0)
            r = co_qcow2_table_write_frozen(&s->reftable, co_write_meta, s);
    }
    if (r == 0)
        r = co_qcow2_flush_data(s);
    if (r == 0 && (s->l1.n_frozen || qcow2_cache_has_frozen(s->l2))) {
        r = co_qcow2_flush_file(s);
        if (r == 0)
            r = co_qcow2_cache_write_frozen(s->l2);
        if (r == 0)
            r = co_qcow2_table_write_frozen(&s->l1, co_write_meta, s);
    }
    return r < 0 ? r : co_qcow2_flush_file(s);
}

int co_qcow2_sync_locked(struct qcow2 *s)
{
    int r = s->stopped ? -EIO : freeze(s);

    if (r < 0)
        return r;

    struct qcow2_runs dropped = runs_take(&s->dropped);

    r = co_write_frozen(s);
    qcow2_table_thaw(&s->l1, r == 0);
    qcow2_table_thaw(&s->reftable, r == 0);
    qcow2_cache_thaw(s->l2, r == 0);
    if (r == 0)
        free_runs(s, &dropped);
    else
        runs_append(&s->dropped, &dropped);
    return r;
}

/* ---- whoever wants one --------------------------------------------------- */

/* One write-back and those who wait for it. */
struct qcow2_round {
    unsigned refs;
    bool done;
    int result;
    struct waitq waiters;
};

static void round_unref(struct qcow2_round *round)
{
    if (--round->refs == 0)
        free(round);
}

static int co_join_round(struct qcow2_round *round)
{
    int r;

    round->refs++;
    while (!round->done)
        co_waitq_wait(&round->waiters);
    r = round->result;
    round_unref(round);
    return r;
}

int co_qcow2_sync(struct qcow2 *s)
{
    struct qcow2_round *round;
    int r;

    if (s->next_round)
        return co_join_round(s->next_round);
    round = xnew(struct qcow2_round);
    round->refs = 1;
    waitq_init(&round->waiters);
    s->next_round = round;
    co_mutex_lock(&s->sync_lock);
    s->next_round = NULL;           /* from here on it is too late to join */
    r = round->result = co_qcow2_sync_locked(s);
    co_mutex_unlock(&s->sync_lock);
    round->done = true;
    waitq_wake_all(&round->waiters);
    round_unref(round);
    return r;
}

static bool anything_dirty(const struct qcow2 *s)
{
    return qcow2_cache_is_dirty(s->l2) || (!s->lazy && qcow2_cache_is_dirty(s->refcounts)) ||
           qcow2_table_is_dirty(&s->l1) || qcow2_table_is_dirty(&s->reftable) || s->dropped.n;
}

int co_qcow2_flush(struct node *n)
{
    struct qcow2 *s = n->state;

    if (n->read_only)
        return 0;
    if (anything_dirty(s))
        return co_qcow2_sync(s);

    int r = co_qcow2_flush_data(s);

    return r < 0 ? r : co_qcow2_flush_file(s);
}

static void co_sync_in_background(void *arg)
{
    struct qcow2 *s = arg;

    int r = co_qcow2_sync(s);

    (void)r;        /* a failure shows again where somebody waits, at the next flush */
    s->sync_started = false;
    waitq_wake_all(&s->reaped);
}

void qcow2_sync_soon(struct qcow2 *s)
{
    if (s->sync_started ||
        !(qcow2_cache_wants_writeback(s->l2) || s->dropped.n > LIMIT_QCOW2_FREED_RUNS / 2))
        return;
    s->sync_started = true;
    co_start(co_sync_in_background, s);
}

void co_qcow2_wait_freed(struct qcow2 *s)
{
    uint64_t before = s->reaps;

    /* The reaper may be at older runs now; the next that it takes are all there are. */
    while (s->reaping && s->reaps < before + 2)
        co_waitq_wait(&s->reaped);
}

void co_qcow2_quiesce(struct qcow2 *s)
{
    while (s->sync_started || s->reaping)
        co_waitq_wait(&s->reaped);
}
