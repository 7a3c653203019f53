/* SPDX-License-Identifier: Apache-2.0
 *
 * A refcount table and refcount blocks made anew from what refers to clusters, where
 * the old ones cannot be relied on. They lie in one piece of clusters that nothing
 * refers to, the old ones not among them; so the image has the old refcounts until the
 * header is pointed to the new ones, and the clusters of the old are free then.
 *
 *     | block | block ... | table |       blocks only for clusters that are in use
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/repair.h"
#include <inttypes.h>

#define MAX_BLOCKS (LIMIT_QCOW2_REFTABLE_BYTES / 8)
#define ROOM_SEARCH (1ULL << 24)     /* clusters */

#define OLD_BYTES (64 * MiB)

struct rebuild {
    struct qcow2_counts *old;    /* clusters of the refcounts that count until the end */
    uint64_t max_blocks;         /* that the arrays have room for */
    uint8_t *needed;             /* a byte a block: it has counts */
    uint32_t *rank;              /* the how many-th of the needed ones */
    uint64_t end_block;          /* behind the last that is needed */
    uint64_t n_blocks, table_clusters;
    uint64_t area;               /* first cluster of the new structures */
    uint64_t want;               /* clusters looked for */
    bool found;
};

static uint64_t area_clusters(const struct rebuild *b)
{
    return b->n_blocks + b->table_clusters;
}

static int mark(struct check *c, struct rebuild *b, uint64_t cluster)
{
    uint64_t block = cluster >> c->block_bits;

    if (block >= b->max_blocks) {
        err_set(&c->err, -EFBIG, "The image file is too long for a refcount table");
        return -EFBIG;
    }
    b->needed[block] = 1;
    b->end_block = MAX(b->end_block, block + 1);
    return 0;
}

/* Which blocks are needed, by what is counted in this window. */
static int co_mark_window(struct check *c)
{
    struct rebuild *b = c->rebuilding;
    CLEANUP(free) uint64_t *pages = NULL;
    size_t n;
    int r = co_check_pages(c, &pages, &n);

    for (size_t i = 0; r == 0 && i < n; i++) {
        r = co_check_breathe(c, QCOW2_COUNTS_PAGE);
        for (uint64_t k = 0; r == 0 && k < QCOW2_COUNTS_PAGE; k++) {
            uint64_t cluster = pages[i] * QCOW2_COUNTS_PAGE + k, block = cluster >> c->block_bits;

            if (block < b->max_blocks && b->needed[block]) {
                k |= (1ULL << c->block_bits) - 1;        /* to the block's end */
                continue;
            }
            if (qcow2_counts_get(c->counts, cluster))
                r = mark(c, b, cluster);
        }
    }
    return r;
}

/* A piece of b->want clusters in this window that nothing uses, unless there is one. */
static int co_find_room(struct check *c)
{
    struct rebuild *b = c->rebuilding;
    uint64_t end = MIN(c->file_end >> c->geo.cluster_bits, qcow2_counts_end(c->counts)), run = 0;
    uint64_t from = qcow2_counts_from(c->counts);
    int r = 0;

    end = MIN(MIN(end, qcow2_counts_end(b->old)), ROOM_SEARCH);
    for (uint64_t at = from; r == 0 && !b->found && at < end; at++) {
        if (at % QCOW2_COUNTS_PAGE == 0)
            r = co_check_breathe(c, QCOW2_COUNTS_PAGE);
        run = qcow2_counts_get(c->counts, at) || qcow2_counts_get(b->old, at) ? 0 : run + 1;
        b->found = run == b->want;
        if (b->found)
            b->area = at + 1 - run;
    }
    return r;
}

static int co_find_old(struct check *c, struct rebuild *b)
{
    uint64_t off;
    int r = qcow2_counts_add(b->old, c->h.reftable_off >> c->geo.cluster_bits,
                             c->h.reftable_clusters, 1);

    for (uint32_t i = 0; r == 0 && i < c->n_reftable; i++) {
        if (check_block_at(c, i, &off) == CHECK_BLOCK_THERE)
            r = qcow2_counts_add(b->old, off >> c->geo.cluster_bits, 1, 1);
        if (r == 0)
            r = co_check_breathe(c, 1);
    }
    return r;
}

/* How large the area is if it begins at b->area: it must count itself. */
static int size_area(struct check *c, struct rebuild *b)
{
    uint64_t before;

    do {
        before = area_clusters(b);
        b->n_blocks = 0;
        for (uint64_t i = 0; i < b->end_block; i++)
            b->n_blocks += b->needed[i];
        b->table_clusters = div_round_up(b->end_block * 8, c->cluster_size);
        for (uint64_t i = 0; i < area_clusters(b); i++) {
            int r = mark(c, b, b->area + i);

            if (r < 0)
                return r;
        }
    } while (area_clusters(b) != before);
    return 0;
}

/* What lies behind the end of a file that was cut is not counted: new refcounts would
 * give those places to others, or lie there themselves. */
static int refuse_cut(struct check *c)
{
    err_set(&c->err, -EUCLEAN, "The refcounts have to be made anew, but the image refers to places "
            "up to %" PRIu64 " while its file ends at %" PRIu64 ": something cut it. They were "
            "left as they are. Give it its length again with 'truncate -s %" PRIu64 "' (what is "
            "lost reads as zeros) and repair it then, or copy what can be read with 'stillpoint "
            "convert'", c->cut_end, node_size(c->file), c->cut_end);
    return -EUCLEAN;
}

static int co_plan(struct check *c, struct rebuild *b)
{
    uint64_t blocks = 0;
    int r;

    c->cut_end = 0;
    r = co_check_windows(c, co_mark_window);
    if (r == 0 && c->cut_end)
        r = refuse_cut(c);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < b->end_block; i++)
        blocks += b->needed[i];
    /* One block more and one table cluster more than it seems are enough, unless
     * the area is larger than a block counts. */
    b->want = blocks + div_round_up(b->end_block * 8, c->cluster_size);
    b->want += 2 + 2 * (b->want >> c->block_bits);
    r = co_check_windows(c, co_find_room);
    if (!b->found)
        b->area = c->clusters;
    if (r == 0)
        r = size_area(c, b);
    if (r == 0 && b->found && area_clusters(b) > b->want) {
        b->area = c->clusters;
        r = size_area(c, b);
    }
    for (uint64_t i = 0, k = 0; r == 0 && i < b->end_block; i++) {
        b->rank[i] = (uint32_t)k;
        k += b->needed[i];
    }
    return r;
}

/* Room for the area in the file, all zero. */
static int co_make_room(struct check *c, const struct rebuild *b)
{
    uint64_t off = b->area * c->cluster_size, bytes = area_clusters(b) * c->cluster_size;

    if (off + bytes > node_size(c->file) &&
        !co_node_resize(c->file, off + bytes, &c->err))
        return c->err.code;
    return co_node_write_zeroes(c->file, off, bytes, 0);
}

/* Put the counts of [from, to), which lie in one block, into it. */
static int co_write_counts(struct check *c, const struct rebuild *b, uint64_t from, uint64_t to)
{
    uint64_t off = (b->area + b->rank[from >> c->block_bits]) * c->cluster_size;
    uint64_t mask = (1ULL << c->block_bits) - 1;
    int r = co_check_read(c, off, c->cluster_size, c->block);

    if (r < 0)
        return r;
    for (uint64_t at = from; r == 0 && at < to; at++) {
        qcow2_refcount_set(c->block, c->geo.refcount_order, at & mask, check_counted(c, at));
        if (at % QCOW2_COUNTS_PAGE == 0)
            r = co_check_breathe(c, QCOW2_COUNTS_PAGE);
    }
    return r < 0 ? r : co_node_pwrite(c->file, off, c->cluster_size, c->block, 0);
}

static int co_write_window(struct check *c)
{
    struct rebuild *b = c->rebuilding;
    uint64_t from = qcow2_counts_from(c->counts), end;
    int r = qcow2_counts_add(c->counts, b->area, area_clusters(b), 1);

    end = qcow2_counts_end(c->counts);
    for (uint64_t i = from >> c->block_bits; r == 0 && i < b->end_block; i++) {
        uint64_t first = MAX(i << c->block_bits, from);
        uint64_t last = MIN((i + 1) << c->block_bits, end);

        if (first >= end)
            break;
        if (b->needed[i])
            r = co_write_counts(c, b, first, last);
        if (r == 0)
            r = co_check_breathe(c, 1);
    }
    return r;
}

static int co_write_table(struct check *c, const struct rebuild *b)
{
    uint64_t bytes = b->table_clusters * c->cluster_size;
    CLEANUP(free) uint8_t *table = calloc(1, bytes);

    if (!table)
        return -ENOMEM;
    for (uint64_t i = 0; i < b->end_block; i++) {
        if (b->needed[i])
            qcow2_entry_set(table, i, (b->area + b->rank[i]) * c->cluster_size);
    }
    return co_node_pwrite(c->file, (b->area + b->n_blocks) * c->cluster_size, bytes, table, 0);
}

static int co_publish(struct check *c, const struct rebuild *b)
{
    uint64_t off = (b->area + b->n_blocks) * c->cluster_size;
    uint8_t buf[12];
    int r;

    store_be64(buf, off);
    store_be32(buf + 8, (uint32_t)b->table_clusters);
    r = co_node_flush(c->file);
    if (r == 0)
        r = co_node_pwrite(c->file, QCOW2_FIELD_REFTABLE, sizeof(buf), buf, 0);
    if (r == 0)
        r = co_node_flush(c->file);
    if (r < 0)
        return r;
    c->h.reftable_off = off;
    c->h.reftable_clusters = (uint32_t)b->table_clusters;
    return co_check_load_reftable(c);
}

static int co_rebuild(struct check *c, struct rebuild *b)
{
    int r = co_find_old(c, b);

    if (r == 0)
        r = co_plan(c, b);
    if (r == 0)
        r = co_make_room(c, b);
    if (r < 0)
        return r;
    c->clusters = MAX(c->clusters, b->area + area_clusters(b));
    c->zero_from = c->zero_end = 0;
    r = co_check_windows(c, co_write_window);
    if (r == 0)
        r = co_write_table(c, b);
    return r < 0 ? r : co_publish(c, b);
}

int co_check_rebuild(struct check *c)
{
    uint64_t n = MIN(2 * (c->clusters >> c->block_bits) + 4096, MAX_BLOCKS);
    struct rebuild b = {
        .old = qcow2_counts_new(0, OLD_BYTES), .max_blocks = n, .needed = calloc(n, 1),
        .rank = calloc(n, sizeof(*b.rank)),
    };
    int r = b.old && b.needed && b.rank ? 0 : -ENOMEM;

    c->rebuilding = &b;
    c->without_refcounts = true;
    if (r == 0)
        r = co_rebuild(c, &b);
    c->without_refcounts = false;
    c->rebuilding = NULL;
    qcow2_counts_free(b.old);
    free(b.needed);
    free(b.rank);
    return r;
}
