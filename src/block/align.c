/* SPDX-License-Identifier: Apache-2.0
 *
 * Fitting requests to a driver's unit and largest size. A write that does not
 * begin and end at block borders reads the blocks at its ends, puts its bytes in
 * and writes whole blocks (read, modify, write). Nothing else may write to these
 * blocks meanwhile, or its bytes would be overwritten with older ones; so on
 * nodes that have blocks every write is tracked:
 *
 *   - requests stand in core->requests in order of arrival;
 *   - a read-modify-write waits for every earlier request that it overlaps;
 *   - any other write waits for the earlier read-modify-writes that it overlaps;
 *   - all only ever wait for earlier ones, so there is no deadlock.
 *
 * "Overlaps" is said of whole blocks. Reads need none of this.
 */
#include "block/core.h"
#include "base/iov.h"
#include "base/limits.h"
#include "base/mem.h"

/* ---- tracking ---------------------------------------------------------------- */

/* The request that @rq has to wait for. */
static struct request *find_obstacle(struct request *rq)
{
    struct list *head = &rq->node->core->requests;

    for (struct list *l = rq->link.prev; l != head; l = l->prev) {
        struct request *earlier = list_entry(l, struct request, link);

        if ((rq->serialising || earlier->serialising) && earlier->start < rq->end &&
            rq->start < earlier->end)
            return earlier;
    }
    return NULL;
}

int co_request_begin(struct request *rq, struct node *n, uint64_t off, uint64_t len,
                     unsigned flags)
{
    uint64_t align = n->limits.request_align;
    struct request *obstacle;

    rq->node = n;
    rq->start = align_down(off, align);
    rq->end = align_up(off + len, align);
    rq->serialising = rq->start != off || rq->end != off + len;
    list_init(&rq->link);
    if (align > 1) {
        waitq_init(&rq->done);
        list_push_tail(&n->core->requests, &rq->link);
        n->core->serialising += rq->serialising;
        while (n->core->serialising && (obstacle = find_obstacle(rq)))
            co_waitq_wait(&obstacle->done);
    }

    int r = co_request_notify(n, rq->start, MIN(rq->end, n->size) - rq->start, flags);

    if (r < 0)
        request_end(rq);
    else if (!(flags & REQ_WRITE_UNCHANGED) && (n->core->keeper || !list_empty(&n->core->bitmaps)))
        co_dirty_before_write(n, rq->start, MIN(rq->end, n->size) - rq->start);
    return r;
}

void request_end(struct request *rq)
{
    if (list_empty(&rq->link))
        return;
    list_del(&rq->link);
    rq->node->core->serialising -= rq->serialising;
    waitq_wake_all(&rq->done);
}

/* ---- cutting ------------------------------------------------------------------ */

/* What is left of a request. */
struct rest {
    struct node *n;
    uint64_t off, len;
    const struct iovec *iov;
    int niov;
    uint64_t done;               /* bytes of iov that are behind us */
    unsigned flags;
};

static uint64_t max_transfer(const struct node *n, uint64_t wish)
{
    return n->limits.max_transfer ? MIN(wish, n->limits.max_transfer) : wish;
}

/* How much of the rest to do by whole blocks straight from the caller's memory: 0
 * if it has to go through a bounce buffer. A ragged end is cut off from a long
 * request, and bounced with everything else in one piece for a short one. */
static uint64_t straight_part(const struct rest *r)
{
    uint64_t align = r->n->limits.request_align;

    if (!is_aligned(r->off, align))
        return 0;
    if (!is_aligned(r->len, align) && r->len < LIMIT_BOUNCE_BYTES)
        return 0;
    return max_transfer(r->n, align_down(r->len, align));
}

#define SMALL_IOV 16

/* A part of the caller's list as a list of its own. */
struct part {
    struct iovec *iov;
    int niov;
    struct iovec small[SMALL_IOV];
};

static void part_init(struct part *p, const struct rest *r, uint64_t len)
{
    p->iov = r->niov <= SMALL_IOV ? p->small : xcalloc(r->niov, sizeof(*p->iov));
    p->niov = iov_slice(p->iov, r->iov, r->niov, r->done, len);
}

static void part_done(struct part *p)
{
    if (p->iov != p->small)
        free(p->iov);
}

/* Whole blocks around the next part of the rest, with memory for them. */
struct bounce {
    uint64_t off, len;           /* of the blocks */
    uint64_t skip, bytes;        /* in them: where the rest's bytes are, and how many */
    char *buf;
};

static bool bounce_init(struct bounce *b, const struct rest *r)
{
    struct node *n = r->n;
    uint64_t align = n->limits.request_align;
    uint64_t most = align_down(max_transfer(n, MAX(LIMIT_BOUNCE_BYTES, align)), align);

    b->off = align_down(r->off, align);
    b->skip = r->off - b->off;
    b->bytes = MIN(r->len, most - b->skip);
    b->len = align_up(b->skip + b->bytes, align);
    b->buf = try_alloc_aligned(b->len);
    return b->buf;
}

static void advance(struct rest *r, uint64_t bytes)
{
    r->off += bytes;
    r->len -= bytes;
    r->done += bytes;
}

/* ---- reads -------------------------------------------------------------------- */

static int co_read_straight(const struct rest *r, uint64_t len)
{
    struct part p;

    part_init(&p, r, len);
    int ret = r->n->drv->co_preadv(r->n, r->off, len, p.iov, p.niov, r->flags);
    part_done(&p);
    return ret;
}

static int co_driver_read(struct node *n, uint64_t off, uint64_t len, void *buf, unsigned flags)
{
    struct iovec iov = { buf, len };

    return n->drv->co_preadv(n, off, len, &iov, 1, flags);
}

static int co_read_bounced(const struct rest *r, uint64_t *ret_bytes)
{
    struct bounce b;

    if (!bounce_init(&b, r))
        return -ENOMEM;

    int ret = co_driver_read(r->n, b.off, b.len, b.buf, r->flags);

    if (ret == 0)
        iov_from_buf(r->iov, r->niov, r->done, b.buf + b.skip, b.bytes);
    *ret_bytes = b.bytes;
    free(b.buf);
    return ret;
}

int co_aligned_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                      int niov, unsigned flags)
{
    struct rest rest = { n, off, len, iov, niov, 0, flags };
    int r = 0;

    while (rest.len && r == 0) {
        uint64_t bytes = straight_part(&rest);

        if (bytes)
            r = co_read_straight(&rest, bytes);
        else
            r = co_read_bounced(&rest, &bytes);
        if (r == 0)
            advance(&rest, bytes);
    }
    return r;
}

/* ---- writes -------------------------------------------------------------------- */

static int co_write_straight(const struct rest *r, uint64_t len)
{
    struct part p;

    part_init(&p, r, len);
    int ret = r->n->drv->co_pwritev(r->n, r->off, len, p.iov, p.niov, r->flags);
    part_done(&p);
    return ret;
}

/* Read the blocks at the ends that the rest fills in part only. */
static int co_read_ends(const struct rest *r, const struct bounce *b)
{
    struct node *n = r->n;
    uint64_t align = n->limits.request_align;
    uint64_t end = b->skip + b->bytes;
    bool head = b->skip > 0, tail = end < b->len;
    int ret = 0;

    if (head)
        ret = co_driver_read(n, b->off, align, b->buf, r->flags);
    if (ret < 0 || !tail)
        return ret;
    /* Beyond the end of the node there is nothing to keep. */
    if (b->off + end == n->size)
        memset(b->buf + end, 0, b->len - end);
    else if (!head || b->len > align)
        ret = co_driver_read(n, b->off + b->len - align, align, b->buf + b->len - align, r->flags);
    return ret;
}

static int co_write_bounced(const struct rest *r, uint64_t *ret_bytes)
{
    struct bounce b;

    if (!bounce_init(&b, r))
        return -ENOMEM;

    int ret = co_read_ends(r, &b);

    if (ret == 0) {
        struct iovec iov = { b.buf, b.len };

        iov_to_buf(b.buf + b.skip, r->iov, r->niov, r->done, b.bytes);
        ret = r->n->drv->co_pwritev(r->n, b.off, b.len, &iov, 1, r->flags);
    }
    *ret_bytes = b.bytes;
    free(b.buf);
    return ret;
}

int co_aligned_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                       int niov, unsigned flags)
{
    struct rest rest = { n, off, len, iov, niov, 0, flags };
    int r = 0;

    while (rest.len && r == 0) {
        uint64_t bytes = straight_part(&rest);

        if (bytes)
            r = co_write_straight(&rest, bytes);
        else
            r = co_write_bounced(&rest, &bytes);
        if (r == 0)
            advance(&rest, bytes);
    }
    return r;
}

/* ---- zeros as data ---------------------------------------------------------------- */

static const char zeros[64 * KiB] __attribute__((aligned(4096)));

int co_aligned_pwrite_zero_data(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct iovec iov[LIMIT_ZERO_WRITE_BYTES / sizeof(zeros)];
    int r = 0;

    while (len && r == 0) {
        uint64_t bytes = MIN(len, LIMIT_ZERO_WRITE_BYTES);
        int niov = 0;

        for (uint64_t left = bytes; left; left -= iov[niov++].iov_len)
            iov[niov] = (struct iovec){ (void *)zeros, MIN(left, sizeof(zeros)) };
        r = co_aligned_pwritev(n, off, bytes, iov, niov, flags);
        off += bytes;
        len -= bytes;
    }
    return r;
}
