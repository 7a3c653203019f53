/* SPDX-License-Identifier: Apache-2.0
 *
 * A disk of a point in a backup set, for commands that read sets: its files, and opening them.
 */
#ifndef APP_SET_IMAGE_H
#define APP_SET_IMAGE_H

#include "block/node.h"
#include "set/catalog.h"
#include "set/digest_chain.h"

/* Of a file of the set; free() it. */
char *set_path(const struct set_catalog *c, const char *file);

/* The disk that is meant: @name, or the only one. NULL with @err. */
const struct set_image *set_image_choose(const struct set_catalog *c, const struct set_point *p,
                                         const char *name, struct err *err);

/* The digests of the disk at its point. NULL with @err, also when one of the images that it
 * stands on has none. */
struct set_digest_chain *set_image_digests(const struct set_catalog *c,
                                           const struct set_image *im, struct err *err);

/* The digests of the disk, after all their files were checked and came to the root digest of
 * the manifest. NULL with @err. */
struct set_digest_chain *set_image_trusted_digests(const struct set_catalog *c,
                                                   const struct set_image *im, struct err *err);

/* The image with what it stands on, to be read. A reference, or NULL with @err. Coroutine. */
struct node *co_set_image_open(const struct set_catalog *c, const struct set_image *im,
                               struct err *err);

#endif
