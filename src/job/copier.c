/* SPDX-License-Identifier: Apache-2.0
 *
 * The copier: one coroutine a piece of work, with its own reference to all that
 * it uses.
 */
#include "job/copier.h"
#include "base/mem.h"

struct task {
    struct list link;              /* copier->finished, or copier->idle for its buffer */
    struct copier *c;
    struct copied result;
    uint8_t *buf;                  /* NULL until the first copy */
};

struct copier {
    struct copier_opts o;
    unsigned refs;                 /* the owner's, one each task in flight */
    unsigned in_flight;            /* begun and not reaped */
    bool abandoned;
    struct list finished;
    struct list idle;              /* tasks for reuse, the warmest buffer first */
};

static void task_free(struct task *t)
{
    free(t->buf);
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
    free(c);
}

struct copier *copier_new(const struct copier_opts *o)
{
    struct copier *c = xnew(struct copier);

    c->o = *o;
    view_ref(o->view);
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
    struct work *w = &t->result.work;

    t->result.op = JOB_OP_READ;
    if (c->abandoned)
        return -ECANCELED;
    if (!t->buf)
        t->buf = try_alloc_aligned(c->o.max_copy);
    if (!t->buf)
        return -ENOMEM;
    return co_view_read(c->o.view, w->off, w->len, t->buf, REQ_BULK);
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

/* Write one run, all data or all zeros. */
static int co_write_run(struct task *t, bool zero, uint64_t at, uint64_t len)
{
    struct copier *c = t->c;
    uint64_t off = t->result.work.off + at;
    struct iovec iov = { t->buf + at, len };

    if (c->abandoned)
        return -ECANCELED;
    if (!zero && c->o.compress_unit)
        return co_write_compressed(t, off, len, t->buf + at);
    if (!zero)
        return co_disk_pwritev(c->o.target, off, len, &iov, 1, REQ_BULK);
    if (c->o.target_is_zero)
        return 0;
    return co_disk_write_zeroes(c->o.target, off, len, REQ_BULK | REQ_MAY_UNMAP);
}

static int co_write(struct task *t)
{
    uint64_t len = t->result.work.len, unit = t->c->o.zero_unit;
    uint64_t at = 0, end = 0;
    bool zero = false;
    int r = 0;

    t->result.op = JOB_OP_WRITE;
    while (r == 0 && at < len) {
        bool next_zero = end < len && mem_is_zero(t->buf + end, MIN(unit, len - end));

        if (at < end && (end == len || next_zero != zero)) {
            r = co_write_run(t, zero, at, end - at);
            at = end;
        }
        zero = next_zero;
        end = MIN(len, end + unit);
    }
    return r;
}

static int co_do(struct task *t)
{
    struct disk_user *target = t->c->o.target;
    struct work *w = &t->result.work;
    int r;

    t->result.op = JOB_OP_WRITE;
    switch (w->kind) {
    case WORK_COPY:
        r = co_read(t);
        return r < 0 ? r : co_write(t);
    case WORK_ZERO:
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
