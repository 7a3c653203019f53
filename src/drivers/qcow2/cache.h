/* SPDX-License-Identifier: Apache-2.0
 *
 * A bounded write-back cache of metadata slices: equal pieces of L2 tables or of
 * refcount blocks, by their offset in the image file. It knows nothing of what is
 * in them; two functions of its owner load and make room.
 *
 * States of an entry:
 *
 *     (none) --get--> LOADING --> CLEAN --modify--> DIRTY --freeze--> FROZEN
 *                                   ^                 ^                  |
 *                                   |                 +--thaw (failed)---+
 *                                   +-------------thaw (written)---------+
 *
 * A frozen entry that is modified keeps the frozen bytes aside for the writer and
 * goes on as a dirty one beside it (it is on the frozen list and dirty at once).
 * Only CLEAN entries are ever evicted, least recently used first.
 *
 * The rule for pointers into an entry: they are good until the caller suspends,
 * and no longer. Nothing is pinned. Belongs to the node's loop.
 */
#ifndef QCOW2_CACHE_H
#define QCOW2_CACHE_H

#include "base/list.h"
#include "loop/co_sync.h"

struct qcow2_cache;

struct qcow2_cache_ops {
    /* Fill @buf with the slice at @off. */
    int (*co_load)(void *ctx, uint64_t off, void *buf);
    int (*co_store)(void *ctx, uint64_t off, const void *buf);
    /* Every entry is dirty: write some back (freeze to thaw), so that entries
     * become clean. */
    int (*co_make_room)(void *ctx);
};

/* @slice_bytes: a power of two. At least QCOW2_CACHE_MIN_ENTRIES are allowed. */
#define QCOW2_CACHE_MIN_ENTRIES 8
struct qcow2_cache *qcow2_cache_new(const struct qcow2_cache_ops *ops, void *ctx,
                                    uint32_t slice_bytes, uint64_t max_entries);
/* When no coroutine is inside. What is dirty is lost. Takes NULL. */
void qcow2_cache_free(struct qcow2_cache *c);

uint32_t qcow2_cache_slice_bytes(const struct qcow2_cache *c);

/* The slice at @off (a multiple of slice_bytes) if it is there, else NULL. Does
 * not suspend. */
const void *qcow2_cache_find(struct qcow2_cache *c, uint64_t off);

/* The same, loaded if need be. */
MUST_CHECK int co_qcow2_cache_get(struct qcow2_cache *c, uint64_t off, const void **ret);

/* Put in a slice of zeros, clean: the caller knows that the file has zeros there
 * or that what it has does not count. Nor does what the cache has of it. */
MUST_CHECK int co_qcow2_cache_put_zero(struct qcow2_cache *c, uint64_t off);

/* The bytes of a slice that is there, for changing; it is dirty from now on. Does
 * not suspend. -ENOMEM. */
MUST_CHECK int qcow2_cache_modify(struct qcow2_cache *c, uint64_t off, void **ret);

/* Forget all slices in [off, off+len), dirty ones too: the range is not metadata
 * any more, or not yet. None of them is frozen, unless it is clean beside. */
void qcow2_cache_drop(struct qcow2_cache *c, uint64_t off, uint64_t len);
/* Whether any slice of the range is changed and not written yet. */
bool qcow2_cache_has_dirty(const struct qcow2_cache *c, uint64_t off, uint64_t len);

/* ---- writing back -------------------------------------------------------- */

/* Whether a write-back would have anything to do, or one is going on. */
bool qcow2_cache_is_dirty(const struct qcow2_cache *c);
/* More than half of what may be cached is dirty. */
bool qcow2_cache_wants_writeback(const struct qcow2_cache *c);

bool qcow2_cache_has_frozen(const struct qcow2_cache *c);

/* Take what is dirty at this moment as the content to write. One freeze at a time
 * (the owner sees to it). Does not suspend. */
void qcow2_cache_freeze(struct qcow2_cache *c);
/* Write all that is frozen, several slices at a time. */
MUST_CHECK int co_qcow2_cache_write_frozen(struct qcow2_cache *c);
/* End: @written says that it is all in the file and counts as clean; else it is
 * dirty again. */
void qcow2_cache_thaw(struct qcow2_cache *c, bool written);

#endif
