/* SPDX-License-Identifier: Apache-2.0
 *
 * Two pyramids stand on the one row of bits. In `any` a bit of level k + 1 says
 * that a word of level k is not zero; in `full`, that it is all ones. Level 0 of
 * both is the bits themselves, the top level is a single word. So next_set goes
 * up `any` until something is set and down again, next_clear the same in `full`.
 *
 * Invariant, kept by set_bit, clear_bit and put_word alone: every summary bit is
 * exact, and bits behind the end are clear at every level.
 *
 * All levels lie in one anonymous mapping that is never reserved nor touched
 * before a bit is set there. Huge pages are refused: one bit would cost 2 MiB.
 */
#include "base/bitmap.h"
#include "base/mem.h"
#include <sys/mman.h>

enum { LEVELS_MAX = 11, WORD_BITS = 64 };       /* 64^11 > 2^64 */

#define ALL_ONES (~0ULL)

struct bitmap {
    uint64_t nbits;
    uint64_t count;
    unsigned top;                   /* the level that is one word */
    uint64_t *any[LEVELS_MAX];
    uint64_t *full[LEVELS_MAX];
    uint64_t nwords[LEVELS_MAX];
    size_t map_len;
};

static uint64_t bit_of(uint64_t i)
{
    return 1ULL << (i % WORD_BITS);
}

/* --- life --- */

/* Fill in nwords and top; returns the words of all levels together. */
static uint64_t plan_levels(struct bitmap *bm)
{
    uint64_t n = MAX(div_round_up(bm->nbits, WORD_BITS), (uint64_t)1), total = n;

    bm->nwords[0] = n;
    while (n > 1) {
        n = div_round_up(n, WORD_BITS);
        bm->nwords[++bm->top] = n;
        total += 2 * n;
    }
    return total;
}

struct bitmap *bitmap_new(uint64_t nbits)
{
    struct bitmap *bm = xnew(struct bitmap);

    bm->nbits = nbits;
    bm->map_len = plan_levels(bm) * sizeof(uint64_t);
    uint64_t *words = mmap(NULL, bm->map_len, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (words == MAP_FAILED) {
        free(bm);
        return NULL;
    }
    /* A kernel without huge pages says EINVAL, which is as good. */
    (void)madvise(words, bm->map_len, MADV_NOHUGEPAGE);

    bm->any[0] = bm->full[0] = words;
    words += bm->nwords[0];
    for (unsigned k = 1; k <= bm->top; k++) {
        bm->any[k] = words;
        bm->full[k] = words + bm->nwords[k];
        words += 2 * bm->nwords[k];
    }
    return bm;
}

void bitmap_free(struct bitmap *bm)
{
    if (bm)
        munmap(bm->any[0], bm->map_len);
    free(bm);
}

uint64_t bitmap_size(const struct bitmap *bm)
{
    return bm->nbits;
}

uint64_t bitmap_count(const struct bitmap *bm)
{
    return bm->count;
}

/* --- change --- */

/* Word @w of level 0 became nonzero or zero: tell the levels above, as far as
 * their own words change from or to zero by it. */
static void climb_any(struct bitmap *bm, uint64_t w, bool nonzero)
{
    for (unsigned k = 1; k <= bm->top; k++, w /= WORD_BITS) {
        uint64_t *word = &bm->any[k][w / WORD_BITS];
        uint64_t old = *word;

        *word = nonzero ? old | bit_of(w) : old & ~bit_of(w);
        if (nonzero ? old != 0 : *word != 0)
            return;
    }
}

/* The same for a word that became all ones, or ceased to be. */
static void climb_full(struct bitmap *bm, uint64_t w, bool full)
{
    for (unsigned k = 1; k <= bm->top; k++, w /= WORD_BITS) {
        uint64_t *word = &bm->full[k][w / WORD_BITS];
        uint64_t old = *word;

        *word = full ? old | bit_of(w) : old & ~bit_of(w);
        if (full ? *word != ALL_ONES : old != ALL_ONES)
            return;
    }
}

static void summarize(struct bitmap *bm, uint64_t w, uint64_t old, uint64_t new)
{
    if (UNLIKELY((old == 0) != (new == 0)))
        climb_any(bm, w, new != 0);
    if (UNLIKELY((old == ALL_ONES) != (new == ALL_ONES)))
        climb_full(bm, w, new == ALL_ONES);
}

static void put_word(struct bitmap *bm, uint64_t w, uint64_t new)
{
    uint64_t old = bm->any[0][w];

    if (old == new)
        return;
    bm->any[0][w] = new;
    bm->count += __builtin_popcountll(new);
    bm->count -= __builtin_popcountll(old);
    summarize(bm, w, old, new);
}

bool bitmap_set_bit(struct bitmap *bm, uint64_t bit)
{
    assert(bit < bm->nbits);
    uint64_t *word = &bm->any[0][bit / WORD_BITS], old = *word;

    if (old & bit_of(bit))
        return false;
    *word = old | bit_of(bit);
    bm->count++;
    summarize(bm, bit / WORD_BITS, old, *word);
    return true;
}

bool bitmap_clear_bit(struct bitmap *bm, uint64_t bit)
{
    assert(bit < bm->nbits);
    uint64_t *word = &bm->any[0][bit / WORD_BITS], old = *word;

    if (!(old & bit_of(bit)))
        return false;
    *word = old & ~bit_of(bit);
    bm->count--;
    summarize(bm, bit / WORD_BITS, old, *word);
    return true;
}

static void assert_inside(const struct bitmap *bm, uint64_t start, uint64_t len)
{
    assert(start <= bm->nbits && len <= bm->nbits - start);
}

/* The bits of word @w that lie in [start, end), which meets the word. */
static uint64_t mask_in_word(uint64_t w, uint64_t start, uint64_t end)
{
    uint64_t first = w * WORD_BITS;
    uint64_t mask = ALL_ONES;

    if (start > first)
        mask &= ALL_ONES << (start - first);
    if (end - first < WORD_BITS)
        mask &= ~(ALL_ONES << (end - first));
    return mask;
}

void bitmap_set(struct bitmap *bm, uint64_t start, uint64_t len)
{
    uint64_t end = start + len;

    assert_inside(bm, start, len);
    for (uint64_t w = start / WORD_BITS; len && w <= (end - 1) / WORD_BITS; w++)
        put_word(bm, w, bm->any[0][w] | mask_in_word(w, start, end));
}

void bitmap_clear(struct bitmap *bm, uint64_t start, uint64_t len)
{
    uint64_t end = start + len;

    assert_inside(bm, start, len);
    /* Only words that hold something: the others need not even be read. */
    for (uint64_t i = start; (i = bitmap_next_set(bm, i)) < end;) {
        uint64_t w = i / WORD_BITS;

        put_word(bm, w, bm->any[0][w] & ~mask_in_word(w, start, end));
        i = (w + 1) * WORD_BITS;
        if (i >= end)
            break;
    }
}

void bitmap_clear_all(struct bitmap *bm)
{
    if (bm->count == 0)
        return;
    /* For private anonymous memory this is documented to read as zeros after. */
    int r = madvise(bm->any[0], bm->map_len, MADV_DONTNEED);
    assert(r == 0);
    bm->count = 0;
}

void bitmap_merge(struct bitmap *dst, const struct bitmap *src)
{
    assert(dst->nbits == src->nbits);
    for (uint64_t i = 0; (i = bitmap_next_set(src, i)) < src->nbits;) {
        uint64_t w = i / WORD_BITS;

        put_word(dst, w, dst->any[0][w] | src->any[0][w]);
        i = MIN((w + 1) * WORD_BITS, src->nbits);
    }
}

void bitmap_get_words(const struct bitmap *bm, uint64_t first, uint64_t n, uint64_t *ret)
{
    for (uint64_t i = 0; i < n; i++)
        ret[i] = first + i < bm->nwords[0] ? bm->any[0][first + i] : 0;
}

void bitmap_add_words(struct bitmap *bm, uint64_t first, uint64_t n, const uint64_t *words)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t w = first + i;

        if (!words[i] || w * WORD_BITS >= bm->nbits)
            continue;
        put_word(bm, w, bm->any[0][w] | (words[i] & mask_in_word(w, 0, bm->nbits)));
    }
}

/* --- search --- */

/* The first bit at or behind @from that differs from @flip's, by the pyramid
 * whose summary bits differ likewise where the words below have such a bit. */
static uint64_t find(const struct bitmap *bm, uint64_t *const *level, uint64_t flip,
                     uint64_t from)
{
    uint64_t i = from;
    unsigned k = 0;

    for (;; k++) {                  /* up, until there is something behind i */
        uint64_t w = i / WORD_BITS;

        if (w >= bm->nwords[k])
            return bm->nbits;
        uint64_t v = (level[k][w] ^ flip) & (ALL_ONES << (i % WORD_BITS));
        if (v) {
            i = w * WORD_BITS + __builtin_ctzll(v);
            break;
        }
        if (k == bm->top)
            return bm->nbits;
        i = w + 1;
    }
    while (k-- > 0) {               /* and down to it */
        if (i >= bm->nwords[k])
            return bm->nbits;       /* a clear bit behind the end */
        i = i * WORD_BITS + __builtin_ctzll(level[k][i] ^ flip);
    }
    assert(i <= bm->nbits);         /* the first clear bit behind the end is number nbits */
    return i;
}

bool bitmap_test(const struct bitmap *bm, uint64_t bit)
{
    assert(bit < bm->nbits);
    return bm->any[0][bit / WORD_BITS] & bit_of(bit);
}

uint64_t bitmap_next_set(const struct bitmap *bm, uint64_t from)
{
    assert(from <= bm->nbits);
    return find(bm, bm->any, 0, from);
}

uint64_t bitmap_next_clear(const struct bitmap *bm, uint64_t from)
{
    assert(from <= bm->nbits);
    return find(bm, bm->full, ALL_ONES, from);
}

bool bitmap_next_range(const struct bitmap *bm, uint64_t from, uint64_t max,
                       uint64_t *ret_start, uint64_t *ret_len)
{
    uint64_t start = bitmap_next_set(bm, from);

    if (start == bm->nbits || !max)
        return false;
    *ret_len = MIN(bitmap_next_clear(bm, start) - start, max);
    *ret_start = start;
    return true;
}

bool bitmap_any_set(const struct bitmap *bm, uint64_t start, uint64_t len)
{
    assert_inside(bm, start, len);
    return len && bitmap_next_set(bm, start) < start + len;
}

bool bitmap_all_set(const struct bitmap *bm, uint64_t start, uint64_t len)
{
    assert_inside(bm, start, len);
    return !len || bitmap_next_clear(bm, start) >= start + len;
}
