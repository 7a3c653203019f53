/* SPDX-License-Identifier: Apache-2.0
 *
 * What a name that a person has typed says about an image. The format follows
 * from the name's ending and never from the content: a guest that may write to a
 * raw disk could make it look like anything.
 */
#ifndef APP_IMAGE_NAME_H
#define APP_IMAGE_NAME_H

#include "base/err.h"

/* "qcow2" for names that end in .qcow2 or .qcow, else "raw". */
const char *image_format_by_name(const char *name);

/* The format of an image to be read: @given if there is one, else by its name.
 * NULL with @err when the name says raw but the file begins as a qcow2 image
 * does: more likely than not it is one, and served as raw a guest would see the
 * wrong bytes. A file that cannot be looked into passes: opening it tells why.
 * May block. */
const char *image_format_to_read(const char *name, const char *given, struct err *err);

/* True unless @path is a block device that this host itself uses: a mounted file
 * system, swap, a part of another device. What it does there nobody can hold still,
 * and nobody may write over. May block. */
bool image_device_is_free(const char *path, struct err *err);

/* Whether @name is an URI and no path: "nbd://...". */
bool image_name_is_uri(const char *name);

/* The path from the root, without resolving anything. NULL with @err when there
 * is no current directory. free() it. */
char *image_absolute_path(const char *path, struct err *err);

/* The file that @name means when the image @by names it: beside @by unless it is
 * absolute or an URI. free() it. */
char *image_path_beside(const char *by, const char *name);

/* What a disk is called unless the user says: the file's name without directory
 * and suffix, the export's name for an URI. "" when nothing is left. free() it. */
char *image_disk_name(const char *name);

/* Whether opening failed because of another process's image lock (block/lock.h). By
 * the words, which also come through QMP. */
bool image_is_locked_by_others(const struct err *err);

#endif
