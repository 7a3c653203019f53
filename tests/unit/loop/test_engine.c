/* SPDX-License-Identifier: Apache-2.0
 *
 * Which engine a loop gets, where io_uring is allowed and where it is not: a
 * child process forbids it to itself with a seccomp filter, as containers do.
 */
#include "loop_test.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Run @body in a child, with io_uring_setup failing with @error (0: as it is).
 * The child's exit status. */
static int in_child(int error, int (*body)(void))
{
    pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0) {
        struct sock_filter filter[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog prog = { .len = ARRAY_SIZE(filter), .filter = filter };

        if (error && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
                      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0))
            _exit(100);
        _exit(body());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void sleep_then_stop(void *arg)
{
    co_sleep(NSEC_PER_MSEC);
    loop_stop(loop_current());
}

static void start_sleeper(void *arg)
{
    co_start(sleep_then_stop, NULL);
}

/* 0: it became @name and runs. */
static int becomes(enum loop_engine engine, const char *name)
{
    struct err err = ERR_INIT;
    struct loop *loop = loop_new(engine, "some-very-long-name", &err);

    if (!loop || strcmp(loop_engine_name(loop), name) != 0)
        return 1;
    loop_post(loop, start_sleeper, NULL);
    loop_run(loop);
    loop_free(loop);
    return 0;
}

static int auto_becomes_pool(void)
{
    return becomes(LOOP_ENGINE_AUTO, "pool");
}

static int uring_is_refused_with_a_reason(void)
{
    struct err err = ERR_INIT;

    if (loop_new(LOOP_ENGINE_URING, "x", &err))
        return 1;
    return err.code < 0 && strstr(err.text, "io_uring") && strstr(err.text, "seccomp") ? 0 : 2;
}

static void where_it_is_forbidden_auto_becomes_pool(void **state)
{
    assert_int_equal(in_child(EPERM, auto_becomes_pool), 0);
    assert_int_equal(in_child(ENOSYS, auto_becomes_pool), 0);
}

static void where_it_is_forbidden_uring_is_refused(void **state)
{
    assert_int_equal(in_child(EPERM, uring_is_refused_with_a_reason), 0);
}

static void where_it_is_allowed_auto_becomes_uring(void **state)
{
    assert_int_equal(becomes(LOOP_ENGINE_AUTO, "uring"), 0);
    assert_int_equal(becomes(LOOP_ENGINE_POOL, "pool"), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(where_it_is_forbidden_auto_becomes_pool),
    cmocka_unit_test(where_it_is_forbidden_uring_is_refused),
    cmocka_unit_test(where_it_is_allowed_auto_becomes_uring),
};

LOOP_TEST_MAIN(tests)
