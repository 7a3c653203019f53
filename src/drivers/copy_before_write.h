/* SPDX-License-Identifier: Apache-2.0
 *
 * What the driver `copy-before-write` shows to `snapshot-access`, which reads the
 * instant that it keeps. One loop.
 */
#ifndef DRIVERS_COPY_BEFORE_WRITE_H
#define DRIVERS_COPY_BEFORE_WRITE_H

#include "base/bitmap.h"
#include "block/graph.h"
#include "cbw/view.h"
#include "drivers/drivers.h"

/* A dirty bitmap as it was at the instant. */
struct frozen_bitmap {
    char *name;
    uint32_t granularity;      /* bytes */
    struct bitmap *bits;
    char *inconsistent;        /* why it cannot be trusted; NULL: it can */
};

/* The view of a node of this driver, as long as it is open; NULL: @n is of another driver. */
struct view *copy_before_write_view(struct node *n);
/* The bitmaps that were to be kept with it. Constant. */
const struct frozen_bitmap *copy_before_write_bitmaps(struct node *n, size_t *ret_n);
/* The node that is opened from @o, options of this driver, does not take its instant when it is
 * opened: that is copy_before_write_begin's, to be called once, with the doors of `file` shut.
 * Until then reading the view fails, and the caller sees to it that nobody takes away the
 * bitmaps that are to be kept with it. */
void copy_before_write_later(struct blockdev_options *o);
void copy_before_write_begin(struct node *n);
/* {"type": driver's name, "data": what is captured and where}. New reference. */
json_t *copy_before_write_info(struct node *n, const char *type);

#endif
