/* SPDX-License-Identifier: Apache-2.0
 *
 * A histogram of durations, or of anything else that is a number: log-linear, as
 * HdrHistogram is. Each power of two is cut into sixteen, so that what is read back is
 * at most a sixteenth too large, and never too small, whatever its size; the
 * largest value is kept exactly. 5 KiB, whatever is counted. Pure; one thread.
 */
#ifndef BASE_HISTOGRAM_H
#define BASE_HISTOGRAM_H

#include "base/base.h"

#define HISTOGRAM_SUB_BITS 4
#define HISTOGRAM_SUB (1u << HISTOGRAM_SUB_BITS)
#define HISTOGRAM_MAX_BITS 42      /* values from 2^42 on, 73 minutes in ns, share a bucket */
#define HISTOGRAM_BUCKETS ((HISTOGRAM_MAX_BITS - HISTOGRAM_SUB_BITS + 1) * HISTOGRAM_SUB + 1)

struct histogram {                 /* all zero: empty */
    uint64_t bucket[HISTOGRAM_BUCKETS];
    uint64_t max;
};

/* For what is mostly nothing: as histogram_add of 0, for the price of one addition. */
static inline void histogram_add_zero(struct histogram *h)
{
    h->bucket[0]++;
}

void histogram_add(struct histogram *h, uint64_t value);

struct histogram_summary {
    uint64_t count;
    uint64_t above_zero;           /* of them */
    uint64_t p50, p99, p999;       /* so many percent (50, 99, 99.9) are not above it */
    uint64_t max;
};

/* All zero if nothing was counted. */
void histogram_summarize(const struct histogram *h, struct histogram_summary *ret);

#endif
