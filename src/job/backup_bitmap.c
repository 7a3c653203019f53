/* SPDX-License-Identifier: Apache-2.0
 *
 * A backup's bitmap: see backup_bitmap.h. The sentences, and what the modes mean,
 * are those of QEMU's blockdev.c and block/backup.c.
 */
#include "job/backup_bitmap.h"
#include "base/mem.h"

static const char *const sync_names[] = { "top", "full", "none", "incremental", "bitmap" };
static const char *const mode_names[] = { "on-success", "never", "always" };

/* ---- checks ------------------------------------------------------------------------- */

static bool by_bitmap(const struct backup_opts *o)
{
    return o->sync == BACKUP_INCREMENTAL || o->sync == BACKUP_BITMAP;
}

static bool check_new(const struct backup_opts *o, struct err *err)
{
    if (o->bitmap || o->has_bitmap_mode)
        return err_set(err, -EINVAL, "A new bitmap goes with neither a bitmap that is there nor a "
                       "bitmap sync mode");
    if (o->sync != BACKUP_FULL && o->sync != BACKUP_TOP)
        return err_set(err, -EINVAL, "A new bitmap can begin with a backup of sync mode 'full' or "
                       "'top', not '%s'", sync_names[o->sync]);
    return !dirty_bitmap_find(o->source, o->new_bitmap.name, NULL) ||
           err_set(err, -EEXIST, "Bitmap already exists: %s", o->new_bitmap.name);
}

static bool check_mode(const struct backup_opts *o, struct err *err)
{
    if (!o->has_bitmap_mode && o->sync != BACKUP_INCREMENTAL)
        return err_set(err, -EINVAL, "Bitmap sync mode must be given when providing a bitmap");
    return true;
}

bool backup_check_bitmap(const struct backup_opts *o, struct err *err)
{
    const struct dirty_bitmap *bm;

    if (o->new_bitmap.name)
        return check_new(o, err);
    if (by_bitmap(o) && !o->bitmap)
        return err_set(err, -EINVAL, "must provide a valid bitmap name for '%s' sync mode",
                       sync_names[o->sync]);
    if (o->sync == BACKUP_INCREMENTAL && o->has_bitmap_mode &&
        o->bitmap_mode != BACKUP_BITMAP_ON_SUCCESS)
        return err_set(err, -EINVAL, "Bitmap sync mode must be '%s' when using sync mode '%s'",
                       mode_names[BACKUP_BITMAP_ON_SUCCESS], sync_names[o->sync]);
    if (!o->bitmap)
        return !o->has_bitmap_mode ||
               err_set(err, -EINVAL, "Cannot specify bitmap sync mode without a bitmap");
    bm = dirty_bitmap_find(o->source, o->bitmap, NULL);
    if (!bm)
        return err_set(err, -ENOENT, "Bitmap '%s' could not be found", o->bitmap);
    if (!check_mode(o, err) || !dirty_bitmap_check(bm, 0, err))
        return false;
    if (o->sync == BACKUP_NONE)
        return err_set(err, -EINVAL, "sync mode '%s' does not produce meaningful bitmap outputs",
                       sync_names[o->sync]);
    if (o->bitmap_mode == BACKUP_BITMAP_NEVER && !by_bitmap(o))
        return err_set(err, -EINVAL, "Bitmap sync mode '%s' has no meaningful effect when combined "
                       "with sync mode '%s'", mode_names[o->bitmap_mode], sync_names[o->sync]);
    return true;
}

/* ---- life ---------------------------------------------------------------------------- */

/* A new one is all dirty until its backup has ended well: nothing of the disk is in a
 * backup yet, and that is what it says to whoever comes after a crash. */
static struct dirty_bitmap *make(const struct backup_opts *o, struct err *err)
{
    struct dirty_bitmap_opts opts = o->new_bitmap;
    struct dirty_bitmap *bm;

    opts.disabled = true;
    if (opts.persistent && !dirty_bitmap_can_keep(o->source, &opts, err))
        return NULL;
    bm = dirty_bitmap_add(o->source, &opts, err);
    if (bm)
        dirty_bitmap_set(bm, 0, node_size(o->source));
    return bm;
}

static bool get_rows(struct backup_bitmap *bb, struct err *err)
{
    struct node *n = dirty_bitmap_node(bb->bm);
    uint64_t units = div_round_up(node_size(n), bb->unit);

    bb->empty = dirty_bitmap_new_row(bb->bm, err);
    if (!bb->empty)
        return false;
    if (bb->limits)
        bb->wanted = bitmap_new(units);
    if (bb->mode == BACKUP_BITMAP_ALWAYS)
        bb->copied = bitmap_new(units);
    if ((bb->limits && !bb->wanted) || (bb->mode == BACKUP_BITMAP_ALWAYS && !bb->copied))
        return err_set(err, -ENOMEM, "Not enough memory for a backup of node '%s' by a bitmap",
                       node_name(n));
    return true;
}

bool backup_bitmap_prepare(struct backup_bitmap *bb, const struct backup_opts *o,
                           enum backup_sync sync, uint64_t unit, const char *who,
                           struct err *err)
{
    struct dirty_bitmap *bm = NULL;

    *bb = (struct backup_bitmap){ .unit = unit, .limits = sync == BACKUP_BITMAP };
    if (!backup_check_bitmap(o, err))
        return false;
    if (!o->bitmap && !o->new_bitmap.name)
        return true;
    bb->user = edge_attach_user(o->source, who, EDGE_READ, EDGE_READ | EDGE_WRITE | EDGE_RESIZE,
                                err);
    if (!bb->user)
        return false;
    bm = o->bitmap ? dirty_bitmap_find(o->source, o->bitmap, err) : make(o, err);
    if (!bm) {
        edge_detach(MOVE(bb->user));
        return false;
    }
    dirty_bitmap_hold(bm);
    bb->bm = bm;
    bb->made = !o->bitmap;
    bb->mode = bb->made || !o->has_bitmap_mode ? BACKUP_BITMAP_ON_SUCCESS : o->bitmap_mode;
    if (get_rows(bb, err))
        return true;
    backup_bitmap_drop(bb);
    return false;
}

void co_backup_bitmap_expect_more(struct backup_bitmap *bb)
{
    struct err why;

    if (bb->bm && !bb->limits && bb->mode == BACKUP_BITMAP_ALWAYS &&
        !co_dirty_bitmap_outdate(bb->bm, &why))
        dirty_bitmap_spoil(bb->bm, "%s", why.text);
}

static void let_go(struct backup_bitmap *bb)
{
    bb->bm = NULL;
    bitmap_free(MOVE(bb->empty));
    bitmap_free(MOVE(bb->wanted));
    bitmap_free(MOVE(bb->copied));
    edge_detach(MOVE(bb->user));
}

void backup_bitmap_drop(struct backup_bitmap *bb)
{
    if (!bb->bm)
        return;
    if (bb->begun)
        dirty_bitmap_thaw(bb->bm, dirty_bitmap_bits(bb->bm));
    else
        dirty_bitmap_let_go(bb->bm);
    if (bb->made)
        dirty_bitmap_remove(bb->bm);
    let_go(bb);
}

/* ---- the instant --------------------------------------------------------------------- */

/* All units that touch a dirty granule (I-W2). */
static void fill_wanted(struct backup_bitmap *bb, const struct bitmap *dirty)
{
    uint64_t granularity = dirty_bitmap_granularity(bb->bm), all = bitmap_size(dirty);
    uint64_t size = node_size(dirty_bitmap_node(bb->bm)), first, count;

    for (uint64_t at = 0; bitmap_next_range(dirty, at, all, &first, &count); at = first + count) {
        uint64_t unit = first * granularity / bb->unit;
        uint64_t end = div_round_up(MIN((first + count) * granularity, size), bb->unit);

        bitmap_set(bb->wanted, unit, end - unit);
    }
}

const struct bitmap *backup_bitmap_begin(struct backup_bitmap *bb, struct view *view)
{
    const struct bitmap *wanted = bb->wanted;

    if (!bb->bm)
        return NULL;
    dirty_bitmap_let_go(bb->bm);
    if (bb->made)
        dirty_bitmap_enable(bb->bm);
    dirty_bitmap_freeze(bb->bm, MOVE(bb->empty));
    bb->begun = true;
    if (bb->limits) {
        fill_wanted(bb, dirty_bitmap_bits(bb->bm));
        view_limit(view, MOVE(bb->wanted), bb->unit);
    }
    return wanted;
}

/* ---- the end -------------------------------------------------------------------------- */

void backup_bitmap_copied(struct backup_bitmap *bb, uint64_t off, uint64_t len)
{
    uint64_t first = off / bb->unit;

    if (bb->copied)
        bitmap_set(bb->copied, first, div_round_up(off + len, bb->unit) - first);
}

/* Make dirty what is not on the target of [at, end). */
static void keep_uncopied(struct backup_bitmap *bb, uint64_t at, uint64_t end)
{
    while (at < end) {
        uint64_t from = at, to = end;

        if (bb->vouched) {
            from = MAX(at, bitmap_next_clear(bb->copied, at / bb->unit) * bb->unit);
            if (from >= end)
                return;
            to = MIN(end, bitmap_next_set(bb->copied, from / bb->unit) * bb->unit);
        }
        dirty_bitmap_set(bb->bm, from, to - from);
        at = to;
    }
}

/* I-W5: what the job had to copy and cannot vouch for. Made dirty before the frozen
 * bits go, so that a crash in between finds both. */
static void keep_rest(struct backup_bitmap *bb)
{
    const struct bitmap *dirty = dirty_bitmap_bits(bb->bm);
    uint64_t size = node_size(dirty_bitmap_node(bb->bm)), first, count;
    uint64_t granularity = dirty_bitmap_granularity(bb->bm), all = bitmap_size(dirty);

    if (!bb->limits) {
        keep_uncopied(bb, 0, size);
        return;
    }
    for (uint64_t at = 0; bitmap_next_range(dirty, at, all, &first, &count); at = first + count)
        keep_uncopied(bb, first * granularity, MIN((first + count) * granularity, size));
}

void backup_bitmap_end(struct backup_bitmap *bb, int ret)
{
    bool synced = ret == 0 || bb->mode == BACKUP_BITMAP_ALWAYS;

    if (!bb->bm)
        return;
    if (ret < 0 && synced)
        keep_rest(bb);
    dirty_bitmap_thaw(bb->bm, synced && bb->mode != BACKUP_BITMAP_NEVER
                                  ? NULL : dirty_bitmap_bits(bb->bm));
    if (bb->made && ret < 0)
        dirty_bitmap_remove(bb->bm);
    let_go(bb);
}
