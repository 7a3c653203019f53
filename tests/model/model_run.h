/* SPDX-License-Identifier: Apache-2.0
 *
 * One job of the model (model_run.c), for single backups and for chains of them.
 */
#ifndef TESTS_MODEL_RUN_H
#define TESTS_MODEL_RUN_H

#include "model.h"

enum trouble {
    TROUBLE_NONE,
    TROUBLE_CANCEL,          /* by force, at some time */
    TROUBLE_SLOW,            /* the target dawdles */
    TROUBLE_SLOW_SOURCE,     /* the source does, with writes */
    TROUBLE_TARGET_ERROR,
    TROUBLE_FLUSH_ERROR,
    TROUBLE_HANG,            /* the target hangs; a cancel has to end the job */
    TROUBLE_SOURCE_ERROR,
    TROUBLES,
    /* In chains only. */
    TROUBLE_BREAK = TROUBLES,    /* hardly any scratch: the view breaks */
    TROUBLE_CANCEL_PENDING,  /* when all is done */
    TROUBLES_OF_CHAINS,
};

struct run {
    struct model *m;
    enum trouble trouble;
    struct backup_opts o;
    char id[16];
    struct image target;
    bool fresh;              /* nothing was in the target before */
    struct shadow frozen;
    struct watch watch;      /* of the start */
    struct job *job;
    uint64_t ends_at;        /* sync=none is completed, or a cancel comes */
    bool ended;              /* it was asked to end */
    bool cancelled;          /* by a cancel */
    bool resting;            /* the writers are held */

    bool finished;
    int ret;
    struct err err;
};

struct run *run_new(struct model *m, const char *name, unsigned index);
void run_free(struct run *r);

/* Choose one of the first @troubles, mostly none, and everything else that must not make
 * a difference. */
void run_pick(struct run *r, unsigned troubles);

/* From the instant to the end of the job, with r->target, which is open and will be
 * closed, in the state that the trouble makes it. */
void co_run_job(struct run *r);

/* Whether the target has to be right. Fails when the job has failed without a reason. */
bool run_is_well(struct run *r);

/* The target, with its backing file if @backing, is the disk at the instant. */
void co_run_compare(struct run *r, bool backing);

#endif
