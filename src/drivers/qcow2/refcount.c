/* SPDX-License-Identifier: Apache-2.0
 *
 * Giving out host clusters and taking them back. A cluster is free when its
 * refcount in the cache is 0; giving it out sets 1 in the cache at once, so two
 * coroutines never get the same. What is in the cache reaches the disk before any
 * entry that uses it (I-Q1, sync.c); a refcount that is too high on disk is a
 * leak, so this cache may be written back at any time and in any order.
 */
#include "drivers/qcow2/qcow2.h"

/* ---- where a refcount is ------------------------------------------------- */

struct place {
    uint64_t slice;              /* host offset of its slice; 0: there is no block */
    uint64_t first;              /* cluster of the slice's first refcount */
    uint32_t index;              /* in the slice */
};

static struct place find_place(const struct qcow2 *s, uint64_t cluster)
{
    uint64_t block = cluster >> s->ref_block_bits;
    uint64_t in_block = cluster & ((1ULL << s->ref_block_bits) - 1);
    struct place p = {
        .first = align_down(cluster, 1ULL << s->ref_slice_bits),
        .index = (uint32_t)(cluster & ((1ULL << s->ref_slice_bits) - 1)),
    };

    if (block < s->reftable.n && s->reftable.v[block])
        p.slice = s->reftable.v[block] + (in_block >> s->ref_slice_bits) *
                                             qcow2_cache_slice_bytes(s->refcounts);
    return p;
}

static inline uint32_t slice_entries(const struct qcow2 *s)
{
    return 1U << s->ref_slice_bits;
}

/* ---- the cache's two functions ------------------------------------------- */

static int co_load_slice(void *ctx, uint64_t off, void *buf)
{
    struct qcow2 *s = ctx;

    return co_qcow2_meta_read(s, off, qcow2_cache_slice_bytes(s->refcounts), buf);
}

static int co_store_slice(void *ctx, uint64_t off, const void *buf)
{
    struct qcow2 *s = ctx;

    return co_qcow2_meta_write(s, off, qcow2_cache_slice_bytes(s->refcounts), buf);
}

int co_qcow2_store_refcounts(struct qcow2 *s)
{
    int r;

    co_mutex_lock(&s->store_lock);
    qcow2_cache_freeze(s->refcounts);
    r = co_qcow2_cache_write_frozen(s->refcounts);
    qcow2_cache_thaw(s->refcounts, r == 0);
    co_mutex_unlock(&s->store_lock);
    return r;
}

static int co_make_room(void *ctx)
{
    return co_qcow2_store_refcounts(ctx);
}

const struct qcow2_cache_ops qcow2_refcount_cache_ops = {
    .co_load = co_load_slice,
    .co_store = co_store_slice,
    .co_make_room = co_make_room,
};

int co_qcow2_refcount(struct qcow2 *s, uint64_t cluster, uint64_t *ret)
{
    struct place p = find_place(s, cluster);
    const void *slice;
    int r;

    *ret = 0;
    if (!p.slice)
        return 0;
    r = co_qcow2_cache_get(s->refcounts, p.slice, &slice);
    if (r == 0)
        *ret = qcow2_refcount_get(slice, s->geo.refcount_order, p.index);
    return r;
}

/* ---- giving out ---------------------------------------------------------- */

/* Take the first free run at or after free_hint, if it lies in the slice @p, which
 * is in the cache. ret->n stays 0 if there is none: the hint is past the slice then. */
static int take_from_slice(struct qcow2 *s, const struct place *p, const void *slice,
                           uint32_t want, struct qcow2_space *ret)
{
    unsigned order = s->geo.refcount_order;
    size_t run, at = qcow2_refcount_find_free(slice, order, p->index, slice_entries(s), want, &run);
    void *counts;
    int r;

    s->free_hint = p->first + at;
    if (!run)
        return 0;
    r = qcow2_cache_modify(s->refcounts, p->slice, &counts);
    if (r < 0)
        return r;
    for (size_t i = at; i < at + run; i++)
        qcow2_refcount_set(counts, order, i, 1);
    ret->host = s->free_hint << s->geo.cluster_bits;
    ret->n = (uint32_t)run;
    s->free_hint += run;
    return 0;
}

/* Look in the slice that free_hint points into. */
static int co_take_at_hint(struct qcow2 *s, uint32_t want, struct qcow2_space *ret)
{
    struct place p = find_place(s, s->free_hint);
    const void *slice;
    int r;

    ret->n = 0;
    if (!p.slice)
        return co_qcow2_add_refblock(s, s->free_hint >> s->ref_block_bits);
    r = co_qcow2_cache_get(s->refcounts, p.slice, &slice);
    if (r < 0)
        return r;

    struct place now = find_place(s, s->free_hint);

    if (now.slice != p.slice)      /* others took or freed while it was loaded */
        return 0;
    return take_from_slice(s, &now, slice, want, ret);
}

/* Whether what was taken can be used (I-Q8), and make the file long enough. */
static int co_check_taken(struct qcow2 *s, struct qcow2_space *space)
{
    uint64_t bytes = space->n * s->cluster_size, end = space->host + bytes;
    int r;

    if (end > QCOW2_MAX_HOST_OFFSET)
        return -EFBIG;
    if (qcow2_is_metadata(s, space->host, bytes))
        return co_qcow2_mark_corrupt(s, "the allocation of clusters that hold metadata",
                                     space->host, bytes);
    space->fresh = space->host >= s->fresh_from;
    if (s->fresh_from != UINT64_MAX)
        s->fresh_from = MAX(s->fresh_from, end);
    r = co_qcow2_host_grow(s, end);
    s->wrote = true;
    return r;
}

int co_qcow2_alloc(struct qcow2 *s, uint32_t want, struct qcow2_space *ret)
{
    struct qcow2_space space = { 0 };
    int r;

    do {
        r = co_take_at_hint(s, want, &space);
    } while (r == 0 && !space.n);
    if (r < 0)
        return r;
    r = co_check_taken(s, &space);
    if (r < 0) {
        if (s->write_ready) {
            int ignored = co_qcow2_unref(s, space.host >> s->geo.cluster_bits, space.n);

            (void)ignored;      /* a leak; the first error is the one to tell */
        }
        return r;
    }
    *ret = space;
    return 0;
}

int qcow2_ref_more(struct qcow2 *s, uint64_t cluster)
{
    struct place p = find_place(s, cluster);
    unsigned order = s->geo.refcount_order;
    const void *slice = p.slice ? qcow2_cache_find(s->refcounts, p.slice) : NULL;
    uint64_t count;
    void *counts;
    int r;

    if (!slice)
        return -EAGAIN;
    count = qcow2_refcount_get(slice, order, p.index);
    if (count == qcow2_refcount_max(order))
        return -ERANGE;
    r = qcow2_cache_modify(s->refcounts, p.slice, &counts);
    if (r == 0)
        qcow2_refcount_set(counts, order, p.index, count + 1);
    return r;
}

/* ---- taking back --------------------------------------------------------- */

/* The part of [first, first + n) that lies in one slice, which is in the cache. */
static int unref_in_slice(struct qcow2 *s, const struct place *p, uint32_t n, bool *ret_corrupt)
{
    unsigned order = s->geo.refcount_order;
    void *counts;
    int r = qcow2_cache_modify(s->refcounts, p->slice, &counts);

    if (r < 0)
        return r;
    for (uint32_t i = p->index; i < p->index + n; i++) {
        uint64_t count = qcow2_refcount_get(counts, order, i);

        if (!count) {
            *ret_corrupt = true;
            return 0;
        }
        qcow2_refcount_set(counts, order, i, count - 1);
        if (count == 1) {
            s->free_hint = MIN(s->free_hint, p->first + i);
            qcow2_pack_close(s, p->first + i, 1);
        }
    }
    return 0;
}

int co_qcow2_unref(struct qcow2 *s, uint64_t first, uint32_t n)
{
    while (n) {
        struct place p = find_place(s, first);
        uint32_t part = MIN(n, slice_entries(s) - p.index);
        bool corrupt = !p.slice;
        const void *slice;
        int r = 0;

        if (p.slice)
            r = co_qcow2_cache_get(s->refcounts, p.slice, &slice);
        if (r == 0 && p.slice)
            r = unref_in_slice(s, &p, part, &corrupt);
        if (r == 0 && corrupt)
            r = co_qcow2_mark_corrupt(s, "a reference given up that was not counted",
                                      first << s->geo.cluster_bits, part * s->cluster_size);
        if (r < 0)
            return r;
        first += part;
        n -= part;
    }
    return 0;
}
