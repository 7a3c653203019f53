/* SPDX-License-Identifier: Apache-2.0
 *
 * The target of drive-backup: making its image, and opening it on the source's
 * loop. Nothing is changed on disk before everything is checked that can be, and
 * before the file's image lock is held.
 */
#ifndef QMP_BACKUP_TARGET_H
#define QMP_BACKUP_TARGET_H

#include "block/graph.h"
#include "job/backup.h"

struct backup_target_opts {
    const char *filename;    /* a path, or an nbd URI */
    const char *format;      /* NULL: the source's; with .existing: what needs no telling */
    bool existing;           /* open it as it is */
    enum backup_sync sync;   /* top and none: the image names its backing file */
    const char *backing_file, *backing_format;   /* bitmap: the same, if it shall; else NULL */
};

struct backup_target {
    struct node *node;       /* a reference */
    bool is_zero;            /* what is not written reads as zero */
    char *created;           /* a file that was not there before; else NULL */
};

/* Coroutine on @source's loop. co_backup_target_done undoes it. */
MUST_CHECK bool co_backup_target_open(struct node *source, const struct backup_target_opts *o,
                                      struct backup_target *ret, struct err *err);

/* Let go of the target; without @keep a file that was made for it is removed. */
void co_backup_target_done(struct backup_target *t, bool keep);

#endif
