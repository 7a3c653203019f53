/* SPDX-License-Identifier: Apache-2.0
 *
 * Changing the sidecar file. Invariants: docs/dirty-bitmaps.md.
 *
 * A bit is in kept->bits only while it is set in the file, and there it is either on the
 * disk or its region in the log is (I-S1, I-S2): so a write whose bits are there has
 * nothing to wait for.
 */
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "sidecar/impl.h"
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

/* With this the last beat is as old as a write may be; see SIDECAR_BEAT_SLACK_NS. */
#define BEAT_NS ((int64_t)(20 * NSEC_PER_MSEC))

/* ---- life ---------------------------------------------------------------------------- */

struct sidecar *sidecar_new(struct node *n)
{
    struct sidecar *s = xnew(struct sidecar);

    s->k.ops = &sidecar_keeper_ops;
    s->node = n;
    s->f.fd = -1;
    co_mutex_init(&s->lock);
    list_init(&s->kept);
    waitq_init(&s->idle);
    loop_timer_init(&s->timer, sidecar_on_timer, s);
    s->synced_at = loop_now();
    s->used_ns = sidecar_now_ns();
    return s;
}

static void free_kept(struct kept *k)
{
    list_del(&k->link);
    bitmap_free(k->bits);
    free(k);
}

static void free_regions(struct sidecar *s)
{
    bitmap_free(MOVE(s->marked));
    bitmap_free(MOVE(s->wanted));
    bitmap_free(MOVE(s->fresh));
    bitmap_free(MOVE(s->recent));
}

void sidecar_free(struct sidecar *s)
{
    struct kept *k;

    while ((k = list_first(&s->kept, struct kept, link)))
        free_kept(k);
    free_regions(s);
    sidecar_place_done(&s->place);
    free(s);
}

bool sidecar_set_regions(struct sidecar *s, uint64_t disk_size)
{
    uint64_t n;

    s->h.disk_size = disk_size;
    s->h.region_size = sidecar_region_size(disk_size);
    n = MAX(div_round_up(disk_size, s->h.region_size), (uint64_t)1);
    free_regions(s);
    s->marked = bitmap_new(n);
    s->wanted = bitmap_new(n);
    s->fresh = bitmap_new(n);
    s->recent = bitmap_new(n);
    return s->marked && s->wanted && s->fresh && s->recent;
}

struct kept *sidecar_add_kept(struct sidecar *s, struct dirty_bitmap *bm)
{
    struct kept *k = xnew(struct kept);

    k->bm = bm;
    k->shift = (unsigned)__builtin_ctz(dirty_bitmap_granularity(bm));
    k->nbits = div_round_up(s->node->size, dirty_bitmap_granularity(bm));
    k->bits = bitmap_new(k->nbits);
    k->behind = true;
    list_push_tail(&s->kept, &k->link);
    return k;
}

/* ---- the beat ------------------------------------------------------------------------- */

bool sidecar_beat_due(const struct sidecar *s, int64_t now_ns)
{
    return now_ns - s->beat_ns >= BEAT_NS || now_ns < s->beat_ns;
}

/* I-S6. A clock that is set back sets the beat back: the times of what is written from
 * now on are by that clock, too. */
static int co_write_beat(struct sidecar *s)
{
    struct sidecar_beat b = { .time_ns = sidecar_now_ns() };
    uint8_t buf[SIDECAR_SECTOR];

    s->beat_ns = b.time_ns;
    memcpy(b.boot_id, s->h.boot_id, sizeof(b.boot_id));
    sidecar_beat_encode(&b, buf);

    s->unsynced = true;
    return co_sidecar_write(&s->f, SIDECAR_BEAT_AT, buf, sizeof(buf));
}

void co_sidecar_beat(struct sidecar *s)
{
    int r = co_write_beat(s);

    if (r == 0)
        return;
    co_mutex_lock(&s->lock);
    co_sidecar_fail(s, r, "the time of a write could not be written");
    co_mutex_unlock(&s->lock);
}

/* ---- the log --------------------------------------------------------------------------- */

int co_sidecar_write_log(struct sidecar *s)
{
    uint8_t buf[SIDECAR_BLOCK];

    for (unsigned i = 0; i < SIDECAR_LOG_SECTORS; i++)
        sidecar_log_encode(s->marked, i, buf + i * SIDECAR_SECTOR);
    return co_sidecar_write(&s->f, SIDECAR_LOG_AT, buf, sizeof(buf));
}

/* Who writes one region after the other is spared most of the waiting. */
static void foresee(struct sidecar *s, uint64_t first, uint64_t n)
{
    uint64_t all = bitmap_size(s->marked), next = first + n;

    if (first > 0 && next < all && bitmap_test(s->marked, first - 1))
        bitmap_set(s->wanted, next, MIN(all - next, (uint64_t)3));
}

int co_sidecar_mark(struct sidecar *s, uint64_t first, uint64_t n)
{
    int r;

    if (first + n > bitmap_size(s->marked))
        return -ERANGE;
    if (bitmap_all_set(s->marked, first, n))
        return 0;
    bitmap_set(s->wanted, first, n);
    foresee(s, first, n);
    bitmap_merge(s->marked, s->wanted);
    bitmap_clear_all(s->wanted);
    r = co_sidecar_write_log(s);
    return r < 0 ? r : co_sidecar_sync(&s->f);
}

/* Out of the log with all regions but those that had new bits lately. */
static int co_unmark(struct sidecar *s)
{
    uint64_t first, count;
    bool any = false;

    for (uint64_t at = 0; bitmap_next_range(s->marked, at, 1, &first, &count); at = first + 1) {
        if (bitmap_test(s->fresh, first) || bitmap_test(s->recent, first))
            continue;
        bitmap_clear_bit(s->marked, first);
        any = true;
    }
    return any ? co_sidecar_write_log(s) : 0;
}

void co_sidecar_sync_all(struct sidecar *s)
{
    int r;

    /* Whoever writes bits holds the lock from the region's mark on: what is in @recent and
     * not in @fresh afterwards is in the file before the sync begins. */
    co_mutex_lock(&s->lock);
    bitmap_clear_all(s->recent);
    bitmap_merge(s->recent, s->fresh);
    bitmap_clear_all(s->fresh);
    s->unsynced = false;
    s->synced_at = loop_now();
    co_mutex_unlock(&s->lock);

    r = s->failed ? 0 : co_sidecar_sync(&s->f);
    co_mutex_lock(&s->lock);
    if (r == 0 && !s->failed)
        r = co_unmark(s);
    if (r < 0)
        co_sidecar_fail(s, r, "it could not be flushed");
    co_mutex_unlock(&s->lock);
}

/* ---- bits -------------------------------------------------------------------------------- */

int co_sidecar_put(struct sidecar *s, struct kept *k, uint64_t block, uint64_t n,
                   const uint64_t *words)
{
    uint64_t first_word = block * SIDECAR_BLOCK_WORDS, n_words = n * SIDECAR_BLOCK_WORDS;
    uint64_t first = block * SIDECAR_BLOCK_BITS;
    uint64_t bits = MIN(k->nbits - first, n * SIDECAR_BLOCK_BITS);
    CLEANUP(free) uint8_t *buf = xmalloc(n * SIDECAR_BLOCK);
    CLEANUP(free) uint64_t *stay = xmalloc(n_words * sizeof(*stay));
    int r;

    /* I-S1: what goes is not counted on from now, what comes only when it is there. */
    bitmap_get_words(k->bits, first_word, n_words, stay);
    for (uint64_t i = 0; i < n_words; i++)
        stay[i] &= words[i];
    bitmap_clear(k->bits, first, bits);
    bitmap_add_words(k->bits, first_word, n_words, stay);
    for (uint64_t i = 0; i < n; i++)
        sidecar_block_encode(words + i * SIDECAR_BLOCK_WORDS, buf + i * SIDECAR_BLOCK);
    r = co_sidecar_write(&s->f, k->area + block * SIDECAR_BLOCK, buf, n * SIDECAR_BLOCK);
    s->unsynced = true;
    if (r == 0)
        bitmap_add_words(k->bits, first_word, n_words, words);
    return r;
}

/* Bits come to one block of the file: their regions into the log first (I-S2). */
static int co_mark_for(struct sidecar *s, const struct kept *k, uint64_t first, uint64_t last)
{
    uint64_t from = (first << k->shift) / s->h.region_size;
    uint64_t to = MIN((last << k->shift) + (1ULL << k->shift), s->h.disk_size) - 1;
    uint64_t n = to / s->h.region_size - from + 1;
    int r = co_sidecar_mark(s, from, n);

    if (r == 0)
        bitmap_set(s->fresh, from, n);
    return r;
}

/* I-S9: until the image is flushed a power cut may take back what a backup has. */
static bool must_stay(const struct sidecar *s, const struct kept *k)
{
    return k->cleared > s->flushed;
}

/* One block, if it differs. */
static int co_tidy_block(struct sidecar *s, struct kept *k, uint64_t block)
{
    uint64_t want[SIDECAR_BLOCK_WORDS], have[SIDECAR_BLOCK_WORDS];
    uint64_t base = block * SIDECAR_BLOCK_WORDS, first = UINT64_MAX, last = 0;
    int r = 0;

    dirty_bitmap_kept_words(k->bm, base, SIDECAR_BLOCK_WORDS, want);
    bitmap_get_words(k->bits, base, SIDECAR_BLOCK_WORDS, have);
    if (memcmp(want, have, sizeof(want)) == 0)
        return 0;
    for (unsigned i = 0; i < SIDECAR_BLOCK_WORDS; i++) {
        uint64_t new = want[i] & ~have[i];

        if (!new)
            continue;
        first = MIN(first, (base + i) * 64 + (uint64_t)__builtin_ctzll(new));
        last = (base + i) * 64 + 63 - (uint64_t)__builtin_clzll(new);
    }
    if (first != UINT64_MAX)
        r = co_mark_for(s, k, first, last);
    if (r < 0 || !k->bm || dirty_bitmap_inconsistent(k->bm))
        return r;
    dirty_bitmap_kept_words(k->bm, base, SIDECAR_BLOCK_WORDS, want);
    bitmap_get_words(k->bits, base, SIDECAR_BLOCK_WORDS, have);
    for (unsigned i = 0; must_stay(s, k) && i < SIDECAR_BLOCK_WORDS; i++)
        want[i] |= have[i];
    return co_sidecar_put(s, k, block, 1, want);
}

int co_sidecar_tidy(struct sidecar *s, struct kept *k)
{
    uint64_t bit = 0;
    int r = 0;

    k->behind = false;
    while (r == 0 && k->bm && !dirty_bitmap_inconsistent(k->bm) &&
           k->nbits == div_round_up(s->node->size, 1ULL << k->shift)) {
        bit = MIN(bitmap_next_set(k->bits, bit), dirty_bitmap_next_kept(k->bm, bit));
        if (bit >= k->nbits)
            break;
        r = co_tidy_block(s, k, bit / SIDECAR_BLOCK_BITS);
        bit = MIN(align_down(bit, SIDECAR_BLOCK_BITS) + SIDECAR_BLOCK_BITS, k->nbits);
        co_yield();                      /* guests' requests go first */
    }
    k->behind |= must_stay(s, k);
    return r;
}

/* ---- directory and header ------------------------------------------------------------------ */

/* Entries for bitmaps that have none, or one of another size. */
static void match_bitmaps(struct sidecar *s, bool resized)
{
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(s->node, bm));) {
        uint64_t nbits = div_round_up(s->node->size, dirty_bitmap_granularity(bm));
        struct kept *k;
        bool found = false;

        if (!dirty_bitmap_persistent(bm))
            continue;
        if (sidecar_area_bytes(nbits) > LIMIT_SIDECAR_AREA_BYTES) {
            dirty_bitmap_spoil(bm, "it is too large to be kept: use a larger granularity");
            continue;
        }
        list_for_each(k, &s->kept, link) {
            if (k->bm == bm && (resized || k->nbits != nbits))
                k->bm = NULL;
            found |= k->bm == bm;
        }
        if (!found)
            sidecar_add_kept(s, bm);
    }
}

/* The first place in the file that is free, of its size. */
static uint64_t find_place(const struct sidecar *s, const struct kept *mine)
{
    uint64_t at = SIDECAR_AREAS_AT, bytes = sidecar_area_bytes(mine->nbits);
    const struct kept *k;
    bool moved;

    do {
        moved = false;
        list_for_each(k, &s->kept, link) {
            uint64_t end = k->area + sidecar_area_bytes(k->nbits);

            if (k->has_area && at < end && k->area < at + bytes) {
                at = end;
                moved = true;
            }
        }
    } while (moved);
    return at;
}

static int co_give_area(struct sidecar *s, struct kept *k)
{
    uint64_t bytes = sidecar_area_bytes(k->nbits);
    int r = 0;

    if (!k->bits)
        return -ENOMEM;
    k->area = find_place(s, k);
    k->has_area = true;
    if (s->f.size < k->area + bytes)
        r = co_sidecar_resize(&s->f, k->area + bytes);
    if (r == 0 && bytes)
        r = co_sidecar_punch(&s->f, k->area, bytes);
    return r < 0 ? r : co_sidecar_tidy(s, k);
}

static uint32_t count_bitmaps(const struct sidecar *s)
{
    const struct kept *k;
    uint32_t n = 0;

    list_for_each(k, &s->kept, link)
        n += k->bm != NULL;
    return n;
}

static void fill_entry(const struct kept *k, bool clean, struct sidecar_entry *ret)
{
    const char *why = dirty_bitmap_inconsistent(k->bm);

    *ret = (struct sidecar_entry){
        .granularity = dirty_bitmap_granularity(k->bm), .enabled = dirty_bitmap_enabled(k->bm),
        .nbits = k->nbits, .area = k->area,
    };
    snprintf(ret->name, sizeof(ret->name), "%s", dirty_bitmap_name(k->bm));
    if (why)
        snprintf(ret->reason, sizeof(ret->reason), "%s", why);
    else if (clean)
        ret->crc = sidecar_bits_crc(k->bits);
}

static int co_write_directory(struct sidecar *s, struct sidecar_header *h)
{
    uint32_t n = count_bitmaps(s), i = 0;
    CLEANUP(free) struct sidecar_entry *v = xcalloc(n + 1, sizeof(*v));
    CLEANUP(free) uint8_t *buf = NULL;
    const struct kept *k;

    if (n > LIMIT_SIDECAR_BITMAPS)
        return -ENOSPC;
    list_for_each(k, &s->kept, link) {
        if (k->bm)
            fill_entry(k, h->state == SIDECAR_CLEAN, &v[i++]);
    }
    buf = xzalloc(sidecar_dir_bytes(v, n) + 1);
    h->dir_slot = !s->h.dir_slot;
    sidecar_dir_encode(v, n, buf, h);
    return co_sidecar_write(&s->f, SIDECAR_DIR_AT + h->dir_slot * SIDECAR_DIR_BYTES, buf,
                            h->dir_bytes);
}

/* Whether the header that counts is still the one that we wrote (I-S4). */
static int co_check_header(struct sidecar *s)
{
    uint8_t buf[SIDECAR_BLOCK];
    int r;

    if (!s->has_header)
        return 0;
    r = co_sidecar_read(&s->f, (s->h.seq & 1) * SIDECAR_BLOCK, buf, sizeof(buf));
    if (r == 0 && memcmp(buf, s->last, sizeof(buf)) != 0)
        r = -EILSEQ;
    return r;
}

static int co_write_header(struct sidecar *s, const struct sidecar_header *h)
{
    uint8_t buf[SIDECAR_BLOCK];
    int r;

    sidecar_header_encode(h, buf);
    r = co_sidecar_write(&s->f, (h->seq & 1) * SIDECAR_BLOCK, buf, sizeof(buf));
    if (r == 0)
        r = co_sidecar_sync(&s->f);
    if (r < 0)
        return r;
    memcpy(s->last, buf, sizeof(buf));
    s->h = *h;
    s->has_header = true;
    return 0;
}

static void fill_header(struct sidecar *s, enum sidecar_state state, struct sidecar_header *ret)
{
    *ret = s->h;
    ret->seq++;
    ret->state = state;
    memset(ret->reason, 0, sizeof(ret->reason));
    ret->written_ns = sidecar_now_ns();
    sidecar_boot_id(ret->boot_id);
    memcpy(ret->kind, s->place.kind, sizeof(ret->kind));
    memcpy(ret->image, s->place.image, sizeof(ret->image));
}

/* Areas of bitmaps that are gone. */
static int co_drop_gone(struct sidecar *s)
{
    struct kept *k, *next;
    int r = 0;

    list_for_each_safe(k, next, &s->kept, link) {
        if (k->bm)
            continue;
        if (k->has_area && k->nbits)
            r = co_sidecar_punch(&s->f, k->area, sidecar_area_bytes(k->nbits));
        free_kept(k);
        if (r < 0)
            break;
    }
    return r;
}

static int co_fill_areas(struct sidecar *s)
{
    struct kept *k;
    int r = 0;

    list_for_each(k, &s->kept, link) {
        if (r == 0 && k->bm && !k->has_area)
            r = co_give_area(s, k);
    }
    return r;
}

int co_sidecar_store(struct sidecar *s, enum sidecar_state state)
{
    struct node_storage storages[NODE_STORAGES_MAX];
    struct sidecar_header h;
    bool resized;
    int r = 0;

    /* The log that the old header counts on goes: not before its bits are on the disk. */
    if (s->has_header && s->h.disk_size != s->node->size)
        r = co_sidecar_sync(&s->f);
    if (r < 0)
        return r;
    s->stale = false;
    resized = s->h.disk_size != s->node->size;
    match_bitmaps(s, resized);
    /* All bitmaps are written anew (also where the number of bits has stayed: the last granule
     * may be dirty since), and on the disk before the header: the old log has
     * nothing to say of the new regions. */
    if (resized && !sidecar_set_regions(s, s->node->size))
        return -ENOMEM;
    fill_header(s, state, &h);
    memcpy(s->h.boot_id, h.boot_id, sizeof(h.boot_id));
    if (state == SIDECAR_OPEN)
        r = co_write_beat(s);
    if (r == 0)
        r = co_fill_areas(s);
    if (r == 0)
        r = co_check_header(s);
    if (r < 0)
        return r;
    /* Resized meanwhile: what was filled is of the size before. */
    if (h.disk_size != s->node->size) {
        s->stale = true;
        return 0;
    }
    h.n_storages = co_node_storages(s->node, storages);
    for (unsigned i = 0; i < h.n_storages; i++)
        h.storages[i] = storages[i].now;
    r = co_write_directory(s, &h);
    if (r == 0)
        r = co_sidecar_sync(&s->f);
    if (r == 0)
        r = co_write_header(s, &h);
    if (r == 0 && (resized || state == SIDECAR_CLEAN))
        r = co_sidecar_write_log(s);
    return r < 0 ? r : co_drop_gone(s);
}

/* ---- failing -------------------------------------------------------------------------------- */

int co_sidecar_condemn(struct sidecar *s, const char *why)
{
    struct sidecar_header h;
    int r = s->has_header ? co_check_header(s) : -EILSEQ;

    fill_header(s, SIDECAR_SPOILED, &h);
    snprintf(h.reason, sizeof(h.reason), "%s", why);
    return r < 0 ? r : co_write_header(s, &h);
}

/* In the file, so that a crash does not make it look right again; where not even that can
 * be written, the file goes. */
static void co_spoil_file(struct sidecar *s, const char *why)
{
    int r = co_sidecar_condemn(s, why);

    if (r < 0)
        r = co_sidecar_resize(&s->f, 0);
    if (r < 0)
        r = co_sidecar_file_unlink(&s->f);
    if (r < 0)
        log_error("'%s' could neither be written nor removed: remove it before this image is "
                  "opened again, for its bitmaps are wrong", s->f.path);
}

void co_sidecar_fail(struct sidecar *s, int r, const char *what)
{
    char why[SIDECAR_REASON_MAX];

    if (s->failed)
        return;
    s->failed = true;
    if (r == -EILSEQ)
        snprintf(why, sizeof(why), "the file with its bits was changed by another program");
    else
        snprintf(why, sizeof(why), "the file with its bits failed: %s: %s", what, strerror(-r));
    log_error("node '%s': '%s': %s; its persistent dirty bitmaps are inconsistent from now on, and "
              "the next backup has to be a full one. The disk goes on", s->node->name, s->f.path,
              why);
    co_spoil_file(s, why);
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(s->node, bm));) {
        if (dirty_bitmap_persistent(bm))
            dirty_bitmap_spoil(bm, "%s", why);
    }
}
