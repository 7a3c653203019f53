/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs that end together (QEMU's job transactions, completion-mode "grouped"):
 * one that fails or is cancelled has all others cancelled, and none of them is
 * finalized before all are ready to be.
 *
 * The jobs may live on several loops. What they are to each other is decided on
 * one, that of job_txn_new: jobs tell it by messages what happens to them, and a
 * coroutine there takes them from state to state, one after the other.
 */
#ifndef JOB_JOB_TXN_H
#define JOB_JOB_TXN_H

#include "job/job.h"

struct job_txn;

/* On the loop that shall decide, which outlives the jobs. One reference. */
struct job_txn *job_txn_new(void);
struct job_txn *job_txn_ref(struct job_txn *t);    /* any thread */
void job_txn_unref(struct job_txn *t);             /* any thread; takes NULL */
DEFINE_CLEANUP(struct job_txn *, job_txn_unref);

/* @job was made with job_opts.txn = @t and is not started yet. That loop. */
void job_txn_add(struct job_txn *t, struct job *job);
/* All were added: they may be started now. That loop; once. */
void job_txn_start(struct job_txn *t);

#endif
