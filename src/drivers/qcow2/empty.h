/* SPDX-License-Identifier: Apache-2.0
 *
 * Emptying an overlay whose content has gone into its backing file: for commands.
 */
#ifndef QCOW2_EMPTY_H
#define QCOW2_EMPTY_H

#include "block/node.h"

/* Give up every cluster of the disk of @n, a writable node of driver qcow2 that is
 * idle: it reads as its backing file does, or as zero. Snapshots stay. (One with
 * a raw data file cannot be emptied: that file is its content.) Space goes
 * back to the file system if the node was opened with discard=unmap. On the disk
 * when it returns true; after a failure or a crash part of it is done. Coroutine on
 * the node's loop. */
MUST_CHECK bool co_qcow2_make_empty(struct node *n, struct err *err);

#endif
