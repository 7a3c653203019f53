/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk is how the outside reaches a node: exports and jobs hold a disk and
 * send their requests through its door. With the door shut new requests wait
 * outside the graph, in order, and when the count of those inside has come to
 * zero an instant can be taken. There is one disk a node
 * however many users it has. Everything here is for the node's loop.
 */
#ifndef BLOCK_DISK_H
#define BLOCK_DISK_H

#include "block/graph.h"

struct disk;

/* The disk over @n, made on first use. Attaches a user edge (see
 * edge_attach_user) and holds a reference. NULL with @err on conflict. */
struct disk_user;
struct disk_user *disk_open(struct node *n, const char *who, unsigned perms, unsigned shared,
                            struct err *err);
/* When none of this user's requests is in flight. Takes NULL. */
void disk_close(struct disk_user *u);
struct node *disk_node(const struct disk_user *u);     /* borrowed */
MUST_CHECK bool disk_set_perms(struct disk_user *u, unsigned perms, unsigned shared,
                               struct err *err);

/* As their namesakes in node.h, through the door. */
MUST_CHECK int co_disk_preadv(struct disk_user *u, uint64_t off, uint64_t len,
                              const struct iovec *iov, int niov, unsigned flags);
MUST_CHECK int co_disk_pwritev(struct disk_user *u, uint64_t off, uint64_t len,
                               const struct iovec *iov, int niov, unsigned flags);
MUST_CHECK int co_disk_write_zeroes(struct disk_user *u, uint64_t off, uint64_t len,
                                    unsigned flags);
MUST_CHECK int co_disk_clone(struct disk_user *u, uint64_t off, struct node *src,
                             uint64_t src_off, uint64_t len);
MUST_CHECK int co_disk_discard(struct disk_user *u, uint64_t off, uint64_t len);
MUST_CHECK int co_disk_flush(struct disk_user *u);
MUST_CHECK int co_disk_status(struct disk_user *u, uint64_t off, uint64_t len,
                              struct block_status *ret, unsigned *ret_depth);   /* whole chain */

/* Shut the doors of every disk by which @n may be written, @n's own in any case,
 * and wait until nothing is in flight inside. Overlays that only read @n as their
 * backing file go on. -ETIMEDOUT at @deadline (loop_now time): the doors are
 * open again then. Between success and open_doors requests wait outside.
 * Nests. */
MUST_CHECK int co_shut_doors(struct node *n, uint64_t deadline);
void open_doors(struct node *n);

/* The same with a sentence, for an instant that people asked for. */
MUST_CHECK bool co_shut_doors_by(struct node *n, uint64_t deadline, struct err *err);
/* How long an instant, of one disk or of many, waits for the requests in flight. */
#define INSTANT_TIMEOUT_NS (4 * NSEC_PER_SEC)

#endif
