/* SPDX-License-Identifier: Apache-2.0
 *
 * Help for the tests of this room: each runs with one engine, named as the
 * program's argument, and mostly inside one coroutine of a fresh loop.
 */
#ifndef TESTS_LOOP_TEST_H
#define TESTS_LOOP_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "loop/co_io.h"
#include "loop/co_sanitizer.h"
#include "loop/co_sync.h"
#include "loop/loop.h"

/* ThreadSanitizer has room for some 8,000 coroutines. */
#ifdef CO_TSAN
#define MANY 2000
#else
#define MANY 10000
#endif

/* A fresh loop with the engine under test. */
struct loop *test_loop_new(const char *name);

/* Run fn as a coroutine on a fresh loop; stop and free it when fn returns. */
void in_loop(void (*fn)(void));

/* The same with others beside it: a loop of its own that somebody else may use
 * until test_loop_end. */
struct loop *test_loop_spawn(const char *name);
void test_loop_end(struct loop *loop);

/* Suspend until @n coroutines have said they are done. */
struct gate {
    int left;
    struct co *waiter;
};
void gate_init(struct gate *g, int n);
void gate_pass(struct gate *g);
void co_gate_wait(struct gate *g);

/* A file of its own that is gone when its descriptor is closed. */
int test_tmpfile(void);

/* main of every test program. */
int loop_test_main(int argc, char **argv, const char *group, const struct CMUnitTest *tests,
                   size_t n);
#define LOOP_TEST_MAIN(tests) \
    int main(int argc, char **argv) \
    { \
        return loop_test_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests)); \
    }

#endif
