/* SPDX-License-Identifier: Apache-2.0
 *
 * A node is one element of a disk's graph: a file, a format over a file, a
 * filter over another node. This header is for those who use nodes; driver.h is
 * for those who implement them.
 *
 * A connected graph of nodes lives on one loop, and everything here must be
 * called on that loop unless it says otherwise. References are counted
 * atomically, so that a node found by name on another loop stays.
 *
 * The co_node_ calls are the request funnel (request.c): each checks its
 * arguments, tracks the request, runs the before-write notifiers, fits it to
 * the driver's alignment and limits, and calls the driver. Front doors do not
 * call them directly: they go through a disk (disk.h), whose door can be shut.
 */
#ifndef BLOCK_NODE_H
#define BLOCK_NODE_H

#include "base/err.h"
#include "base/list.h"
#include "loop/loop.h"
#include <jansson.h>
#include <sys/uio.h>

#define NODE_NAME_MAX 32        /* with the terminator, as QEMU */

struct node;

enum req_flags {
    REQ_FUA = 1,          /* on stable storage before success is said */
    REQ_MAY_UNMAP = 2,    /* write_zeroes: may leave a hole */
    REQ_NO_FALLBACK = 4,  /* write_zeroes: -ENOTSUP rather than slow writing of zeros */
    REQ_BULK = 8,         /* background copy: keep off the loop that guests wait on */
    REQ_COMPRESSED = 32,  /* pwritev: store it compressed. Whole clusters; the last may be cut off
                           * by the end of the disk. -ENOTSUP where node_info.can_compress is not */
    REQ_WRITE_UNCHANGED = 16, /* the content stays the same: no before-write notifiers */
};

/* ---- names, references, facts ------------------------------------------ */

struct node *node_ref(struct node *n);          /* any thread */
/* Any thread. The last reference closes the node on its own loop, later, from a
 * coroutine; children are released then. Takes NULL. */
void node_unref(struct node *n);
DEFINE_CLEANUP(struct node *, node_unref);
/* The same, and when it was the last reference the node and all that only it
 * held are closed (files unlocked, names free) before this returns. Coroutine of
 * any loop. Takes NULL. */
void co_node_unref(struct node *n);

/* Run fn(arg) as a coroutine on the loop where @n lives, and give its result: the
 * way for the control plane to reach a node that may be moved. @n stays there
 * until fn returns. The caller holds a reference. Coroutine of any loop. */
int co_node_call(struct node *n, int (*fn)(void *arg), void *arg);

const char *node_name(const struct node *n);    /* never empty; generated ones start with '#' */
const char *node_driver_name(const struct node *n);
struct loop *node_loop(const struct node *n);
uint64_t node_size(const struct node *n);       /* bytes */
bool node_read_only(const struct node *n);
struct node *node_backing(const struct node *n);       /* borrowed; NULL if none */
/* The node that data requests go to: the node itself, or below filters. */
struct node *node_skip_filters(struct node *n);

struct node_info {
    uint64_t size;               /* virtual size, bytes */
    uint64_t allocated;          /* bytes used on disk; UINT64_MAX: unknown */
    uint32_t cluster_size;       /* 0: no clusters */
    uint32_t request_align;      /* smallest request that needs no read-modify-write */
    uint32_t optimal_io;         /* preferred size, 0: no wish */
    uint32_t max_transfer;       /* 0: no limit */
    bool can_unmap;              /* discard and REQ_MAY_UNMAP free space */
    bool can_write_zeroes_fast;  /* write_zeroes with REQ_NO_FALLBACK works */
    bool can_compress;           /* REQ_COMPRESSED works */
    bool zero_init;              /* never-written ranges are known to read as zero */
    bool dirty;                  /* the image was not closed cleanly */
    bool discard_only;           /* of what writes only discards are taken, and they free space */
    char filename[4096];         /* what qemu-img info shows: a path, an nbd:// URI or json:{} */
    char backing_file[1024];     /* as the image names it; empty: none */
    char backing_format[16];
};
void node_get_info(struct node *n, struct node_info *ret);

/* A driver's own facts ("format-specific" of ImageInfo). New reference or NULL. */
json_t *node_format_info(struct node *n);

/* What the node was opened with, as blockdev-add would take it. Borrowed. */
json_t *node_options(const struct node *n);

/* ---- images that contradict themselves -----------------------------------
 * A driver found that a request would have written data over metadata, or such. */

struct node_corruption {
    const char *what;            /* one clause: "a write over the refcount table" */
    uint64_t off, len;           /* host bytes of the image file */
};

/* For drivers: log it, and tell the listener. Does not suspend. The node's loop. */
void node_report_corruption(const struct node *n, const struct node_corruption *c);

/* Who is told, on the node's loop; NULL: nobody. One for the process, set while no
 * node is open. */
void node_set_corruption_listener(void (*fn)(void *arg, const struct node *n,
                                             const struct node_corruption *c), void *arg);

/* ---- the request funnel -------------------------------------------------
 * Return 0 or -errno. [off, off+len) must lie inside the node (-EINVAL for
 * reads, -ENOSPC for writes). iov totals len. len 0 succeeds. */

MUST_CHECK int co_node_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                              int niov, unsigned flags);
MUST_CHECK int co_node_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                               int niov, unsigned flags);
MUST_CHECK int co_node_pread(struct node *n, uint64_t off, uint64_t len, void *buf, unsigned flags);
MUST_CHECK int co_node_pwrite(struct node *n, uint64_t off, uint64_t len, const void *buf,
                              unsigned flags);
/* Any length. Falls back to writing zeros unless REQ_NO_FALLBACK, which makes it
 * -ENOTSUP (part of the range may be zeroed already then). */
MUST_CHECK int co_node_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags);
/* Let [off, off+len) of @n hold what [src_off, src_off+len) of @src holds while this runs,
 * by sharing its storage (reflink): takes milliseconds, however long. -ENOTSUP: their
 * drivers or the file system cannot, or not for this range; nothing is changed then. A
 * write to @src meanwhile may be in or not. Both nodes on this loop. */
MUST_CHECK int co_node_clone(struct node *n, uint64_t off, struct node *src, uint64_t src_off,
                             uint64_t len);
/* A hint: success does not mean that anything was freed, nor that it reads as
 * zero. Any length. */
MUST_CHECK int co_node_discard(struct node *n, uint64_t off, uint64_t len);
/* Everything that completed before the call is on stable storage after it. */
MUST_CHECK int co_node_flush(struct node *n);
/* Grow or shrink. -EBUSY while a view or job forbids it. */
MUST_CHECK bool co_node_resize(struct node *n, uint64_t size, struct err *err);

enum status_flags {
    STATUS_DATA = 1,        /* reads come from storage */
    STATUS_ZERO = 2,        /* reads as zero */
    STATUS_ALLOCATED = 4,   /* this layer decides the content, not its backing file */
    STATUS_OFFSET = 8,      /* .host_off in .file is where the bytes are, verbatim */
    STATUS_COMPRESSED = 16,
};

struct block_status {
    unsigned flags;
    uint64_t len;           /* bytes from the asked offset for which it holds; > 0 */
    uint64_t host_off;
    struct node *file;      /* borrowed; with STATUS_OFFSET */
    unsigned depth;         /* with ALLOCATED, of a node that shows a whole chain: of its layers
                             * the one that decides; else 0 */
};

/* What this layer alone says about the start of [off, off+len), len > 0. */
MUST_CHECK int co_node_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret);

/* The same through the backing chain, down to but without @base (NULL: all).
 * *ret_depth (may be NULL): 0 = @n itself, 1 = its backing ...; the layer that
 * decides. Not ALLOCATED: no layer above @base does, so it reads as zero when
 * @base is NULL (ZERO is set then). */
MUST_CHECK int co_node_status_above(struct node *n, struct node *base, uint64_t off, uint64_t len,
                                    struct block_status *ret, unsigned *ret_depth);

/* Ask the driver to make requests in flight fail soon (-ECANCELED or another),
 * as for a connection to a server that is gone. Later requests may fail too.
 * Does nothing for drivers that cannot. Does not suspend. */
void node_cancel_in_flight(struct node *n);

/* ---- before-write notifiers ----------------------------------------------
 * Called by the funnel, in the requesting coroutine, for each write, zero write
 * and discard, with the range extended to what the driver will really touch,
 * before anything is changed. A negative result fails the request. The call
 * may suspend. Adding and removing is safe at any time, from inside a call too;
 * a request that is past its notifiers is not seen: shut the doors first
 * (disk.h) to be exact. Removing does not wait for calls that are inside: the
 * owner sees those out before it frees the notifier. Requests with
 * REQ_WRITE_UNCHANGED, and discards that stop at a node that ignores them, are
 * not told. */
struct node_notifier {
    struct list link;
    int (*co_before_write)(struct node_notifier *self, uint64_t off, uint64_t len);
};
void node_add_notifier(struct node *n, struct node_notifier *nf);
void node_remove_notifier(struct node *n, struct node_notifier *nf);

/* ---- watching reads --------------------------------------------------------
 * For who writes old data into an overlay just before it changes in the image below:
 * a read of the overlay that has found nothing there, and is about to look below, has
 * to be over before that change. */
void node_watch_reads(struct node *n);          /* nests */
void node_unwatch_reads(struct node *n);
/* Wait until the reads of [off, off+len) are over that are under way now, of those
 * that began since the node is watched. */
void co_node_wait_reads(struct node *n, uint64_t off, uint64_t len);

/* While any is held resizing is refused with @why. */
void node_forbid_resize(struct node *n, const char *why);   /* why: static text */
void node_allow_resize(struct node *n);

#endif
