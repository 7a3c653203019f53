/* SPDX-License-Identifier: Apache-2.0
 *
 * What making, verifying and restoring by digests share: which part of a disk an image holds
 * itself, and hashing pieces of a sweep (sweep.h) in worker threads.
 */
#ifndef APP_DIGEST_WORK_H
#define APP_DIGEST_WORK_H

#include "app/sweep.h"
#include "block/node.h"
#include "set/digest.h"

#define PIECE_LEAVES (SWEEP_PIECE / SET_LEAF)
#define PIECE_CHUNKS 2                       /* of SET_CHUNK */

/* Digests of the leaves in @buf, the last of which may be shorter; by a worker. */
void co_digest_leaves(const uint8_t *buf, uint64_t len, struct set_digest_value *ret);

struct held {
    bool zero;                               /* reads as zero, and is allocated */
    uint64_t off, len;                       /* whole leaves (but at the disk's end); len 0: no
                                              * more */
};
/* The next leaves from @off on, at most a piece, of which the layer @n itself holds
 * something; zeros count when @zeros. 0 or -errno. Coroutine. */
MUST_CHECK int co_find_held(struct node *n, uint64_t off, bool zeros, struct held *ret);

/* Read and hash [off, off+len) of a plain file, chunk by chunk; by a worker. */
MUST_CHECK int co_digest_chunks(int fd, uint64_t off, uint64_t len, uint8_t *buf,
                                struct set_digest_value *ret);

#endif
