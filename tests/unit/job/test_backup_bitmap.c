/* SPDX-License-Identifier: Apache-2.0
 *
 * Backups by dirty bitmaps: what is copied, and what is dirty when the job has
 * ended, well or not, in each mode. The target begins as a copy of the source, so
 * that after a job which ends well it is the source at the job's instant.
 */
#include "backup_scene.h"
#include "base/mem.h"

#define GRAN (16 * KiB)
#define UNITS (DISK_SIZE / GRAN)

struct bits {
    struct scene s;
    struct dirty_bitmap *bm;
    uint8_t *want;                 /* the source at the instant */
};

static struct dirty_bitmap *add_bitmap(struct node *n, const char *name, uint32_t granularity)
{
    struct err err = ERR_INIT;
    struct dirty_bitmap *bm = dirty_bitmap_add(
        n, &(struct dirty_bitmap_opts){ .name = name, .granularity = granularity }, &err);

    if (!bm)
        fail_msg("%s", err.text);
    return bm;
}

static void co_bits(struct bits *b, enum backup_sync sync)
{
    struct scene *s = &b->s;

    co_scene(s, NULL);
    memcpy(s->to->data, s->from->data, DISK_SIZE);
    b->bm = add_bitmap(s->source, "b", GRAN);
    s->opts.sync = sync;
    s->opts.bitmap = "b";
    b->want = NULL;
}

static void co_begin_job(struct bits *b)
{
    b->s.finished = b->s.completed = b->s.cancelled = false;
    free(b->want);
    b->want = co_content(b->s.source);
    mem_clear_log(b->s.from);
    mem_clear_log(b->s.to);
    co_start_backup(&b->s);
}

/* So that there can be another. */
static int co_end_job(struct bits *b)
{
    int r = co_end_of_job(&b->s);

    job_unref(MOVE(b->s.job));
    return r;
}

static void co_strike_bits(struct bits *b)
{
    free(b->want);
    co_strike(&b->s);
}

static void expect_dirty(const struct dirty_bitmap *bm, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < UNITS; i++)
        assert_int_equal(bitmap_test(dirty_bitmap_bits(bm), i), i >= first && i < first + count);
    assert_false(dirty_bitmap_busy(bm));
}

/* ---- what is copied ---------------------------------------------------------------------- */

static void incremental_body(void)
{
    struct job_info info;
    struct bits b;

    co_bits(&b, BACKUP_INCREMENTAL);
    co_guest_write(&b.s, 5 * GRAN + 1, GRAN, 3);         /* granules 5 and 6 */
    co_guest_write(&b.s, DISK_SIZE - 1, 1, 3);
    assert_int_equal(dirty_bitmap_count(b.bm), 3 * GRAN);
    b.s.to->held[MEM_WRITE] = true;
    co_begin_job(&b);
    assert_true(dirty_bitmap_busy(b.bm));
    co_guest_write(&b.s, 0, DISK_SIZE, 9);
    /* Only what the backup wants was read for its sake. */
    for (unsigned i = 0; i < mem_count(b.s.from, MEM_READ); i++) {
        const struct mem_record *r = mem_nth(b.s.from, MEM_READ, i);

        assert_true((r->off >= 5 * GRAN && r->off + r->len <= 7 * GRAN) ||
                    r->off >= DISK_SIZE - GRAN);
    }
    mem_release(b.s.to, MEM_WRITE);
    assert_int_equal(co_end_job(&b), 0);
    assert_int_equal(mem_count(b.s.to, MEM_WRITE), 2);
    assert_int_equal(mem_nth(b.s.to, MEM_WRITE, 0)->off, 5 * GRAN);
    assert_int_equal(mem_nth(b.s.to, MEM_WRITE, 0)->len, 2 * GRAN);
    co_expect_target(&b.s, b.want);
    expect_dirty(b.bm, 0, UNITS);                        /* all written since */

    co_begin_job(&b);
    while (!b.s.finished)
        co_yield();
    info = scene_query(&b.s);
    assert_int_equal(info.current, DISK_SIZE);
    assert_int_equal(info.total, DISK_SIZE);
    assert_int_equal(co_end_job(&b), 0);
    co_expect_target(&b.s, b.want);
    expect_dirty(b.bm, 0, 0);

    co_begin_job(&b);                                        /* nothing to do */
    assert_int_equal(co_end_job(&b), 0);
    assert_int_equal(mem_count(b.s.to, MEM_WRITE), 0);
    co_strike_bits(&b);
}

static void an_incremental_backup_is_what_is_dirty_at_the_instant(void **state)
{
    in_loop(incremental_body);
}

static void zeros_body(void)
{
    struct bits b;
    uint64_t long_zeros = 20 * GRAN;

    co_bits(&b, BACKUP_INCREMENTAL);
    b.s.opts.target_is_zero = true;        /* must not be believed: it holds the last backup */
    assert_int_equal(co_disk_discard(b.s.guest, 0, GRAN), 0);
    assert_int_equal(co_disk_write_zeroes(b.s.guest, 4 * GRAN, long_zeros, REQ_MAY_UNMAP), 0);
    co_guest_write(&b.s, 30 * GRAN, GRAN, 0);            /* zeros as data */
    co_begin_job(&b);
    assert_int_equal(co_end_job(&b), 0);
    co_expect_target(&b.s, b.want);
    assert_int_equal(mem_count(b.s.to, MEM_WRITE), 0);
    assert_true(mem_count(b.s.to, MEM_ZERO) >= 3);
    co_strike_bits(&b);
}

static void what_became_zero_becomes_zero_in_the_target(void **state)
{
    in_loop(zeros_body);
}

/* Granules below a unit, and above the longest piece. */
static void granularity_body(void)
{
    static const uint32_t granularities[] = { 512, 4096, 65536, 524288, 1u << 31 };

    for (unsigned i = 0; i < ARRAY_SIZE(granularities); i++) {
        struct bits b;

        co_bits(&b, BACKUP_INCREMENTAL);
        b.s.opts.bitmap = "g";
        struct dirty_bitmap *g = add_bitmap(b.s.source, "g", granularities[i]);

        co_guest_write(&b.s, 513, 1, 3);
        co_guest_write(&b.s, 300 * KiB, 70 * KiB, 4);
        co_guest_write(&b.s, DISK_SIZE - 512, 512, 5);
        co_begin_job(&b);
        co_guest_write(&b.s, 0, DISK_SIZE, 6);
        assert_int_equal(co_end_job(&b), 0);
        co_expect_target(&b.s, b.want);
        assert_int_equal(dirty_bitmap_count(g), MAX(DISK_SIZE, granularities[i]));
        co_strike_bits(&b);
    }
}

static void any_granularity_does(void **state)
{
    in_loop(granularity_body);
}

/* ---- what is dirty afterwards --------------------------------------------------------------- */

enum outcome { WELL, WRITE_FAILS, READ_FAILS, FLUSH_FAILS, CANCELLED, CANCELLED_PENDING, BROKEN };

/* 20 granules are dirty, 8 pieces of 64 KiB; those before granule 8 are copied when the rest
 * meets its fate. */
static int co_meet(struct bits *b, enum outcome o)
{
    struct scene *s = &b->s;
    struct err err = ERR_INIT;

    co_guest_write(s, 0, 20 * GRAN, 3);
    s->opts.max_workers = 1;
    s->opts.auto_finalize = o != CANCELLED_PENDING;
    s->opts.auto_dismiss = false;
    s->opts.speed = 0;
    s->to->fails[MEM_FLUSH] = o == FLUSH_FAILS ? -EIO : 0;
    co_begin_job(b);
    while (o != WELL && o != FLUSH_FAILS && o != CANCELLED_PENDING &&
           mem_count(s->to, MEM_WRITE) < 2)
        co_yield();
    s->to->fails[MEM_WRITE] = o == WRITE_FAILS ? -ENOSPC : 0;
    s->from->fails[MEM_READ] = o == READ_FAILS ? -EIO : 0;
    if (o == CANCELLED)
        s->to->held[MEM_WRITE] = true;
    if (o == BROKEN) {
        s->from->fails[MEM_READ] = -EIO;
        co_guest_write(s, 19 * GRAN, G, 4);
    }
    if (o == CANCELLED_PENDING) {
        while (scene_query(s).status != JOB_PENDING)
            co_yield();
        assert_true(dirty_bitmap_busy(b->bm));
    }
    if (o == CANCELLED || o == CANCELLED_PENDING)
        assert_true(job_cancel(s->job, true, &err));
    if (o == CANCELLED) {
        co_yield_times(5);
        mem_release(s->to, MEM_WRITE);
    }
    int r = co_end_of_job(s);

    assert_true(job_dismiss(s->job, &err));
    job_unref(MOVE(s->job));
    s->to->fails[MEM_FLUSH] = s->to->fails[MEM_WRITE] = s->from->fails[MEM_READ] = 0;
    return r;
}

static void never_and_on_success_body(void)
{
    for (unsigned mode = BACKUP_BITMAP_ON_SUCCESS; mode <= BACKUP_BITMAP_NEVER; mode++) {
        for (enum outcome o = WELL; o <= BROKEN; o++) {
            struct bits b;

            co_bits(&b, BACKUP_BITMAP);
            b.s.opts.has_bitmap_mode = true;
            b.s.opts.bitmap_mode = mode;
            assert_int_equal(co_meet(&b, o) == 0, o == WELL);
            expect_dirty(b.bm, 0, o == WELL && mode == BACKUP_BITMAP_ON_SUCCESS ? 0 : 20);
            if (o == WELL)
                co_expect_target(&b.s, b.want);
            co_strike_bits(&b);
        }
    }
}

static void after_a_failure_all_is_dirty_again_and_with_never_in_any_case(void **state)
{
    in_loop(never_and_on_success_body);
}

/* What is still dirty, and nothing else, completes the same target. */
static void always_body(void)
{
    for (enum outcome o = WELL; o <= BROKEN; o++) {
        struct bits b;

        co_bits(&b, BACKUP_BITMAP);
        b.s.opts.has_bitmap_mode = true;
        b.s.opts.bitmap_mode = BACKUP_BITMAP_ALWAYS;
        assert_int_equal(co_meet(&b, o) == 0, o == WELL);
        if (o == WELL || o == CANCELLED_PENDING)
            assert_int_equal(dirty_bitmap_count(b.bm), 0);
        else if (o == FLUSH_FAILS)
            expect_dirty(b.bm, 0, 20);                   /* nobody knows what is there */
        else
            assert_in_range(dirty_bitmap_count(b.bm) / GRAN, 1, 16);
        co_guest_write(&b.s, 40 * GRAN, 1, 7);
        b.s.opts.auto_finalize = b.s.opts.auto_dismiss = true;
        co_begin_job(&b);
        assert_int_equal(co_end_job(&b), 0);
        co_expect_target(&b.s, b.want);
        expect_dirty(b.bm, 0, 0);
        co_strike_bits(&b);
    }
}

static void always_keeps_what_was_not_copied(void **state)
{
    in_loop(always_body);
}

/* Two pieces of a granule's four are copied: it stays dirty as a whole. */
static void coarse_body(void)
{
    struct bits b;

    co_bits(&b, BACKUP_BITMAP);
    struct dirty_bitmap *coarse = add_bitmap(b.s.source, "coarse", 256 * KiB);

    b.s.opts.bitmap = "coarse";
    b.s.opts.has_bitmap_mode = true;
    b.s.opts.bitmap_mode = BACKUP_BITMAP_ALWAYS;
    assert_true(co_meet(&b, WRITE_FAILS) < 0);
    assert_int_equal(dirty_bitmap_count(coarse), 2 * 256 * KiB);
    b.s.opts.auto_dismiss = true;
    co_begin_job(&b);
    assert_int_equal(co_end_job(&b), 0);
    co_expect_target(&b.s, b.want);
    assert_int_equal(dirty_bitmap_count(coarse), 0);
    co_strike_bits(&b);
}

static void a_granule_is_clean_when_all_of_it_is_copied(void **state)
{
    in_loop(coarse_body);
}

/* A full backup that fails leaves a bitmap by which it can be completed. */
static void full_always_body(void)
{
    for (enum outcome o = WRITE_FAILS; o <= BROKEN; o++) {
        struct bits b;

        co_bits(&b, BACKUP_FULL);
        mem_fill(b.s.to, 0, DISK_SIZE, MEM_IS_DATA, 0xee);
        b.s.opts.has_bitmap_mode = true;
        b.s.opts.bitmap_mode = BACKUP_BITMAP_ALWAYS;
        assert_true(co_meet(&b, o) < 0);
        if (o == FLUSH_FAILS)
            expect_dirty(b.bm, 0, UNITS);
        b.s.opts.sync = BACKUP_BITMAP;
        b.s.opts.auto_finalize = b.s.opts.auto_dismiss = true;
        co_begin_job(&b);
        assert_int_equal(co_end_job(&b), 0);
        co_expect_target(&b.s, b.want);
        co_strike_bits(&b);
    }
}

static void a_full_backup_that_fails_can_be_completed(void **state)
{
    in_loop(full_always_body);
}

static void full_body(void)
{
    struct bits b;

    co_bits(&b, BACKUP_FULL);
    b.s.opts.has_bitmap_mode = true;
    co_guest_write(&b.s, 0, 4 * GRAN, 3);
    co_begin_job(&b);
    co_guest_write(&b.s, 9 * GRAN, 2 * GRAN, 5);
    assert_int_equal(co_end_job(&b), 0);
    co_expect_target(&b.s, b.want);
    expect_dirty(b.bm, 9, 2);
    co_strike_bits(&b);
}

static void a_full_backup_begins_a_bitmap_anew(void **state)
{
    in_loop(full_body);
}

static void new_body(void)
{
    struct bits b;

    co_bits(&b, BACKUP_FULL);
    b.s.opts.bitmap = NULL;
    b.s.opts.new_bitmap = (struct dirty_bitmap_opts){ .name = "new", .granularity = GRAN };
    b.s.to->fails[MEM_FLUSH] = -EIO;
    co_begin_job(&b);
    assert_int_equal(dirty_bitmap_count(dirty_bitmap_find(b.s.source, "new", NULL)), DISK_SIZE);
    assert_int_equal(co_end_job(&b), -EIO);
    assert_null(dirty_bitmap_find(b.s.source, "new", NULL));

    b.s.to->fails[MEM_FLUSH] = 0;
    co_begin_job(&b);
    co_guest_write(&b.s, 9 * GRAN, 2 * GRAN, 5);
    assert_int_equal(co_end_job(&b), 0);
    co_expect_target(&b.s, b.want);
    expect_dirty(dirty_bitmap_find(b.s.source, "new", NULL), 9, 2);
    co_strike_bits(&b);
}

static void a_new_bitmap_records_from_the_instant_and_goes_with_a_failure(void **state)
{
    in_loop(new_body);
}

/* ---- several -------------------------------------------------------------------------------- */

static void two_body(void)
{
    struct scene other;
    struct bits b;

    co_bits(&b, BACKUP_INCREMENTAL);
    struct dirty_bitmap *second = add_bitmap(b.s.source, "second", GRAN);

    co_guest_write(&b.s, 0, 10 * GRAN, 3);
    co_begin_job(&b);
    other = b.s;
    other.opts.job_id = "other";
    other.opts.bitmap = "second";
    other.opts.events_arg = &other;
    other.target = other.opts.target = co_test_open("{'driver':'test-mem','size':%ju}",
                                                    (uintmax_t)DISK_SIZE);
    other.to = mem_of(other.target);
    memcpy(other.to->data, b.s.to->data, DISK_SIZE);
    other.to->held[MEM_WRITE] = true;
    co_guest_write(&b.s, 12 * GRAN, GRAN, 4);
    CLEANUP(free) uint8_t *later = co_content(b.s.source);

    co_start_backup(&other);
    co_guest_write(&b.s, 20 * GRAN, GRAN, 5);
    assert_int_equal(co_end_job(&b), 0);
    co_expect_target(&b.s, b.want);
    assert_true(dirty_bitmap_busy(second));
    assert_int_equal(dirty_bitmap_count(b.bm), 2 * GRAN);
    mem_release(other.to, MEM_WRITE);
    assert_int_equal(co_end_of_job(&other), 0);
    co_expect_target(&other, later);
    expect_dirty(second, 20, 1);
    job_unref(other.job);
    co_node_unref(other.target);
    co_strike_bits(&b);
}

static void two_backups_by_two_bitmaps_do_not_disturb_each_other(void **state)
{
    in_loop(two_body);
}

/* ---- what is refused ------------------------------------------------------------------------ */

struct refusal {
    enum backup_sync sync;
    const char *bitmap;
    int mode;                      /* -1: none */
    const char *text;
};

static void refused_body(void)
{
    static const struct refusal refusals[] = {
        { BACKUP_INCREMENTAL, NULL, -1,
          "must provide a valid bitmap name for 'incremental' sync mode" },
        { BACKUP_BITMAP, NULL, BACKUP_BITMAP_NEVER,
          "must provide a valid bitmap name for 'bitmap' sync mode" },
        { BACKUP_INCREMENTAL, "b", BACKUP_BITMAP_ALWAYS,
          "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'" },
        { BACKUP_BITMAP, "none", -1, "Bitmap 'none' could not be found" },
        { BACKUP_BITMAP, "b", -1, "Bitmap sync mode must be given when providing a bitmap" },
        { BACKUP_FULL, "b", -1, "Bitmap sync mode must be given when providing a bitmap" },
        { BACKUP_NONE, "b", BACKUP_BITMAP_ALWAYS,
          "sync mode 'none' does not produce meaningful bitmap outputs" },
        { BACKUP_TOP, "b", BACKUP_BITMAP_NEVER,
          "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'top'" },
        { BACKUP_FULL, NULL, BACKUP_BITMAP_ALWAYS,
          "Cannot specify bitmap sync mode without a bitmap" },
    };
    struct bits b;

    co_bits(&b, BACKUP_INCREMENTAL);
    for (unsigned i = 0; i <= ARRAY_SIZE(refusals); i++) {
        const char *text = "Bitmap 'b' is currently in use by another operation and cannot "
                           "be used";
        struct err err = ERR_INIT;

        if (i < ARRAY_SIZE(refusals)) {
            b.s.opts.sync = refusals[i].sync;
            b.s.opts.bitmap = refusals[i].bitmap;
            b.s.opts.has_bitmap_mode = refusals[i].mode >= 0;
            b.s.opts.bitmap_mode = MAX(refusals[i].mode, 0);
            text = refusals[i].text;
        } else {
            b.s.opts.sync = BACKUP_BITMAP;
            b.s.opts.bitmap = "b";
            dirty_bitmap_hold(b.bm);
        }
        assert_null(co_backup_start(&b.s.opts, &err));
        assert_string_equal(err.text, text);
    }
    dirty_bitmap_let_go(b.bm);
    co_strike_bits(&b);
}

static void wrong_combinations_are_refused_in_qemus_words(void **state)
{
    in_loop(refused_body);
}

/* It stops recording between the checks and the instant. */
static void spoiled_body(void)
{
    struct backup *backup;
    struct bits b;

    co_bits(&b, BACKUP_INCREMENTAL);
    backup = co_backup_prepare(&b.s.opts, &b.s.err);
    assert_non_null(backup);
    dirty_bitmap_spoil(b.bm, "its file is full");
    co_guest_write(&b.s, 0, GRAN, 5);
    assert_int_equal(co_shut_doors(b.s.source, DEADLINE_NEVER), 0);
    backup_begin(backup);
    open_doors(b.s.source);
    b.s.job = backup_start(backup);
    assert_int_equal(co_end_of_job(&b.s), -EINVAL);
    assert_non_null(strstr(b.s.err.text, "its file is full"));
    co_strike_bits(&b);
}

static void a_bitmap_that_is_spoiled_before_the_instant_fails_the_job(void **state)
{
    in_loop(spoiled_body);
}

static void empty_body(void)
{
    static const enum backup_sync syncs[] = { BACKUP_INCREMENTAL, BACKUP_FULL };
    struct backup_opts opts = BACKUP_OPTS_DEFAULT;

    opts.source = co_test_open("{'driver':'test-mem','node-name':'src','size':0}");
    opts.target = co_test_open("{'driver':'test-mem','size':0}");
    opts.bitmap = "b";
    opts.has_bitmap_mode = true;
    add_bitmap(opts.source, "b", GRAN);
    for (unsigned i = 0; i < ARRAY_SIZE(syncs); i++) {
        struct err err = ERR_INIT;
        struct job *job;

        opts.sync = syncs[i];
        job = co_backup_start(&opts, &err);
        assert_non_null(job);
        assert_true(co_job_wait_concluded(job, DEADLINE_NEVER));
        job_unref(job);
    }
    co_node_unref(opts.target);
    co_node_unref(opts.source);
}

static void an_empty_disk_is_backed_up(void **state)
{
    in_loop(empty_body);
}

static int setup(void **state)
{
    memdrv_register();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_incremental_backup_is_what_is_dirty_at_the_instant),
        cmocka_unit_test(what_became_zero_becomes_zero_in_the_target),
        cmocka_unit_test(any_granularity_does),
        cmocka_unit_test(after_a_failure_all_is_dirty_again_and_with_never_in_any_case),
        cmocka_unit_test(always_keeps_what_was_not_copied),
        cmocka_unit_test(a_granule_is_clean_when_all_of_it_is_copied),
        cmocka_unit_test(a_full_backup_that_fails_can_be_completed),
        cmocka_unit_test(a_full_backup_begins_a_bitmap_anew),
        cmocka_unit_test(a_new_bitmap_records_from_the_instant_and_goes_with_a_failure),
        cmocka_unit_test(two_backups_by_two_bitmaps_do_not_disturb_each_other),
        cmocka_unit_test(wrong_combinations_are_refused_in_qemus_words),
        cmocka_unit_test(a_bitmap_that_is_spoiled_before_the_instant_fails_the_job),
        cmocka_unit_test(an_empty_disk_is_backed_up),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
