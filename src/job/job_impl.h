/* SPDX-License-Identifier: Apache-2.0
 *
 * What job.c and job_txn.c are to each other: the job tells what happens to it,
 * its group says how it goes on. Everything here is for the job's loop.
 */
#ifndef JOB_JOB_IMPL_H
#define JOB_JOB_IMPL_H

#include "job/job.h"
#include "job/job_txn.h"

/* ---- job_txn.c ----------------------------------------------------------- */

enum job_news {
    JOB_NEWS_READY,        /* the work ended well: waiting */
    JOB_NEWS_FAILED,       /* it did not, or was cancelled: aborting */
    JOB_NEWS_CANCEL,       /* somebody wants it cancelled while it waits or is pending */
    JOB_NEWS_FINALIZE,     /* somebody wants it finalized while it is pending */
};
void job_txn_tell(struct job_txn *t, struct job *job, enum job_news news);

/* ---- job.c ----------------------------------------------------------------- */

bool job_needs_finalize(const struct job *job);     /* any thread */
/* From waiting to pending. */
void job_become_pending(struct job *job);
/* Another one of the group has failed. Its work ends soon, if it has not ended. */
void job_cancel_with_group(struct job *job);
/* Its work has ended: conclude it, @well or not. */
void job_end_with_group(struct job *job, bool well);

#endif
