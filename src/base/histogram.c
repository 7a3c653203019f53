/* SPDX-License-Identifier: Apache-2.0
 *
 * Log-linear histogram: see histogram.h.
 */
#include "base/histogram.h"

/* Values below HISTOGRAM_SUB have a bucket each; of a larger one the highest
 * HISTOGRAM_SUB_BITS + 1 bits say which. */
static unsigned bucket_of(uint64_t value)
{
    unsigned shift;

    if (value < HISTOGRAM_SUB)
        return (unsigned)value;
    shift = 63 - (unsigned)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
    return MIN((shift + 1) * HISTOGRAM_SUB + (unsigned)((value >> shift) - HISTOGRAM_SUB),
               HISTOGRAM_BUCKETS - 1);
}

/* The largest value of a bucket. */
static uint64_t top_of(unsigned bucket)
{
    unsigned shift = MAX(bucket / HISTOGRAM_SUB, 1u) - 1;
    uint64_t first = bucket < HISTOGRAM_SUB ? bucket : HISTOGRAM_SUB + bucket % HISTOGRAM_SUB;

    return ((first + 1) << shift) - 1;
}

void histogram_add(struct histogram *h, uint64_t value)
{
    h->bucket[bucket_of(value)]++;
    h->max = MAX(h->max, value);
}

/* The value that @permille of @count are not above. */
static uint64_t quantile(const struct histogram *h, uint64_t count, unsigned permille)
{
    uint64_t rank = MAX(count - count / 1000 * (1000 - permille) -
                        count % 1000 * (1000 - permille) / 1000, (uint64_t)1);
    uint64_t seen = 0;

    for (unsigned i = 0; i < HISTOGRAM_BUCKETS - 1; i++) {
        seen += h->bucket[i];
        if (seen >= rank)
            return MIN(top_of(i), h->max);
    }
    return h->max;
}

void histogram_summarize(const struct histogram *h, struct histogram_summary *ret)
{
    uint64_t count = 0;

    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
        count += h->bucket[i];
    *ret = (struct histogram_summary){ .count = count, .max = h->max };
    if (!count)
        return;
    ret->above_zero = count - h->bucket[0];
    ret->p50 = quantile(h, count, 500);
    ret->p99 = quantile(h, count, 990);
    ret->p999 = quantile(h, count, 999);
}
