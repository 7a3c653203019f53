/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a view, shared by view.c (what consumers see) and capture.c
 * (what the guest's writes meet). Every granule of the view is in one state:
 *
 *      untouched ----> claimed ----> held (captured) ----> released
 *          |              |                                   ^
 *          +--------------+-----------------------------------+
 *
 *      untouched, claimed   !done         the source has the old content (I-V1)
 *      held                  done, held   the store has it (I-V2)
 *      released              done, !held  nobody wants it (I-V3)
 *
 * What view_limit leaves out is released from the start, and "done" is said of whole units
 * without a bit for each granule.
 *
 * Neither captures nor consumers' reads go through the disk's door (I-V8). Captures
 * belong to guests' requests that are inside. Reads must go on while a door is
 * being shut: a guest inside may be waiting for the scratch space that they are
 * about to free. For an instant only writes have to stand still.
 *
 * `done` is never cleared: that is what lets a guest write through after one
 * look, and a reader be right after one look behind its read.
 */
#ifndef CBW_VIEW_IMPL_H
#define CBW_VIEW_IMPL_H

#include "base/histogram.h"
#include "block/disk.h"
#include "cbw/store.h"
#include "cbw/view.h"

#define GRANULE ((uint64_t)VIEW_GRANULE)

struct view {
    /* Never changed. */
    struct node *node;             /* held through user */
    struct edge *user;
    struct edge **below;           /* I-D3: users of the images that show through */
    size_t n_below;
    uint64_t size, granules;
    uint64_t timeout_ns;
    enum view_on_cbw_error on_error;

    unsigned refs;
    struct waitq settled;          /* woken when one reference is left */
    struct bitmap *done, *held;
    struct bitmap *wanted;         /* in units; what is not set counts as done, and a unit that is
                                    * released is set no longer. NULL: all is wanted */
    uint64_t unit_granules;
    struct store *store;
    uint64_t n_captured;           /* granules ever held */

    bool begun;
    int error;                     /* 0, or the view has ended: closed or broken */
    struct err why;
    struct list listeners;

    /* capture.c */
    struct node_notifier notifier;
    struct list captures;          /* claims: struct capture, disjoint, granules !done when made */
    unsigned n_captures;
    uint64_t capture_bytes;
    struct waitq slots;            /* guests waiting for n_captures or capture_bytes to fall */
    unsigned n_waiting;
    struct histogram added;        /* ns by which each write became longer */
    struct list spare;             /* captures that are over, for the reuse of their buffers */
    uint64_t spare_bytes;
};

/* capture.c */
int co_view_before_write(struct node_notifier *self, uint64_t off, uint64_t len);
/* Make guests that wait for captures look again: those of a range; all. */
void view_wake_range(struct view *v, uint64_t first, uint64_t n);
void view_wake_guests(struct view *v);
void view_free_spare(struct view *v);

/* view.c: end the view with @code and a sentence, once; the first reason stays. */
void view_end(struct view *v, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
void view_notify(struct view *v);

static inline uint64_t view_first_granule(uint64_t off)
{
    return off / GRANULE;
}

static inline uint64_t view_end_granule(uint64_t off, uint64_t len)
{
    return div_round_up(off + len, GRANULE);
}

/* The first granule at or behind @from that is done; the number of granules, or more: none. */
static inline uint64_t view_next_done(const struct view *v, uint64_t from)
{
    uint64_t done = bitmap_next_set(v->done, from);

    if (!v->wanted)
        return done;
    return MIN(done, MAX(from, bitmap_next_clear(v->wanted, from / v->unit_granules) *
                               v->unit_granules));
}

/* The first granule at or behind @from, before @end, that is not done; @end: none. */
static inline uint64_t view_next_open(const struct view *v, uint64_t from, uint64_t end)
{
    while (from < end) {
        from = bitmap_next_clear(v->done, from);
        if (from >= end || !v->wanted)
            break;

        uint64_t wanted = bitmap_next_set(v->wanted, from / v->unit_granules) * v->unit_granules;

        if (wanted <= from)
            break;
        from = wanted;
    }
    return MIN(from, end);
}

#endif
