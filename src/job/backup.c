/* SPDX-License-Identifier: Apache-2.0
 *
 * The run of a backup job: takes what is next from the work list, gives it to
 * the copier, and decides what an error means. Its coroutine does no I/O itself,
 * so whatever hangs, it answers to pause, speed and cancel. Checks and the
 * instant are in backup_start.c.
 */
#include "base/mem.h"
#include "job/backup_impl.h"

/* An end without success: how long pieces in flight get to end by themselves,
 * and then after the target was asked to let them go. */
#define GRACE_NS (200 * NSEC_PER_MSEC)
#define GRACE_CANCELLED_NS (1 * NSEC_PER_SEC)
/* How long the end of the job waits for the target to be closed. */
#define GRACE_CLOSE_NS (2 * NSEC_PER_SEC)
/* How long a job that has failed waits for the target to say that it has what was copied. */
#define GRACE_FLUSH_NS (30 * NSEC_PER_SEC)

/* The longest piece when source and target share storage: that takes no buffer and some
 * 20 us whatever it is of; the source's writers wait as long. */
#define CLONE_MAX (64 * MiB)

/* ---- errors -------------------------------------------------------------------- */

/* QEMU block-backend.c, blk_get_error_action, and blockjob.c, block_job_error_action. */
static enum job_action action_for(enum backup_on_error on, int r)
{
    switch (on) {
    case BACKUP_ON_ERROR_IGNORE:
        return JOB_ACTION_IGNORE;
    case BACKUP_ON_ERROR_STOP:
        return JOB_ACTION_STOP;
    case BACKUP_ON_ERROR_ENOSPC:
    case BACKUP_ON_ERROR_AUTO:
        return r == -ENOSPC ? JOB_ACTION_STOP : JOB_ACTION_REPORT;
    case BACKUP_ON_ERROR_REPORT:
        break;
    }
    return JOB_ACTION_REPORT;
}

static void fail_with(struct backup *b, const struct copied *c)
{
    b->ret = c->ret;
    if (c->work.kind == WORK_FLUSH)
        err_errno(&b->err, c->ret, "Cannot flush the target '%s'", node_name(b->target));
    else if (c->op == JOB_OP_READ)
        err_errno(&b->err, c->ret, "Cannot read the source '%s' at offset %llu",
                  node_name(b->source), (unsigned long long)c->work.off);
    else
        err_errno(&b->err, c->ret, "Cannot write to the target '%s' at offset %llu",
                  node_name(b->target), (unsigned long long)c->work.off);
}

/* Pieces that fail are tried again together, after a wait that doubles as long
 * as nothing that was tried again succeeds. */
static void retry_later(struct backup *b, const struct work *work, bool paced)
{
    uint64_t now = loop_now();
    struct work *slot = &b->retries[(b->retry_head + b->n_retries++) % ARRAY_SIZE(b->retries)];

    assert(b->n_retries <= ARRAY_SIZE(b->retries));
    *slot = *work;
    slot->tries++;
    if (!paced) {
        b->retry_at = now;
    } else if (now >= b->retry_at) {
        b->retry_at = now + b->backoff;
        b->backoff = MIN(2 * b->backoff, BACKUP_BACKOFF_MAX_NS);
    }
}

static void piece_failed(struct backup *b, const struct copied *c)
{
    enum job_action action = action_for(b->on_error[c->op], c->ret);

    /* What goes wrong when it is over anyway is not told. */
    if (b->ret < 0 || job_is_cancelled(b->job) || (b->view && view_error(b->view, NULL)))
        return;
    /* After a flush that failed nobody knows what was lost, and one more that
     * succeeds would prove nothing: Linux has marked the pages clean. */
    if (c->work.kind == WORK_FLUSH)
        action = JOB_ACTION_REPORT;
    job_io_error(b->job, c->op, action, c->ret);
    if (action == JOB_ACTION_REPORT)
        fail_with(b, c);
    else
        retry_later(b, &c->work, action == JOB_ACTION_IGNORE);
}

static void reap(struct backup *b)
{
    struct copied c;

    while (copier_reap(b->copier, &c)) {
        if (c.ret < 0) {
            piece_failed(b, &c);
            continue;
        }
        if (c.work.tries)
            b->backoff = BACKUP_BACKOFF_MIN_NS;
        if (c.cloned && b->list)
            worklist_lengthen(b->list, CLONE_MAX);
        if (c.work.kind == WORK_FLUSH) {
            b->flushed = b->bitmap.vouched = true;
        } else if (!b->list) {
            backup_bitmap_copied(&b->bitmap, c.work.off, c.work.len);
        } else {
            worklist_done(b->list, &c.work);
            depth_piece_done(&b->depth, c.work.kind == WORK_COPY ? c.work.len : 0, loop_now());
        }
    }
}

/* ---- the guests ------------------------------------------------------------------ */

bool backup_guest_latency_is_good(double factor)
{
    return factor == 0 || (factor >= 1 && factor <= BUDGET_FACTOR_MAX);
}

void backup_end_metering(struct backup *b)
{
    if (b->metered)
        node_remove_meter(b->source, &b->meter);
    b->metered = false;
}

void backup_set_guest_latency(struct backup *b, double factor)
{
    backup_end_metering(b);
    budget_init(&b->budget, factor, loop_now());
    b->metered = factor > 0 && b->view;
    if (b->metered)
        node_add_meter(b->source, &b->meter);
}

/* Often enough to tell times with copies from times without. */
#define CPU_LOOK_NS (500 * NSEC_PER_USEC)

static void look_at_guests(struct backup *b, uint64_t now)
{
    unsigned in_flight = copier_in_flight(b->copier);

    if (in_flight == 0 || now >= b->cpu_looked + CPU_LOOK_NS) {
        meter_look(&b->meter);
        b->cpu_looked = now;
    }
    budget_look(&b->budget, &b->meter, in_flight, b->depth.now, now);
}

/* Guests are about to wait for room in scratch, which copying makes. */
static bool scratch_runs_out(const struct backup *b)
{
    struct view_stats st;

    if (!b->scratch_limit || !b->view)
        return false;
    view_get_stats(b->view, &st);
    return st.memory + st.file > b->scratch_limit / 2;
}

static bool may_begin(struct backup *b, uint64_t now, uint64_t *wake_at)
{
    if (copier_in_flight(b->copier) >= b->depth.now)
        return false;
    if (!b->metered || scratch_runs_out(b))
        return true;
    return budget_grants(&b->budget, now, wake_at);
}

/* ---- what to do next ---------------------------------------------------------------- */

static void show_progress(struct backup *b)
{
    uint64_t current, total;

    if (!b->list)
        return;
    worklist_progress(b->list, &current, &total);
    job_progress(b->job, current, total);
}

/* From here on the source has nothing to do with the backup. */
static void close_view(struct backup *b)
{
    show_progress(b);
    backup_end_metering(b);
    worklist_free(MOVE(b->list));
    view_remove_listener(&b->listener);
    view_get_added(b->view, &b->guest.added);
    b->ended = view_ref(b->view);
    view_close(MOVE(b->view));
}

static bool next_retry(struct backup *b, uint64_t now, uint64_t *wake_at)
{
    if (!b->n_retries)
        return false;
    if (now < b->retry_at) {
        *wake_at = MIN(*wake_at, b->retry_at);
        return false;
    }
    b->next = b->retries[b->retry_head];
    b->retry_head = (b->retry_head + 1) % ARRAY_SIZE(b->retries);
    b->n_retries--;
    return true;
}

/* Fill in b->next. False: nothing now; *wake_at may be brought forward. */
static bool next_work(struct backup *b, uint64_t now, uint64_t *wake_at)
{
    if (b->flushing)
        return false;
    if (next_retry(b, now, wake_at))
        return true;
    if (b->n_retries >= BACKUP_RETRIES_MAX)
        return false;
    switch (worklist_next(b->list, &b->next)) {
    case WORKLIST_WORK:
        return true;
    case WORKLIST_LATER:
        return false;
    case WORKLIST_END:
        break;
    }
    if (copier_in_flight(b->copier) || b->n_retries)
        return false;
    close_view(b);
    b->flushing = true;
    b->next = (struct work){ .kind = WORK_FLUSH };
    return true;
}

static void start_work(struct backup *b, uint64_t *wake_at)
{
    uint64_t now = loop_now();

    if (b->metered)
        look_at_guests(b, now);
    while (may_begin(b, now, wake_at)) {
        if (!b->has_next && !next_work(b, now, wake_at))
            return;
        b->has_next = true;
        if (b->next.kind == WORK_COPY) {
            uint64_t wait = ratelimit_take(&b->limit, now, b->next.len);

            if (wait) {
                *wake_at = MIN(*wake_at, now + wait);
                return;
            }
        }
        b->has_next = false;
        copier_start(b->copier, &b->next);
        budget_begun(&b->budget, copier_in_flight(b->copier));
    }
}

/* Whether there is a reason to stop that is not an I/O error of a piece. */
static bool must_stop(struct backup *b)
{
    if (b->ret == 0 && b->view)
        b->ret = view_error(b->view, &b->err);
    if (b->ret == 0 && job_is_cancelled(b->job))
        b->ret = -ECANCELED;
    return b->ret < 0;
}

static void co_copy_all(struct backup *b)
{
    for (;;) {
        uint64_t wake_at = DEADLINE_NEVER;

        reap(b);
        if (must_stop(b))
            return;
        if (job_should_pause(b->job)) {
            if (copier_in_flight(b->copier))
                co_job_wait(b->job, DEADLINE_NEVER);
            else
                co_job_pause_point(b->job);
            depth_interrupted(&b->depth, loop_now());
            continue;
        }
        if (b->flushed)
            return;
        if (b->captured_only && !b->finishing && job_should_complete(b->job)) {
            b->finishing = true;
            worklist_finish(b->list);
        }
        start_work(b, &wake_at);
        show_progress(b);
        bool measures = copier_in_flight(b->copier) && !(b->metered && budget_binds(&b->budget));
        co_job_wait(b->job, wake_at);
        if (!measures)
            depth_interrupted(&b->depth, loop_now());
    }
}

/* ---- the end -------------------------------------------------------------------------- */

static void co_wait_idle(struct backup *b, uint64_t grace_ns)
{
    uint64_t deadline = loop_now() + grace_ns;

    for (;;) {
        reap(b);
        if (!copier_in_flight(b->copier) || loop_now() >= deadline)
            return;
        co_job_wait(b->job, deadline);
    }
}

/* What was copied need not be copied again, for a bitmap that is always brought up to date;
 * if the target has it for good. Whoever cancels does not wait long for that. */
static void co_vouch_for_the_rest(struct backup *b)
{
    uint64_t deadline = loop_now() + GRACE_FLUSH_NS;
    bool hurried = false;

    if (!b->bitmap.copied || b->flushing || copier_in_flight(b->copier))
        return;
    b->flushing = true;
    copier_start(b->copier, &(struct work){ .kind = WORK_FLUSH });
    while (copier_in_flight(b->copier) && loop_now() < deadline) {
        if (job_is_cancelled(b->job) && !hurried) {
            deadline = MIN(deadline, loop_now() + GRACE_CLOSE_NS);
            hurried = true;
        }
        co_job_wait(b->job, deadline);
        reap(b);
    }
}

/* A capture that was under way when it was not wanted any more, a status that was
 * asked for: the source is in use until they are over. Who hears of the job's end
 * may want to delete it. */
static void co_let_go_of_source(struct backup *b)
{
    bool settled = co_view_settle(b->ended, loop_now() + GRACE_NS);

    (void)settled;     /* else it hangs, and ends when it ends */
    view_unref(MOVE(b->ended));
    node_unref(MOVE(b->source));
}

static void cancel_in_flight(struct node *target)
{
    for (struct node *n = target; n; n = edge_node(n->file))
        node_cancel_in_flight(n);
}

/* Waiting for a node to be closed, but not for ever. The last of the two frees it. */
struct closing {
    struct node *n;
    struct waitq closed;
    bool over, given_up;
};

static void co_close_target(void *arg)
{
    struct closing *c = arg;

    co_node_unref(c->n);
    c->over = true;
    if (c->given_up)
        free(c);
    else
        waitq_wake_all(&c->closed);
}

static void co_let_go_of_target(struct backup *b)
{
    uint64_t deadline = loop_now() + GRACE_CLOSE_NS;
    struct closing *c = xnew(struct closing);

    node_allow_resize(b->target);
    c->n = MOVE(b->target);
    waitq_init(&c->closed);
    co_start(co_close_target, c);
    while (!c->over) {
        if (!co_waitq_wait_until(&c->closed, deadline) && !c->over) {
            c->given_up = true;
            return;
        }
    }
    free(c);
}

static int co_backup_run(struct job *job, void *state, struct err *err)
{
    struct backup *b = state;

    co_copy_all(b);
    if (b->view)
        close_view(b);
    if (b->ret < 0) {
        co_wait_idle(b, GRACE_NS);
        if (copier_in_flight(b->copier)) {
            cancel_in_flight(b->target);
            co_wait_idle(b, GRACE_CANCELLED_NS);
        }
        co_vouch_for_the_rest(b);
        co_backup_bitmap_expect_more(&b->bitmap);
    }
    copier_abandon(MOVE(b->copier));
    co_let_go_of_source(b);
    co_let_go_of_target(b);
    *err = b->err;
    return b->ret;
}

static void backup_speed_changed(void *state, uint64_t speed)
{
    struct backup *b = state;

    ratelimit_set(&b->limit, loop_now(), speed);
}

static bool backup_guest_latency_changed(void *state, double factor, struct err *err)
{
    struct backup *b = state;

    if (!backup_guest_latency_is_good(factor))
        return err_set(err, -EINVAL, BACKUP_BAD_GUEST_LATENCY);
    backup_set_guest_latency(b, factor);
    return true;
}

static void backup_concluded(void *state, int ret)
{
    struct backup *b = state;

    backup_bitmap_end(&b->bitmap, ret);
}

static void backup_query(const void *state, struct job_info *ret)
{
    const struct backup *b = state;

    ret->has_guest = true;
    ret->guest = b->guest;
    ret->guest.factor = b->budget.factor;
    ret->guest.slowdown = b->metered ? b->budget.slowdown : 0;
    ret->guest.binds = b->metered && budget_binds(&b->budget);
    if (b->view)
        view_get_added(b->view, &ret->guest.added);
}

const struct job_ops backup_job_ops = {
    .type = "backup",
    .co_run = co_backup_run,
    .free = free,
    .concluded = backup_concluded,
    .query = backup_query,
    .speed_changed = backup_speed_changed,
    .guest_latency_changed = backup_guest_latency_changed,
};

const struct job_ops backup_none_job_ops = {
    .type = "backup",
    .co_run = co_backup_run,
    .free = free,
    .query = backup_query,
    .speed_changed = backup_speed_changed,
    .guest_latency_changed = backup_guest_latency_changed,
    .drains = true,
};
