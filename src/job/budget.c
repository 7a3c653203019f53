/* SPDX-License-Identifier: Apache-2.0
 *
 * The latency budget of a backup: see budget.h.
 */
#include "job/budget.h"
#include <math.h>

/* A window is over when it has seen so many requests and so much time; with fewer
 * requests, after WINDOW_MAX_NS. Fewer than ENOUGH are no guest to speak of. And it
 * holds a pause with the copy that follows, or a part of both: a pause alone would say
 * that copying costs nothing. */
#define WINDOW_NS (20 * NSEC_PER_MSEC)
#define WINDOW_MAX_NS (100 * NSEC_PER_MSEC)
#define WINDOW_REQUESTS 64
#define ENOUGH 8

/* The share changes by so much in a window at most, so that one with bad luck does
 * no harm; and is halved in two thirds of the time in which it doubles. */
#define SHRINK_MOST 0.5
#define GROW_MOST 1.25

/* How long nothing is begun when the credit is used up, at least: short pauses teach
 * nothing. At most, however long the copies took. */
#define PAUSE_NS (2 * NSEC_PER_MSEC)
#define PAUSE_MAX_NS NSEC_PER_SEC

/* Requests that began beside a copy end in the pause. */
#define SETTLE_NS (200 * NSEC_PER_USEC)

/* A probe is over after so many requests, or so long when all copies have ended; if they
 * do not end it is given up. Probes cost a thirtieth of the time at most. */
#define PROBE_REQUESTS 32
#define PROBE_NS (10 * NSEC_PER_MSEC)
#define PROBE_FIRST_NS (100 * NSEC_PER_MSEC)
#define PROBE_DRAIN_NS NSEC_PER_SEC
#define PROBE_EVERY_NS (2 * NSEC_PER_SEC)
#define PROBE_THRIFT 30

/* One request counts as so many that take as long as they do alone, at most: a
 * machine that hiccups says nothing about copying. */
#define CLIP 16

static void begin_window(struct budget *b, uint64_t now)
{
    memset(b->window, 0, sizeof(b->window));
    memset(b->loaded, 0, sizeof(b->loaded));
    b->busy = b->busy_time = 0;
    b->since = now;
}

void budget_init(struct budget *b, double factor, uint64_t now)
{
    *b = (struct budget){ .factor = factor, .share = 1, .max = 1, .at = now };
    begin_window(b, now);
}

static uint64_t requests(const struct meter_sum *sum)
{
    uint64_t n = 0;

    for (unsigned k = 0; k < METER_KINDS; k++)
        n += sum[k].n;
    return n;
}

/* ---- what requests take alone ------------------------------------------------------ */

/* What is quicker is believed sooner: hardly anything makes requests quicker than
 * they can be. */
static void learn(struct budget *b, struct meter *m, unsigned k)
{
    double mean = (double)b->quiet[k].ns / (double)b->quiet[k].n;
    double *alone = &b->alone[k];

    if (*alone == 0)
        *alone = mean;
    else
        *alone += (mean - *alone) / (mean < *alone ? 2 : 8);
    b->quiet[k] = (struct meter_sum){ 0 };
    b->learnt = true;
    m->most[k] = (uint64_t)(CLIP * *alone) + 1;
}

static void note_quiet(struct budget *b, struct meter *m, const struct meter_sum *news)
{
    if (!b->quiet_since || b->at < b->quiet_since + SETTLE_NS)
        return;
    for (unsigned k = 0; k < METER_KINDS; k++) {
        b->quiet[k].n += news[k].n;
        b->quiet[k].ns += news[k].ns;
        if (b->quiet[k].n >= PROBE_REQUESTS)
            learn(b, m, k);
    }
}

static void begin_probe(struct budget *b, uint64_t now)
{
    memset(b->quiet, 0, sizeof(b->quiet));
    b->probing = true;
    b->learnt = false;
    b->probe_began = now;
}

static void end_probe(struct budget *b, struct meter *m, uint64_t now)
{
    for (unsigned k = 0; k < METER_KINDS; k++) {
        if (b->quiet[k].n >= ENOUGH)
            learn(b, m, k);
    }
    begin_window(b, now);
    b->probing = false;
    b->next_probe = now + MAX(PROBE_EVERY_NS, PROBE_THRIFT * (now - b->probe_began));
}

static bool all_known(const struct budget *b)
{
    for (unsigned k = 0; k < METER_KINDS; k++) {
        if (b->window[k].n >= ENOUGH && b->alone[k] == 0)
            return false;
    }
    return true;
}

static uint64_t probe_until(const struct budget *b)
{
    if (!b->quiet_since)
        return b->probe_began + PROBE_DRAIN_NS;
    return b->quiet_since + (all_known(b) ? PROBE_NS : PROBE_FIRST_NS);
}

static void consider_probe(struct budget *b, struct meter *m, uint64_t now)
{
    if (!b->probing) {
        if (requests(b->window) >= ENOUGH && now >= b->next_probe)
            begin_probe(b, now);
        return;
    }
    if (now >= probe_until(b) || (b->quiet_since && b->learnt && all_known(b) &&
                                  now >= b->quiet_since + PAUSE_NS))
        end_probe(b, m, now);
}

/* ---- the share ------------------------------------------------------------------------ */

/* How many times longer than alone these requests took; 0: cannot be told. */
static double ratio(const struct budget *b, const struct meter_sum *sum, double least)
{
    double times = 0, n = 0;

    for (unsigned k = 0; k < METER_KINDS; k++) {
        if (b->alone[k] > 0) {
            times += (double)sum[k].ns / b->alone[k];
            n += (double)sum[k].n;
        }
    }
    return n >= least ? times / n : 0;
}

/* The same of all requests of the window. Of a guest that sends the next request when
 * one has ended, few are slow, as few there are while a copy is under way; that comes
 * to the same thing, were it not for CLIP. So what the guest loses in these times is
 * looked at too: it does 1 / beside of what it does alone. */
static double slowdown(const struct budget *b, uint64_t now)
{
    double all = ratio(b, b->window, ENOUGH), beside = ratio(b, b->loaded, 1);
    double part = b->busy_time / (double)(now - b->since);

    if (all == 0 || beside <= 1)
        return all;
    return MAX(all, 1 / (1 - part + part / beside));
}

static void set_share(struct budget *b, double share)
{
    b->share = MAX(MIN(share, b->max), BUDGET_FLOOR);
}

static void judge(struct budget *b, uint64_t now)
{
    double average = b->busy / (double)(now - b->since), allowed = b->factor - 1, r;

    b->used = requests(b->window) >= ENOUGH;
    if (!b->used) {
        b->slowdown = 0;
        set_share(b, b->share * 2);
        return;
    }
    r = slowdown(b, now);
    if (r == 0)
        return;
    b->slowdown = r;

    double change = r > 1 ? sqrt(allowed / (r - 1)) : GROW_MOST;

    /* What was granted and not used is not to be taken away first. */
    if (change < 1)
        set_share(b, MIN(b->share, MAX(average, BUDGET_FLOOR)) * MAX(change, SHRINK_MOST));
    else
        set_share(b, b->share * MIN(change, GROW_MOST));
}

static bool window_is_over(const struct budget *b, uint64_t now)
{
    uint64_t n = requests(b->window);

    if (n < ENOUGH)
        return now >= b->since + (n == 0 && !b->used ? WINDOW_NS : WINDOW_MAX_NS);
    if (b->busy_time == 0)
        return now >= b->since + 2 * PAUSE_MAX_NS;
    return now >= b->since + (n >= WINDOW_REQUESTS ? WINDOW_NS : WINDOW_MAX_NS);
}

void budget_begun(struct budget *b, unsigned in_flight)
{
    b->in_flight = in_flight;
    b->quiet_since = 0;
}

/* What the meter tells more than at the last look. */
static void read_meter(struct budget *b, const struct meter *m, struct meter_sum *news)
{
    uint64_t n;
    double wait;

    for (unsigned k = 0; k < METER_KINDS; k++) {
        news[k].n = m->sum[k].n - b->seen[k].n;
        news[k].ns = m->sum[k].ns - b->seen[k].ns;
        b->seen[k] = m->sum[k];
    }
    if (m->cpu.times > b->cpu_seen.times && b->cpu_seen.times) {
        b->cpu.ns += m->cpu.ns - b->cpu_seen.ns;
        b->cpu.times += m->cpu.times - b->cpu_seen.times;
    }
    b->cpu_seen = m->cpu;
    n = requests(news);
    if (!n)
        return;
    /* The loop wakes up for other things, too; and once for several requests. */
    wait = 2.0 * (double)b->cpu.ns / (double)MAX(b->cpu.times, n);
    b->cpu = (struct loop_cpu_wait){ 0 };
    for (unsigned k = 0; k < METER_KINDS; k++)
        news[k].ns += (uint64_t)(wait * (double)news[k].n);
}

void budget_look(struct budget *b, struct meter *m, unsigned in_flight, unsigned max, uint64_t now)
{
    struct meter_sum news[METER_KINDS];
    double passed = (double)(now - b->at);

    /* A depth that is tried must not be held back by what was enough before. */
    if (b->share >= b->max)
        b->share = max;
    b->max = max;
    read_meter(b, m, news);
    for (unsigned k = 0; k < METER_KINDS; k++) {
        b->window[k].n += news[k].n;
        b->window[k].ns += news[k].ns;
        if (b->in_flight) {
            b->loaded[k].n += news[k].n;
            b->loaded[k].ns += news[k].ns;
        }
    }
    b->busy += passed * b->in_flight;
    b->busy_time += b->in_flight ? passed : 0;
    b->credit += passed * (b->share - b->in_flight);
    b->credit = MIN(b->credit, b->share * PAUSE_NS);
    b->credit = MAX(b->credit, -b->share * PAUSE_MAX_NS);
    note_quiet(b, m, news);
    b->at = now;
    b->in_flight = in_flight;
    if (!in_flight && !b->quiet_since)
        b->quiet_since = now;
    consider_probe(b, m, now);
    if (!b->probing && window_is_over(b, now)) {
        judge(b, now);
        begin_window(b, now);
    }
}

/* ---- granting ---------------------------------------------------------------------------- */

bool budget_binds(const struct budget *b)
{
    return b->factor > 0 && (b->probing || b->share < b->max);
}

/* When to look again in a moment without a copy: at its end, and before that, as what
 * is seen between two looks is of one kind, and guests may have gone. */
static uint64_t next_look(const struct budget *b, uint64_t end, uint64_t now)
{
    uint64_t settled = b->quiet_since ? b->quiet_since + SETTLE_NS : 0;

    if (now < settled)
        return MIN(end, settled);
    return MIN(end, now + (b->probing ? PAUSE_NS : WINDOW_NS));
}

bool budget_grants(struct budget *b, uint64_t now, uint64_t *wake_at)
{
    double enough = b->share * PAUSE_NS;
    uint64_t end;

    if (!budget_binds(b))
        return b->in_flight < b->max;
    b->held = b->credit < (b->held ? enough : 0);
    if (b->probing || b->held) {
        end = b->probing ? probe_until(b)
                         : now + (uint64_t)((enough - b->credit) / b->share) + 1;
        *wake_at = MIN(*wake_at, next_look(b, end, now));
        return false;
    }
    return b->in_flight < ceil(b->share);
}
