/* SPDX-License-Identifier: Apache-2.0
 *
 * What the driver `copy-before-write` shows to `snapshot-access`, which reads the
 * instant that it keeps. One loop.
 */
#ifndef DRIVERS_COPY_BEFORE_WRITE_H
#define DRIVERS_COPY_BEFORE_WRITE_H

#include "base/bitmap.h"
#include "cbw/view.h"
#include "drivers/drivers.h"

/* A dirty bitmap as it was at the instant. */
struct frozen_bitmap {
    char *name;
    uint32_t granularity;      /* bytes */
    struct bitmap *bits;
};

/* The view of a node of this driver, as long as it is open; NULL: @n is of another driver. */
struct view *copy_before_write_view(struct node *n);
/* The bitmaps that were to be kept with it. Constant. */
const struct frozen_bitmap *copy_before_write_bitmaps(struct node *n, size_t *ret_n);
/* {"type": driver's name, "data": what is captured and where}. New reference. */
json_t *copy_before_write_info(struct node *n, const char *type);

#endif
