/* SPDX-License-Identifier: Apache-2.0
 *
 * The metadata contexts of an export: which there are, and finding and holding the
 * dirty bitmaps among them. Rules and words for bitmaps are QEMU's (nbd/server.c).
 */
#include "base/mem.h"
#include "export/nbd/conn.h"

/* The node that is looked at after @n, where its content comes from; NULL: none. */
static struct node *below(struct node *n)
{
    return n->drv->is_filter ? edge_node(n->file) : node_backing(n);
}

static struct dirty_bitmap *find_bitmap(struct nbd_export *e, const struct nbd_export_bitmap *b,
                                        struct err *err)
{
    struct dirty_bitmap *bm = NULL;

    if (b->node) {
        CLEANUP(node_unref) struct node *n = node_find(b->node, err);

        if (!n)
            return NULL;
        if (node_loop(n) != node_loop(e->node)) {
            err_set(err, -EXDEV, "Node '%s', which has bitmap '%s', is not connected with node "
                    "'%s'", b->node, b->name, node_name(e->node));
            return NULL;
        }
        return dirty_bitmap_find(n, b->name, err);
    }
    for (struct node *n = e->node; n && !bm; n = below(n))
        bm = dirty_bitmap_find(n, b->name, NULL);
    if (!bm)
        err_set(err, -ENOENT, "Bitmap '%s' is not found", b->name);
    return bm;
}

static bool check_bitmap(const struct nbd_export *e, const struct dirty_bitmap *bm,
                         struct err *err)
{
    const char *name = dirty_bitmap_name(bm);

    if (!dirty_bitmap_check(bm, DIRTY_READ_ONLY_OK, err))
        return false;
    if (node_size(dirty_bitmap_node(bm)) != node_size(e->node))
        return err_set(err, -EINVAL, "Bitmap '%s' of node '%s' is of another size than node '%s'",
                       name, node_name(dirty_bitmap_node(bm)), node_name(e->node));
    if (!e->writable && !node_read_only(e->node) && dirty_bitmap_enabled(bm))
        return err_set(err, -EINVAL, "Enabled bitmap '%s' incompatible with readonly export", name);
    return true;
}

static void add(struct nbd_export *e, enum nbd_context_kind kind, char *name,
                struct dirty_bitmap *bm)
{
    assert(e->n_contexts < LIMIT_NBD_CONTEXTS);
    e->contexts[e->n_contexts++] = (struct nbd_context){
        .kind = kind,
        .name = name,
        .node = bm ? node_ref(dirty_bitmap_node(bm)) : NULL,
        .bitmap = bm,
    };
    if (bm)
        dirty_bitmap_hold(bm);
}

static bool add_bitmap(struct nbd_export *e, const struct nbd_export_bitmap *b, struct err *err)
{
    CLEANUP(free) char *name = xasprintf("%s%s", NBD_CONTEXT_BITMAP_PREFIX, b->name);
    struct dirty_bitmap *bm;

    if (e->n_contexts == LIMIT_NBD_CONTEXTS)
        return err_set(err, -E2BIG, "An export has at most %d bitmaps", LIMIT_NBD_CONTEXTS - 2);
    for (unsigned i = 0; i < e->n_contexts; i++) {
        if (strcmp(e->contexts[i].name, name) == 0)
            return err_set(err, -EINVAL, "Two bitmaps of an export are named '%s'", b->name);
    }
    bm = find_bitmap(e, b, err);
    if (!bm || !check_bitmap(e, bm, err))
        return false;
    add(e, NBD_STATUS_DIRTY, MOVE(name), bm);
    return true;
}

bool nbd_export_add_contexts(struct nbd_export *e, const struct nbd_export_opts *o,
                             struct err *err)
{
    add(e, NBD_STATUS_ALLOCATION, xstrdup(NBD_CONTEXT_ALLOCATION), NULL);
    if (o->allocation_depth)
        add(e, NBD_STATUS_DEPTH, xstrdup(NBD_CONTEXT_DEPTH), NULL);
    for (size_t i = 0; i < o->n_bitmaps; i++) {
        if (!add_bitmap(e, &o->bitmaps[i], err)) {
            nbd_export_drop_contexts(e);
            return false;
        }
    }
    return true;
}

void nbd_export_drop_contexts(struct nbd_export *e)
{
    while (e->n_contexts) {
        struct nbd_context *c = &e->contexts[--e->n_contexts];

        if (c->bitmap)
            dirty_bitmap_let_go(c->bitmap);
        node_unref(c->node);
        free(c->name);
    }
}
