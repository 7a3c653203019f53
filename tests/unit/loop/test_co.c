/* SPDX-License-Identifier: Apache-2.0
 *
 * Coroutines: the order they run in, waking, stacks.
 */
#include "loop_test.h"
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Coroutines append their letter here. */
static char trace[64];

static void note(char c)
{
    size_t n = strlen(trace);

    assert_true(n + 1 < sizeof(trace));
    trace[n] = c;
    trace[n + 1] = '\0';
}

static void note_twice(void *arg)
{
    const char *letter = arg;

    note(*letter);
    co_yield();
    note(*letter);
}

static void start_queues_and_yield_goes_behind_body(void)
{
    trace[0] = '\0';
    co_start(note_twice, (void *)"a");
    co_start(note_twice, (void *)"b");
    note('x');           /* nothing runs inside co_start */
    co_yield();
    note('y');
    co_yield();
    note('z');
    assert_string_equal(trace, "xabyabz");
}

static void start_queues_and_yield_goes_behind(void **state)
{
    in_loop(start_queues_and_yield_goes_behind_body);
}

static void suspend_once(void *arg)
{
    struct co **self = arg;

    *self = co_self();
    co_suspend();
    note('s');
    *self = NULL;
}

static void wake_resumes_and_may_come_first_body(void)
{
    struct co *other = NULL;

    trace[0] = '\0';
    co_start(suspend_once, &other);
    co_yield();
    assert_non_null(other);
    assert_string_equal(trace, "");
    co_wake(other);
    note('w');           /* nothing runs inside co_wake */
    co_yield();
    assert_null(other);
    assert_string_equal(trace, "ws");

    /* Wakes that come before are counted. */
    co_wake(co_self());
    co_wake(co_self());
    co_suspend();
    co_suspend();
}

static void wake_resumes_and_may_come_first(void **state)
{
    in_loop(wake_resumes_and_may_come_first_body);
}

static void callback_has_no_self(void *arg)
{
    *(bool *)arg = loop_current() && !co_self();
}

static void self_is_null_in_callbacks_body(void)
{
    bool ok = false;

    assert_non_null(co_self());
    loop_post(loop_current(), callback_has_no_self, &ok);
    while (!ok)
        co_yield();
}

static void self_is_null_in_callbacks(void **state)
{
    assert_null(loop_current());
    assert_null(co_self());
    in_loop(self_is_null_in_callbacks_body);
    assert_null(loop_current());
}

static struct gate gate;
static uint64_t sum;

static void add(void *arg)
{
    volatile char deep[4096];
    uintptr_t n = (uintptr_t)arg;

    deep[0] = (char)n;
    deep[sizeof(deep) - 1] = (char)n;
    co_yield();
    assert_int_equal(deep[0], (char)n);
    assert_int_equal(deep[sizeof(deep) - 1], (char)n);
    sum += n;
    gate_pass(&gate);
}

static void many_at_once_body(void)
{
    sum = 0;
    gate_init(&gate, MANY);
    for (uintptr_t i = 0; i < MANY; i++)
        co_start(add, (void *)i);
    co_gate_wait(&gate);
    assert_int_equal(sum, (uint64_t)MANY * (MANY - 1) / 2);
}

static void many_at_once(void **state)
{
    in_loop(many_at_once_body);
}

static void tell_address(void *arg)
{
    int here;

    *(uintptr_t *)arg = (uintptr_t)&here;
}

static void stack_of_the_last_is_used_again_body(void)
{
    uintptr_t first = 0, second = 0;

    co_start(tell_address, &first);
    co_yield();
    co_start(tell_address, &second);
    co_yield();
    assert_true(first != 0);
    assert_int_equal(first, second);
}

static void count_one(void *arg)
{
    sum++;
}

static void a_stack_may_be_used_any_number_of_times_body(void)
{
    sum = 0;
    for (int i = 0; i < 70000; i++) {
        co_start(count_one, NULL);
        co_yield();
    }
    assert_int_equal(sum, 70000);
}

static void a_stack_may_be_used_any_number_of_times(void **state)
{
    in_loop(a_stack_may_be_used_any_number_of_times_body);
}

static void stack_of_the_last_is_used_again(void **state)
{
    in_loop(stack_of_the_last_is_used_again_body);
}

/* Each frame takes a page, so that none can step over the guard. */
static int __attribute__((noinline)) dig(volatile char *above, int depth)
{
    volatile char here[2048];

    here[0] = above[0];
    return depth ? dig(here, depth - 1) + here[0] : here[0];
}

static void dig_too_deep(void)
{
    volatile char top[1] = { 0 };

    dig(top, 100000);
}

static void overflow_hits_the_guard(void **state)
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit no_core = { 0 };

        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGSEGV, SIG_DFL);
        fclose(stderr);
        in_loop(dig_too_deep);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

static void hang(void *arg)
{
    co_suspend();
}

static void hang_in_io(void *arg)
{
    int *fd = arg;
    char c;

    (void)co_recv(*fd, &c, 1, 0);
}

static int sockets[2];

static void leave_some_behind(void)
{
    for (int i = 0; i < 100; i++)
        co_start(hang, NULL);
    for (int i = 0; i < 10; i++)
        co_start(hang_in_io, &sockets[0]);
    co_yield();
    co_yield();
    co_start(hang, NULL);   /* this one is dropped before it ran */
}

static void free_drops_the_suspended(void **state)
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    in_loop(leave_some_behind);
    close(sockets[0]);
    close(sockets[1]);
}

static void a_loop_may_run_again(void **state)
{
    struct loop *loop = test_loop_new("twice");
    int n = 0;

    for (int i = 0; i < 3; i++) {
        bool ok = false;

        loop_post(loop, callback_has_no_self, &ok);
        loop_stop(loop);
        loop_run(loop);
        n += ok;
    }
    assert_int_equal(n, 3);
    loop_free(loop);
    loop_free(NULL);
}

static const struct CMUnitTest tests[] = {
    /* First: ThreadSanitizer is slow after thousands of coroutines. */
    cmocka_unit_test(a_stack_may_be_used_any_number_of_times),
    cmocka_unit_test(start_queues_and_yield_goes_behind),
    cmocka_unit_test(wake_resumes_and_may_come_first),
    cmocka_unit_test(self_is_null_in_callbacks),
    cmocka_unit_test(many_at_once),
    cmocka_unit_test(stack_of_the_last_is_used_again),
    cmocka_unit_test(overflow_hits_the_guard),
    cmocka_unit_test(free_drops_the_suspended),
    cmocka_unit_test(a_loop_may_run_again),
};

LOOP_TEST_MAIN(tests)
