/* SPDX-License-Identifier: Apache-2.0
 *
 * The backup job: what each sync mode copies and that it is the disk at the
 * start, what is refused, pausing, speed and draining. Errors are in
 * test_backup_errors.c.
 */
#include "backup_scene.h"
#include "base/mem.h"

/* ---- what is copied -------------------------------------------------------------------- */

static void full_body(void)
{
    struct job_info info;
    struct scene s;

    co_scene(&s, NULL);
    mem_fill(s.from, 300 * KiB, 100 * KiB, MEM_IS_DATA, 0);   /* data that is zeros */
    CLEANUP(free) uint8_t *want = co_content(s.source);

    co_start_backup(&s);
    co_guest_write(&s, 0, DISK_SIZE, 2);
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    assert_int_equal(mem_count(s.to, MEM_FLUSH), 1);
    assert_int_equal(mem_count(s.to, MEM_READ), 1);           /* by co_expect_target */
    for (unsigned i = 0; i < mem_count(s.to, MEM_WRITE); i++)
        assert_true(mem_nth(s.to, MEM_WRITE, i)->off < DISK_SIZE / 2);
    info = scene_query(&s);
    assert_int_equal(info.current, info.total);
    assert_true(s.completed);
    co_strike(&s);
}

static void a_full_backup_is_the_disk_at_the_start(void **state)
{
    in_loop(full_body);
}

static void odd_size_body(void)
{
    struct backup_opts opts = BACKUP_OPTS_DEFAULT;
    uint64_t size = 300 * KiB + 7;
    CLEANUP(free) uint8_t *got = xmalloc(size);
    struct job *job;

    opts.source = co_test_open("{'driver':'test-mem','node-name':'src','size':%ju}",
                               (uintmax_t)size);
    opts.target = co_test_open("{'driver':'test-mem','size':%ju}",
                               (uintmax_t)align_up(size, 512));
    mem_fill(mem_of(opts.source), 0, size, MEM_IS_DATA, 1);
    job = co_backup_start(&opts, NULL);
    assert_non_null(job);
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    assert_int_equal(co_node_pread(opts.target, 0, size, got, 0), 0);
    for (uint64_t i = 0; i < size; i++)
        assert_int_equal(got[i], 1);
    job_unref(job);
    co_node_unref(opts.target);
    co_node_unref(opts.source);
}

static void sizes_need_not_be_round(void **state)
{
    in_loop(odd_size_body);
}

static void top_body(void)
{
    struct scene s;

    co_scene(&s, "{'driver':'test-mem','node-name':'src','size':1048576,'backing':"
             "{'driver':'test-mem','node-name':'base','size':1048576}}");
    mem_fill(s.from, 0, DISK_SIZE, MEM_IS_ABSENT, 0);
    mem_fill(s.from, 128 * KiB, 64 * KiB, MEM_IS_DATA, 5);
    mem_fill(s.from, 512 * KiB, 64 * KiB, MEM_IS_ZERO, 0);
    mem_fill(mem_of(node_backing(s.source)), 0, DISK_SIZE, MEM_IS_DATA, 9);
    s.opts.sync = BACKUP_TOP;
    co_start_backup(&s);
    assert_int_equal(co_end_of_job(&s), 0);
    assert_int_equal(mem_count(s.to, MEM_WRITE), 1);
    assert_int_equal(mem_nth(s.to, MEM_WRITE, 0)->off, 128 * KiB);
    assert_int_equal(mem_nth(s.to, MEM_WRITE, 0)->len, 64 * KiB);
    assert_int_equal(mem_count(s.to, MEM_ZERO), 1);
    assert_int_equal(mem_nth(s.to, MEM_ZERO, 0)->off, 512 * KiB);
    assert_int_equal(mem_nth(s.to, MEM_ZERO, 0)->len, 64 * KiB);
    co_strike(&s);
}

static void sync_top_copies_what_the_topmost_image_holds(void **state)
{
    in_loop(top_body);
}

static void top_is_full_body(void)
{
    struct scene s;

    co_scene(&s, NULL);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    s.opts.sync = BACKUP_TOP;
    co_start_backup(&s);
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    co_strike(&s);
}

static void sync_top_without_a_backing_file_is_full(void **state)
{
    in_loop(top_is_full_body);
}

/* ---- sync=none ---------------------------------------------------------------------------- */

static void co_none(bool complete, bool force)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_scene(&s, NULL);
    CLEANUP(free) uint8_t *want = co_content(s.target);

    memset(want + 16 * G, 1, 2 * G);
    memset(want + 200 * G, 0, G);
    s.opts.sync = BACKUP_NONE;
    s.to->held[MEM_WRITE] = s.to->held[MEM_ZERO] = true;
    co_start_backup(&s);
    co_guest_write(&s, 17 * G - 1, 2, 2);
    co_guest_write(&s, 200 * G, 1, 2);
    co_yield_times(20);
    assert_int_equal(scene_query(&s).status, JOB_RUNNING);
    assert_true(complete ? job_complete(s.job, &err) : job_cancel(s.job, force, &err));
    co_yield_times(20);
    co_guest_write(&s, 20 * G, G, 3);       /* not kept any more */
    mem_release(s.to, MEM_WRITE);
    mem_release(s.to, MEM_ZERO);
    assert_int_equal(co_end_of_job(&s), complete ? 0 : -ECANCELED);
    assert_int_equal(s.cancelled, !complete);
    assert_int_equal(mem_count(s.to, MEM_FLUSH), !force);
    if (!force)
        co_expect_target(&s, want);
    co_strike(&s);
}

static void none_body(void)
{
    co_none(true, false);
    co_none(false, false);
    co_none(false, true);
}

static void sync_none_copies_old_content_and_drains_unless_forced(void **state)
{
    in_loop(none_body);
}

static void none_unfinished_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_scene(&s, NULL);
    s.opts.sync = BACKUP_NONE;
    s.opts.max_workers = 1;
    co_start_backup(&s);
    s.to->held[MEM_WRITE] = true;
    co_guest_write(&s, 0, G, 2);
    co_guest_write(&s, 8 * G, G, 2);
    co_yield_times(20);
    assert_true(job_complete(s.job, &err));
    co_yield_times(5);
    /* Its unit is captured and still to be copied, so it stays exact. */
    co_guest_write(&s, 8 * G, G, 3);
    mem_release(s.to, MEM_WRITE);
    assert_int_equal(co_end_of_job(&s), 0);
    CLEANUP(free) uint8_t *got = co_content(s.target);

    assert_int_equal(got[0], 1);
    assert_int_equal(got[8 * G], 1);
    assert_int_equal(got[9 * G], 0xee);
    co_strike(&s);
}

static void what_was_captured_stays_exact_until_it_is_drained(void **state)
{
    in_loop(none_unfinished_body);
}

/* A guest waits for room in scratch while the scanner waits for the source. */
static void slow_scan_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_scene(&s, NULL);
    s.from->held[MEM_STATUS] = true;
    s.opts.view.scratch_limit = 4 * G;
    s.opts.view.cbw_timeout_ns = 500 * NSEC_PER_MSEC;
    co_start_backup(&s);
    co_yield_times(5);
    co_guest_write(&s, 0, 8 * G, 2);
    assert_int_equal(scene_query(&s).status, JOB_RUNNING);
    assert_true(mem_count(s.to, MEM_WRITE) > 0);
    assert_true(job_cancel(s.job, true, &err));
    assert_int_equal(co_end_of_job(&s), -ECANCELED);
    mem_release(s.from, MEM_STATUS);
    co_yield_times(5);
    co_strike(&s);
}

static void what_is_captured_is_drained_while_the_scan_waits(void **state)
{
    in_loop(slow_scan_body);
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void co_expect_refused(struct scene *s, const char *text)
{
    struct err err = ERR_INIT;

    assert_null(co_backup_start(&s->opts, &err));
    assert_string_equal(err.text, text);
    assert_int_equal(s->to->n_log, 0);
    assert_false(s->finished);
    assert_null(job_find("src"));
}

static void refusal_body(void)
{
    struct err err = ERR_INIT;
    struct node *other;
    struct scene s;

    co_scene(&s, "{'driver':'test-mem','node-name':'src','size':1048576,'storage':'A','backing':"
             "{'driver':'test-mem','node-name':'base','size':1048576,'storage':'B'}}");
    s.opts.target = s.source;
    co_expect_refused(&s, "Source and target cannot be the same");
    s.opts.target = node_backing(s.source);
    co_expect_refused(&s, "Target 'base' is the source 'src' or a part of its backing chain");
    other = co_test_open("{'driver':'test-filter','node-name':'same','file':"
                         "{'driver':'test-mem','size':1048576,'storage':'A'}}");
    s.opts.target = other;
    co_expect_refused(&s, "Target 'same' is the source 'src' or a part of its backing chain");
    co_node_unref(other);
    other = co_test_open("{'driver':'test-mem','node-name':'ro','size':1048576,"
                         "'read-only':true}");
    s.opts.target = other;
    co_expect_refused(&s, "Target 'ro' is read-only");
    co_node_unref(other);
    other = co_test_open("{'driver':'test-mem','node-name':'small','size':1048575}");
    s.opts.target = other;
    co_expect_refused(&s, "Source and target image have different sizes (source 'src' has 1048576 "
                      "bytes, target 'small' has 1048575)");
    co_node_unref(other);
    other = co_test_open("{'driver':'test-mem','node-name':'large','size':1049088}");
    s.opts.target = other;
    co_expect_refused(&s, "Source and target image have different sizes (source 'src' has 1048576 "
                      "bytes, target 'large' has 1049088)");
    co_node_unref(other);

    s.opts.target = s.target;
    struct disk_user *user = disk_open(s.target, "somebody", EDGE_READ | EDGE_WRITE, EDGE_READ,
                                       &err);

    assert_null(co_backup_start(&s.opts, &err));
    assert_non_null(strstr(err.text, "somebody"));
    disk_close(user);
    s.opts.view.scratch_dir = "/nonexistent";
    co_expect_refused(&s, "Cannot create a scratch file in '/nonexistent': No such file or "
                      "directory");
    s.opts.view.scratch_dir = "/var/tmp";
    s.opts.max_chunk = 512;
    co_expect_refused(&s, "Required max-chunk (512) is less than backup cluster size (4096)");
    s.opts.max_chunk = 0;
    s.opts.max_workers = 0;
    co_expect_refused(&s, "max-workers must be between 1 and 64");
    s.opts.max_workers = 1;
    s.opts.job_id = "1";
    co_expect_refused(&s, "Invalid job ID '1'");
    s.opts.job_id = NULL;
    co_start_backup(&s);                     /* nothing was left behind that is in its way */
    assert_string_equal(job_id(s.job), "src");
    assert_null(co_backup_start(&s.opts, &err));
    assert_string_equal(err.text, "Job ID 'src' already in use");
    assert_int_equal(co_end_of_job(&s), 0);
    co_strike(&s);
}

static void what_cannot_work_is_refused_before_anything_is_touched(void **state)
{
    in_loop(refusal_body);
}

static void locked_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;

    co_scene(&s, NULL);
    s.to->held[MEM_WRITE] = true;
    co_start_backup(&s);
    assert_false(co_node_resize(s.source, 2 * DISK_SIZE, &err));
    assert_false(co_node_resize(s.target, 2 * DISK_SIZE, &err));
    assert_null(disk_open(s.target, "writer", EDGE_WRITE, EDGE_READ | EDGE_WRITE, &err));
    assert_non_null(strstr(err.text, "job 'src'"));
    mem_release(s.to, MEM_WRITE);
    assert_int_equal(co_end_of_job(&s), 0);
    assert_true(co_node_resize(s.source, 2 * DISK_SIZE, &err));
    co_strike(&s);
}

static void source_and_target_are_in_use_while_it_runs(void **state)
{
    in_loop(locked_body);
}

/* ---- steering -------------------------------------------------------------------------- */

static void pause_body(void)
{
    struct err err = ERR_INIT;
    struct scene s;
    size_t n_log;

    co_scene(&s, NULL);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    s.opts.max_workers = 2;
    s.to->held[MEM_WRITE] = true;
    co_start_backup(&s);
    co_yield_times(10);
    assert_true(job_user_pause(s.job, &err));
    co_yield_times(10);
    assert_int_equal(scene_query(&s).status, JOB_RUNNING);   /* two are in flight */
    mem_release(s.to, MEM_WRITE);
    co_yield_times(20);
    assert_int_equal(scene_query(&s).status, JOB_PAUSED);
    n_log = s.to->n_log;
    co_guest_write(&s, 0, DISK_SIZE, 3);
    co_yield_times(50);
    assert_int_equal(s.to->n_log, n_log);
    assert_true(job_user_resume(s.job, &err));
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    co_strike(&s);
}

static void a_paused_backup_touches_nothing_and_goes_on_right(void **state)
{
    in_loop(pause_body);
}

static void speed_body(void)
{
    struct err err = ERR_INIT;
    uint64_t start = loop_now();
    struct scene s;

    co_scene(&s, NULL);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    s.opts.speed = 1;
    co_start_backup(&s);
    co_sleep(20 * NSEC_PER_MSEC);
    assert_true(mem_count(s.to, MEM_WRITE) <= 1);
    assert_true(job_set_speed(s.job, 4 * MiB, &err));        /* 512 KiB: an eighth of a second */
    assert_int_equal(scene_query(&s).speed, 4 * MiB);
    assert_int_equal(co_end_of_job(&s), 0);
    assert_true(loop_now() - start > 50 * NSEC_PER_MSEC);
    assert_true(loop_now() - start < 5 * NSEC_PER_SEC);
    co_expect_target(&s, want);
    co_strike(&s);
}

static void the_speed_can_be_changed_while_it_runs(void **state)
{
    in_loop(speed_body);
}

static void limit_body(void)
{
    struct scene s;

    co_scene(&s, NULL);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    s.opts.view.scratch_limit = 8 * G;
    s.opts.max_workers = 1;
    s.to->dawdle = 30;
    co_start_backup(&s);
    for (uint64_t off = DISK_SIZE; off; off -= 64 * KiB)
        co_guest_write(&s, off - 64 * KiB, 64 * KiB, 7);
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    co_strike(&s);
}

static void captured_units_go_first_when_scratch_runs_full(void **state)
{
    in_loop(limit_body);
}

static void close_body(void)
{
    struct backup_opts opts = BACKUP_OPTS_DEFAULT;
    unsigned closed = mem_closed_count();
    struct job *job;

    opts.source = co_test_open("{'driver':'test-mem','node-name':'src','size':65536}");
    opts.target = co_test_open("{'driver':'test-mem','size':65536}");
    job = co_backup_start(&opts, NULL);
    node_unref(MOVE(opts.target));
    assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
    assert_int_equal(mem_closed_count(), closed + 1);
    job_unref(job);
    co_node_unref(opts.source);
}

static void the_target_is_closed_when_the_end_is_told(void **state)
{
    in_loop(close_body);
}

static int setup(void **state)
{
    memdrv_register();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_backup_is_the_disk_at_the_start),
        cmocka_unit_test(sizes_need_not_be_round),
        cmocka_unit_test(sync_top_copies_what_the_topmost_image_holds),
        cmocka_unit_test(sync_top_without_a_backing_file_is_full),
        cmocka_unit_test(sync_none_copies_old_content_and_drains_unless_forced),
        cmocka_unit_test(what_is_captured_is_drained_while_the_scan_waits),
        cmocka_unit_test(what_was_captured_stays_exact_until_it_is_drained),
        cmocka_unit_test(what_cannot_work_is_refused_before_anything_is_touched),
        cmocka_unit_test(source_and_target_are_in_use_while_it_runs),
        cmocka_unit_test(a_paused_backup_touches_nothing_and_goes_on_right),
        cmocka_unit_test(the_speed_can_be_changed_while_it_runs),
        cmocka_unit_test(captured_units_go_first_when_scratch_runs_full),
        cmocka_unit_test(the_target_is_closed_when_the_end_is_told),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
