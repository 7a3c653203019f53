/* SPDX-License-Identifier: Apache-2.0
 *
 * Uses of a node: what each does to it and lets others do, who is in whose way,
 * and walks along them.
 */
#include "block/core.h"
#include "base/limits.h"
#include "base/mem.h"
#include <stdio.h>

struct node *edge_node(const struct edge *e)
{
    return e ? e->child : NULL;
}

struct node *node_child(const struct node *n, const char *role)
{
    struct edge *e;

    list_for_each(e, &n->core->children, in_parent) {
        if (strcmp(e->role, role) == 0)
            return e->child;
    }
    return NULL;
}

void edge_describe(const struct edge *e, char *buf, size_t size)
{
    if (e->parent)
        snprintf(buf, size, "node '%s' as its %s", e->parent->name, e->role);
    else
        snprintf(buf, size, "%s", e->who);
}

bool node_in_use(struct node *n, struct err *err)
{
    struct edge *e = list_first(&n->core->parents, struct edge, in_child);
    char who[256];

    if (!e)
        return false;
    edge_describe(e, who, sizeof(who));
    err_set(err, -EBUSY, "Node '%s' is in use by %s", n->name, who);
    return true;
}

/* ---- permissions -------------------------------------------------------------- */

static const struct {
    unsigned perm;
    const char *does, *forbids;
} perm_words[] = {
    { EDGE_WRITE, "writes to it", "does not let others write to it" },
    { EDGE_RESIZE, "may resize it", "does not let others resize it" },
    { EDGE_READ, "reads it", "does not let others read it" },
};

/* Whether a use with @perms and @shared goes together with the others of @n. */
static bool check_perms(struct node *n, const struct edge *self, unsigned perms, unsigned shared,
                        struct err *err)
{
    struct edge *e;
    char who[256];

    if (n->core->moving)
        return err_set(err, -EAGAIN, "Node '%s' is being moved to another thread: try again",
                       n->name);
    if (n->read_only && (perms & (EDGE_WRITE | EDGE_RESIZE)))
        return err_set(err, -EACCES, "Node '%s' is read-only", n->name);
    list_for_each(e, &n->core->parents, in_child) {
        unsigned theirs = e->perms & ~shared, ours = perms & ~e->shared;

        if (e == self || !(theirs | ours))
            continue;
        edge_describe(e, who, sizeof(who));
        for (size_t i = 0; i < ARRAY_SIZE(perm_words); i++) {
            if ((theirs | ours) & perm_words[i].perm)
                return err_set(err, -EBUSY, "Node '%s' is in use by %s, which %s", n->name, who,
                               theirs & perm_words[i].perm ? perm_words[i].does
                                                           : perm_words[i].forbids);
        }
    }
    return true;
}

bool edge_set_perms(struct edge *e, unsigned perms, unsigned shared, struct err *err)
{
    if (!check_perms(e->child, e, perms, shared, err))
        return false;
    e->perms = perms;
    e->shared = shared;
    return true;
}

/* ---- attaching ------------------------------------------------------------------ */

static struct edge *attach(struct node *child, unsigned perms, unsigned shared, struct err *err)
{
    assert(child->loop == loop_current());
    if (!check_perms(child, NULL, perms, shared, err))
        return NULL;

    struct edge *e = xnew(struct edge);

    e->child = child;
    e->perms = perms;
    e->shared = shared;
    list_init(&e->in_parent);
    list_push_tail(&child->core->parents, &e->in_child);
    return e;
}

struct edge *edge_attach_user(struct node *n, const char *who, unsigned perms, unsigned shared,
                              struct err *err)
{
    struct edge *e = attach(n, perms, shared, err);

    if (e) {
        e->who = xstrdup(who);
        node_ref(n);
    }
    return e;
}

static struct edge **role_field(struct node *n, const char *role)
{
    if (strcmp(role, "file") == 0)
        return &n->file;
    if (strcmp(role, "backing") == 0)
        return &n->backing;
    if (strcmp(role, "data-file") == 0)
        return &n->data_file;
    return NULL;
}

/* How deep requests recurse below @parent when @child is below it. */
static bool count_depth(struct node *parent, bool backing, const struct node *child,
                        struct err *err)
{
    struct node_core *p = parent->core, *c = child->core;

    if (!backing)
        p->height = MAX(p->height, c->height + 1);
    p->chain = MAX(p->chain, c->chain + (backing ? 1 : 0));
    if (p->height > LIMIT_NODE_HEIGHT)
        return err_set(err, -E2BIG, "Node '%s' stands on more than %u nodes", parent->name,
                       LIMIT_NODE_HEIGHT);
    if (p->chain > LIMIT_CHAIN_DEPTH)
        return err_set(err, -E2BIG, "The backing chain of node '%s' has more than %u images",
                       parent->name, LIMIT_CHAIN_DEPTH);
    return true;
}

/* Whether what it does to its child is what it is asked for, and no more. */
static bool passes_on(const struct node *n)
{
    return n->drv->is_filter || n->drv->fixed_offset;
}

/* As a format does with its metadata: behind no door, and making the child longer. */
static bool writes_by_itself(const struct node *parent, unsigned perms)
{
    return (perms & EDGE_RESIZE) && !passes_on(parent);
}

struct node *node_written_by(const struct node *child)
{
    struct node *above;
    struct edge *e;

    list_for_each(e, &child->core->parents, in_child) {
        if (!e->parent || !(e->perms & EDGE_WRITE))
            continue;
        above = writes_by_itself(e->parent, e->perms) ? e->parent
                : passes_on(e->parent) ? node_written_by(e->parent) : NULL;
        if (above)
            return above;
    }
    return NULL;
}

/* The node at or below @n that has dirty bitmaps and gets what is written to @n. */
static struct node *with_bitmaps(struct node *n)
{
    while (n && list_empty(&n->core->bitmaps))
        n = passes_on(n) ? edge_node(n->file) : NULL;
    return n;
}

bool edge_attach_child(struct node *parent, const char *role, struct node *child, unsigned perms,
                       unsigned shared, struct err *err)
{
    struct edge **field = role_field(parent, role);
    const struct node *kept = writes_by_itself(parent, perms) ? with_bitmaps(child) : NULL;
    struct edge *e = NULL;

    assert(strlen(role) < EDGE_ROLE_MAX && !node_child(parent, role));
    if (kept)       /* I-B7 */
        return err_set(err, -EBUSY, "Node '%s' has dirty bitmaps, and '%s' would write to it at "
                       "times of its own: remove them with block-dirty-bitmap-remove, and keep "
                       "such at '%s'", kept->name, parent->name, parent->name);
    if (count_depth(parent, field == &parent->backing, child, err))
        e = attach(child, perms, shared, err);
    if (!e)
        return false;
    snprintf(e->role, sizeof(e->role), "%s", role);
    e->parent = parent;
    list_push_tail(&parent->core->children, &e->in_parent);
    if (field)
        *field = e;
    return true;
}

struct node *edge_unlink(struct edge *e)
{
    struct node *child = e->child;

    if (e->parent && role_field(e->parent, e->role))
        *role_field(e->parent, e->role) = NULL;
    list_del(&e->in_parent);
    list_del(&e->in_child);
    free(e->who);
    free(e);
    return child;
}

void edge_detach(struct edge *e)
{
    if (e)
        node_unref(edge_unlink(e));
}

/* ---- walks ------------------------------------------------------------------------ */

static void set_add(struct node_set *set, struct node *n)
{
    if (n->core->walked)
        return;
    n->core->walked = true;
    if (set->n == set->cap) {
        set->cap = MAX(2 * set->cap, (size_t)16);
        set->nodes = xrealloc(set->nodes, set->cap * sizeof(*set->nodes));
    }
    set->nodes[set->n++] = n;
}

static bool walk_passes(const struct edge *e, unsigned directions)
{
    return !(directions & WALK_WRITES) || (e->perms & EDGE_WRITE);
}

void node_set_walk(struct node_set *set, struct node *start, unsigned directions)
{
    struct edge *e;

    assert(start->loop == loop_current());
    set_add(set, start);
    for (size_t i = 0; i < set->n; i++) {
        struct node_core *core = set->nodes[i]->core;

        if (directions & WALK_DOWN) {
            list_for_each(e, &core->children, in_parent) {
                if (walk_passes(e, directions))
                    set_add(set, e->child);
            }
        }
        if (directions & WALK_UP) {
            list_for_each(e, &core->parents, in_child) {
                if (e->parent && walk_passes(e, directions))
                    set_add(set, e->parent);
            }
        }
    }
    for (size_t i = 0; i < set->n; i++)
        set->nodes[i]->core->walked = false;
}

void node_set_done(struct node_set *set)
{
    free(set->nodes);
    *set = (struct node_set){ 0 };
}
