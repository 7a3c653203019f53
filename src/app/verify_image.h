/* SPDX-License-Identifier: Apache-2.0
 *
 * Verifying one image of a backup set: its structure, its file, what it holds of its disk, and
 * its digests (docs/backup-sets.md, "Verify").
 */
#ifndef APP_VERIFY_IMAGE_H
#define APP_VERIFY_IMAGE_H

#include "app/set_image.h"
#include "app/watch.h"

struct verify_finding {
    const struct set_image *image;
    const char *file;                /* in the set's directory */
    const char *extent_of;           /* "file", "disk": what the extent is of; NULL: none */
    uint64_t off, len;
    const char *what;                /* a sentence */
};

struct verify_image {
    const struct set_catalog *catalog;
    const struct set_image *image;
    struct watch *watch;
    uint64_t base, total;            /* for progress: verified before this; in all */
    /* Hears what is wrong. Does not suspend. */
    void (*found)(void *arg, const struct verify_finding *f);
    void *arg;
    uint64_t bytes;                  /* read, of file and disk: counted up */
};

/* What it counts for in .base and .total. */
uint64_t verify_image_work(const struct set_catalog *c, const struct set_image *im);

/* False: Ctrl-C, or out of memory (@err). What is wrong with the image is found, not an
 * error. Coroutine. */
MUST_CHECK bool co_verify_image(struct verify_image *v, struct err *err);

#endif
