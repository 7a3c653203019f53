/* SPDX-License-Identifier: Apache-2.0
 *
 * Bitmaps of disks: bit i stands for granule i. They are sparse and know where
 * they are empty or full: a new one costs address space only (64 TiB in 4 KiB
 * granules opens at once), memory is touched where bits are set, and searches
 * skip empty and full stretches 64, 4096, ... words at a time. Setting or
 * testing a bit takes a few nanoseconds.
 *
 * Pure and without locks: a bitmap belongs to one thread. Ranges are in bits
 * and must lie inside the bitmap; the caller turns bytes into granules.
 */
#ifndef BASE_BITMAP_H
#define BASE_BITMAP_H

#include "base/base.h"

struct bitmap;

/* All clear. NULL: no memory (or no address space). @nbits may be 0. */
struct bitmap *bitmap_new(uint64_t nbits);
void bitmap_free(struct bitmap *bm);
DEFINE_CLEANUP(struct bitmap *, bitmap_free);

uint64_t bitmap_size(const struct bitmap *bm);

/* How many bits are set. O(1). */
uint64_t bitmap_count(const struct bitmap *bm);

bool bitmap_test(const struct bitmap *bm, uint64_t bit);

/* Set, clear one bit; returns whether it changed. */
bool bitmap_set_bit(struct bitmap *bm, uint64_t bit);
bool bitmap_clear_bit(struct bitmap *bm, uint64_t bit);

void bitmap_set(struct bitmap *bm, uint64_t start, uint64_t len);
void bitmap_clear(struct bitmap *bm, uint64_t start, uint64_t len);

/* Clear everything and give the memory back. */
void bitmap_clear_all(struct bitmap *bm);

/* The first set (clear) bit at or behind @from, which may be the size; the
 * bitmap's size when there is none. */
uint64_t bitmap_next_set(const struct bitmap *bm, uint64_t from);
uint64_t bitmap_next_clear(const struct bitmap *bm, uint64_t from);

/* The first run of set bits at or behind @from, at most @max bits of it.
 * False: there is none, or @max is 0, and the outputs are untouched. */
bool bitmap_next_range(const struct bitmap *bm, uint64_t from, uint64_t max,
                       uint64_t *ret_start, uint64_t *ret_len);

/* Whether any (all) bits of the range are set. For an empty range: false (true). */
bool bitmap_any_set(const struct bitmap *bm, uint64_t start, uint64_t len);
bool bitmap_all_set(const struct bitmap *bm, uint64_t start, uint64_t len);

/* @n words of 64 bits, the first bit lowest, from bit @first * 64 on; zeros behind the end. */
void bitmap_get_words(const struct bitmap *bm, uint64_t first, uint64_t n, uint64_t *ret);
/* Set what is set in such words. Bits behind the end are ignored. */
void bitmap_add_words(struct bitmap *bm, uint64_t first, uint64_t n, const uint64_t *words);

/* Set in @dst what is set in @src. They have the same size. */
void bitmap_merge(struct bitmap *dst, const struct bitmap *src);

#endif
