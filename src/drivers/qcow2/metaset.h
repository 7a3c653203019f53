/* SPDX-License-Identifier: Apache-2.0
 *
 * Which host clusters hold single metadata tables (L2 tables, refcount blocks): a
 * set of cluster numbers that is asked before every write in place, so that an
 * L2 entry which points at metadata does harm to nobody. Open addressing, a probe
 * or two a question. Pure.
 */
#ifndef QCOW2_METASET_H
#define QCOW2_METASET_H

#include "base/base.h"

struct qcow2_metaset {
    uint64_t *slots;      /* 0: empty; cluster 0 is the header's and never in here */
    size_t n_slots;       /* power of two, at most half full */
    size_t n;
};

/* An empty set with room for @n. -ENOMEM. */
MUST_CHECK int qcow2_metaset_init(struct qcow2_metaset *m, size_t n);
void qcow2_metaset_done(struct qcow2_metaset *m);

/* @cluster > 0. Adding what is there changes nothing. -ENOMEM. */
MUST_CHECK int qcow2_metaset_add(struct qcow2_metaset *m, uint64_t cluster);
void qcow2_metaset_remove(struct qcow2_metaset *m, uint64_t cluster);

static inline size_t qcow2_metaset_home(const struct qcow2_metaset *m, uint64_t cluster)
{
    return (cluster * 0x9e3779b97f4a7c15ULL >> 32) & (m->n_slots - 1);
}

static inline bool qcow2_metaset_has(const struct qcow2_metaset *m, uint64_t cluster)
{
    size_t i = qcow2_metaset_home(m, cluster);

    while (m->slots[i] && m->slots[i] != cluster)
        i = (i + 1) & (m->n_slots - 1);
    return m->slots[i] != 0;
}

#endif
