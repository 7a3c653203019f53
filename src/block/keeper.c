/* SPDX-License-Identifier: Apache-2.0
 *
 * Who keeps persistent bitmaps, and what he can know of the storage below: see
 * keeper.h.
 */
#include "block/keeper.h"
#include "base/log.h"
#include "block/core.h"

/* Process-wide, as the drivers are; constant while there are nodes. */
static const struct dirty_keeping *provider;

void dirty_set_keeping(const struct dirty_keeping *keeping)
{
    provider = keeping;
}

void node_set_dirty_keeper(struct node *n, struct dirty_keeper *k)
{
    assert(n->loop == loop_current());
    n->core->keeper = k;
    node_update_care(n);
}

struct dirty_keeper *node_dirty_keeper(const struct node *n)
{
    return n->core->keeper;
}

bool co_dirty_keep(struct node *n, struct err *err)
{
    struct err why = ERR_INIT;

    assert(n->loop == loop_current());
    if (n->core->keeper || !provider || provider->co_keep(n, &why))
        return true;
    if (!n->drv->bitmaps) {
        if (err)
            *err = why;
        return false;
    }
    /* As QEMU: the image has them again when it is closed in good order. */
    log_warn("the dirty bitmaps of node '%s' would not survive a crash: %s", n->name, why.text);
    return true;
}

bool co_dirty_settle(struct node *n, struct err *err)
{
    struct dirty_keeper *k = n->core->keeper;

    assert(n->loop == loop_current());
    return !k || k->ops->co_settle(k, err);
}

bool co_keepers_opened(struct node *n, struct err *err)
{
    return !provider || provider->co_opened(n, err);
}

/* ---- storage -------------------------------------------------------------------- */

static struct node *protocol_below(struct node *n)
{
    while (n && !n->drv->is_protocol)
        n = edge_node(n->file);
    return n;
}

static struct storage_identity co_identify(struct node *protocol)
{
    struct storage_identity id = { .kind = STORAGE_UNKNOWN };

    if (protocol && protocol->drv->co_identify)
        protocol->drv->co_identify(protocol, &id);
    return id;
}

void co_edge_note_storage(struct edge *e)
{
    if (provider)
        e->found = co_identify(protocol_below(e->child));
}

static unsigned co_add_storage(struct edge *e, struct node_storage *ret)
{
    struct node *protocol = e ? protocol_below(e->child) : NULL;

    if (!protocol)
        return 0;
    *ret = (struct node_storage){ protocol, co_identify(protocol), e->found };
    return 1;
}

unsigned co_node_storages(struct node *n, struct node_storage ret[NODE_STORAGES_MAX])
{
    unsigned count = 0;

    if (n->drv->is_protocol) {
        struct storage_identity id = co_identify(n);

        ret[0] = (struct node_storage){ n, id, id };
        return 1;
    }
    count += co_add_storage(n->file, &ret[count]);
    count += co_add_storage(n->data_file, &ret[count]);
    return count;
}
