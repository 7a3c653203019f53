/* SPDX-License-Identifier: Apache-2.0
 *
 * What the unit tests of qcow2 share: cmocka with the headers it wants, and
 * random numbers that a seed repeats (STILLPOINT_SEED, printed with a failure).
 */
#ifndef TESTS_UNIT_QCOW2_UNIT_H
#define TESTS_UNIT_QCOW2_UNIT_H

#include "base/base.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

struct random {
    uint64_t state;
};

/* splitmix64: every state is followed by another, any seed will do. */
static inline uint64_t random_next(struct random *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15ULL;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* 0 .. @n - 1 */
static inline uint64_t random_below(struct random *r, uint64_t n)
{
    return n ? random_next(r) % n : 0;
}

#endif
