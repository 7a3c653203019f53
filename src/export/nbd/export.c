/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of exports. An export goes through nbd_export_state from left to
 * right; only its own adding and its own end visit the node's loop, everything
 * else happens here, on the main loop.
 *
 *   OPENING --> LIVE --> SHUTTING_DOWN --(last connection gone)--> CLOSING --> freed
 *      \_________________(node refused, or the export was dropped)____________^
 */
#include "base/limits.h"
#include "base/mem.h"
#include "export/nbd/conn.h"

static void assert_here(const struct nbd_exports *x)
{
    assert(loop_current() == x->loop);
}

struct nbd_exports *nbd_exports_new(void)
{
    struct nbd_exports *x = xnew(struct nbd_exports);

    x->loop = loop_current();
    assert(x->loop);
    list_init(&x->exports);
    list_init(&x->loop_buffers);
    waitq_init(&x->changed);
    return x;
}

void nbd_exports_free(struct nbd_exports *x)
{
    if (!x)
        return;
    assert(list_empty(&x->exports) && list_empty(&x->loop_buffers));
    free(x);
}

void nbd_exports_on_deleted(struct nbd_exports *x, void (*fn)(const char *id, void *arg), void *arg)
{
    x->deleted = fn;
    x->deleted_arg = arg;
}

/* ---- looking up --------------------------------------------------------- */

static struct nbd_export *find_by_id(struct nbd_exports *x, const char *id)
{
    struct nbd_export *e;

    list_for_each(e, &x->exports, link) {
        if (strcmp(e->id, id) == 0)
            return e;
    }
    return NULL;
}

/* A name is free again as soon as its export begins to shut down. */
static bool name_is_taken(struct nbd_exports *x, const char *name)
{
    struct nbd_export *e;

    list_for_each(e, &x->exports, link) {
        if (e->state <= NBD_EXPORT_LIVE && strcmp(e->name, name) == 0)
            return true;
    }
    return false;
}

struct nbd_export *nbd_export_find(struct nbd_exports *x, const struct nbd_str *name)
{
    struct nbd_export *e, *only = NULL;
    unsigned n_live = 0;

    assert_here(x);
    list_for_each(e, &x->exports, link) {
        if (e->state != NBD_EXPORT_LIVE)
            continue;
        if (nbd_str_is(name, e->name))
            return e;
        only = e;
        n_live++;
    }
    return name->len == 0 && n_live == 1 ? only : NULL;
}

/* The first live one at or after @link. */
static struct nbd_export *live_from(const struct nbd_exports *x, const struct list *link)
{
    for (; link != &x->exports; link = link->next) {
        struct nbd_export *e = list_entry(link, struct nbd_export, link);

        if (e->state == NBD_EXPORT_LIVE)
            return e;
    }
    return NULL;
}

struct nbd_export *nbd_export_first(struct nbd_exports *x)
{
    return live_from(x, x->exports.next);
}

struct nbd_export *nbd_export_next(const struct nbd_export *e)
{
    return live_from(e->table, e->link.next);
}

struct nbd_export *nbd_export_after(struct nbd_exports *x, uint64_t seq)
{
    struct nbd_export *e = nbd_export_first(x);

    while (e && e->seq <= seq)
        e = nbd_export_next(e);
    return e;
}

void nbd_exports_for_each(struct nbd_exports *x,
                          void (*fn)(const struct nbd_export_info *info, void *arg), void *arg)
{
    struct nbd_export *e;

    assert_here(x);
    list_for_each(e, &x->exports, link) {
        /* While it opens it is filled in on another loop. */
        if (e->state == NBD_EXPORT_OPENING)
            continue;

        struct nbd_export_info info = {
            .id = e->id,
            .name = e->name,
            .node_name = e->node_name,
            .description = e->description,
            .size = e->size,
            .connections = e->n_conns,
            .stats = &e->stats,
            .writable = e->writable,
            .shutting_down = e->state != NBD_EXPORT_LIVE,
        };

        fn(&info, arg);
    }
}

/* ---- adding ------------------------------------------------------------- */

static struct nbd_loop_buffers *loop_buffers_get(struct nbd_exports *x, struct loop *loop)
{
    struct nbd_loop_buffers *lb;

    list_for_each(lb, &x->loop_buffers, link) {
        if (lb->loop == loop) {
            lb->users++;
            return lb;
        }
    }
    lb = xnew(struct nbd_loop_buffers);
    *lb = (struct nbd_loop_buffers){ .loop = loop, .buffers = nbd_buffers_new(), .users = 1 };
    list_push_tail(&x->loop_buffers, &lb->link);
    return lb;
}

static void loop_buffers_put(struct nbd_loop_buffers *lb)
{
    if (!lb || --lb->users)
        return;
    list_del(&lb->link);
    nbd_buffers_free(lb->buffers);
    free(lb);
}

static bool check_opts(struct nbd_exports *x, const struct nbd_export_opts *o, const char *name,
                       struct err *err)
{
    if (find_by_id(x, o->id))
        return err_set(err, -EEXIST, "Block export id '%s' is already in use", o->id);
    if (o->writable && node_read_only(o->node))
        return err_set(err, -EROFS, "Cannot export read-only node as writable");
    if (strlen(name) > LIMIT_NBD_STRING_BYTES)
        return err_set(err, -EINVAL, "export name '%s' too long", name);
    if (o->description && strlen(o->description) > LIMIT_NBD_STRING_BYTES)
        return err_set(err, -EINVAL, "description '%s' too long", o->description);
    if (name_is_taken(x, name))
        return err_set(err, -EEXIST, "NBD server already has export named '%s'", name);
    return true;
}

/* Smallest 1: the request funnel fits any request to the node. Preferred: what
 * needs no read-modify-write. A power of two between 4 KiB and the largest. */
static struct nbd_block_sizes block_sizes_for(const struct node_info *info)
{
    uint32_t wish = MAX(info->request_align, info->optimal_io), preferred = 4096;

    while (preferred < wish && preferred < LIMIT_NBD_REQUEST_BYTES)
        preferred *= 2;
    return (struct nbd_block_sizes){ 1, preferred, LIMIT_NBD_REQUEST_BYTES };
}

struct attach {
    struct nbd_export *e;
    const struct nbd_export_opts *o;
    struct err *err;
};

/* On the node's loop. */
static int co_attach(void *arg)
{
    struct attach *a = arg;
    struct nbd_export *e = a->e;
    CLEANUP(free) char *who = xasprintf("block export '%s'", e->id);
    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    e->disk = disk_open(e->node, who, EDGE_READ | (e->writable ? EDGE_WRITE : 0),
                        EDGE_READ | EDGE_WRITE, a->err);
    if (!e->disk)
        return -EBUSY;
    if (!nbd_export_add_contexts(e, a->o, a->err)) {
        disk_close(MOVE(e->disk));
        return -EBUSY;
    }
    node_get_info(e->node, info);
    e->size = node_size(e->node);
    e->block_sizes = block_sizes_for(info);
    e->discard_only = info->discard_only;
    return 0;
}

static int co_detach(void *arg)
{
    struct nbd_export *e = arg;

    nbd_export_drop_contexts(e);
    disk_close(MOVE(e->disk));
    return 0;
}

/* Its node is free. */
static void co_let_go(struct nbd_export *e)
{
    (void)co_loop_call(node_loop(e->node), co_detach, e);
    co_node_unref(MOVE(e->node));
}

/* Takes it out of the table. */
static void export_free(struct nbd_export *e)
{
    struct nbd_exports *x = e->table;

    assert(!e->disk && !e->node && !e->n_conns && !e->n_contexts);
    list_del(&e->link);
    loop_buffers_put(e->buffers);
    free(e->id);
    free(e->name);
    free(e->description);
    free(e->node_name);
    free(e);
    waitq_wake_all(&x->changed);
}

struct nbd_export *co_nbd_export_prepare(struct nbd_exports *x, const struct nbd_export_opts *o,
                                         struct err *err)
{
    const char *name = o->name ? o->name : node_name(o->node);
    struct nbd_export *e;
    struct attach attach;

    assert_here(x);
    if (!check_opts(x, o, name, err))
        return NULL;
    e = xnew(struct nbd_export);
    *e = (struct nbd_export){
        .table = x,
        .state = NBD_EXPORT_OPENING,
        .seq = ++x->next_seq,
        .id = xstrdup(o->id),
        .name = xstrdup(name),
        .description = xstrdup(o->description ? o->description : ""),
        .node_name = xstrdup(node_name(o->node)),
        .node = node_ref(o->node),
        .writable = o->writable,
        .writethrough = o->writethrough,
    };
    list_init(&e->conns);
    list_push_tail(&x->exports, &e->link);

    attach = (struct attach){ e, o, err };
    if (co_node_call(e->node, co_attach, &attach) < 0) {
        node_unref(MOVE(e->node));
        export_free(e);
        return NULL;
    }
    /* It has a user from now on and moves no more. */
    e->buffers = loop_buffers_get(x, node_loop(e->node));
    return e;
}

void nbd_export_publish(struct nbd_export *e)
{
    assert_here(e->table);
    assert(e->state == NBD_EXPORT_OPENING);
    e->state = NBD_EXPORT_LIVE;
    waitq_wake_all(&e->table->changed);
}

void co_nbd_export_drop(struct nbd_export *e)
{
    assert_here(e->table);
    assert(e->state == NBD_EXPORT_OPENING);
    co_let_go(e);
    export_free(e);
}

bool co_nbd_export_add(struct nbd_exports *x, const struct nbd_export_opts *o, struct err *err)
{
    struct nbd_export *e = co_nbd_export_prepare(x, o, err);

    if (e)
        nbd_export_publish(e);
    return e != NULL;
}

/* ---- deleting ----------------------------------------------------------- */

static void co_close(void *arg)
{
    struct nbd_export *e = arg;
    struct nbd_exports *x = e->table;
    CLEANUP(free) char *id = xstrdup(e->id);

    co_let_go(e);
    export_free(e);
    if (x->deleted)
        x->deleted(id, x->deleted_arg);
}

static void close_if_unused(struct nbd_export *e)
{
    if (e->state != NBD_EXPORT_SHUTTING_DOWN || e->n_conns)
        return;
    e->state = NBD_EXPORT_CLOSING;
    co_start(co_close, e);
}

void nbd_export_conn_gone(struct nbd_export *e)
{
    close_if_unused(e);
}

static void shut_down(struct nbd_export *e)
{
    struct nbd_conn *c;

    e->state = NBD_EXPORT_SHUTTING_DOWN;
    list_for_each(c, &e->conns, export_link)
        nbd_conn_stop(c);
    close_if_unused(e);
}

bool nbd_export_del(struct nbd_exports *x, const char *id, enum nbd_export_del_mode mode,
                    struct err *err)
{
    struct nbd_export *e = find_by_id(x, id);

    assert_here(x);
    if (!e || e->state == NBD_EXPORT_OPENING)
        return err_set(err, -ENOENT, "Export '%s' is not found", id);
    if (e->state != NBD_EXPORT_LIVE)
        return err_set(err, -EALREADY, "Export '%s' is already shutting down", id);
    if (mode == NBD_EXPORT_DEL_SAFE && e->n_conns)
        return err_set(err, -EBUSY, "export '%s' still in use", id);
    shut_down(e);
    return true;
}

bool co_nbd_export_wait_gone(struct nbd_exports *x, const char *id, uint64_t deadline)
{
    assert_here(x);
    while (find_by_id(x, id)) {
        if (!co_waitq_wait_until(&x->changed, deadline))
            return !find_by_id(x, id);
    }
    return true;
}

bool co_nbd_exports_close(struct nbd_exports *x, uint64_t deadline)
{
    struct nbd_export *e;

    assert_here(x);
    while (!list_empty(&x->exports)) {
        list_for_each(e, &x->exports, link) {
            if (e->state == NBD_EXPORT_LIVE)
                shut_down(e);
        }
        if (!co_waitq_wait_until(&x->changed, deadline))
            return list_empty(&x->exports);
    }
    return true;
}
