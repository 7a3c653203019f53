/* SPDX-License-Identifier: Apache-2.0
 *
 * The driver `snapshot-access` for those who take an instant of several disks at once:
 * opening it, which can fail, and the instant, which cannot. One loop.
 */
#ifndef DRIVERS_SNAPSHOT_ACCESS_H
#define DRIVERS_SNAPSHOT_ACCESS_H

#include "block/graph.h"

/* A snapshot-access node over a copy-before-write node of its own, from what blockdev-add takes
 * for the two (the file of the second by name). The instant is still to come: see
 * copy_before_write_later. Coroutine. */
struct node *co_snapshot_access_open_later(const json_t *json, struct err *err);

/* The instant of such a node, and of its bitmaps: once, with the doors of the disk shut. */
void snapshot_access_begin(struct node *n);

#endif
