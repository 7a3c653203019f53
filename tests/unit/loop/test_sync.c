/* SPDX-License-Identifier: Apache-2.0
 *
 * Wait queues, mutexes and semaphores, and what happens when a wake-up and a
 * deadline come together.
 */
#include "loop_test.h"

/* What happened, in order. */
static int order[256];
static int n_order;
static struct gate gate;

static void happened(int what)
{
    assert_true(n_order < (int)ARRAY_SIZE(order));
    order[n_order++] = what;
}

static void begin(int gate_width)
{
    n_order = 0;
    gate_init(&gate, gate_width);
}

/* --- Wait queues --- */

static struct waitq queue;

static void wait_in_queue(void *arg)
{
    co_waitq_wait(&queue);
    happened((int)(uintptr_t)arg);
    gate_pass(&gate);
}

static void waiters_are_woken_in_order_body(void)
{
    begin(5);
    waitq_init(&queue);
    assert_false(waitq_wake_one(&queue));
    for (uintptr_t i = 0; i < 5; i++)
        co_start(wait_in_queue, (void *)i);
    co_yield();
    assert_false(waitq_empty(&queue));
    assert_true(waitq_wake_one(&queue));
    assert_int_equal(n_order, 0);
    co_yield();
    assert_int_equal(n_order, 1);
    waitq_wake_all(&queue);
    assert_true(waitq_empty(&queue));
    co_gate_wait(&gate);
    for (int i = 0; i < 5; i++)
        assert_int_equal(order[i], i);
}

static void waiters_are_woken_in_order(void **state)
{
    in_loop(waiters_are_woken_in_order_body);
}

static uint64_t deadline;

static void wait_until_deadline(void *arg)
{
    happened(co_waitq_wait_until(&queue, deadline));
    gate_pass(&gate);
}

static void a_deadline_ends_the_wait_body(void)
{
    begin(1);
    waitq_init(&queue);
    deadline = loop_now() + 5 * NSEC_PER_MSEC;
    co_start(wait_until_deadline, NULL);
    co_gate_wait(&gate);
    assert_true(loop_now() >= deadline);
    assert_int_equal(order[0], false);
    assert_true(waitq_empty(&queue));

    /* One that has passed already. */
    assert_false(co_waitq_wait_until(&queue, 1));
    assert_true(waitq_empty(&queue));
}

static void a_deadline_ends_the_wait(void **state)
{
    in_loop(a_deadline_ends_the_wait_body);
}

static void a_wake_up_ends_the_wait_and_its_timer_body(void)
{
    begin(1);
    waitq_init(&queue);
    deadline = loop_now() + 20 * NSEC_PER_MSEC;
    co_start(wait_until_deadline, NULL);
    co_yield();
    assert_true(waitq_wake_one(&queue));
    co_gate_wait(&gate);
    assert_int_equal(order[0], true);
    /* If its timer were still armed, it would fire on a dead stack now. */
    co_sleep_until(deadline + NSEC_PER_MSEC);

    begin(1);
    deadline = DEADLINE_NEVER;
    co_start(wait_until_deadline, NULL);
    co_yield();
    waitq_wake_all(&queue);
    co_gate_wait(&gate);
    assert_int_equal(order[0], true);
}

static void a_wake_up_ends_the_wait_and_its_timer(void **state)
{
    in_loop(a_wake_up_ends_the_wait_and_its_timer_body);
}

static void wake_the_queue(void *arg)
{
    happened(10 + waitq_wake_one(&queue));
}

/* A timer callback that wakes and the deadline itself are due at the same
 * moment, so they run in one turn, before the waiter does. Whichever is first
 * wins, and the other must see it. */
static void wake_and_timeout_in_one_turn(bool wake_first)
{
    struct loop_timer waker;

    begin(1);
    waitq_init(&queue);
    /* Far enough that a machine which is busy does not get here behind it. */
    deadline = loop_now() + 100 * NSEC_PER_MSEC;
    co_start(wait_until_deadline, NULL);
    co_yield();
    loop_timer_init(&waker, wake_the_queue, NULL);
    loop_timer_arm(&waker, wake_first ? deadline - 1 : deadline + 1);
    while (loop_now() <= deadline + 1)
        ;   /* so that both are due when the loop next looks */
    co_gate_wait(&gate);
    assert_int_equal(n_order, 2);
    assert_int_equal(order[0], wake_first ? 11 : 10);
    assert_int_equal(order[1], wake_first);
}

static void wake_and_timeout_in_one_turn_body(void)
{
    wake_and_timeout_in_one_turn(true);
    wake_and_timeout_in_one_turn(false);
}

static void of_wake_and_timeout_in_one_turn_the_first_counts(void **state)
{
    in_loop(wake_and_timeout_in_one_turn_body);
}

/* --- Mutex --- */

static struct co_mutex mutex;
static bool inside;

static void lock_twice(void *arg)
{
    for (int round = 0; round < 2; round++) {
        co_mutex_lock(&mutex);
        assert_false(inside);
        inside = true;
        co_yield();
        inside = false;
        happened((int)(uintptr_t)arg);
        co_mutex_unlock(&mutex);
    }
    gate_pass(&gate);
}

static void the_mutex_excludes_and_is_fair_body(void)
{
    begin(4);
    co_mutex_init(&mutex);
    for (uintptr_t i = 0; i < 4; i++)
        co_start(lock_twice, (void *)i);
    co_gate_wait(&gate);
    /* Who unlocks and locks again at once comes behind those who wait. */
    for (int i = 0; i < 8; i++)
        assert_int_equal(order[i], i % 4);
    co_mutex_lock(&mutex);
    co_mutex_unlock(&mutex);
}

static void the_mutex_excludes_and_is_fair(void **state)
{
    in_loop(the_mutex_excludes_and_is_fair_body);
}

/* --- Semaphore --- */

static struct co_sem sem;

struct claim {
    int name;
    uint64_t n;
};

static void acquire(void *arg)
{
    const struct claim *c = arg;

    co_sem_acquire(&sem, c->n);
    happened(c->name);
    gate_pass(&gate);
}

static void a_large_claim_is_not_starved_body(void)
{
    struct claim large = { 1, 8 }, small = { 2, 1 };

    begin(2);
    co_sem_init(&sem, 10);
    co_sem_acquire(&sem, 5);
    co_start(acquire, &large);
    co_yield();
    co_start(acquire, &small);
    co_yield();
    /* The small one would fit, and waits behind the large one. */
    assert_int_equal(n_order, 0);
    assert_false(co_sem_try_acquire(&sem, 1));
    co_sem_release(&sem, 2);
    co_yield();
    assert_int_equal(n_order, 0);
    co_sem_release(&sem, 2);
    co_gate_wait(&gate);
    assert_int_equal(order[0], 1);
    assert_int_equal(order[1], 2);
    assert_int_equal(sem.used, 1 + 8 + 1);
    co_sem_release(&sem, sem.used);
    assert_int_equal(sem.used, 0);
}

static void a_large_claim_is_not_starved(void **state)
{
    in_loop(a_large_claim_is_not_starved_body);
}

static void a_claim_larger_than_all_waits_for_all_body(void)
{
    struct claim huge = { 1, 100 }, small = { 2, 1 };

    begin(2);
    co_sem_init(&sem, 10);
    assert_true(co_sem_try_acquire(&sem, 1));
    assert_false(co_sem_try_acquire(&sem, 100));
    co_start(acquire, &huge);
    co_start(acquire, &small);
    co_yield();
    assert_int_equal(n_order, 0);
    co_sem_release(&sem, 1);
    co_yield();
    assert_int_equal(n_order, 1);
    assert_int_equal(order[0], 1);
    co_sem_release(&sem, 100);
    co_gate_wait(&gate);
    co_sem_release(&sem, 1);
    assert_true(co_sem_try_acquire(&sem, 10));
    assert_false(co_sem_try_acquire(&sem, 1));
}

static void a_claim_larger_than_all_waits_for_all(void **state)
{
    in_loop(a_claim_larger_than_all_waits_for_all_body);
}

static void one_release_grants_many_body(void)
{
    struct claim two = { 2, 2 };

    begin(4);
    co_sem_init(&sem, 8);
    co_sem_acquire(&sem, 8);
    for (int i = 0; i < 4; i++)
        co_start(acquire, &two);
    co_yield();
    co_sem_release(&sem, 7);
    co_yield();
    assert_int_equal(n_order, 3);
    co_sem_release(&sem, 1);
    co_gate_wait(&gate);
}

static void one_release_grants_many(void **state)
{
    in_loop(one_release_grants_many_body);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(waiters_are_woken_in_order),
    cmocka_unit_test(a_deadline_ends_the_wait),
    cmocka_unit_test(a_wake_up_ends_the_wait_and_its_timer),
    cmocka_unit_test(of_wake_and_timeout_in_one_turn_the_first_counts),
    cmocka_unit_test(the_mutex_excludes_and_is_fair),
    cmocka_unit_test(a_large_claim_is_not_starved),
    cmocka_unit_test(a_claim_larger_than_all_waits_for_all),
    cmocka_unit_test(one_release_grants_many),
};

LOOP_TEST_MAIN(tests)
