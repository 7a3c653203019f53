/* SPDX-License-Identifier: Apache-2.0
 *
 * The bucket holds at most a slice's worth of bytes, so a job that was idle for
 * long does not make up for it in one burst.
 */
#include "base/ratelimit.h"

#define SLICE_NS (100 * NSEC_PER_MSEC)

/* Time times speed fits into 128 bits whatever the numbers. */
static int64_t bytes_in(uint64_t ns, uint64_t bytes_per_s)
{
    unsigned __int128 n = (unsigned __int128)ns * bytes_per_s / NSEC_PER_SEC;

    return MIN(n, (unsigned __int128)INT64_MAX / 2);
}

static int64_t capacity(const struct ratelimit *rl)
{
    return MAX(bytes_in(SLICE_NS, rl->bytes_per_s), (int64_t)1);
}

/* The time that @bytes take, rounded up. */
static uint64_t ns_for(uint64_t bytes, uint64_t bytes_per_s)
{
    unsigned __int128 ns = (unsigned __int128)bytes * NSEC_PER_SEC;

    ns = (ns + bytes_per_s - 1) / bytes_per_s;
    return MIN(ns, (unsigned __int128)UINT64_MAX / 2);
}

/* Bring `bytes` up to @now_ns. What the division cuts off stays in the clock,
 * or small steps at low speeds would never fill the bucket. */
static void refill(struct ratelimit *rl, uint64_t now_ns)
{
    uint64_t passed = now_ns > rl->at_ns ? now_ns - rl->at_ns : 0;
    int64_t more = bytes_in(passed, rl->bytes_per_s);

    if (more >= capacity(rl) - rl->bytes) {
        rl->bytes = capacity(rl);
        rl->at_ns = now_ns;
        return;
    }
    rl->bytes += more;
    rl->at_ns += ns_for(more, rl->bytes_per_s);
}

void ratelimit_set(struct ratelimit *rl, uint64_t now_ns, uint64_t bytes_per_s)
{
    uint64_t before = rl->bytes_per_s;

    if (before)
        refill(rl, now_ns);
    if (!before || !bytes_per_s)
        *rl = (struct ratelimit){ .at_ns = now_ns };
    rl->bytes_per_s = bytes_per_s;
    if (!bytes_per_s)
        return;
    if (rl->bytes < 0 && bytes_per_s < before)
        rl->bytes = (__int128)rl->bytes * bytes_per_s / before;
    rl->bytes = MIN(rl->bytes, capacity(rl));
}

uint64_t ratelimit_take(struct ratelimit *rl, uint64_t now_ns, uint64_t bytes)
{
    if (!rl->bytes_per_s)
        return 0;
    refill(rl, now_ns);
    if (rl->bytes > 0) {
        /* No request is that large; the bound keeps the sum from overflowing. */
        rl->bytes -= MIN(bytes, (uint64_t)INT64_MAX / 4);
        return 0;
    }
    uint64_t wait = ns_for(1 - rl->bytes, rl->bytes_per_s);
    uint64_t passed = now_ns - MIN(rl->at_ns, now_ns);

    return wait > passed ? wait - passed : 1;
}
