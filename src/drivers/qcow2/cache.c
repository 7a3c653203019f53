/* SPDX-License-Identifier: Apache-2.0
 *
 * The metadata cache, see cache.h. Every entry is on one list: loading ones on
 * none, clean ones on `clean` (most recently used first), dirty ones on `dirty`;
 * frozen ones are on `frozen` by a link of its own.
 */
#include "drivers/qcow2/cache.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/range.h"

struct entry {
    struct list lru;            /* clean or dirty */
    struct list frozen_link;    /* on cache->frozen, to be written */
    struct entry *next;         /* in its bucket */
    uint64_t off;
    void *data;
    void *frozen_data;          /* what to write, once `data` went on without it */
    bool loading, dirty, frozen;
    bool dropped;               /* while loading or frozen: nobody can find it */
};

struct qcow2_cache {
    const struct qcow2_cache_ops *ops;
    void *ctx;
    uint32_t slice_bytes;
    uint64_t max_entries, n_entries, n_dirty, n_frozen;
    size_t n_buckets;           /* power of two */
    struct entry **buckets;
    struct list clean, dirty;
    struct list frozen;         /* not written yet */
    struct list written;        /* frozen, and written */
    struct waitq changed;       /* a load ended, a thaw came: look again */
};

struct qcow2_cache *qcow2_cache_new(const struct qcow2_cache_ops *ops, void *ctx,
                                    uint32_t slice_bytes, uint64_t max_entries)
{
    struct qcow2_cache *c = xnew(struct qcow2_cache);

    assert(is_power_of_2(slice_bytes));
    c->ops = ops;
    c->ctx = ctx;
    c->slice_bytes = slice_bytes;
    c->max_entries = MAX(max_entries, (uint64_t)QCOW2_CACHE_MIN_ENTRIES);
    for (c->n_buckets = 16; c->n_buckets < c->max_entries; c->n_buckets *= 2)
        ;
    c->buckets = xcalloc(c->n_buckets, sizeof(*c->buckets));
    list_init(&c->clean);
    list_init(&c->dirty);
    list_init(&c->frozen);
    list_init(&c->written);
    waitq_init(&c->changed);
    return c;
}

static void entry_free(struct entry *e)
{
    free(e->frozen_data);
    free(e->data);
    free(e);
}

void qcow2_cache_free(struct qcow2_cache *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n_buckets; i++) {
        for (struct entry *e = c->buckets[i], *next; e; e = next) {
            next = e->next;
            entry_free(e);
        }
    }
    free(c->buckets);
    free(c);
}

uint32_t qcow2_cache_slice_bytes(const struct qcow2_cache *c)
{
    return c->slice_bytes;
}

/* ---- finding ------------------------------------------------------------- */

static struct entry **bucket(const struct qcow2_cache *c, uint64_t off)
{
    /* Neighbouring slices spread over neighbouring buckets; tables of one size lie
     * a power of two apart, so the upper bits are mixed in. */
    uint64_t i = off / c->slice_bytes * 0x9e3779b97f4a7c15ULL;

    return &c->buckets[(i >> 32) & (c->n_buckets - 1)];
}

static struct entry *lookup(const struct qcow2_cache *c, uint64_t off)
{
    struct entry *e = *bucket(c, off);

    while (e && e->off != off)
        e = e->next;
    return e;
}

static void touch(struct qcow2_cache *c, struct entry *e)
{
    if (e->dirty || e->frozen || c->clean.next == &e->lru)
        return;
    list_del(&e->lru);
    list_push_head(&c->clean, &e->lru);
}

const void *qcow2_cache_find(struct qcow2_cache *c, uint64_t off)
{
    struct entry *e = lookup(c, off);

    if (UNLIKELY(!e || e->loading))
        return NULL;
    touch(c, e);
    return e->data;
}

/* ---- coming and going ---------------------------------------------------- */

static void insert(struct qcow2_cache *c, struct entry *e)
{
    struct entry **b = bucket(c, e->off);

    e->next = *b;
    *b = e;
}

static void unhash(struct qcow2_cache *c, struct entry *e)
{
    struct entry **at = bucket(c, e->off);

    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
}

static struct entry *entry_new(struct qcow2_cache *c)
{
    struct entry *e = xnew(struct entry);

    if (posix_memalign(&e->data, MIN(c->slice_bytes, 4096U), c->slice_bytes) != 0) {
        free(e);
        return NULL;
    }
    list_init(&e->lru);
    list_init(&e->frozen_link);
    c->n_entries++;
    return e;
}

static void forget(struct qcow2_cache *c, struct entry *e)
{
    list_del(&e->lru);
    c->n_entries--;
    entry_free(e);
}

/* An entry that belongs to nobody; may suspend (then the world has changed and
 * the caller, who gets NULL and 0 from us, looks again). */
static int co_take_entry(struct qcow2_cache *c, struct entry **ret)
{
    *ret = NULL;
    if (c->n_entries < c->max_entries) {
        *ret = entry_new(c);
        if (*ret)
            return 0;
        if (!c->n_entries)
            return -ENOMEM;
    }
    if (!list_empty(&c->clean)) {
        struct entry *e = list_entry(c->clean.prev, struct entry, lru);

        list_del(&e->lru);
        unhash(c, e);
        *ret = e;
        return 0;
    }
    if (c->n_frozen || !c->n_dirty) {      /* being written back, or all loading */
        co_waitq_wait(&c->changed);
        return 0;
    }
    return c->ops->co_make_room(c->ctx);
}

/* Fill the fresh entry @e from the file. It is found as loading meanwhile. */
static int co_load(struct qcow2_cache *c, struct entry *e)
{
    int r = c->ops->co_load(c->ctx, e->off, e->data);

    e->loading = false;
    waitq_wake_all(&c->changed);
    if (e->dropped) {
        forget(c, e);
        return -EAGAIN;
    }
    if (r < 0) {
        unhash(c, e);
        forget(c, e);
        return r == -EAGAIN ? -EIO : r;
    }
    list_push_head(&c->clean, &e->lru);
    return 0;
}

static void drop_one(struct qcow2_cache *c, struct entry *e)
{
    unhash(c, e);
    if (e->dirty) {
        e->dirty = false;
        c->n_dirty--;
        list_del(&e->lru);
    }
    if (e->loading || e->frozen)
        e->dropped = true;          /* whoever is at it frees it */
    else
        forget(c, e);
}

/* Get @off in; @zero: without asking the file. */
static int co_bring_in(struct qcow2_cache *c, uint64_t off, bool zero, const void **ret)
{
    for (;;) {
        struct entry *e = lookup(c, off);

        if (e && zero) {
            drop_one(c, e);             /* of another time */
            e = NULL;
        }
        if (e && !e->loading) {
            touch(c, e);
            *ret = e->data;
            return 0;
        }
        if (e) {
            co_waitq_wait(&c->changed);
            continue;
        }

        int r = co_take_entry(c, &e);

        if (r < 0)
            return r;
        if (!e)
            continue;
        e->off = off;
        insert(c, e);
        if (zero) {
            memset(e->data, 0, c->slice_bytes);
            list_push_head(&c->clean, &e->lru);
            *ret = e->data;
            return 0;
        }
        e->loading = true;
        r = co_load(c, e);
        if (r == -EAGAIN)
            continue;
        if (r < 0)
            return r;
        *ret = e->data;
        return 0;
    }
}

int co_qcow2_cache_get(struct qcow2_cache *c, uint64_t off, const void **ret)
{
    assert(is_aligned(off, c->slice_bytes));
    return co_bring_in(c, off, false, ret);
}

int co_qcow2_cache_put_zero(struct qcow2_cache *c, uint64_t off)
{
    const void *data;

    assert(is_aligned(off, c->slice_bytes));
    return co_bring_in(c, off, true, &data);
}

int qcow2_cache_modify(struct qcow2_cache *c, uint64_t off, void **ret)
{
    struct entry *e = lookup(c, off);

    assert(e && !e->loading);
    if (e->frozen && !e->frozen_data) {
        void *copy;

        /* The writer keeps the block that it may have handed to the kernel. */
        if (posix_memalign(&copy, MIN(c->slice_bytes, 4096U), c->slice_bytes) != 0)
            return -ENOMEM;
        memcpy(copy, e->data, c->slice_bytes);
        e->frozen_data = e->data;
        e->data = copy;
    }
    if (!e->dirty) {
        e->dirty = true;
        c->n_dirty++;
        list_del(&e->lru);
        list_push_tail(&c->dirty, &e->lru);
    }
    *ret = e->data;
    return 0;
}

void qcow2_cache_drop(struct qcow2_cache *c, uint64_t off, uint64_t len)
{
    for (uint64_t at = off; at < off + len; at += c->slice_bytes) {
        struct entry *e = lookup(c, at);

        if (e)
            drop_one(c, e);
    }
}

bool qcow2_cache_has_dirty(const struct qcow2_cache *c, uint64_t off, uint64_t len)
{
    for (uint64_t at = off; at < off + len; at += c->slice_bytes) {
        const struct entry *e = lookup(c, at);

        if (e && (e->dirty || e->frozen))
            return true;
    }
    return false;
}

/* ---- writing back -------------------------------------------------------- */

bool qcow2_cache_is_dirty(const struct qcow2_cache *c)
{
    return c->n_dirty || c->n_frozen;
}

bool qcow2_cache_has_frozen(const struct qcow2_cache *c)
{
    return c->n_frozen;
}

bool qcow2_cache_wants_writeback(const struct qcow2_cache *c)
{
    return c->n_dirty > c->max_entries / 2 && !c->n_frozen;
}

void qcow2_cache_freeze(struct qcow2_cache *c)
{
    struct entry *e;

    assert(!c->n_frozen);
    while ((e = list_pop_head(&c->dirty, struct entry, lru))) {
        e->dirty = false;
        e->frozen = true;
        list_push_tail(&c->frozen, &e->frozen_link);
        c->n_frozen++;
    }
    c->n_dirty = 0;
}

struct writers {
    struct qcow2_cache *c;
    unsigned running;
    int result;
    struct waitq done;
};

static void co_write_some(struct writers *w)
{
    struct entry *e;

    while (w->result == 0 && (e = list_pop_head(&w->c->frozen, struct entry, frozen_link))) {
        int r = 0;

        list_push_tail(&w->c->written, &e->frozen_link);
        if (!e->dropped)
            r = w->c->ops->co_store(w->c->ctx, e->off, e->frozen_data ?: e->data);
        if (r < 0)
            w->result = r;
    }
}

static void co_writer(void *arg)
{
    struct writers *w = arg;

    co_write_some(w);
    if (--w->running == 0)
        waitq_wake_all(&w->done);
}

int co_qcow2_cache_write_frozen(struct qcow2_cache *c)
{
    struct writers w = { .c = c };

    waitq_init(&w.done);
    for (uint64_t i = 1; i < MIN(c->n_frozen, (uint64_t)LIMIT_QCOW2_PIECES); i++) {
        w.running++;
        co_start(co_writer, &w);
    }
    co_write_some(&w);
    while (w.running)
        co_waitq_wait(&w.done);
    return w.result;
}

static void thaw_one(struct qcow2_cache *c, struct entry *e, bool written)
{
    e->frozen = false;
    free(MOVE(e->frozen_data));
    if (e->dropped) {
        forget(c, e);
    } else if (!written && !e->dirty) {
        e->dirty = true;
        c->n_dirty++;
        list_push_tail(&c->dirty, &e->lru);
    } else if (!e->dirty) {
        list_push_head(&c->clean, &e->lru);
    }
}

void qcow2_cache_thaw(struct qcow2_cache *c, bool written)
{
    struct entry *e;

    list_splice_tail(&c->written, &c->frozen);
    while ((e = list_pop_head(&c->written, struct entry, frozen_link)))
        thaw_one(c, e, written);
    c->n_frozen = 0;
    waitq_wake_all(&c->changed);
}
