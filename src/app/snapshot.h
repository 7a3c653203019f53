/* SPDX-License-Identifier: Apache-2.0
 *
 * What other commands show of the snapshots inside an image.
 */
#ifndef APP_SNAPSHOT_H
#define APP_SNAPSHOT_H

#include <jansson.h>

/* "Snapshot list:" as qemu-img has it, of a list of SnapshotInfo; nothing for an
 * empty one or NULL. */
void print_snapshot_list(const json_t *list);

#endif
