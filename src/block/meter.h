/* SPDX-License-Identifier: Apache-2.0
 *
 * How long the requests take that users send to a node, for somebody who wants to
 * know: the latency budget of a backup (job/budget.h). From the moment when the loop
 * could have looked at a request to its end, without the door, and without what
 * before-write notifiers took: keeping old data has its own account (cbw/view.h).
 * Requests with REQ_BULK do not count. A node that nobody meters pays one test.
 *
 * One loop, the node's.
 */
#ifndef BLOCK_METER_H
#define BLOCK_METER_H

#include "base/list.h"
#include "block/node.h"
#include "loop/loop.h"

/* Short ones and long ones, as their times have nothing to do with each other. */
#define METER_LONG (64 * KiB)
enum meter_kind { METER_READ, METER_LONG_READ, METER_WRITE, METER_LONG_WRITE, METER_KINDS };

struct meter_sum {
    uint64_t n, ns;
};

struct meter {
    struct list link;
    struct meter_sum sum[METER_KINDS];     /* since it was added */
    uint64_t most[METER_KINDS];            /* ns that one request counts as at most; 0: no limit.
                                            * May be changed at any time */
    struct loop_cpu_wait cpu;              /* of the loop, as of the last meter_look */
};

/* Zeroes @m. While there is a meter the loop looks at the clock in each turn. */
void node_add_meter(struct node *n, struct meter *m);
void node_remove_meter(struct node *n, struct meter *m);

/* Bring m->cpu up to date; 2 us. */
void meter_look(struct meter *m);

/* For the funnel: a request has ended that has come in at @since (loop_turn_came). */
void node_meter(struct node *n, bool write, uint64_t len, uint64_t since);

#endif
