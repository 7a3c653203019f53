/* SPDX-License-Identifier: Apache-2.0
 *
 * The N-th failure loop: see nth_failure.h.
 */
#include "nth_failure.h"
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define RUNS_MAX 10000

void nth_failure_arm(struct nth_failure *nf, struct node *fault)
{
    struct fault_rule rule = {
        .op = nf->op,
        .nth = nf->nth,
        .error = nf->error ? nf->error : -EIO,
        .cut = nf->cut,
    };

    nf->applied = fault_applied(fault);
    fault_add_rule(fault, &rule);
}

void nth_failure_disarm(struct nth_failure *nf, struct node *fault)
{
    nf->applied = fault_applied(fault) - nf->applied;
    fault_clear_rules(fault);
    fault_set_cut(fault, false);
}

uint64_t co_nth_failure_run(struct nth_failure *nf)
{
    uint64_t most = nf->runs_max ? nf->runs_max : RUNS_MAX;

    for (nf->nth = 1; nf->nth <= most; nf->nth++) {
        int r = nf->co_scenario(nf, nf->arg);

        if (!nf->applied && r < 0)
            fail_msg("nothing was made to fail, and it failed: %s", strerror(-r));
        if (!nf->applied)
            return nf->nth - 1;
        if (r == 0 && !nf->tolerates)
            fail_msg("operation %" PRIu64 " failed, and it says that all went well", nf->nth);
    }
    fail_msg("still not through after %" PRIu64 " runs", most);
    return 0;
}
