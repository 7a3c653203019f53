/* SPDX-License-Identifier: Apache-2.0
 *
 * A node's life, from a first reference to its closing, and the plain facts
 * about it. Closing happens on the node's loop in a coroutine, because drivers
 * write back what they hold; a node that goes takes the children with it that
 * nobody else holds.
 */
#include "block/core.h"
#include "base/log.h"
#include "base/mem.h"
#include <inttypes.h>

struct whole_node {
    struct node node;
    struct node_core core;
};

struct node *node_new(const struct driver *drv, struct loop *loop)
{
    struct whole_node *whole = xnew(struct whole_node);
    struct node_core *core = &whole->core;

    whole->node.drv = drv;
    whole->node.loop = loop;
    whole->node.state = xzalloc(drv->state_size);
    whole->node.core = core;
    core->node = &whole->node;
    atomic_init(&core->refs, 1);
    list_init(&core->registered);
    list_init(&core->children);
    list_init(&core->parents);
    list_init(&core->bitmaps);
    list_init(&core->meters);
    list_init(&core->notifiers);
    list_init(&core->requests);
    list_init(&core->reads);
    list_init(&core->doomed);
    waitq_init(&core->settled);
    return &whole->node;
}

/* ---- references ------------------------------------------------------------ */

struct node *node_ref(struct node *n)
{
    unsigned before = atomic_fetch_add(&n->core->refs, 1);

    assert(before > 0);
    return n;
}

bool node_ref_alive(struct node *n)
{
    unsigned refs = atomic_load(&n->core->refs);

    while (refs > 0) {
        if (atomic_compare_exchange_weak(&n->core->refs, &refs, refs + 1))
            return true;
    }
    return false;
}

/* Whether it was the last one. */
static bool drop_ref(struct node *n)
{
    unsigned before = atomic_fetch_sub(&n->core->refs, 1);

    assert(before > 0);
    return before == 1;
}

/* Hand the children's references over; those that were the last join @doomed. */
static void drop_children(struct node *n, struct list *doomed)
{
    struct edge *e;

    while ((e = list_first(&n->core->children, struct edge, in_parent))) {
        struct node *child = edge_unlink(e);

        if (drop_ref(child))
            list_push_tail(doomed, &child->core->doomed);
    }
}

/* A list and no recursion: a chain of backing files can be longer than a stack. */
static void co_close_doomed(struct list *doomed)
{
    struct node_core *core;

    while ((core = list_pop_head(doomed, struct node_core, doomed))) {
        struct node *n = core->node;

        assert(n->loop == loop_current());
        assert(list_empty(&core->parents) && !core->disk && list_empty(&core->requests));
        if (core->opened)
            co_dirty_bitmaps_close(n);
        if (core->keeper && n->drv->is_protocol)
            core->keeper->ops->co_close(core->keeper);
        if (core->opened && n->drv->co_close)
            n->drv->co_close(n);
        if (core->keeper && !n->drv->is_protocol)
            core->keeper->ops->co_close(core->keeper);
        dirty_bitmaps_end(n);
        drop_children(n, doomed);
        graph_unregister(n);
        json_decref(core->options);
        free(n->storage_id);
        free(n->state);
        free(container_of(core, struct whole_node, core));
    }
}

static int co_close_node(void *arg)
{
    struct node *n = arg;
    struct list doomed = LIST_INIT(doomed);

    list_push_tail(&doomed, &n->core->doomed);
    co_close_doomed(&doomed);
    return 0;
}

void co_node_reset(struct node *n)
{
    struct list doomed = LIST_INIT(doomed);

    drop_children(n, &doomed);
    co_close_doomed(&doomed);
    dirty_bitmaps_end(n);
    n->file = n->backing = n->data_file = NULL;
    n->size = 0;
    n->limits = (struct node_limits){ 0 };
    n->zero_init = false;
    n->core->height = n->core->chain = 0;
    free(MOVE(n->storage_id));
    memset(n->state, 0, n->drv->state_size);
}

static void close_coroutine(void *arg)
{
    co_close_node(arg);
}

static void close_posted(void *arg)
{
    co_start(close_coroutine, arg);
}

void node_unref(struct node *n)
{
    if (n && drop_ref(n))
        loop_post(node_loop(n), close_posted, n);
}

void co_node_unref(struct node *n)
{
    if (n && drop_ref(n))
        (void)co_loop_call(node_loop(n), co_close_node, n);
}

void node_set_monitor_owned(struct node *n)
{
    assert(!n->core->monitor_owned);
    n->core->monitor_owned = true;
    node_ref(n);
}

bool node_monitor_owned(const struct node *n)
{
    return n->core->monitor_owned;
}

bool co_node_monitor_del(struct node *n, struct err *err)
{
    bool ok = !node_in_use(n, err);

    assert(n->loop == loop_current());
    if (ok && !n->core->monitor_owned)
        ok = err_set(err, -EPERM, "Node '%s' is not owned by the monitor", n->name);
    if (ok) {
        n->core->monitor_owned = false;
        node_unref(n);               /* the user's own; the caller's is left */
    }
    co_node_unref(n);
    return ok;
}

/* ---- calls ------------------------------------------------------------------ */

struct node_call {
    struct node *node;
    int (*fn)(void *arg);
    void *arg;
    bool stay;                   /* it may not be moved meanwhile */
    bool moved_on;
};

static int co_call_here(void *arg)
{
    struct node_call *call = arg;
    struct node *n = call->node;

    /* Only the loop that has the node changes its place: if it is here, it stays
     * until this coroutine suspends. */
    while (node_loop(n) == loop_current() && n->core->moving)
        co_waitq_wait(&n->core->settled);
    call->moved_on = node_loop(n) != loop_current();
    if (call->moved_on)
        return 0;
    n->core->calls += call->stay;
    int r = call->fn(call->arg);
    n->core->calls -= call->stay;
    if (call->stay && !n->core->calls)
        waitq_wake_all(&n->core->settled);
    return r;
}

static int co_follow(struct node_call *call)
{
    int r;

    do {
        r = co_loop_call(node_loop(call->node), co_call_here, call);
    } while (call->moved_on);
    return r;
}

int co_node_call(struct node *n, int (*fn)(void *arg), void *arg)
{
    struct node_call call = { .node = n, .fn = fn, .arg = arg, .stay = true };

    return co_follow(&call);
}

int co_node_call_mover(struct node *n, int (*fn)(void *arg), void *arg)
{
    struct node_call call = { .node = n, .fn = fn, .arg = arg };

    return co_follow(&call);
}

/* ---- facts ------------------------------------------------------------------- */

const char *node_name(const struct node *n)
{
    return n->name;
}

const char *node_driver_name(const struct node *n)
{
    return n->drv->name;
}

struct loop *node_loop(const struct node *n)
{
    return __atomic_load_n(&n->loop, __ATOMIC_ACQUIRE);
}

uint64_t node_size(const struct node *n)
{
    return n->size;
}

bool node_read_only(const struct node *n)
{
    return n->read_only;
}

struct node *node_skip_filters(struct node *n)
{
    while (n->drv->is_filter && n->file)
        n = edge_node(n->file);
    return n;
}

struct node *node_backing(const struct node *n)
{
    return edge_node(n->backing);
}

json_t *node_options(const struct node *n)
{
    return n->core->options;
}

json_t *node_format_info(struct node *n)
{
    return n->drv->format_info ? n->drv->format_info(n) : NULL;
}

/* What is true of a node because it is true of the file below it. */
static void info_from_file(struct node *n, struct node_info *ret)
{
    node_get_info(edge_node(n->file), ret);
    if (n->drv->is_filter)
        return;
    ret->cluster_size = 0;
    ret->dirty = false;
    ret->backing_file[0] = ret->backing_format[0] = '\0';
}

void node_get_info(struct node *n, struct node_info *ret)
{
    if (n->file) {
        info_from_file(n, ret);
    } else {
        memset(ret, 0, sizeof(*ret));
        ret->allocated = UINT64_MAX;
    }
    ret->size = n->size;
    ret->request_align = n->limits.request_align;
    ret->max_transfer = n->limits.max_transfer;
    ret->zero_init = n->zero_init;
    ret->can_compress = n->limits.write_flags & REQ_COMPRESSED;
    if (n->drv->get_info)
        n->drv->get_info(n, ret);
}

void node_cancel_in_flight(struct node *n)
{
    if (n->drv->cancel_in_flight)
        n->drv->cancel_in_flight(n);
}

/* ---- size ---------------------------------------------------------------------- */

void node_forbid_resize(struct node *n, const char *why)
{
    n->core->resize_forbidden++;
    n->core->resize_why = why;
}

void node_allow_resize(struct node *n)
{
    assert(n->core->resize_forbidden > 0);
    n->core->resize_forbidden--;
}

static bool co_resize_driver(struct node *n, uint64_t size, struct err *err)
{
    if (n->drv->co_resize)
        return n->drv->co_resize(n, size, err);
    if (!n->drv->is_filter || !n->file)
        return err_set(err, -ENOTSUP, "Driver '%s' of node '%s' cannot resize", n->drv->name,
                       n->name);
    if (!co_node_resize(edge_node(n->file), size, err))
        return false;
    n->size = edge_node(n->file)->size;
    return true;
}

bool co_node_resize(struct node *n, uint64_t size, struct err *err)
{
    uint64_t size_before = n->size;

    assert(n->loop == loop_current());
    if (n->read_only)
        return err_set(err, -EPERM, "Node '%s' is read-only and cannot be resized", n->name);
    if (size > INT64_MAX)
        return err_set(err, -EFBIG, "Size %ju is too large", (uintmax_t)size);
    if (n->core->resize_forbidden)
        return err_set(err, -EBUSY, "Node '%s' cannot be resized now: %s", n->name,
                       n->core->resize_why);
    if (!co_resize_driver(n, size, err))
        return false;
    dirty_bitmaps_resized(n, size_before);
    return true;
}

/* ---- images that contradict themselves --------------------------------------- */

static struct {
    void (*fn)(void *arg, const struct node *n, const struct node_corruption *c);
    void *arg;
} corruption_listener;

void node_set_corruption_listener(void (*fn)(void *arg, const struct node *n,
                                             const struct node_corruption *c), void *arg)
{
    corruption_listener.fn = fn;
    corruption_listener.arg = arg;
}

void node_report_corruption(const struct node *n, const struct node_corruption *c)
{
    log_error("the image of node '%s' is corrupt: %s (offset %" PRIu64 " of the file, %" PRIu64
              " bytes) was refused, and nothing more is written to it; see 'stillpoint check'",
              node_name(n), c->what, c->off, c->len);
    if (corruption_listener.fn)
        corruption_listener.fn(corruption_listener.arg, n, c);
}
