/* SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a backup job, shared by backup_start.c (checks, the instant) and
 * backup.c (the run).
 */
#ifndef JOB_BACKUP_IMPL_H
#define JOB_BACKUP_IMPL_H

#include "base/limits.h"
#include "base/ratelimit.h"
#include "job/backup_bitmap.h"
#include "job/budget.h"
#include "job/copier.h"
#include "job/depth.h"
#include "job/worklist.h"

/* Nothing new is begun while so much waits to be tried again. */
#define BACKUP_RETRIES_MAX LIMIT_BACKUP_WORKERS

struct backup {
    struct job *job;               /* borrowed: it owns this */
    struct node *source, *target;  /* references */
    enum backup_on_error on_error[2];    /* by enum job_op */
    struct depth depth;
    struct budget budget;          /* against the source's meter, which is there if it has a factor
                                    * and the view is not over */
    struct meter meter;
    bool metered;
    uint64_t cpu_looked;           /* at the CPU's part of it */
    uint64_t scratch_limit;        /* 0: none */

    struct view *view;             /* NULL once everything is copied */
    struct view *ended;            /* the same, then */
    struct view_listener listener;
    bool captured_only;
    struct worklist *list;         /* goes with the view */
    struct copier *copier;
    struct backup_bitmap bitmap;   /* until how the job ended is final */

    struct ratelimit limit;
    struct work next;              /* waits for the rate limit, if has_next */
    bool has_next;
    struct work retries[BACKUP_RETRIES_MAX + LIMIT_BACKUP_WORKERS];   /* ring */
    unsigned retry_head, n_retries;
    uint64_t retry_at, backoff;    /* ns */

    struct job_guest guest;        /* as it was when the view ended */
    bool finishing;                /* sync=none: only what is captured now is still copied */
    bool flushing, flushed;
    int ret;                       /* < 0: the job has failed, with err */
    struct err err;
};

/* Begin with a budget, or go on with another. */
void backup_set_guest_latency(struct backup *b, double factor);
void backup_end_metering(struct backup *b);

extern const struct job_ops backup_job_ops, backup_none_job_ops;

#define BACKUP_BACKOFF_MIN_NS (100 * NSEC_PER_MSEC)
#define BACKUP_BACKOFF_MAX_NS (5 * NSEC_PER_SEC)

#endif
