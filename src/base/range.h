/* SPDX-License-Identifier: Apache-2.0
 *
 * Arithmetic on [off, off+len) that cannot overflow. A range is valid if its end
 * fits into 64 bits; everything but range_end expects valid ones, so a number
 * from outside goes through range_end or range_inside first.
 */
#ifndef BASE_RANGE_H
#define BASE_RANGE_H

#include "base/base.h"

/* *ret = off + len; false if that does not fit. */
MUST_CHECK static inline bool range_end(uint64_t off, uint64_t len, uint64_t *ret)
{
    return !__builtin_add_overflow(off, len, ret);
}

/* Whether the range lies inside [0, size); an empty one may stand at the end.
 * For any numbers. */
static inline bool range_inside(uint64_t off, uint64_t len, uint64_t size)
{
    return off <= size && len <= size - off;
}

/* Whether they have a byte in common. An empty range overlaps nothing. */
static inline bool ranges_overlap(uint64_t a_off, uint64_t a_len, uint64_t b_off, uint64_t b_len)
{
    return a_len && b_len && a_off < b_off + b_len && b_off < a_off + a_len;
}

/* The common part; false if there is none, and the outputs are untouched. */
static inline bool range_intersect(uint64_t a_off, uint64_t a_len, uint64_t b_off, uint64_t b_len,
                                   uint64_t *ret_off, uint64_t *ret_len)
{
    if (!ranges_overlap(a_off, a_len, b_off, b_len))
        return false;
    *ret_off = MAX(a_off, b_off);
    *ret_len = MIN(a_off + a_len, b_off + b_len) - *ret_off;
    return true;
}

/* The smallest range of whole @align (a power of two) bytes that holds it; false
 * if its end does not fit. */
MUST_CHECK static inline bool range_widen(uint64_t off, uint64_t len, uint64_t align,
                                          uint64_t *ret_off, uint64_t *ret_len)
{
    uint64_t end;

    if (!range_end(off, len, &end) || align_up(end, align) < end)
        return false;
    *ret_off = align_down(off, align);
    *ret_len = align_up(end, align) - *ret_off;
    return true;
}

#endif
