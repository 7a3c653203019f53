/* SPDX-License-Identifier: Apache-2.0
 *
 * Views as their consumers see them: opening, reading, releasing, the end. How
 * a guest's write is met is in capture.c, where old content is kept in store.c.
 * docs/point-in-time.md has the invariants.
 */
#include "base/iov.h"
#include "base/mem.h"
#include "base/range.h"
#include "cbw/view_impl.h"
#include <stdio.h>

const struct schema_type on_cbw_error_type = {
    .name = "OnCbwError", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "break-guest-write", "break-snapshot", NULL },
};

/* ---- life ------------------------------------------------------------------------ */

static void let_below_go(struct view *v)
{
    while (v->n_below)
        edge_detach(v->below[--v->n_below]);
    free(MOVE(v->below));
}

static void view_free(struct view *v)
{
    assert(list_empty(&v->captures));
    view_free_spare(v);
    store_free(v->store);
    bitmap_free(v->done);
    bitmap_free(v->held);
    bitmap_free(v->wanted);
    let_below_go(v);
    edge_detach(v->user);
    free(v);
}

struct view *view_ref(struct view *v)
{
    v->refs++;
    return v;
}

void view_unref(struct view *v)
{
    if (v && --v->refs == 1)
        waitq_wake_all(&v->settled);
    if (!v || v->refs)
        return;
    v->refs = 1;    /* listeners that are told of the end may look at the view */
    view_end(v, -ESHUTDOWN, "The view of node '%s' is closed", node_name(v->node));
    view_free(v);
}

/* I-D3: images further down show through, and what is written to them directly
 * no notifier of ours hears. A node may be both a backing file and somebody's disk. */
static bool keep_still(struct view *v, struct node *image, const char *who, struct err *err)
{
    struct edge *e = edge_attach_user(image, who, EDGE_READ, EDGE_READ, err);

    if (!e) {
        err_prefix(err, "Node '%s' shows the content of node '%s': ", node_name(v->node),
                   node_name(image));
        return false;
    }
    v->below = xrealloc(v->below, (v->n_below + 1) * sizeof(struct edge *));
    v->below[v->n_below++] = e;
    return true;
}

/* Recurses as deep as nodes stand on each other, not as long as chains are. */
static bool keep_chains_still(struct view *v, struct node *n, const char *who, struct err *err)
{
    for (;;) {
        if ((n->file && !keep_chains_still(v, edge_node(n->file), who, err)) ||
            (n->data_file && !keep_chains_still(v, edge_node(n->data_file), who, err)))
            return false;
        n = node_backing(n);
        if (!n)
            return true;
        if (!keep_still(v, n, who, err))
            return false;
    }
}

static bool co_view_init(struct view *v, const struct view_opts *opts, const char *who,
                         struct err *err)
{
    /* Who may resize it would be refused when he does: an image that stands on this
     * node grows when its guest writes, and the guest would hear of it. */
    v->user = edge_attach_user(v->node, who, EDGE_READ, EDGE_READ | EDGE_WRITE, err);
    if (!v->user || !keep_chains_still(v, v->node, who, err))
        return false;
    v->done = bitmap_new(v->granules);
    v->held = bitmap_new(v->granules);
    if (!v->done || !v->held)
        return err_set(err, -ENOMEM, "Not enough memory for the bitmaps of node '%s'",
                       node_name(v->node));
    if (opts->target)
        v->store = store_new_in_node(v->size, opts->target, err);
    else
        v->store = co_store_new(v->size, opts->scratch_dir, opts->scratch_memory,
                                opts->scratch_limit, err);
    return v->store != NULL;
}

struct view *co_view_prepare(struct node *n, const struct view_opts *opts, const char *who,
                             struct err *err)
{
    struct view *v = xnew(struct view);

    assert(node_loop(n) == loop_current());
    /* First of all, so that the size stays what it is. */
    node_forbid_resize(n, "a point-in-time view of it is open");
    *v = (struct view){
        .node = n,
        .size = node_size(n),
        .granules = div_round_up(node_size(n), GRANULE),
        .timeout_ns = opts->cbw_timeout_ns,
        .on_error = opts->on_cbw_error,
        .refs = 1,
        .notifier.co_before_write = co_view_before_write,
    };
    list_init(&v->notifier.link);
    list_init(&v->listeners);
    list_init(&v->captures);
    list_init(&v->spare);
    waitq_init(&v->slots);
    waitq_init(&v->settled);
    if (co_view_init(v, opts, who, err))
        return v;
    node_allow_resize(n);
    view_free(v);
    return NULL;
}

void view_begin(struct view *v)
{
    assert(!v->begun && !v->error);
    v->begun = true;
    node_add_notifier(v->node, &v->notifier);
}

void view_limit(struct view *v, struct bitmap *wanted, uint64_t unit)
{
    assert(!v->wanted && is_power_of_2(unit) && unit >= GRANULE);
    assert(bitmap_size(wanted) == div_round_up(v->size, unit));
    v->wanted = wanted;
    v->unit_granules = unit / GRANULE;
}

struct view *co_view_open(struct node *n, const struct view_opts *opts, const char *who,
                          struct err *err)
{
    CLEANUP(view_unref) struct view *v = co_view_prepare(n, opts, who, err);

    if (!v || !co_shut_doors_by(n, loop_now() + INSTANT_TIMEOUT_NS, err))
        return NULL;
    view_begin(v);
    open_doors(n);
    return MOVE(v);
}

void view_end(struct view *v, int code, const char *fmt, ...)
{
    char text[sizeof(v->why.text)];
    va_list ap;

    if (v->error)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    err_set(&v->why, code, "%s", text);
    v->error = code;
    if (v->begun)
        node_remove_notifier(v->node, &v->notifier);
    node_allow_resize(v->node);
    let_below_go(v);
    view_wake_guests(v);
    view_notify(v);
}

void view_close(struct view *v)
{
    if (!v)
        return;
    view_end(v, -ESHUTDOWN, "The view of node '%s' is closed", node_name(v->node));
    view_unref(v);
}

bool co_view_settle(struct view *v, uint64_t deadline)
{
    assert(v->error);
    while (v->refs > 1) {
        if (!co_waitq_wait_until(&v->settled, deadline))
            return v->refs == 1;
    }
    return true;
}

struct node *view_node(const struct view *v)
{
    return v->node;
}

uint64_t view_size(const struct view *v)
{
    return v->size;
}

int view_error(const struct view *v, struct err *err)
{
    if (v->error && err)
        *err = v->why;
    return v->error;
}

/* 0, or why it cannot be read. */
static int unreadable(const struct view *v)
{
    return v->error ? v->error : v->begun ? 0 : -EAGAIN;
}

/* ---- reading ------------------------------------------------------------------------ */

/* I-V5: look at `held` behind the source read. A granule that is not held now
 * had not begun to change when the read completed; one that is held is read from
 * the store, whatever the source gave. */
static int co_patch_held(struct view *v, uint64_t off, uint64_t len, const struct iovec *iov,
                         int niov)
{
    uint64_t end = off + len, end_granule = view_end_granule(off, len);
    uint64_t first = view_first_granule(off), n;

    while (first < end_granule &&
           bitmap_next_range(v->held, first, end_granule - first, &first, &n) &&
           first < end_granule) {
        uint64_t from = MAX(off, first * GRANULE);
        uint64_t to = MIN(end, (first + n) * GRANULE);
        int r = co_store_readv(v->store, from, to - from, iov, niov, from - off);

        if (r < 0)
            return r;
        first += n;
    }
    return 0;
}

static bool all_held(struct view *v, uint64_t off, uint64_t len)
{
    uint64_t first = view_first_granule(off);

    return bitmap_all_set(v->held, first, view_end_granule(off, len) - first);
}

int co_view_readv(struct view *v, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                  unsigned flags)
{
    CLEANUP(view_unref) struct view *hold = view_ref(v);
    int r = unreadable(v);

    assert(range_inside(off, len, v->size));
    if (len == 0 || r < 0)
        return r;
    if (!all_held(v, off, len)) {
        r = co_node_preadv(v->node, off, len, iov, niov, flags);
        /* I-V6: a view that has ended captures nothing: its answers count for nothing. */
        if (v->error || r < 0)
            return v->error ? v->error : r;
    }
    r = co_patch_held(v, off, len, iov, niov);
    return v->error ? v->error : r;
}

int co_view_read(struct view *v, uint64_t off, uint64_t len, void *buf, unsigned flags)
{
    struct iovec iov = { buf, len };

    return co_view_readv(v, off, len, &iov, 1, flags);
}

/* Is the granule at @off held, and what is it? */
static bool held_status(struct view *v, uint64_t off, uint64_t len, struct block_status *ret)
{
    uint64_t granule = view_first_granule(off), n;
    bool data;

    if (!bitmap_test(v->held, granule))
        return false;
    data = store_has(v->store, off, len, &n);
    *ret = (struct block_status){
        .flags = STATUS_ALLOCATED | (data ? STATUS_DATA : STATUS_ZERO),
        .len = MIN(n, bitmap_next_clear(v->held, granule) * GRANULE - off),
    };
    return true;
}

int co_view_status(struct view *v, struct node *base, uint64_t off, uint64_t len,
                   struct block_status *ret)
{
    CLEANUP(view_unref) struct view *hold = view_ref(v);
    struct block_status st;
    unsigned depth;
    int r = unreadable(v);

    assert(len > 0 && range_inside(off, len, v->size));
    if (r < 0)
        return r;
    if (held_status(v, off, len, ret))
        return 0;
    r = co_node_status_above(v->node, base, off, len, &st, &depth);
    if (v->error || r < 0)
        return v->error ? v->error : r;
    /* I-V5, as for reading. */
    if (held_status(v, off, len, ret))
        return 0;
    uint64_t held_at = bitmap_next_set(v->held, view_first_granule(off)) * GRANULE;
    *ret = (struct block_status){
        .flags = st.flags & (STATUS_DATA | STATUS_ZERO | STATUS_ALLOCATED | STATUS_COMPRESSED),
        .len = MIN(MIN(st.len, len), held_at - off),
        .depth = st.flags & STATUS_ALLOCATED ? depth : 0,
    };
    return 0;
}

/* ---- releasing and watching ------------------------------------------------------------ */

/* Where the view is limited, whole units cost nothing: they are wanted no longer. */
static void set_done(struct view *v, uint64_t first, uint64_t n)
{
    uint64_t end = first + n, unit, units_end, whole, whole_end;

    if (!v->wanted) {
        bitmap_set(v->done, first, n);
        return;
    }
    unit = div_round_up(first, v->unit_granules);
    units_end = end == v->granules ? bitmap_size(v->wanted) : end / v->unit_granules;
    whole = MIN(end, unit * v->unit_granules);
    whole_end = MIN(end, MAX(unit, units_end) * v->unit_granules);
    bitmap_set(v->done, first, whole - first);
    if (unit < units_end)
        bitmap_clear(v->wanted, unit, units_end - unit);
    bitmap_set(v->done, whole_end, end - whole_end);
}

void view_release(struct view *v, uint64_t off, uint64_t len)
{
    uint64_t first = view_first_granule(off), n = view_end_granule(off, len) - first;

    assert(range_inside(off, len, v->size) && is_aligned(off, GRANULE));
    assert(is_aligned(off + len, GRANULE) || off + len == v->size);
    if (v->error || len == 0)
        return;
    set_done(v, first, n);
    if (bitmap_any_set(v->held, first, n)) {
        bitmap_clear(v->held, first, n);
        store_release(v->store, off, n * GRANULE);
    }
    if (v->n_captures)
        view_wake_range(v, first, n);
}

bool view_has(const struct view *v, uint64_t off, uint64_t len)
{
    uint64_t first = view_first_granule(off), end = view_end_granule(off, len);

    while (first < end) {
        /* Done and not held: released (I-V3). */
        first = view_next_done(v, first);
        if (first < end && !bitmap_test(v->held, first))
            return false;
        first = bitmap_next_clear(v->held, first);
    }
    return true;
}

bool view_next_captured(const struct view *v, uint64_t from, uint64_t *ret_off, uint64_t *ret_len)
{
    uint64_t first, n;

    if (v->error || from >= v->size ||
        !bitmap_next_range(v->held, view_first_granule(from), UINT64_MAX, &first, &n))
        return false;
    *ret_off = first * GRANULE;
    *ret_len = MIN(n * GRANULE, v->size - *ret_off);
    return true;
}

void view_add_listener(struct view *v, struct view_listener *l)
{
    list_push_tail(&v->listeners, &l->link);
}

void view_remove_listener(struct view_listener *l)
{
    if (l->link.next)
        list_del(&l->link);
}

void view_notify(struct view *v)
{
    struct view_listener *l, *next;

    list_for_each_safe(l, next, &v->listeners, link)
        l->changed(l);
}

void view_get_stats(const struct view *v, struct view_stats *ret)
{
    *ret = (struct view_stats){
        .captured = v->n_captured * GRANULE,
        .held = bitmap_count(v->held) * GRANULE,
        .capturing = v->n_captures,
        .waiting = v->n_waiting,
    };
    store_usage(v->store, &ret->memory, &ret->file);
}

void view_get_added(const struct view *v, struct histogram_summary *ret)
{
    histogram_summarize(&v->added, ret);
}
