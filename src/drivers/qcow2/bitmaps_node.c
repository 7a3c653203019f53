/* SPDX-License-Identifier: Apache-2.0
 *
 * Between an image's bitmaps and the dirty bitmaps of its node (block/dirty.h): brought
 * back when it is opened, stored when it is closed. What cannot be brought back is there
 * all the same, inconsistent, so that people see it and can remove it; it stays in the
 * image as it is. Those of kinds that are not known here are left alone.
 */
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "block/dirty.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/bitmaps.h"
#include "drivers/qcow2/qcow2.h"
#include <inttypes.h>

/* ---- opening --------------------------------------------------------------- */

/* Bytes of memory that the bits of bitmaps may take at once: a few hundred bytes of an image
 * can describe many bitmaps that are all ones. */
static uint64_t load_budget(struct qcow2 *s)
{
    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    node_get_info(s->file, info);
    return LIMIT_QCOW2_LOADED_BITMAP_BYTES + (info->allocated == UINT64_MAX ? 0 : info->allocated);
}

/* Takes what they cost from the budget. NULL with @why: they cannot be had. */
static struct bitmap *co_load_bits(struct qcow2 *s, const struct qcow2_bitmap_info *info,
                                   uint64_t *budget, struct err *why)
{
    struct bitmap *bits = NULL;

    if (info->in_use)
        err_set(why, -EINVAL, "it was not stored after the image was last written to");
    else
        (void)!co_qcow2_load_bits(s, info->name, budget, &bits, why);
    return bits;
}

static void co_bring_back(struct qcow2 *s, const struct qcow2_bitmap_info *info, uint64_t *budget)
{
    struct err why = ERR_INIT, err = ERR_INIT;
    struct dirty_bitmap_opts o = {
        .name = info->name, .granularity = (uint32_t)info->granularity,
        .disabled = !info->enabled, .persistent = true, .stored = true,
        .bits = co_load_bits(s, info, budget, &why),
    };

    if (!o.bits)
        o.inconsistent = why.text;
    if (!dirty_bitmap_add(s->node, &o, &err)) {
        /* The image's own, which nobody follows: the first write marks it. */
        log_warn("node '%s': %s", s->node->name, err.text);
        bitmap_free(o.bits);
    }
}

void co_qcow2_bring_back_bitmaps(struct qcow2 *s)
{
    uint64_t budget = qcow2_bitmaps_count(s->node) ? load_budget(s) : 0;

    for (uint32_t i = 0; i < qcow2_bitmaps_count(s->node); i++) {
        struct qcow2_bitmap_info info;

        qcow2_bitmaps_get(s->node, i, &info);
        if (info.usable)
            co_bring_back(s, &info, &budget);
    }
}

/* ---- adding, removing ---------------------------------------------------------- */

static bool cannot(const struct node *n, const char *name, struct err *err)
{
    err_prefix(err, "Can't make bitmap '%.600s' persistent in '%s': ", name, n->name);
    return false;
}

/* Bitmaps that will be stored beside those that are, and bytes of their entries. */
static uint32_t count_new(struct node *n, uint64_t *ret_bytes)
{
    struct qcow2 *s = n->state;
    uint32_t count = 0;

    *ret_bytes = 0;
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        const char *name = dirty_bitmap_name(bm);

        if (!dirty_bitmap_persistent(bm) || dirty_bitmap_inconsistent(bm) ||
            qcow2_bitmap_dir_find(&s->bitmaps, name))
            continue;
        count++;
        *ret_bytes += qcow2_bitmap_entry_bytes(name);
    }
    return count;
}

static bool can_store(struct node *n, const struct dirty_bitmap_opts *o, struct err *err)
{
    struct qcow2 *s = n->state;
    const struct qcow2_bitmap_put put = {
        .name = o->name,
        .granularity = o->granularity ? o->granularity : dirty_default_granularity(n),
    };
    uint64_t bytes;
    uint32_t count;

    if (qcow2_bitmap_dir_find(&s->bitmaps, o->name) || dirty_bitmap_find(n, o->name, NULL))
        return err_set(err, -EEXIST, "Bitmap already exists: %s", o->name);
    if (!qcow2_bitmap_check_put(n, &put, err))
        return cannot(n, o->name, err);
    count = s->bitmaps.n + count_new(n, &bytes) + 1;
    bytes += s->bitmaps.bytes + qcow2_bitmap_entry_bytes(o->name);
    if (count > LIMIT_QCOW2_BITMAPS) {
        err_set(err, -E2BIG, "Maximum number of persistent bitmaps is already reached");
        return cannot(n, o->name, err);
    }
    if (bytes > LIMIT_QCOW2_BITMAP_DIR_BYTES) {
        err_set(err, -E2BIG, "Not enough space in the bitmap directory");
        return cannot(n, o->name, err);
    }
    return true;
}

static bool co_outdate(struct node *n, const char *name, struct err *err)
{
    int r = co_qcow2_bitmap_mark(n->state, name);

    return r == 0 || err_errno(err, r, "could not write to the image of node '%s'", n->name);
}

static bool co_remove(struct node *n, const char *name, struct err *err)
{
    struct qcow2 *s = n->state;

    return !qcow2_bitmap_dir_find(&s->bitmaps, name) || co_qcow2_bitmap_remove(n, name, err);
}

/* ---- closing ------------------------------------------------------------------- */

static bool is_up_to_date(const struct qcow2 *s, const struct dirty_bitmap *bm)
{
    const struct qcow2_bitmap_entry *e = qcow2_bitmap_dir_find(&s->bitmaps, dirty_bitmap_name(bm));

    if (dirty_bitmap_inconsistent(bm))
        return dirty_bitmap_stored(bm) || !e || (e->flags & QCOW2_BITMAP_IN_USE);
    return dirty_bitmap_stored(bm) && e && !(e->flags & QCOW2_BITMAP_IN_USE);
}

/* The node's bitmaps that have to be stored, which are held (I-B8); what cannot be is told
 * in @err. */
struct to_store {
    struct qcow2_bitmap_put *v;
    struct dirty_bitmap **of;
    size_t n, cap;
    bool ok;
};

static void add_put(struct to_store *t, struct node *n, struct dirty_bitmap *bm, struct err *err)
{
    struct qcow2_bitmap_put put = {
        .name = dirty_bitmap_name(bm), .granularity = dirty_bitmap_granularity(bm),
        .enabled = dirty_bitmap_enabled(bm), .bits = dirty_bitmap_bits(bm),
    };

    if (!dirty_bitmap_check(bm, 0, t->ok ? err : NULL) ||
        !qcow2_bitmap_check_put(n, &put, t->ok ? err : NULL)) {
        t->ok = false;
        return;
    }
    dirty_bitmap_hold(bm);
    if (t->n == t->cap) {
        t->cap = MAX(2 * t->cap, (size_t)8);
        t->v = xrealloc(t->v, t->cap * sizeof(*t->v));
        t->of = xrealloc(t->of, t->cap * sizeof(struct dirty_bitmap *));
    }
    t->of[t->n] = bm;
    t->v[t->n++] = put;
}

/* One that is of no use any more may look valid in the image only if nothing was written. */
static bool co_give_up(struct node *n, struct dirty_bitmap *bm, struct err *err)
{
    bool ok;

    if (!dirty_bitmap_check(bm, DIRTY_INCONSISTENT_OK, err))
        return false;
    dirty_bitmap_hold(bm);
    ok = co_outdate(n, dirty_bitmap_name(bm), err);
    dirty_bitmap_let_go(bm);
    return ok;
}

static bool co_store_puts(struct node *n, struct to_store *t, size_t first, size_t count,
                          struct err *err)
{
    if (!co_qcow2_bitmaps_store(n, &t->v[first], count, err))
        return false;
    for (size_t i = first; i < first + count; i++)
        dirty_bitmap_set_stored(t->of[i]);
    return true;
}

/* Together, which is one change of the image; where there is no room for all, as many as
 * there is room for. */
static void co_store_held(struct node *n, struct to_store *t, struct err *err)
{
    if (t->n && !co_store_puts(n, t, 0, t->n, t->ok ? err : NULL)) {
        t->ok = false;
        for (size_t i = 0; t->n > 1 && i < t->n; i++)
            (void)!co_store_puts(n, t, i, 1, NULL);
    }
    for (size_t i = 0; i < t->n; i++)
        dirty_bitmap_let_go(t->of[i]);
}

static bool needs_storing(struct qcow2 *s, const struct dirty_bitmap *bm, bool inconsistent)
{
    return dirty_bitmap_persistent(bm) && !is_up_to_date(s, bm) &&
           !!dirty_bitmap_inconsistent(bm) == inconsistent;
}

static bool co_store(struct node *n, struct err *err)
{
    struct qcow2 *s = n->state;
    struct to_store t = { .ok = true };

    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        if (needs_storing(s, bm, false))
            add_put(&t, n, bm, err);
    }
    co_store_held(n, &t, err);
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        if (needs_storing(s, bm, true) && !co_give_up(n, bm, t.ok ? err : NULL))
            t.ok = false;
    }
    free(t.v);
    free(t.of);
    return t.ok;
}

const struct bitmap_storage qcow2_bitmap_storage = {
    .can_store = can_store,
    .co_outdate = co_outdate,
    .co_remove = co_remove,
    .co_store = co_store,
};
