/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of this folder know about a node and an edge, and nobody else:
 * the half of a node that drivers keep away from. Read node.h, driver.h and
 * graph.h first.
 *
 * Fields belong to the node's loop except where they say otherwise.
 */
#ifndef BLOCK_CORE_H
#define BLOCK_CORE_H

#include "block/keeper.h"
#include "block/graph.h"
#include "loop/co_sync.h"
#include <stdatomic.h>

struct disk;

#define EDGE_ROLE_MAX 16        /* with the terminator */

/* One use of a node: by a parent, as its child, or by somebody outside. */
struct edge {
    struct node *child;          /* a reference */
    struct node *parent;         /* NULL: a user outside the graph */
    char role[EDGE_ROLE_MAX];    /* what the parent calls the child */
    char *who;                   /* what people call the user */
    unsigned perms, shared;      /* enum edge_perm */
    struct list in_parent;       /* parent->core->children */
    struct list in_child;        /* child->core->parents */
    struct storage_identity found;   /* below a `file` or `data-file`, when it was attached */
};

enum detect_zeroes { DETECT_ZEROES_OFF, DETECT_ZEROES_ON, DETECT_ZEROES_UNMAP };

struct node_core {
    struct node *node;
    atomic_uint refs;            /* any thread */

    /* graph.c, under its mutex. */
    struct list registered;
    bool findable;               /* open, and not yet closing */

    /* Set while opening, constant then. */
    bool opened;                 /* co_open succeeded: co_close is due */
    bool auto_read_only;
    enum detect_zeroes detect_zeroes;
    json_t *options;
    struct node *opener;         /* while opening: the parent that asked for it; borrowed */
    unsigned depth;              /* openers above */
    unsigned height;             /* nodes below on the way down without backing edges */
    unsigned chain;              /* backing edges below on any way down */
    bool new_stack;              /* reads go on with a fresh stack here: see request.c */

    bool monitor_owned;
    struct list children, parents;
    struct disk *disk;           /* NULL while it has no users */
    unsigned doors_shut;         /* co_shut_doors on this very node */

    struct list bitmaps;         /* dirty_bitmap (dirty.c) */
    struct dirty_keeper *keeper; /* NULL: none */
    struct list meters;          /* struct meter */
    struct list notifiers;       /* node_notifier; those without a function are cursors */
    bool write_care;             /* writes have something to look after: see request.c */
    bool read_care;              /* reads have */
    unsigned read_watchers;      /* node_watch_reads */
    struct list reads;           /* struct reading, in order of arrival, while there are any */
    struct list requests;        /* tracked writes, in order of arrival (align.c) */
    unsigned serialising;        /* of them, those that read, modify and write */

    unsigned resize_forbidden;
    const char *resize_why;

    bool moving;                 /* set on the old loop, cleared on the new one */
    unsigned calls;              /* co_node_call functions that run: it stays until then */
    struct waitq settled;        /* for a change of these two */

    bool walked;                 /* only inside node_set_walk */
    struct list doomed;          /* only while closing */
};

/* ---- node.c --------------------------------------------------------------- */

/* A node with one reference that nobody can find yet. */
struct node *node_new(const struct driver *drv, struct loop *loop);
/* Let go of every child, closing what only this node held, and of what the driver left. */
void co_node_reset(struct node *n);
/* node_ref, unless the last reference is gone already. Any thread. */
bool node_ref_alive(struct node *n);

/* co_node_call that does not keep the node where it is. */
int co_node_call_mover(struct node *n, int (*fn)(void *arg), void *arg);

/* ---- graph.c ---------------------------------------------------------------- */

/* Give @n the name @name (NULL: a generated one), not to be found yet. */
MUST_CHECK bool graph_register(struct node *n, const char *name, struct err *err);
void graph_publish(struct node *n);
void graph_unregister(struct node *n);   /* harmless if it is not registered */

/* ---- edge.c ----------------------------------------------------------------- */

/* Takes over the reference to @child on success. */
MUST_CHECK bool edge_attach_child(struct node *parent, const char *role, struct node *child,
                                  unsigned perms, unsigned shared, struct err *err);
/* Free the edge and hand over its reference to the child. */
struct node *edge_unlink(struct edge *e);
/* The node above that writes to @child at times of its own; NULL: what reaches it is what
 * somebody asks for. Borrowed. */
struct node *node_written_by(const struct node *child);
/* "block export 'e0'", "node 'top' as its backing". */
void edge_describe(const struct edge *e, char *buf, size_t size);

/* Every node once that can be reached from @start, itself first. WALK_WRITES: only
 * along edges by which the upper node may write to the lower. */
enum walk { WALK_UP = 1, WALK_DOWN = 2, WALK_WRITES = 4 };
struct node_set {
    struct node **nodes;         /* borrowed; good until something suspends */
    size_t n, cap;
};
void node_set_walk(struct node_set *set, struct node *start, unsigned directions);
void node_set_done(struct node_set *set);
#define CLEANUP_NODE_SET __attribute__((cleanup(node_set_done)))

/* ---- request.c ---------------------------------------------------------------- */

/* Recompute core->write_care and core->read_care. */
void node_update_care(struct node *n);

static inline bool range_inside(const struct node *n, uint64_t off, uint64_t len)
{
    return off <= n->size && len <= n->size - off;
}

/* Tell the before-write notifiers. */
MUST_CHECK int co_request_notify(struct node *n, uint64_t off, uint64_t len, unsigned flags);

/* ---- dirty.c ------------------------------------------------------------------ */

/* I-B1: set the bits of a write that is about to reach the driver. */
void co_dirty_before_write(struct node *n, uint64_t off, uint64_t len);
/* The node had @size_before. What was added counts as written. */
void dirty_bitmaps_resized(struct node *n, uint64_t size_before);
/* Before the driver is closed. */
void co_dirty_bitmaps_close(struct node *n);
void dirty_bitmaps_end(struct node *n);

/* ---- keeper.c ----------------------------------------------------------------- */

MUST_CHECK bool co_keepers_opened(struct node *n, struct err *err);
void co_edge_note_storage(struct edge *e);

/* ---- align.c ------------------------------------------------------------------ */

/* A write on its way, from before the first change until it is done. On the
 * stack of its coroutine. */
struct request {
    struct node *node;
    struct list link;            /* core->requests; on no list when it is not tracked */
    uint64_t start, end;         /* what the driver will touch */
    bool serialising;
    struct waitq done;
};

/* Start a write of [off, off+len): wait for what it may not overlap, tell the
 * before-write notifiers the range that the driver will touch. On failure it is
 * ended already. */
MUST_CHECK int co_request_begin(struct request *rq, struct node *n, uint64_t off, uint64_t len,
                                unsigned flags);
void request_end(struct request *rq);

/* Read or write any range by requests that the driver takes. Writes between
 * co_request_begin and request_end; without REQ_FUA unless the driver knows it. */
MUST_CHECK int co_aligned_preadv(struct node *n, uint64_t off, uint64_t len,
                                 const struct iovec *iov, int niov, unsigned flags);
MUST_CHECK int co_aligned_pwritev(struct node *n, uint64_t off, uint64_t len,
                                  const struct iovec *iov, int niov, unsigned flags);
/* Write zeros as data. */
MUST_CHECK int co_aligned_pwrite_zero_data(struct node *n, uint64_t off, uint64_t len,
                                           unsigned flags);

#endif
