/* SPDX-License-Identifier: Apache-2.0
 *
 * Making the virtual disk smaller. The new size is written first, so that no crash
 * leaves a disk whose end is half gone; what lies behind it is given up then, and
 * growing again brings zeros into sight whatever a crash left there (resize.c). The
 * L1 table stays as long as it is; its entries behind the end go when their tables
 * are empty on the disk.
 */
#include "drivers/qcow2/qcow2.h"

/* Let go of the L2 tables from L1 entry @first on, which have no entries. Under
 * sync_lock, just after a write-back: none of their slices is being written. One that a
 * request which began before has changed again, or is copying, stays: what is behind
 * the end does not show (resize.c). */
static void drop_tables(struct qcow2 *s, uint32_t first)
{
    for (uint32_t i = first; i < s->l1.n; i++) {
        uint64_t table;
        bool copied;

        if (!qcow2_l1_decode(&s->geo, s->l1.v[i], &table, &copied) || !table)
            continue;
        if (qcow2_l2_is_made(s, i) || qcow2_cache_has_dirty(s->l2, table, s->cluster_size))
            continue;
        qcow2_table_set(&s->l1, i, 0);
        qcow2_metaset_remove(&s->meta, table >> s->geo.cluster_bits);
        qcow2_cache_drop(s->l2, table, s->cluster_size);
        qcow2_drop_clusters(s, table >> s->geo.cluster_bits, 1, true);
    }
}

static int co_drop_tables(struct qcow2 *s, uint32_t first)
{
    int r;

    co_mutex_lock(&s->sync_lock);
    r = co_qcow2_sync_locked(s);
    if (r == 0)
        drop_tables(s, first);
    co_mutex_unlock(&s->sync_lock);
    return r < 0 ? r : co_qcow2_sync(s);
}

/* The rest of the last cluster, so that no old data stays in it, of a disk that had
 * @old bytes. Version 2 cannot say zero over a backing file; the rest is made zero
 * there when it is shown again. */
static int co_zero_tail(struct qcow2 *s, uint64_t size, uint64_t old)
{
    uint64_t end = MIN(align_up(size, s->cluster_size), old);
    int r = size < end ? co_qcow2_zero_range(s, size, end - size) : 0;

    return r == -ENOTSUP ? 0 : r;
}

int co_qcow2_shrink(struct qcow2 *s, uint64_t size)
{
    uint64_t first = div_round_up(size, s->cluster_size), old = s->node->size;
    uint64_t end = (uint64_t)s->l1.n << s->geo.l2_bits;
    int r = co_qcow2_set_size(s, size);

    s->host_bytes = 0;
    /* I-Q7: with the old size the disk must not show any of this. */
    if (r == 0)
        r = co_zero_tail(s, size, old);
    if (r == 0 && first < end)
        r = co_qcow2_forget_clusters(s, first, end - first);
    if (r == 0)
        r = co_drop_tables(s, (uint32_t)div_round_up(first, 1ULL << s->geo.l2_bits));
    return r;
}
