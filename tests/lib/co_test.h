/* SPDX-License-Identifier: Apache-2.0
 *
 * Help for tests of the rooms from block upwards: a test is mostly the body of
 * one coroutine on a fresh loop, with others beside it.
 */
#ifndef TESTS_CO_TEST_H
#define TESTS_CO_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "block/graph.h"
#include "loop/co_sync.h"

/* For programs whose tests run with each engine: the loops made from now on use the
 * one named "uring" or "pool". False when the kernel does not have it. */
bool test_use_engine(const char *name);

/* Run fn as a coroutine on a fresh loop. When it returns, whatever has been
 * posted to the loop is done still, and no node may be left. */
void in_loop(void (*fn)(void));

/* A loop in a thread of its own, until test_loop_end. */
struct loop *test_loop_spawn(const char *name);
void test_loop_end(struct loop *loop);

/* Coroutines that a test starts and waits for. */
struct crew {
    unsigned working;
    struct co *waiter;
};
void crew_start(struct crew *c, void (*fn)(void *arg), void *arg);
void co_crew_wait(struct crew *c);

/* Let everybody run @n times who can. */
void co_yield_times(unsigned n);

/* A repeatable random number below @n (> 0). */
uint64_t test_random(uint64_t *seed, uint64_t n);

/* The seed of a randomised test: $STILLPOINT_SEED, or else @fallback. Printed, so
 * that a failure can be repeated. */
uint64_t test_seed(uint64_t fallback);

/* What a run over seeds has done so far, for tools/torture.sh, which adds it up: a line
 * "tally 1 lives". Printed when it is done, so that a run that is cut off counts, too. */
void test_tally(size_t n, const char *what);

/* Parse JSON written with ' for ". New reference; fails the test if it is bad. */
json_t *test_json(const char *fmt, ...) PRINTF_LIKE(1, 2);

/* Open a node from test_json text; fails the test if it cannot be opened. */
struct node *co_test_open(const char *fmt, ...) PRINTF_LIKE(1, 2);
/* The same, and it has to fail; gives the error's text in @err. */
void co_test_open_fails(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* How many nodes there are. */
unsigned test_node_count(void);

#endif
