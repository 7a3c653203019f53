/* SPDX-License-Identifier: Apache-2.0
 *
 * The image that a command fills: made, or taken as it is, and opened.
 */
#ifndef APP_CONVERT_TARGET_H
#define APP_CONVERT_TARGET_H

#include "app/image_options.h"
#include "app/target_name.h"
#include "app/watch.h"
#include "block/node.h"

struct convert_target {
    /* The caller's. */
    struct target_name *name;
    enum image_format format;
    const struct image_options *options;   /* for a new one */
    bool existing;             /* it is there, and is written into */
    uint64_t size;             /* of the disk */
    struct watch *watch;

    bool started;              /* something of it may have been written */
    bool is_zero;              /* what is not written reads as zero; with a backing file: never */
    struct node *file, *image; /* references */
};

/* False with @err; close it in either case. Coroutine. */
MUST_CHECK bool co_convert_target_open(struct convert_target *t, struct err *err);
void co_convert_target_close(struct convert_target *t);

#endif
