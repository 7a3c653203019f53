/* SPDX-License-Identifier: Apache-2.0
 *
 * The work of stillpoint restore: copies a disk of a point to a target, in parallel, and
 * holds every leaf against its digest on the way.
 */
#ifndef APP_RESTORE_RUN_H
#define APP_RESTORE_RUN_H

#include "app/convert_target.h"
#include "app/set_image.h"

struct restore {
    /* The caller's. */
    const struct set_catalog *catalog;
    const struct set_image *image;
    struct convert_target target;      /* name, format, options, existing, watch */
    bool compare;                      /* write only what differs from what the target has */

    bool unverified;                   /* there are no digests to hold it against */
    uint64_t read, written;            /* bytes of the disk: of data; to the target */
    struct err err;
};

/* False with .err; -ECANCELED: Ctrl-C. True: all is on the target, flushed. Once a process. */
MUST_CHECK bool restore_run(struct restore *r);

#endif
