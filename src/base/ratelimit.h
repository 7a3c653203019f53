/* SPDX-License-Identifier: Apache-2.0
 *
 * A bucket of bytes that fills at the set speed: the speed limit of jobs and of
 * throttled nodes. Pure: the caller tells the time and does the waiting, so it
 * can be tested without either. No locks: one thread.
 */
#ifndef BASE_RATELIMIT_H
#define BASE_RATELIMIT_H

#include "base/base.h"

struct ratelimit {
    uint64_t bytes_per_s;           /* 0: unlimited */
    uint64_t at_ns;                 /* when `bytes` was true */
    int64_t bytes;                  /* may be spent now; below zero: a debt */
};

#define RATELIMIT_INIT { 0 }        /* unlimited */

/* Change the speed at time @now_ns (any clock that does not go back). Takes
 * effect at once: a debt is paid at the faster of the two speeds. A limiter that
 * was unlimited starts with an empty bucket. 0: unlimited. */
void ratelimit_set(struct ratelimit *rl, uint64_t now_ns, uint64_t bytes_per_s);

/* May @bytes be moved now? 0: yes, and they are spent. Otherwise nothing is
 * spent: wait for so many ns, or until the speed changes, and ask again. One
 * request may be larger than the bucket (a tenth of a second's bytes): it runs
 * into debt, which the next has to wait for. */
uint64_t ratelimit_take(struct ratelimit *rl, uint64_t now_ns, uint64_t bytes);

#endif
