/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint bitmap: what was asked for, for bitmap.c, which takes it from the command line and
 * does it to an image, and bitmap_live.c, which has a daemon do it.
 */
#ifndef APP_BITMAP_COMMAND_H
#define APP_BITMAP_COMMAND_H

#include "app/cli.h"

struct bitmap_command {
    const char *disk;            /* an image, or with .control a disk of that daemon */
    const char *name;
    const char *control;         /* NULL: none */
    const char *format;
    bool list, json;
    bool add, remove, clear, enable, disable, is_volatile;
    struct cli_list merge;
    const char *source, *source_format;    /* of .merge; NULL: .disk */
    uint64_t granularity;        /* bytes; 0: the default */

    json_t *found;               /* with .list: BlockDirtyInfo of each; a reference */
    struct err err;
};

/* False: .err says why. */
MUST_CHECK bool bitmap_live(struct bitmap_command *c);

#endif
