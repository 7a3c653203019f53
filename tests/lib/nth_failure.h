/* SPDX-License-Identifier: Apache-2.0
 *
 * The N-th failure loop: run the same scenario with its first storage operation
 * failing, then its second, and so on, until a run comes through untouched. So
 * each error path that the scenario has is walked once.
 *
 * A scenario opens its nodes anew on each call, puts a rule on a node of driver
 * "fault" with nth_failure_arm, does its work, and says how that ended. Whatever
 * must hold after every run, failed or not (no error from a check, nothing lost
 * that was flushed, nothing leaked), it asserts itself before it returns.
 */
#ifndef TESTS_LIB_NTH_FAILURE_H
#define TESTS_LIB_NTH_FAILURE_H

#include "drivers/fault.h"

struct nth_failure {
    /* Set by the caller. Returns 0 or -errno; a coroutine. */
    int (*co_scenario)(struct nth_failure *nf, void *arg);
    void *arg;
    enum fault_op op;          /* which operations fail; FAULT_ANY: each */
    int error;                 /* negative errno; 0: -EIO */
    bool cut;                  /* the power is cut at it: everything later fails as well */
    bool tolerates;            /* the scenario may succeed though an operation failed */
    uint64_t runs_max;         /* 0: 10,000; a scenario with more operations fails the test */

    /* For the scenario. */
    uint64_t nth;

    /* Between arm and disarm. */
    uint64_t applied;
};

/* Let the nth operation of @fault that comes from now on fail. */
void nth_failure_arm(struct nth_failure *nf, struct node *fault);
/* Take note of whether one failed, and let all work from now on (power is back). Before
 * @fault is closed. */
void nth_failure_disarm(struct nth_failure *nf, struct node *fault);

/* Run the loop; a cmocka failure when a run that met a failure claims success
 * (unless it may), or an untouched one fails. Gives the number of failures tried.
 * Coroutine. */
uint64_t co_nth_failure_run(struct nth_failure *nf);

#endif
