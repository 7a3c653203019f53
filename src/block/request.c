/* SPDX-License-Identifier: Apache-2.0
 *
 * The request funnel: every request to a node passes here, whoever sends it. A
 * request that needs nothing done to it costs a few comparisons and goes on to
 * the driver in a tail call. Everything else takes the careful way below:
 *
 *   reads    unaligned or too long (align.c); deep in a chain (a new stack); watched
 *   writes   the same; notifiers, detect-zeroes, tracking, emulated FUA; metered
 *   clones   down to the protocols, a funnel for each node on the way
 *
 * Zero writes and discards are in zeroes.c, status in status.c.
 */
#include "block/core.h"
#include "block/meter.h"
#include "base/iov.h"

/* Whether the driver takes the range as it is. An empty one it does not: the
 * subtraction wraps, as does that of "no limit", 0. */
static inline bool fits_driver(const struct node *n, uint64_t off, uint64_t len)
{
    return is_aligned(off | len, n->limits.request_align) &&
           len - 1 <= (uint32_t)(n->limits.max_transfer - 1);
}

void node_update_care(struct node *n)
{
    struct node_core *core = n->core;

    core->read_care = core->new_stack || core->read_watchers;
    core->write_care = !list_empty(&core->notifiers) || !list_empty(&core->bitmaps) ||
                       !list_empty(&core->meters) || core->keeper || core->detect_zeroes ||
                       n->limits.request_align > 1;
}

/* ---- reads ------------------------------------------------------------------- */

struct read_job {
    struct node *n;
    uint64_t off, len;
    const struct iovec *iov;
    int niov;
    unsigned flags;
    int result;
    struct co *caller;
};

static void co_read_job(void *arg)
{
    struct read_job *job = arg;

    job->result = co_aligned_preadv(job->n, job->off, job->len, job->iov, job->niov, job->flags);
    co_wake(job->caller);
}

/* A read of a range that no overlay has written goes down the whole chain, a few
 * frames of stack for each image. */
static int co_read_on_new_stack(struct read_job *job)
{
    job->caller = co_self();
    co_start(co_read_job, job);
    co_suspend();
    return job->result;
}

/* A read that may have to be waited for, on the stack of its coroutine. */
struct reading {
    struct list link;            /* core->reads */
    uint64_t off, len;
    struct waitq done;
};

static int co_read_careful(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                           int niov, unsigned flags)
{
    struct reading rd = { .off = off, .len = len };
    int r;

    if (len == 0)
        return 0;
    waitq_init(&rd.done);
    list_push_tail(&n->core->reads, &rd.link);
    if (n->core->new_stack) {
        struct read_job job = { n, off, len, iov, niov, flags };

        r = co_read_on_new_stack(&job);
    } else {
        r = co_aligned_preadv(n, off, len, iov, niov, flags);
    }
    list_del(&rd.link);
    waitq_wake_all(&rd.done);
    return r;
}

int co_node_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                   unsigned flags)
{
    if (UNLIKELY(!range_inside(n, off, len)))
        return -EINVAL;
    if (LIKELY(fits_driver(n, off, len) && !n->core->read_care))
        return n->drv->co_preadv(n, off, len, iov, niov, flags);
    return co_read_careful(n, off, len, iov, niov, flags);
}

int co_node_pread(struct node *n, uint64_t off, uint64_t len, void *buf, unsigned flags)
{
    struct iovec iov = { buf, len };

    return co_node_preadv(n, off, len, &iov, 1, flags);
}

void node_watch_reads(struct node *n)
{
    n->core->read_watchers++;
    node_update_care(n);
}

void node_unwatch_reads(struct node *n)
{
    n->core->read_watchers--;
    node_update_care(n);
}

void co_node_wait_reads(struct node *n, uint64_t off, uint64_t len)
{
    struct list *head = &n->core->reads;
    struct reading mark = { .len = 0 };     /* what comes behind it is not waited for */
    struct reading *rd;

    list_push_tail(head, &mark.link);
again:
    list_for_each(rd, head, link) {
        if (rd == &mark)
            break;
        if (rd->len && off < rd->off + rd->len && rd->off < off + len) {
            co_waitq_wait(&rd->done);
            goto again;
        }
    }
    list_del(&mark.link);
}

/* ---- writes ------------------------------------------------------------------- */

static bool is_zero_write(struct node *n, const struct iovec *iov, int niov)
{
    return n->core->detect_zeroes && n->drv->co_write_zeroes && iov_is_zero(iov, niov);
}

static int co_write_careful(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                            int niov, unsigned flags)
{
    bool flush_after = (flags & REQ_FUA & ~n->limits.write_flags) != 0;
    bool metered;
    uint64_t since = 0;
    struct request rq;

    if (flags & REQ_COMPRESSED & ~n->limits.write_flags)
        return -ENOTSUP;
    if (len == 0)
        return 0;
    if (is_zero_write(n, iov, niov)) {
        if (n->core->detect_zeroes == DETECT_ZEROES_UNMAP)
            flags |= REQ_MAY_UNMAP;
        return co_node_write_zeroes(n, off, len, flags);
    }
    if (flush_after)
        flags &= ~REQ_FUA;

    int r = co_request_begin(&rq, n, off, len, flags);

    if (r < 0)
        return r;
    metered = !list_empty(&n->core->meters) && !(flags & REQ_BULK);
    if (metered)
        since = loop_turn_came();
    if (LIKELY(fits_driver(n, off, len)))
        r = n->drv->co_pwritev(n, off, len, iov, niov, flags);
    else
        r = co_aligned_pwritev(n, off, len, iov, niov, flags);
    request_end(&rq);
    if (metered)
        node_meter(n, true, len, since);
    if (r == 0 && flush_after)
        r = co_node_flush(n);
    return r;
}

int co_node_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                    unsigned flags)
{
    if (UNLIKELY(n->read_only))
        return -EPERM;
    if (UNLIKELY(!range_inside(n, off, len)))
        return -ENOSPC;
    if (LIKELY(fits_driver(n, off, len) && !n->core->write_care &&
               !(flags & (REQ_FUA | REQ_COMPRESSED) & ~n->limits.write_flags)))
        return n->drv->co_pwritev(n, off, len, iov, niov, flags);
    return co_write_careful(n, off, len, iov, niov, flags);
}

int co_node_pwrite(struct node *n, uint64_t off, uint64_t len, const void *buf, unsigned flags)
{
    struct iovec iov = { (void *)buf, len };

    return co_node_pwritev(n, off, len, &iov, 1, flags);
}

/* ---- cloning -------------------------------------------------------------------- */

/* The child that holds the bytes of @n as they are, *off in it instead of in @n; NULL:
 * they are not simply in one. */
static struct node *straight_below(const struct node *n, uint64_t *off)
{
    if (!n->drv->fixed_offset)
        return NULL;
    *off += n->drv->fixed_offset(n);
    return edge_node(n->file);
}

int co_node_clone(struct node *n, uint64_t off, struct node *src, uint64_t src_off, uint64_t len)
{
    uint64_t at = off;
    struct node *below;
    struct request rq;

    if (n->read_only)
        return -EPERM;
    if (!range_inside(n, off, len))
        return -ENOSPC;
    if (!range_inside(src, src_off, len))
        return -EINVAL;
    if (len == 0)
        return 0;
    while ((below = straight_below(src, &src_off)))
        src = below;
    below = straight_below(n, &at);
    if (!below && (!n->drv->co_clone || src->drv != n->drv))
        return -ENOTSUP;

    int r = co_request_begin(&rq, n, off, len, 0);

    if (r < 0)
        return r;
    r = below ? co_node_clone(below, at, src, src_off, len)
              : n->drv->co_clone(n, off, src, src_off, len);
    request_end(&rq);
    return r;
}

/* ---- flush ---------------------------------------------------------------------- */

int co_node_flush(struct node *n)
{
    const struct edge *written[] = { n->file, n->data_file };
    int r = 0;

    if (UNLIKELY(n->core->keeper))
        n->core->keeper->ops->co_before_flush(n->core->keeper);
    if (n->no_flush && n->drv->is_protocol)
        return 0;
    if (n->drv->co_flush)
        return n->drv->co_flush(n);
    for (size_t i = 0; i < ARRAY_SIZE(written) && r == 0; i++) {
        if (written[i] && (written[i]->perms & EDGE_WRITE))
            r = co_node_flush(edge_node(written[i]));
    }
    return r;
}

/* ---- before-write notifiers -------------------------------------------------------- */

void node_add_notifier(struct node *n, struct node_notifier *nf)
{
    assert(n->loop == loop_current());
    list_push_tail(&n->core->notifiers, &nf->link);
    node_update_care(n);
}

void node_remove_notifier(struct node *n, struct node_notifier *nf)
{
    assert(n->loop == loop_current());
    list_del(&nf->link);
    node_update_care(n);
}

/* A place in the list that stays valid whatever comes and goes around it: an
 * entry of its own, which the walks of others step over. */
static int co_notify(struct node *n, uint64_t off, uint64_t len)
{
    struct list *head = &n->core->notifiers;
    struct node_notifier cursor = { .co_before_write = NULL };
    int r = 0;

    list_push_head(head, &cursor.link);
    while (cursor.link.next != head && r >= 0) {
        struct node_notifier *nf = list_entry(cursor.link.next, struct node_notifier, link);

        list_del(&cursor.link);
        list_insert_after(&nf->link, &cursor.link);
        if (nf->co_before_write)
            r = nf->co_before_write(nf, off, len);
    }
    list_del(&cursor.link);
    node_update_care(n);
    return MIN(r, 0);
}

int co_request_notify(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    if (list_empty(&n->core->notifiers) || (flags & REQ_WRITE_UNCHANGED))
        return 0;
    return co_notify(n, off, len);
}
