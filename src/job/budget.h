/* SPDX-License-Identifier: Apache-2.0
 *
 * The latency budget: how much a background copy may do while guests use its source,
 * so that their requests take at most a given factor of what they take when nothing
 * is copied. It watches the source's meter and learns what requests take in moments
 * without a copy: those that it makes itself when it holds the copy back, and else a
 * few ms now and then. What it grants is a *share*: so many copies under way, on
 * average. 1.5 are two at a time for three quarters of the time.
 *
 * The loop that serves the guests does not see how long they wait for a CPU: they do
 * before they send a request and when they have the answer, and so does the loop when
 * one comes. That is what copying costs most on a busy machine. The kernel tells how
 * long the loop waits each time; a request is taken to wait twice as long, once for
 * itself and once for the guest.
 *
 * The share follows what a copy costs: with r what the requests take now over what they
 * take alone, it is multiplied by the root of (factor - 1) / (r - 1) each
 * window. So it settles where r is the factor, if more copies cost more. It grows when nobody
 * asks for anything, and never falls below BUDGET_FLOOR.
 *
 * Pure computation: the caller brings the time and the meter. Not thread-safe.
 */
#ifndef JOB_BUDGET_H
#define JOB_BUDGET_H

#include "block/meter.h"

/* One copy under way at least for a sixteenth of the time. */
#define BUDGET_FLOOR (1.0 / 16)
#define BUDGET_FACTOR_MAX 1000.0

struct budget {
    double factor;                 /* > = 1; 0: no budget, all is granted */
    double share;
    double max;                    /* the share is not more than this */
    unsigned in_flight;            /* from the last look on */
    uint64_t at;                   /* the last look */
    struct meter_sum seen[METER_KINDS];
    struct loop_cpu_wait cpu_seen, cpu;      /* @cpu: not yet counted to requests */

    double credit;                 /* ns of copying that may be done yet; below zero: a debt */
    bool held;                     /* nothing is begun until it has grown */

    /* What requests take when nothing is copied, ns; 0: not known. */
    double alone[METER_KINDS];
    struct meter_sum quiet[METER_KINDS];     /* not in `alone` yet */
    uint64_t quiet_since;          /* nothing has been under way since; 0: something is */

    /* The window. */
    uint64_t since;
    struct meter_sum window[METER_KINDS];
    struct meter_sum loaded[METER_KINDS];    /* of these, those that ended beside a copy */
    double busy;                   /* ns of copying in it, that of each copy */
    double busy_time;              /* ns in which something was copied */
    bool used;                     /* in the window before somebody asked for something */
    double slowdown;               /* r of the last window that told; 0: none has */

    /* A quiet moment of purpose. */
    bool probing;
    bool learnt;                   /* in this one */
    uint64_t probe_began, next_probe;
};

/* @factor: 0, or 1 to BUDGET_FACTOR_MAX. */
void budget_init(struct budget *b, double factor, uint64_t now_ns);

/* Look at the meter, always the same one, new when the budget is. To be called before
 * copies are begun and when one has ended: @in_flight are left under way. @max: as many as
 * would be without a budget. */
void budget_look(struct budget *b, struct meter *m, unsigned in_flight, unsigned max,
                 uint64_t now_ns);

/* Whether one more may be begun. If not, *wake_at may be brought forward. */
bool budget_grants(struct budget *b, uint64_t now_ns, uint64_t *wake_at);

/* It was: so many are under way from now on. */
void budget_begun(struct budget *b, unsigned in_flight);

/* Whether it holds the copy back at present. */
bool budget_binds(const struct budget *b);

#endif
