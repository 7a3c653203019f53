/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs: states and verbs as two tables, the registry of ids, and the way from
 * the end of the work to being forgotten. The tables, the order of events and
 * the texts are those of QEMU's job.c and blockjob.c.
 *
 * The registry is shared by all loops and guarded by a mutex; a job's fields
 * other than id, loop and reference count belong to its loop.
 */
#include "job/job.h"
#include "base/mem.h"
#include "job/job_impl.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#define ERROR_EVENT_PACE_NS NSEC_PER_SEC

struct job {
    /* Never changed. */
    char *id;
    struct loop *loop;
    const struct job_ops *ops;
    void *state;
    const struct job_events *events;
    void *events_arg;
    bool auto_finalize, auto_dismiss;
    struct job_txn *txn;           /* a reference; NULL: it ends alone */
    bool announced;                /* that it is created was told */

    atomic_uint refs;              /* the registry's, the running coroutine's, watchers' */
    struct list registered;        /* under the registry's mutex */

    enum job_status status;
    bool user_paused;              /* a pause is asked for */
    bool cancelled;                /* stop now */
    bool cancel_softly;            /* report a cancel when the rest is done */
    bool complete;                 /* do the rest, then end */
    bool busy;
    uint64_t current, total, speed;
    enum job_iostatus iostatus;
    uint64_t error_told_ns[2];     /* by enum job_op: the last ignored error; 0: never */
    int ret;
    struct err err;

    bool kicked;
    struct waitq kick;             /* the job's own coroutine */
    struct waitq concluded;
};

static const struct job_events no_events;

/* ---- names and tables ---------------------------------------------------------- */

#define NAME(table, i) ((unsigned)(i) < ARRAY_SIZE(table) ? (table)[i] : "?")

const char *job_status_name(enum job_status s)
{
    static const char *const names[] = { "undefined", "created", "running", "paused",
                                         "ready",     "standby", "waiting", "pending",
                                         "aborting",  "concluded", "null" };

    return NAME(names, s);
}

const char *job_verb_name(enum job_verb v)
{
    static const char *const names[] = { "cancel",   "pause",    "resume", "set-speed",
                                         "complete", "finalize", "dismiss", "change" };

    return NAME(names, v);
}

const char *job_iostatus_name(enum job_iostatus s)
{
    static const char *const names[] = { "ok", "failed", "nospace" };

    return NAME(names, s);
}

const char *job_op_name(enum job_op op)
{
    static const char *const names[] = { "read", "write" };

    return NAME(names, op);
}

const char *job_action_name(enum job_action a)
{
    static const char *const names[] = { "ignore", "report", "stop" };

    return NAME(names, a);
}

/* QEMU job.c, JobSTT. */
static const bool may_become[JOB_STATUS_MAX][JOB_STATUS_MAX] = {
    [JOB_UNDEFINED] = { [JOB_CREATED] = true },
    [JOB_CREATED] = { [JOB_RUNNING] = true, [JOB_ABORTING] = true, [JOB_NULL] = true },
    [JOB_RUNNING] = { [JOB_PAUSED] = true, [JOB_READY] = true, [JOB_WAITING] = true,
                      [JOB_ABORTING] = true },
    [JOB_PAUSED] = { [JOB_RUNNING] = true },
    [JOB_READY] = { [JOB_STANDBY] = true, [JOB_WAITING] = true, [JOB_ABORTING] = true },
    [JOB_STANDBY] = { [JOB_READY] = true },
    [JOB_WAITING] = { [JOB_PENDING] = true, [JOB_ABORTING] = true },
    [JOB_PENDING] = { [JOB_ABORTING] = true, [JOB_CONCLUDED] = true },
    [JOB_ABORTING] = { [JOB_ABORTING] = true, [JOB_CONCLUDED] = true },
    [JOB_CONCLUDED] = { [JOB_NULL] = true },
};

#define BIT(s) (1u << (s))
#define ALIVE (BIT(JOB_CREATED) | BIT(JOB_RUNNING) | BIT(JOB_PAUSED) | BIT(JOB_READY) | \
               BIT(JOB_STANDBY))

/* QEMU job.c, JobVerbTable: the states in which a verb is accepted. */
static const unsigned verb_in[JOB_VERB_MAX] = {
    [JOB_CANCEL] = ALIVE | BIT(JOB_WAITING) | BIT(JOB_PENDING),
    [JOB_PAUSE] = ALIVE,
    [JOB_RESUME] = ALIVE,
    [JOB_SET_SPEED] = ALIVE,
    [JOB_COMPLETE] = BIT(JOB_READY),
    [JOB_FINALIZE] = BIT(JOB_PENDING),
    [JOB_DISMISS] = BIT(JOB_CONCLUDED),
    [JOB_CHANGE] = ALIVE,
};

static void set_status(struct job *job, enum job_status to)
{
    assert(may_become[job->status][to]);
    job->status = to;
    if (job->events->status_change)
        job->events->status_change(job->events_arg, job, to);
}

static bool accepts(struct job *job, enum job_verb verb, struct err *err)
{
    unsigned in = verb_in[verb];

    assert(job->loop == loop_current());
    if (verb == JOB_COMPLETE && job->ops->drains)
        in |= BIT(JOB_RUNNING);
    if (in & BIT(job->status))
        return true;
    return err_set(err, -EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'", job->id,
                   job_status_name(job->status), job_verb_name(verb));
}

/* ---- registry -------------------------------------------------------------------- */

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list registry = LIST_INIT(registry);

static struct job *find_locked(const char *id)
{
    struct job *job;

    list_for_each(job, &registry, registered) {
        if (!strcmp(job->id, id))
            return job;
    }
    return NULL;
}

struct job *job_find(const char *id)
{
    struct job *job;

    pthread_mutex_lock(&registry_lock);
    job = find_locked(id);
    if (job)
        job_ref(job);
    pthread_mutex_unlock(&registry_lock);
    return job;
}

void job_for_each(void (*fn)(struct job *job, void *arg), void *arg)
{
    struct job **all = NULL, *job;
    size_t n = 0;

    pthread_mutex_lock(&registry_lock);
    list_for_each(job, &registry, registered) {
        all = xrealloc(all, (n + 1) * sizeof(struct job *));
        all[n++] = job_ref(job);
    }
    pthread_mutex_unlock(&registry_lock);
    for (size_t i = 0; i < n; i++) {
        fn(all[i], arg);
        job_unref(all[i]);
    }
    free(all);
}

static bool registry_add(struct job *job, struct err *err)
{
    bool taken;

    pthread_mutex_lock(&registry_lock);
    taken = find_locked(job->id) != NULL;
    if (!taken)
        list_push_tail(&registry, &job->registered);
    pthread_mutex_unlock(&registry_lock);
    if (taken)
        return err_set(err, -EEXIST, "Job ID '%s' already in use", job->id);
    job_ref(job);
    return true;
}

static void registry_remove(struct job *job)
{
    pthread_mutex_lock(&registry_lock);
    list_del(&job->registered);
    pthread_mutex_unlock(&registry_lock);
    job_unref(job);
}

struct job *job_ref(struct job *job)
{
    atomic_fetch_add_explicit(&job->refs, 1, memory_order_relaxed);
    return job;
}

void job_unref(struct job *job)
{
    if (!job || atomic_fetch_sub_explicit(&job->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (job->ops->free)
        job->ops->free(job->state);
    job_txn_unref(job->txn);
    free(job->id);
    free(job);
}

/* ---- making and running -------------------------------------------------------------- */

/* QEMU util/id.c, id_wellformed. */
bool job_id_wellformed(const char *id)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    static const char rest[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                               "0123456789-._";

    return *id && strchr(letters, *id) && strspn(id, rest) == strlen(id) &&
           strlen(id) < JOB_ID_MAX;
}

struct job *job_new(const struct job_opts *opts, struct err *err)
{
    struct job *job;

    if (!job_id_wellformed(opts->id)) {
        err_set(err, -EINVAL, "Invalid job ID '%.*s'", JOB_ID_MAX, opts->id);
        return NULL;
    }
    job = xnew(struct job);
    *job = (struct job){
        .id = xstrdup(opts->id),
        .loop = loop_current(),
        .ops = opts->ops,
        .events = opts->events ? opts->events : &no_events,
        .events_arg = opts->events_arg,
        .auto_finalize = opts->auto_finalize,
        .auto_dismiss = opts->auto_dismiss,
        .txn = opts->txn ? job_txn_ref(opts->txn) : NULL,
        .speed = opts->speed,
        .refs = 1,
        .status = JOB_CREATED,
    };
    waitq_init(&job->kick);
    waitq_init(&job->concluded);
    if (!registry_add(job, err)) {
        job_txn_unref(job->txn);
        free(job->id);
        free(job);
        return NULL;
    }
    job->state = opts->state;
    return job;
}

void job_drop(struct job *job)
{
    assert(job->status == JOB_CREATED);
    job->status = JOB_NULL;
    waitq_wake_all(&job->concluded);
    registry_remove(job);
    job_unref(job);
}

/* Who hears of it may use the id again at once. */
static void forget(struct job *job)
{
    CLEANUP(job_unref) struct job *mine = job_ref(job);

    registry_remove(job);
    set_status(mine, JOB_NULL);
}

/* Success is final now, or failure: tell, and end. */
static void conclude(struct job *job)
{
    const struct job_events *e = job->events;
    bool cancelled = job->cancelled || job->cancel_softly;

    if (job->ops->concluded)
        job->ops->concluded(job->state, job->ret);
    if (e->finished)
        e->finished(job->events_arg, job, job->ret, &job->err);
    if (cancelled && e->cancelled)
        e->cancelled(job->events_arg, job);
    if (!cancelled && e->completed)
        e->completed(job->events_arg, job);
    set_status(job, JOB_CONCLUDED);
    waitq_wake_all(&job->concluded);
    if (job->auto_dismiss)
        forget(job);
}

static void abort_with(struct job *job, int ret)
{
    job->ret = ret;
    if (!job->err.code)
        err_set(&job->err, ret, "%s", strerror(-ret));
    set_status(job, JOB_ABORTING);
}

/* From waiting, or not well: alone, or when the others are as far. */
static void work_ended(struct job *job)
{
    if (job->txn) {
        job_txn_tell(job->txn, job, job->ret < 0 ? JOB_NEWS_FAILED : JOB_NEWS_READY);
        return;
    }
    if (job->ret == 0)
        job_become_pending(job);
    if (job->ret < 0 || job->auto_finalize)
        conclude(job);
}

static void work_is_over(struct job *job, int ret)
{
    job->busy = false;
    /* Who cancels softly wants what was begun to be whole, and hears if it is not. */
    if (ret < 0)
        job->cancel_softly = false;
    else if (job->cancelled || job->cancel_softly)
        ret = -ECANCELED;
    if (ret < 0)
        abort_with(job, ret);
    else
        set_status(job, JOB_WAITING);
    work_ended(job);
}

bool job_needs_finalize(const struct job *job)
{
    return !job->auto_finalize;
}

void job_become_pending(struct job *job)
{
    set_status(job, JOB_PENDING);
    if (!job->auto_finalize && job->events->pending)
        job->events->pending(job->events_arg, job);
}

void job_cancel_with_group(struct job *job)
{
    /* One that fails by itself is told of as that. */
    if (job->status == JOB_ABORTING)
        return;
    job->cancelled = true;
    job->user_paused = false;
    job_kick(job);
}

void job_end_with_group(struct job *job, bool well)
{
    if (!well && job->ret == 0)
        abort_with(job, -ECANCELED);
    conclude(job);
}

static void co_run(void *arg)
{
    struct job *job = arg;

    job->busy = true;
    work_is_over(job, job->ops->co_run(job, job->state, &job->err));
    job_unref(job);
}

void job_announce(struct job *job)
{
    assert(job->status == JOB_CREATED && job->loop == loop_current());
    if (!job->announced && job->events->status_change)
        job->events->status_change(job->events_arg, job, JOB_CREATED);
    job->announced = true;
}

void job_start(struct job *job)
{
    assert(job->status == JOB_CREATED && job->loop == loop_current());
    job_announce(job);
    set_status(job, JOB_RUNNING);
    co_start(co_run, job_ref(job));
}

/* ---- verbs -------------------------------------------------------------------------- */

bool job_user_pause(struct job *job, struct err *err)
{
    if (!accepts(job, JOB_PAUSE, err))
        return false;
    if (job->user_paused)
        return err_set(err, -EBUSY, "Job is already paused");
    job->user_paused = true;
    job_kick(job);
    return true;
}

bool job_user_resume(struct job *job, struct err *err)
{
    if (!job->user_paused)
        return err_set(err, -EINVAL, "Can't resume a job that was not paused");
    if (!accepts(job, JOB_RESUME, err))
        return false;
    job->iostatus = JOB_IO_OK;
    job->user_paused = false;
    job_kick(job);
    return true;
}

bool job_set_speed(struct job *job, uint64_t speed, struct err *err)
{
    if (!accepts(job, JOB_SET_SPEED, err))
        return false;
    job->speed = speed;
    if (job->ops->speed_changed)
        job->ops->speed_changed(job->state, speed);
    job_kick(job);
    return true;
}

bool job_set_guest_latency(struct job *job, double factor, struct err *err)
{
    if (!accepts(job, JOB_CHANGE, err))
        return false;
    if (!job->ops->guest_latency_changed)
        return err_set(err, -ENOTSUP, "Job '%s' has no latency budget", job->id);
    if (!job->ops->guest_latency_changed(job->state, factor, err))
        return false;
    job_kick(job);
    return true;
}

/* Its work has ended well already. */
static void cancel_at_the_end(struct job *job)
{
    if (job->txn) {
        job_txn_tell(job->txn, job, JOB_NEWS_CANCEL);
        return;
    }
    job->cancelled = true;
    abort_with(job, -ECANCELED);
    conclude(job);
}

bool job_cancel(struct job *job, bool force, struct err *err)
{
    if (!accepts(job, JOB_CANCEL, err))
        return false;
    if (!force && job->user_paused)
        return err_set(err, -EBUSY, "The block job for device '%s' is currently paused", job->id);
    if (job->status == JOB_WAITING || job->status == JOB_PENDING) {
        cancel_at_the_end(job);
        return true;
    }
    if (!force && job->ops->drains) {
        job->cancel_softly = job->complete = true;
    } else {
        job->cancelled = true;
        job->user_paused = false;
    }
    job_kick(job);
    return true;
}

bool job_complete(struct job *job, struct err *err)
{
    if (!accepts(job, JOB_COMPLETE, err))
        return false;
    if (job->cancelled || job->cancel_softly || !job->ops->drains)
        return err_set(err, -EINVAL, "The active block job '%s' cannot be completed", job->id);
    job->complete = true;
    job_kick(job);
    return true;
}

bool job_finalize(struct job *job, struct err *err)
{
    if (!accepts(job, JOB_FINALIZE, err))
        return false;
    if (job->txn)
        job_txn_tell(job->txn, job, JOB_NEWS_FINALIZE);
    else
        conclude(job);
    return true;
}

bool job_dismiss(struct job *job, struct err *err)
{
    if (!accepts(job, JOB_DISMISS, err))
        return false;
    forget(job);
    return true;
}

/* ---- watching -------------------------------------------------------------------------- */

const char *job_id(const struct job *job)
{
    return job->id;
}

struct loop *job_loop(const struct job *job)
{
    return job->loop;
}

void job_query(struct job *job, struct job_info *ret)
{
    assert(job->loop == loop_current());
    *ret = (struct job_info){
        .type = job->ops->type,
        .status = job->status,
        .current = job->current,
        .total = job->total,
        .speed = job->speed,
        .busy = job->busy,
        .paused = job->user_paused,
        .ready = job->status == JOB_READY || job->status == JOB_STANDBY,
        .cancelling = (job->cancelled || job->cancel_softly) && job->status < JOB_CONCLUDED,
        .auto_finalize = job->auto_finalize,
        .auto_dismiss = job->auto_dismiss,
        .iostatus = job->iostatus,
        .ret = job->ret,
    };
    if (job->ops->query)
        job->ops->query(job->state, ret);
    snprintf(ret->id, sizeof(ret->id), "%s", job->id);
    snprintf(ret->error, sizeof(ret->error), "%s", job->ret < 0 ? job->err.text : "");
}

bool co_job_wait_concluded(struct job *job, uint64_t deadline)
{
    while (job->status != JOB_CONCLUDED && job->status != JOB_NULL) {
        if (!co_waitq_wait_until(&job->concluded, deadline))
            return false;
    }
    return true;
}

static int cancel_here(void *arg)
{
    struct job *job = arg;

    /* One that is ending by itself need not be asked. */
    return job_cancel(job, true, NULL) ? 0 : -EALREADY;
}

static void cancel_one(struct job *job, void *arg)
{
    co_loop_call(job->loop, cancel_here, job);
}

struct wait_all {
    struct job *job;               /* the one that is waited for now */
    uint64_t deadline;
    bool in_time;
};

static int co_wait_here(void *arg)
{
    struct wait_all *w = arg;

    return co_job_wait_concluded(w->job, w->deadline) ? 0 : -ETIMEDOUT;
}

static void wait_one(struct job *job, void *arg)
{
    struct wait_all *w = arg;

    w->job = job;
    w->in_time &= co_loop_call(job->loop, co_wait_here, w) == 0;
}

bool co_job_cancel_all(uint64_t deadline)
{
    struct wait_all w = { .deadline = deadline, .in_time = true };

    job_for_each(cancel_one, NULL);
    job_for_each(wait_one, &w);
    return w.in_time;
}

/* ---- for the work itself ---------------------------------------------------------------- */

bool job_is_cancelled(const struct job *job)
{
    return job->cancelled;
}

bool job_should_complete(const struct job *job)
{
    return job->complete;
}

bool job_should_pause(const struct job *job)
{
    return job->user_paused && !job->cancelled;
}

void co_job_pause_point(struct job *job)
{
    enum job_status was = job->status;

    if (!job_should_pause(job))
        return;
    set_status(job, was == JOB_READY ? JOB_STANDBY : JOB_PAUSED);
    while (job_should_pause(job))
        co_job_wait(job, DEADLINE_NEVER);
    set_status(job, was);
}

void co_job_wait(struct job *job, uint64_t deadline)
{
    if (!job->kicked) {
        job->busy = false;
        /* Why it woke does not matter: the caller looks at everything again. */
        bool kicked = co_waitq_wait_until(&job->kick, deadline);
        (void)kicked;
        job->busy = true;
    }
    job->kicked = false;
}

void job_kick(struct job *job)
{
    job->kicked = true;
    waitq_wake_one(&job->kick);
}

uint64_t job_speed(const struct job *job)
{
    return job->speed;
}

void job_progress(struct job *job, uint64_t current, uint64_t total)
{
    job->current = current;
    job->total = MAX(current, total);
}

void job_io_error(struct job *job, enum job_op op, enum job_action action, int err)
{
    uint64_t now = loop_now();

    if (action == JOB_ACTION_STOP) {
        if (job->iostatus == JOB_IO_OK)
            job->iostatus = err == -ENOSPC ? JOB_IO_NOSPACE : JOB_IO_FAILED;
        if (job->user_paused)
            return;                /* told when the first one stopped the job */
        job->user_paused = true;
        job_kick(job);
    } else if (action == JOB_ACTION_IGNORE) {
        if (job->error_told_ns[op] && now - job->error_told_ns[op] < ERROR_EVENT_PACE_NS)
            return;
        job->error_told_ns[op] = now;
    }
    if (job->events->error)
        job->events->error(job->events_arg, job, op, action, err);
}
