/* SPDX-License-Identifier: Apache-2.0
 *
 * For a check: going through everything that refers to host clusters and counting
 * it. Tables may lie over each other, thousands of L1 tables in one place, and
 * name each other; so overlapping tables are cut into pieces that are read once and
 * count as often as tables share them, and L2 tables are sorted by their place.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/bitmaps_format.h"
#include "drivers/qcow2/check_int.h"
#include <inttypes.h>

#define L1_RESERVED 0x7f000000000001ffULL
#define L2_RESERVED 0x3f000000000001feULL
#define PIECE_BYTES (64 * KiB)
#define BREATH 1024U             /* entries of an L2 table */

/* ---- counting ------------------------------------------------------------ */

bool check_is_cut(const struct check *c, uint64_t off, uint64_t bytes)
{
    return off > UINT64_MAX / 2 || off + bytes >= c->file_end + c->cluster_size;
}

int check_add(struct check *c, uint64_t off, uint64_t bytes, uint64_t times)
{
    uint64_t first, last;

    if (!bytes)
        return 0;
    if (check_is_cut(c, off, bytes)) {
        c->cut_end = MAX(c->cut_end, MIN(off, UINT64_MAX / 2) + bytes);
        if (c->judging)
            check_corrupt(c, times, "ERROR: counting reference for region exceeding the end of "
                          "the file by one cluster or more: offset %#" PRIx64 " size %#" PRIx64,
                          off, bytes);
        return 0;
    }
    first = off >> c->geo.cluster_bits;
    last = (off + bytes - 1) >> c->geo.cluster_bits;
    c->clusters = MAX(c->clusters, last + 1);
    return qcow2_counts_add(c->counts, first, last - first + 1, times);
}

/* ---- pieces of tables ---------------------------------------------------- */

/* Where tables begin or end. */
struct edge_at {
    uint64_t off;
    int64_t change;
};

static int compare_edges(const void *a, const void *b)
{
    const struct edge_at *x = a, *y = b;

    return x->off < y->off ? -1 : x->off > y->off;
}

typedef int co_entries_fn(struct check *c, const uint8_t *entries, uint64_t off, uint32_t n,
                          uint64_t times);

static int co_sweep_piece(struct check *c, uint64_t off, uint64_t end, uint64_t times,
                          uint8_t *buf, co_entries_fn *co_entries)
{
    int r = 0;

    for (uint64_t part; r == 0 && off < end; off += part) {
        part = MIN(end - off, PIECE_BYTES - off % PIECE_BYTES);
        if (co_check_is_zero(c, off, part)) {
            part = MIN(end, c->zero_end > off ? c->zero_end : end) - off;
            part = align_down(part, 8);
            continue;
        }
        r = co_check_read(c, off, part, buf);
        if (r == 0)
            r = co_entries(c, buf, off, (uint32_t)(part / 8), times);
        if (r == 0)
            r = co_check_breathe(c, part / 8);
    }
    return r;
}

int co_check_sweep(struct check *c, const struct check_table *tables, size_t n_tables,
                   co_entries_fn *co_entries)
{
    CLEANUP(free) struct edge_at *edges = calloc(2 * n_tables + 1, sizeof(*edges));
    CLEANUP(free) uint8_t *buf = try_alloc_aligned(PIECE_BYTES);
    int64_t times = 0;
    size_t n = 0;
    int r = 0;

    if (!edges || !buf)
        return -ENOMEM;
    for (size_t i = 0; i < n_tables; i++) {
        if (tables[i].off >= c->file_end)
            continue;            /* it has nothing but zeros */
        edges[n++] = (struct edge_at){ tables[i].off, 1 };
        edges[n++] = (struct edge_at){ MIN(tables[i].off + tables[i].n * 8, c->file_end), -1 };
    }
    co_check_sort(edges, n, sizeof(*edges), compare_edges);
    for (size_t i = 0; r == 0 && i + 1 < n; i++) {
        times += edges[i].change;
        if (times > 0 && edges[i].off < edges[i + 1].off)
            r = co_sweep_piece(c, edges[i].off, edges[i + 1].off, (uint64_t)times, buf,
                               co_entries);
    }
    return r;
}

/* ---- L2 entries ---------------------------------------------------------- */

struct check_entry check_entry_get(const struct check *c, const uint8_t *table, uint32_t i)
{
    const uint8_t *p = table + (size_t)i * c->entry_bytes;
    struct check_entry e = { .v = load_be64(p) };

    e.host = e.v & QCOW2_OFFSET_MASK;
    if (c->entry_bytes == 16)
        e.bitmap = load_be64(p + 8);
    if (e.v & QCOW2_COMPRESSED)
        e.kind = QCOW2_COMPRESSED_KIND;
    else if ((e.v & QCOW2_ZERO) && c->entry_bytes == 8)
        e.kind = e.host ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
    else if (e.host || (c->data_file && (e.v & QCOW2_COPIED)))
        e.kind = QCOW2_NORMAL;
    else
        e.kind = QCOW2_UNALLOCATED;
    return e;
}

bool check_entry_is_void(const struct check *c, const struct check_entry *e)
{
    bool data = c->entry_bytes == 16 ? (uint32_t)e->bitmap != 0 : e->kind == QCOW2_NORMAL;

    return (e->kind == QCOW2_NORMAL || e->kind == QCOW2_ZERO_ALLOC) &&
           !is_aligned(e->host, c->cluster_size) && !data;
}

static int count_compressed(struct check *c, const struct check_l2 *t, uint32_t i,
                            const struct check_entry *e)
{
    struct qcow2_l2_entry x;

    if ((e->v & QCOW2_COPIED) && c->judging)
        check_corrupt(c, t->all, "ERROR: coffset=%#" PRIx64 ": copied flag must never be set for "
                      "compressed clusters", e->host);
    if (c->data_file || e->bitmap) {
        if (c->judging)
            check_corrupt(c, t->all, "ERROR compressed cluster %" PRIu32 " with %s, entry=%#"
                          PRIx64, i, c->data_file ? "data file"
                                                  : "non-zero subcluster allocation bitmap", e->v);
        return 0;
    }
    if (c->judging) {
        /* Compressed clusters share sectors: they count as fragmented by nature. */
        c->res->allocated += t->active;
        c->res->compressed += t->active;
        c->res->fragmented += t->active;
    }
    /* Beyond what an offset may be it is beyond the end of the file too. */
    (void)!qcow2_l2_decode(&c->geo, e->v & ~QCOW2_COPIED, &x);
    return check_add(c, x.host, x.compressed_bytes, t->all);
}

static void judge_place(struct check *c, const struct check_l2 *t, const struct check_entry *e)
{
    if ((e->bitmap >> 32) & e->bitmap & UINT32_MAX)
        check_corrupt(c, t->all, "ERROR offset=%" PRIx64 ": Allocated cluster has corrupted "
                      "subcluster allocation bitmap", e->host);
    if (is_aligned(e->host, c->cluster_size))
        return;
    c->invalid_entries |= check_entry_is_void(c, e);
    check_corrupt(c, t->all, "ERROR offset=%" PRIx64 ": %s cluster is not properly aligned; L2 "
                  "entry corrupted.", e->host, check_entry_is_void(c, e) ? "Preallocated" : "Data");
}

/* The COPIED flag says that the refcount on disk is one. */
static int co_judge_copied(struct check *c, const struct check_l2 *t, const struct check_entry *e)
{
    uint64_t refcount = 1;
    int r = c->data_file ? 0 : co_check_refcount(c, e->host >> c->geo.cluster_bits, &refcount);

    if (r < 0)
        return r == -EUCLEAN ? 0 : r;
    if ((refcount == 1) != (e->v >> 63)) {
        c->copied_errors += t->active;
        check_corrupt(c, t->active, "ERROR OFLAG_COPIED data cluster: l2_entry=%" PRIx64
                      " refcount=%" PRIu64, e->v, refcount);
    }
    return 0;
}

static int co_count_placed(struct check *c, const struct check_l2 *t, const struct check_entry *e,
                           bool judge_copied, uint64_t *next)
{
    int r = 0;

    if (c->judging) {
        judge_place(c, t, e);
        c->res->allocated += t->active;
        if (*next && e->host != *next)
            c->res->fragmented += t->active;
        *next = e->host + c->cluster_size;
        if (judge_copied)
            r = co_judge_copied(c, t, e);
    }
    if (r == 0 && !c->data_file)
        r = check_add(c, e->host, c->cluster_size, t->all);
    return r;
}

/* Whether the flags of this table can be judged: QEMU does not where the refcount
 * of the table itself cannot be had. */
static int co_flags_count(struct check *c, const struct check_l2 *t, bool *ret)
{
    uint64_t refcount;
    int r = c->judging ? co_check_refcount(c, t->off >> c->geo.cluster_bits, &refcount) : 0;

    *ret = r == 0 && t->active && t->off;
    return r == -EUCLEAN ? 0 : r;
}

static int co_count_table(struct check *c, const struct check_l2 *t, uint8_t *table)
{
    uint64_t next = 0;
    bool copied;
    int r = co_flags_count(c, t, &copied);

    for (uint32_t i = 0; r == 0 && i < 1U << c->geo.l2_bits; i++) {
        struct check_entry e = check_entry_get(c, table, i);

        if (i % BREATH == BREATH - 1)
            r = co_check_breathe(c, BREATH);
        if (r < 0 || (!e.v && !e.bitmap))
            continue;
        if (c->judging && e.kind != QCOW2_COMPRESSED_KIND && (e.v & L2_RESERVED))
            check_corrupt(c, t->all, "ERROR found l2 entry with reserved bits set: %" PRIx64, e.v);
        switch (e.kind) {
        case QCOW2_COMPRESSED_KIND:
            r = count_compressed(c, t, i, &e);
            break;
        case QCOW2_NORMAL:
        case QCOW2_ZERO_ALLOC:
            r = co_count_placed(c, t, &e, copied, &next);
            break;
        case QCOW2_UNALLOCATED:
            if (c->judging && (uint32_t)e.bitmap)
                check_corrupt(c, t->all, "ERROR: Unallocated cluster has non-zero subcluster "
                              "allocation map");
            break;
        case QCOW2_ZERO_PLAIN:
        case QCOW2_MIXED:        /* check_entry_get does not say so */
            break;
        }
    }
    return r;
}

/* ---- L2 tables, by place ------------------------------------------------- */

/* Those of a range of host offsets that fit into memory. */
struct l2_list {
    struct check_l2 *v;
    size_t n, cap;
    uint64_t from, end;          /* host offsets */
};

static int compare_l2(const void *a, const void *b)
{
    const struct check_l2 *x = a, *y = b;

    return x->off < y->off ? -1 : x->off > y->off;
}

static void co_sort_and_join(struct l2_list *l)
{
    size_t n = 0;

    co_check_sort(l->v, l->n, sizeof(*l->v), compare_l2);
    for (size_t i = 0; i < l->n; i++) {
        if (n && l->v[n - 1].off == l->v[i].off) {
            l->v[n - 1].active += l->v[i].active;
            l->v[n - 1].all += l->v[i].all;
        } else {
            l->v[n++] = l->v[i];
        }
    }
    l->n = n;
}

static int co_make_room(struct l2_list *l)
{
    struct check_l2 *v;

    if (l->cap < LIMIT_QCOW2_CHECK_L2_TABLES) {
        size_t cap = MAX(l->cap * 2, (size_t)1024);

        v = realloc(l->v, cap * sizeof(*v));
        if (!v)
            return -ENOMEM;
        l->v = v;
        l->cap = cap;
        return 0;
    }
    co_sort_and_join(l);
    if (l->n > l->cap / 2) {     /* the rest comes in a later turn */
        l->n /= 2;
        l->end = l->v[l->n].off;
    }
    return 0;
}

static int co_add_l2(struct l2_list *l, uint64_t off, uint64_t active, uint64_t all)
{
    if (off < l->from || off >= l->end)
        return 0;
    if (l->n == l->cap) {
        int r = co_make_room(l);

        if (r < 0)
            return r;
        if (off >= l->end)
            return 0;
    }
    l->v[l->n++] = (struct check_l2){ off, active, all };
    return 0;
}

/* L1 entries: of the active table, and whether they are counted and judged. */
struct l1_walk {
    struct l2_list list;
    bool active, count;
};

static int co_judge_l1(struct check *c, uint64_t v, uint64_t off, bool active, uint64_t times)
{
    uint64_t refcount;
    int r;

    if (v & L1_RESERVED)
        check_corrupt(c, times, "ERROR found L1 entry with reserved bits set: %" PRIx64, v);
    if (!is_aligned(off, c->cluster_size))
        check_corrupt(c, times, "ERROR l2_offset=%" PRIx64 ": Table is not cluster aligned; L1 "
                      "entry corrupted", off);
    if (!is_aligned(off, c->cluster_size) || check_is_cut(c, off, c->cluster_size))
        check_hide(c, "an L2 table is said to be at offset %#" PRIx64 ", where the file has none",
                   off);
    if (!active || !off)
        return 0;
    r = co_check_refcount(c, off >> c->geo.cluster_bits, &refcount);
    if (r < 0)
        return r == -EUCLEAN ? 0 : r;
    if ((refcount == 1) != (v >> 63)) {
        c->copied_errors++;
        check_corrupt(c, 1, "ERROR OFLAG_COPIED L2 cluster: l1_entry=%" PRIx64 " refcount=%"
                      PRIu64, v, refcount);
    }
    return 0;
}

static int co_take_l1(struct check *c, const uint8_t *entries, uint64_t at, uint32_t n,
                      uint64_t times)
{
    struct l1_walk *w = c->walk;
    int r = 0;

    (void)at;
    for (uint32_t i = 0; r == 0 && i < n; i++) {
        uint64_t v = qcow2_entry_get(entries, i), off = v & QCOW2_OFFSET_MASK;

        if (!v)
            continue;
        if (w->count && c->judging)
            r = co_judge_l1(c, v, off, w->active, times);
        if (r == 0 && w->count)
            r = check_add(c, off, c->cluster_size, times);
        if (r == 0)
            r = co_add_l2(&w->list, off, w->active ? times : 0, times);
    }
    return r;
}

static int co_collect_l2(struct check *c, struct l1_walk *w)
{
    struct check_table active = { c->h.l1_off, c->h.l1_entries };
    int r;

    c->walk = w;
    w->active = true;
    r = co_check_sweep(c, &active, 1, co_take_l1);
    w->active = false;
    if (r == 0)
        r = co_check_sweep(c, c->snapshots, c->n_snapshots, co_take_l1);
    co_sort_and_join(&w->list);
    return r;
}

static int co_visit_l2(struct check *c, const struct l2_list *l)
{
    CLEANUP(free) uint8_t *table = try_alloc_aligned(c->cluster_size);
    int r = table ? 0 : -ENOMEM;

    for (size_t i = 0; r == 0 && i < l->n; i++) {
        if (co_check_is_zero(c, l->v[i].off, c->cluster_size))
            continue;
        r = co_check_read(c, l->v[i].off, c->cluster_size, table);
        if (r == 0)
            r = c->co_l2(c, &l->v[i], table);
        if (r == 0)
            r = co_check_breathe(c, 256);
    }
    return r;
}

static int co_each_l2(struct check *c, bool count)
{
    struct l1_walk w = { .count = count };
    int r;

    do {
        w.list.from = w.list.end;
        w.list.end = UINT64_MAX;
        w.list.n = 0;
        r = co_collect_l2(c, &w);
        if (r == 0)
            r = co_visit_l2(c, &w.list);
        w.count = false;
    } while (r == 0 && w.list.end != UINT64_MAX);
    free(w.list.v);
    return r;
}

int co_check_each_l2(struct check *c)
{
    return co_each_l2(c, false);
}

/* ---- all of it ----------------------------------------------------------- */

static int co_count_bitmap(struct check *c, const uint8_t *entries, uint64_t at, uint32_t n,
                           uint64_t times)
{
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < n; i++) {
        uint64_t v = qcow2_entry_get(entries, i), off;
        bool ones;

        if (!qcow2_bitmap_table_decode(&c->geo, v, &off, &ones)) {
            if (c->judging)
                check_corrupt(c, times, "ERROR bitmap table entry at %#" PRIx64 " is invalid: %"
                              PRIx64, at + (uint64_t)i * 8, v);
        } else if (off) {
            r = check_add(c, off, c->cluster_size, times);
        }
    }
    return r;
}

static int add_tables(struct check *c, const struct check_table *t, size_t n)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < n; i++)
        r = check_add(c, t[i].off, t[i].n * 8, 1);
    return r;
}

/* The file may have been cut before the end of an L1 table. */
static void judge_l1_tables(struct check *c, const struct check_table *t, size_t n)
{
    for (size_t i = 0; c->judging && i < n; i++) {
        if (t[i].n && check_is_cut(c, t[i].off, t[i].n * 8))
            check_hide(c, "the file ends before the end of the L1 table at offset %#" PRIx64,
                       t[i].off);
    }
}

int co_check_count(struct check *c)
{
    struct check_table active = { c->h.l1_off, c->h.l1_entries };
    uint64_t reftable_bytes = (uint64_t)c->h.reftable_clusters << c->geo.cluster_bits;
    int r = check_add(c, 0, c->cluster_size, 1);

    if (r == 0)
        r = add_tables(c, &active, 1);
    if (r == 0)
        r = add_tables(c, c->snapshots, c->n_snapshots);
    judge_l1_tables(c, &active, 1);
    judge_l1_tables(c, c->snapshots, c->n_snapshots);
    c->co_l2 = co_count_table;
    if (r == 0)
        r = co_each_l2(c, true);
    if (r == 0)
        r = check_add(c, c->h.snapshots_off, c->snapshots_bytes, 1);
    if (r == 0 && !c->without_refcounts)
        r = check_add(c, c->h.reftable_off, reftable_bytes, 1);
    if (r == 0)
        r = check_add(c, c->bitmaps_off, c->bitmaps_bytes, 1);
    if (r == 0)
        r = add_tables(c, c->bitmaps, c->n_bitmaps);
    if (r == 0)
        r = co_check_sweep(c, c->bitmaps, c->n_bitmaps, co_count_bitmap);
    if (r == 0 && !c->without_refcounts)
        r = co_check_blocks(c);
    return r;
}
