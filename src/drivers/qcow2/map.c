/* SPDX-License-Identifier: Apache-2.0
 *
 * From guest offsets to what holds their content. An entry that cannot be is -EIO
 * for the clusters that it maps, and for no others.
 */
#include "drivers/qcow2/qcow2.h"

/* No L2 table: unallocated up to the end of the last table missing in a row. */
static uint64_t length_without_table(const struct qcow2 *s, uint64_t off, uint64_t len)
{
    unsigned shift = s->geo.cluster_bits + s->geo.l2_bits;
    uint64_t i = off >> shift, last = (off + len - 1) >> shift;

    while (i < last && !s->l1.v[i + 1])
        i++;
    return MIN(len, ((i + 1) << shift) - off);
}

/* Whether @e goes on where a run of @n clusters like @first has come to. */
static bool continues(const struct qcow2 *s, const struct qcow2_l2_entry *first,
                      const struct qcow2_l2_entry *e, uint32_t n)
{
    if (e->kind != first->kind || e->copied != first->copied)
        return false;
    return !first->placed || e->host == first->host + n * s->cluster_size;
}

/* Clusters from @index on, at most @most, that make one run. */
static uint32_t run_length(const struct qcow2 *s, const void *slice, uint32_t index, uint32_t most,
                           const struct qcow2_l2_entry *first)
{
    struct qcow2_l2_entry e;
    uint32_t n = 1;

    while (n < most && qcow2_l2_decode(&s->geo, qcow2_entry_get(slice, index + n), &e) &&
           continues(s, first, &e, n))
        n++;
    return n;
}

int co_qcow2_map(struct qcow2 *s, uint64_t off, uint64_t len, struct qcow2_extent *ret)
{
    uint64_t in_cluster = off & (s->cluster_size - 1);
    struct qcow2_l2_place place;
    struct qcow2_l2_entry e;
    const void *slice;
    uint32_t n = 1;
    int r = co_qcow2_l2_get(s, off, &slice, &place);

    if (UNLIKELY(r < 0))
        return r;
    if (!slice) {
        *ret = (struct qcow2_extent){ .kind = QCOW2_UNALLOCATED,
                                      .len = length_without_table(s, off, len) };
        return 0;
    }
    if (UNLIKELY(s->geo.extended))
        return qcow2_map_subclusters(s, slice, place.index, off, len, ret);
    if (UNLIKELY(!qcow2_l2_decode(&s->geo, qcow2_entry_get(slice, place.index), &e)))
        return -EIO;
    if (UNLIKELY(!qcow2_place_is_right(s, &e, off)))
        return -EIO;
    if (in_cluster + len > s->cluster_size && e.kind != QCOW2_COMPRESSED_KIND) {
        uint64_t most = MIN(div_round_up(in_cluster + len, s->cluster_size),
                            (uint64_t)(1U << s->l2_slice_bits) - place.index);

        n = run_length(s, slice, place.index, (uint32_t)most, &e);
    }
    ret->kind = e.kind;
    ret->copied = e.copied;
    ret->len = MIN(len, n * s->cluster_size - in_cluster);
    ret->host = e.placed ? e.host + in_cluster : 0;
    ret->entry = e;
    return 0;
}

/* Of runs that are looked at for one answer: to tell a guest's whole disk takes
 * longer than others should wait. */
#define STATUS_RUNS_MAX 64

/* ---- block status -------------------------------------------------------- */

static unsigned status_flags(const struct qcow2 *s, const struct qcow2_extent *e, uint64_t off)
{
    switch (e->kind) {
    case QCOW2_UNALLOCATED:
        return !qcow2_backing(s) && qcow2_unallocated_is_zero(s, off) ? STATUS_ZERO : 0;
    case QCOW2_ZERO_PLAIN:
    case QCOW2_ZERO_ALLOC:
        return STATUS_ALLOCATED | STATUS_ZERO;
    case QCOW2_NORMAL:
        return STATUS_ALLOCATED | STATUS_DATA | STATUS_OFFSET;
    case QCOW2_COMPRESSED_KIND:
        return STATUS_ALLOCATED | STATUS_DATA | STATUS_COMPRESSED;
    case QCOW2_MIXED:       /* not of an extent */
        break;
    }
    return 0;
}

static int co_status(struct qcow2 *s, uint64_t off, uint64_t len, struct block_status *ret)
{
    struct qcow2_extent e;
    unsigned runs = 1;
    uint64_t done;
    int r = co_qcow2_map(s, off, len, &e);

    if (r < 0)
        return r;
    ret->flags = status_flags(s, &e, off);
    ret->host_off = e.host;
    ret->file = s->data;
    /* Runs go on over the border of a slice or table. */
    for (done = e.len; done < len && runs < STATUS_RUNS_MAX; done += e.len, runs++) {
        if (co_qcow2_map(s, off + done, len - done, &e) < 0 ||
            status_flags(s, &e, off + done) != ret->flags ||
            ((ret->flags & STATUS_OFFSET) && e.host != ret->host_off + done))
            break;
    }
    ret->len = done;
    return 0;
}

int co_qcow2_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    struct qcow2 *s = n->state;
    unsigned entered = qcow2_enter(s);
    int r = co_status(s, off, len, ret);

    qcow2_leave(s, entered);
    return r;
}
