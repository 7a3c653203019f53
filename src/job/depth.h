/* SPDX-License-Identifier: Apache-2.0
 *
 * How many copies a backup should have in flight at a time. A local copy is
 * fastest with as many as there are CPUs, as its buffers then stay in their
 * caches, and a target at the end of a slow line with as many as allowed; nobody
 * can tell beforehand. So it is found out: now and then twice or half as many are
 * tried for a while, and kept if that was faster, or as fast with fewer.
 *
 * Pure computation: the caller brings the time. Not thread-safe.
 */
#ifndef JOB_DEPTH_H
#define JOB_DEPTH_H

#include "base/base.h"

enum depth_trial { DEPTH_HOLD, DEPTH_UP, DEPTH_DOWN };

struct depth {
    unsigned now;              /* what to use */
    unsigned max;

    enum depth_trial trial;
    unsigned base;             /* what @now goes back to when the trial fails */
    double base_rate;          /* work a ns with @base */
    unsigned hold;             /* windows until the next trial */
    bool down_next;

    uint64_t since, work;      /* the window: its begin, and what was done in it */
    unsigned pieces;
};

/* Start with few; never more than @max (> 0). */
void depth_init(struct depth *d, unsigned max, uint64_t now_ns);

/* A piece of @bytes was copied; @d->now may change. */
void depth_piece_done(struct depth *d, uint64_t bytes, uint64_t now_ns);

/* The job was paused, or had nothing to copy: what this window measured says
 * nothing. Begins a new one. */
void depth_interrupted(struct depth *d, uint64_t now_ns);

#endif
