/* SPDX-License-Identifier: Apache-2.0
 *
 * What other commands show of the snapshots inside an image.
 */
#ifndef APP_SNAPSHOT_H
#define APP_SNAPSHOT_H

#include "base/err.h"
#include <jansson.h>

/* Let @options, those of a node of @format for @image, mean the image as it was at
 * @snapshot inside it; NULL: as it is. False with @err: the format has none. */
MUST_CHECK bool snapshot_choose(json_t *options, const char *image, const char *format,
                                const char *snapshot, struct err *err);

/* "Snapshot list:" as qemu-img has it, of a list of SnapshotInfo; nothing for an
 * empty one or NULL. */
void print_snapshot_list(const json_t *list);

#endif
