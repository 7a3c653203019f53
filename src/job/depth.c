/* SPDX-License-Identifier: Apache-2.0
 *
 * Finding the depth of a backup: see depth.h.
 */
#include "job/depth.h"

/* Two: one reads while the other writes. */
#define DEPTH_MIN 2U

/* A window is over when so many pieces were copied for each in flight, and so much
 * time has passed: shorter ones measure chance. */
#define WINDOW_ROUNDS 4
#define WINDOW_NS (10 * NSEC_PER_MSEC)

/* Windows from the end of a trial to the next. */
#define HOLD_WINDOWS 8

/* Twice as many must be so much faster, half as many at most so much slower. In
 * between lies the noise, and the wish to take no more than is of use. */
#define WORTH_MORE 1.10
#define WORTH_LESS 0.97

/* What a piece costs beside its bytes, so that small ones count too. */
#define PIECE_BYTES (64 * KiB)

static void begin_window(struct depth *d, uint64_t now_ns)
{
    d->since = now_ns;
    d->work = 0;
    d->pieces = 0;
}

void depth_init(struct depth *d, unsigned max, uint64_t now_ns)
{
    assert(max);
    *d = (struct depth){ .now = MIN(DEPTH_MIN, max), .max = max, .trial = DEPTH_HOLD, .hold = 1 };
    d->base = d->now;
    begin_window(d, now_ns);
}

static void settle(struct depth *d, unsigned depth)
{
    d->now = d->base = depth;
    d->trial = DEPTH_HOLD;
    d->hold = HOLD_WINDOWS;
}

/* False when there is no room in that direction. */
static bool try_other(struct depth *d, enum depth_trial trial)
{
    unsigned other = trial == DEPTH_UP ? MIN(d->base * 2, d->max) : MAX(d->base / 2, DEPTH_MIN);

    if (trial == DEPTH_UP ? other <= d->base : other >= d->base)
        return false;
    d->now = other;
    d->trial = trial;
    return true;
}

static void judge(struct depth *d, double rate)
{
    enum depth_trial trial = d->trial;
    double worth = trial == DEPTH_UP ? WORTH_MORE : WORTH_LESS;

    if (trial == DEPTH_HOLD) {
        d->base_rate = rate;
        if (--d->hold)
            return;
        d->hold = 1;
        if (!try_other(d, d->down_next ? DEPTH_DOWN : DEPTH_UP) &&
            !try_other(d, d->down_next ? DEPTH_UP : DEPTH_DOWN))
            d->hold = HOLD_WINDOWS;
        return;
    }
    d->down_next = trial == DEPTH_UP;
    if (rate < worth * d->base_rate) {
        settle(d, d->base);
        return;
    }
    /* It went well: go on the same way. */
    d->base_rate = rate;
    settle(d, d->now);
    (void)try_other(d, trial);
}

void depth_piece_done(struct depth *d, uint64_t bytes, uint64_t now_ns)
{
    d->work += bytes + PIECE_BYTES;
    d->pieces++;
    if (d->pieces < WINDOW_ROUNDS * d->now || now_ns < d->since + WINDOW_NS)
        return;
    judge(d, (double)d->work / (double)(now_ns - d->since));
    begin_window(d, now_ns);
}

void depth_interrupted(struct depth *d, uint64_t now_ns)
{
    begin_window(d, now_ns);
}
