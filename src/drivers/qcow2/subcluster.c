/* SPDX-License-Identifier: Apache-2.0
 *
 * Mapping in images with extended L2 entries: the same questions that map.c
 * answers, asked of bitmaps. For reading, the run goes over subclusters that are
 * alike. For writing it goes over clusters, whatever their subclusters are: those
 * whose data goes to one kind of place in one go, and with which edges.
 *
 * Here and below, a subcluster's number is that in its cluster, 0 .. 31, and a
 * mask has a bit for each of them.
 */
#include "drivers/qcow2/qcow2.h"

static inline unsigned sub_of(const struct qcow2 *s, uint64_t off)
{
    return (unsigned)((off & (s->cluster_size - 1)) >> s->unit_bits);
}

uint32_t qcow2_touched(const struct qcow2 *s, uint64_t cluster, uint64_t off, uint64_t len)
{
    uint64_t begin = cluster << s->geo.cluster_bits, end = begin + s->cluster_size;
    unsigned first = sub_of(s, MAX(off, begin)), last = sub_of(s, MIN(off + len, end) - 1);

    return (UINT32_MAX << first) & (UINT32_MAX >> (QCOW2_SUBCLUSTERS - 1 - last));
}

/* ---- for reading --------------------------------------------------------- */

/* How many subclusters from @sub on are alike, and what they are. */
static unsigned alike(const struct qcow2_l2_entry *e, unsigned sub, enum qcow2_kind *ret_kind)
{
    uint32_t like = ~(e->alloc | e->zero), unlike;

    *ret_kind = QCOW2_UNALLOCATED;
    if (e->alloc >> sub & 1) {
        *ret_kind = QCOW2_NORMAL;
        like = e->alloc;
    } else if (e->zero >> sub & 1) {
        *ret_kind = e->placed ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
        like = e->zero;
    }
    unlike = ~(like >> sub);
    return unlike ? (unsigned)__builtin_ctz(unlike) : QCOW2_SUBCLUSTERS;
}

static bool has_host(enum qcow2_kind kind)
{
    return kind == QCOW2_NORMAL || kind == QCOW2_ZERO_ALLOC;
}

/* Whether the run *x, which ends with a cluster, goes on in cluster @e, whose
 * host cluster would have to be @host. */
static bool goes_on(const struct qcow2_extent *x, const struct qcow2_l2_entry *e, uint64_t host,
                    unsigned *ret_n)
{
    enum qcow2_kind kind;

    if (e->kind == QCOW2_COMPRESSED_KIND)
        return false;
    *ret_n = alike(e, 0, &kind);
    return kind == x->kind && (!has_host(kind) || (e->host == host && e->copied == x->copied));
}

int qcow2_map_subclusters(const struct qcow2 *s, const void *slice, uint32_t index, uint64_t off,
                          uint64_t len, struct qcow2_extent *ret)
{
    uint64_t in_cluster = off & (s->cluster_size - 1), have;
    unsigned sub = sub_of(s, off), n;
    struct qcow2_l2_entry e;

    if (UNLIKELY(!qcow2_l2_entry_get(&s->geo, slice, index, &e)))
        return -EIO;
    *ret = (struct qcow2_extent){ .kind = e.kind, .entry = e };
    if (e.kind == QCOW2_COMPRESSED_KIND) {
        ret->len = MIN(len, s->cluster_size - in_cluster);
        return 0;
    }
    n = alike(&e, sub, &ret->kind);
    if (UNLIKELY(!qcow2_place_is_right(s, &e, off)))
        return -EIO;
    if (has_host(ret->kind)) {
        ret->copied = e.copied;
        ret->host = e.host + in_cluster;
    }
    have = ((uint64_t)(sub + n) << s->unit_bits) - in_cluster;
    for (uint64_t host = e.host; have < len && sub + n == QCOW2_SUBCLUSTERS; sub = 0) {
        host += s->cluster_size;
        if (++index == 1U << s->l2_slice_bits ||
            !qcow2_l2_entry_get(&s->geo, slice, index, &e) || !goes_on(ret, &e, host, &n))
            break;
        have += (uint64_t)n << s->unit_bits;
    }
    ret->len = MIN(len, have);
    return 0;
}

/* ---- for writing --------------------------------------------------------- */

/* Where the data of a cluster goes. */
enum fate {
    IN_PLACE,       /* all that is touched is allocated, and the guest's own */
    IN_OWN,         /* into the cluster's own host cluster; bits have to be set */
    IN_NEW,         /* there is none, or it is shared, or compressed */
};

static enum fate fate_of(const struct qcow2_l2_entry *e, uint32_t touched)
{
    if (!e->copied)
        return IN_NEW;
    return touched & ~e->alloc ? IN_OWN : IN_PLACE;
}

bool qcow2_subcluster_is_zero(const struct qcow2 *s, const struct qcow2_l2_entry *e, uint64_t off)
{
    uint32_t bit = 1U << sub_of(s, off);

    if (e->kind == QCOW2_COMPRESSED_KIND || (e->alloc & bit))
        return false;
    return (e->zero & bit) || qcow2_unallocated_is_zero(s, align_down(off, 1ULL << s->unit_bits));
}

/* What has to be written before @off with the data that begins there. Of a cluster
 * of one's own, the rest of a subcluster that is not allocated; one that is may be
 * written by others meanwhile. Of another, all that has to move. */
static uint64_t head_of(const struct qcow2 *s, const struct qcow2_l2_entry *e, uint64_t off)
{
    uint32_t bit = 1U << sub_of(s, off);
    uint64_t from;

    if (e->kind == QCOW2_COMPRESSED_KIND)
        return off & (s->cluster_size - 1);
    if (e->copied)
        return e->alloc & bit ? 0 : off & ((1ULL << s->unit_bits) - 1);
    from = (uint64_t)__builtin_ctz(e->alloc | bit) << s->unit_bits;
    return (off & (s->cluster_size - 1)) - from;
}

/* And from @end on. */
static uint64_t tail_of(const struct qcow2 *s, const struct qcow2_l2_entry *e, uint64_t end)
{
    uint32_t bit = 1U << sub_of(s, end - 1);
    uint64_t to;

    if (e->kind == QCOW2_COMPRESSED_KIND)
        return align_up(end, s->cluster_size) - end;
    if (e->copied)
        return e->alloc & bit ? 0 : align_up(end, 1ULL << s->unit_bits) - end;
    to = (uint64_t)(QCOW2_SUBCLUSTERS - (unsigned)__builtin_clz(e->alloc | bit)) << s->unit_bits;
    return to - ((end - 1) & (s->cluster_size - 1)) - 1;
}

/* The edges of a run that begins in a cluster of entry @first and ends in one of @last. */
static void find_edges(const struct qcow2 *s, const struct qcow2_l2_entry *first,
                       const struct qcow2_l2_entry *last, uint64_t off, struct qcow2_extent *x)
{
    uint64_t end = off + x->len, unit = 1ULL << s->unit_bits;

    x->head = (uint32_t)head_of(s, first, off);
    x->tail = (uint32_t)tail_of(s, last, end);
    x->zero_around = (!x->head || (x->head < unit && qcow2_subcluster_is_zero(s, first, off))) &&
                     (!x->tail || (x->tail < unit && qcow2_subcluster_is_zero(s, last, end - 1)));
}

/* The end of the run of clusters from @index on that have the fate of the first,
 * in one place if they have one; *last is the last one's entry. */
static uint64_t end_of_run(const struct qcow2 *s, const void *slice, uint32_t index, uint64_t off,
                           uint64_t end, struct qcow2_l2_entry *last)
{
    uint64_t cluster = off >> s->geo.cluster_bits;
    enum fate fate = fate_of(last, qcow2_touched(s, cluster, off, end - off));

    for (;;) {
        uint64_t border = ++cluster << s->geo.cluster_bits;
        struct qcow2_l2_entry e;

        if (border >= end)
            return end;
        if (++index == 1U << s->l2_slice_bits || !qcow2_l2_entry_get(&s->geo, slice, index, &e) ||
            fate_of(&e, qcow2_touched(s, cluster, border, end - border)) != fate ||
            (fate != IN_NEW && e.host != last->host + s->cluster_size))
            return border;
        *last = e;
    }
}

int co_qcow2_map_clusters(struct qcow2 *s, uint64_t off, uint64_t len, struct qcow2_extent *ret)
{
    struct qcow2_l2_place place;
    struct qcow2_l2_entry first = { .kind = QCOW2_UNALLOCATED }, last;
    const void *slice;
    int r = co_qcow2_l2_get(s, off, &slice, &place);

    if (UNLIKELY(r < 0))
        return r;
    if (!slice) {
        r = co_qcow2_map(s, off, len, ret);      /* does not suspend without a table */
        ret->entry = first;
        find_edges(s, &first, &first, off, ret);
        return r;
    }
    if (UNLIKELY(!qcow2_l2_entry_get(&s->geo, slice, place.index, &first)))
        return -EIO;
    if (UNLIKELY(!qcow2_place_is_right(s, &first, off)))
        return -EIO;
    last = first;
    *ret = (struct qcow2_extent){ .kind = QCOW2_MIXED, .entry = first };
    ret->len = end_of_run(s, slice, place.index, off, off + len, &last) - off;
    if (first.copied) {
        uint64_t cluster = off >> s->geo.cluster_bits;

        ret->copied = true;
        ret->host = first.host + (off & (s->cluster_size - 1));
        if (fate_of(&first, qcow2_touched(s, cluster, off, ret->len)) == IN_PLACE) {
            ret->kind = QCOW2_NORMAL;
            return 0;
        }
    }
    find_edges(s, &first, &last, off, ret);
    return 0;
}
