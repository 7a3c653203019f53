/* SPDX-License-Identifier: Apache-2.0
 *
 * The copier: one coroutine a piece of work, with its own reference to all that
 * it uses.
 */
#include "job/copier.h"
#include "base/mem.h"
#include "loop/co_io.h"

/* A unit whose first bytes are not all zero is data: no need to look further. */
#define SURE_BYTES 64

struct task {
    struct list link;              /* copier->finished, or copier->idle for its buffer */
    struct copier *c;
    struct copied result;
    uint64_t off, len;             /* of the work, what is copied now: what buf has room for */
    bool cloned;                   /* the target may hold more than zeros there */
    uint8_t *buf;                  /* NULL until the first copy */
    uint8_t *below;                /* the same, of what the target reads already */
    uint8_t *kinds;                /* enum run_kind of each zero_unit of it */
};

struct copier {
    struct copier_opts o;
    unsigned refs;                 /* the owner's, one each task in flight */
    unsigned in_flight;            /* begun and not reaped */
    bool abandoned;
    bool cloned;                   /* some cloning was not refused at once */
    struct list finished;
    struct list idle;              /* tasks for reuse, the warmest buffer first */
};

static void task_free(struct task *t)
{
    free(t->buf);
    free(t->below);
    free(t->kinds);
    free(t);
}

static void unref(struct copier *c)
{
    struct task *t;

    if (--c->refs)
        return;
    while ((t = list_pop_head(&c->idle, struct task, link)))
        task_free(t);
    disk_close(c->o.target);
    node_unref(c->o.below);
    free(c);
}

struct copier *copier_new(const struct copier_opts *o)
{
    struct copier *c = xnew(struct copier);

    c->o = *o;
    view_ref(o->view);
    if (o->below)
        node_ref(o->below);
    c->refs = 1;
    list_init(&c->finished);
    list_init(&c->idle);
    return c;
}

void copier_abandon(struct copier *c)
{
    struct task *t;

    if (!c)
        return;
    c->abandoned = true;
    view_unref(MOVE(c->o.view));
    while ((t = list_pop_head(&c->finished, struct task, link)))
        task_free(t);
    unref(c);
}

unsigned copier_in_flight(const struct copier *c)
{
    return c->in_flight;
}

/* ---- one piece of work ---------------------------------------------------------- */

static int co_read(struct task *t)
{
    struct copier *c = t->c;

    t->result.op = JOB_OP_READ;
    if (c->abandoned)
        return -ECANCELED;
    if (!t->buf)
        t->buf = try_alloc_aligned(c->o.max_copy);
    if (!t->buf)
        return -ENOMEM;
    return co_view_read(c->o.view, t->off, t->len, t->buf, REQ_BULK);
}

/* What the target reads where this piece goes: zeros behind the end of what is below. */
static int co_read_below(struct task *t)
{
    struct copier *c = t->c;
    uint64_t size = c->o.below ? node_size(c->o.below) : 0;
    uint64_t have = t->off < size ? MIN(t->len, size - t->off) : 0;

    if (!c->o.below)
        return 0;
    if (!t->below)
        t->below = try_alloc_aligned(c->o.max_copy);
    if (!t->below)
        return -ENOMEM;
    memset(t->below + have, 0, t->len - have);
    return have ? co_node_pread(c->o.below, t->off, have, t->below, REQ_BULK) : 0;
}

/* What does not make a whole unit cannot be compressed: the last sector of a target
 * that was rounded up. */
static int co_write_compressed(struct task *t, uint64_t off, uint64_t len, uint8_t *buf)
{
    struct disk_user *target = t->c->o.target;
    bool to_the_end = off + len == node_size(disk_node(target));
    uint64_t whole = to_the_end ? len : align_down(len, t->c->o.compress_unit);
    struct iovec first = { buf, whole }, rest = { buf + whole, len - whole };
    int r = 0;

    if (whole)
        r = co_disk_pwritev(target, off, whole, &first, 1, REQ_BULK | REQ_COMPRESSED);
    if (r == 0 && len > whole)
        r = co_disk_pwritev(target, off + whole, len - whole, &rest, 1, REQ_BULK);
    return r;
}

enum run_kind { RUN_DATA, RUN_ZERO, RUN_SAME };

static enum run_kind kind_of(const struct task *t, uint64_t at, uint64_t len)
{
    if (t->below && memcmp(t->buf + at, t->below + at, len) == 0)
        return RUN_SAME;
    return !t->c->o.allocate && mem_is_zero(t->buf + at, len) ? RUN_ZERO : RUN_DATA;
}

/* In a worker: 1 MiB of zeros takes some 200 us to look at, as it comes from memory. */
static int classify(void *arg)
{
    struct task *t = arg;
    uint64_t unit = t->c->o.zero_unit;

    for (uint64_t at = 0; at < t->len; at += unit)
        t->kinds[at / unit] = (uint8_t)kind_of(t, at, MIN(unit, t->len - at));
    return 0;
}

/* Fill in t->kinds. Most data is seen to be data by its first bytes. */
static void co_classify(struct task *t)
{
    uint64_t unit = t->c->o.zero_unit;
    bool sure = !t->below;

    if (!t->kinds)
        t->kinds = xmalloc(div_round_up(t->c->o.max_copy, unit));
    for (uint64_t at = 0; at < t->len; at += unit) {
        uint64_t first = MIN(MIN(unit, t->len - at), (uint64_t)SURE_BYTES);

        t->kinds[at / unit] = RUN_DATA;
        if (sure && !t->c->o.allocate)
            sure = !mem_is_zero(t->buf + at, first);
    }
    if (!sure)
        (void)co_offload_bulk(classify, t);
}

/* Write one run, all of one kind. */
static int co_write_run(struct task *t, enum run_kind kind, uint64_t at, uint64_t len)
{
    struct copier *c = t->c;
    uint64_t off = t->off + at;
    struct iovec iov = { t->buf + at, len };

    if (c->abandoned)
        return -ECANCELED;
    if (kind == RUN_SAME || (kind == RUN_ZERO && c->o.target_is_zero && !t->cloned))
        return 0;
    if (kind == RUN_ZERO)
        return co_disk_write_zeroes(c->o.target, off, len, REQ_BULK | REQ_MAY_UNMAP);
    if (c->o.compress_unit)
        return co_write_compressed(t, off, len, t->buf + at);
    return co_disk_pwritev(c->o.target, off, len, &iov, 1, REQ_BULK);
}

static int co_write(struct task *t)
{
    uint64_t len = t->len, unit = t->c->o.zero_unit;
    uint64_t at = 0, end = 0;
    enum run_kind kind = RUN_DATA;
    int r = 0;

    t->result.op = JOB_OP_WRITE;
    co_classify(t);
    while (r == 0 && at < len) {
        enum run_kind next = end < len ? (enum run_kind)t->kinds[end / unit] : kind;

        if (at < end && (end == len || next != kind)) {
            r = co_write_run(t, kind, at, end - at);
            at = end;
        }
        kind = next;
        end = MIN(len, end + unit);
    }
    return r;
}

static int co_copy_range(struct task *t, uint64_t off, uint64_t len)
{
    int r = 0;

    for (uint64_t end = off + len; r == 0 && off < end; off += t->len) {
        t->off = off;
        t->len = MIN(end - off, t->c->o.max_copy);
        r = co_read(t);
        if (r == 0)
            r = co_read_below(t);
        if (r == 0)
            r = co_write(t);
    }
    return r;
}

/* Have the target share the source's storage, and put right what guests had changed
 * there: as a view is read (I-V5), what is captured is looked up behind the cloning. */
static int co_clone(struct task *t)
{
    struct copier *c = t->c;
    CLEANUP(view_unref) struct view *view = view_ref(c->o.view);
    uint64_t from = t->result.work.off, end = from + t->result.work.len, off, len;
    int r = co_disk_clone(c->o.target, from, view_node(view), from, end - from);

    if (r != -ENOTSUP)
        t->cloned = c->cloned = true;
    while (r == 0 && !c->abandoned && view_next_captured(view, from, &off, &len) && off < end) {
        from = MIN(off + len, end);
        r = co_copy_range(t, off, from - off);
    }
    if (c->abandoned)
        return -ECANCELED;
    return r < 0 ? r : view_error(view, NULL);
}

static int co_copy(struct task *t)
{
    struct copier *c = t->c;
    struct work *w = &t->result.work;

    t->result.op = JOB_OP_WRITE;
    if (c->abandoned)
        return -ECANCELED;
    t->cloned = c->cloned;
    /* Whatever is wrong with cloning, copying may do, or says what is wrong. */
    if (c->o.clone && w->tries == 0) {
        t->result.cloned = co_clone(t) == 0;
        if (t->result.cloned)
            return 0;
        c->o.clone = c->cloned;
    }
    return co_copy_range(t, w->off, w->len);
}

/* Zeros, as far as the target does not read zeros already because of what is below it.
 * In whole units, so that it never needs that to fill clusters. */
static int co_zero_over(struct task *t, struct node *below)
{
    struct copier *c = t->c;
    uint64_t at = t->result.work.off, end = at + t->result.work.len, size = node_size(below);
    struct block_status st;
    int r = 0;

    for (uint64_t len; r == 0 && at < MIN(end, size); at += len) {
        uint64_t asked = MIN(end, size) - at;

        r = co_node_status_above(below, NULL, at, asked, &st, NULL);
        if (r < 0)
            return r;
        len = MIN(end - at, MAX(align_down(st.len, c->o.zero_unit), c->o.zero_unit));
        if (!(st.flags & STATUS_ZERO) || st.len < MIN(len, asked))
            r = co_disk_write_zeroes(c->o.target, at, len, REQ_BULK | REQ_MAY_UNMAP);
    }
    return r;
}

static int co_do(struct task *t)
{
    struct disk_user *target = t->c->o.target;
    struct work *w = &t->result.work;

    t->result.op = JOB_OP_WRITE;
    switch (w->kind) {
    case WORK_COPY:
        return co_copy(t);
    case WORK_ZERO:
        if (t->c->o.below)
            return co_zero_over(t, t->c->o.below);
        return co_disk_write_zeroes(target, w->off, w->len, REQ_BULK | REQ_MAY_UNMAP);
    case WORK_FLUSH:
        return co_disk_flush(target);
    }
    return -EINVAL;
}

static void co_task(void *arg)
{
    struct task *t = arg;
    struct copier *c = t->c;

    t->result.ret = co_do(t);
    if (c->abandoned) {
        task_free(t);
    } else {
        list_push_tail(&c->finished, &t->link);
        c->o.kick(c->o.kick_arg);
    }
    unref(c);
}

void copier_start(struct copier *c, const struct work *work)
{
    struct task *t = list_pop_head(&c->idle, struct task, link);

    if (!t)
        t = xnew(struct task);
    t->c = c;
    t->result = (struct copied){ .work = *work };
    c->refs++;
    c->in_flight++;
    co_start(co_task, t);
}

bool copier_reap(struct copier *c, struct copied *ret)
{
    struct task *t = list_pop_head(&c->finished, struct task, link);

    if (!t)
        return false;
    *ret = t->result;
    c->in_flight--;
    list_push_head(&c->idle, &t->link);
    return true;
}
