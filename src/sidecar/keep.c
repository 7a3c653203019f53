/* SPDX-License-Identifier: Apache-2.0
 *
 * The keeper as the node sees it. Writes to granules that are dirty already, which are
 * most, cost a look at the bits and at the clock. A new bit is in the file before the
 * write goes on (I-S1), and its region in the log on the disk (I-S2).
 */
#include "base/limits.h"
#include "base/mem.h"
#include "sidecar/impl.h"

static bool records(const struct kept *k)
{
    return k->bm && dirty_bitmap_enabled(k->bm) && !dirty_bitmap_inconsistent(k->bm);
}

/* The bits of @k for the range. False: it has not been told of the disk's size yet. */
static bool bits_of(const struct kept *k, uint64_t off, uint64_t len, uint64_t *ret_first,
                    uint64_t *ret_count)
{
    *ret_first = off >> k->shift;
    *ret_count = ((off + len - 1) >> k->shift) - *ret_first + 1;
    return *ret_first + *ret_count <= k->nbits;
}

/* Whether the file says already that the range is dirty. */
static bool is_kept(const struct sidecar *s, uint64_t off, uint64_t len)
{
    struct kept *k;
    uint64_t first, count;

    if (s->stale)
        return false;
    list_for_each(k, &s->kept, link) {
        if (records(k) &&
            (!bits_of(k, off, len, &first, &count) || !bitmap_all_set(k->bits, first, count)))
            return false;
    }
    return true;
}

/* ---- new bits ---------------------------------------------------------------------- */

#define BLOCKS_AT_ONCE 16u

static int co_keep_bits(struct sidecar *s, struct kept *k, uint64_t first, uint64_t count)
{
    CLEANUP(free) uint64_t *words = xmalloc(BLOCKS_AT_ONCE * SIDECAR_BLOCK);
    uint64_t last = first + count - 1;
    uint64_t block = first / SIDECAR_BLOCK_BITS, end = last / SIDECAR_BLOCK_BITS + 1;
    int r = 0;

    for (uint64_t n; block < end && r == 0 && records(k); block += n) {
        uint64_t base = block * SIDECAR_BLOCK_WORDS;

        n = MIN(end - block, (uint64_t)BLOCKS_AT_ONCE);
        bitmap_get_words(k->bits, base, n * SIDECAR_BLOCK_WORDS, words);
        for (uint64_t w = MAX(first / 64, base);
             w <= MIN(last / 64, base + n * SIDECAR_BLOCK_WORDS - 1); w++) {
            uint64_t mask = ~0ULL;

            if (w == first / 64)
                mask &= ~0ULL << (first % 64);
            if (w == last / 64)
                mask &= ~0ULL >> (63 - last % 64);
            words[w - base] |= mask;
        }
        r = co_sidecar_put(s, k, block, n, words);
    }
    return r;
}

static int co_keep_range(struct sidecar *s, uint64_t off, uint64_t len)
{
    uint64_t region = off / s->h.region_size;
    uint64_t n_regions = (off + len - 1) / s->h.region_size - region + 1;
    struct kept *k;
    uint64_t first, count;
    int r;

    /* Beyond the end: the disk has become larger. */
    if (region + n_regions > bitmap_size(s->marked))
        return s->stale ? 0 : -ERANGE;
    r = co_sidecar_mark(s, region, n_regions);
    if (r == 0)
        bitmap_set(s->fresh, region, n_regions);
    list_for_each(k, &s->kept, link) {
        if (r < 0)
            break;
        if (!records(k))
            continue;
        if (!bits_of(k, off, len, &first, &count))
            return s->stale ? 0 : -ERANGE;
        if (!bitmap_all_set(k->bits, first, count))
            r = co_keep_bits(s, k, first, count);
    }
    return r;
}

/* The regions are asked for before the lock is had: one sync is for all who wait. */
static void want_regions(struct sidecar *s, uint64_t off, uint64_t len)
{
    uint64_t region = off / s->h.region_size, end = (off + len - 1) / s->h.region_size + 1;
    uint64_t all = bitmap_size(s->wanted);

    if (region < all)
        bitmap_set(s->wanted, region, MIN(end, all) - region);
}

static void co_keep_write(struct sidecar *s, uint64_t off, uint64_t len)
{
    int r = 0;

    want_regions(s, off, len);
    co_mutex_lock(&s->lock);
    if (s->stale && !s->failed)
        r = co_sidecar_store(s, SIDECAR_OPEN);
    /* What suspends may find the directory stale again, or the bits kept by another. */
    while (r == 0 && !s->failed && !is_kept(s, off, len)) {
        r = co_keep_range(s, off, len);
        if (r == 0 && s->stale)
            r = co_sidecar_store(s, SIDECAR_OPEN);
    }
    if (r < 0)
        co_sidecar_fail(s, r, "a dirty bit could not be written");
    co_mutex_unlock(&s->lock);
}

/* The disk is in use: a beat now, and more from the timer. */
static void co_use(struct sidecar *s, int64_t now)
{
    s->used_ns = now;
    co_sidecar_beat(s);
    if (!s->timer.slot)
        sidecar_kick(s);
}

static void co_before_write(struct dirty_keeper *keeper, uint64_t off, uint64_t len)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);
    int64_t now = sidecar_now_ns();

    if (UNLIKELY(s->failed)) {
        /* Not before the file says so: it would look right after a crash, without this bit. */
        co_mutex_lock(&s->lock);
        co_mutex_unlock(&s->lock);
        return;
    }
    if (UNLIKELY(sidecar_beat_due(s, now)))
        co_use(s, now);
    if (UNLIKELY(!is_kept(s, off, len)))
        co_keep_write(s, off, len);
}

static void co_before_flush(struct dirty_keeper *keeper)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);
    int64_t now = sidecar_now_ns();

    if (!s->failed && sidecar_beat_due(s, now))
        co_use(s, now);
}

/* ---- other changes ------------------------------------------------------------------- */

static struct kept *find(struct sidecar *s, const struct dirty_bitmap *bm)
{
    struct kept *k;

    list_for_each(k, &s->kept, link) {
        if (k->bm == bm)
            return k;
    }
    return NULL;
}

static void bits_set(struct dirty_keeper *keeper, struct dirty_bitmap *bm, uint64_t first,
                     uint64_t count)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);
    struct kept *k = find(s, bm);

    /* Of a write they are there already. */
    if (!k || dirty_bitmap_inconsistent(bm) ||
        (first + count <= k->nbits && bitmap_all_set(k->bits, first, count)))
        return;
    k->behind = true;
    sidecar_kick(s);
}

static void bits_cleared(struct dirty_keeper *keeper, struct dirty_bitmap *bm)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);
    struct kept *k = find(s, bm);

    if (!k)
        return;
    k->cleared = ++s->clears;
    k->behind = true;
    sidecar_kick(s);
}

static void changed(struct dirty_keeper *keeper, struct dirty_bitmap *bm)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);

    s->stale = true;
    s->clears++;
    sidecar_kick(s);
}

static bool has_room(struct dirty_keeper *keeper, uint32_t granularity, struct err *err)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);
    uint64_t nbits = div_round_up(s->node->size, granularity);
    unsigned n = 0;

    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(s->node, bm));)
        n += dirty_bitmap_persistent(bm);
    if (n >= LIMIT_SIDECAR_BITMAPS)
        return err_set(err, -E2BIG, "Node '%s' has %u persistent bitmaps, and there is no place to "
                       "keep more", s->node->name, n);
    return granularity < DIRTY_GRANULARITY_MIN ||        /* is refused by others */
           sidecar_area_bytes(nbits) <= LIMIT_SIDECAR_AREA_BYTES ||
           err_set(err, -EFBIG, "A bitmap of node '%s' with a granularity of %u is too large to be "
                   "kept: use a larger granularity", s->node->name, granularity);
}

static void removed(struct dirty_keeper *keeper, struct dirty_bitmap *bm)
{
    struct sidecar *s = container_of(keeper, struct sidecar, k);
    struct kept *k = find(s, bm);

    if (k)
        k->bm = NULL;
    s->stale = true;
    sidecar_kick(s);
}

const struct dirty_keeper_ops sidecar_keeper_ops = {
    .co_before_write = co_before_write,
    .co_before_flush = co_before_flush,
    .bits_set = bits_set,
    .bits_cleared = bits_cleared,
    .changed = changed,
    .has_room = has_room,
    .removed = removed,
    .co_settle = co_sidecar_settle,
    .co_detach = co_sidecar_detach,
    .co_attach = co_sidecar_attach,
    .co_close = co_sidecar_close,
};
