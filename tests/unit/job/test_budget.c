/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: with a latency budget guests' requests take the factor at most, copying goes on
 * as fast as that allows, settles, and never stops; without guests it is not held back.
 * Method: a simulated guest, whose requests take longer by so much for each copy under
 * way, and a simulated target. Time is a number here.
 */
#include "job/budget.h"
#include "co_test.h"

#define STEP (20 * NSEC_PER_USEC)
#define COPIES_MAX 64

struct sim {
    struct budget b;
    struct meter m;
    uint64_t now, wake_at;

    /* The guest: @depth requests at a time; 0: there is none. */
    unsigned depth;
    double alone_us, more_per_copy;  /* 1: one copy doubles what it takes */
    double outliers;                 /* that share of the requests takes a hundred times as long */
    uint64_t cpu_wait_us;            /* that both it and the loop wait for a CPU beside a copy */
    double pending;                  /* requests that are nearly done */
    uint64_t random;

    /* The target, and how many copies the job would have under way. */
    uint64_t copy_ns;
    unsigned max;
    uint64_t ends[COPIES_MAX];
    unsigned in_flight;

    uint64_t copied;
    double requests, took_us;
    uint64_t last_start, longest_pause;
};

static void sim_init(struct sim *s, double factor)
{
    *s = (struct sim){
        .now = NSEC_PER_SEC, .alone_us = 25, .more_per_copy = 1, .copy_ns = 300 * NSEC_PER_USEC,
        .max = 2, .random = 1,
    };
    budget_init(&s->b, factor, s->now);
}

static void finish_copies(struct sim *s)
{
    for (unsigned i = 0; i < s->in_flight;) {
        if (s->ends[i] > s->now) {
            i++;
            continue;
        }
        s->ends[i] = s->ends[--s->in_flight];
        s->copied++;
        s->wake_at = s->now;
    }
}

/* What the job does when it is woken (backup.c). */
static void run_job(struct sim *s)
{
    if (s->now < s->wake_at)
        return;
    s->wake_at = UINT64_MAX;
    budget_look(&s->b, &s->m, s->in_flight, s->max, s->now);
    while (budget_grants(&s->b, s->now, &s->wake_at)) {
        assert_true(s->in_flight < s->max);
        s->ends[s->in_flight++] = s->now + s->copy_ns;
        if (s->last_start)
            s->longest_pause = MAX(s->longest_pause, s->now - s->last_start);
        s->last_start = s->now;
        budget_begun(&s->b, s->in_flight);
    }
}

static void run_guest(struct sim *s)
{
    double us = s->alone_us * (1 + s->more_per_copy * s->in_flight);
    uint64_t wait_us = s->in_flight ? s->cpu_wait_us : 0;

    if (!s->depth)
        return;
    s->pending += STEP / 1e3 * s->depth / (us + 2.0 * (double)wait_us);
    for (; s->pending >= 1; s->pending--) {
        double took;

        s->random = s->random * 6364136223846793005ULL + 1442695040888963407ULL;
        took = us * (0.5 + (double)(s->random >> 40) / (1 << 24));
        if (s->outliers > 0 && (double)(s->random >> 20 & 0xffff) / 65536 < s->outliers)
            took *= 100;
        s->m.sum[METER_WRITE].n++;
        s->m.sum[METER_WRITE].ns += MIN((uint64_t)(took * 1000), s->m.most[METER_WRITE]
                                        ? s->m.most[METER_WRITE] : UINT64_MAX);
        s->m.cpu.times++;
        s->m.cpu.ns += wait_us * 1000;
        s->requests++;
        s->took_us += us + 2.0 * (double)wait_us;
    }
}

static void run_for(struct sim *s, uint64_t ns)
{
    for (uint64_t end = s->now + ns; s->now < end; s->now += STEP) {
        finish_copies(s);
        run_job(s);
        run_guest(s);
    }
}

struct result {
    double slower;             /* than alone */
    double share;              /* copies under way on average */
    double least, most;        /* of that, by seconds */
};

/* What happens in the next @seconds. */
static struct result measure(struct sim *s, unsigned seconds)
{
    struct result r = { .least = 1e9 };
    uint64_t copied = s->copied;

    s->requests = s->took_us = 0;
    for (unsigned i = 0; i < seconds; i++) {
        uint64_t before = s->copied;

        run_for(s, NSEC_PER_SEC);

        double share = (double)(s->copied - before) * (double)s->copy_ns / NSEC_PER_SEC;

        r.least = MIN(r.least, share);
        r.most = MAX(r.most, share);
    }
    r.share = (double)(s->copied - copied) * (double)s->copy_ns / NSEC_PER_SEC / seconds;
    r.slower = s->requests > 0 ? s->took_us / s->requests / s->alone_us : 0;
    return r;
}

static void assert_between(double value, double least, double most)
{
    if (value < least || value > most)
        print_error("%g is not between %g and %g\n", value, least, most);
    assert_true(value >= least && value <= most);
}

static const uint64_t targets[] = { 300 * NSEC_PER_USEC, 1300 * NSEC_PER_USEC,
                                    20300 * NSEC_PER_USEC, 200300 * NSEC_PER_USEC };

static void without_a_guest_nothing_is_held_back(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(targets); i++) {
        struct sim s;

        sim_init(&s, 1.5);
        s.copy_ns = targets[i];
        s.max = i < 2 ? 2 : 64;
        assert_between(measure(&s, 5).share, 0.9 * s.max, s.max);
        assert_false(budget_binds(&s.b));
    }
}

static void a_guest_that_is_not_hindered_does_not_hinder(void **state)
{
    struct sim s;

    sim_init(&s, 1.5);
    s.depth = 4;
    s.more_per_copy = 0.01;
    run_for(&s, NSEC_PER_SEC);
    /* Probes take some of it. */
    assert_between(measure(&s, 10).share, 1.9, 2);
}

static void keeps_to_the_factor(void **state)
{
    static const double factors[] = { 1.2, 1.5, 2 };

    for (size_t f = 0; f < ARRAY_SIZE(factors); f++) {
        for (unsigned depth = 1; depth <= 16; depth *= 4) {
            /* A target of 200 ms is too coarse for one second of a hundredth. */
            for (size_t i = 0; i + 1 < ARRAY_SIZE(targets); i++) {
                struct result r;
                struct sim s;

                sim_init(&s, factors[f]);
                s.depth = depth;
                s.copy_ns = targets[i];
                s.max = 16;
                run_for(&s, 5 * NSEC_PER_SEC);
                r = measure(&s, 10);
                assert_between(r.slower - 1, 0.6 * (factors[f] - 1), 1.3 * (factors[f] - 1));
                /* No swinging to and fro. */
                assert_between(r.least, 0.5 * r.share, r.share);
                assert_between(r.most, r.share, 1.6 * r.share);
            }
        }
    }
}

static void a_slow_target_is_no_reason_to_wait(void **state)
{
    struct sim s;

    /* Copies that wait for the target all the time take nothing from anybody. */
    sim_init(&s, 1.5);
    s.depth = 1;
    s.copy_ns = targets[3];
    s.max = 64;
    s.more_per_copy = 0.001;
    run_for(&s, 3 * NSEC_PER_SEC);
    assert_between(measure(&s, 20).share, 0.9 * 64, 1.1 * 64);
}

/* The loop itself sees nothing of it. */
static void waiting_for_a_cpu_counts(void **state)
{
    struct sim s;

    sim_init(&s, 1.5);
    s.depth = 1;
    s.more_per_copy = 0;
    s.cpu_wait_us = 100;
    run_for(&s, 5 * NSEC_PER_SEC);
    assert_between(measure(&s, 10).slower, 1.25, 1.7);
}

static void outliers_do_not_stop_it(void **state)
{
    struct sim s;

    sim_init(&s, 1.5);
    s.depth = 1;
    s.outliers = 0.01;
    run_for(&s, 5 * NSEC_PER_SEC);
    /* 0.5 would be right. */
    assert_between(measure(&s, 20).share, 0.25, 1);
}

static void never_stops(void **state)
{
    static const double factors[] = { 1, 1.5 };

    for (size_t f = 0; f < ARRAY_SIZE(factors); f++) {
        for (size_t i = 0; i < ARRAY_SIZE(targets); i++) {
            struct sim s;

            sim_init(&s, factors[f]);
            s.depth = 16;
            s.more_per_copy = 100;
            s.copy_ns = targets[i];
            run_for(&s, 5 * NSEC_PER_SEC);
            s.longest_pause = 0;
            /* A guest that stands still for a third of the time takes 1.5 times as long. A copy
             * of 200 ms has a pause of a second behind it at most. */
            assert_between(measure(&s, 20).share, BUDGET_FLOOR / 2,
                           factors[f] > 1 ? 0.4 : 4 * BUDGET_FLOOR);
            assert_true(s.longest_pause < 3 * NSEC_PER_SEC);
        }
    }
}

static void a_guest_that_comes_and_goes(void **state)
{
    struct sim s;

    sim_init(&s, 1.5);
    for (int i = 0; i < 5; i++) {
        s.depth = 1;
        run_for(&s, 2 * NSEC_PER_SEC);
        assert_between(measure(&s, 3).slower, 1.25, 1.7);
        s.depth = 0;
        run_for(&s, 500 * NSEC_PER_MSEC);
        assert_between(measure(&s, 3).share, 1.9, 2);
    }
}

static void a_guest_that_changes_is_learnt_anew(void **state)
{
    struct sim s;

    sim_init(&s, 1.5);
    s.depth = 1;
    run_for(&s, 5 * NSEC_PER_SEC);
    /* By itself, ten times slower; and then quicker. */
    s.alone_us = 250;
    run_for(&s, 10 * NSEC_PER_SEC);
    assert_between(measure(&s, 10).slower, 1.25, 1.7);
    s.alone_us = 25;
    run_for(&s, 10 * NSEC_PER_SEC);
    assert_between(measure(&s, 10).slower, 1.25, 1.7);
}

static void a_copy_that_hangs_does_not_hold_up_the_others(void **state)
{
    struct sim s;

    sim_init(&s, 1.5);
    s.depth = 1;
    s.more_per_copy = 0.01;
    s.max = 4;
    s.ends[s.in_flight++] = UINT64_MAX;
    run_for(&s, 3 * NSEC_PER_SEC);
    assert_true(measure(&s, 30).share > 1.5);
}

static void a_depth_that_is_tried_is_granted(void **state)
{
    struct sim s;

    sim_init(&s, 1.5);
    run_for(&s, NSEC_PER_SEC);
    s.max = 8;
    run_for(&s, 10 * NSEC_PER_MSEC);
    assert_int_equal(s.in_flight, 8);
    s.max = 2;
    run_for(&s, 10 * NSEC_PER_MSEC);
    assert_int_equal(s.in_flight, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_guest_nothing_is_held_back),
        cmocka_unit_test(a_guest_that_is_not_hindered_does_not_hinder),
        cmocka_unit_test(keeps_to_the_factor),
        cmocka_unit_test(a_slow_target_is_no_reason_to_wait),
        cmocka_unit_test(waiting_for_a_cpu_counts),
        cmocka_unit_test(outliers_do_not_stop_it),
        cmocka_unit_test(never_stops),
        cmocka_unit_test(a_guest_that_comes_and_goes),
        cmocka_unit_test(a_guest_that_changes_is_learnt_anew),
        cmocka_unit_test(a_copy_that_hangs_does_not_hold_up_the_others),
        cmocka_unit_test(a_depth_that_is_tried_is_granted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
