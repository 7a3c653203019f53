/* SPDX-License-Identifier: Apache-2.0
 *
 * Backups that share storage: what is cloned while guests write is put right from the
 * view, zeros too, and what cannot be cloned is copied.
 */
#include "backup_scene.h"
#include "base/mem.h"

#define WRITES 400

static void co_clone_scene(struct scene *s)
{
    co_scene(s, NULL);
    s->to->clones = true;
    mem_fill(s->to, 0, DISK_SIZE, MEM_IS_ZERO, 0);
    s->opts.target_is_zero = s->opts.zero_is_sure = true;
}

static void exact_body(void)
{
    struct scene s;

    co_clone_scene(&s);
    s.to->dawdle = 2;
    CLEANUP(free) uint8_t *want = co_content(s.source);
    uint64_t seed = test_seed(11);

    co_start_backup(&s);
    for (unsigned i = 0; i < WRITES; i++) {
        co_guest_write(&s, test_random(&seed, DISK_SIZE - G), 1 + test_random(&seed, G), 7);
        co_yield_times(test_random(&seed, 3));
    }
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    assert_true(mem_count(s.to, MEM_CLONE) >= 2);
    assert_int_equal(mem_nth(s.to, MEM_CLONE, 0)->len, s.opts.max_chunk);
    co_strike(&s);
}

static void a_clone_is_the_disk_at_the_start(void **state)
{
    in_loop(exact_body);
}

/* The guest writes over zeros before the clone: zeros have to come back. */
static void zeros_body(void)
{
    struct scene s;

    co_clone_scene(&s);
    mem_fill(s.from, 64 * KiB, 64 * KiB, MEM_IS_DATA, 0);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    co_start_backup(&s);
    s.to->held[MEM_CLONE] = true;
    co_yield_times(20);
    co_guest_write(&s, 64 * KiB, 64 * KiB, 9);
    mem_release(s.to, MEM_CLONE);
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    assert_true(mem_count(s.to, MEM_ZERO) >= 1);
    co_strike(&s);
}

static void zeros_come_back(void **state)
{
    in_loop(zeros_body);
}

/* The first pieces show that it works; what follows goes in one. */
static void longer_body(void)
{
    uint64_t longest = 0;
    struct scene s;

    co_clone_scene(&s);
    s.opts.max_workers = 1;
    CLEANUP(free) uint8_t *want = co_content(s.source);

    co_start_backup(&s);
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    for (unsigned i = 0; i < mem_count(s.to, MEM_CLONE); i++)
        longest = MAX(longest, mem_nth(s.to, MEM_CLONE, i)->len);
    assert_true(longest > s.opts.max_chunk);
    assert_int_equal(mem_count(s.to, MEM_WRITE), 0);
    co_strike(&s);
}

static void clones_grow_longer(void **state)
{
    in_loop(longer_body);
}

/* What is refused before the job runs has not touched the target. */
static void dropped_body(void)
{
    struct backup *b;
    struct scene s;

    co_clone_scene(&s);
    b = co_backup_prepare(&s.opts, &s.err);
    assert_non_null(b);
    backup_drop(b);
    assert_int_equal(s.to->n_log, 0);
    co_strike(&s);
}

static void nothing_is_cloned_before_the_job_runs(void **state)
{
    in_loop(dropped_body);
}

static void falls_back_body(void)
{
    struct scene s;

    co_clone_scene(&s);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    co_start_backup(&s);
    s.to->fails[MEM_CLONE] = -EIO;
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    assert_true(mem_count(s.to, MEM_WRITE) > 0);
    assert_int_equal(s.errors, 0);
    co_strike(&s);
}

static void what_cannot_be_cloned_is_copied(void **state)
{
    in_loop(falls_back_body);
}

static void unwanted_body(void)
{
    struct scene s;

    co_clone_scene(&s);
    CLEANUP(free) uint8_t *want = co_content(s.source);

    s.opts.reflink = false;
    co_start_backup(&s);
    assert_int_equal(co_end_of_job(&s), 0);
    co_expect_target(&s, want);
    assert_int_equal(mem_count(s.to, MEM_CLONE), 0);
    co_strike(&s);
}

static void nothing_is_shared_when_it_is_not_wanted(void **state)
{
    in_loop(unwanted_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_clone_is_the_disk_at_the_start),
        cmocka_unit_test(zeros_come_back),
        cmocka_unit_test(clones_grow_longer),
        cmocka_unit_test(nothing_is_cloned_before_the_job_runs),
        cmocka_unit_test(what_cannot_be_cloned_is_copied),
        cmocka_unit_test(nothing_is_shared_when_it_is_not_wanted),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
