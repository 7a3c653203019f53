/* SPDX-License-Identifier: Apache-2.0
 *
 * A new state of the image's trees beside the old one, see retree.h.
 */
#include "drivers/qcow2/retree.h"
#include "base/limits.h"
#include "base/mem.h"
#include <inttypes.h>

/* L2 tables before others may run: reading them need not suspend. */
#define TABLES_AT_ONCE 16

static const char corrupt[] = "the image is corrupt; 'stillpoint check' tells more";

/* What went wrong with references. */
static bool refs_failed(int r, struct err *err)
{
    switch (r) {
    case -EILSEQ:
        return err_set(err, -EIO, "%s", corrupt);
    case -ERANGE:
        return err_set(err, -ERANGE, "the image's refcounts are too narrow for another snapshot: "
                       "convert it to one with larger refcount_bits");
    default:
        return err_errno(err, r, "could not count references");
    }
}

/* ---- beginning ----------------------------------------------------------- */

static uint32_t clusters_for(const struct qcow2 *s, uint64_t bytes)
{
    return (uint32_t)div_round_up(bytes, s->cluster_size);
}

/* So much room that the refcount table, of which there is to be a copy, stays as
 * long as it is: for every L2 table, every refcount block and the tables, twice, as
 * free clusters need not lie together. */
static int co_reserve(struct qcow2_retree *t)
{
    struct qcow2 *s = t->s;
    uint64_t per_block = 1ULL << s->ref_block_bits;
    uint64_t need = t->l1_entries + s->reftable.n + clusters_for(s, t->l1_entries * 8ULL) +
                    clusters_for(s, t->snapshots_bytes);
    uint32_t before;
    int r;

    do {
        before = s->header.reftable_clusters;
        r = co_qcow2_reserve(s, 2 * (need + before) + 8 * per_block);
    } while (r == 0 && s->header.reftable_clusters != before);
    return r;
}

static int co_alloc_places(struct qcow2_retree *t)
{
    struct qcow2 *s = t->s;
    int r = co_qcow2_alloc_table(s, clusters_for(s, t->l1_entries * 8ULL), &t->trees.l1_off);

    if (r == 0 && t->n_snapshots)
        r = co_qcow2_alloc_table(s, clusters_for(s, t->snapshots_bytes), &t->trees.snapshots_off);
    if (r == 0)
        r = co_qcow2_alloc_table(s, s->header.reftable_clusters, &t->trees.reftable_off);
    return r;
}

static void free_buffers(struct qcow2_retree *t)
{
    free(MOVE(t->copied_blocks));
    free(MOVE(t->table));
    free(MOVE(t->slice));
    bitmap_free(MOVE(t->freed));
}

/* From here on s->reftable is the new one; its entries change as blocks are copied. */
static int enter_copy(struct qcow2_retree *t)
{
    struct qcow2 *s = t->s;
    struct qcow2_table copy;
    int r = qcow2_table_init(&copy, t->trees.reftable_off, s->reftable.n);

    if (r < 0)
        return r;
    t->copied_blocks = calloc(s->reftable.n, sizeof(*t->copied_blocks));
    t->table = try_alloc_aligned(s->cluster_size);
    t->slice = malloc(qcow2_cache_slice_bytes(s->refcounts));
    t->freed = bitmap_new((uint64_t)s->reftable.n << s->ref_block_bits);
    if (!t->copied_blocks || !t->table || !t->slice || !t->freed) {
        free_buffers(t);
        qcow2_table_done(&copy);
        return -ENOMEM;
    }
    memcpy(copy.v, s->reftable.v, s->reftable.n * sizeof(*copy.v));
    t->old_reftable = s->reftable;
    s->reftable = copy;
    return 0;
}

/* Everything in the file as it is in memory, lazy refcounts too, and nothing on its
 * way. */
static int co_come_to_rest(struct qcow2 *s)
{
    int r = 0;

    for (int i = 0; r == 0 && i < 2; i++) {
        co_qcow2_quiesce(s);
        r = co_qcow2_sync(s);
    }
    if (r == 0)
        r = co_qcow2_store_refcounts(s);
    co_qcow2_quiesce(s);
    return r;
}

bool co_qcow2_retree_begin(struct qcow2 *s, struct qcow2_retree *t, struct err *err)
{
    int r = co_qcow2_begin_metadata(s);

    t->s = s;
    t->trees = (struct qcow2_trees){ .size = t->size, .l1_entries = t->l1_entries,
                                     .n_snapshots = t->n_snapshots };
    if (r == 0)
        r = co_come_to_rest(s);
    if (r == 0)
        r = co_reserve(t);
    if (r < 0)
        return err_errno(err, r, "could not write to the image");

    s->retreeing = true;
    r = co_alloc_places(t);
    t->trees.reftable_clusters = s->header.reftable_clusters;
    /* Nobody may write the copy back to where the table is. */
    co_mutex_lock(&s->sync_lock);
    if (r == 0)
        r = enter_copy(t);
    if (r == 0)
        return true;
    co_mutex_unlock(&s->sync_lock);
    s->retreeing = false;
    if (!co_qcow2_reload(s, NULL))
        qcow2_stop_writing(s);
    return err_errno(err, r, "could not make room for new tables");
}

/* ---- references ---------------------------------------------------------- */

/* Copy refcount block @b to a new cluster, as s->reftable has it from now on. */
static int co_copy_block(struct qcow2_retree *t, uint64_t b)
{
    struct qcow2 *s = t->s;
    uint32_t step = qcow2_cache_slice_bytes(s->refcounts);
    uint64_t old = s->reftable.v[b];
    struct qcow2_space space;
    const void *from;
    void *to;
    int r = co_qcow2_alloc(s, 1, &space);

    if (r < 0)
        return r;
    qcow2_cache_drop(s->refcounts, space.host, s->cluster_size);
    for (uint64_t at = 0; at < s->cluster_size; at += step) {
        r = co_qcow2_cache_get(s->refcounts, old + at, &from);
        if (r < 0)
            return r;
        memcpy(t->slice, from, step);
        r = co_qcow2_cache_put_zero(s->refcounts, space.host + at);
        if (r == 0)
            r = qcow2_cache_modify(s->refcounts, space.host + at, &to);
        if (r < 0)
            return r;
        memcpy(to, t->slice, step);
    }
    qcow2_cache_drop(s->refcounts, old, s->cluster_size);
    qcow2_table_set(&s->reftable, (uint32_t)b, space.host);
    t->copied_blocks[b] = true;
    return 0;
}

/* The refcounts of [first, first+n) in a slice, which is in the cache, one up or down. */
static int change_in_slice(struct qcow2_retree *t, void *counts, uint64_t first, uint32_t n,
                           bool drop)
{
    struct qcow2 *s = t->s;
    uint64_t mask = (1ULL << s->ref_slice_bits) - 1;
    unsigned order = s->geo.refcount_order;

    for (uint64_t c = first; c < first + n; c++) {
        uint64_t count = qcow2_refcount_get(counts, order, c & mask);

        if (!count)
            return -EILSEQ;
        if (!drop && count == qcow2_refcount_max(order))
            return -ERANGE;
        if (drop && count == 1) {
            /* Nobody may have it before the new state is the only one. */
            if (!bitmap_set_bit(t->freed, c))
                return -EILSEQ;
            continue;
        }
        qcow2_refcount_set(counts, order, c & mask, drop ? count - 1 : count + 1);
    }
    return 0;
}

static int co_change(struct qcow2_retree *t, uint64_t first, uint64_t n, bool drop)
{
    struct qcow2 *s = t->s;
    uint64_t mask = (1ULL << s->ref_slice_bits) - 1;
    uint32_t part;

    for (; n; first += part, n -= part) {
        uint64_t block = first >> s->ref_block_bits, at;
        const void *ignored;
        void *counts;
        int r = 0;

        part = (uint32_t)MIN(n, mask + 1 - (first & mask));
        if (block >= s->reftable.n || !s->reftable.v[block])
            return -EILSEQ;
        if (!t->copied_blocks[block])
            r = co_copy_block(t, block);
        at = s->reftable.v[block] + ((first & ((1ULL << s->ref_block_bits) - 1)) >>
                                     s->ref_slice_bits) * qcow2_cache_slice_bytes(s->refcounts);
        if (r == 0)
            r = co_qcow2_cache_get(s->refcounts, at, &ignored);
        if (r == 0)
            r = qcow2_cache_modify(s->refcounts, at, &counts);
        if (r == 0)
            r = change_in_slice(t, counts, first, part, drop);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The host clusters that an L2 entry refers to: *ret_n of them from the result on. */
static uint64_t entry_clusters(const struct qcow2 *s, const struct qcow2_l2_entry *e,
                               unsigned *ret_n)
{
    if (e->kind == QCOW2_COMPRESSED_KIND)
        return qcow2_compressed_clusters(&s->geo, e, ret_n);
    *ret_n = e->host ? 1 : 0;
    return e->host >> s->geo.cluster_bits;
}

/* All that the table in t->table refers to, in runs. */
static int co_change_table(struct qcow2_retree *t, bool drop)
{
    struct qcow2 *s = t->s;
    uint64_t first = 0, n = 0;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < 1U << s->geo.l2_bits; i++) {
        struct qcow2_l2_entry e;
        unsigned more;
        uint64_t at;

        if (!qcow2_l2_entry_get(&s->geo, t->table, i, &e))
            return -EILSEQ;
        at = entry_clusters(s, &e, &more);
        if (more && at == first + n) {
            n += more;
        } else if (more) {
            r = co_change(t, first, n, drop);
            first = at;
            n = more;
        }
    }
    return r < 0 ? r : co_change(t, first, n, drop);
}

/* The L2 table at @host and what it names. Its own refcount first: a table that is not
 * in use is not read. */
static int co_refer_table(struct qcow2_retree *t, uint64_t host, bool drop)
{
    struct qcow2 *s = t->s;
    int r = co_change(t, host >> s->geo.cluster_bits, 1, drop);

    if (r == 0)
        r = co_qcow2_meta_read(s, host, s->cluster_size, t->table);
    return r < 0 ? r : co_change_table(t, drop);
}

bool co_qcow2_retree_refer(struct qcow2_retree *t, const uint64_t *l1, uint32_t n, bool drop,
                           struct err *err)
{
    struct qcow2 *s = t->s;
    /* An L1 table names no L2 table twice; one that does could keep us busy for days. */
    CLEANUP(bitmap_free) struct bitmap *seen = bitmap_new(bitmap_size(t->freed));

    if (!seen)
        return refs_failed(-ENOMEM, err);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t host, cluster;
        bool copied;
        int r;

        if (!qcow2_l1_decode(&s->geo, l1[i], &host, &copied))
            return refs_failed(-EILSEQ, err);
        if (!host)
            continue;
        cluster = host >> s->geo.cluster_bits;
        if (cluster >= bitmap_size(seen) || !bitmap_set_bit(seen, cluster))
            return refs_failed(-EILSEQ, err);
        r = co_refer_table(t, host, drop);
        if (r < 0)
            return refs_failed(r, err);
        if (i % TABLES_AT_ONCE == 0)
            co_yield();
    }
    return true;
}

bool co_qcow2_retree_drop(struct qcow2_retree *t, uint64_t host, uint64_t bytes, struct err *err)
{
    int r = co_change(t, host >> t->s->geo.cluster_bits, clusters_for(t->s, bytes), true);

    return r == 0 || refs_failed(r, err);
}

/* ---- COPIED flags -------------------------------------------------------- */

/* Set the flags in t->table as the refcounts are, if the table has one owner.
 * *ret_changed: whether any is another now. */
static int co_set_flags(struct qcow2_retree *t, bool shared, bool *ret_changed)
{
    struct qcow2 *s = t->s;

    *ret_changed = false;
    for (uint32_t i = 0; i < 1U << s->geo.l2_bits; i++) {
        uint64_t count = 0;
        struct qcow2_l2_entry e;
        int r = 0;

        if (!qcow2_l2_entry_get(&s->geo, t->table, i, &e))
            return -EILSEQ;
        if (!e.host || e.kind == QCOW2_COMPRESSED_KIND)
            continue;
        if (!shared)
            r = co_qcow2_refcount(s, e.host >> s->geo.cluster_bits, &count);
        if (r < 0)
            return r;
        if ((count == 1) == e.copied)
            continue;
        *ret_changed = true;
        qcow2_l2_set_descriptor(&s->geo, t->table, i,
                                qcow2_l2_descriptor(&s->geo, t->table, i) ^ QCOW2_COPIED);
    }
    return 0;
}

/* A table of its own for the new L1 entry instead of @old, with the right flags. */
static int co_copy_l2(struct qcow2_retree *t, uint64_t old, uint64_t *ret)
{
    struct qcow2 *s = t->s;
    struct qcow2_space space;
    bool changed;
    int r = co_qcow2_meta_read(s, old, s->cluster_size, t->table);

    if (r == 0)
        r = co_set_flags(t, false, &changed);
    if (r == 0)
        r = co_qcow2_alloc(s, 1, &space);
    if (r == 0)
        r = co_qcow2_meta_write(s, space.host, s->cluster_size, t->table);
    if (r == 0)
        r = co_change(t, old >> s->geo.cluster_bits, 1, true);
    if (r == 0)
        *ret = space.host;
    return r;
}

/* The entry of the new L1 table for the L2 table at @host. */
static int co_make_entry(struct qcow2_retree *t, uint64_t host, uint64_t *ret)
{
    struct qcow2 *s = t->s;
    bool changed;
    uint64_t count;
    int r = co_qcow2_refcount(s, host >> s->geo.cluster_bits, &count);

    if (r == 0 && !count)
        r = -EILSEQ;
    if (r == 0)
        r = co_qcow2_meta_read(s, host, s->cluster_size, t->table);
    if (r == 0)
        r = co_set_flags(t, count > 1, &changed);
    if (r < 0)
        return r;
    if (!changed) {
        *ret = host | (count == 1 ? QCOW2_COPIED : 0);
        return 0;
    }
    r = co_copy_l2(t, host, &host);
    *ret = host | QCOW2_COPIED;
    return r;
}

/* ---- the end ------------------------------------------------------------- */

static int co_write_l1(struct qcow2_retree *t)
{
    struct qcow2 *s = t->s;
    CLEANUP(free) uint8_t *disk = try_alloc_aligned(MAX(t->l1_entries, 1U) * 8ULL);

    if (!disk)
        return -ENOMEM;
    for (uint32_t i = 0; i < t->l1_entries; i++) {
        uint64_t host, entry = 0;
        bool copied;
        int r = 0;

        if (!qcow2_l1_decode(&s->geo, t->l1[i], &host, &copied))
            return -EILSEQ;
        if (host)
            r = co_make_entry(t, host, &entry);
        if (i % TABLES_AT_ONCE == 0)
            co_yield();
        if (r < 0)
            return r;
        qcow2_entry_set(disk, i, entry);
    }
    return co_qcow2_meta_write(s, t->trees.l1_off, t->l1_entries * 8ULL, disk);
}

static int co_write_reftable(struct qcow2_retree *t)
{
    struct qcow2 *s = t->s;
    CLEANUP(free) void *disk = try_alloc_aligned(s->reftable.n * 8ULL);

    if (!disk)
        return -ENOMEM;
    qcow2_table_encode(&s->reftable, disk);
    return co_qcow2_meta_write(s, t->trees.reftable_off, s->reftable.n * 8ULL, disk);
}

/* I-Q11: all that the header will name is on the disk before it does. */
static int co_write_new_state(struct qcow2_retree *t)
{
    struct qcow2 *s = t->s;
    int r = co_write_l1(t);

    if (r == 0 && t->n_snapshots)
        r = co_qcow2_meta_write(s, t->trees.snapshots_off, t->snapshots_bytes, t->snapshots);
    if (r == 0)
        r = co_qcow2_store_refcounts(s);
    if (r == 0)
        r = co_write_reftable(t);
    return r < 0 ? r : co_qcow2_flush_file(s);
}

static int co_switch_header(struct qcow2_retree *t)
{
    int r = co_qcow2_write_tree_fields(t->s, &t->trees);

    if (r == 0)
        r = co_qcow2_flush_file(t->s);
    if (r < 0)
        qcow2_stop_writing(t->s);     /* which state counts is not known */
    return r;
}

/* The tables that the old header named. */
static void drop_old_tables(struct qcow2_retree *t, const struct qcow2_trees *old,
                            uint64_t old_snapshots_bytes)
{
    struct qcow2 *s = t->s;
    unsigned bits = s->geo.cluster_bits;

    for (uint32_t b = 0; b < t->old_reftable.n; b++) {
        if (t->copied_blocks[b] && t->old_reftable.v[b])
            qcow2_drop_clusters(s, t->old_reftable.v[b] >> bits, 1, false);
    }
    qcow2_drop_clusters(s, old->reftable_off >> bits, old->reftable_clusters, false);
    if (!t->keep_old_l1 && old->l1_entries)
        qcow2_drop_clusters(s, old->l1_off >> bits, clusters_for(s, old->l1_entries * 8ULL), false);
    if (old_snapshots_bytes)
        qcow2_drop_clusters(s, old->snapshots_off >> bits, clusters_for(s, old_snapshots_bytes),
                            false);
}

/* At worst they leak. */
static void co_give_up_freed(struct qcow2_retree *t)
{
    struct qcow2 *s = t->s;
    uint64_t at = 0, n;
    int r = 0;

    while (r == 0 && bitmap_next_range(t->freed, at, UINT32_MAX, &at, &n)) {
        qcow2_drop_clusters(s, at, (uint32_t)n, s->pass_discard_snapshot);
        at += n;
        if (s->dropped.n > LIMIT_QCOW2_FREED_RUNS) {
            r = co_qcow2_sync(s);
            co_qcow2_quiesce(s);
        }
    }
    r = co_come_to_rest(s);
    (void)r;
}

static struct qcow2_trees trees_of(const struct qcow2_header *h)
{
    return (struct qcow2_trees){
        .size = h->size, .l1_off = h->l1_off, .l1_entries = h->l1_entries,
        .reftable_off = h->reftable_off, .reftable_clusters = h->reftable_clusters,
        .snapshots_off = h->snapshots_off, .n_snapshots = h->n_snapshots,
    };
}

bool co_qcow2_retree_commit(struct qcow2_retree *t, struct err *err)
{
    struct qcow2 *s = t->s;
    struct qcow2_trees old = trees_of(&s->header);
    uint64_t old_snapshots_bytes = s->snapshots.bytes;
    int r = co_write_new_state(t);

    if (r < 0) {
        co_qcow2_retree_abort(t);
        return refs_failed(r, err);
    }
    r = co_switch_header(t);
    co_mutex_unlock(&s->sync_lock);
    s->retreeing = false;
    if (r < 0) {
        err_errno(err, r, "could not write the header");
    } else if (!co_qcow2_reload(s, err)) {
        qcow2_stop_writing(s);
        r = -EIO;
    } else {
        s->node->size = t->size;
        drop_old_tables(t, &old, old_snapshots_bytes);
        co_give_up_freed(t);
    }
    qcow2_table_done(&t->old_reftable);
    free_buffers(t);
    return r == 0;
}

void co_qcow2_retree_abort(struct qcow2_retree *t)
{
    struct qcow2 *s = t->s;

    co_mutex_unlock(&s->sync_lock);
    s->retreeing = false;
    if (!co_qcow2_reload(s, NULL))
        qcow2_stop_writing(s);
    qcow2_table_done(&t->old_reftable);
    free_buffers(t);
}
