/* SPDX-License-Identifier: Apache-2.0
 *
 * The control plane's beginning and its end.
 */
#include "base/mem.h"
#include "qmp/impl.h"

static void on_export_deleted(const char *id, void *arg)
{
    qmp_emit_export_deleted(arg, id);
}

struct qmp *qmp_new(const struct qmp_opts *o)
{
    struct qmp *q = xnew(struct qmp);

    q->loop = loop_current();
    q->placement = o->placement;
    q->scratch_dir = o->scratch_dir ? xstrdup(o->scratch_dir) : NULL;
    q->on_quit = o->on_quit;
    q->quit_arg = o->arg;
    q->iothreads = json_object();
    q->targets = json_object();
    co_mutex_init(&q->nodes_lock);
    q->exports = nbd_exports_new();
    nbd_exports_on_deleted(q->exports, on_export_deleted, q);
    node_set_corruption_listener(qmp_image_corrupted, q);
    dirty_set_spoil_listener(qmp_bitmap_spoiled, q);
    list_init(&q->monitors);
    waitq_init(&q->monitor_gone);
    waitq_init(&q->idle);
    return q;
}

void qmp_free(struct qmp *q)
{
    if (!q)
        return;
    assert(list_empty(&q->monitors));
    node_set_corruption_listener(NULL, NULL);
    dirty_set_spoil_listener(NULL, NULL);
    nbd_exports_free(q->exports);
    json_decref(q->iothreads);
    json_decref(q->targets);
    free(q->scratch_dir);
    free(q);
}

/* ---- the end ------------------------------------------------------------------------ */

/* What hangs may hold up the end by this, for each step. */
#define GRACE_NS (2 * NSEC_PER_SEC)
/* Disks get as long as it may take to write back what they hold. */
#define WRITE_BACK_NS (60 * NSEC_PER_SEC)

/* Deleting many nodes at the same time. Lives on when it is not waited for any
 * longer. */
struct node_closing {
    struct waitq changed;
    unsigned running;
    bool progress;
};

struct node_close {
    struct node_closing *all;
    struct node *node;           /* a reference */
    bool deleted;
};

static int co_close_there(void *arg)
{
    struct node_close *c = arg;
    struct err why;

    c->deleted = co_node_monitor_del(node_ref(c->node), &why);
    /* Somebody still has it: at least nothing that was written is lost. */
    return c->deleted || node_read_only(c->node) ? 0 : co_node_flush(c->node);
}

static void co_close_one(void *arg)
{
    struct node_close *c = arg;

    /* An error has nobody to be told to but the log of the kernel, which knows. */
    (void)co_node_call(c->node, co_close_there, c);
    co_node_unref(c->node);
    c->all->progress |= c->deleted;
    c->all->running--;
    waitq_wake_all(&c->all->changed);
    free(c);
}

struct closing_pass {
    struct node_closing *all;
    const struct qmp *qmp;
    bool targets;                /* nodes that backups went to, or all others */
};

static void close_if_due(struct node *n, void *arg)
{
    struct closing_pass *pass = arg;
    bool target = json_object_get(pass->qmp->targets, node_name(n)) != NULL;

    if (node_name(n)[0] == '#' || target != pass->targets)
        return;

    struct node_close *c = xnew(struct node_close);

    c->all = pass->all;
    c->node = node_ref(n);
    pass->all->running++;
    co_start(co_close_one, c);
}

/* Delete the nodes that users have added; those that others stand on come free in
 * a later pass. False at @deadline. */
static bool co_close_nodes(const struct qmp *q, bool targets, uint64_t deadline)
{
    struct node_closing *all = xnew(struct node_closing);
    struct closing_pass pass = { .all = all, .qmp = q, .targets = targets };

    waitq_init(&all->changed);
    do {
        all->progress = false;
        node_for_each(close_if_due, &pass);
        while (all->running) {
            if (!co_waitq_wait_until(&all->changed, deadline) && all->running)
                return false;
        }
    } while (all->progress);
    free(all);
    return true;
}

/* See commands to their end that could still open something. */
static bool co_finish_commands(struct qmp *q, uint64_t deadline)
{
    while (q->running) {
        if (!co_waitq_wait_until(&q->idle, deadline))
            return q->running == 0;
    }
    return true;
}

bool co_qmp_shutdown(struct qmp *q, enum qmp_shutdown_cause cause)
{
    qmp_emit_shutdown(q, cause);
    q->ending = true;

    bool ok = co_finish_commands(q, loop_now() + GRACE_NS);

    /* A job that is left tells its end to us. */
    ok &= co_job_cancel_all(loop_now() + GRACE_NS);
    ok &= co_qmp_exports_close(q, loop_now() + GRACE_NS);
    ok &= co_close_nodes(q, false, loop_now() + WRITE_BACK_NS);
    ok &= co_close_nodes(q, true, loop_now() + GRACE_NS);
    ok &= co_qmp_monitors_close(q, loop_now() + GRACE_NS);
    return ok;
}
