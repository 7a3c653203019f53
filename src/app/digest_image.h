/* SPDX-License-Identifier: Apache-2.0
 *
 * Making the digests of an image of a backup set, by reading it back: that proves also that
 * it can be read. docs/backup-sets.md, "Digests". For use in offline_run.
 */
#ifndef APP_DIGEST_IMAGE_H
#define APP_DIGEST_IMAGE_H

#include "app/watch.h"
#include "set/digest.h"

struct digest_image {
    const char *image;                   /* qcow2; whole, flushed, never to change again */
    const char *to;                      /* the new file of digests; must not be there */
    const char *const *parents;          /* the files of digests of its backing image, of that
                                          * one's, ...; none for a full */
    size_t n_parents;
    struct watch *watch;                 /* shows progress, hears Ctrl-C */
};

/* Write the file of digests of an image, which is whole and on stable storage afterwards (see
 * to its name in the directory yourself), and give the root digest of the point. The image
 * is read twice, in parallel: what it holds of the disk, through the qcow2 driver, then its
 * file as it is. False with @err, and there is no file then; -ECANCELED: Ctrl-C.
 * Coroutine. */
MUST_CHECK bool co_digest_image(const struct digest_image *d, struct set_digest_value *ret_root,
                                struct err *err);

#endif
