/* SPDX-License-Identifier: Apache-2.0
 *
 * Jobs without work: which verb is accepted in which state, the words of a
 * refusal, the order of events, ids, pauses, and the ends that a job can come to.
 */
#include "co_test.h"
#include "job/job.h"
#include "base/strbuf.h"
#include <stdio.h>

/* What was heard, as "status ..." words. */
static struct strbuf heard;

static void on_status(void *arg, struct job *job, enum job_status status)
{
    struct job_info info;

    job_query(job, &info);
    strbuf_addf(&heard, "%s ", job_status_name(status));
}

static void on_error(void *arg, struct job *job, enum job_op op, enum job_action action, int err)
{
    strbuf_addf(&heard, "ERROR(%s,%s,%d) ", job_op_name(op), job_action_name(action), err);
}

static void on_pending(void *arg, struct job *job)
{
    strbuf_add(&heard, "PENDING ");
}

static void on_completed(void *arg, struct job *job)
{
    struct job_info info;

    job_query(job, &info);
    strbuf_addf(&heard, "COMPLETED(%s) ", info.error);
}

static void on_cancelled(void *arg, struct job *job)
{
    strbuf_add(&heard, "CANCELLED ");
}

static void on_finished(void *arg, struct job *job, int ret, const struct err *err)
{
    strbuf_addf(&heard, "finished(%d) ", ret);
}

static const struct job_events events = {
    .status_change = on_status,
    .error = on_error,
    .pending = on_pending,
    .completed = on_completed,
    .cancelled = on_cancelled,
    .finished = on_finished,
};

static void expect_heard(const char *text)
{
    CLEANUP(free) char *got = strbuf_steal(&heard);

    assert_string_equal(got, text);
}

/* ---- a job that does what the test says --------------------------------------------- */

struct work {
    int ret;              /* what it ends with once `end` is set */
    const char *text;
    bool end;
    bool ends_when_complete;
    uint64_t speed;
};

static int co_work(struct job *job, void *state, struct err *err)
{
    struct work *w = state;

    for (;;) {
        co_job_pause_point(job);
        if (job_is_cancelled(job))
            return -ECANCELED;
        if (w->end || (w->ends_when_complete && job_should_complete(job)))
            break;
        co_job_wait(job, DEADLINE_NEVER);
    }
    if (w->text)
        err_set(err, w->ret, "%s", w->text);
    return w->ret;
}

static void speed_changed(void *state, uint64_t speed)
{
    ((struct work *)state)->speed = speed;
}

static const struct job_ops plain_ops = {
    .type = "backup", .co_run = co_work, .speed_changed = speed_changed,
};
static const struct job_ops draining_ops = {
    .type = "backup", .co_run = co_work, .drains = true,
};

static struct job *new_job(struct work *w, const char *id, bool draining)
{
    struct job_opts o = {
        .id = id,
        .ops = draining ? &draining_ops : &plain_ops,
        .state = w,
        .auto_finalize = true,
        .auto_dismiss = true,
        .events = &events,
    };
    struct err err = ERR_INIT;
    struct job *job = job_new(&o, &err);

    if (!job)
        fail_msg("%s", err.text);
    return job;
}

static struct job *new_manual_job(struct work *w)
{
    struct job_opts o = { .id = "m", .ops = &plain_ops, .state = w, .events = &events };

    return job_new(&o, NULL);
}

static void end_work(struct job *job, struct work *w, int ret)
{
    w->ret = ret;
    w->end = true;
    job_kick(job);
}

static void expect_status(struct job *job, enum job_status status)
{
    struct job_info info;

    job_query(job, &info);
    assert_string_equal(job_status_name(info.status), job_status_name(status));
}

static void expect_refused(bool accepted, const struct err *err, const char *text)
{
    assert_false(accepted);
    assert_string_equal(err->text, text);
}

/* ---- the ends ----------------------------------------------------------------------------- */

static void success_body(void)
{
    struct work w = { 0 };
    struct job *job = new_job(&w, "j", false);

    assert_true(job_find("j") == job);
    job_unref(job);
    expect_heard("");
    job_start(job);
    expect_heard("created running ");
    co_yield_times(3);
    end_work(job, &w, 0);
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    expect_heard("waiting pending finished(0) COMPLETED() concluded null ");
    assert_null(job_find("j"));
    job_unref(job);
}

static void success_is_told_in_the_order_of_qemu(void **state)
{
    in_loop(success_body);
}

static void failure_body(void)
{
    struct work w = { .text = "Broken on purpose" };
    struct job *job = new_job(&w, "j", false);
    struct job_info info;

    job_start(job);
    end_work(job, &w, -EIO);
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    expect_heard("created running aborting finished(-5) COMPLETED(Broken on purpose) concluded "
                 "null ");
    job_query(job, &info);
    assert_int_equal(info.ret, -EIO);
    job_unref(job);

    w = (struct work){ 0 };
    job = new_job(&w, "j", false);
    job_start(job);
    end_work(job, &w, -ENOSPC);
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    expect_heard("created running aborting finished(-28) COMPLETED(No space left on device) "
                 "concluded null ");
    job_unref(job);
}

static void failure_is_told_with_its_reason(void **state)
{
    in_loop(failure_body);
}

static void cancel_body(void)
{
    struct work w = { 0 };
    struct job *job = new_job(&w, "j", false);
    struct err err = ERR_INIT;

    job_start(job);
    co_yield_times(3);
    assert_true(job_cancel(job, false, &err));
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    expect_heard("created running aborting finished(-125) CANCELLED concluded null ");
    expect_refused(job_cancel(job, false, &err), &err,
                   "Job 'j' in state 'null' cannot accept command verb 'cancel'");
    job_unref(job);
}

static void a_cancel_is_told_as_one(void **state)
{
    in_loop(cancel_body);
}

static void manual_body(void)
{
    struct work w = { 0 };
    struct job *job = new_manual_job(&w);
    struct err err = ERR_INIT;

    job_start(job);
    end_work(job, &w, 0);
    co_yield_times(3);
    expect_heard("created running waiting pending PENDING ");
    expect_refused(job_dismiss(job, &err), &err,
                   "Job 'm' in state 'pending' cannot accept command verb 'dismiss'");
    expect_refused(job_user_pause(job, &err), &err,
                   "Job 'm' in state 'pending' cannot accept command verb 'pause'");
    expect_refused(job_complete(job, &err), &err,
                   "Job 'm' in state 'pending' cannot accept command verb 'complete'");
    assert_true(job_finalize(job, &err));
    expect_heard("finished(0) COMPLETED() concluded ");
    expect_status(job, JOB_CONCLUDED);
    expect_refused(job_finalize(job, &err), &err,
                   "Job 'm' in state 'concluded' cannot accept command verb 'finalize'");
    assert_true(job_dismiss(job, &err));
    expect_heard("null ");
    assert_null(job_find("m"));
    job_unref(job);

    w = (struct work){ 0 };
    job = new_manual_job(&w);
    job_start(job);
    end_work(job, &w, 0);
    co_yield_times(3);
    assert_true(job_cancel(job, false, &err));
    expect_heard("created running waiting pending PENDING aborting finished(-125) CANCELLED "
                 "concluded ");
    assert_true(job_dismiss(job, &err));
    job_unref(job);
    strbuf_done(&heard);
}

static void finalizing_and_dismissing_can_be_left_to_the_user(void **state)
{
    in_loop(manual_body);
}

static void drain_body(void)
{
    struct work w = { .ends_when_complete = true };
    struct job *job = new_job(&w, "j", true);
    struct err err = ERR_INIT;

    job_start(job);
    co_yield_times(3);
    assert_true(job_complete(job, &err));
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    expect_heard("created running waiting pending finished(0) COMPLETED() concluded null ");
    job_unref(job);

    job = new_job(&w, "j", true);
    job_start(job);
    co_yield_times(3);
    assert_true(job_cancel(job, false, &err));
    expect_refused(job_complete(job, &err), &err,
                   "The active block job 'j' cannot be completed");
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    expect_heard("created running aborting finished(-125) CANCELLED concluded null ");
    job_unref(job);

    w.ends_when_complete = false;    /* draining takes for ever */
    job = new_job(&w, "j", true);
    job_start(job);
    assert_true(job_cancel(job, false, &err));
    assert_false(co_job_wait_concluded(job, loop_now() + NSEC_PER_MSEC));
    assert_true(job_cancel(job, true, &err));
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    job_unref(job);
    strbuf_done(&heard);
}

static void a_job_that_drains_completes_and_cancels_softly(void **state)
{
    in_loop(drain_body);
}

/* ---- pausing --------------------------------------------------------------------------- */

static void pause_body(void)
{
    struct work w = { 0 };
    struct job *job = new_job(&w, "j", false);
    struct job_info info;
    struct err err = ERR_INIT;

    job_start(job);
    co_yield_times(3);
    expect_refused(job_user_resume(job, &err), &err, "Can't resume a job that was not paused");
    assert_true(job_user_pause(job, &err));
    expect_refused(job_user_pause(job, &err), &err, "Job is already paused");
    co_yield_times(3);
    expect_heard("created running paused ");
    job_query(job, &info);
    assert_true(info.paused && !info.busy);
    expect_refused(job_cancel(job, false, &err), &err,
                   "The block job for device 'j' is currently paused");
    assert_true(job_set_speed(job, 12345, &err));
    assert_int_equal(w.speed, 12345);
    assert_true(job_user_resume(job, &err));
    co_yield_times(3);
    expect_heard("running ");
    assert_true(job_user_pause(job, &err));
    co_yield_times(3);
    assert_true(job_cancel(job, true, &err));
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    expect_heard("paused running aborting finished(-125) CANCELLED concluded null ");
    job_unref(job);
}

static void a_paused_job_resumes_or_is_cancelled_by_force(void **state)
{
    in_loop(pause_body);
}

static void io_error_body(void)
{
    struct work w = { 0 };
    struct job *job = new_job(&w, "j", false);
    struct job_info info;
    struct err err = ERR_INIT;

    job_start(job);
    co_yield_times(3);
    strbuf_done(&heard);
    for (int i = 0; i < 100; i++)
        job_io_error(job, JOB_OP_READ, JOB_ACTION_IGNORE, -EIO);
    job_io_error(job, JOB_OP_WRITE, JOB_ACTION_IGNORE, -EIO);
    expect_heard("ERROR(read,ignore,-5) ERROR(write,ignore,-5) ");
    job_io_error(job, JOB_OP_WRITE, JOB_ACTION_STOP, -ENOSPC);
    job_io_error(job, JOB_OP_WRITE, JOB_ACTION_STOP, -EIO);
    co_yield_times(3);
    expect_heard("ERROR(write,stop,-28) paused ");
    job_query(job, &info);
    assert_int_equal(info.iostatus, JOB_IO_NOSPACE);
    assert_true(job_user_resume(job, &err));
    job_query(job, &info);
    assert_int_equal(info.iostatus, JOB_IO_OK);
    assert_true(job_cancel(job, true, &err));
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    job_unref(job);
    strbuf_done(&heard);
}

static void io_errors_are_paced_and_stop_the_job_if_asked(void **state)
{
    in_loop(io_error_body);
}

/* ---- ids ------------------------------------------------------------------------------- */

static void ids_body(void)
{
    struct work w = { 0 };
    struct job *job = new_job(&w, "a-B.c_9", false);
    struct job_opts o = { .id = "a-B.c_9", .ops = &plain_ops, .state = &w };
    struct err err = ERR_INIT;

    assert_null(job_new(&o, &err));
    assert_string_equal(err.text, "Job ID 'a-B.c_9' already in use");
    o.id = "9x";
    assert_null(job_new(&o, &err));
    assert_string_equal(err.text, "Invalid job ID '9x'");
    o.id = "";
    assert_null(job_new(&o, &err));
    o.id = "#block12";
    assert_null(job_new(&o, &err));
    job_drop(job);
    expect_heard("");
    o.id = "a-B.c_9";
    job = job_new(&o, &err);
    assert_non_null(job);
    job_drop(job);
}

static void ids_are_unique_and_well_formed(void **state)
{
    in_loop(ids_body);
}

/* ---- several loops --------------------------------------------------------------------- */

static int co_start_there(void *arg)
{
    static struct work works[3];
    static const char *const names[] = { "a", "b", "c" };
    static unsigned next;
    struct job_opts o = {
        .id = names[next], .ops = &plain_ops, .state = &works[next], .auto_finalize = true,
    };
    struct job *job = job_new(&o, NULL);

    next++;
    job_start(job);
    job_unref(job);
    return 0;
}

static void count(struct job *job, void *arg)
{
    ++*(unsigned *)arg;
}

static int co_dismiss_there(void *arg)
{
    return job_dismiss(arg, NULL) ? 0 : -EPERM;
}

static void dismiss(struct job *job, void *arg)
{
    assert_int_equal(co_loop_call(job_loop(job), co_dismiss_there, job), 0);
}

static void loops_body(void)
{
    struct loop *one = test_loop_spawn("one"), *two = test_loop_spawn("two");
    unsigned n = 0;

    co_loop_call(one, co_start_there, NULL);
    co_loop_call(two, co_start_there, NULL);
    co_start_there(NULL);
    job_for_each(count, &n);
    assert_int_equal(n, 3);
    assert_true(co_job_cancel_all(loop_now() + 5 * NSEC_PER_SEC));
    job_for_each(dismiss, NULL);
    n = 0;
    job_for_each(count, &n);
    assert_int_equal(n, 0);
    test_loop_end(one);
    test_loop_end(two);
}

static void jobs_of_all_loops_are_found_and_cancelled(void **state)
{
    in_loop(loops_body);
}

static int co_deaf(struct job *job, void *state, struct err *err)
{
    struct work *w = state;

    while (!w->end)
        co_job_wait(job, DEADLINE_NEVER);
    return 0;
}

static void deaf_body(void)
{
    static const struct job_ops deaf_ops = { .type = "backup", .co_run = co_deaf };
    struct work w = { 0 };
    struct job_opts o = {
        .id = "deaf", .ops = &deaf_ops, .state = &w, .auto_finalize = true, .auto_dismiss = true,
    };
    struct job *job = job_new(&o, NULL);

    job_start(job);
    assert_false(co_job_cancel_all(loop_now() + 20 * NSEC_PER_MSEC));
    w.end = true;
    job_kick(job);
    assert_true(co_job_cancel_all(loop_now() + 5 * NSEC_PER_SEC));
    job_unref(job);
}

static void a_job_that_does_not_end_is_told_of(void **state)
{
    in_loop(deaf_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(success_is_told_in_the_order_of_qemu),
        cmocka_unit_test(failure_is_told_with_its_reason),
        cmocka_unit_test(a_cancel_is_told_as_one),
        cmocka_unit_test(finalizing_and_dismissing_can_be_left_to_the_user),
        cmocka_unit_test(a_job_that_drains_completes_and_cancels_softly),
        cmocka_unit_test(a_paused_job_resumes_or_is_cancelled_by_force),
        cmocka_unit_test(io_errors_are_paced_and_stop_the_job_if_asked),
        cmocka_unit_test(ids_are_unique_and_well_formed),
        cmocka_unit_test(jobs_of_all_loops_are_found_and_cancelled),
        cmocka_unit_test(a_job_that_does_not_end_is_told_of),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
