/* SPDX-License-Identifier: Apache-2.0
 *
 * Another size for the virtual disk; making it smaller is in shrink.c. What growing
 * brings into sight must read as zero: the rest of the old last cluster, what the L2
 * table of the old end maps behind it, and what a longer backing file has there. The
 * new size is written last, when the disk behind the old end is sound (I-Q7).
 */
#include "base/limits.h"
#include "drivers/qcow2/qcow2.h"
#include <inttypes.h>

static uint32_t table_clusters(const struct qcow2 *s, uint64_t entries)
{
    return (uint32_t)div_round_up(entries * 8, s->cluster_size);
}

/* Write the entries @v of an L1 table of @n to @host. */
static int co_write_l1(struct qcow2 *s, uint64_t host, const uint64_t *v, uint32_t n)
{
    CLEANUP(free) uint8_t *disk = malloc(n * 8ULL);

    if (!disk)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        qcow2_entry_set(disk, i, v[i]);
    return co_qcow2_meta_write(s, host, n * 8ULL, disk);
}

/* Point the header to an L1 table of @n entries at @host. Under sync_lock, with
 * room for them in memory. */
static int co_publish_l1(struct qcow2 *s, uint64_t host, uint32_t n)
{
    CLEANUP(free) uint64_t *v = calloc(n, sizeof(*v));
    int r;

    if (!v)
        return -ENOMEM;
    /* What these entries name is on the disk before they are (I-Q3). Entries that
     * are set meanwhile follow with the next write-back. */
    memcpy(v, s->l1.v, s->l1.n * sizeof(*v));
    r = co_qcow2_sync_locked(s);
    if (r == 0)
        r = co_write_l1(s, host, v, n);
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r == 0)
        r = qcow2_table_lengthen(&s->l1, n);
    if (r < 0)
        return r;
    r = co_qcow2_write_l1_fields(s, host, n);
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r < 0) {
        qcow2_stop_writing(s);      /* which table counts is not known */
        return r;
    }
    s->l1.off = host;
    for (uint32_t i = 0; i < n; i++) {
        if (s->l1.v[i] != v[i])
            qcow2_table_set(&s->l1, i, s->l1.v[i]);
    }
    return 0;
}

static int co_lengthen_l1(struct qcow2 *s, uint32_t n)
{
    uint32_t old_clusters = table_clusters(s, s->l1.n), clusters = table_clusters(s, n);
    uint64_t old = s->l1.off, host = old;
    bool moves = clusters > old_clusters;
    int r = 0;

    if (moves)
        r = co_qcow2_alloc_table(s, clusters, &host);
    if (r < 0)
        return r;
    co_mutex_lock(&s->sync_lock);
    r = co_publish_l1(s, host, n);
    co_mutex_unlock(&s->sync_lock);
    if (moves && s->write_ready) {
        uint64_t unused = r < 0 ? host : old;
        int ignored = co_qcow2_unref(s, unused >> s->geo.cluster_bits,
                                     r < 0 ? clusters : old_clusters);

        (void)ignored;              /* at worst they leak */
    }
    return r;
}

/* Zero what [old, size) would show: the rest of the old end's L2 table, what a
 * longer backing file has, and tables that are there though the disk ended before
 * them (QEMU keeps the state of virtual machines so). */
static int co_zero_revealed(struct qcow2 *s, uint64_t old, uint64_t size)
{
    unsigned shift = s->geo.cluster_bits + s->geo.l2_bits;
    uint64_t per_table = 1ULL << shift, end = MIN(align_up(old, per_table), size);
    struct node *b = qcow2_backing(s);
    int r;

    if (!b && s->names_backing)     /* it is not open, and may be of any length */
        end = size;
    if (b)      /* to the end of a table: it may map clusters behind the backing file's end */
        end = MIN(align_up(MAX(end, node_size(b)), per_table), size);
    r = old < end ? co_qcow2_zero_range(s, old, end - old) : 0;
    for (uint64_t at = align_up(end, per_table); r == 0 && at < size; at += per_table) {
        if (s->l1.v[at >> shift])
            r = co_qcow2_zero_range(s, at, MIN(per_table, size - at));
    }
    return r;
}

int co_qcow2_set_size(struct qcow2 *s, uint64_t size)
{
    int r = co_qcow2_sync(s);

    if (r < 0)
        return r;
    r = co_qcow2_write_size_field(s, size);
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r == 0)
        s->node->size = size;
    else
        qcow2_stop_writing(s);      /* which size counts is not known */
    return r;
}

/* The data file first, as the disk needs it. What one that is longer already has there
 * would show in a raw one; in another, the entries hide it. */
static int co_lengthen_data(struct qcow2 *s, uint64_t size)
{
    uint64_t old = s->node->size, have = MIN(node_size(s->data), size);
    int r = co_qcow2_data_grow(s, size);

    if (r == 0 && s->raw_data && have > old)
        r = co_qcow2_zero_data(s, old, have - old, REQ_MAY_UNMAP);
    return r;
}

/* Version 2 has no zero flag to hide what the backing file has behind the old end. */
static bool cannot_hide(const struct qcow2 *s, struct err *err)
{
    if (!qcow2_backing(s) && s->names_backing)
        return err_set(err, -ENOTSUP, "A version 2 image cannot grow while its backing file, which "
                       "may be longer than it, is not open: open it with its backing file, or "
                       "make it one of version 3 ('qemu-img amend -o compat=1.1')");
    return err_set(err, -ENOTSUP, "A version 2 image cannot grow over a backing file that is "
                   "longer: make it one of version 3 ('qemu-img amend -o compat=1.1'), or copy "
                   "it to one ('stillpoint convert')");
}

/* The data file ends with the disk. Where it has more, that goes before the disk is longer: from
 * that moment on it is used. A device stays as long as it is. */
static void co_trim_data(struct qcow2 *s, uint64_t size)
{
    if (s->geo.data_file && size < node_size(s->data))
        (void)!co_node_resize(s->data, size, NULL);
}

/* Nothing suspends between the size's change and the return, when the disk grows: what the
 * callers keep of the disk's size follows then, and requests may use all of it. */
static bool co_resize_alone(struct qcow2 *s, uint64_t size, struct err *err)
{
    struct node *n = s->node;
    uint64_t entries = size <= INT64_MAX ? qcow2_l1_entries_for(size, s->geo.cluster_bits,
                                                                s->geo.extended)
                                         : UINT64_MAX;
    int r;

    if (size % 512)
        return err_set(err, -EINVAL, "The new size must be a multiple of 512");
    if (entries > LIMIT_QCOW2_L1_BYTES / 8)
        return err_set(err, -EFBIG, "%" PRIu64 " bytes are too many for an image with clusters of "
                       "%" PRIu64 " bytes", size, s->cluster_size);
    if (s->geo.version < 3 && s->header.n_snapshots)
        return err_set(err, -ENOTSUP, "Can't resize a version 2 image which has snapshots");
    r = co_qcow2_begin_write(s);
    if (r == 0 && size != n->size)
        r = co_qcow2_bitmaps_outdate(s);
    if (r == 0 && s->geo.data_file && size > n->size)
        r = co_lengthen_data(s, size);
    if (r == 0 && entries > s->l1.n)
        r = co_lengthen_l1(s, (uint32_t)entries);
    if (r == 0 && size > n->size)
        r = co_zero_revealed(s, n->size, size);
    if (r == -ENOTSUP && s->geo.version < 3)
        return cannot_hide(s, err);
    if (r == 0 && size < n->size) {
        r = co_qcow2_shrink(s, size);
        if (r == 0)
            co_trim_data(s, size);
    } else if (r == 0) {
        co_trim_data(s, size);
        r = co_qcow2_set_size(s, size);
    }
    return r == 0 || err_errno(err, r, "Failed to resize the image to %" PRIu64 " bytes", size);
}

bool co_qcow2_resize(struct node *n, uint64_t size, struct err *err)
{
    struct qcow2 *s = n->state;
    bool ok;

    co_mutex_lock(&s->resize_lock);
    ok = co_resize_alone(s, size, err);
    co_mutex_unlock(&s->resize_lock);
    return ok;
}
