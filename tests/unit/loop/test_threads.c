/* SPDX-License-Identifier: Apache-2.0
 *
 * Several threads: posts, calls across loops, stopping, the worker pool. Run
 * under ThreadSanitizer too.
 */
#include "loop_test.h"
#include "loop/workers.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

static struct gate gate;

/* --- Posts --- */

enum { POSTS = 10000, POSTERS = 3 };

static struct post_test {
    struct loop *loop;
    int next[POSTERS];     /* the number that must come next from each */
    int left;
} posts;

static void post_arrives(void *arg)
{
    int poster = (int)((uintptr_t)arg / POSTS), n = (int)((uintptr_t)arg % POSTS);

    assert_int_equal(posts.next[poster], n);
    posts.next[poster]++;
    if (--posts.left == 0)
        loop_stop(posts.loop);
}

static void *post_many(void *arg)
{
    for (uintptr_t i = 0; i < POSTS; i++)
        loop_post(posts.loop, post_arrives, (void *)((uintptr_t)arg * POSTS + i));
    return NULL;
}

static void posts_of_one_thread_keep_their_order(void **state)
{
    pthread_t threads[POSTERS];

    posts = (struct post_test){ .loop = test_loop_new("posts"), .left = POSTERS * POSTS };
    for (uintptr_t i = 0; i < POSTERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, post_many, (void *)i), 0);
    loop_run(posts.loop);
    for (int i = 0; i < POSTERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(posts.left, 0);
    loop_free(posts.loop);
}

static void count(void *arg)
{
    (*(int *)arg)++;
}

static void what_was_posted_before_stop_is_done(void **state)
{
    struct loop *loop = test_loop_spawn("stop");
    int n = 0;

    for (int i = 0; i < 1000; i++)
        loop_post(loop, count, &n);
    loop_stop(loop);
    loop_join(loop);
    assert_int_equal(n, 1000);
    /* And what was posted after it is dropped. */
    loop_post(loop, count, &n);
    loop_free(loop);
    assert_int_equal(n, 1000);
}

static atomic_int sleeper;

static void tell_thread(void *arg)
{
    atomic_store(&sleeper, gettid());
}

/* Until the kernel says that the thread of @loop sleeps. */
static void wait_for_sleep(struct loop *loop)
{
    char path[64], state = 0;
    FILE *f;

    atomic_store(&sleeper, 0);
    loop_post(loop, tell_thread, NULL);
    while (!atomic_load(&sleeper))
        sched_yield();
    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", atomic_load(&sleeper));
    while (state != 'S') {
        sched_yield();
        f = fopen(path, "r");
        assert_non_null(f);
        assert_int_equal(fscanf(f, "%*d (%*[^)]) %c", &state), 1);
        fclose(f);
    }
}

static void stop_ends_a_sleeping_loop(void **state)
{
    for (int i = 0; i < 50; i++) {
        struct loop *loop = test_loop_spawn("sleeper");

        if (i % 2)
            wait_for_sleep(loop);
        test_loop_end(loop);
    }
}

/* --- Calls --- */

struct call_test {
    struct loop *home, *other;
    int rounds, calls;
    bool ok;
};

/* Runs on the other loop, and may suspend there. */
static int add_one(void *arg)
{
    struct call_test *t = arg;

    if (t->calls % 100 == 0)
        co_yield();
    t->ok = t->ok && loop_current() == t->other && co_self();
    return ++t->calls;
}

/* Runs on the home loop. */
static int call_often(void *arg)
{
    struct call_test *t = arg;

    for (int i = 0; i < t->rounds; i++) {
        int r = co_loop_call(t->other, add_one, t);

        t->ok = t->ok && r == i + 1 && loop_current() == t->home;
    }
    return t->ok ? t->calls : -1;
}

static void call_from_home(void *arg)
{
    struct call_test *t = arg;

    assert_int_equal(co_loop_call(t->home, call_often, t), t->rounds);
    gate_pass(&gate);
}

static void loops_call_each_other_body(void)
{
    struct loop *left = test_loop_spawn("left"), *right = test_loop_spawn("right");
    struct call_test there = { left, right, .rounds = 10000, .ok = true };
    struct call_test back = { right, left, .rounds = 10000, .ok = true };

    gate_init(&gate, 2);
    co_start(call_from_home, &there);
    co_start(call_from_home, &back);
    co_gate_wait(&gate);
    test_loop_end(left);
    test_loop_end(right);
}

static void loops_call_each_other(void **state)
{
    in_loop(loops_call_each_other_body);
}

static void a_call_to_the_own_loop_is_a_call_body(void)
{
    struct call_test t = { loop_current(), loop_current(), .rounds = 10, .ok = true };

    assert_int_equal(call_often(&t), 10);
}

static void a_call_to_the_own_loop_is_a_call(void **state)
{
    in_loop(a_call_to_the_own_loop_is_a_call_body);
}

/* How often the thread of the loop went to sleep, and its time on a CPU. */
static int context_switches(void *arg)
{
    struct rusage ru;

    getrusage(RUSAGE_THREAD, &ru);
    return (int)ru.ru_nvcsw;
}

static void watch_an_idle_loop(void)
{
    struct loop *idle = test_loop_spawn("idle");
    int before = co_loop_call(idle, context_switches, NULL);

    co_sleep(100 * NSEC_PER_MSEC);
    /* Once to sleep after the first call; the second woke it. */
    assert_true(co_loop_call(idle, context_switches, NULL) - before <= 2);
    test_loop_end(idle);
}

static void an_idle_loop_does_not_wake_up(void **state)
{
    in_loop(watch_an_idle_loop);
}

/* --- Worker pool --- */

static atomic_int offloaded;

static int work(void *arg)
{
    assert_null(loop_current());
    atomic_fetch_add(&offloaded, 1);
    return (int)(uintptr_t)arg;
}

static void offload_one(void *arg)
{
    assert_int_equal(co_offload(work, arg), (int)(uintptr_t)arg);
    gate_pass(&gate);
}

static void work_is_done_elsewhere_body(void)
{
    atomic_store(&offloaded, 0);
    gate_init(&gate, 1000);
    for (uintptr_t i = 0; i < 1000; i++)
        co_start(offload_one, (void *)i);
    co_gate_wait(&gate);
    assert_int_equal(atomic_load(&offloaded), 1000);
}

static void work_is_done_elsewhere(void **state)
{
    in_loop(work_is_done_elsewhere_body);
}

static int stuck_pipe[2];

static int read_stuck_pipe(void *arg)
{
    char c;

    return read(stuck_pipe[0], &c, 1) == 1 ? 0 : -EIO;
}

static void offload_stuck(void *arg)
{
    assert_int_equal(co_offload(read_stuck_pipe, NULL), 0);
    gate_pass(&gate);
}

static void stuck_work_does_not_hold_up_other_work_body(void)
{
    enum { STUCK = 40 };   /* more than the pool has in good times */
    char go[STUCK] = { 0 };

    assert_int_equal(pipe(stuck_pipe), 0);
    gate_init(&gate, STUCK);
    for (int i = 0; i < STUCK; i++)
        co_start(offload_stuck, NULL);
    co_yield();
    for (uintptr_t i = 0; i < 5; i++)
        assert_int_equal(co_offload(work, (void *)i), (int)i);
    assert_int_equal(gate.left, STUCK);
    assert_int_equal(write(stuck_pipe[1], go, sizeof(go)), sizeof(go));
    co_gate_wait(&gate);
    close(stuck_pipe[0]);
    close(stuck_pipe[1]);
}

static void stuck_work_does_not_hold_up_other_work(void **state)
{
    in_loop(stuck_work_does_not_hold_up_other_work_body);
}

static void offload_bulk(void *arg)
{
    assert_int_equal(co_offload_bulk(read_stuck_pipe, NULL), 0);
    gate_pass(&gate);
}

/* At once: without waiting for the pool to notice twice that nothing moves, and to
 * grow beyond what is stuck. */
static void background_work_leaves_threads_to_others_body(void)
{
    enum { SLOW = 40 };
    char go[SLOW] = { 0 };
    uint64_t began;

    assert_int_equal(pipe(stuck_pipe), 0);
    gate_init(&gate, SLOW);
    for (int i = 0; i < SLOW; i++)
        co_start(offload_bulk, NULL);
    co_yield();
    began = loop_now();
    assert_int_equal(co_offload(work, (void *)7), 7);
    assert_true(loop_now() - began < 2 * WORKERS_STUCK_NS);
    assert_int_equal(write(stuck_pipe[1], go, sizeof(go)), sizeof(go));
    co_gate_wait(&gate);
    close(stuck_pipe[0]);
    close(stuck_pipe[1]);
}

static void background_work_leaves_threads_to_others(void **state)
{
    in_loop(background_work_leaves_threads_to_others_body);
}

static void offload_for_ever(void *arg)
{
    (void)co_offload(read_stuck_pipe, NULL);
}

static void leave_work_stuck(void)
{
    assert_int_equal(pipe(stuck_pipe), 0);
    co_start(offload_for_ever, NULL);
    co_yield();
    assert_int_equal(co_offload(work, (void *)7), 7);   /* so that the other has begun */
}

/* The job goes on for ever; what it may touch must stay, and nobody waits long. */
static void stuck_work_does_not_hold_up_the_end(void **state)
{
    uint64_t began = loop_now();

    in_loop(leave_work_stuck);
    assert_true(loop_now() - began < 20 * NSEC_PER_SEC);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(posts_of_one_thread_keep_their_order),
    cmocka_unit_test(what_was_posted_before_stop_is_done),
    cmocka_unit_test(stop_ends_a_sleeping_loop),
    cmocka_unit_test(loops_call_each_other),
    cmocka_unit_test(a_call_to_the_own_loop_is_a_call),
    cmocka_unit_test(an_idle_loop_does_not_wake_up),
    cmocka_unit_test(work_is_done_elsewhere),
    cmocka_unit_test(stuck_work_does_not_hold_up_other_work),
    cmocka_unit_test(background_work_leaves_threads_to_others),
    cmocka_unit_test(stuck_work_does_not_hold_up_the_end),
};

LOOP_TEST_MAIN(tests)
