/* SPDX-License-Identifier: Apache-2.0
 *
 * The digests of a point: those of its image, laid over those of the images that it stands
 * on. Read once from the first leaf to the last, like merging sorted files, so that memory
 * does not grow with the disk. Plain POSIX; may block.
 */
#ifndef SET_DIGEST_CHAIN_H
#define SET_DIGEST_CHAIN_H

#include "set/digest_file.h"

struct set_digest_chain;

/* @paths: of the point's image first, then of its backing image, and so on; at least one.
 * NULL with @err. */
struct set_digest_chain *set_digest_chain_open(const char *const *paths, size_t n,
                                               struct err *err);
void set_digest_chain_free(struct set_digest_chain *c);
DEFINE_CLEANUP(struct set_digest_chain *, set_digest_chain_free);

uint64_t set_digest_chain_size(const struct set_digest_chain *c);     /* of the disk */

/* The digests of leaves [first, first+n) as the disk is at this point; those of leaves that
 * no file has are zero. Calls come in ascending order, without overlaps. */
MUST_CHECK bool set_digest_chain_read(struct set_digest_chain *c, uint64_t first, size_t n,
                                      struct set_digest_value *ret, struct err *err);

/* The lowest leaf from @from on that some file has something about; UINT64_MAX: none. As
 * above, and what lies before it cannot be read any more. */
MUST_CHECK bool set_digest_chain_seek(struct set_digest_chain *c, uint64_t from, uint64_t *ret,
                                      struct err *err);

/* The root digest. Reads all: nothing may have been read before, nor can be afterwards. */
MUST_CHECK bool set_digest_chain_root(struct set_digest_chain *c, struct set_digest_value *ret,
                                      struct err *err);

#endif
