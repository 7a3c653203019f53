/* SPDX-License-Identifier: Apache-2.0
 *
 * The two tables of an image that stay in memory whole, the L1 table and the
 * refcount table: arrays of 64-bit entries that lie in one piece in the file.
 * Changes are kept here and written back in chunks, with the same freeze, write,
 * thaw as the cache's (cache.h) so that a write-back has the content of one
 * moment. Belongs to the node's loop.
 */
#ifndef QCOW2_TABLE_H
#define QCOW2_TABLE_H

#include "base/base.h"

struct qcow2_table {
    uint64_t off;             /* in the file */
    uint32_t n;               /* entries */
    uint64_t *v;              /* in host order; only qcow2_table_set changes it */

    /* table.c's own */
    uint8_t *chunk_dirty;     /* a byte a chunk */
    uint32_t n_chunks, n_dirty;
    uint8_t *frozen;          /* the chunks to write, one after the other, as on disk */
    uint32_t *frozen_chunks;  /* which they are */
    uint32_t n_frozen;
};

/* An empty table of @n entries, all 0. -ENOMEM. @n is within the LIMIT_QCOW2_ of
 * its kind. */
MUST_CHECK int qcow2_table_init(struct qcow2_table *t, uint64_t off, uint32_t n);
void qcow2_table_done(struct qcow2_table *t);
/* Make it longer, with entries of 0. Nothing is frozen. -ENOMEM changes nothing. */
MUST_CHECK int qcow2_table_lengthen(struct qcow2_table *t, uint32_t n);

/* Bytes as on disk to entries and back; @bytes is n * 8. */
void qcow2_table_decode(struct qcow2_table *t, const void *disk);
void qcow2_table_encode(const struct qcow2_table *t, void *disk);

/* Change entry @i; its chunk is dirty from now on. */
void qcow2_table_set(struct qcow2_table *t, uint32_t i, uint64_t v);

static inline bool qcow2_table_is_dirty(const struct qcow2_table *t)
{
    return t->n_dirty || t->n_frozen;
}

/* As in cache.h. freeze: -ENOMEM changes nothing. */
MUST_CHECK int qcow2_table_freeze(struct qcow2_table *t);
MUST_CHECK int co_qcow2_table_write_frozen(struct qcow2_table *t,
                                           int (*co_write)(void *ctx, uint64_t off,
                                                           const void *buf, uint32_t bytes),
                                           void *ctx);
void qcow2_table_thaw(struct qcow2_table *t, bool written);

#endif
