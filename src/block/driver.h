/* SPDX-License-Identifier: Apache-2.0
 *
 * For implementers of drivers: the table of operations and the part of a node
 * that a driver sees. Users of nodes include node.h instead.
 *
 * The funnel guarantees to every operation: the range lies inside node->size
 * rounded up to limits.request_align, is not empty, is a multiple of
 * limits.request_align, and is at most limits.max_transfer for reads and writes;
 * write operations never come to a read-only node; overlapping requests may run
 * at the same time (a driver that minds orders them itself). Of a node whose size
 * is no multiple of request_align the last block reaches beyond the end: it reads
 * as zero there, and what is written there is dropped. An operation that a driver
 * leaves NULL is answered by the funnel (-ENOTSUP, or a fallback as node.h
 * describes; flush goes to the children file and data-file, resize and status of
 * a filter to its file). All operations run in coroutines on the node's loop,
 * except where noted.
 */
#ifndef BLOCK_DRIVER_H
#define BLOCK_DRIVER_H

#include "base/schema.h"
#include "block/node.h"

struct edge;
struct storage_identity;
struct dirty_bitmap_opts;

/* How a format keeps dirty bitmaps in its images (dirty.h). Those that it finds when it opens
 * one it adds to the node at the end of co_open. */
struct bitmap_storage {
    /* Whether one more like @o could be stored. Does not suspend. */
    bool (*can_store)(struct node *n, const struct dirty_bitmap_opts *o, struct err *err);
    /* On the disk, and flushed: what is stored of the bitmap @name does not count. */
    bool (*co_outdate)(struct node *n, const char *name, struct err *err);
    /* Nothing of the name is stored any more. */
    bool (*co_remove)(struct node *n, const char *name, struct err *err);
    /* Store the node's persistent bitmaps that are not (dirty_bitmap_stored): all that can be,
     * also when it returns false. */
    bool (*co_store)(struct node *n, struct err *err);
};

struct driver {
    const char *name;                    /* QAPI's: "file", "raw", "qcow2", ... */
    const char *doc;                     /* one line */
    size_t state_size;                   /* of node->state, zeroed before open */
    const struct schema_type *options;   /* a SCHEMA_STRUCT: what blockdev-add takes */
    bool is_filter;                      /* content is exactly that of child `file` */
    bool is_protocol;                    /* no `file` child: files, devices, connections */

    /* @opts is the decoded options struct, valid during the call only. Opens
     * children with co_node_open_child (graph.h) and sets n->size, n->limits,
     * n->zero_init, n->storage_id. On failure nothing may be left behind but
     * children that are attached (the core releases those) and n->state. A
     * protocol that fails with -EACCES, -EPERM or -EROFS under auto-read-only is
     * called once more with n->read_only set. */
    bool (*co_open)(struct node *n, const void *opts, struct err *err);
    /* Writes back what is cached and lets go. Children are still attached. */
    void (*co_close)(struct node *n);

    int (*co_preadv)(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                     unsigned flags);
    int (*co_pwritev)(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                      unsigned flags);
    int (*co_write_zeroes)(struct node *n, uint64_t off, uint64_t len, unsigned flags);
    int (*co_discard)(struct node *n, uint64_t off, uint64_t len);
    int (*co_flush)(struct node *n);
    /* Protocols: let [off, off+len) hold what is in @src, a node of this driver, from @src_off
     * on, by sharing its storage. -ENOTSUP: not these two, or not this range; nothing is
     * changed then. */
    int (*co_clone)(struct node *n, uint64_t off, struct node *src, uint64_t src_off,
                    uint64_t len);
    int (*co_status)(struct node *n, uint64_t off, uint64_t len, struct block_status *ret);
    bool (*co_resize)(struct node *n, uint64_t size, struct err *err);

    void (*get_info)(struct node *n, struct node_info *ret);   /* fill what differs */
    json_t *(*format_info)(struct node *n);
    void (*cancel_in_flight)(struct node *n);
    /* Of drivers whose byte N is, as long as the node is open, byte N + this of the child
     * `file`, and that have nothing to do for a request but to pass it on. NULL: others. */
    uint64_t (*fixed_offset)(const struct node *n);

    /* Protocols: what can be known of the storage as it is now (keeper.h). Leave @ret alone
     * where nothing can. */
    void (*co_identify)(struct node *n, struct storage_identity *ret);

    const struct bitmap_storage *bitmaps;     /* NULL: images have no place for them */

    /* Protocols whose user-given name is not simply option "filename": the options
     * (without "driver") that @filename stands for, such as those of an nbd:// URI.
     * New reference, or NULL with @err. Any thread. */
    json_t *(*parse_filename)(const char *filename, struct err *err);

    /* The node moves to another loop while it is idle: let go of what is bound
     * to the old one (called there), bind to the new one (called there). */
    void (*co_detach)(struct node *n);
    void (*co_attach)(struct node *n);
};

/* Units and sizes of requests. Numbers that come from an image or a server may be
 * given as they are: the core refuses what it cannot serve. */
struct node_limits {
    uint32_t request_align;      /* power of two, at most LIMIT_BOUNCE_BYTES; 0: 1 */
    uint32_t max_transfer;       /* bytes a read or write may have; 0: no limit */
    uint32_t max_zeroes;         /* the same for write_zeroes and discard; 0: no limit */
    uint32_t zero_align;         /* power of two; write_zeroes is cut so that only its head and
                                  *   tail are less than this; 0: request_align */
    unsigned write_flags;        /* REQ_ flags that co_pwritev understands (FUA: else the funnel
                                  *   flushes after the write; COMPRESSED: else it is refused) */
    unsigned zero_flags;         /* the same for zeroes */
};

struct node {
    /* Set by the core before open. */
    const struct driver *drv;
    void *state;
    struct loop *loop;
    char name[NODE_NAME_MAX];
    bool read_only;              /* may become true while the child `file` is opened: look again */
    bool no_cache;               /* cache.direct */
    bool no_flush;               /* cache.no-flush: a protocol's flushes are not done */
    bool discard_unmap;          /* discard=unmap; else discards stop here */
    bool force_share;            /* open though others have it locked */

    /* Set by the driver. */
    uint64_t size;
    struct node_limits limits;
    bool zero_init;
    bool of_the_past;            /* not the disk as it is now, whose bitmaps are none of its own */
    char *storage_id;            /* protocols: equal for two nodes over the same bytes, malloc'ed,
                                  *   freed by the core; storage_id_for_file, or a URI */

    /* The core's own; drivers keep away. */
    struct node_core *core;
    struct edge *file, *backing, *data_file;   /* children by role; read by drivers */
};

/* The node at the other end of an edge to a child; NULL for a NULL edge. */
struct node *edge_node(const struct edge *e);

/* The child that was opened with this role, for roles that have no field above
 * ("target"). Borrowed; NULL if there is none. */
struct node *node_child(const struct node *n, const char *role);

/* The storage_id of a file or block device: by device and inode. */
struct stat;
char *storage_id_for_file(const struct stat *st);

/* ---- registry ------------------------------------------------------------ */

/* All drivers are registered once at start (drivers/registry.c), before loops run. */
void driver_register(const struct driver *drv);
const struct driver *driver_find(const char *name);
const struct driver *driver_nth(unsigned i);     /* NULL after the last */

#endif
