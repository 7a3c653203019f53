/* SPDX-License-Identifier: Apache-2.0
 *
 * Sidecar files: where persistent dirty bitmaps are while a disk is written to, on every
 * format, so that neither kill -9 nor a power cut loses them. One file an image, with all
 * persistent bitmaps of the one node over that image which keeps them.
 *
 * docs/dirty-bitmaps.md has the design and the invariants I-S1 and on. Nodes get their
 * keeper (block/keeper.h) when they are opened, if there is a file for them, or when the
 * first persistent bitmap is added.
 */
#ifndef SIDECAR_SIDECAR_H
#define SIDECAR_SIDECAR_H

#include "base/err.h"

/* Be the provider of keepers. With the drivers, before loops run; so too the next. */
void sidecar_register(void);

/* Put the files into @dir, which must exist, and not next to the images. */
MUST_CHECK bool sidecar_set_state_dir(const char *dir, struct err *err);
/* The operator says that nobody else writes to block devices and NBD exports that have
 * bitmaps: of these nothing can tell after a crash, and of exports never. */
void sidecar_set_exclusive(void);

/* ---- for tests ------------------------------------------------------------------- */

enum sidecar_op {
    SIDECAR_OP_WRITE, SIDECAR_OP_PUNCH, SIDECAR_OP_RESIZE, SIDECAR_OP_SYNC,
    SIDECAR_OP_CREATE,           /* an empty file, without its name yet */
    SIDECAR_OP_PUBLISH, SIDECAR_OP_UNLINK,      /* durable when they have ended */
};

/* Sees what is done to the files: before (@end false) and after. Recorded operations are
 * done again, in part, to make what a power cut leaves. */
struct sidecar_observer {
    void (*saw)(void *arg, bool end, enum sidecar_op op, uint64_t off, uint64_t len,
                const void *data);
    void *arg;
};
void sidecar_observe(const struct sidecar_observer *o);     /* NULL: nobody */
/* Another boot: 16 bytes; NULL: the machine's own again. */
void sidecar_fake_boot(const uint8_t *boot_id);

#endif
