/* SPDX-License-Identifier: Apache-2.0
 *
 * What a backup has to copy, in what order. The disk is divided into units (a
 * multiple of the target's cluster). Each unit is taken at most once (I-W1):
 * handed out as work, or skipped because the target needs nothing of it. Only
 * who took a unit may release it in the view.
 *
 * full, top: a scanner walks the view's block status ahead of the copier, in a
 * coroutine of its own, so that a source that hangs hangs nobody else. Captured
 * units go first while the view's scratch store is past its watermark. none:
 * captured units only. By a bitmap: the scanner looks only at what that wants.
 *
 * Nothing here suspends. One loop.
 */
#ifndef JOB_WORKLIST_H
#define JOB_WORKLIST_H

#include "cbw/view.h"

struct worklist;

enum work_kind {
    WORK_COPY,        /* read through the view, write to the target */
    WORK_ZERO,        /* make the target read as zero */
    WORK_FLUSH,       /* flush the target; never handed out here */
};

struct work {
    enum work_kind kind;
    uint64_t off, len;
    unsigned tries;   /* that have failed so far */
};

struct worklist_opts {
    struct view *view;             /* borrowed; outlives the list's owner, not its scanner */
    bool captured_only;            /* sync=none */
    bool in_target;                /* and what is captured is in the target already: nothing is to
                                    * be done but to wait for the end */
    struct node *base;             /* sync=top: what is decided from here down is left out */
    bool target_is_zero;           /* zeros need not be written */
    bool zeros_are_data;           /* and are copied as such */
    uint64_t unit;                 /* a power of two, >= VIEW_GRANULE */
    uint64_t max_copy;             /* longest WORK_COPY, a multiple of the unit */
    uint64_t watermark;            /* bytes in the store from which on captured units go first */
    uint64_t expected;             /* bytes of data to be found, UINT64_MAX: no idea */
    /* Of these units nothing is left to be done: worklist_done, or the target needs nothing. */
    void (*copied)(void *arg, uint64_t off, uint64_t len);
    void *copied_arg;
    void (*kick)(void *arg);       /* there may be work again after WORKLIST_LATER */
    void *kick_arg;
};

struct worklist *worklist_new(const struct worklist_opts *o);
/* Before start: only what is set in @wanted (borrowed from the view, which is limited to the
 * same), a bit for each unit, is to be done. NULL: everything may be. */
void worklist_limit(struct worklist *w, const struct bitmap *wanted);
/* The view has begun: look for what is to be copied. Once. */
void worklist_start(struct worklist *w);
/* From now on a WORK_COPY may be as long as this, in whole units. */
void worklist_lengthen(struct worklist *w, uint64_t max_copy);
/* The owner is done with it. Takes NULL. */
void worklist_free(struct worklist *w);

enum worklist_answer { WORKLIST_WORK, WORKLIST_LATER, WORKLIST_END };
/* The next work, its units taken. LATER: none now; kick tells when to ask again.
 * END: there will be none any more (not for captured_only before worklist_finish). */
enum worklist_answer worklist_next(struct worklist *w, struct work *ret);

/* Whether a capture makes new work: captured units go first now. */
bool worklist_drains(const struct worklist *w);

/* captured_only: no captures count any more that would begin a new unit. Units
 * that hold captures stay exact until they are copied. */
void worklist_finish(struct worklist *w);

/* Work that was handed out is on the target. Releases it. */
void worklist_done(struct worklist *w, const struct work *work);

/* Bytes copied, and an estimate of how many there are in all. With a limit: bytes done, zeros
 * or not, and exactly how many there are. */
void worklist_progress(const struct worklist *w, uint64_t *ret_current, uint64_t *ret_total);

#endif
