/* SPDX-License-Identifier: Apache-2.0
 *
 * The work list of a backup: the scanner, captured units, and the bookkeeping of
 * what was taken.
 */
#include "job/worklist.h"
#include "base/bitmap.h"
#include "base/mem.h"
#include "loop/co_sync.h"

/* The scanner runs ahead by at most this many extents. */
#define AHEAD 1024
#define YIELD_EVERY 16             /* steps, which need not suspend by themselves */
#define MAX_ZERO (64 * MiB)        /* longest WORK_ZERO */
#define LOOK_BY_READING (256 * KiB)    /* a dirty stretch that is not worth a question first */

struct worklist {
    struct worklist_opts o;
    unsigned refs;                 /* the owner's and the scanner's */
    uint64_t size, units;
    const struct bitmap *wanted;   /* units that are to be done; NULL: all */
    uint64_t wanted_bytes;
    struct bitmap *taken;
    bool freed;                    /* by its owner: the scanner stops */

    /* Ring of extents that the scanner found, whole units each. They may hold
     * units that were taken since: whoever takes one out looks again. */
    struct work ahead[AHEAD];
    unsigned head, n;

    bool scanned;                  /* the scanner came to the end */
    uint64_t scan_unit;            /* units below were scanned */
    struct waitq room;             /* the scanner waits for room in the ring */

    uint64_t captured_from;        /* where the next look for captured units begins */
    bool finishing;                /* captured_only: worklist_finish was called */
    uint64_t found, done;          /* bytes */
};

static void unref(struct worklist *w)
{
    if (--w->refs)
        return;
    bitmap_free(w->taken);
    free(w);
}

/* ---- units ------------------------------------------------------------------------- */

static uint64_t unit_off(const struct worklist *w, uint64_t unit)
{
    return MIN(unit * w->o.unit, w->size);
}

static uint64_t unit_bytes(const struct worklist *w, uint64_t first, uint64_t n)
{
    return unit_off(w, first + n) - unit_off(w, first);
}

static void take(struct worklist *w, enum work_kind kind, uint64_t first, uint64_t n,
                 struct work *ret)
{
    bitmap_set(w->taken, first, n);
    *ret = (struct work){ kind, unit_off(w, first), unit_bytes(w, first, n), 0 };
}

/* The target needs nothing of these units, none of which is taken. */
static void skip(struct worklist *w, uint64_t first, uint64_t n)
{
    bitmap_set(w->taken, first, n);
    view_release(w->o.view, unit_off(w, first), unit_bytes(w, first, n));
    w->o.copied(w->o.copied_arg, unit_off(w, first), unit_bytes(w, first, n));
}

/* The next unit to be looked at, at or behind @unit, and where units like it end. */
static uint64_t next_unit(const struct worklist *w, uint64_t unit)
{
    while (unit < w->units) {
        unit = bitmap_next_clear(w->taken, unit);
        if (!w->wanted || unit == w->units || bitmap_test(w->wanted, unit))
            break;
        unit = bitmap_next_set(w->wanted, unit);
    }
    return unit;
}

static uint64_t end_of_run(const struct worklist *w, uint64_t unit)
{
    uint64_t end = bitmap_next_set(w->taken, unit);

    return w->wanted ? MIN(end, bitmap_next_clear(w->wanted, unit)) : end;
}

/* ---- the scanner -------------------------------------------------------------------- */

enum found { FOUND_DATA, FOUND_ZERO, FOUND_NOTHING };

static enum found classify(const struct worklist *w, const struct block_status *st)
{
    if (w->o.base && !(st->flags & STATUS_ALLOCATED))
        return FOUND_NOTHING;
    if ((st->flags & STATUS_ZERO) && !w->o.zeros_are_data)
        return w->o.target_is_zero ? FOUND_NOTHING : FOUND_ZERO;
    return FOUND_DATA;
}

static void push(struct worklist *w, enum work_kind kind, uint64_t first, uint64_t n)
{
    struct work *last = w->n ? &w->ahead[(w->head + w->n - 1) % AHEAD] : NULL;
    struct work e = { kind, unit_off(w, first), unit_bytes(w, first, n), 0 };

    if (kind == WORK_COPY)
        w->found += e.len;
    if (last && last->kind == kind && last->off + last->len == e.off) {
        last->len += e.len;
        return;
    }
    assert(w->n < AHEAD);
    w->ahead[(w->head + w->n++) % AHEAD] = e;
}

/* Look at the units from w->scan_unit on, none of which is taken up to @end.
 * Units of which only a part is to be left out are copied whole. */
static void co_scan_step(struct worklist *w, struct view *view, uint64_t end)
{
    uint64_t first = w->scan_unit, off = unit_off(w, first);
    uint64_t len = unit_off(w, end) - off, n;
    enum found found = FOUND_DATA;
    struct block_status st;

    /* What the source cannot tell, or not cheaper, is found out by reading it. */
    if ((w->wanted && len <= LOOK_BY_READING) || co_view_status(view, w->o.base, off, len, &st) < 0)
        st = (struct block_status){ .flags = STATUS_DATA, .len = w->wanted ? len : w->o.unit };
    if (w->freed || view_error(view, NULL))
        return;
    /* Some of it may have been taken while the source was asked. */
    len = MIN(unit_off(w, bitmap_next_set(w->taken, first)) - off, MIN(len, st.len));
    n = len == w->size - off ? w->units - first : len / w->o.unit;
    if (n)
        found = classify(w, &st);
    if (found == FOUND_DATA)
        n = div_round_up(len, w->o.unit);

    w->scan_unit += n;
    if (found == FOUND_NOTHING)
        skip(w, first, n);
    else if (n)
        push(w, found == FOUND_ZERO ? WORK_ZERO : WORK_COPY, first, n);
}

static void co_scan(void *arg)
{
    struct worklist *w = arg;
    struct view *view = view_ref(w->o.view);
    unsigned steps = 0;
    bool was_empty;

    while (!w->freed && !view_error(view, NULL)) {
        w->scan_unit = next_unit(w, w->scan_unit);
        if (w->scan_unit >= w->units) {
            w->scanned = true;
            break;
        }
        if (w->n == AHEAD) {
            co_waitq_wait(&w->room);
            continue;
        }
        was_empty = w->n == 0;
        co_scan_step(w, view, end_of_run(w, w->scan_unit));
        if (was_empty && w->n && !w->freed)
            w->o.kick(w->o.kick_arg);
        if (++steps % YIELD_EVERY == 0)
            co_yield();
    }
    if (!w->freed)
        w->o.kick(w->o.kick_arg);
    view_unref(view);
    node_unref(w->o.base);
    unref(w);
}

/* ---- making ---------------------------------------------------------------------------- */

struct worklist *worklist_new(const struct worklist_opts *o)
{
    struct worklist *w = xnew(struct worklist);

    assert(is_power_of_2(o->unit) && o->unit >= VIEW_GRANULE && is_aligned(o->max_copy, o->unit));
    w->o = *o;
    w->refs = 1;
    w->size = view_size(o->view);
    w->units = div_round_up(w->size, o->unit);
    w->taken = bitmap_new(w->units);
    waitq_init(&w->room);
    if (!w->taken) {
        unref(w);
        return NULL;
    }
    return w;
}

void worklist_limit(struct worklist *w, const struct bitmap *wanted)
{
    if (!wanted)
        return;
    w->wanted = wanted;
    w->wanted_bytes = bitmap_count(wanted) * w->o.unit;
    if (w->units && bitmap_test(wanted, w->units - 1))
        w->wanted_bytes -= w->units * w->o.unit - w->size;
}

void worklist_lengthen(struct worklist *w, uint64_t max_copy)
{
    w->o.max_copy = MAX(w->o.max_copy, align_down(max_copy, w->o.unit));
}

void worklist_start(struct worklist *w)
{
    if (w->o.captured_only)
        return;
    w->refs++;
    if (w->o.base)
        node_ref(w->o.base);
    co_start(co_scan, w);
}

void worklist_free(struct worklist *w)
{
    if (!w)
        return;
    w->freed = true;
    waitq_wake_all(&w->room);
    unref(w);
}

/* ---- handing out ------------------------------------------------------------------------- */

/* Captured units that are not taken yet, at or behind @from. */
static bool next_captured(struct worklist *w, uint64_t from, uint64_t *ret_first, uint64_t *ret_n)
{
    uint64_t off, len;

    while (view_next_captured(w->o.view, from, &off, &len)) {
        uint64_t first = off / w->o.unit, end = div_round_up(off + len, w->o.unit);

        first = bitmap_next_clear(w->taken, first);
        if (first < end) {
            *ret_first = first;
            *ret_n = MIN(end, bitmap_next_set(w->taken, first)) - first;
            return true;
        }
        from = unit_off(w, MIN(first, w->units));
        if (first >= w->units)
            return false;
    }
    return false;
}

static bool take_captured(struct worklist *w, struct work *ret)
{
    uint64_t first, n;

    if (!next_captured(w, w->captured_from, &first, &n) && !next_captured(w, 0, &first, &n))
        return false;
    n = MIN(n, w->o.max_copy / w->o.unit);
    if (w->o.captured_only || first >= w->scan_unit)
        w->found += unit_bytes(w, first, n);
    take(w, WORK_COPY, first, n, ret);
    w->captured_from = ret->off + ret->len;
    return true;
}

/* The first extent of the ring without what was taken since; false: it was all
 * taken, and is dropped. */
static bool take_scanned(struct worklist *w, struct work *ret)
{
    struct work *e = &w->ahead[w->head];
    uint64_t first = e->off / w->o.unit, end = div_round_up(e->off + e->len, w->o.unit);
    uint64_t max = e->kind == WORK_COPY ? w->o.max_copy : MAX(MAX_ZERO, w->o.unit);
    bool got = false;

    first = MIN(end, bitmap_next_clear(w->taken, first));
    if (first < end) {
        uint64_t n = MIN(end, bitmap_next_set(w->taken, first)) - first;

        take(w, e->kind, first, MIN(n, max / w->o.unit), ret);
        got = true;
        first = MIN(end, first + MIN(n, max / w->o.unit));
    }
    e->off = unit_off(w, first);
    e->len = unit_off(w, end) - e->off;
    if (first == end) {
        w->head = (w->head + 1) % AHEAD;
        w->n--;
        waitq_wake_all(&w->room);
    }
    return got;
}

static bool past_watermark(const struct worklist *w)
{
    struct view_stats st;

    view_get_stats(w->o.view, &st);
    return st.memory + st.file >= w->o.watermark;
}

bool worklist_drains(const struct worklist *w)
{
    return w->o.captured_only ? !w->o.in_target : past_watermark(w);
}

enum worklist_answer worklist_next(struct worklist *w, struct work *ret)
{
    if (w->o.captured_only) {
        if (!w->o.in_target && take_captured(w, ret))
            return WORKLIST_WORK;
        return w->finishing ? WORKLIST_END : WORKLIST_LATER;
    }
    if (past_watermark(w) && take_captured(w, ret))
        return WORKLIST_WORK;
    while (w->n) {
        if (take_scanned(w, ret))
            return WORKLIST_WORK;
    }
    return w->scanned ? WORKLIST_END : WORKLIST_LATER;
}

void worklist_done(struct worklist *w, const struct work *work)
{
    view_release(w->o.view, work->off, work->len);
    w->o.copied(w->o.copied_arg, work->off, work->len);
    if (w->wanted || work->kind == WORK_COPY)
        w->done += work->len;
}

void worklist_finish(struct worklist *w)
{
    uint64_t at = 0, off, len;

    assert(w->o.captured_only);
    w->finishing = true;
    if (w->o.in_target)
        return;
    /* I-W4: units without captures are given up as a whole; those with one stay
     * protected until they have been copied. */
    while (at < w->units) {
        uint64_t first = w->units, end = w->units;

        if (view_next_captured(w->o.view, unit_off(w, at), &off, &len)) {
            first = off / w->o.unit;
            end = div_round_up(off + len, w->o.unit);
        }
        while (at < first) {
            uint64_t gap = bitmap_next_clear(w->taken, at);
            uint64_t n = MIN(first, bitmap_next_set(w->taken, gap)) - MIN(first, gap);

            if (n)
                skip(w, gap, n);
            at = MIN(first, gap) + n;
        }
        at = end;
    }
}

void worklist_progress(const struct worklist *w, uint64_t *ret_current, uint64_t *ret_total)
{
    uint64_t rest = 0;

    if (w->wanted) {
        *ret_current = w->done;
        *ret_total = w->wanted_bytes;
        return;
    }
    if (!w->o.captured_only && !w->scanned) {
        rest = w->size - unit_off(w, MIN(w->scan_unit, w->units));
        if (w->o.expected != UINT64_MAX)
            rest = MIN(rest, w->o.expected > w->found ? w->o.expected - w->found : 0);
    }
    *ret_current = w->done;
    *ret_total = MAX(w->done, w->found + rest);
}
