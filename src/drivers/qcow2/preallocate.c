/* SPDX-License-Identifier: Apache-2.0
 *
 * Preallocation, slice by slice: clusters are taken, made to read as zero where they do
 * not yet, and linked as if they had been written; the write-back keeps the order (I-Q1).
 * With subclusters a cluster is linked with none of them allocated, so that what is below
 * still shows.
 */
#include "drivers/qcow2/preallocate.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"

#define FULL_STEP (2 * MiB)

bool qcow2_can_preallocate(struct node *n, struct err *err)
{
    const struct qcow2 *s = n->state;

    return !s->names_backing || s->geo.extended ||
           err_set(err, -ENOTSUP, "Preallocation would hide the backing file: leave it out, or "
                   "make the image with extended_l2=on");
}

static int co_write_zeros(struct qcow2 *s, uint64_t host, uint64_t len)
{
    CLEANUP(free) void *zeros = try_alloc_aligned(FULL_STEP);
    int r = zeros ? 0 : -ENOMEM;

    if (zeros)
        memset(zeros, 0, FULL_STEP);
    for (uint64_t done = 0, step; r == 0 && done < len; done += step) {
        step = MIN(len - done, (uint64_t)FULL_STEP);
        r = co_node_pwrite(s->file, host + done, step, zeros, REQ_BULK);
    }
    return r;
}

/* Make new clusters read as zero, with as much of their space as is wished. */
static int co_fill(struct qcow2 *s, const struct qcow2_space *space, enum qcow2_preallocation how)
{
    uint64_t len = space->n * s->cluster_size;

    switch (how) {
    case QCOW2_PREALLOC_METADATA:
        return space->fresh ? 0 : co_node_write_zeroes(s->file, space->host, len,
                                                       REQ_MAY_UNMAP | REQ_BULK);
    case QCOW2_PREALLOC_FALLOC:
        return co_node_write_zeroes(s->file, space->host, len, REQ_BULK);
    case QCOW2_PREALLOC_FULL:
        return co_write_zeros(s, space->host, len);
    }
    return -EINVAL;
}

/* How many of @n entries from @i on are alike: with nothing in them, or not. */
static int count_alike(struct qcow2 *s, const void *slice, uint32_t i, uint32_t n, bool *ret_empty,
                       uint32_t *ret)
{
    struct qcow2_l2_entry e;

    for (*ret = 0; *ret < n; ++*ret) {
        if (!qcow2_l2_entry_get(&s->geo, slice, i + *ret, &e))
            return -EIO;

        bool empty = e.kind == QCOW2_UNALLOCATED && !e.host && !e.alloc && !e.zero;

        if (*ret && empty != *ret_empty)
            break;
        *ret_empty = empty;
    }
    return 0;
}

/* Link @space to the guest clusters from @cluster on; their table is there. */
static int co_link(struct qcow2 *s, uint64_t cluster, const struct qcow2_space *space)
{
    struct qcow2_l2_place place;
    void *slice;
    int r = co_qcow2_l2_get_writable(s, cluster << s->geo.cluster_bits, &place);

    if (r == 0)
        r = qcow2_cache_modify(s->l2, place.slice, &slice);
    for (uint32_t i = 0; r == 0 && i < space->n; i++)
        qcow2_l2_entry_set(&s->geo, slice, place.index + i,
                           (space->host + i * s->cluster_size) | QCOW2_COPIED, 0, 0);
    return r;
}

/* The clusters from @cluster on, up to @n of them, as far as they are in one slice and
 * alike: *ret_n. */
static int co_step(struct qcow2 *s, uint64_t cluster, uint64_t n, enum qcow2_preallocation how,
                   uint32_t *ret_n)
{
    uint32_t in_slice = 1U << s->l2_slice_bits;
    uint32_t most = (uint32_t)MIN(n, in_slice - (cluster & (in_slice - 1)));
    uint64_t off = cluster << s->geo.cluster_bits;
    struct qcow2_l2_place place;
    struct qcow2_space space;
    const void *slice;
    bool empty;
    int r;

    /* The table first, so that it does not lie among the clusters. */
    r = co_qcow2_l2_get_writable(s, off, &place);
    if (r == 0)
        r = co_qcow2_l2_get(s, off, &slice, &place);
    if (r == 0)
        r = count_alike(s, slice, place.index, most, &empty, ret_n);
    if (r < 0 || !empty)
        return r;
    r = co_qcow2_alloc(s, *ret_n, &space);
    if (r < 0)
        return r;
    *ret_n = space.n;
    r = co_fill(s, &space, how);
    if (r == 0)
        r = co_link(s, cluster, &space);
    if (r < 0) {
        int ignored = co_qcow2_unref(s, space.host >> s->geo.cluster_bits, space.n);

        (void)ignored;           /* a leak; the first error is the one to tell */
        return r;
    }
    qcow2_sync_soon(s);
    return 0;
}

bool co_qcow2_preallocate(struct node *n, uint64_t off, uint64_t len,
                          enum qcow2_preallocation how, struct err *err)
{
    struct qcow2 *s = n->state;
    uint64_t at = off >> s->geo.cluster_bits, end = div_round_up(off + len, s->cluster_size);
    int r;

    assert(off + len <= n->size);
    if (!qcow2_can_preallocate(n, err))
        return false;
    r = co_qcow2_begin_write(s);
    while (r == 0 && len && at < end) {
        unsigned entered = qcow2_enter(s);
        uint32_t done = 0;

        r = co_step(s, at, end - at, how, &done);
        qcow2_leave(s, entered);
        at += done;
    }
    if (r == 0)
        r = co_qcow2_sync(s);
    return r == 0 || err_errno(err, r, "Could not allocate all of the disk");
}
