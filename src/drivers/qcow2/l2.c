/* SPDX-License-Identifier: Apache-2.0
 *
 * From the L1 table to the slice of an L2 table, for reading and for changing.
 * Changing needs a table of one's own: a missing one is made, and one that a
 * snapshot shares (its L1 entry has no COPIED flag) is copied first.
 */
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"

/* ---- the cache's two functions ------------------------------------------- */

static int co_load_slice(void *ctx, uint64_t off, void *buf)
{
    struct qcow2 *s = ctx;

    return co_qcow2_meta_read(s, off, qcow2_cache_slice_bytes(s->l2), buf);
}

static int co_store_slice(void *ctx, uint64_t off, const void *buf)
{
    struct qcow2 *s = ctx;

    return co_qcow2_meta_write(s, off, qcow2_cache_slice_bytes(s->l2), buf);
}

static int co_make_room(void *ctx)
{
    return co_qcow2_sync(ctx);
}

const struct qcow2_cache_ops qcow2_l2_cache_ops = {
    .co_load = co_load_slice,
    .co_store = co_store_slice,
    .co_make_room = co_make_room,
};

/* ---- finding ------------------------------------------------------------- */

static inline uint32_t l1_index(const struct qcow2 *s, uint64_t off)
{
    return (uint32_t)(off >> (s->geo.cluster_bits + s->geo.l2_bits));
}

static inline struct qcow2_l2_place place_in_table(const struct qcow2 *s, uint64_t table,
                                                   uint64_t off)
{
    uint32_t index = (uint32_t)(off >> s->geo.cluster_bits) & ((1U << s->geo.l2_bits) - 1);

    return (struct qcow2_l2_place){
        .slice = table + align_down((uint64_t)index << qcow2_l2_entry_bits(&s->geo),
                                    qcow2_cache_slice_bytes(s->l2)),
        .index = index & ((1U << s->l2_slice_bits) - 1),
    };
}

static int co_load_for(struct qcow2 *s, uint64_t off, const void **ret_slice,
                       struct qcow2_l2_place *ret)
{
    for (;;) {
        uint32_t i = l1_index(s, off);
        uint64_t entry = s->l1.v[i], table;
        bool copied;
        int r;

        if (!qcow2_l1_decode(&s->geo, entry, &table, &copied))
            return -EIO;
        *ret = (struct qcow2_l2_place){ 0 };
        *ret_slice = NULL;
        if (!table)
            return 0;
        *ret = place_in_table(s, table, off);
        r = co_qcow2_cache_get(s->l2, ret->slice, ret_slice);
        if (r < 0)
            return r;
        if (s->l1.v[i] == entry)       /* else it was replaced by a copy meanwhile */
            return 0;
    }
}

int co_qcow2_l2_get(struct qcow2 *s, uint64_t off, const void **ret_slice,
                    struct qcow2_l2_place *ret)
{
    uint64_t table;
    bool copied;

    if (LIKELY(qcow2_l1_decode(&s->geo, s->l1.v[l1_index(s, off)], &table, &copied) && table)) {
        *ret = place_in_table(s, table, off);
        *ret_slice = qcow2_cache_find(s->l2, ret->slice);
        if (LIKELY(*ret_slice))
            return 0;
    }
    return co_load_for(s, off, ret_slice, ret);
}

/* ---- making -------------------------------------------------------------- */

/* Lies on the stack of the maker; the others who need the table wait for it. */
struct creation {
    struct list link;
    uint32_t l1_index;
    struct waitq done;
};

static struct creation *find_creation(const struct qcow2 *s, uint32_t index)
{
    struct creation *c;

    list_for_each(c, &s->creations, link) {
        if (c->l1_index == index)
            return c;
    }
    return NULL;
}

/* Put the content of the table at @old, or zeros for 0, to its new place. It lies
 * on the disk before an L1 entry names it (I-Q3): written here, and flushed by the
 * write-back that brings the entry. */
static int co_fill_table(struct qcow2 *s, uint64_t old, const struct qcow2_space *space)
{
    if (!old && space->fresh)
        return 0;
    if (!old)
        return co_node_write_zeroes(s->file, space->host, s->cluster_size, 0);

    CLEANUP(free) void *buf = try_alloc_aligned(s->cluster_size);

    if (!buf)
        return -ENOMEM;

    int r = co_qcow2_meta_read(s, old, s->cluster_size, buf);

    return r < 0 ? r : co_qcow2_meta_write(s, space->host, s->cluster_size, buf);
}

static int co_make_table(struct qcow2 *s, uint64_t off, uint64_t old)
{
    struct qcow2_space space;
    int r = co_qcow2_alloc(s, 1, &space);
    uint64_t cluster;

    if (r < 0)
        return r;
    cluster = space.host >> s->geo.cluster_bits;
    qcow2_cache_drop(s->l2, space.host, s->cluster_size);
    r = co_fill_table(s, old, &space);
    if (r == 0 && !old)      /* the one slice that is wanted now need not be read */
        r = co_qcow2_cache_put_zero(s->l2, place_in_table(s, space.host, off).slice);
    if (r == 0)
        r = qcow2_metaset_add(&s->meta, cluster);
    if (r < 0) {
        int ignored = co_qcow2_unref(s, cluster, 1);

        (void)ignored;
        return r;
    }
    qcow2_table_set(&s->l1, l1_index(s, off), space.host | QCOW2_COPIED);
    if (old) {
        qcow2_metaset_remove(&s->meta, old >> s->geo.cluster_bits);
        qcow2_cache_drop(s->l2, old, s->cluster_size);
        qcow2_drop_clusters(s, old >> s->geo.cluster_bits, 1, false);
    }
    return 0;
}

/* The table of @off, for changing: 0 and *ret, or makes it (or waits while others
 * do) and gives -EAGAIN: look again. */
static int co_own_table(struct qcow2 *s, uint64_t off, uint64_t *ret)
{
    uint32_t index = l1_index(s, off);
    struct creation *other = find_creation(s, index);
    struct creation mine = { .l1_index = index };
    bool copied;
    int r;

    if (!qcow2_l1_decode(&s->geo, s->l1.v[index], ret, &copied))
        return -EIO;
    if (LIKELY(*ret && copied))
        return 0;
    if (other) {
        co_waitq_wait(&other->done);
        return -EAGAIN;
    }
    waitq_init(&mine.done);
    list_push_tail(&s->creations, &mine.link);
    r = co_make_table(s, off, *ret);
    list_del(&mine.link);
    waitq_wake_all(&mine.done);
    return r < 0 ? r : -EAGAIN;
}

int co_qcow2_l2_get_writable(struct qcow2 *s, uint64_t off, struct qcow2_l2_place *ret)
{
    const void *slice;
    uint64_t table;

    for (;;) {
        int r = co_own_table(s, off, &table);

        if (r == -EAGAIN)
            continue;
        if (r < 0)
            return r;
        *ret = place_in_table(s, table, off);
        if (qcow2_cache_find(s->l2, ret->slice))
            return 0;
        r = co_qcow2_cache_get(s->l2, ret->slice, &slice);
        if (r < 0)
            return r;
        /* A table of our own stays where it is, unless the disk became shorter. */
        if (s->l1.v[l1_index(s, off)] == (table | QCOW2_COPIED))
            return 0;
    }
}

bool qcow2_l2_is_made(const struct qcow2 *s, uint32_t index)
{
    return find_creation(s, index);
}

void qcow2_drop_entry(struct qcow2 *s, const struct qcow2_l2_entry *e, bool punch)
{
    uint64_t first = e->host >> s->geo.cluster_bits;
    unsigned n = 1;

    if (e->kind == QCOW2_COMPRESSED_KIND)
        first = qcow2_compressed_clusters(&s->geo, e, &n);
    else if (!e->host || s->geo.data_file)      /* in a data file nothing is counted */
        return;
    qcow2_drop_clusters(s, first, n, punch);
}
