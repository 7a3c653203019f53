/* SPDX-License-Identifier: Apache-2.0
 *
 * The transmission phase of one connection, on the loop of the export's node:
 *
 *   reader (serve.c)   one receive, many request headers; each passes
 *                      nbd_check_request and gets a slot and a buffer
 *   request (serve.c)  a coroutine each: goes through the disk, fills in the slot
 *   writer (reply.c)   all the replies that are ready, in one sendmsg
 *
 * The reader starts every request it has parsed before the first one runs, and
 * the writer runs after all that are ready: batches come from the loop's order.
 * When slots or memory are out, the reader waits and the rest stays in the
 * socket; slots come back as replies are sent, so a client that does not take
 * its replies stops itself and nobody else.
 */
#ifndef EXPORT_NBD_SERVE_H
#define EXPORT_NBD_SERVE_H

#include "block/dirty.h"
#include "block/disk.h"
#include "export/nbd/buffers.h"
#include "export/nbd/request.h"
#include "export/nbd/stats.h"
#include "loop/stream.h"

struct nbd_tx;

/* One thing that clients can ask about with block status. Its id is its index in
 * the export's list and one more. */
struct nbd_context {
    enum nbd_context_kind {
        NBD_STATUS_ALLOCATION,     /* base:allocation */
        NBD_STATUS_DEPTH,          /* qemu:allocation-depth */
        NBD_STATUS_DIRTY,          /* qemu:dirty-bitmap:NAME */
    } kind;
    char *name;
    struct node *node;             /* the bitmap's: a reference */
    struct dirty_bitmap *bitmap;   /* held */
};

/* A request from its header to its reply. */
struct nbd_slot {
    struct list link;          /* tx->free or tx->replies */
    struct nbd_tx *tx;
    struct nbd_request rq;
    struct nbd_buffer buf;
    const char *why;           /* of an error that was found before the disk; static */
    uint32_t status_len;       /* of the answer to block status, whole chunks in buf */
    size_t head_len;
    uint8_t head[NBD_REPLY_HEAD_BYTES_MAX];
    const void *body;          /* follows the head: in buf, or static text */
    size_t body_len;
};

/* Made on the main loop before the connection moves, freed there after it
 * ended; in between everything is the export's loop's. */
struct nbd_tx {
    /* Filled in by whoever makes it; none of these is owned. */
    struct stream *stream;
    struct disk_user *disk;
    struct nbd_stats *stats;   /* of the export */
    struct nbd_buffers *buffers;
    struct nbd_session session;
    const struct nbd_context *contexts;   /* of the export */
    bool writethrough;

    struct nbd_holder holder;
    struct list free;          /* slots for reuse */
    unsigned n_slots;          /* made so far */
    unsigned busy;             /* from header to reply */
    struct waitq idle;         /* the reader: for a slot, and for the end of all */

    struct list replies;
    struct waitq replies_ready;
    struct iovec *iov;         /* the writer's */
    bool drained;              /* no reply will be added any more */
    bool broken;               /* replies can not be sent any more */
    struct waitq writer_gone;
    bool writer_running;

    bool stopping;             /* no further requests are read */
    bool ended;
    struct loop_timer stop_watch;
};

/* Run the transmission phase until the client disconnects or is stopped, and
 * everything it asked for has been answered or dropped. Coroutine. */
void co_nbd_serve(struct nbd_tx *tx);

/* Take no further requests; answer those that were taken, but cut the
 * connection if the client leaves its replies in the socket. Before, during or
 * after co_nbd_serve. */
void nbd_tx_stop(struct nbd_tx *tx);

/* reply.c: queue the reply of @s with the request's result. Its slot is free
 * again when it was sent. Does not suspend. */
void nbd_reply(struct nbd_slot *s, int result);
/* reply.c: the writer's coroutine; arg is the nbd_tx. */
void co_nbd_writer(void *arg);
/* serve.c: the slot and its buffer may be used again. */
void nbd_slot_free(struct nbd_slot *s);

/* blockstatus.c: NBD_CMD_BLOCK_STATUS for every context that was selected. 0 or -errno. */
MUST_CHECK int co_nbd_block_status(struct nbd_slot *s);

#endif
