/* SPDX-License-Identifier: Apache-2.0
 *
 * Keepers: who keeps a node's persistent bitmaps where a crash does not reach them.
 * This header is for those who implement one, and for the commands that change
 * persistent bitmaps. A node has one keeper at most, of all its persistent bitmaps.
 *
 * A keeper never fails a guest's write: what it cannot keep it spoils
 * (dirty_bitmap_spoil), before that write goes on.
 *
 * Everything here is for the node's loop.
 */
#ifndef BLOCK_KEEPER_H
#define BLOCK_KEEPER_H

#include "block/dirty.h"
#include "block/driver.h"

struct dirty_keeper {
    const struct dirty_keeper_ops *ops;
};

/* None suspends but those whose name says so. */
struct dirty_keeper_ops {
    /* A write of [off, off+len) comes. No bit of it is set yet; all are as soon as this
     * returns, before anything else happens. */
    void (*co_before_write)(struct dirty_keeper *k, uint64_t off, uint64_t len);
    /* A flush comes: the driver may write what it held back. */
    void (*co_before_flush)(struct dirty_keeper *k);
    /* These bits are set now, by that write or by something else. */
    void (*bits_set)(struct dirty_keeper *k, struct dirty_bitmap *bm, uint64_t first,
                     uint64_t count);
    /* Bits may be clear now that were set: dirty_bitmap_must_keep says which. */
    void (*bits_cleared)(struct dirty_keeper *k, struct dirty_bitmap *bm);
    /* A persistent bitmap is new, or something but its bits is different: it records or
     * not, is inconsistent, has another size. */
    void (*changed)(struct dirty_keeper *k, struct dirty_bitmap *bm);
    /* Whether there is room for one more of this granularity; else @err says what to do. */
    bool (*has_room)(struct dirty_keeper *k, uint32_t granularity, struct err *err);
    /* It is about to be freed. */
    void (*removed)(struct dirty_keeper *k, struct dirty_bitmap *bm);
    /* Wait until all that has changed is kept. False with a sentence: it is not. */
    bool (*co_settle)(struct dirty_keeper *k, struct err *err);

    /* The node moves to another loop: stop working (called there), go on (called there). */
    void (*co_detach)(struct dirty_keeper *k);
    void (*co_attach)(struct dirty_keeper *k);
    /* The node is being closed: nothing writes any more, and the driver has written back
     * what it held, unless it is a protocol: then it is still open. Frees @k; the
     * bitmaps go after it. */
    void (*co_close)(struct dirty_keeper *k);
};

void node_set_dirty_keeper(struct node *n, struct dirty_keeper *k);   /* NULL: none any more */
struct dirty_keeper *node_dirty_keeper(const struct node *n);

/* ---- for commands -------------------------------------------------------------- */

/* Before a persistent bitmap is added to @n: see that somebody keeps it. Where nobody can, but
 * the image will have it when it is closed, that is logged, and enough. */
MUST_CHECK bool co_dirty_keep(struct node *n, struct err *err);

/* After persistent bitmaps were added, removed, enabled, disabled, cleared or merged, and
 * before that is answered: wait until a crash cannot undo it. A write that comes
 * earlier waits by itself. */
MUST_CHECK bool co_dirty_settle(struct node *n, struct err *err);

/* ---- who provides them ------------------------------------------------------------ */

struct dirty_keeping {
    /* @n has been opened, and nobody uses it yet: bring back the bitmaps that were kept
     * for it, and give it a keeper if it has persistent bitmaps and is written to. False with
     * @err: it may not be used. */
    bool (*co_opened)(struct node *n, struct err *err);
    /* Give @n, which has none, a keeper. */
    bool (*co_keep)(struct node *n, struct err *err);
};

/* One for the process, set before there are nodes; NULL: nobody keeps anything. */
void dirty_set_keeping(const struct dirty_keeping *keeping);

/* ---- what can be known of storage ---------------------------------------------------
 * To tell whether another program has written to it. */

enum { STORAGE_UNKNOWN, STORAGE_FILE, STORAGE_DEVICE };

struct storage_identity {
    uint32_t kind;
    uint64_t dev, ino;           /* a device: its number and 0 */
    uint64_t size;               /* bytes */
    int64_t mtime_ns, ctime_ns;  /* a file's, since 1970 */
    uint64_t diskseq, written;   /* a device's: which it is since boot; sectors written and
                                  *   discarded. 0 and UINT64_MAX: not known */
};

/* What the node's content lies on: the protocol below child `file`, and that below
 * `data-file` if there is one. */
#define NODE_STORAGES_MAX 2

struct node_storage {
    struct node *protocol;       /* borrowed */
    struct storage_identity now;
    struct storage_identity found;   /* as it was before this node could change it */
};

/* Fill @ret; gives how many. Not only while opening. */
unsigned co_node_storages(struct node *n, struct node_storage ret[NODE_STORAGES_MAX]);

#endif
