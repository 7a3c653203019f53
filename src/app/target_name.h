/* SPDX-License-Identifier: Apache-2.0
 *
 * The name that a backup, or a converted image, appears under. It is written to
 * another name in the same directory and gets its own when it is whole and on
 * stable storage. Devices and NBD exports are written where they are, and so is
 * a target of a backup with sync=none, which is of use while the job runs.
 */
#ifndef APP_TARGET_NAME_H
#define APP_TARGET_NAME_H

#include "base/err.h"

struct target_name {
    const char *name;          /* as the user typed it; borrowed */
    const char *format;
    bool force;                /* an existing file may be replaced */
    bool device;               /* a block device or NBD export: exists, and is written in place */
    char *path;                /* where the copy will be: absolute, or an URI */
    char *partial;             /* where it is until then; NULL: the same place */
    bool given_up;             /* the partial file is left to the user */
    bool held;                 /* by a lock of ours on this descriptor of it */
    int held_fd;
};

struct target_name_opts {
    const char *name;
    const char *format;        /* NULL: by the name */
    bool force;
    bool in_place;             /* sync=none */
};

/* Settle where to write, and refuse what cannot end well: an existing file
 * without force, one that is open in some process (the disk itself, most
 * likely), another command under way to the same name. Nothing is touched but
 * what an earlier one that was killed has left. */
MUST_CHECK bool target_name_init(struct target_name *t, const struct target_name_opts *o,
                                   struct err *err);
void target_name_done(struct target_name *t);

/* Remove a file that a command which was killed has left, unless some process has it open as an
 * image. Whether nothing is left. */
bool target_name_remove_unused(const char *path);

/* Where the job has to write. */
const char *target_name_job_path(const struct target_name *t);

/* The job has begun: keep others away from the partial file until it has its
 * name, also when the job has let go of it. Where that cannot be done it is not. */
void target_name_hold(struct target_name *t);

/* The job has ended well: see the data on stable storage and give it its name,
 * that is on stable storage too then. */
MUST_CHECK bool target_name_publish(struct target_name *t, struct err *err);

/* The job has not ended well: remove what it has written to a file. @started: there
 * was a job. False when something of it is left: on a device, or in a file that
 * cannot be removed or is left to the user. */
bool target_name_discard(struct target_name *t, bool started);

#endif
