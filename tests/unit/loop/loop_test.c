/* SPDX-License-Identifier: Apache-2.0
 *
 * What loop_test.h declares.
 */
#include "loop_test.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define SKIP 77   /* Meson's code for a skipped test */

/* A test that hangs says so, rather than wait for the runner. */
#define TEST_SECONDS 120

static enum loop_engine engine;

struct loop *test_loop_new(const char *name)
{
    struct err err = ERR_INIT;
    struct loop *loop = loop_new(engine, name, &err);

    if (!loop)
        fail_msg("%s", err.text);
    return loop;
}

static void body(void *arg)
{
    void (**fn)(void) = arg;

    (*fn)();
    loop_stop(loop_current());
}

static void start_body(void *arg)
{
    co_start(body, arg);
}

void in_loop(void (*fn)(void))
{
    struct loop *loop = test_loop_new("test");

    loop_post(loop, start_body, &fn);
    loop_run(loop);
    loop_free(loop);
}

struct loop *test_loop_spawn(const char *name)
{
    struct loop *loop = test_loop_new(name);
    struct err err = ERR_INIT;

    if (!loop_spawn(loop, &err))
        fail_msg("%s", err.text);
    return loop;
}

void test_loop_end(struct loop *loop)
{
    loop_stop(loop);
    loop_join(loop);
    loop_free(loop);
}

void gate_init(struct gate *g, int n)
{
    *g = (struct gate){ .left = n };
}

void gate_pass(struct gate *g)
{
    if (--g->left == 0 && g->waiter)
        co_wake(g->waiter);
}

void co_gate_wait(struct gate *g)
{
    if (g->left == 0)
        return;
    g->waiter = co_self();
    co_suspend();
}

int test_tmpfile(void)
{
    int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd < 0)
        fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

int loop_test_main(int argc, char **argv, const char *group, const struct CMUnitTest *tests,
                   size_t n)
{
    struct err err = ERR_INIT;

    engine = argc > 1 && strcmp(argv[1], "pool") == 0 ? LOOP_ENGINE_POOL : LOOP_ENGINE_URING;

    struct loop *loop = loop_new(engine, "probe", &err);

    if (!loop) {
        fprintf(stderr, "%s\n", err.text);
        return SKIP;
    }
    loop_free(loop);
    alarm(TEST_SECONDS);
    return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
}
