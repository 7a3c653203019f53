/* SPDX-License-Identifier: Apache-2.0
 *
 * New refcount blocks, a longer refcount table, and room for tables that need
 * several clusters in one piece.
 *
 * A new block lies in the first cluster that it counts and counts itself, so that
 * nothing else has to be allocated for it. When the table is full a longer one is
 * written to the area behind all that the old one can address, after the blocks
 * which count that area:
 *
 *     | addressed by the old table | block | block ... | the new table |
 *
 * and the header is pointed to it when all of that is on the disk (I-Q2).
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"

static inline uint64_t block_entries(const struct qcow2 *s)
{
    return 1ULL << s->ref_block_bits;
}

/* Fill the host range with zeros, unless that is what it reads as already. */
static int co_zero_new(struct qcow2 *s, uint64_t host, uint64_t bytes)
{
    bool fresh = host >= s->fresh_from;
    int r = co_qcow2_host_grow(s, host + bytes);

    if (s->fresh_from != UINT64_MAX)
        s->fresh_from = MAX(s->fresh_from, host + bytes);
    if (r < 0 || fresh)
        return r;
    return co_node_write_zeroes(s->file, host, bytes, 0);
}

/* ---- a block ------------------------------------------------------------- */

/* Under reftable_lock; the table has an entry for it. */
static int co_make_block(struct qcow2 *s, uint64_t block)
{
    uint64_t cluster = block << s->ref_block_bits, host = cluster << s->geo.cluster_bits;
    void *counts;
    int r;

    if (host >= QCOW2_MAX_HOST_OFFSET)
        return -EFBIG;
    if (qcow2_is_metadata(s, host, s->cluster_size))
        return co_qcow2_mark_corrupt(s, "a refcount block over other metadata", host,
                                     s->cluster_size);
    qcow2_cache_drop(s->refcounts, host, s->cluster_size);
    r = co_zero_new(s, host, s->cluster_size);
    if (r == 0)
        r = co_qcow2_cache_put_zero(s->refcounts, host);
    if (r == 0)
        r = qcow2_cache_modify(s->refcounts, host, &counts);
    if (r < 0)
        return r;
    qcow2_refcount_set(counts, s->geo.refcount_order, 0, 1);
    r = qcow2_metaset_add(&s->meta, cluster);
    if (r < 0) {
        qcow2_cache_drop(s->refcounts, host, s->cluster_size);
        return r;
    }
    qcow2_table_set(&s->reftable, (uint32_t)block, host);
    s->wrote = true;
    return 0;
}

/* ---- the table ----------------------------------------------------------- */

/* An area of new clusters at a block's border: its blocks, then @n clusters. */
struct area {
    uint64_t first_block;
    uint32_t blocks, n;
};

static struct area plan_area(const struct qcow2 *s, uint64_t first_block, uint32_t n)
{
    struct area a = { .first_block = first_block, .blocks = 1, .n = n };

    while (a.blocks + (uint64_t)n > a.blocks * block_entries(s))
        a.blocks = (uint32_t)div_round_up(a.blocks + (uint64_t)n, block_entries(s));
    return a;
}

static uint64_t area_host(const struct qcow2 *s, const struct area *a)
{
    return a->first_block << (s->ref_block_bits + s->geo.cluster_bits);
}

static uint64_t area_table_host(const struct qcow2 *s, const struct area *a)
{
    return area_host(s, a) + a->blocks * s->cluster_size;
}

/* Write the blocks of an area, which count all of it as used. */
static int co_write_area_blocks(struct qcow2 *s, const struct area *a)
{
    CLEANUP(free) void *counts = try_alloc_aligned(s->cluster_size);
    uint64_t used = a->blocks + (uint64_t)a->n;
    int r = 0;

    if (!counts)
        return -ENOMEM;
    for (uint32_t b = 0; b < a->blocks && r == 0; b++) {
        memset(counts, 0, s->cluster_size);
        for (uint64_t i = 0; i < block_entries(s) && used; i++, used--)
            qcow2_refcount_set(counts, s->geo.refcount_order, i, 1);
        r = co_qcow2_meta_write(s, area_host(s, a) + b * s->cluster_size, s->cluster_size, counts);
    }
    return r;
}

static int co_prepare_area(struct qcow2 *s, const struct area *a)
{
    uint64_t host = area_host(s, a), bytes = (a->blocks + (uint64_t)a->n) * s->cluster_size;
    int r;

    if (host >= QCOW2_MAX_HOST_OFFSET || bytes > QCOW2_MAX_HOST_OFFSET - host)
        return -EFBIG;
    if (qcow2_is_metadata(s, host, bytes))
        return co_qcow2_mark_corrupt(s, "a refcount table over other metadata", host, bytes);
    qcow2_cache_drop(s->refcounts, host, a->blocks * s->cluster_size);
    if (s->fresh_from != UINT64_MAX)
        s->fresh_from = MAX(s->fresh_from, host + bytes);
    s->wrote = true;
    r = co_qcow2_host_grow(s, host + bytes);
    return r < 0 ? r : co_write_area_blocks(s, a);
}

static void forget_area(struct qcow2 *s, const struct area *a)
{
    for (uint32_t b = 0; b < a->blocks; b++)
        qcow2_metaset_remove(&s->meta, (a->first_block << s->ref_block_bits) + b);
}

/* The blocks of the area become part of @t, in memory. */
static int enter_area(struct qcow2 *s, const struct area *a, struct qcow2_table *t)
{
    uint64_t cluster = a->first_block << s->ref_block_bits;

    for (uint32_t b = 0; b < a->blocks; b++) {
        int r = qcow2_metaset_add(&s->meta, cluster + b);

        if (r < 0) {
            forget_area(s, a);
            return r;
        }
    }
    for (uint32_t b = 0; b < a->blocks; b++)
        qcow2_table_set(t, (uint32_t)(a->first_block + b), (cluster + b) << s->geo.cluster_bits);
    return 0;
}

static int co_write_new_table(struct qcow2 *s, const struct qcow2_table *t)
{
    CLEANUP(free) void *disk = try_alloc_aligned(t->n * 8ULL);

    if (!disk)
        return -ENOMEM;
    qcow2_table_encode(t, disk);
    return co_qcow2_meta_write(s, t->off, t->n * 8ULL, disk);
}

/* Bring the longer table @t and all that it names to the disk, then make it the
 * one that the header names. */
static int co_publish_table(struct qcow2 *s, const struct qcow2_table *t)
{
    int r = co_qcow2_store_refcounts(s);

    if (r == 0)
        r = co_write_new_table(s, t);
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r < 0)
        return r;
    r = co_qcow2_write_reftable_fields(s, t->off,
                                       (uint32_t)(t->n * 8ULL >> s->geo.cluster_bits));
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r < 0)
        qcow2_stop_writing(s);        /* which table counts is not known */
    return r;
}

/* Under reftable_lock and sync_lock: no write-back has chunks of the old table. */
static int co_replace_table(struct qcow2 *s, struct qcow2_table *bigger, const struct area *a)
{
    int r = co_prepare_area(s, a);

    if (r < 0)
        return r;
    bigger->off = area_table_host(s, a);
    memcpy(bigger->v, s->reftable.v, s->reftable.n * sizeof(*bigger->v));
    r = enter_area(s, a, bigger);
    if (r < 0)
        return r;
    r = co_publish_table(s, bigger);
    if (r < 0) {
        forget_area(s, a);
        return r;
    }

    struct qcow2_table old = s->reftable;

    s->reftable = *bigger;
    *bigger = old;
    /* All of it has just been written. */
    memset(s->reftable.chunk_dirty, 0, s->reftable.n_chunks);
    s->reftable.n_dirty = 0;
    return 0;
}

/* Under reftable_lock. */
static int co_lengthen_table(struct qcow2 *s)
{
    uint64_t most = LIMIT_QCOW2_REFTABLE_BYTES >> s->geo.cluster_bits;
    uint32_t clusters = s->header.reftable_clusters;
    uint32_t wanted = (uint32_t)MIN(clusters * 2ULL, most);
    struct qcow2_table bigger;
    struct area a = plan_area(s, s->reftable.n, wanted);
    int r;

    if (wanted <= clusters || s->retreeing)
        return -EFBIG;
    r = qcow2_table_init(&bigger, 0, (uint32_t)(wanted * s->cluster_size / 8));
    if (r < 0)
        return r;
    co_mutex_lock(&s->sync_lock);
    r = co_replace_table(s, &bigger, &a);
    co_mutex_unlock(&s->sync_lock);
    if (r == 0) {
        int ignored = co_qcow2_unref(s, bigger.off >> s->geo.cluster_bits, clusters);

        (void)ignored;      /* at worst the old table's clusters leak */
    }
    qcow2_table_done(&bigger);
    return r;
}

int co_qcow2_add_refblock(struct qcow2 *s, uint64_t block)
{
    int r = 0;

    co_mutex_lock(&s->reftable_lock);
    if (block >= s->reftable.n)
        r = co_lengthen_table(s);
    else if (!s->reftable.v[block])
        r = co_make_block(s, block);
    co_mutex_unlock(&s->reftable_lock);
    return r;
}

/* ---- room for other tables ----------------------------------------------- */

/* One past the last block that the table names. */
static uint32_t end_of_blocks(const struct qcow2 *s)
{
    uint32_t n = s->reftable.n;

    while (n && !s->reftable.v[n - 1])
        n--;
    return n;
}

int co_qcow2_reserve(struct qcow2 *s, uint64_t clusters)
{
    int r = 0;

    co_mutex_lock(&s->reftable_lock);
    while (r == 0 && (s->reftable.n - end_of_blocks(s)) * block_entries(s) < clusters)
        r = co_lengthen_table(s);
    co_mutex_unlock(&s->reftable_lock);
    return r;
}

/* The common case: there is room in one piece where clusters are given out. */
static int co_alloc_in_one_piece(struct qcow2 *s, uint32_t n, uint64_t *ret_host)
{
    struct qcow2_space space;
    int r = co_qcow2_alloc(s, n, &space);

    if (r < 0)
        return r;
    *ret_host = space.host;
    if (space.n == n)
        return 0;
    r = co_qcow2_unref(s, space.host >> s->geo.cluster_bits, space.n);
    return r < 0 ? r : -EAGAIN;
}

/* Otherwise behind all that is counted so far. */
static int co_alloc_area(struct qcow2 *s, uint32_t n, uint64_t *ret_host)
{
    struct area a;
    int r = 0;

    co_mutex_lock(&s->reftable_lock);
    for (;;) {
        a = plan_area(s, end_of_blocks(s), n);
        if (a.first_block + a.blocks <= s->reftable.n)
            break;
        r = co_lengthen_table(s);
        if (r < 0)
            break;
    }
    if (r == 0)
        r = co_prepare_area(s, &a);
    if (r == 0)
        r = enter_area(s, &a, &s->reftable);
    co_mutex_unlock(&s->reftable_lock);
    if (r == 0)
        *ret_host = area_table_host(s, &a);
    return r;
}

int co_qcow2_alloc_table(struct qcow2 *s, uint32_t n, uint64_t *ret_host)
{
    int r = co_alloc_in_one_piece(s, n, ret_host);

    return r == -EAGAIN ? co_alloc_area(s, n, ret_host) : r;
}
