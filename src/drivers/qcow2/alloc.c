/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing. Clusters that are the guest's own (COPIED) are overwritten in place.
 * All others get new host clusters, under a claim:
 *
 *     claim the guest clusters      (others who want them wait, or share)
 *     allocate host clusters        refcounts, in memory (and an L2 table if need be)
 *     fill them (cow.c)             I-Q1: data is written before
 *     link them                     its L2 entries change, in memory
 *     end the claim
 *
 * A claim lies inside one L2 slice, and between linking and its end nothing
 * suspends: whoever finds no claim on a cluster finds its final entry.
 *
 * Sharing: small sequential writes meet in one new cluster. When its first writer
 * needs to write nothing but its own data (around it the file reads as zero), the
 * others write theirs beside it at once and wait only for the link.
 */
#include "base/iov.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"

/* ---- claims -------------------------------------------------------------- */

enum claim_state { CLAIM_OPEN, CLAIM_LINKED, CLAIM_FAILED };

struct claim {
    struct list link;
    unsigned refs;
    enum claim_state state;
    uint64_t first;              /* guest cluster */
    uint32_t n;
    uint64_t host;               /* once it is shareable */
    bool shareable;
    unsigned sharers;            /* that are writing now */
    struct waitq changed;
};

static void claim_unref(struct claim *c)
{
    if (--c->refs == 0)
        free(c);
}

static struct claim *claim_begin(struct qcow2 *s, uint64_t first, uint32_t n)
{
    struct claim *c = xnew(struct claim);

    c->refs = 1;
    c->first = first;
    c->n = n;
    waitq_init(&c->changed);
    list_push_tail(&s->claims, &c->link);
    return c;
}

static void claim_end(struct claim *c, enum claim_state state)
{
    c->state = state;
    list_del(&c->link);
    waitq_wake_all(&c->changed);
    claim_unref(c);
}

/* The claim on cluster @first, or NULL; then *n is cut to what lies before the
 * next claim. */
static struct claim *find_claim(struct qcow2 *s, uint64_t first, uint32_t *n)
{
    struct claim *c;

    list_for_each(c, &s->claims, link) {
        if (c->first <= first && first - c->first < c->n)
            return c;
        if (c->first > first)
            *n = (uint32_t)MIN((uint64_t)*n, c->first - first);
    }
    return NULL;
}

bool co_qcow2_wait_claim(struct qcow2 *s, uint64_t first, uint32_t *n)
{
    struct claim *c = find_claim(s, first, n);

    if (!c)
        return false;
    co_waitq_wait(&c->changed);
    return true;
}

/* ---- a run of data ------------------------------------------------------- */

/* What is being written, and how far that has come. */
struct run {
    struct qcow2 *s;
    uint64_t off, len, done;
    const struct iovec *iov;
    int niov;
    unsigned flags;
    struct iovec *part;          /* room for a slice of iov */
};

/* The next @len bytes of the data. */
static const struct iovec *run_slice(struct run *run, uint64_t len, int *ret_niov)
{
    if (LIKELY(run->done == 0 && len == run->len)) {
        *ret_niov = run->niov;
        return run->iov;
    }
    if (!run->part)
        run->part = xcalloc((size_t)run->niov, sizeof(*run->part));
    *ret_niov = iov_slice(run->part, run->iov, run->niov, run->done, len);
    return run->part;
}

/* ---- in place ------------------------------------------------------------ */

/* Whether an L2 entry may say that these bytes are the guest's own (I-Q8). A
 * cluster behind the end of the file cannot be in use. */
static bool own_bytes(const struct qcow2 *s, uint64_t host, uint64_t len)
{
    return !qcow2_is_metadata(s, host, len) &&
           host + len <= align_up(node_size(s->file), s->cluster_size);
}

static int co_overwrite(struct qcow2 *s, uint64_t host, uint64_t len, const struct iovec *iov,
                        int niov, unsigned flags)
{
    if (UNLIKELY(!own_bytes(s, host, len)))
        return co_qcow2_mark_corrupt(s);
    if (UNLIKELY(host + len > node_size(s->file))) {
        int r = co_qcow2_host_grow(s, host + len);

        if (r < 0)
            return r;
    }
    return co_node_pwritev(s->file, host, len, iov, niov, flags & REQ_BULK);
}

/* ---- into new clusters --------------------------------------------------- */

/* Host clusters for the claim, which shrinks if there are fewer in one piece. */
static int co_claim_space(struct qcow2 *s, struct claim *c, const struct qcow2_extent *e,
                          struct qcow2_space *ret)
{
    int r;

    if (e->kind == QCOW2_ZERO_ALLOC && e->copied) {
        *ret = (struct qcow2_space){ .host = align_down(e->host, s->cluster_size), .n = c->n };
        return own_bytes(s, ret->host, c->n * s->cluster_size) ? 0 : co_qcow2_mark_corrupt(s);
    }
    r = co_qcow2_alloc(s, c->n, ret);
    if (r == 0 && ret->n < c->n) {
        c->n = ret->n;
        waitq_wake_all(&c->changed);
    }
    return r;
}

static int co_link(struct qcow2 *s, const struct claim *c, uint64_t host)
{
    struct qcow2_l2_place place;
    struct qcow2_l2_entry old;
    void *slice;
    int r = co_qcow2_l2_get_writable(s, c->first << s->geo.cluster_bits, &place);

    if (r == 0)
        r = qcow2_cache_modify(s->l2, place.slice, &slice);
    if (r < 0)
        return r;
    for (uint32_t i = place.index; i < place.index + c->n; i++, host += s->cluster_size) {
        if (qcow2_l2_decode(&s->geo, qcow2_entry_get(slice, i), &old) && old.host != host)
            qcow2_drop_entry(s, &old, s->pass_discard_other);
        qcow2_entry_set(slice, i, host | QCOW2_COPIED);
    }
    return 0;
}

/* The clusters that were meant for a claim are nobody's again. */
static void co_give_back(struct qcow2 *s, struct claim *c, const struct qcow2_space *space,
                         bool allocated)
{
    c->state = CLAIM_FAILED;
    c->shareable = false;
    waitq_wake_all(&c->changed);
    while (c->sharers)
        co_waitq_wait(&c->changed);
    if (allocated && s->write_ready) {
        int ignored = co_qcow2_unref(s, space->host >> s->geo.cluster_bits, space->n);

        (void)ignored;      /* a leak; the first error is the one to tell */
    }
}

/* The next step of @run, whose clusters are claimed by @c and mapped by @e. */
static int co_write_claimed(struct run *run, struct claim *c, const struct qcow2_extent *e)
{
    struct qcow2 *s = run->s;
    uint64_t off = run->off + run->done;
    struct qcow2_l2_place place;
    struct qcow2_space space;
    int r = co_qcow2_l2_get_writable(s, off, &place);

    /* The table that will name them first, so that it does not lie among them. */
    if (r == 0)
        r = co_claim_space(s, c, e, &space);
    if (r < 0) {
        claim_end(c, CLAIM_FAILED);
        return r;
    }

    uint64_t claim_end_off = (c->first + c->n) << s->geo.cluster_bits;
    struct qcow2_fill f = {
        .off = off,
        .len = MIN(run->len - run->done, claim_end_off - off),
        .flags = run->flags & REQ_BULK,
        .host = space.host,
        .n = c->n,
        .source_zero = e->kind == QCOW2_ZERO_PLAIN || e->kind == QCOW2_ZERO_ALLOC ||
                       (e->kind == QCOW2_UNALLOCATED &&
                        qcow2_unallocated_is_zero(s, c->first << s->geo.cluster_bits)),
        .host_zero = space.fresh,
    };

    f.iov = run_slice(run, f.len, &f.niov);
    c->host = space.host;
    c->shareable = qcow2_fill_is_plain(s, &f);
    r = co_qcow2_fill(s, &f);
    if (r == 0)
        r = co_link(s, c, space.host);
    if (r < 0) {
        co_give_back(s, c, &space, e->kind != QCOW2_ZERO_ALLOC || !e->copied);
        claim_end(c, CLAIM_FAILED);
        return r;
    }
    claim_end(c, CLAIM_LINKED);
    run->done += f.len;
    qcow2_sync_soon(s);
    return 0;
}

/* Write beside the owner of the claim; nothing is done when it fails. */
static int co_write_shared(struct run *run, struct claim *c)
{
    struct qcow2 *s = run->s;
    uint64_t at = run->off + run->done - (c->first << s->geo.cluster_bits);
    uint64_t len = MIN(run->len - run->done, c->n * s->cluster_size - at);
    int niov, r;
    const struct iovec *iov = run_slice(run, len, &niov);

    c->refs++;
    c->sharers++;
    r = co_node_pwritev(s->file, c->host + at, len, iov, niov, run->flags & REQ_BULK);
    if (--c->sharers == 0)
        waitq_wake_all(&c->changed);
    while (r == 0 && c->state == CLAIM_OPEN)
        co_waitq_wait(&c->changed);
    if (r == 0 && c->state == CLAIM_LINKED)
        run->done += len;
    claim_unref(c);
    return r;
}

static int co_write_new(struct run *run, const struct qcow2_extent *e)
{
    struct qcow2 *s = run->s;
    uint64_t off = run->off + run->done, first = off >> s->geo.cluster_bits;
    uint64_t last = (off + MIN(e->len, run->len - run->done) - 1) >> s->geo.cluster_bits;
    uint32_t in_slice = 1U << s->l2_slice_bits;
    uint32_t n = (uint32_t)MIN(last - first + 1, in_slice - (first & (in_slice - 1)));
    struct claim *c = find_claim(s, first, &n);

    if (!c)
        return co_write_claimed(run, claim_begin(s, first, n), e);
    if (c->shareable)
        return co_write_shared(run, c);
    co_waitq_wait(&c->changed);
    return 0;
}

int co_qcow2_write_run(struct qcow2 *s, uint64_t off, uint64_t len, const struct iovec *iov,
                       int niov, unsigned flags)
{
    struct run run = { .s = s, .off = off, .len = len, .iov = iov, .niov = niov, .flags = flags };
    int r = 0;

    while (r == 0 && run.done < len) {
        struct qcow2_extent e;

        r = s->write_ready ? co_qcow2_map(s, off + run.done, len - run.done, &e) : -EIO;
        if (r < 0)
            break;
        if (e.kind == QCOW2_NORMAL && e.copied) {
            int n;
            const struct iovec *v = run_slice(&run, e.len, &n);

            r = co_overwrite(s, e.host, e.len, v, n, flags);
            run.done += e.len;
        } else {
            r = co_write_new(&run, &e);
        }
    }
    free(run.part);
    return r;
}

/* ---- a request ----------------------------------------------------------- */

static int co_write_piece(struct qcow2 *s, const struct qcow2_extent *e, uint64_t off,
                          uint64_t len, const struct iovec *iov, int niov, unsigned flags)
{
    return co_qcow2_write_run(s, off, len, iov, niov, flags);
}

/* Runs of different kinds, or in different places, at the same time. Their borders
 * are borders of clusters. */
static int co_write_scattered(struct qcow2 *s, struct qcow2_extent *e, uint64_t off, uint64_t len,
                              const struct iovec *iov, int niov, unsigned flags)
{
    struct qcow2_pieces p = { .s = s, .flags = flags, .co_run = co_write_piece };
    uint64_t done = 0;
    int r = 0;

    qcow2_pieces_init(&p);
    for (;;) {
        co_qcow2_piece(&p, e, off + done, iov, niov, done);
        done += e->len;
        if (done == len || p.result < 0)
            break;
        r = co_qcow2_map(s, off + done, len - done, e);
        if (r < 0)
            break;
    }

    int waited = co_qcow2_pieces_wait(&p);

    return r < 0 ? r : waited;
}

static int co_write_request(struct qcow2 *s, uint64_t off, uint64_t len, const struct iovec *iov,
                            int niov, unsigned flags)
{
    unsigned entered = qcow2_enter(s);
    struct qcow2_extent e;
    int r = co_qcow2_map(s, off, len, &e);

    if (LIKELY(r == 0)) {
        if (UNLIKELY(e.len < len))
            r = co_write_scattered(s, &e, off, len, iov, niov, flags);
        else if (LIKELY(e.kind == QCOW2_NORMAL && e.copied))
            r = co_overwrite(s, e.host, len, iov, niov, flags);
        else
            r = co_qcow2_write_run(s, off, len, iov, niov, flags);
    }
    qcow2_leave(s, entered);
    return r;
}

int co_qcow2_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                     unsigned flags)
{
    struct qcow2 *s = n->state;
    int r = co_qcow2_begin_write(s);

    if (r < 0)
        return r;
    r = co_write_request(s, off, len, iov, niov, flags);
    /* On a device that is full, clusters that wait for a flush to be free may do. */
    if (UNLIKELY(r == -ENOSPC && (s->dropped.n || s->freed.n || s->reaping))) {
        r = co_qcow2_sync(s);
        if (r < 0)
            return r;
        co_qcow2_wait_freed(s);
        r = co_write_request(s, off, len, iov, niov, flags);
    }
    return r;
}
