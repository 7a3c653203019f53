/* SPDX-License-Identifier: Apache-2.0
 *
 * Metering the requests of a node: see meter.h.
 */
#include "block/meter.h"
#include "block/core.h"

void node_add_meter(struct node *n, struct meter *m)
{
    assert(n->loop == loop_current());
    *m = (struct meter){ 0 };
    list_push_tail(&n->core->meters, &m->link);
    loop_time_turns(true);
    meter_look(m);
    node_update_care(n);
}

void node_remove_meter(struct node *n, struct meter *m)
{
    assert(n->loop == loop_current());
    list_del(&m->link);
    loop_time_turns(false);
    node_update_care(n);
}

void meter_look(struct meter *m)
{
    if (!loop_cpu_wait(&m->cpu))
        m->cpu = (struct loop_cpu_wait){ 0 };
}

void node_meter(struct node *n, bool write, uint64_t len, uint64_t since)
{
    enum meter_kind kind = write ? METER_WRITE : METER_READ;
    uint64_t ns = loop_now() - since;
    struct meter *m;

    kind += len > METER_LONG;
    list_for_each(m, &n->core->meters, link) {
        m->sum[kind].n++;
        m->sum[kind].ns += m->most[kind] ? MIN(ns, m->most[kind]) : ns;
    }
}
