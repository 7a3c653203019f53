/* SPDX-License-Identifier: Apache-2.0
 *
 * Internal snapshots of an open qcow2 node, for those who use it: commands and the
 * control plane. docs/qcow2.md, "Snapshots", tells how they come and go.
 *
 * All of these work on a node of driver qcow2, on its loop. Those that change
 * something want it writable and idle: no requests meanwhile, views and jobs
 * neither (a disk's door is shut). What they say has happened is on the disk, and a
 * crash at any moment leaves the image as before or as after, with leaked clusters
 * at worst (I-Q11). False with a sentence in @err; nothing is changed then.
 */
#ifndef QCOW2_SNAPSHOT_H
#define QCOW2_SNAPSHOT_H

#include "block/node.h"

/* A list of SnapshotInfo (QEMU qapi/block-core.json). New reference. Does not
 * suspend. */
json_t *qcow2_snapshot_list(struct node *n);
/* Why the @i-th of that list cannot be used ("its L1 table ..."), NULL if it can. */
const char *qcow2_snapshot_flaw(struct node *n, size_t i);

/* Take a snapshot of the disk as it is now. The name is new and not empty. */
MUST_CHECK bool co_qcow2_snapshot_create(struct node *n, const char *name, struct err *err);

/* @which: an id, a name, or as qcow2_snapshots_find says (snapshot_format.h). */
MUST_CHECK bool co_qcow2_snapshot_delete(struct node *n, const char *which, struct err *err);

/* Make the disk what it was at the snapshot, in content and size; what it is now is
 * lost. The snapshot stays. */
MUST_CHECK bool co_qcow2_snapshot_apply(struct node *n, const char *which, struct err *err);

#endif
