/* SPDX-License-Identifier: Apache-2.0
 *
 * The depth of a backup against simulated targets: time is a number here.
 */
#include "job/depth.h"
#include "co_test.h"

/* How long one piece of 1 MiB takes with @depth of them in flight. */
typedef uint64_t target_fn(unsigned depth);

/* Two CPUs that copy; more in flight cool the caches. */
static uint64_t local(unsigned depth)
{
    return depth == 1 ? 600 * NSEC_PER_USEC : depth * (300 + depth) * NSEC_PER_USEC;
}

/* A line with 20 ms to the other end and room for everybody. */
static uint64_t far_away(unsigned depth)
{
    return 20 * NSEC_PER_MSEC;
}

/* The same until eight are in flight; then they queue. */
static uint64_t eight_at_a_time(unsigned depth)
{
    return 20 * NSEC_PER_MSEC * MAX(depth, 8U) / 8;
}

struct run {
    struct depth d;
    uint64_t now;
    unsigned deepest, shallowest;
};

static void run_begin(struct run *r, unsigned max)
{
    r->now = NSEC_PER_SEC;
    depth_init(&r->d, max, r->now);
}

static void copy_pieces(struct run *r, target_fn *target, unsigned n)
{
    r->deepest = r->shallowest = r->d.now;
    while (n--) {
        /* In the steady state one of @now ends each so often. */
        r->now += target(r->d.now) / r->d.now;
        depth_piece_done(&r->d, MiB, r->now);
        r->deepest = MAX(r->deepest, r->d.now);
        r->shallowest = MIN(r->shallowest, r->d.now);
    }
}

/* What it uses but for trials. */
static unsigned usual(struct run *r)
{
    return r->d.base;
}

static void few_for_a_local_copy(void **state)
{
    struct run r;

    run_begin(&r, 64);
    copy_pieces(&r, local, 4096);
    assert_int_equal(usual(&r), 2);
    assert_int_equal(r.deepest, 4);      /* it was tried */
}

static void many_for_a_far_target(void **state)
{
    struct run r;

    run_begin(&r, 64);
    /* 64 MiB have been enough to find out, and to use it. */
    copy_pieces(&r, far_away, 4 * (2 + 2 + 4 + 8 + 16 + 32));
    assert_int_equal(r.d.now, 64);
    copy_pieces(&r, far_away, 4096);
    assert_int_equal(usual(&r), 64);
    assert_int_equal(r.deepest, 64);
}

static void as_many_as_are_of_use(void **state)
{
    struct run r;

    run_begin(&r, 64);
    copy_pieces(&r, eight_at_a_time, 8192);
    assert_int_equal(usual(&r), 8);
    copy_pieces(&r, eight_at_a_time, 8192);
    assert_int_equal(r.deepest, 16);
    assert_int_equal(r.shallowest, 4);
}

static void follows_a_target_that_changes(void **state)
{
    struct run r;

    run_begin(&r, 64);
    copy_pieces(&r, far_away, 4096);
    assert_int_equal(usual(&r), 64);
    copy_pieces(&r, local, 16384);
    assert_int_equal(usual(&r), 2);
    copy_pieces(&r, far_away, 4096);
    assert_int_equal(usual(&r), 64);
}

static void keeps_to_its_bounds(void **state)
{
    for (unsigned max = 1; max <= 9; max++) {
        struct run r;

        run_begin(&r, max);
        copy_pieces(&r, far_away, 4096);
        assert_int_equal(usual(&r), max);
        assert_int_equal(r.deepest, max);
        copy_pieces(&r, local, 4096);
        assert_int_equal(usual(&r), MIN(max, 2U));
        assert_int_equal(r.shallowest, MIN(max, 2U));
    }
}

/* A pause of an hour in a window would look like a target that became slow. */
static void a_pause_is_not_slowness(void **state)
{
    struct run r;

    run_begin(&r, 64);
    copy_pieces(&r, far_away, 8192);
    for (int i = 0; i < 100; i++) {
        copy_pieces(&r, far_away, 100);
        r.now += 3600 * NSEC_PER_SEC;
        depth_interrupted(&r.d, r.now);
        assert_int_equal(usual(&r), 64);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(few_for_a_local_copy),
        cmocka_unit_test(many_for_a_far_target),
        cmocka_unit_test(as_many_as_are_of_use),
        cmocka_unit_test(follows_a_target_that_changes),
        cmocka_unit_test(keeps_to_its_bounds),
        cmocka_unit_test(a_pause_is_not_slowness),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
