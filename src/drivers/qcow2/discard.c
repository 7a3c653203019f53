/* SPDX-License-Identifier: Apache-2.0
 *
 * Zero writes and discards: changes of L2 entries, and data only where a range
 * begins or ends inside a cluster. Nothing suspends between the last look at the
 * claims and the change of a slice, so no claim is needed here.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"

/* Slices that are changed before others may run. */
#define STEPS_AT_ONCE 32

/* How clusters are to become zero. */
struct zeroing {
    bool unmap;                  /* give the host clusters up */
    bool punch;                  /* and pass a discard on for them */
    bool exact;                  /* not a discard: what cannot be made zero is written */
    bool forget;                 /* not zero, but as if never written: the backing file shows */
    uint64_t end;                /* in bytes. The unit that goes on behind it is whole because the
                                  *   disk ends there: no longer when that has grown */
};

/* The entry that makes the cluster read as zero; whether it drops what @e has. */
static uint64_t zero_entry(const struct qcow2 *s, const struct zeroing *z, uint64_t guest,
                           const struct qcow2_l2_entry *e, bool *ret_drop)
{
    bool unallocated_zero = qcow2_unallocated_is_zero(s, guest);

    *ret_drop = false;
    if (e->kind == QCOW2_ZERO_PLAIN)
        return QCOW2_ZERO;
    if (e->kind == QCOW2_UNALLOCATED)
        return unallocated_zero ? 0 : QCOW2_ZERO;
    /* In a data file a cluster keeps its place in any case. */
    if (!z->unmap && e->copied && s->geo.version >= 3 && !s->geo.data_file)
        return e->host | QCOW2_COPIED | QCOW2_ZERO;
    *ret_drop = true;
    return unallocated_zero && (z->unmap || s->geo.version < 3) ? 0 : QCOW2_ZERO;
}

static int zero_cluster(struct qcow2 *s, const struct zeroing *z, uint64_t cluster, void *slice,
                        uint32_t index)
{
    uint64_t old = qcow2_entry_get(slice, index), new;
    struct qcow2_l2_entry e;
    bool drop;

    if (!qcow2_l2_decode(&s->geo, old, &e))
        return -EIO;
    if (s->raw_data && e.kind == QCOW2_NORMAL)
        return 0;               /* it is zero already, in the data file */
    new = zero_entry(s, z, cluster << s->geo.cluster_bits, &e, &drop);
    if (new == old)
        return 0;
    if (drop)
        qcow2_drop_entry(s, &e, z->punch);
    qcow2_entry_set(slice, index, new);
    return 0;
}

/* Whole, with all subclusters. */
static int forget_cluster(struct qcow2 *s, const struct zeroing *z, void *slice, uint32_t index)
{
    struct qcow2_l2_entry e;

    if (!qcow2_l2_entry_get(&s->geo, slice, index, &e))
        return -EIO;
    qcow2_drop_entry(s, &e, z->punch);
    qcow2_l2_entry_set(&s->geo, slice, index, 0, 0, 0);
    return 0;
}

/* ---- subclusters --------------------------------------------------------- */

/* Those that read as zero, and will go on to, when nothing is allocated there. */
static uint32_t zero_when_unallocated(const struct qcow2 *s, uint64_t cluster)
{
    uint64_t begin = cluster << s->geo.cluster_bits;
    unsigned sub = QCOW2_SUBCLUSTERS;

    if (qcow2_unallocated_is_zero(s, begin))
        return UINT32_MAX;
    /* Those behind the end of the backing file. */
    while (qcow2_unallocated_is_zero(s, begin + ((uint64_t)(sub - 1) << s->unit_bits)))
        sub--;
    return sub < QCOW2_SUBCLUSTERS ? UINT32_MAX << sub : 0;
}

/* Make the subclusters @mask zero. -EAGAIN: the bitmap cannot say it. */
static int zero_subclusters(struct qcow2 *s, const struct zeroing *z, uint64_t cluster,
                            uint32_t mask, void *slice, uint32_t index)
{
    struct qcow2_l2_entry e;

    if (!qcow2_l2_entry_get(&s->geo, slice, index, &e))
        return -EIO;
    if (e.kind == QCOW2_COMPRESSED_KIND && mask != UINT32_MAX)
        return -EAGAIN;

    if (s->raw_data)
        mask &= ~e.alloc;       /* the others are zero already, in the data file */

    uint64_t v = qcow2_l2_descriptor(&s->geo, slice, index);
    bool compressed = e.kind == QCOW2_COMPRESSED_KIND;
    /* Data that is given up becomes unallocated where that is enough. */
    uint32_t has_data = compressed ? mask : e.alloc;
    uint32_t left_alone = zero_when_unallocated(s, cluster) & (z->unmap ? UINT32_MAX : ~has_data);
    uint32_t alloc = e.alloc & ~mask, zero = e.zero | (mask & ~left_alone);

    /* The host cluster goes with its last data, or when all is given up. One that
     * is kept for later writes stays; it would not be used while it is shared. */
    if (compressed || (e.host && !alloc && (!e.copied || (z->unmap && (e.alloc ||
                                                                        mask == UINT32_MAX))))) {
        qcow2_drop_entry(s, &e, z->punch);
        v = 0;
    }
    qcow2_l2_entry_set(&s->geo, slice, index, v, alloc, zero);
    return 0;
}

/* ---- clusters ------------------------------------------------------------ */

static inline unsigned units_bits(const struct qcow2 *s)
{
    return s->geo.cluster_bits - s->unit_bits;     /* units in a cluster: 1 << bits */
}

static int zero_units(struct qcow2 *s, const struct zeroing *z, uint64_t first, uint64_t n,
                      void *slice, uint32_t index)
{
    uint64_t cluster = first >> units_bits(s);

    if (z->forget)
        return forget_cluster(s, z, slice, index);
    if (!s->geo.extended)
        return zero_cluster(s, z, cluster, slice, index);
    return zero_subclusters(s, z, cluster,
                            qcow2_touched(s, cluster, first << s->unit_bits, n << s->unit_bits),
                            slice, index);
}

/* Whether the last of these units has got bytes that the request does not mean, and a
 * guest may have written. */
static bool has_grown(const struct qcow2 *s, const struct zeroing *z, uint64_t first, uint64_t n)
{
    return (first + n) << s->unit_bits > z->end && s->node->size > z->end;
}

/* Make @n units from @first zero, as far as they lie in one slice, no claim is on
 * their clusters and entries can say it: *ret_n, 0 if that is why. */
static int co_zero_in_slice(struct qcow2 *s, const struct zeroing *z, uint64_t first, uint64_t n,
                            uint64_t *ret_n)
{
    uint64_t cluster = first >> units_bits(s), end = first + n;
    uint32_t in_slice = 1U << s->l2_slice_bits, count;
    struct qcow2_l2_place place;
    void *slice;
    int r;

    do {
        count = (uint32_t)MIN(((end - 1) >> units_bits(s)) - cluster + 1,
                              in_slice - (cluster & (in_slice - 1)));
        r = co_qcow2_l2_get_writable(s, first << s->unit_bits, &place);
        if (r < 0)
            return r;
    } while (co_qcow2_wait_claim(s, cluster, &count));
    r = qcow2_cache_modify(s->l2, place.slice, &slice);
    *ret_n = 0;
    if (has_grown(s, z, first, n))
        end--;
    for (uint32_t i = 0; i < count && first + *ret_n < end && r == 0; i++) {
        uint64_t border = MIN((cluster + i + 1) << units_bits(s), end);

        r = zero_units(s, z, first + *ret_n, border - first - *ret_n, slice, place.index + i);
        if (r == 0)
            *ret_n = border - first;
    }
    return r == -EAGAIN ? 0 : r;
}

/* Units that have no L2 table and need none to be what is wished. */
static uint64_t fit_without_table(struct qcow2 *s, const struct zeroing *z, uint64_t first,
                                  uint64_t n)
{
    unsigned bits = s->geo.l2_bits + units_bits(s);
    uint64_t at = first;

    if (!z->forget && !qcow2_unallocated_is_zero(s, first << s->unit_bits))
        return 0;
    while (at < first + n && !s->l1.v[at >> bits])
        at = ((at >> bits) + 1) << bits;
    return MIN(at, first + n) - first;
}

/* ---- what entries cannot say --------------------------------------------- */

static int co_write_zero_data(struct qcow2 *s, uint64_t off, uint64_t len, unsigned flags)
{
    int n = (int)div_round_up(len, QCOW2_ZEROS_BYTES);
    CLEANUP(free) struct iovec *v = calloc((size_t)n, sizeof(*v));

    if (!v)
        return -ENOMEM;
    for (int i = 0; i < n; i++) {
        uint64_t part = MIN(len - i * (uint64_t)QCOW2_ZEROS_BYTES, (uint64_t)QCOW2_ZEROS_BYTES);

        v[i] = (struct iovec){ (void *)qcow2_zeros, part };
    }
    return co_qcow2_write_run(s, off, len, v, n, flags);
}

/* Part of a unit, or of a compressed cluster: zeros are written, unless it reads as
 * zero. */
static int co_zero_part(struct qcow2 *s, uint64_t off, uint64_t len, unsigned flags)
{
    unsigned entered = qcow2_enter(s);
    struct qcow2_extent e;
    uint32_t n = 1;
    int r;

    do {
        r = co_qcow2_map(s, off, len, &e);
    } while (r == 0 && co_qcow2_wait_claim(s, off >> s->geo.cluster_bits, &n));
    if (r == 0 && e.kind != QCOW2_ZERO_PLAIN && e.kind != QCOW2_ZERO_ALLOC &&
        !(e.kind == QCOW2_NORMAL && s->raw_data) &&
        !(e.kind == QCOW2_UNALLOCATED && qcow2_unallocated_is_zero(s, off)))
        r = co_write_zero_data(s, off, len, flags);
    qcow2_leave(s, entered);
    return r;
}

/* ---- ranges -------------------------------------------------------------- */

/* A request of any length: steps of a slice, each of them a request to the grace. */
static int co_zero_units(struct qcow2 *s, const struct zeroing *z, uint64_t first, uint64_t n)
{
    for (unsigned steps = 1; n; steps++) {
        uint64_t skip = fit_without_table(s, z, first, n), done = 0;
        int r = 0;

        if (skip) {
            /* What is being written there may come before or after us, as it likes. */
            first += skip;
            n -= skip;
            continue;
        }

        unsigned entered = qcow2_enter(s);

        r = co_zero_in_slice(s, z, first, n, &done);
        qcow2_leave(s, entered);
        if (r == 0 && !done) {
            uint64_t off = first << s->unit_bits;

            done = MIN(n, (((first >> units_bits(s)) + 1) << units_bits(s)) - first);
            if (z->exact)
                r = co_zero_part(s, off, MIN(done << s->unit_bits, z->end - off), 0);
        }
        if (r == 0 && s->dropped.n > LIMIT_QCOW2_FREED_RUNS) {
            r = co_qcow2_sync(s);
            co_qcow2_wait_freed(s);
        }
        if (r < 0)
            return r;
        first += done;
        n -= done;
        if (steps % STEPS_AT_ONCE == 0)
            co_yield();
    }
    return 0;
}

/* ---- the two operations -------------------------------------------------- */

/* The whole units of a range; the last of the disk counts as whole. */
static void whole_units(const struct qcow2 *s, uint64_t off, uint64_t len, uint64_t *ret_first,
                           uint64_t *ret_end)
{
    uint64_t end = off + len;

    if (end == s->node->size)
        end = align_up(end, 1ULL << s->unit_bits);
    *ret_first = div_round_up(off, 1ULL << s->unit_bits);
    *ret_end = end >> s->unit_bits;
}

/* Before any entry changes. A raw data file has to become zero itself, whatever the
 * entries will say. In another one, what is given up is given back to the file: now,
 * because nothing keeps the place from its next write, which may come as soon as
 * the entry has changed. */
static int co_zero_in_data_file(struct qcow2 *s, const struct zeroing *z, uint64_t off,
                                uint64_t len, unsigned flags)
{
    uint64_t first, end;

    if (LIKELY(!s->geo.data_file))
        return 0;
    if (s->raw_data)
        return co_qcow2_zero_data(s, off, len, flags);
    whole_units(s, off, len, &first, &end);
    if (z->unmap && z->punch && first < end) {
        uint64_t from = first << s->unit_bits, to = MIN(end << s->unit_bits, off + len);
        int ignored = co_qcow2_zero_data(s, from, to - from, REQ_MAY_UNMAP | REQ_NO_FALLBACK);

        (void)ignored;          /* then the file keeps the space */
    }
    return 0;
}

/* Parts of units at the ends, whole ones between. */
static int co_zero(struct qcow2 *s, struct zeroing *z, uint64_t off, uint64_t len,
                   unsigned flags)
{
    uint64_t first, end, from, to;
    int r = 0;

    z->end = off + len;
    whole_units(s, off, len, &first, &end);
    from = MIN(off + len, first << s->unit_bits);
    to = first < end ? MIN(off + len, end << s->unit_bits) : from;
    if (first < end)
        r = co_zero_units(s, z, first, end - first);
    if (r == 0 && off < from)
        r = co_zero_part(s, off, from - off, flags);
    if (r == 0 && to < off + len)
        r = co_zero_part(s, to, off + len - to, flags);
    qcow2_sync_soon(s);
    return r;
}

int co_qcow2_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct qcow2 *s = n->state;
    struct zeroing z = { .unmap = (flags & REQ_MAY_UNMAP) && !s->discard_no_unref,
                         .punch = s->pass_discard_request, .exact = true };
    int r = co_qcow2_begin_write(s);

    if (r < 0)
        return r;
    /* Version 2 has no zero flag: zeros over a backing file are data. */
    if (s->geo.version < 3 && !qcow2_unallocated_is_zero(s, off))
        return -ENOTSUP;
    r = co_zero_in_data_file(s, &z, off, len, flags);
    return r < 0 ? r : co_zero(s, &z, off, len, flags);
}

/* In version 2 what is unmapped shows the backing file again: where that has
 * content, nothing can be given up. */
static uint64_t first_discardable(const struct qcow2 *s)
{
    if (s->geo.version >= 3)
        return 0;
    if (qcow2_backing(s))
        return div_round_up(node_size(qcow2_backing(s)), 1ULL << s->unit_bits);
    return s->names_backing ? UINT64_MAX : 0;
}

int co_qcow2_discard(struct node *n, uint64_t off, uint64_t len)
{
    struct qcow2 *s = n->state;
    struct zeroing z = { .unmap = !s->discard_no_unref, .punch = s->pass_discard_request };
    uint64_t first, end;
    int r = co_qcow2_begin_write(s);

    if (r < 0)
        return r;
    whole_units(s, off, len, &first, &end);
    first = MAX(first, first_discardable(s));
    if (first >= end)
        return 0;
    off = first << s->unit_bits;
    len = MIN(end << s->unit_bits, n->size) - off;
    z.end = off + len;
    r = co_zero_in_data_file(s, &z, off, len, REQ_MAY_UNMAP | REQ_NO_FALLBACK);
    if (r < 0)
        return r == -ENOTSUP ? 0 : r;
    r = co_zero_units(s, &z, first, end - first);
    qcow2_sync_soon(s);
    return r;
}

int co_qcow2_zero_range(struct qcow2 *s, uint64_t off, uint64_t len)
{
    struct zeroing z = { .unmap = true, .exact = true };

    if (s->geo.version < 3 && !qcow2_unallocated_is_zero(s, off))
        return -ENOTSUP;

    int r = co_zero_in_data_file(s, &z, off, len, REQ_MAY_UNMAP);

    return r < 0 ? r : co_zero(s, &z, off, len, 0);
}

int co_qcow2_forget_clusters(struct qcow2 *s, uint64_t first, uint64_t n)
{
    struct zeroing z = { .unmap = true, .punch = s->pass_discard_request, .forget = true,
                         .end = UINT64_MAX };

    return co_zero_units(s, &z, first << units_bits(s), n << units_bits(s));
}

int co_qcow2_forget_all(struct qcow2 *s)
{
    return co_qcow2_forget_clusters(s, 0, div_round_up(s->node->size, s->cluster_size));
}
