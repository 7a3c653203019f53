/* SPDX-License-Identifier: Apache-2.0
 *
 * Small files of a backup set: read whole and bounded, written so that they are whole and on
 * stable storage, or not there. Plain POSIX; may block.
 */
#ifndef SET_FILE_H
#define SET_FILE_H

#include "base/err.h"

/* All of @dir/@name, at most @max bytes, with a NUL behind. free() it. NULL with @err; code
 * -ENOENT: there is none. */
char *set_file_read(const char *dir, const char *name, size_t max, size_t *ret_len,
                    struct err *err);

/* Write @dir/@name anew: to another name, flushed, renamed, and that flushed. */
MUST_CHECK bool set_file_write(const char *dir, const char *name, const char *text, size_t len,
                               struct err *err);

/* Rename within @dir, and see that onto stable storage. What has the name @to is replaced. */
MUST_CHECK bool set_file_rename(const char *dir, const char *from, const char *to,
                                struct err *err);

/* Remove; that it is not there is no error. Not flushed. */
MUST_CHECK bool set_file_remove(const char *dir, const char *name, struct err *err);

MUST_CHECK bool set_dir_sync(const char *dir, struct err *err);

#endif
