/* SPDX-License-Identifier: Apache-2.0
 *
 * Timers and deferred calls.
 */
#include "loop_test.h"
#include <sys/resource.h>

static int order[4096];
static int n_order;

static void happened(int what)
{
    assert_true(n_order < (int)ARRAY_SIZE(order));
    order[n_order++] = what;
}

struct named_timer {
    struct loop_timer timer;
    int name;
};

static void fired(void *arg)
{
    struct named_timer *t = arg;

    assert_true(loop_now() >= t->timer.deadline);
    assert_int_equal(t->timer.slot, 0);
    assert_null(co_self());
    happened(t->name);
}

static void named_init(struct named_timer *t, int name)
{
    loop_timer_init(&t->timer, fired, t);
    t->name = name;
}

/* Numbers that look random and are the same every time. */
static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static void timers_fire_by_deadline_body(void)
{
    enum { N = 1000 };
    static struct named_timer t[N];
    uint64_t start = loop_now() + NSEC_PER_MSEC;
    uint32_t seed = 1;
    int expected = 0;

    n_order = 0;
    for (int i = 0; i < N; i++) {
        named_init(&t[i], i);
        loop_timer_arm(&t[i].timer, start + next_random(&seed) % (5 * NSEC_PER_MSEC));
    }
    for (int i = 0; i < N; i += 3)   /* move some, sooner and later */
        loop_timer_arm(&t[i].timer, start + next_random(&seed) % (5 * NSEC_PER_MSEC));
    for (int i = 0; i < N; i += 5)   /* take some out */
        loop_timer_cancel(&t[i].timer);
    loop_timer_cancel(&t[0].timer);  /* again: harmless */
    for (int i = 0; i < N; i++)
        expected += t[i].timer.slot != 0;
    assert_int_equal(expected, N - N / 5);
    co_sleep_until(start + 5 * NSEC_PER_MSEC);
    co_yield();
    assert_int_equal(n_order, expected);
    for (int i = 0; i < n_order; i++) {
        assert_true(order[i] % 5 != 0);
        assert_true(i == 0 ||
                    t[order[i - 1]].timer.deadline <= t[order[i]].timer.deadline);
    }
}

static void timers_fire_by_deadline(void **state)
{
    in_loop(timers_fire_by_deadline_body);
}

static struct named_timer again;
static int times;

static void arm_for_the_past(void *arg)
{
    times++;
    loop_timer_arm(&again.timer, 1);
}

static void a_timer_that_rearms_for_the_past_leaves_room_for_others_body(void)
{
    times = 0;
    loop_timer_init(&again.timer, arm_for_the_past, NULL);
    loop_timer_arm(&again.timer, 1);
    for (int i = 0; i < 10; i++)
        co_yield();   /* comes back, though a timer is always due */
    assert_true(times > 0 && times <= 11);
    loop_timer_cancel(&again.timer);
    times = 0;
    co_sleep(NSEC_PER_MSEC);
    assert_int_equal(times, 0);
}

static void a_timer_that_rearms_for_the_past_leaves_room_for_others(void **state)
{
    in_loop(a_timer_that_rearms_for_the_past_leaves_room_for_others_body);
}

static struct named_timer victim;

static void cancel_victim(void *arg)
{
    loop_timer_cancel(&victim.timer);
}

static void a_timer_may_cancel_one_that_is_due_too_body(void)
{
    struct loop_timer killer;

    n_order = 0;
    named_init(&victim, 1);
    loop_timer_init(&killer, cancel_victim, NULL);
    loop_timer_arm(&victim.timer, 2);
    loop_timer_arm(&killer, 1);
    co_sleep(NSEC_PER_MSEC);
    assert_int_equal(n_order, 0);
}

static void a_timer_may_cancel_one_that_is_due_too(void **state)
{
    in_loop(a_timer_may_cancel_one_that_is_due_too_body);
}

static void sleeping_lasts_and_does_not_spin_body(void)
{
    struct rusage before, after;
    uint64_t began = loop_now();

    getrusage(RUSAGE_THREAD, &before);
    for (int i = 0; i < 5; i++)
        co_sleep(10 * NSEC_PER_MSEC);
    getrusage(RUSAGE_THREAD, &after);
    assert_true(loop_now() - began >= 50 * NSEC_PER_MSEC);
    /* One sleep of the thread for each of the coroutine. */
    assert_true(after.ru_nvcsw - before.ru_nvcsw <= 10);
}

static void sleeping_lasts_and_does_not_spin(void **state)
{
    in_loop(sleeping_lasts_and_does_not_spin_body);
}

/* --- Deferred calls --- */

static struct loop_defer defer;
static struct gate gate;

static void deferred(void *arg)
{
    assert_null(co_self());
    happened(100);
}

static void ask(void *arg)
{
    loop_defer(&defer);
    happened((int)(uintptr_t)arg);
    gate_pass(&gate);
}

static void a_deferred_call_comes_once_after_all_that_are_ready_body(void)
{
    n_order = 0;
    gate_init(&gate, 3);
    loop_defer_init(&defer, deferred, NULL);
    for (uintptr_t i = 0; i < 3; i++)
        co_start(ask, (void *)i);
    co_yield();
    assert_int_equal(n_order, 4);
    for (int i = 0; i < 3; i++)
        assert_int_equal(order[i], i);
    assert_int_equal(order[3], 100);
    co_sleep(NSEC_PER_MSEC);
    assert_int_equal(n_order, 4);

    loop_defer(&defer);
    loop_defer_cancel(&defer);
    loop_defer_cancel(&defer);
    co_sleep(NSEC_PER_MSEC);
    assert_int_equal(n_order, 4);
}

static void a_deferred_call_comes_once_after_all_that_are_ready(void **state)
{
    in_loop(a_deferred_call_comes_once_after_all_that_are_ready_body);
}

static void defer_again(void *arg)
{
    if (++times < 100)
        loop_defer(&defer);
    else
        co_wake(arg);
}

static void a_deferred_call_may_ask_again_body(void)
{
    times = 0;
    loop_defer_init(&defer, defer_again, co_self());
    loop_defer(&defer);
    co_suspend();   /* the loop does not sleep before the last of them */
    assert_int_equal(times, 100);
}

static void a_deferred_call_may_ask_again(void **state)
{
    in_loop(a_deferred_call_may_ask_again_body);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(timers_fire_by_deadline),
    cmocka_unit_test(a_timer_that_rearms_for_the_past_leaves_room_for_others),
    cmocka_unit_test(a_timer_may_cancel_one_that_is_due_too),
    cmocka_unit_test(sleeping_lasts_and_does_not_spin),
    cmocka_unit_test(a_deferred_call_comes_once_after_all_that_are_ready),
    cmocka_unit_test(a_deferred_call_may_ask_again),
};

LOOP_TEST_MAIN(tests)
