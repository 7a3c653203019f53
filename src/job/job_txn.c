/* SPDX-License-Identifier: Apache-2.0
 *
 * The way of a group of jobs, QEMU's job_completed_txn_success and
 * job_completed_txn_abort: those that were added last go first.
 *
 *      running --> all are ready --> pending --> finalized
 *         |                             |
 *         +--> one fails or is cancelled, all are cancelled, concluded as they end
 *
 * Whether it ends well or not is decided once, here. A cancel that comes behind
 * that has come too late, as it may for a single job.
 */
#include "job/job_txn.h"
#include "base/mem.h"
#include "job/job_impl.h"
#include <stdatomic.h>

struct member {
    struct job *job;               /* a reference */
    bool over;                     /* its work has ended */
};

struct job_txn {
    atomic_uint refs;              /* the maker's, the jobs', the coroutine's, messages' */
    struct loop *loop;

    struct member *members;
    size_t n;
    bool failed, finalize;
    struct waitq news;
};

struct job_txn *job_txn_new(void)
{
    struct job_txn *t = xnew(struct job_txn);

    t->refs = 1;
    t->loop = loop_current();
    waitq_init(&t->news);
    return t;
}

struct job_txn *job_txn_ref(struct job_txn *t)
{
    atomic_fetch_add_explicit(&t->refs, 1, memory_order_relaxed);
    return t;
}

void job_txn_unref(struct job_txn *t)
{
    if (!t || atomic_fetch_sub_explicit(&t->refs, 1, memory_order_acq_rel) != 1)
        return;
    free(t->members);
    free(t);
}

void job_txn_add(struct job_txn *t, struct job *job)
{
    assert(t->loop == loop_current());
    t->members = xrealloc(t->members, (t->n + 1) * sizeof(*t->members));
    t->members[t->n++] = (struct member){ .job = job_ref(job) };
}

/* ---- news -------------------------------------------------------------------------- */

struct message {
    struct job_txn *txn;           /* references */
    struct job *job;
    enum job_news news;
};

static void work_is_over(struct job_txn *t, const struct job *job)
{
    for (size_t i = 0; i < t->n; i++) {
        if (t->members[i].job == job)
            t->members[i].over = true;
    }
}

static void take_news(void *arg)
{
    struct message *m = arg;
    struct job_txn *t = m->txn;

    if (m->news == JOB_NEWS_READY || m->news == JOB_NEWS_FAILED)
        work_is_over(t, m->job);
    if (m->news == JOB_NEWS_FAILED || m->news == JOB_NEWS_CANCEL)
        t->failed = true;
    if (m->news == JOB_NEWS_FINALIZE)
        t->finalize = true;
    waitq_wake_all(&t->news);
    job_unref(m->job);
    job_txn_unref(t);
    free(m);
}

void job_txn_tell(struct job_txn *t, struct job *job, enum job_news news)
{
    struct message *m = xnew(struct message);

    *m = (struct message){ .txn = job_txn_ref(t), .job = job_ref(job), .news = news };
    loop_post(t->loop, take_news, m);
}

/* ---- the way ------------------------------------------------------------------------- */

static int pend(void *arg)
{
    job_become_pending(arg);
    return 0;
}

static int cancel(void *arg)
{
    job_cancel_with_group(arg);
    return 0;
}

static int end_well(void *arg)
{
    job_end_with_group(arg, true);
    return 0;
}

static int end_badly(void *arg)
{
    job_end_with_group(arg, false);
    return 0;
}

static void co_each(struct job_txn *t, int (*step)(void *job))
{
    for (size_t i = t->n; i-- > 0;)
        (void)co_loop_call(job_loop(t->members[i].job), step, t->members[i].job);
}

static bool all_over(const struct job_txn *t)
{
    for (size_t i = 0; i < t->n; i++) {
        if (!t->members[i].over)
            return false;
    }
    return true;
}

static bool is_final(const struct job_txn *t)
{
    bool waits = false;

    for (size_t i = 0; i < t->n; i++)
        waits |= job_needs_finalize(t->members[i].job);
    return t->finalize || !waits;
}

static void co_abort(struct job_txn *t)
{
    co_each(t, cancel);
    for (size_t i = t->n; i-- > 0;) {
        while (!t->members[i].over)
            co_waitq_wait(&t->news);
        (void)co_loop_call(job_loop(t->members[i].job), end_badly, t->members[i].job);
    }
}

static void co_run(void *arg)
{
    struct job_txn *t = arg;

    while (!t->failed && !all_over(t))
        co_waitq_wait(&t->news);
    if (!t->failed)
        co_each(t, pend);
    while (!t->failed && !is_final(t))
        co_waitq_wait(&t->news);
    if (t->failed)
        co_abort(t);
    else
        co_each(t, end_well);
    for (size_t i = 0; i < t->n; i++)
        job_unref(t->members[i].job);
    t->n = 0;
    job_txn_unref(t);
}

void job_txn_start(struct job_txn *t)
{
    assert(t->loop == loop_current());
    co_start(co_run, job_txn_ref(t));
}
