/* SPDX-License-Identifier: Apache-2.0
 *
 * The bitmaps that a qcow2 image stores, for those who keep dirty bitmaps of a node:
 * listed, loaded, stored, removed. docs/qcow2.md, "Bitmaps".
 *
 * What is stored is the bitmap of one moment. With the first write the driver marks
 * all enabled bitmaps of the image in_use, on the disk, before anything else is
 * changed (I-Q12): what is not stored again afterwards is inconsistent, here and in
 * QEMU. So an owner of bitmaps loads them before the disk is written to and stores
 * them when it is not any more, just before the node is closed. A disabled bitmap
 * stays valid while the disk is written, but not when its size changes.
 *
 * All of these work on a node of driver qcow2, on its loop; those that change
 * something on one that is writable. They may come together: one waits for the other.
 * Requests may be under way: those that came before had their bits set then, others wait
 * and mark. False with a sentence in @err.
 */
#ifndef QCOW2_BITMAPS_H
#define QCOW2_BITMAPS_H

#include "base/bitmap.h"
#include "block/node.h"

struct qcow2_bitmap_info {
    const char *name;            /* good until the image's bitmaps change */
    uint64_t granularity;        /* bytes a bit stands for; 0: more than 64 bits can say */
    bool in_use;                 /* inconsistent: was not stored after the last write */
    bool enabled;                /* sees every write ("auto") */
    bool usable;                 /* of a kind known here; others are kept and not touched */
};

/* How many bitmaps there are, and what the @i-th is. Do not suspend. */
uint32_t qcow2_bitmaps_count(struct node *n);
void qcow2_bitmaps_get(struct node *n, uint32_t i, struct qcow2_bitmap_info *ret);
/* The same as a list of Qcow2BitmapInfo (QEMU qapi/block-core.json). New reference. */
json_t *qcow2_bitmaps_list(struct node *n);

/* The bits of the bitmap @name: one for each granularity of the disk. An
 * inconsistent one is refused (-EINVAL), as is one of another size than the disk.
 * The caller frees it. */
MUST_CHECK bool co_qcow2_bitmap_load(struct node *n, const char *name, struct bitmap **ret,
                                     struct err *err);

struct qcow2_bitmap_put {
    const char *name;
    uint64_t granularity;        /* bytes, a power of two from 512 to 2 GiB */
    bool enabled;
    const struct bitmap *bits;   /* of the disk's size; NULL: none is set */
};

/* Whether the image could store this one: its name, granularity and size. */
MUST_CHECK bool qcow2_bitmap_check_put(struct node *n, const struct qcow2_bitmap_put *put,
                                       struct err *err);

/* Store all of @v, in place of those of the same names or beside the others, as valid.
 * All at once: a crash leaves the bitmaps as before (in_use then, if the disk was
 * written to) or as after. What they say must hold when the call is made, and is on
 * the disk after it; until then nobody may replace or free bits. -ENOSPC: the header has no
 * room for the extension. */
MUST_CHECK bool co_qcow2_bitmaps_store(struct node *n, const struct qcow2_bitmap_put *v,
                                       size_t count, struct err *err);

/* Remove the bitmap @name, usable and valid or not. -ENOENT. */
MUST_CHECK bool co_qcow2_bitmap_remove(struct node *n, const char *name, struct err *err);

#endif
