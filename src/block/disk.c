/* SPDX-License-Identifier: Apache-2.0
 *
 * Disks and their users. Every request from outside the graph passes here: it
 * goes through the door, then down the funnel (request.c), and out again.
 */
#include "block/disk.h"
#include "block/door.h"
#include "block/meter.h"
#include "base/mem.h"

struct disk_user {
    struct disk *disk;
    struct edge *edge;
    uint64_t in_flight;          /* waiting at the door, or inside */
};

struct disk_user *disk_open(struct node *n, const char *who, unsigned perms, unsigned shared,
                            struct err *err)
{
    struct edge *e = edge_attach_user(n, who, perms, shared, err);

    if (!e)
        return NULL;

    struct disk_user *u = xnew(struct disk_user);

    u->disk = n->core->disk ? n->core->disk : disk_new(n);
    u->disk->users++;
    u->edge = e;
    return u;
}

void disk_close(struct disk_user *u)
{
    if (!u)
        return;
    assert(!u->in_flight && u->disk->node->loop == loop_current());
    u->disk->users--;
    disk_drop_unused(u->disk);
    edge_detach(u->edge);
    free(u);
}

struct node *disk_node(const struct disk_user *u)
{
    return u->edge->child;
}

bool disk_set_perms(struct disk_user *u, unsigned perms, unsigned shared, struct err *err)
{
    return edge_set_perms(u->edge, perms, shared, err);
}

/* ---- requests -------------------------------------------------------------------- */

static inline struct node *co_enter(struct disk_user *u)
{
    assert(u->disk->node->loop == loop_current());
    u->in_flight++;
    co_door_enter(u->disk);
    return u->disk->node;
}

static inline int leave(struct disk_user *u, int result)
{
    door_leave(u->disk);
    u->in_flight--;
    return result;
}

static inline bool may_write(const struct disk_user *u)
{
    return u->edge->perms & EDGE_WRITE;
}

static int co_metered_read(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                           int niov, unsigned flags)
{
    uint64_t since = loop_turn_came();
    int r = co_node_preadv(n, off, len, iov, niov, flags);

    node_meter(n, false, len, since);
    return r;
}

int co_disk_preadv(struct disk_user *u, uint64_t off, uint64_t len, const struct iovec *iov,
                   int niov, unsigned flags)
{
    struct node *n = co_enter(u);

    /* Here and not in the funnel: what views read of their source is not theirs. */
    if (UNLIKELY(!list_empty(&n->core->meters)) && !(flags & REQ_BULK))
        return leave(u, co_metered_read(n, off, len, iov, niov, flags));
    return leave(u, co_node_preadv(n, off, len, iov, niov, flags));
}

int co_disk_pwritev(struct disk_user *u, uint64_t off, uint64_t len, const struct iovec *iov,
                    int niov, unsigned flags)
{
    if (!may_write(u))
        return -EPERM;

    struct node *n = co_enter(u);

    return leave(u, co_node_pwritev(n, off, len, iov, niov, flags));
}

int co_disk_write_zeroes(struct disk_user *u, uint64_t off, uint64_t len, unsigned flags)
{
    if (!may_write(u))
        return -EPERM;

    struct node *n = co_enter(u);

    return leave(u, co_node_write_zeroes(n, off, len, flags));
}

int co_disk_clone(struct disk_user *u, uint64_t off, struct node *src, uint64_t src_off,
                  uint64_t len)
{
    if (!may_write(u))
        return -EPERM;

    struct node *n = co_enter(u);

    return leave(u, co_node_clone(n, off, src, src_off, len));
}

int co_disk_discard(struct disk_user *u, uint64_t off, uint64_t len)
{
    if (!may_write(u))
        return -EPERM;

    struct node *n = co_enter(u);

    return leave(u, co_node_discard(n, off, len));
}

int co_disk_flush(struct disk_user *u)
{
    struct node *n = co_enter(u);

    return leave(u, co_node_flush(n));
}

int co_disk_status(struct disk_user *u, uint64_t off, uint64_t len, struct block_status *ret,
                   unsigned *ret_depth)
{
    struct node *n = co_enter(u);

    return leave(u, co_node_status_above(n, NULL, off, len, ret, ret_depth));
}
