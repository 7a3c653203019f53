/* SPDX-License-Identifier: Apache-2.0
 *
 * Changing which trees (L1 tables with the L2 tables and clusters below them) an
 * image has, at one instant. Private to the qcow2 driver; snapshot_change.c uses it.
 *
 * A snapshot that is taken or deleted changes refcounts all over the image, and
 * with them the COPIED flags in L2 tables: no order of writes in place keeps those
 * together. So nothing is changed in place. New refcount blocks, L2 tables, a new
 * L1 table, refcount table and snapshot table are made beside the old ones, and one
 * write inside the header's sector points it at all of them (I-Q11):
 *
 *     begin     everything to the disk; room for the tables
 *     refer     references of a tree are added or dropped, in copies of the refcount
 *               blocks; what would come to 0 keeps 1 and is noted
 *     commit    L2 tables whose flags change are copied, the tables are written,
 *               flush, the header, flush; memory is read anew; what is noted and
 *               what was replaced is given up like other dropped clusters (I-Q4)
 *     abort     memory is read anew
 *
 * The node is idle from begin to commit or abort.
 */
#ifndef QCOW2_RETREE_H
#define QCOW2_RETREE_H

#include "base/bitmap.h"
#include "drivers/qcow2/qcow2.h"

struct qcow2_retree {
    /* The new state: set before begin, and what the caller owns stays his. */
    uint64_t size;                   /* of the virtual disk */
    const uint64_t *l1;              /* entries of the new L1 table, host order; flags do
                                      *   not matter */
    uint32_t l1_entries;
    const uint8_t *snapshots;        /* the snapshot table */
    uint64_t snapshots_bytes;
    uint32_t n_snapshots;
    bool keep_old_l1;                /* it is a snapshot's now */

    /* retree.c's own. */
    struct qcow2 *s;
    struct qcow2_trees trees;        /* where it will all be */
    struct qcow2_table old_reftable;
    bool *copied_blocks;             /* by entry of the refcount table */
    struct bitmap *freed;            /* host clusters */
    void *table;                     /* a cluster, for an L2 table */
    void *slice;                     /* of refcounts */
};

/* False with @err: nothing has begun, nothing to abort. */
MUST_CHECK bool co_qcow2_retree_begin(struct qcow2 *s, struct qcow2_retree *t, struct err *err);

/* Add (or drop) a reference to each L2 table that @l1 names and all that those
 * name. Add first, then drop. */
MUST_CHECK bool co_qcow2_retree_refer(struct qcow2_retree *t, const uint64_t *l1, uint32_t n,
                                      bool drop, struct err *err);
/* Drop a reference to each cluster of the host range. */
MUST_CHECK bool co_qcow2_retree_drop(struct qcow2_retree *t, uint64_t host, uint64_t bytes,
                                     struct err *err);

/* The new state is on the disk and in memory. False with @err: it was aborted, or
 * where the header could not be written, writing has stopped. */
MUST_CHECK bool co_qcow2_retree_commit(struct qcow2_retree *t, struct err *err);
void co_qcow2_retree_abort(struct qcow2_retree *t);

#endif
