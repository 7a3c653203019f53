/* SPDX-License-Identifier: Apache-2.0
 *
 * What the clients of an export have asked for so far. Written by the export's loop alone and
 * read by any thread: each figure is right, and together they are of about one moment.
 */
#ifndef EXPORT_NBD_STATS_H
#define EXPORT_NBD_STATS_H

#include "base/base.h"
#include <stdatomic.h>

enum nbd_stat {
    NBD_STAT_READS, NBD_STAT_READ_BYTES,
    NBD_STAT_WRITES, NBD_STAT_WRITTEN_BYTES,       /* zero writes too */
    NBD_STAT_DISCARDS, NBD_STAT_DISCARDED_BYTES,
    NBD_STAT_FLUSHES,
    NBD_STAT_ERRORS,                               /* requests that failed; counted nowhere else */
    NBD_STATS,
};

struct nbd_stats {
    _Atomic uint64_t n[NBD_STATS];
};

/* By its one writer: cheaper than atomic_fetch_add. */
static inline void nbd_stats_add(struct nbd_stats *s, enum nbd_stat what, uint64_t n)
{
    uint64_t old = atomic_load_explicit(&s->n[what], memory_order_relaxed);

    atomic_store_explicit(&s->n[what], old + n, memory_order_relaxed);
}

static inline uint64_t nbd_stats_get(const struct nbd_stats *s, enum nbd_stat what)
{
    return atomic_load_explicit(&s->n[what], memory_order_relaxed);
}

#endif
