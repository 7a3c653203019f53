/* SPDX-License-Identifier: Apache-2.0
 *
 * A backup when things go wrong: errors of either side under each policy, a
 * target that hangs, a view that breaks. The guest is never the one to suffer.
 */
#include "backup_scene.h"
#include "base/mem.h"

static void co_fail_target(struct scene *s, enum backup_on_error policy, int error)
{
    co_scene(s, NULL);
    s->opts.on_target_error = policy;
    s->to->fails[MEM_WRITE] = error;
    co_start_backup(s);
}

static void report_body(void)
{
    struct scene s;

    co_fail_target(&s, BACKUP_ON_ERROR_REPORT, -EIO);
    assert_int_equal(co_end_of_job(&s), -EIO);
    assert_int_equal(s.errors, 1);
    assert_int_equal(s.last_op, JOB_OP_WRITE);
    assert_non_null(strstr(s.err.text, "Cannot write to the target 'dst' at offset "));
    assert_non_null(strstr(s.err.text, ": Input/output error"));
    assert_int_equal(mem_count(s.to, MEM_FLUSH), 0);
    co_guest_write(&s, 0, G, 4);
    co_strike(&s);

    co_scene(&s, NULL);
    s.from->fails[MEM_READ] = -EIO;
    co_start_backup(&s);
    assert_int_equal(co_end_of_job(&s), -EIO);
    assert_int_equal(s.last_op, JOB_OP_READ);
    assert_non_null(strstr(s.err.text, "Cannot read the source 'src' at offset "));
    s.from->fails[MEM_READ] = 0;
    co_strike(&s);
}

static void report_fails_the_job_with_the_reason(void **state)
{
    in_loop(report_body);
}

static void drain_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_scene(&s, NULL);
    s.opts.sync = BACKUP_NONE;
    s.to->held[MEM_WRITE] = true;
    co_start_backup(&s);
    co_guest_write(&s, 0, G, 4);
    co_yield_times(20);
    assert_true(job_cancel(s.job, false, &err));
    s.to->fails[MEM_WRITE] = -EIO;
    mem_release(s.to, MEM_WRITE);
    assert_int_equal(co_end_of_job(&s), -EIO);
    /* "Cancelled" would mean that the target is whole. */
    assert_true(s.completed);
    assert_int_equal(scene_query(&s).ret, -EIO);
    co_strike(&s);
}

static void a_drain_that_fails_is_a_failure_and_no_cancel(void **state)
{
    in_loop(drain_body);
}

static void ignore_body(void)
{
    struct scene s;

    co_fail_target(&s, BACKUP_ON_ERROR_IGNORE, -EIO);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    co_sleep(450 * NSEC_PER_MSEC);
    assert_int_equal(s.errors, 1);                     /* paced */
    assert_true(mem_count(s.to, MEM_WRITE) <= 4 * 8);  /* 0, 100, 300, 700 ms */
    co_guest_write(&s, 0, DISK_SIZE, 4);
    s.to->fails[MEM_WRITE] = 0;
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    co_strike(&s);
}

static void ignore_tries_again_with_growing_patience(void **state)
{
    in_loop(ignore_body);
}

static void stop_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_fail_target(&s, BACKUP_ON_ERROR_STOP, -EIO);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    while (scene_query(&s).status != JOB_PAUSED)
        co_yield();
    assert_int_equal(s.stops, 1);
    assert_int_equal(scene_query(&s).iostatus, JOB_IO_FAILED);
    assert_true(job_user_resume(s.job, &err));
    while (s.stops < 2 || scene_query(&s).status != JOB_PAUSED)
        co_yield();
    s.to->fails[MEM_WRITE] = 0;
    assert_true(job_user_resume(s.job, &err));
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    co_strike(&s);
}

static void stop_pauses_the_job_and_resume_tries_again(void **state)
{
    in_loop(stop_body);
}

static void enospc_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_fail_target(&s, BACKUP_ON_ERROR_ENOSPC, -ENOSPC);
    while (scene_query(&s).status != JOB_PAUSED)
        co_yield();
    assert_int_equal(scene_query(&s).iostatus, JOB_IO_NOSPACE);
    s.to->fails[MEM_WRITE] = -EIO;
    assert_true(job_user_resume(s.job, &err));
    assert_int_equal(co_end_of_job(&s), -EIO);
    co_strike(&s);
}

static void enospc_stops_when_space_is_out_and_reports_the_rest(void **state)
{
    in_loop(enospc_body);
}

static void flush_body(void)
{
    struct scene s;

    co_scene(&s, NULL);
    s.opts.on_target_error = BACKUP_ON_ERROR_IGNORE;
    s.to->fails[MEM_FLUSH] = -EIO;
    co_start_backup(&s);
    assert_int_equal(co_end_of_job(&s), -EIO);
    assert_string_equal(s.err.text, "Cannot flush the target 'dst': Input/output error");
    co_strike(&s);
}

static void a_failed_flush_fails_the_job_under_any_policy(void **state)
{
    in_loop(flush_body);
}

/* ---- hanging ------------------------------------------------------------------------------- */

static void co_hang(enum mem_op op)
{
    struct err err = ERR_INIT;
    uint64_t start;
    struct scene s;

    co_scene(&s, NULL);
    s.to->held[op] = true;
    co_start_backup(&s);
    while (!mem_count(s.to, op))
        co_yield();
    start = loop_now();
    co_guest_write(&s, 0, DISK_SIZE, 2);
    assert_true(loop_now() - start < NSEC_PER_SEC);
    assert_true(job_cancel(s.job, true, &err));
    assert_int_equal(co_end_of_job(&s), -ECANCELED);
    assert_true(loop_now() - start < 4 * NSEC_PER_SEC);
    /* The source is free, the target is not: something of it is still under way. */
    assert_true(co_node_resize(s.source, 2 * DISK_SIZE, &err));
    assert_null(disk_open(s.target, "next", EDGE_WRITE, EDGE_READ, &err));
    mem_release(s.to, op);
    co_yield_times(20);
    struct disk_user *next = disk_open(s.target, "next", EDGE_WRITE, EDGE_READ, &err);

    assert_non_null(next);
    disk_close(next);
    co_strike(&s);
}

static void hang_body(void)
{
    co_hang(MEM_WRITE);
    co_hang(MEM_ZERO);
    co_hang(MEM_FLUSH);
}

static void a_target_that_hangs_holds_up_neither_guest_nor_cancel(void **state)
{
    in_loop(hang_body);
}

static void source_hang_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    for (int op = MEM_READ; op <= MEM_STATUS; op += MEM_STATUS - MEM_READ) {
        co_scene(&s, NULL);
        s.from->held[op] = true;
        co_start_backup(&s);
        while (!mem_count(s.from, op))
            co_yield();
        assert_true(job_cancel(s.job, true, &err));
        assert_int_equal(co_end_of_job(&s), -ECANCELED);
        mem_release(s.from, op);
        co_yield_times(20);
        co_strike(&s);
    }
}

static void a_source_that_hangs_does_not_hold_up_cancel(void **state)
{
    in_loop(source_hang_body);
}

static void hang_and_fail_body(void)
{
    struct scene s;

    co_scene(&s, NULL);
    s.to->held[MEM_ZERO] = true;
    s.to->fails[MEM_WRITE] = -EIO;
    co_start_backup(&s);
    assert_int_equal(co_end_of_job(&s), -EIO);
    mem_release(s.to, MEM_ZERO);
    co_yield_times(20);
    co_strike(&s);
}

static void a_failure_does_not_wait_for_what_hangs(void **state)
{
    in_loop(hang_and_fail_body);
}

static void paused_hang_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_scene(&s, NULL);
    s.to->held[MEM_WRITE] = true;
    co_start_backup(&s);
    while (!mem_count(s.to, MEM_WRITE))
        co_yield();
    assert_true(job_user_pause(s.job, &err));
    co_yield_times(20);
    assert_true(job_cancel(s.job, true, &err));
    assert_int_equal(co_end_of_job(&s), -ECANCELED);
    assert_int_equal(s.paused, 0);
    mem_release(s.to, MEM_WRITE);
    co_yield_times(20);
    co_strike(&s);
}

static void a_pause_that_never_comes_can_be_cancelled(void **state)
{
    in_loop(paused_hang_body);
}

/* ---- the view -------------------------------------------------------------------------- */

static void broken_body(void)
{
    struct scene s;

    co_scene(&s, NULL);
    s.opts.on_source_error = s.opts.on_target_error = BACKUP_ON_ERROR_IGNORE;
    s.opts.view.scratch_limit = 4 * G;
    s.opts.view.cbw_timeout_ns = 20 * NSEC_PER_MSEC;
    s.to->held[MEM_WRITE] = true;
    co_start_backup(&s);
    co_guest_write(&s, 0, 64 * G, 2);
    mem_release(s.to, MEM_WRITE);
    assert_int_equal(co_end_of_job(&s), -ETIMEDOUT);
    assert_int_equal(s.errors, 0);
    assert_non_null(strstr(s.err.text, "scratch stayed full"));
    co_strike(&s);
}

static void a_broken_view_fails_the_job_with_its_reason_and_never_the_guest(void **state)
{
    in_loop(broken_body);
}

static void nth_body(void)
{
    /* Fail the n-th operation of the target until a run gets by without. */
    for (unsigned n = 0, ends = 0; !ends; n++) {
        struct scene s;

        co_scene(&s, NULL);
        CLEANUP(free) uint8_t *want = co_content(s.source);

        s.opts.max_workers = 3;
        co_start_backup(&s);
        while (!s.finished) {
            bool now = s.to->n_log == n;

            s.to->fails[MEM_WRITE] = s.to->fails[MEM_ZERO] = s.to->fails[MEM_FLUSH] =
                now ? -EIO : 0;
            co_yield();
        }
        ends = s.ret == 0;
        s.to->fails[MEM_FLUSH] = 0;
        if (ends)
            co_expect_target(&s, want);
        else
            assert_int_equal(s.ret, -EIO);
        while (scene_query(&s).status != JOB_NULL)
            co_yield();
        co_strike(&s);
    }
}

static void whichever_operation_fails_success_means_whole(void **state)
{
    in_loop(nth_body);
}

static int setup(void **state)
{
    memdrv_register();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(report_fails_the_job_with_the_reason),
        cmocka_unit_test(a_drain_that_fails_is_a_failure_and_no_cancel),
        cmocka_unit_test(ignore_tries_again_with_growing_patience),
        cmocka_unit_test(stop_pauses_the_job_and_resume_tries_again),
        cmocka_unit_test(enospc_stops_when_space_is_out_and_reports_the_rest),
        cmocka_unit_test(a_failed_flush_fails_the_job_under_any_policy),
        cmocka_unit_test(a_target_that_hangs_holds_up_neither_guest_nor_cancel),
        cmocka_unit_test(a_source_that_hangs_does_not_hold_up_cancel),
        cmocka_unit_test(a_failure_does_not_wait_for_what_hangs),
        cmocka_unit_test(a_pause_that_never_comes_can_be_cancelled),
        cmocka_unit_test(a_broken_view_fails_the_job_with_its_reason_and_never_the_guest),
        cmocka_unit_test(whichever_operation_fails_success_means_whole),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
