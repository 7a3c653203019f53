/* SPDX-License-Identifier: Apache-2.0
 *
 * A view is the content of a node as it stood at one instant, kept readable
 * while the node goes on being written: what is about to be overwritten is
 * copied to scratch first (copy before write). docs/point-in-time.md gives the
 * invariants I-V1.. and the argument for each; the code cites them.
 *
 * Life: co_view_prepare (everything that can fail), view_begin (the instant,
 * with the node's doors shut), reads and releases, view_close. Any number of
 * views can be open on a node. Consumers hold references; a view that is closed
 * or broken answers every call with an error and costs the guest nothing.
 *
 * Everything here is for the node's loop.
 */
#ifndef CBW_VIEW_H
#define CBW_VIEW_H

#include "base/bitmap.h"
#include "base/err.h"
#include "base/histogram.h"
#include "base/list.h"
#include "base/schema.h"
#include "block/node.h"

/* Captures, releases and the scratch store work in units of this many bytes. */
#define VIEW_GRANULE 4096u

struct view;

/* QEMU's OnCbwError (qapi/block-core.json): what happens when old data cannot
 * be kept, because the scratch store is full or fails, reading the old data
 * fails, or it takes longer than cbw_timeout_ns. */
enum view_on_cbw_error {
    VIEW_BREAK_GUEST_WRITE,   /* the guest's write fails; the view stays good */
    VIEW_BREAK_SNAPSHOT,      /* the view is broken; the guest's write goes on */
};

/* The same for options and commands: an int. */
extern const struct schema_type on_cbw_error_type;

struct view_opts {
    struct node *target;         /* keep old data in this node, at its own place, and nowhere else:
                                  * guests wait for it (cbw/store.h:store_new_in_node says what is
                                  * asked of it). The caller holds it. NULL: in scratch: */
    const char *scratch_dir;     /* NULL: memory only, scratch_memory is a limit then */
    uint64_t scratch_memory;     /* bytes of the memory tier; 0: none */
    uint64_t scratch_limit;      /* bytes of both tiers together; 0: no limit */
    uint64_t cbw_timeout_ns;     /* longest wait of one guest request; 0: no limit */
    enum view_on_cbw_error on_cbw_error;
};

#define VIEW_OPTS_DEFAULT \
    { \
        .scratch_dir = "/var/tmp", \
        .scratch_memory = 128 * MiB, \
        .cbw_timeout_ns = 45 * NSEC_PER_SEC, \
        .on_cbw_error = VIEW_BREAK_SNAPSHOT, \
    }

/* Get a view of @n ready: open scratch, allocate bitmaps, attach to the node as
 * a reader called @who ("job 'j0'"), forbid resizing. Captures nothing yet.
 * @opts is copied. NULL with @err: also when a parent may resize @n (an image that
 * stands on it), or when somebody writes to an image below @n. As long as the view
 * is there nobody begins to. */
struct view *co_view_prepare(struct node *n, const struct view_opts *opts, const char *who,
                             struct err *err);

/* The instant. The caller has shut the doors of the node (co_shut_doors) and
 * opens them afterwards. Once for a view. Does not fail. */
void view_begin(struct view *v);

/* Between prepare and begin, or with the doors shut behind it: only what is set in
 * @wanted (taken over; bit i stands for the bytes [i, i + 1) * @unit, a power of two >=
 * VIEW_GRANULE) is captured. The rest counts as released from the start. */
void view_limit(struct view *v, struct bitmap *wanted, uint64_t unit);

/* prepare, shut the doors (waiting INSTANT_TIMEOUT_NS at most), begin, open
 * the doors. Nests inside doors that the caller has shut already: so several
 * disks get one instant. */
struct view *co_view_open(struct node *n, const struct view_opts *opts, const char *who,
                          struct err *err);

/* End the view for everyone: nothing is captured any more, readers get
 * -ESHUTDOWN, waiting guest writes go on. Waits for nothing. Drops the caller's
 * reference. Takes NULL. */
void view_close(struct view *v);

/* Wait until the caller's reference to a view that has ended is the only one: what
 * was under way in it is over, and with the last reference the node is free. False
 * at @deadline (loop_now time). */
MUST_CHECK bool co_view_settle(struct view *v, uint64_t deadline);

struct view *view_ref(struct view *v);
/* The last one closes the view if it was not, and frees it. Takes NULL. */
void view_unref(struct view *v);
DEFINE_CLEANUP(struct view *, view_unref);

struct node *view_node(const struct view *v);    /* borrowed */
uint64_t view_size(const struct view *v);        /* bytes; constant */

/* 0, or why the view cannot be used any more: -errno, and a sentence in @err
 * (may be NULL). */
int view_error(const struct view *v, struct err *err);

/* Read as of the instant. [off, off+len) lies inside the view and iov totals
 * len. REQ_BULK in @flags as for nodes. What the caller has released, or
 * releases before this returns, reads as anything. -errno of the source or the
 * store, view_error, or -EAGAIN before the instant. */
MUST_CHECK int co_view_readv(struct view *v, uint64_t off, uint64_t len, const struct iovec *iov,
                             int niov, unsigned flags);
MUST_CHECK int co_view_read(struct view *v, uint64_t off, uint64_t len, void *buf,
                            unsigned flags);

/* The status as of the instant of the start of [off, off+len), len > 0, like
 * co_node_status_above with @base, with the depth in ret->depth. No STATUS_OFFSET.
 * Captured granules count as ALLOCATED in the topmost layer even where the layers
 * above @base did not hold them: it may report more than there was, never less. */
MUST_CHECK int co_view_status(struct view *v, struct node *base, uint64_t off, uint64_t len,
                              struct block_status *ret);

/* The consumer is done with [off, off+len): nothing in it is captured from now
 * on and its scratch space is freed. Ends must be multiples of VIEW_GRANULE or
 * the end of the view. Harmless on a closed or broken view. */
void view_release(struct view *v, uint64_t off, uint64_t len);

/* Whether nothing of [off, off+len) was released: a read that ends while that is so is good. */
bool view_has(const struct view *v, uint64_t off, uint64_t len);

/* The first range at or after @from that is captured and not released; false
 * when there is none. */
bool view_next_captured(const struct view *v, uint64_t from, uint64_t *ret_off, uint64_t *ret_len);

/* Told, as a plain callback that must not suspend, whenever a range has been
 * captured and when the view breaks or is closed. */
struct view_listener {
    struct list link;
    void (*changed)(struct view_listener *self);
};
void view_add_listener(struct view *v, struct view_listener *l);
void view_remove_listener(struct view_listener *l);    /* harmless if not added */

struct view_stats {
    uint64_t captured;        /* bytes captured since the start, zeros included */
    uint64_t held;            /* bytes captured and not released, zeros included */
    uint64_t memory, file;    /* bytes that the scratch store takes in each tier */
    uint64_t capturing;       /* captures under way */
    uint64_t waiting;         /* guest requests that wait */
};
void view_get_stats(const struct view *v, struct view_stats *ret);

/* By how many ns the view has made each write to the node longer, zeros and discards
 * included: 0 for one that found all captured. Of a view that has ended too. */
void view_get_added(const struct view *v, struct histogram_summary *ret);

#endif
