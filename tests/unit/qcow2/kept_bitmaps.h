/* SPDX-License-Identifier: Apache-2.0
 *
 * The bitmaps that an image of the model stores, with a shadow of each: the flags that
 * it must have and the bits that must be set in it. Whoever writes to the disk has the
 * shadow follow (touched in struct model): a session here, in which the node follows them, or
 * which owns them and stores them itself; or QEMU in its turns.
 */
#ifndef TESTS_QCOW2_KEPT_BITMAPS_H
#define TESTS_QCOW2_KEPT_BITMAPS_H

#include "base/bitmap.h"
#include "model.h"

#define KEPT_MAX 4

struct kept_bitmap {
    char name[16];
    uint64_t granularity;
    bool enabled, in_use;
    bool followed;               /* by the node, in this session */
    bool loose;                  /* QEMU may have set more than these: */
    struct bitmap *bits;
};

struct kept {
    struct kept_bitmap v[KEPT_MAX];
    unsigned n, ever;
};

void kept_done(struct kept *k);
/* Whether one of them is inconsistent: QEMU resizes no such image. */
bool kept_any_in_use(const struct kept *k);

/* What was touched of the model's disk is set in those that see writes: our session's
 * are marked, @peer: those that QEMU had loaded are not, and it may have set more. */
void kept_follow(struct kept *k, const struct model *m, bool peer);
/* The disk has the model's size now, and had its smallest meanwhile. */
void kept_resize(struct kept *k, const struct model *m, bool peer);

/* A session begins, in which the node may follow those that are valid; it ends, and those are
 * stored. */
void kept_begin(struct kept *k, bool followed);
void kept_end(struct kept *k);

/* The open node has these bitmaps and no others, with these bits. */
void co_kept_expect(struct kept *k, struct node *n);
/* After work on the open node, when @changed says whether the disk reads otherwise, and
 * @resized whether its size was another: the marks are as they must be. */
void co_kept_expect_marks(struct kept *k, struct node *n, bool changed, bool resized);
/* Their owner stores, adds and removes some in the model's open node. */
void co_kept_store(struct kept *k, struct model *m);
/* Of the closed image QEMU says the same; with @bits of those in one, too. */
void co_kept_judge(struct kept *k, struct model *m, bool bits);

/* QEMU has its turn with the closed image (peer_turn.c) and with its bitmaps, by
 * qemu-img and qemu-io, or with @daemon by QMP and NBD. */
void kept_peer_turn(struct kept *k, struct model *m, bool daemon, unsigned n);

/* What QEMU says of a bitmap of the closed image over NBD. */
struct bitmap *qemu_bits(const char *image, const char *name, uint64_t granularity, uint64_t size);
bool same_bits(const struct bitmap *a, const struct bitmap *b);

#endif
