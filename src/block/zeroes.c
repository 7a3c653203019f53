/* SPDX-License-Identifier: Apache-2.0
 *
 * The funnel's part for zero writes and discards: both may be of any length, go
 * to the driver in pieces that it takes, and have an end where the driver has no
 * operation for them. Zeros must come true, so blocks at the ends are read,
 * modified and written, and what a driver cannot zero is written as data;
 * discards are a hint, so there the ends are left alone.
 */
#include "block/core.h"
#include "base/limits.h"

/* The flags that a zero write may hand to the driver; the others are not for it. */
static unsigned driver_zero_flags(const struct node *n, unsigned flags)
{
    unsigned known = n->limits.zero_flags & (REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK);

    return flags & (known | REQ_BULK | REQ_WRITE_UNCHANGED);
}

static unsigned data_flags(unsigned flags)
{
    return flags & (REQ_FUA | REQ_BULK | REQ_WRITE_UNCHANGED);
}

/* The next piece of a range of whole blocks: as much as goes at once of what
 * comes before the first border of zero_align, between the first and the last,
 * and after the last. */
static uint64_t next_piece(const struct node *n, uint64_t off, uint64_t len)
{
    uint64_t align = n->limits.zero_align, most = n->limits.max_zeroes;
    uint64_t piece = len;

    if (!is_aligned(off, align))
        piece = MIN(len, align_up(off, align) - off);
    else if (len > align)
        piece = align_down(len, align);
    if (most && piece > most) {
        /* Cut at a border as long as one fits. */
        piece = most >= align ? align_down(most, align) : most;
    }
    return piece;
}

static int co_zero_piece(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    bool may_be_slow = (flags & REQ_NO_FALLBACK & ~n->limits.zero_flags) != 0;
    int r = -ENOTSUP;

    if (n->drv->co_write_zeroes && !may_be_slow)
        r = n->drv->co_write_zeroes(n, off, len, driver_zero_flags(n, flags));
    if (r != -ENOTSUP || (flags & REQ_NO_FALLBACK))
        return r;
    return co_aligned_pwrite_zero_data(n, off, len, data_flags(flags));
}

/* The blocks first: with REQ_NO_FALLBACK it shows there whether it can be done. */
static int co_zero_range(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    uint64_t align = n->limits.request_align, end = off + len;
    uint64_t from = align_up(off, align);
    uint64_t to = end == n->size ? align_up(end, align) : align_down(end, align);
    int r = 0;

    if (from > to)                            /* inside one block */
        return co_aligned_pwrite_zero_data(n, off, len, data_flags(flags));
    for (uint64_t at = from; at < to && r == 0;) {
        uint64_t piece = next_piece(n, at, to - at);

        r = co_zero_piece(n, at, piece, flags);
        at += piece;
    }
    if (r == 0 && off < from)
        r = co_aligned_pwrite_zero_data(n, off, MIN(from, end) - off, data_flags(flags));
    if (r == 0 && to < end)
        r = co_aligned_pwrite_zero_data(n, to, end - to, data_flags(flags));
    return r;
}

int co_node_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    bool fua_known = n->limits.write_flags & n->limits.zero_flags & REQ_FUA;
    bool flush_after = (flags & REQ_FUA) && !fua_known;
    struct request rq;

    if (n->read_only)
        return -EPERM;
    if (!range_inside(n, off, len))
        return -ENOSPC;
    if (len == 0)
        return 0;
    if (flush_after)
        flags &= ~REQ_FUA;
    if (!n->discard_unmap)
        flags &= ~REQ_MAY_UNMAP;

    int r = co_request_begin(&rq, n, off, len, flags);

    if (r < 0)
        return r;
    r = co_zero_range(n, off, len, flags);
    request_end(&rq);
    if (r == 0 && flush_after)
        r = co_node_flush(n);
    return r;
}

int co_node_discard(struct node *n, uint64_t off, uint64_t len)
{
    uint64_t align = n->limits.request_align, end = off + len;
    struct request rq;

    if (n->read_only)
        return -EPERM;
    if (!range_inside(n, off, len))
        return -ENOSPC;
    if (!n->discard_unmap || !n->drv->co_discard)
        return 0;

    uint64_t from = align_up(off, align);
    uint64_t to = end == n->size ? align_up(end, align) : align_down(end, align);

    if (from >= to)
        return 0;

    int r = co_request_begin(&rq, n, from, MIN(to, n->size) - from, 0);

    if (r < 0)
        return r;
    while (from < to && r == 0) {
        uint64_t piece = next_piece(n, from, to - from);

        r = n->drv->co_discard(n, from, piece);
        if (r == -ENOTSUP)
            r = 0;                            /* nobody is promised anything */
        from += piece;
    }
    request_end(&rq);
    return r;
}
