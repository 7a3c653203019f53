/* SPDX-License-Identifier: Apache-2.0
 *
 * Where an image may take its backing file, or its data file, from. The name stands in the image,
 * and whoever made the image, perhaps a guest, chose it: without a rule it could
 * make us read any file of the host. So a named backing file has to lie below the
 * directory of the image that names it, or below one that the operator allowed;
 * symbolic links are resolved first. What an operator names himself (the option
 * "backing") is not judged here.
 */
#ifndef DRIVERS_IMAGE_DIRS_H
#define DRIVERS_IMAGE_DIRS_H

#include "base/err.h"

/* Allow backing files below @dir, which must exist. Once at start, before loops
 * run; so too the next. */
MUST_CHECK bool image_dirs_allow(const char *dir, struct err *err);
/* Allow images to name nbd:// and nbd+unix:// URIs as backing files. */
void image_dirs_allow_nbd(void);

/* Whether images may name NBD URIs. Any thread. */
bool image_dirs_nbd_allowed(void);

/* The path that the name @name in the header of the image @image stands for, there
 * as its @what ("backing file"), absolute and free of links, if an image may name
 * it. @image is how the image was opened; relative names count from its directory.
 * free() the result. NULL with @err. Looks at the file system, so it may block: for
 * workers. Any thread. */
char *image_dirs_resolve(const char *image, const char *name, const char *what,
                         struct err *err);

#endif
