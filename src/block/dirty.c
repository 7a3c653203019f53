/* SPDX-License-Identifier: Apache-2.0
 *
 * Dirty bitmaps: see dirty.h for what they promise. A bitmap has one row of bits that
 * records, and while a backup works with it a second one that is frozen.
 */
#include "block/dirty.h"
#include "base/log.h"
#include "base/mem.h"
#include "block/core.h"
#include "block/keeper.h"
#include <stdio.h>
#include <string.h>

struct dirty_bitmap {
    struct list link;            /* core->bitmaps */
    struct node *node;           /* borrowed: the bitmap goes with it */
    char *name;
    unsigned shift;              /* log2 of the granularity */
    bool enabled, persistent, busy;
    bool stored;                 /* the image has it as it is */
    char *inconsistent;          /* why; NULL: it is not */
    struct bitmap *bits;         /* records */
    struct bitmap *frozen;       /* what a backup works on; NULL: none does */
    uint64_t over, frozen_over;  /* bytes of them that may be too much */
};

static struct {
    void (*fn)(void *arg, const struct dirty_bitmap *bm);
    void *arg;
} spoil_listener;

void dirty_set_spoil_listener(void (*fn)(void *arg, const struct dirty_bitmap *bm), void *arg)
{
    spoil_listener.fn = fn;
    spoil_listener.arg = arg;
}

static struct dirty_keeper *keeper_of(const struct dirty_bitmap *bm)
{
    return bm->persistent ? bm->node->core->keeper : NULL;
}

static void tell_changed(struct dirty_bitmap *bm)
{
    struct dirty_keeper *k = keeper_of(bm);

    if (k)
        k->ops->changed(k, bm);
}

/* ---- life ------------------------------------------------------------------------- */

static uint64_t bits_for(uint64_t size, unsigned shift)
{
    return div_round_up(size, 1ULL << shift);
}

static struct bitmap *new_row(const struct node *n, const char *name, unsigned shift,
                              struct err *err)
{
    struct bitmap *row = bitmap_new(bits_for(n->size, shift));

    if (!row)
        err_set(err, -ENOMEM, "No memory for bitmap '%.200s' of node '%s': with a larger "
                "granularity it needs less", name, n->name);
    return row;
}

uint32_t dirty_default_granularity(struct node *n)
{
    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    node_get_info(n, info);
    if (!info->cluster_size)
        return 64 * KiB;
    return MAX(MIN(info->cluster_size, 64 * KiB), 4 * KiB);
}

static bool check_opts(struct node *n, const struct dirty_bitmap_opts *o, uint32_t granularity,
                       struct err *err)
{
    size_t len = strlen(o->name);
    const struct node *above = node_written_by(n);

    if (above)
        return err_set(err, -EBUSY, "Node '%s' is written to by '%s' at times of its own: keep "
                       "the bitmap at '%s'", n->name, above->name, above->name);
    if (!len)
        return err_set(err, -EINVAL, "Bitmap name cannot be empty");
    if (!is_power_of_2(granularity) || granularity < DIRTY_GRANULARITY_MIN)
        return err_set(err, -EINVAL, "Granularity must be power of 2 and at least %u",
                       DIRTY_GRANULARITY_MIN);
    if (granularity > DIRTY_GRANULARITY_MAX)
        return err_set(err, -EINVAL, "Granularity must be at most %u", DIRTY_GRANULARITY_MAX);
    /* A directory of an image has no name twice, but may have very many. */
    if (!o->stored && dirty_bitmap_find(n, o->name, NULL))
        return err_set(err, -EEXIST, "Bitmap already exists: %s", o->name);
    if (len > DIRTY_NAME_MAX)
        return err_set(err, -EINVAL, "Bitmap name too long: %s", o->name);
    return true;
}

static struct bitmap *first_row(struct node *n, const struct dirty_bitmap_opts *o, unsigned shift,
                                struct err *err)
{
    if (!o->bits)
        return o->inconsistent ? bitmap_new(0) : new_row(n, o->name, shift, err);
    assert(bitmap_size(o->bits) == bits_for(n->size, shift));
    return o->bits;
}

struct dirty_bitmap *dirty_bitmap_add(struct node *n, const struct dirty_bitmap_opts *o,
                                      struct err *err)
{
    uint32_t granularity = o->granularity ? o->granularity : dirty_default_granularity(n);

    assert(n->loop == loop_current());
    if (!check_opts(n, o, granularity, err))
        return NULL;

    unsigned shift = (unsigned)__builtin_ctz(granularity);
    struct bitmap *bits = first_row(n, o, shift, err);

    if (!bits)
        return NULL;

    struct dirty_bitmap *bm = xnew(struct dirty_bitmap);

    bm->node = n;
    bm->name = xstrdup(o->name);
    bm->shift = shift;
    bm->enabled = !o->disabled;
    bm->persistent = o->persistent;
    bm->stored = o->stored;
    bm->bits = bits;
    bm->inconsistent = o->inconsistent ? xstrdup(o->inconsistent) : NULL;
    list_push_tail(&n->core->bitmaps, &bm->link);
    node_update_care(n);
    tell_changed(bm);
    return bm;
}

static void bitmap_end(struct dirty_bitmap *bm)
{
    list_del(&bm->link);
    bitmap_free(bm->bits);
    bitmap_free(bm->frozen);
    free(bm->inconsistent);
    free(bm->name);
    free(bm);
}

void dirty_bitmap_remove(struct dirty_bitmap *bm)
{
    struct node *n = bm->node;

    struct dirty_keeper *k = keeper_of(bm);

    assert(n->loop == loop_current() && !bm->busy);
    if (k)
        k->ops->removed(k, bm);
    bitmap_end(bm);
    node_update_care(n);
}

void dirty_bitmaps_end(struct node *n)
{
    struct dirty_bitmap *bm;

    while ((bm = dirty_bitmap_next(n, NULL)))
        bitmap_end(bm);
}

struct dirty_bitmap *dirty_bitmap_next(struct node *n, struct dirty_bitmap *bm)
{
    struct list *next = bm ? bm->link.next : n->core->bitmaps.next;

    return next == &n->core->bitmaps ? NULL : list_entry(next, struct dirty_bitmap, link);
}

struct dirty_bitmap *dirty_bitmap_find(struct node *n, const char *name, struct err *err)
{
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        if (strcmp(bm->name, name) == 0)
            return bm;
    }
    err_set(err, -ENOENT, "Dirty bitmap '%s' not found", name);
    return NULL;
}

/* ---- facts ------------------------------------------------------------------------ */

const char *dirty_bitmap_name(const struct dirty_bitmap *bm)
{
    return bm->name;
}

struct node *dirty_bitmap_node(const struct dirty_bitmap *bm)
{
    return bm->node;
}

uint32_t dirty_bitmap_granularity(const struct dirty_bitmap *bm)
{
    return 1u << bm->shift;
}

bool dirty_bitmap_enabled(const struct dirty_bitmap *bm)
{
    return bm->enabled;
}

bool dirty_bitmap_persistent(const struct dirty_bitmap *bm)
{
    return bm->persistent;
}

bool dirty_bitmap_busy(const struct dirty_bitmap *bm)
{
    return bm->busy;
}

const char *dirty_bitmap_inconsistent(const struct dirty_bitmap *bm)
{
    return bm->inconsistent;
}

const struct bitmap *dirty_bitmap_bits(const struct dirty_bitmap *bm)
{
    return bm->frozen ? bm->frozen : bm->bits;
}

uint64_t dirty_bitmap_count(const struct dirty_bitmap *bm)
{
    return bitmap_count(dirty_bitmap_bits(bm)) << bm->shift;
}

uint64_t dirty_bitmap_over_reported(const struct dirty_bitmap *bm)
{
    return MIN(bm->frozen ? bm->frozen_over : bm->over, dirty_bitmap_count(bm));
}

void dirty_bitmap_set_over_reported(struct dirty_bitmap *bm, uint64_t bytes)
{
    bm->over = bytes;
}

bool dirty_bitmap_must_keep(const struct dirty_bitmap *bm, uint64_t bit)
{
    return bitmap_test(bm->bits, bit) || (bm->frozen && bitmap_test(bm->frozen, bit));
}

uint64_t dirty_bitmap_next_kept(const struct dirty_bitmap *bm, uint64_t from)
{
    uint64_t next = bitmap_next_set(bm->bits, from);

    return bm->frozen ? MIN(next, bitmap_next_set(bm->frozen, from)) : next;
}

void dirty_bitmap_kept_words(const struct dirty_bitmap *bm, uint64_t first, uint64_t n,
                             uint64_t *ret)
{
    bitmap_get_words(bm->bits, first, n, ret);
    for (uint64_t i = 0; bm->frozen && i < n; i++) {
        uint64_t word;

        bitmap_get_words(bm->frozen, first + i, 1, &word);
        ret[i] |= word;
    }
}

/* ---- use --------------------------------------------------------------------------- */

bool dirty_bitmap_check(const struct dirty_bitmap *bm, unsigned allow, struct err *err)
{
    if (bm->busy && !(allow & DIRTY_BUSY_OK))
        return err_set(err, -EBUSY, "Bitmap '%s' is currently in use by another operation and "
                       "cannot be used", bm->name);
    if (bm->persistent && bm->node->read_only && !(allow & DIRTY_READ_ONLY_OK))
        return err_set(err, -EROFS, "Bitmap '%s' is readonly and cannot be modified", bm->name);
    if (bm->inconsistent && !(allow & DIRTY_INCONSISTENT_OK))
        return err_set(err, -EINVAL, "Bitmap '%s' is inconsistent and cannot be used: %s. Try "
                       "block-dirty-bitmap-remove to delete this bitmap from disk", bm->name,
                       bm->inconsistent);
    return true;
}

void dirty_bitmap_hold(struct dirty_bitmap *bm)
{
    assert(!bm->busy);
    bm->busy = true;
    node_forbid_resize(bm->node, "one of its dirty bitmaps is in use");
}

void dirty_bitmap_let_go(struct dirty_bitmap *bm)
{
    assert(bm->busy);
    bm->busy = false;
    node_allow_resize(bm->node);
}

void dirty_bitmap_enable(struct dirty_bitmap *bm)
{
    bm->enabled = true;
    bm->stored = false;
    tell_changed(bm);
}

void dirty_bitmap_disable(struct dirty_bitmap *bm)
{
    bm->enabled = false;
    bm->stored = false;
    tell_changed(bm);
}

/* ---- bits --------------------------------------------------------------------------- */

/* [first, first+count) of the bits of @bm that record. */
static void set_bits(struct dirty_bitmap *bm, uint64_t first, uint64_t count)
{
    struct dirty_keeper *k = keeper_of(bm);

    bm->stored = false;
    bitmap_set(bm->bits, first, count);
    if (k)
        k->ops->bits_set(k, bm, first, count);
}

void dirty_bitmap_set(struct dirty_bitmap *bm, uint64_t off, uint64_t len)
{
    uint64_t first, count;

    if (UNLIKELY(!len))
        return;
    first = off >> bm->shift;
    count = ((off + len - 1) >> bm->shift) - first + 1;
    /* Mostly it is one granule, and dirty. */
    if (LIKELY(count == 1) ? !bitmap_test(bm->bits, first)
                           : !bitmap_all_set(bm->bits, first, count))
        set_bits(bm, first, count);
}

void co_dirty_before_write(struct node *n, uint64_t off, uint64_t len)
{
    struct dirty_keeper *k = n->core->keeper;

    if (k)
        k->ops->co_before_write(k, off, len);
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        if (bm->enabled && !bm->inconsistent)
            dirty_bitmap_set(bm, off, len);
    }
}

struct bitmap *dirty_bitmap_new_row(const struct dirty_bitmap *bm, struct err *err)
{
    return new_row(bm->node, bm->name, bm->shift, err);
}

static struct bitmap *replace_row(struct dirty_bitmap *bm, struct bitmap *empty)
{
    struct bitmap *old = bm->bits;

    assert(bitmap_size(empty) == bitmap_size(old) && bitmap_count(empty) == 0);
    bm->bits = empty;
    bm->over = 0;
    bm->stored = false;
    return old;
}

struct bitmap *dirty_bitmap_clear(struct dirty_bitmap *bm, struct bitmap *empty)
{
    struct bitmap *were = replace_row(bm, empty);
    struct dirty_keeper *k = keeper_of(bm);

    assert(!bm->frozen);
    if (k)
        k->ops->bits_cleared(k, bm);
    return were;
}

void dirty_bitmap_add_bits(struct dirty_bitmap *bm, const struct bitmap *bits)
{
    uint64_t all = bitmap_size(bits), first, count;

    assert(all == bitmap_size(bm->bits));
    for (uint64_t at = 0; bitmap_next_range(bits, at, all, &first, &count); at = first + count)
        set_bits(bm, first, count);
}

void dirty_bitmap_merge(struct dirty_bitmap *bm, const struct dirty_bitmap *src)
{
    const struct bitmap *bits = dirty_bitmap_bits(src);
    uint64_t all = bitmap_size(bits), size = bm->node->size, first, count;

    assert(size == src->node->size && bm != src);
    for (uint64_t at = 0; bitmap_next_range(bits, at, all, &first, &count); at = first + count) {
        uint64_t from = first << src->shift;

        dirty_bitmap_set(bm, from, MIN(count << src->shift, size - from));
    }
}

void dirty_bitmap_spoil(struct dirty_bitmap *bm, const char *why_fmt, ...)
{
    char why[512];
    va_list ap;

    if (bm->inconsistent)
        return;
    va_start(ap, why_fmt);
    vsnprintf(why, sizeof(why), why_fmt, ap);
    va_end(ap);
    bm->inconsistent = xstrdup(why);
    bm->stored = false;
    tell_changed(bm);
    if (bm->node->core->findable && spoil_listener.fn)
        spoil_listener.fn(spoil_listener.arg, bm);
}

void dirty_bitmap_mend(struct dirty_bitmap *bm, struct bitmap *bits)
{
    assert(bm->inconsistent && !bm->busy &&
           bitmap_size(bits) == bits_for(bm->node->size, bm->shift));
    free(MOVE(bm->inconsistent));
    bitmap_free(bm->bits);
    bm->bits = bits;
    bm->stored = false;
    tell_changed(bm);
}

/* ---- a backup's use ------------------------------------------------------------------- */

void dirty_bitmap_freeze(struct dirty_bitmap *bm, struct bitmap *empty)
{
    dirty_bitmap_hold(bm);
    bm->frozen_over = bm->over;
    bm->frozen = replace_row(bm, empty);
}

void dirty_bitmap_thaw(struct dirty_bitmap *bm, const struct bitmap *still)
{
    struct bitmap *were = bm->frozen;
    struct dirty_keeper *k = keeper_of(bm);

    assert(were);
    if (still) {
        dirty_bitmap_add_bits(bm, still);
        bm->over = MIN(bm->frozen_over, bitmap_count(still) << bm->shift);
    }
    bm->frozen = NULL;
    if (k)
        k->ops->bits_cleared(k, bm);
    bitmap_free(were);
    dirty_bitmap_let_go(bm);
}

/* ---- the node's size -------------------------------------------------------------------- */

/* The bits of @old that are in reach of @new, and for who records all of [@size_before, end):
 * it may be in a copy with what was there before the disk was made shorter. */
static void fill_resized(struct bitmap *new, const struct dirty_bitmap *bm, uint64_t size_before)
{
    uint64_t size = MIN(bitmap_size(new), bitmap_size(bm->bits)), first, count;
    uint64_t added = size_before >> bm->shift;

    for (uint64_t at = 0; at < size && bitmap_next_range(bm->bits, at, size - at, &first, &count) &&
         first < size; at = first + count)
        bitmap_set(new, first, MIN(count, size - first));
    if (bm->enabled && bm->node->size > size_before)
        bitmap_set(new, added, bitmap_size(new) - added);
}

void dirty_bitmaps_resized(struct node *n, uint64_t size_before)
{
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        struct bitmap *bits;

        if (bm->inconsistent)
            continue;
        bits = bitmap_new(bits_for(n->size, bm->shift));
        if (!bits) {
            dirty_bitmap_spoil(bm, "no memory when the disk was resized");
            continue;
        }
        fill_resized(bits, bm, size_before);
        bitmap_free(bm->bits);
        bm->bits = bits;
        bm->stored = false;
        tell_changed(bm);
    }
}

/* ---- in the image ------------------------------------------------------------------------- */

bool dirty_bitmap_can_keep(struct node *n, const struct dirty_bitmap_opts *o, struct err *err)
{
    struct dirty_keeper *k = n->core->keeper;

    if (n->read_only)
        return err_set(err, -EROFS, "Can't make bitmap '%s' persistent in '%s': it is open "
                       "read-only", o->name, n->name);
    if (n->drv->bitmaps && !n->drv->bitmaps->can_store(n, o, err))
        return false;
    if (k)
        return k->ops->has_room(k, o->granularity ? o->granularity : dirty_default_granularity(n),
                                err);
    return n->drv->bitmaps ||
           err_set(err, -ENOTSUP, "Can't store persistent bitmaps to %s: images of format '%s' "
                   "have no place for them", n->name, n->drv->name);
}

static bool is_in_image(const struct dirty_bitmap *bm)
{
    return bm->persistent && bm->node->drv->bitmaps && !bm->node->read_only;
}

bool co_dirty_bitmap_outdate(const struct dirty_bitmap *bm, struct err *err)
{
    return !is_in_image(bm) || bm->node->drv->bitmaps->co_outdate(bm->node, bm->name, err);
}

bool co_dirty_bitmap_unkeep(struct node *n, const char *name, struct err *err)
{
    return !n->drv->bitmaps || n->drv->bitmaps->co_remove(n, name, err);
}

bool co_dirty_bitmaps_store(struct node *n, struct err *err)
{
    return !n->drv->bitmaps || n->read_only || list_empty(&n->core->bitmaps) ||
           n->drv->bitmaps->co_store(n, err);
}

bool dirty_bitmap_stored(const struct dirty_bitmap *bm)
{
    return bm->stored;
}

void dirty_bitmap_set_stored(struct dirty_bitmap *bm)
{
    bm->stored = true;
}

void co_dirty_bitmaps_close(struct node *n)
{
    struct err err;

    if (!co_dirty_bitmaps_store(n, &err))
        log_error("node '%s' is closed, and not all of its persistent dirty bitmaps could be "
                  "stored: %s. Those are missing or inconsistent when the image is opened again, "
                  "and the next backup has to be a full one", n->name, err.text);
}
