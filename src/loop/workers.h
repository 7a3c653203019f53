/* SPDX-License-Identifier: Apache-2.0
 *
 * The worker pool of one loop: threads for what blocks or burns CPU. co_offload
 * is its face to other rooms.
 *
 * Threads start when there is work and no idle one, up to twice the CPUs (at
 * least 4, at most 16), and end after ten idle seconds. A job that hangs (a dead
 * file server) keeps its thread; when work waits and no job has begun or ended
 * for 100 ms the pool doubles, and so on up to 64 threads, so that some hung
 * jobs do not hold up the others. With 64 hung ones new work waits.
 *
 * Background work (bulk) has at most half of the threads at a time, and comes
 * after the rest: a backup's slow target must not hold up the requests of guests,
 * which with the pool engine come here too.
 *
 * Each loop has a pool of its own, so that what hangs on one loop's disks
 * cannot use up the threads of another's.
 */
#ifndef LOOP_WORKERS_H
#define LOOP_WORKERS_H

#include "loop/loop_impl.h"

#define WORKERS_MAX 64
#define WORKERS_STUCK_NS (100 * NSEC_PER_MSEC)

/* The caller owns it until done(job) has been called on the loop. */
struct worker_job {
    void (*run)(struct worker_job *job);    /* in a worker thread */
    void (*done)(struct worker_job *job);   /* on the loop, a plain callback */
    struct workers *pool;
    bool bulk;
    struct list link;
    struct loop_msg msg;
};

struct workers *workers_new(struct loop *loop);
void workers_submit(struct workers *w, struct worker_job *job);   /* the loop's thread */

/* Drop the jobs that have not begun, and wait for the others until @deadline.
 * False when some still run then: @w and what they use must be left alone for
 * ever. No submit after this. Any thread, once. */
bool workers_stop(struct workers *w, uint64_t deadline);

void workers_free(struct workers *w);   /* after workers_stop was true */

#endif
