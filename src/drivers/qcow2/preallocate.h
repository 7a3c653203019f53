/* SPDX-License-Identifier: Apache-2.0
 *
 * Giving a disk in a qcow2 image its clusters before it is written: for commands.
 */
#ifndef QCOW2_PREALLOCATE_H
#define QCOW2_PREALLOCATE_H

#include "block/node.h"

enum qcow2_preallocation {
    QCOW2_PREALLOC_METADATA,     /* clusters are allocated; the file has holes there */
    QCOW2_PREALLOC_FALLOC,       /* and their space in the file is reserved */
    QCOW2_PREALLOC_FULL,         /* and zeros are written there */
};

/* Whether preallocation can be for an image: one with a backing file needs extended L2
 * entries, as whole clusters that are allocated would hide it. */
MUST_CHECK bool qcow2_can_preallocate(struct node *n, struct err *err);

/* Allocate all clusters of [off, off+len) that @n, a writable node of driver qcow2 that is
 * idle, has nothing in. The disk reads the same. On the disk when it returns true; after a
 * failure or a crash part of it is done. Coroutine on the node's loop. */
MUST_CHECK bool co_qcow2_preallocate(struct node *n, uint64_t off, uint64_t len,
                                     enum qcow2_preallocation how, struct err *err);

#endif
