/* SPDX-License-Identifier: Apache-2.0
 *
 * The work of stillpoint convert: an offline full backup (job/backup.h), in this
 * process.
 */
#ifndef APP_CONVERT_RUN_H
#define APP_CONVERT_RUN_H

#include "app/image_options.h"
#include "app/offline.h"
#include "app/target_name.h"
#include "app/watch.h"

enum convert_end {
    CONVERT_DONE,              /* everything is on the target, flushed */
    CONVERT_FAILED,            /* .err tells why */
    CONVERT_CANCELLED,
    CONVERT_GIVEN_UP,          /* the user would not wait for what hangs */
};

struct convert {
    /* The caller's. */
    struct offline_open source;
    struct target_name *target;
    enum image_format format;  /* of the target */
    const struct image_options *options;   /* with the format of a backing file, if there is one */
    bool compress, allocate;
    bool existing;             /* the target is there, and is written into */
    bool target_is_zero;       /* the user says so */
    uint64_t parallel;         /* 0: choose */
    uint64_t speed;            /* bytes a second; 0: no limit */
    struct watch *watch;

    bool started;              /* something of the target may have been written */
    uint64_t size, copied;     /* of the disk; of it so much was data */
    struct err err;
};

/* Once a process. */
enum convert_end convert_run(struct convert *c);

#endif
