/* SPDX-License-Identifier: Apache-2.0
 *
 * The dirty bitmaps that an image stores, kept by commands that change the image: a
 * write makes them invalid unless somebody follows it. So these commands load them
 * before they write and store them again at the end, with what has changed marked.
 */
#ifndef APP_KEEP_BITMAPS_H
#define APP_KEEP_BITMAPS_H

#include "block/node.h"
#include "drivers/qcow2/bitmaps.h"

struct kept_bitmaps {
    struct qcow2_bitmap_put *v;
    struct bitmap **bits;        /* of .v, one each */
    size_t n;
    uint64_t memory;             /* that they take at most */
};

/* Load those of @n, a node of any driver, that can be: all that are valid, or only those
 * that a write makes invalid. Before the first write. @size: that the disk will have, for
 * what is added will be marked. False, too, if it takes more than LIMIT_KEPT_BITMAP_BYTES.
 * Coroutine. */
MUST_CHECK bool co_bitmaps_keep(struct node *n, bool all, uint64_t size, struct kept_bitmaps *ret,
                                struct err *err);
/* [off, off+len) of the disk was changed. */
void bitmaps_mark(struct kept_bitmaps *k, uint64_t off, uint64_t len);
/* The disk has another size: what was added is marked. */
MUST_CHECK bool bitmaps_resize(struct kept_bitmaps *k, uint64_t old_size, uint64_t size,
                               struct err *err);
/* Store them, after all writes, when what they say is on the disk. Coroutine. */
MUST_CHECK bool co_bitmaps_put_back(struct node *n, const struct kept_bitmaps *k, struct err *err);
void bitmaps_done(struct kept_bitmaps *k);

#endif
