/* SPDX-License-Identifier: Apache-2.0
 *
 * What a keeper does that nobody waits for: beats while the disk is in use, syncs that let
 * regions out of the log, bits and directories after commands; and closing.
 *
 * One coroutine at a time does it, started by a change or by the timer; it ends when
 * there is nothing to do, so that an idle disk costs nothing.
 */
#include "base/log.h"
#include "base/mem.h"
#include "sidecar/impl.h"

/* While the disk is in use the beat is at most so old, for writes of ours that took long;
 * and so long after its last request, for what drivers write back later. */
#define BEAT_PERIOD_NS (100 * NSEC_PER_MSEC)
#define IN_USE_NS ((int64_t)(30 * NSEC_PER_SEC))
/* A region stays in the log for one to two of these after its last new bit. */
#define SYNC_PERIOD_NS (5 * NSEC_PER_SEC)

static bool is_behind(const struct sidecar *s)
{
    const struct kept *k;

    if (s->stale)
        return true;
    list_for_each(k, &s->kept, link) {
        if (k->bm && k->behind && !dirty_bitmap_inconsistent(k->bm))
            return true;
    }
    return false;
}

/* Under the lock. */
static int co_catch_up(struct sidecar *s)
{
    struct kept *k;
    int r = 0;

    if (s->stale)
        r = co_sidecar_store(s, SIDECAR_OPEN);
    list_for_each(k, &s->kept, link) {
        if (r == 0 && k->behind)
            r = co_sidecar_tidy(s, k);
    }
    return r;
}

/* Not by who works: beats go on while the disk takes its time. What cannot be flushed stays
 * dirty in the file, and the timer tries again. */
static void co_flush(void *arg)
{
    struct sidecar *s = arg;
    uint64_t clears = s->clears;

    if (co_node_flush(s->node) == 0) {
        s->flushed = MAX(s->flushed, clears);
        sidecar_kick(s);
    }
    s->flushing = false;
    waitq_wake_all(&s->idle);
}

static void co_work_once(struct sidecar *s)
{
    int r = 0;

    if (!s->failed && !s->flushing && s->flushed < s->clears) {
        s->flushing = true;
        co_start(co_flush, s);
    }

    if (!s->failed && sidecar_beat_due(s, sidecar_now_ns()) &&
        sidecar_now_ns() - s->used_ns < IN_USE_NS)
        co_sidecar_beat(s);
    co_mutex_lock(&s->lock);
    if (!s->failed && is_behind(s))
        r = co_catch_up(s);
    if (r < 0)
        co_sidecar_fail(s, r, "bitmaps could not be written");
    co_mutex_unlock(&s->lock);
    if (!s->failed && (s->unsynced || bitmap_count(s->marked)) &&
        loop_now() - s->synced_at >= SYNC_PERIOD_NS)
        co_sidecar_sync_all(s);
}

static void arm(struct sidecar *s)
{
    bool in_use = sidecar_now_ns() - s->used_ns < IN_USE_NS;

    if (s->failed || s->detached)
        return;
    if (in_use)
        loop_timer_arm(&s->timer, loop_now() + BEAT_PERIOD_NS);
    else if (s->unsynced || bitmap_count(s->marked))
        loop_timer_arm(&s->timer, s->synced_at + SYNC_PERIOD_NS);
}

static void co_work(void *arg)
{
    struct sidecar *s = arg;

    do {
        s->again = false;
        co_work_once(s);
    } while (s->again && !s->detached);
    s->working = false;
    arm(s);
    waitq_wake_all(&s->idle);
}

void sidecar_kick(struct sidecar *s)
{
    s->again = true;
    if (s->working || s->detached)
        return;
    s->working = true;
    loop_timer_cancel(&s->timer);
    co_start(co_work, s);
}

void sidecar_on_timer(void *arg)
{
    sidecar_kick(arg);
}

/* ---- what others wait for ---------------------------------------------------------- */

bool co_sidecar_settle(struct dirty_keeper *keeper, struct err *err)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);
    int r = 0;

    while (!s->failed && (is_behind(s) || s->flushed < s->clears)) {
        uint64_t clears = s->clears;

        /* Without the lock, which guests' writes may wait for. */
        r = co_node_flush(s->node);
        if (r < 0)
            return err_errno(err, r, "The image of node '%s' could not be flushed", s->node->name);
        s->flushed = MAX(s->flushed, clears);
        co_mutex_lock(&s->lock);
        if (!s->failed)
            r = co_catch_up(s);
        if (r < 0)
            co_sidecar_fail(s, r, "bitmaps could not be written");
        co_mutex_unlock(&s->lock);
    }
    co_mutex_lock(&s->lock);
    if (r == 0 && !s->failed && s->unsynced)
        r = co_sidecar_sync(&s->f);
    if (r < 0)
        co_sidecar_fail(s, r, "bitmaps could not be written");
    co_mutex_unlock(&s->lock);
    return !s->failed ||
           err_set(err, -EIO, "The dirty bitmaps of node '%s' cannot be kept any more in '%s'; the "
                   "log of this process says why. Open the disk again", s->node->name, s->f.path);
}

static void co_stop(struct sidecar *s)
{
    s->detached = true;
    loop_timer_cancel(&s->timer);
    while (s->working || s->flushing)
        co_waitq_wait(&s->idle);
}

void co_sidecar_detach(struct dirty_keeper *keeper)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);

    co_stop(s);
}

void co_sidecar_attach(struct dirty_keeper *keeper)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);

    s->detached = false;
    sidecar_kick(s);
}

/* ---- the end -------------------------------------------------------------------------- */

/* The image has them as they are, and says so by itself from now on; or there are none. */
static bool has_nothing_to_say(struct sidecar *s)
{
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(s->node, bm));) {
        if (dirty_bitmap_persistent(bm) && !dirty_bitmap_stored(bm))
            return false;
    }
    return true;
}

static void co_finish(struct sidecar *s)
{
    struct kept *k;
    int r = 0;

    if (has_nothing_to_say(s)) {
        r = co_sidecar_file_unlink(&s->f);
        if (r < 0)
            log_warn("could not remove '%s', which is of no more use: %s", s->f.path,
                     strerror(-r));
        return;
    }
    list_for_each(k, &s->kept, link) {
        if (r == 0)
            r = co_sidecar_tidy(s, k);
    }
    /* I-S5: bits on the disk before the header vouches for them. */
    if (r == 0)
        r = co_sidecar_sync(&s->f);
    if (r == 0) {
        bitmap_clear_all(s->marked);
        r = co_sidecar_store(s, SIDECAR_CLEAN);
    }
    if (r < 0)
        co_sidecar_fail(s, r, "it could not be closed");
}

/* The driver has written back what it held, and may be closed: what lies below it. */
static void co_flush_storages(struct sidecar *s)
{
    struct node_storage storages[NODE_STORAGES_MAX];
    unsigned count = co_node_storages(s->node, storages);
    int r = 0;

    for (unsigned i = 0; i < count && r == 0; i++)
        r = co_node_flush(storages[i].protocol);
    if (r == 0)
        s->flushed = s->clears;
}

void co_sidecar_close(struct dirty_keeper *keeper)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);

    co_stop(s);
    if (s->flushed < s->clears)
        co_flush_storages(s);
    co_mutex_lock(&s->lock);
    if (!s->failed)
        co_finish(s);
    co_mutex_unlock(&s->lock);
    node_set_dirty_keeper(s->node, NULL);
    co_sidecar_file_close(&s->f);
    sidecar_free(s);
}
