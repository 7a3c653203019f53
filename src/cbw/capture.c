/* SPDX-License-Identifier: Apache-2.0
 *
 * What a guest's write meets when a view is open: the before-write notifier
 * that keeps the old content of every granule which is about to change.
 *
 * A capture runs in a coroutine of its own, with its own buffer and its own
 * reference to the view, and the guest's request waits for it with a deadline.
 * When the deadline passes the request gives up the wait, never the capture: the
 * read that hangs keeps what it writes into. A capture claims its granules while
 * it runs; whoever needs one of them waits for it and then looks again.
 *
 * docs/point-in-time.md has the invariants.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "base/range.h"
#include "cbw/view_impl.h"
#include "loop/co_io.h"

#define CHUNK (1 * MiB)            /* most that one capture reads */
#define SMALL (64 * KiB)           /* the smallest buffer */
#define SPARE_BYTES (4 * MiB)      /* of buffers that are kept for reuse */

/* How a capture ended, on the stack of the guest's request that started it. */
struct outcome {
    bool over;                     /* else the capture still points here */
    int ret;
    const char *what;              /* what failed */
    uint64_t data_until;           /* a probe found data up to this granule */
};

struct capture {
    struct list link;              /* view->captures, or view->spare */
    struct view *v;                /* a reference */
    uint64_t first, n;             /* granules claimed */
    bool probe;                    /* ask for zeros only, read nothing */
    struct outcome *outcome;       /* NULL: nobody waits for it any more */
    struct waitq waiters;
    uint8_t *buf;
    uint64_t buf_size;
};

/* ---- captures ---------------------------------------------------------------- */

static struct capture *capture_find(struct view *v, uint64_t granule)
{
    struct capture *c;

    list_for_each(c, &v->captures, link) {
        if (granule >= c->first && granule - c->first < c->n)
            return c;
    }
    return NULL;
}

/* The first granule in [first, end) that is claimed or done; @end if none is. */
static uint64_t free_until(struct view *v, uint64_t first, uint64_t end)
{
    struct capture *c;

    end = MIN(end, view_next_done(v, first));
    list_for_each(c, &v->captures, link) {
        if (c->first > first)
            end = MIN(end, c->first);
    }
    return end;
}

static void capture_free(struct capture *c)
{
    free(c->buf);
    free(c);
}

static struct capture *spare_for(struct view *v, uint64_t bytes)
{
    struct capture *c;

    list_for_each(c, &v->spare, link) {
        if (c->buf_size >= bytes)
            return c;
    }
    return NULL;
}

static struct capture *capture_get(struct view *v, uint64_t bytes)
{
    struct capture *c = spare_for(v, bytes);

    if (c) {
        list_del(&c->link);
        v->spare_bytes -= c->buf_size;
        return c;
    }
    c = xnew(struct capture);
    c->buf_size = MAX(bytes, SMALL);
    c->buf = try_alloc_aligned(c->buf_size);
    if (!c->buf) {
        capture_free(c);
        return NULL;
    }
    return c;
}

static void capture_put(struct view *v, struct capture *c)
{
    if (v->spare_bytes + c->buf_size > SPARE_BYTES) {
        capture_free(c);
        return;
    }
    list_push_head(&v->spare, &c->link);
    v->spare_bytes += c->buf_size;
}

void view_free_spare(struct view *v)
{
    struct capture *c;

    while ((c = list_pop_head(&v->spare, struct capture, link)))
        capture_free(c);
}

/* I-V2: the store has the old content, or it is zeros, before `done` is set;
 * what was released while it was captured is dropped again. */
static void mark_captured(struct view *v, uint64_t first, uint64_t n)
{
    uint64_t end = first + n;

    while (first < end) {
        uint64_t open = view_next_open(v, first, end);
        bool released = open > first;
        uint64_t to = released ? open : MIN(end, view_next_done(v, first));

        if (released) {
            store_release(v->store, first * GRANULE, (to - first) * GRANULE);
        } else {
            bitmap_set(v->held, first, to - first);
            bitmap_set(v->done, first, to - first);
            v->n_captured += to - first;
        }
        first = to;
    }
}

static void capture_over(struct capture *c, int r, const char *what, uint64_t kept)
{
    struct view *v = c->v;
    struct outcome *o = c->outcome;

    list_del(&c->link);
    v->n_captures--;
    v->capture_bytes -= c->probe ? 0 : c->n * GRANULE;
    if (kept && !v->error)
        mark_captured(v, c->first, kept);
    if (o) {
        o->over = true;
        o->ret = r;
        o->what = what;
    }
    waitq_wake_all(&c->waiters);
    waitq_wake_all(&v->slots);
    if (kept && !v->error)
        view_notify(v);
    capture_put(v, c);
    view_unref(v);
}

/* Is it zeros, as far as the source can tell without reading? */
static void co_probe(void *arg)
{
    struct capture *c = arg;
    struct view *v = c->v;
    uint64_t off = c->first * GRANULE;
    uint64_t len = MIN(c->n * GRANULE, v->size - off);
    struct block_status st;
    uint64_t zeros = 0, data_until;
    int r = 0;

    /* A source that cannot tell is asked by reading it. */
    if (co_node_status_above(v->node, NULL, off, len, &st, NULL) < 0)
        st = (struct block_status){ .flags = STATUS_DATA, .len = len };
    if (st.flags & STATUS_ZERO)
        zeros = st.len >= len ? c->n : st.len / GRANULE;
    data_until = c->first + (zeros ? 0 : div_round_up(MIN(st.len, len), GRANULE));
    if (c->outcome)
        c->outcome->data_until = data_until;
    if (zeros && !v->error)
        r = co_store_write_zeros(v->store, off, zeros * GRANULE);
    capture_over(c, r, "keep the old data in scratch", r < 0 ? 0 : zeros);
}

static void co_capture(void *arg)
{
    struct capture *c = arg;
    struct view *v = c->v;
    uint64_t off = c->first * GRANULE, bytes = c->n * GRANULE;
    uint64_t len = MIN(bytes, v->size - off);
    const char *what = "read the old data";
    int r;

    r = co_node_pread(v->node, off, len, c->buf, 0);
    if (r < 0 || v->error) {
        store_unreserve(v->store, bytes);
    } else {
        memset(c->buf + len, 0, bytes - len);
        what = "keep the old data in scratch";
        r = co_store_write(v->store, off, bytes, c->buf);
    }
    capture_over(c, r, what, r < 0 ? 0 : c->n);
}

/* ---- the guest's side ---------------------------------------------------------- */

/* A guest's request that has to wait for captures. */
struct guest {
    struct view *v;
    uint64_t next, end;            /* granules still to be looked at */
    uint64_t data_until;           /* no need to probe before this one */
    uint64_t deadline;
    const char *what;              /* of a failure */
};

static int co_guest_wait(struct guest *g, struct waitq *q, const char *what)
{
    bool woken;

    g->v->n_waiting++;
    woken = co_waitq_wait_until(q, g->deadline);
    g->v->n_waiting--;
    if (woken)
        return 0;
    g->what = what;
    return -ETIMEDOUT;
}

static int co_run_capture(struct guest *g, struct capture *c)
{
    struct view *v = g->v;
    struct outcome o = { .over = false };
    bool probe = c->probe;
    int r;

    c->v = view_ref(v);
    c->outcome = &o;
    waitq_init(&c->waiters);
    list_push_tail(&v->captures, &c->link);
    v->n_captures++;
    v->capture_bytes += c->probe ? 0 : c->n * GRANULE;
    co_start(probe ? co_probe : co_capture, c);

    r = co_guest_wait(g, &c->waiters, "keep the old data within cbw-timeout");
    if (!o.over) {
        c->outcome = NULL;         /* it is still there, and forgets about us */
        return r;
    }
    if (probe)
        g->data_until = o.data_until;
    g->what = o.what;
    return o.ret;
}

/* Bring the granule g->next nearer to being done, or wait for somebody who does.
 * The caller looks again afterwards. */
static int co_capture_step(struct guest *g)
{
    struct view *v = g->v;
    struct capture *c = capture_find(v, g->next);
    uint64_t n;
    bool probe;

    if (c)
        return co_guest_wait(g, &c->waiters, "keep the old data within cbw-timeout");
    n = free_until(v, g->next, g->end) - g->next;
    probe = n > CHUNK / GRANULE && g->next >= g->data_until;
    if (v->n_captures >= LIMIT_VIEW_CAPTURES || v->capture_bytes >= LIMIT_VIEW_CAPTURE_BYTES)
        return co_guest_wait(g, &v->slots, "begin to keep the old data within cbw-timeout");
    if (!probe) {
        n = store_reserve(v->store, MIN(n, CHUNK / GRANULE) * GRANULE) / GRANULE;
        if (n == 0)
            return co_guest_wait(g, store_space(v->store),
                                 "keep the old data: scratch stayed full for cbw-timeout");
    }
    c = capture_get(v, probe ? 0 : n * GRANULE);
    if (!c) {
        if (!probe)
            store_unreserve(v->store, n * GRANULE);
        g->what = "keep the old data";
        return -ENOMEM;
    }
    c->first = g->next;
    c->n = n;
    c->probe = probe;
    return co_run_capture(g, c);
}

static int co_capture_range(struct view *v, uint64_t first, uint64_t end)
{
    struct guest g = { .v = v, .next = first, .end = end, .deadline = DEADLINE_NEVER };

    if (v->timeout_ns)
        g.deadline = loop_now() + v->timeout_ns;
    while (!v->error) {
        int r;

        g.next = view_next_open(v, g.next, end);
        if (g.next == end)
            return 0;
        r = co_capture_step(&g);
        if (r < 0 && !v->error) {
            if (v->on_error == VIEW_BREAK_GUEST_WRITE)
                return r;
            view_end(v, r, "Cannot %s at offset %llu of node '%s': %s", g.what,
                     (unsigned long long)(g.next * GRANULE), node_name(v->node), strerror(-r));
        }
    }
    return 0;
}

int co_view_before_write(struct node_notifier *self, uint64_t off, uint64_t len)
{
    struct view *v = container_of(self, struct view, notifier);
    uint64_t first = view_first_granule(off);
    uint64_t end = MIN(view_end_granule(off, len), v->granules);
    uint64_t begin;
    int r;

    /* I-V4: what is done stays done, so one look is enough. */
    if (LIKELY(first >= end || view_next_open(v, first, end) == end)) {
        histogram_add_zero(&v->added);
        return 0;
    }
    view_ref(v);
    begin = loop_now();
    r = co_capture_range(v, first, end);
    histogram_add(&v->added, loop_now() - begin);
    view_unref(v);
    return r;
}

void view_wake_range(struct view *v, uint64_t first, uint64_t n)
{
    struct capture *c;

    list_for_each(c, &v->captures, link) {
        if (ranges_overlap(first, n, c->first, c->n))
            waitq_wake_all(&c->waiters);
    }
}

void view_wake_guests(struct view *v)
{
    view_wake_range(v, 0, v->granules);
    waitq_wake_all(&v->slots);
    waitq_wake_all(store_space(v->store));
}
