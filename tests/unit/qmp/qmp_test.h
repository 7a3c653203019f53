/* SPDX-License-Identifier: Apache-2.0
 *
 * A control plane for the body of a test, with one loop for disks.
 */
#ifndef QMP_TEST_H
#define QMP_TEST_H

#include "co_test.h"
#include "qmp/impl.h"

struct qmp_test {
    struct placement *placement;
    struct qmp *qmp;
    unsigned quits;              /* how often quit was given */
};

static inline void qmp_test_count_quit(void *arg)
{
    struct qmp_test *t = arg;

    t->quits++;
}

static inline void qmp_test_begin(struct qmp_test *t)
{
    struct qmp_opts o = { .on_quit = qmp_test_count_quit, .arg = t };

    *t = (struct qmp_test){ .placement = placement_new(LOOP_ENGINE_AUTO, 1) };
    o.placement = t->placement;
    t->qmp = qmp_new(&o);
}

static inline void co_qmp_test_end(struct qmp_test *t)
{
    assert_true(co_qmp_shutdown(t->qmp, QMP_SHUTDOWN_QUIT));
    qmp_free(t->qmp);
    placement_free(t->placement);
}

#endif
