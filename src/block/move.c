/* SPDX-License-Identifier: Apache-2.0
 *
 * Moving a graph to another loop. A node belongs to the loop that node->loop
 * names; only that loop changes it, as the last thing it does with the node:
 *
 *   old loop   check that everything is idle, mark all moving, detach the
 *              drivers from the top down, set node->loop
 *   new loop   attach the drivers from the bottom up, unmark
 *
 * A node that is marked takes no new users (edge.c), and calls to it wait until
 * it has arrived (co_node_call).
 */
#include "block/core.h"
#include "base/mem.h"

/* So long a move waits for commands to let go of its nodes. */
#define CALL_PATIENCE_NS NSEC_PER_SEC

struct move {
    struct node *start;
    struct loop *to;
    struct node_set set;         /* with a reference to each, from the bottom up */
    struct err *err;
};

static int by_height(const void *a, const void *b)
{
    const struct node_core *x = (*(struct node *const *)a)->core;
    const struct node_core *y = (*(struct node *const *)b)->core;
    unsigned hx = x->height + x->chain, hy = y->height + y->chain;

    return (hx > hy) - (hx < hy);
}

static bool check_idle(const struct node *n, struct err *err)
{
    const struct edge *e;

    if (!n->core->opened)
        return err_set(err, -EBUSY, "Node '%s' is being opened", n->name);
    list_for_each(e, &n->core->parents, in_child) {
        if (!e->parent)
            return err_set(err, -EBUSY, "Node '%s' is in use by %s", n->name, e->who);
    }
    if (!list_empty(&n->core->notifiers) || !list_empty(&n->core->requests))
        return err_set(err, -EBUSY, "Node '%s' is being read or written", n->name);
    if (n->core->calls)
        return err_set(err, -EBUSY, "Node '%s' is busy with a command", n->name);
    assert(!n->core->moving);             /* a graph moves whole, and m->start is here */
    return true;
}

/* Take a reference to each, if all are idle. */
static bool hold_all(const struct node_set *set, struct err *err)
{
    size_t i;

    for (i = 0; i < set->n && check_idle(set->nodes[i], err); i++) {
        /* The last reference may go at any time, in any thread. */
        if (!node_ref_alive(set->nodes[i])) {
            err_set(err, -EBUSY, "Node '%s' is being closed", set->nodes[i]->name);
            break;
        }
    }
    if (i == set->n)
        return true;
    while (i-- > 0)
        node_unref(set->nodes[i]);
    return false;
}

static struct node *find_called(struct node *start)
{
    CLEANUP_NODE_SET struct node_set set = { 0 };

    node_set_walk(&set, start, WALK_UP | WALK_DOWN);
    for (size_t i = 0; i < set.n; i++) {
        if (set.nodes[i]->core->calls)
            return set.nodes[i];
    }
    return NULL;
}

/* Commands that are under way are mostly short. Nothing is marked yet: they may
 * go on to other nodes of this graph. False when the graph has been moved by
 * somebody else meanwhile, or is about to be. */
static bool co_wait_for_calls(struct node *start)
{
    uint64_t deadline = loop_now() + CALL_PATIENCE_NS;
    bool in_time = true, here = true;
    struct node *called;

    while (in_time && here && (called = find_called(start))) {
        node_ref(called);
        in_time = co_waitq_wait_until(&called->core->settled, deadline);
        node_unref(called);
        here = node_loop(start) == loop_current() && !start->core->moving;
    }
    return here;
}

static int co_leave_loop(void *arg)
{
    struct move *m = arg;

    if (m->start->loop == m->to)
        return 0;
    if (!co_wait_for_calls(m->start))
        return -EAGAIN;
    node_set_walk(&m->set, m->start, WALK_UP | WALK_DOWN);
    if (!hold_all(&m->set, m->err)) {
        node_set_done(&m->set);
        return -EBUSY;
    }
    qsort(m->set.nodes, m->set.n, sizeof(*m->set.nodes), by_height);
    for (size_t i = 0; i < m->set.n; i++)
        m->set.nodes[i]->core->moving = true;
    for (size_t i = m->set.n; i-- > 0;) {
        struct node *n = m->set.nodes[i];

        if (n->core->keeper)
            n->core->keeper->ops->co_detach(n->core->keeper);
        if (n->drv->co_detach)
            n->drv->co_detach(n);
    }
    for (size_t i = 0; i < m->set.n; i++) {
        struct node *n = m->set.nodes[i];

        /* Those who wait see that it is gone, and follow. They are of this loop:
         * woken before the other one may touch the queue. */
        waitq_wake_all(&n->core->settled);
        __atomic_store_n(&n->loop, m->to, __ATOMIC_RELEASE);
    }
    return 0;
}

static int co_arrive(void *arg)
{
    struct move *m = arg;

    for (size_t i = 0; i < m->set.n; i++) {
        struct node *n = m->set.nodes[i];

        if (n->drv->co_attach)
            n->drv->co_attach(n);
        if (n->core->keeper)
            n->core->keeper->ops->co_attach(n->core->keeper);
    }
    for (size_t i = 0; i < m->set.n; i++) {
        struct node *n = m->set.nodes[i];

        n->core->moving = false;
        waitq_wake_all(&n->core->settled);
        node_unref(n);
    }
    return 0;
}

bool co_node_move(struct node *n, struct loop *loop, struct err *err)
{
    struct move m = { .start = n, .to = loop, .err = err };

    int r;

    do {
        r = co_node_call_mover(n, co_leave_loop, &m);
    } while (r == -EAGAIN);
    if (r < 0)
        return false;
    if (m.set.n)
        (void)co_loop_call(loop, co_arrive, &m);
    node_set_done(&m.set);
    return true;
}

/* ---- the loop for new options ------------------------------------------------------- */

/* Collect the nodes that exist and that @json names where @type has references. */
static void find_refs(const struct schema_type *type, const json_t *json, struct node_set *ret);

static void find_member_refs(const struct schema_member *members, const json_t *json,
                             struct node_set *ret)
{
    for (const struct schema_member *m = members; m && m->name; m++)
        find_refs(m->type, json_object_get(json, m->name), ret);
}

static void add_named(const char *name, struct node_set *ret)
{
    struct node *n = node_find(name, NULL);

    if (!n)
        return;
    ret->nodes = xrealloc(ret->nodes, (ret->n + 1) * sizeof(*ret->nodes));
    ret->nodes[ret->n++] = n;
}

static void find_refs(const struct schema_type *type, const json_t *json, struct node_set *ret)
{
    const struct schema_type *branch;
    const char *tag;

    if (!json)
        return;
    if ((type == &blockdev_ref_type || type == &blockdev_ref_or_null_type) &&
        json_is_string(json)) {
        add_named(json_string_value(json), ret);
        return;
    }
    switch (type->kind) {
    case SCHEMA_ALTERNATE:
        if (type->element && json_is_object(json))
            find_refs(type->element, json, ret);
        break;
    case SCHEMA_STRUCT:
        find_member_refs(type->members, json, ret);
        break;
    case SCHEMA_UNION:
        find_member_refs(type->members, json, ret);
        tag = json_string_value(json_object_get(json, type->tag));
        branch = tag ? type->branch(tag) : NULL;
        if (branch)
            find_refs(branch, json, ret);
        break;
    case SCHEMA_ARRAY:
        for (size_t i = 0; i < json_array_size(json); i++)
            find_refs(type->element, json_array_get(json, i), ret);
        break;
    default:
        break;
    }
}

/* Bring all of @set to @to. The first that cannot go is given back in *ret_stuck. */
static bool co_gather(const struct node_set *set, struct loop *to, struct node **ret_stuck,
                      struct err *err)
{
    for (size_t i = 0; i < set->n; i++) {
        if (!co_node_move(set->nodes[i], to, err)) {
            *ret_stuck = set->nodes[i];
            return false;
        }
    }
    return true;
}

bool co_node_json_loop(const json_t *json, struct loop **ret, struct err *err)
{
    struct node_set set = { 0 };
    struct loop *to = NULL;
    struct node *stuck = NULL;
    struct err why = ERR_INIT;
    bool ok = true;

    find_refs(&blockdev_options_type, json, &set);
    if (set.n) {
        to = node_loop(set.nodes[0]);
        ok = co_gather(&set, to, &stuck, &why);
    }
    if (!ok) {
        /* One that is in use has to stay: perhaps all others can come to it. */
        to = node_loop(stuck);
        ok = co_gather(&set, to, &stuck, &why);
    }
    if (!ok)
        err_set(err, -EXDEV, "The nodes that are named live on different threads and cannot be "
                "brought together: %s", why.text);
    for (size_t i = 0; i < set.n; i++)
        co_node_unref(set.nodes[i]);
    node_set_done(&set);
    if (ok)
        *ret = to;
    return ok;
}
