/* SPDX-License-Identifier: Apache-2.0
 *
 * What a protocol driver remembers of its last look-up of block status, because
 * one look-up (a round trip to a server, lseek in a worker) can tell of many
 * extents and callers ask for one at a time. It holds a run of neighbouring
 * extents, for a second at most: somebody else may write to the same storage.
 *
 * Our own writes are exact. A look-up runs while writes come and go, so what it
 * saw may be old by the time that it is kept: extent_cache_forget, called after
 * each change has ended, cuts what is kept and what is being looked up. A change
 * that ends before the look-up began is seen by it; one that ends later cuts it.
 *
 * Belongs to the node's loop; nothing here suspends. extent_fill_add alone may
 * be called by the worker that does the look-up.
 */
#ifndef DRIVERS_EXTENT_CACHE_H
#define DRIVERS_EXTENT_CACHE_H

#include "base/list.h"

#define EXTENT_CACHE_MAX 64

struct cached_extent {
    uint64_t end;          /* where it ends; it starts where its predecessor ends */
    unsigned flags;        /* enum status_flags */
};

struct extent_cache {
    uint64_t base;
    unsigned n;
    uint64_t deadline;     /* loop_now time after which it is not believed */
    struct list fills;     /* look-ups under way */
    struct cached_extent extents[EXTENT_CACHE_MAX];
};

/* A look-up: begin, add extents in order, end. They are kept in whole blocks of
 * @align, up to @size, whatever was found: a block of two kinds is data. */
struct extent_fill {
    struct list link;
    uint64_t base, align, size;
    uint64_t pos;          /* where the next extent begins */
    uint64_t limit;        /* what was kept is true below this */
    unsigned n;
    struct cached_extent extents[EXTENT_CACHE_MAX];
};

void extent_cache_init(struct extent_cache *c);

/* What is known of @off: its flags and the bytes for which they hold. */
bool extent_cache_find(const struct extent_cache *c, uint64_t off, uint64_t *ret_len,
                       unsigned *ret_flags);

/* [off, off+len) has been changed (or that was tried). @flags: what it surely is
 * now; 0 if that is not known. An extent that says so already is kept. */
void extent_cache_forget(struct extent_cache *c, uint64_t off, uint64_t len, unsigned flags);

/* @base is a multiple of @align. */
void extent_fill_begin(struct extent_cache *c, struct extent_fill *f, uint64_t base,
                       uint64_t align, uint64_t size);
/* Begin once more from the same base. */
void extent_fill_restart(struct extent_fill *f);

/* The next @len bytes are so; what lies beyond the size is dropped. False when there is
 * no room for another. */
bool extent_fill_add(struct extent_fill *f, uint64_t len, unsigned flags);

/* Keep what was found, as far as it is still true. @f is done with. */
void extent_fill_end(struct extent_cache *c, struct extent_fill *f);

#endif
