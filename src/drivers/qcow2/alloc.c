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
 * Claims count in units: clusters, or subclusters if the image has them. New host
 * clusters are for whole guest clusters, so those are claimed whole; subclusters
 * of a host cluster that is there already are claimed alone, side by side.
 *
 * Sharing: small sequential writes meet in one new cluster. When its first writer
 * needs to write nothing but its own data (around it the file reads as zero), the
 * others write theirs beside it at once and wait only for the link. With subclusters
 * they do so whenever they touch none that the first one fills.
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
    uint64_t first;              /* guest unit */
    uint32_t n;
    uint64_t host;               /* of the first unit; once it is shareable */
    bool shareable;
    bool fresh;                  /* the host clusters read as zero where nobody writes */
    uint64_t fill_from, fill_to; /* guest bytes that its owner writes */
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

/* The claim on any of the units [first, first+step), the oldest but @not, or NULL;
 * then *n is cut to what lies before the next claim, in steps. */
static struct claim *find_claim(struct qcow2 *s, const struct claim *not, uint64_t first,
                                uint32_t *n, uint32_t step)
{
    struct claim *c;

    list_for_each(c, &s->claims, link) {
        if (c == not || c->first + c->n <= first)
            continue;
        if (c->first < first + step)
            return c;
        if (c->first - first < *n)
            *n = (uint32_t)align_down(c->first - first, step);
    }
    return NULL;
}

static inline uint32_t units_per_cluster(const struct qcow2 *s)
{
    return 1U << (s->geo.cluster_bits - s->unit_bits);
}

bool co_qcow2_wait_claim(struct qcow2 *s, uint64_t first, uint32_t *n)
{
    uint32_t step = units_per_cluster(s), units = *n * step;
    struct claim *c = find_claim(s, NULL, first * step, &units, step);

    if (c)
        co_waitq_wait(&c->changed);
    else
        *n = units / step;
    return c;
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

#define NOT_OWN "a write of data over metadata or behind the end of the file"

/* Whether an L2 entry may say that these bytes are the guest's own (I-Q8). A
 * cluster behind the end of the file cannot be in use. */
static bool own_bytes(const struct qcow2 *s, uint64_t host, uint64_t len)
{
    if (s->geo.data_file)
        return true;
    return !qcow2_is_metadata(s, host, len) &&
           host + len <= align_up(node_size(s->file), s->cluster_size);
}

static int co_overwrite(struct qcow2 *s, uint64_t host, uint64_t len, const struct iovec *iov,
                        int niov, unsigned flags)
{
    if (UNLIKELY(!own_bytes(s, host, len)))
        return co_qcow2_mark_corrupt(s, NOT_OWN, host, len);
    if (UNLIKELY(host + len > node_size(s->data))) {
        int r = co_qcow2_data_grow(s, host + len);

        if (r < 0)
            return r;
    }
    return co_node_pwritev(s->data, host, len, iov, niov, flags & REQ_BULK);
}

/* ---- into new clusters --------------------------------------------------- */

/* What is not in place is written to the host cluster that is there already, if it
 * is the guest's own. */
static inline bool has_own_host(const struct qcow2_extent *e)
{
    return e->copied;
}

/* Host space for the claim, which shrinks if there is less in one piece. */
static int co_claim_space(struct qcow2 *s, struct claim *c, const struct qcow2_extent *e,
                          struct qcow2_space *ret)
{
    uint32_t per_cluster = units_per_cluster(s);
    uint64_t bytes = (uint64_t)c->n << s->unit_bits;
    int r;

    if (has_own_host(e)) {
        *ret = (struct qcow2_space){ .host = align_down(e->host, 1ULL << s->unit_bits) };
        if (!own_bytes(s, ret->host, bytes))
            return co_qcow2_mark_corrupt(s, NOT_OWN, ret->host, bytes);
        /* The last cluster of a file need not be there to its end; in a data file it is
         * not even written to its end. */
        return s->geo.data_file ? 0 : co_qcow2_host_grow(s, ret->host + bytes);
    }
    if (s->geo.data_file) {      /* all of it has its place */
        *ret = (struct qcow2_space){ .host = c->first << s->unit_bits };
        return 0;
    }
    r = co_qcow2_alloc(s, c->n / per_cluster, ret);
    if (r == 0 && ret->n * per_cluster < c->n) {
        c->n = ret->n * per_cluster;
        waitq_wake_all(&c->changed);
    }
    return r;
}

/* The data of a fill is in its place: let the entries say so. */
static int co_link(struct qcow2 *s, const struct qcow2_fill *f)
{
    uint64_t cluster = f->off >> s->geo.cluster_bits, host = align_down(f->host, s->cluster_size);
    uint64_t last = (f->off + f->len - 1) >> s->geo.cluster_bits;
    struct qcow2_l2_place place;
    void *slice;
    int r = co_qcow2_l2_get_writable(s, f->off, &place);

    if (r == 0)
        r = qcow2_cache_modify(s->l2, place.slice, &slice);
    if (r < 0)
        return r;
    for (uint32_t i = place.index; cluster <= last; i++, cluster++, host += s->cluster_size) {
        uint32_t touched = qcow2_touched(s, cluster, f->off, f->len);
        struct qcow2_l2_entry old;
        bool known = qcow2_l2_entry_get(&s->geo, slice, i, &old);

        if (known && old.host != host)
            qcow2_drop_entry(s, &old, s->pass_discard_other);
        /* What was compressed has been unpacked whole. */
        if (known && old.kind == QCOW2_COMPRESSED_KIND)
            touched = UINT32_MAX;
        qcow2_l2_entry_set(&s->geo, slice, i, host | QCOW2_COPIED, old.alloc | touched,
                           old.zero & ~touched);
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

/* What has to be written with the data at f->off; it lies in the clusters mapped by @e. */
static void plan_edges(const struct qcow2 *s, const struct qcow2_extent *e, struct qcow2_fill *f)
{
    if (s->geo.extended) {
        f->head = e->head;
        f->tail = f->len == e->len ? e->tail : 0;     /* cut between two clusters or units */
        f->source_zero = e->zero_around;
        return;
    }
    f->head = (uint32_t)(f->off & (s->cluster_size - 1));
    f->tail = (uint32_t)(align_up(f->off + f->len, s->cluster_size) - f->off - f->len);
    f->source_zero = e->kind == QCOW2_ZERO_PLAIN || e->kind == QCOW2_ZERO_ALLOC ||
                     (e->kind == QCOW2_UNALLOCATED &&
                      qcow2_unallocated_is_zero(s, f->off - f->head));
}

/* A data file ends with the disk, its last cluster need not be whole. What one has that is
 * longer is filled too: it would show when the disk grows. */
static int co_fit_to_data(struct qcow2 *s, struct qcow2_fill *f)
{
    uint64_t end = f->off + f->len;

    if (LIKELY(!s->geo.data_file))
        return 0;
    f->tail = (uint32_t)MIN((uint64_t)f->tail,
                            MAX(end, MAX(s->node->size, node_size(s->data))) - end);
    return co_qcow2_data_grow(s, end + f->tail);
}

/* A data file is a hole where nothing was written yet, though it need not be: what is
 * zero there already need not be made so. All of new clusters is looked at: others who
 * write beside this rely on it. */
static void co_see_zeros(struct qcow2 *s, const struct qcow2_extent *e, struct qcow2_fill *f)
{
    uint64_t begin = f->host - f->head, end = f->host + f->len + f->tail;
    struct block_status st;

    if (!s->geo.data_file || !f->source_zero || !(f->head | f->tail))
        return;
    if (!has_own_host(e)) {
        begin = align_down(begin, s->cluster_size);
        end = MIN(align_up(end, s->cluster_size), node_size(s->data));
    }
    f->host_zero = co_node_status(s->data, begin, end - begin, &st) == 0 &&
                   (st.flags & STATUS_ZERO) && st.len >= end - begin;
}

/* Let others write beside this. */
static void share(struct qcow2 *s, struct claim *c, const struct qcow2_extent *e,
                  const struct qcow2_fill *f)
{
    c->shareable = s->geo.extended ? !has_own_host(e) : qcow2_fill_is_plain(f);
    c->fresh = f->host_zero;
    c->fill_from = f->off - f->head;
    c->fill_to = f->off + f->len + f->tail;
    if (c->shareable)
        waitq_wake_all(&c->changed);
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

    uint64_t claim_off = c->first << s->unit_bits;
    uint64_t claim_end_off = (c->first + c->n) << s->unit_bits;
    struct qcow2_fill f = {
        .off = off,
        .len = MIN(MIN(e->len, run->len - run->done), claim_end_off - off),
        .flags = run->flags & REQ_BULK,
        .host = space.host + (off - claim_off),
        .host_zero = space.fresh,
    };

    f.iov = run_slice(run, f.len, &f.niov);
    plan_edges(s, e, &f);
    c->host = space.host;
    r = co_fit_to_data(s, &f);
    if (r == 0) {
        co_see_zeros(s, e, &f);
        share(s, c, e, &f);
        r = co_qcow2_fill(s, &f);
    }
    if (r == 0)
        r = co_link(s, &f);
    if (r < 0) {
        co_give_back(s, c, &space, !has_own_host(e) && !s->geo.data_file);
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
    uint64_t at = run->off + run->done - (c->first << s->unit_bits);
    uint64_t len = MIN(run->len - run->done, ((uint64_t)c->n << s->unit_bits) - at);
    int niov, r;
    const struct iovec *iov = run_slice(run, len, &niov);

    c->refs++;
    c->sharers++;
    r = co_node_pwritev(s->data, c->host + at, len, iov, niov, run->flags & REQ_BULK);
    if (--c->sharers == 0)
        waitq_wake_all(&c->changed);
    while (r == 0 && c->state == CLAIM_OPEN)
        co_waitq_wait(&c->changed);
    if (r == 0 && c->state == CLAIM_LINKED)
        run->done += len;
    claim_unref(c);
    return r;
}

/* The same with subclusters of our own: those that the owner of the claim does not
 * fill. They are linked into the host cluster that he has linked before. */
static int co_write_beside(struct run *run, struct claim *c, const struct qcow2_extent *e)
{
    struct qcow2 *s = run->s;
    uint64_t off = run->off + run->done, unit = 1ULL << s->unit_bits;
    uint64_t end = MIN(off + MIN(e->len, run->len - run->done),
                       align_down(off, s->cluster_size) + s->cluster_size);
    uint64_t first = off >> s->unit_bits;
    uint32_t n;

    if (c->fill_from >= (first + 1) << s->unit_bits)
        end = MIN(end, c->fill_from);
    n = (uint32_t)(((end - 1) >> s->unit_bits) - first + 1);

    bool met = off < c->fill_to && end > c->fill_from;
    struct claim *other = met ? c : find_claim(s, c, first, &n, 1);

    if (other) {
        co_waitq_wait(&other->changed);
        return 0;
    }

    struct claim *mine = claim_begin(s, first, n);
    struct qcow2_fill f = {
        .off = off,
        .len = MIN(end, (first + n) << s->unit_bits) - off,
        .flags = run->flags & REQ_BULK,
        .host = c->host + (off - (c->first << s->unit_bits)),
        .head = (uint32_t)(off & (unit - 1)),
        .host_zero = c->fresh,
    };

    f.iov = run_slice(run, f.len, &f.niov);
    f.tail = (uint32_t)(align_up(off + f.len, unit) - off - f.len);
    f.source_zero = qcow2_subcluster_is_zero(s, &e->entry, off) &&
                    qcow2_subcluster_is_zero(s, &e->entry, off + f.len - 1);
    c->refs++;
    c->sharers++;

    int r = co_fit_to_data(s, &f);

    if (r == 0)
        r = co_qcow2_fill(s, &f);
    if (--c->sharers == 0)
        waitq_wake_all(&c->changed);
    while (r == 0 && c->state == CLAIM_OPEN)
        co_waitq_wait(&c->changed);

    bool linked = r == 0 && c->state == CLAIM_LINKED;

    if (linked)
        r = co_link(s, &f);
    if (linked && r == 0)
        run->done += f.len;
    claim_end(mine, linked && r == 0 ? CLAIM_LINKED : CLAIM_FAILED);
    claim_unref(c);
    return r;
}

static int co_write_new(struct run *run, const struct qcow2_extent *e)
{
    struct qcow2 *s = run->s;
    uint32_t per_cluster = units_per_cluster(s), step = has_own_host(e) ? 1 : per_cluster;
    uint64_t off = run->off + run->done, first = align_down(off >> s->unit_bits, step);
    uint64_t end_off = off + MIN(e->len, run->len - run->done);
    uint64_t end = align_up(div_round_up(end_off, 1ULL << s->unit_bits), step);
    uint32_t in_slice = per_cluster << s->l2_slice_bits;
    uint32_t n = (uint32_t)MIN(end - first, in_slice - (first & (in_slice - 1)));
    struct claim *c = find_claim(s, NULL, first, &n, step);

    if (!c)
        return co_write_claimed(run, claim_begin(s, first, n), e);
    if (c->shareable)
        return (s->geo.extended ? co_write_beside(run, c, e) : co_write_shared(run, c));
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

        r = s->write_ready ? co_qcow2_map_for_write(s, off + run.done, len - run.done, &e)
                           : -EIO;
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
        r = co_qcow2_map_for_write(s, off + done, len - done, e);
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
    int r = co_qcow2_map_for_write(s, off, len, &e);

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

static int co_write_any(struct qcow2 *s, uint64_t off, uint64_t len, const struct iovec *iov,
                        int niov, unsigned flags)
{
    if (UNLIKELY(flags & REQ_COMPRESSED))
        return co_qcow2_write_compressed(s, off, len, iov, niov, flags);
    return co_write_request(s, off, len, iov, niov, flags);
}

int co_qcow2_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                     unsigned flags)
{
    struct qcow2 *s = n->state;
    int r = co_qcow2_begin_write(s);

    if (r < 0)
        return r;
    r = co_write_any(s, off, len, iov, niov, flags);
    /* On a device that is full, clusters that wait for a flush to be free may do. */
    if (UNLIKELY(r == -ENOSPC && (s->dropped.n || s->freed.n || s->reaping))) {
        r = co_qcow2_sync(s);
        if (r < 0)
            return r;
        co_qcow2_wait_freed(s);
        r = co_write_any(s, off, len, iov, niov, flags);
    }
    return r;
}
