/* SPDX-License-Identifier: Apache-2.0
 *
 * The scratch store of a view: what was captured, until it is released. Two
 * sparse tiers with identity mapping (offset N of the disk is offset N of the
 * tier), so there is no index to keep: memory (a memfd) up to a budget, then an
 * unlinked file (or several, parts.h). A bit a granule says whether anything is stored, another in
 * which tier. Granules of zeros are never stored.
 *
 * A granule is kept at most once in the store's life: once released it is not
 * written again. Ranges are multiples of VIEW_GRANULE where not said otherwise.
 * One loop.
 */
#ifndef CBW_STORE_H
#define CBW_STORE_H

#include "base/err.h"
#include "block/node.h"
#include "loop/co_sync.h"
#include <sys/uio.h>

struct store;

/* For @size bytes (rounded up to a granule). @dir NULL: no file tier. @limit 0:
 * none. Opens the file in a worker. NULL with @err. */
struct store *co_store_new(uint64_t size, const char *dir, uint64_t memory, uint64_t limit,
                           struct err *err);
/* In a node instead, which a user has chosen and may look at: at least @size bytes, on
 * this loop. Zeros are written too, and a write is over when no read of the node is
 * under way any more that began before it (node_watch_reads). The caller sees to it that
 * nobody else writes there, and holds it open; the store has a reference. NULL with @err. */
struct store *store_new_in_node(uint64_t size, struct node *target, struct err *err);
/* When no call is inside. Gives back memory and disk space in a worker. Takes NULL. */
void store_free(struct store *s);

/* Claim room for up to @want bytes before they are written. Returns how many
 * were claimed, a multiple of the granule; 0: the limit is reached, wait for
 * store_space to be woken. */
uint64_t store_reserve(struct store *s, uint64_t want);
void store_unreserve(struct store *s, uint64_t bytes);
struct waitq *store_space(struct store *s);

/* Keep [off, off+len), for which the caller holds a reservation that this call
 * uses up. On failure nothing is kept. */
MUST_CHECK int co_store_write(struct store *s, uint64_t off, uint64_t len, const uint8_t *buf);

/* The same for zeros, which take no room: without a reservation. */
MUST_CHECK int co_store_write_zeros(struct store *s, uint64_t off, uint64_t len);

/* Read any bytes back, to [at, at+len) of the list; what is not stored reads as zero. */
MUST_CHECK int co_store_readv(struct store *s, uint64_t off, uint64_t len, const struct iovec *iov,
                              int niov, uint64_t at);

/* Forget a range. The space is free at once in memory, soon in the file. */
void store_release(struct store *s, uint64_t off, uint64_t len);

/* Whether the granule at @off is stored (else it is zeros), and for how many
 * bytes, at most @len, the same answer holds. */
bool store_has(const struct store *s, uint64_t off, uint64_t len, uint64_t *ret_len);

void store_usage(const struct store *s, uint64_t *ret_memory, uint64_t *ret_file);

#endif
