/* SPDX-License-Identifier: Apache-2.0
 *
 * The copier does pieces of work in parallel: it reads the view and writes the
 * target, zeros as zeros. What to do, when, how many at a time and what an error
 * means is its owner's business (backup.c).
 *
 * A piece that was begun is never broken off, but it can be left behind: after
 * copier_abandon what still hangs keeps the target, and ends whenever it ends.
 *
 * Nothing here suspends. One loop.
 */
#ifndef JOB_COPIER_H
#define JOB_COPIER_H

#include "block/disk.h"
#include "job/job.h"
#include "job/worklist.h"

struct copier;

struct copier_opts {
    struct view *view;             /* a reference is taken until the copier is abandoned */
    struct disk_user *target;      /* owned: closed with the last piece of work */
    uint64_t max_copy;             /* bytes of a buffer; a longer WORK_COPY goes in pieces */
    bool clone;                    /* share the source's storage if that works (reflink): the
                                    * first pieces of work show whether it does */
    uint64_t zero_unit;            /* zeros are looked for in pieces of this size */
    uint64_t compress_unit;        /* data is stored compressed, in whole units; 0: it is not */
    bool target_is_zero;           /* zeros inside of data need not be written */
    bool allocate;                 /* zeros are written as data */
    struct node *below;            /* what the target reads already: only what differs is written;
                                    * a reference is taken. NULL: not looked at */
    void (*kick)(void *arg);       /* something has finished */
    void *kick_arg;
};

struct copier *copier_new(const struct copier_opts *o);

/* Begin a piece of work. */
void copier_start(struct copier *c, const struct work *work);
unsigned copier_in_flight(const struct copier *c);

struct copied {
    struct work work;
    int ret;
    enum job_op op;                /* what failed */
    bool cloned;                   /* it took no copying, and longer ones will not either */
};
/* The next piece that has finished, if there is one. */
bool copier_reap(struct copier *c, struct copied *ret);

/* The owner is done: nothing is told any more, the view is let go of, the target
 * when the last piece of work has ended. Takes NULL. */
void copier_abandon(struct copier *c);

#endif
