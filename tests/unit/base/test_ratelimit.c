/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: over any time the bytes that pass are speed times time and a bucket,
 * neither more nor much less; a new speed counts at once.
 * Method: a clock made of a number, and a caller that waits as long as it is told.
 */
#include "base/ratelimit.h"
#include "unit.h"

/* Move chunks as fast as allowed until @until; returns the bytes moved. */
static uint64_t drive(struct ratelimit *rl, uint64_t *now, uint64_t until, uint64_t chunk)
{
    uint64_t moved = 0, wait;

    while (*now < until) {
        wait = ratelimit_take(rl, *now, chunk);
        if (!wait)
            moved += chunk;
        else
            *now += wait;
    }
    return moved;
}

static void assert_near(uint64_t got, uint64_t want, uint64_t slack)
{
    if (got + slack < want || got > want + slack)
        print_error("got %ju, want %ju +- %ju\n", (uintmax_t)got, (uintmax_t)want,
                    (uintmax_t)slack);
    assert_true(got + slack >= want && got <= want + slack);
}

static void unlimited_never_waits(void **state)
{
    struct ratelimit rl = RATELIMIT_INIT;

    for (int i = 0; i < 100; i++)
        assert_int_equal(ratelimit_take(&rl, 0, GiB), 0);
}

static void keeps_the_speed_for_any_chunk(void **state)
{
    static const uint64_t speeds[] = { 1000, 64 * KiB, 1 * MiB, 3 * GiB + 7 };
    static const uint64_t chunks[] = { 4 * KiB, 64 * KiB, 1 * MiB };

    for (size_t s = 0; s < ARRAY_SIZE(speeds); s++) {
        for (size_t c = 0; c < ARRAY_SIZE(chunks); c++) {
            struct ratelimit rl = RATELIMIT_INIT;
            uint64_t start = 12345678901ULL, now = start;
            uint64_t secs = speeds[s] == 1000 ? 10000 : 5;

            ratelimit_set(&rl, now, speeds[s]);
            uint64_t moved = drive(&rl, &now, start + secs * NSEC_PER_SEC, chunks[c]);

            assert_near(moved, speeds[s] * secs, chunks[c] + speeds[s] / 10 + speeds[s] / 1000);
        }
    }
}

/* A caller that asks again far too often gets no more, and no less. */
static void polling_does_not_lose_bytes(void **state)
{
    struct ratelimit rl = RATELIMIT_INIT;
    uint64_t moved = 0;

    ratelimit_set(&rl, 0, 1000);
    for (uint64_t now = 0; now < 20 * NSEC_PER_SEC; now += 7001) {
        if (!ratelimit_take(&rl, now, 100))
            moved += 100;
    }
    assert_near(moved, 20000, 200);
}

static void idle_time_is_no_credit(void **state)
{
    struct ratelimit rl = RATELIMIT_INIT;
    uint64_t now = 1000 * NSEC_PER_SEC, start = now;

    ratelimit_set(&rl, 0, 1 * MiB);
    uint64_t moved = drive(&rl, &now, start + NSEC_PER_SEC, 64 * KiB);
    assert_near(moved, 1 * MiB, 1 * MiB / 10 + 64 * KiB);
}

static void faster_pays_old_debt_at_once(void **state)
{
    struct ratelimit rl = RATELIMIT_INIT;
    uint64_t now = NSEC_PER_SEC;

    ratelimit_set(&rl, 0, 1000);
    assert_int_equal(ratelimit_take(&rl, now, 10 * MiB), 0);
    assert_true(ratelimit_take(&rl, now, 1) > 1000 * NSEC_PER_SEC);
    ratelimit_set(&rl, now, 100 * MiB);
    assert_in_range(ratelimit_take(&rl, now, 1), 1, NSEC_PER_SEC / 9);
    ratelimit_set(&rl, now, 0);
    assert_int_equal(ratelimit_take(&rl, now, GiB), 0);
}

/* What was sent at 1 GiB/s is not charged at the new crawl. */
static void slower_does_not_stall(void **state)
{
    struct ratelimit rl = RATELIMIT_INIT;
    uint64_t now = NSEC_PER_SEC;

    ratelimit_set(&rl, 0, 1 * GiB);
    assert_int_equal(ratelimit_take(&rl, now, 512 * MiB), 0);
    ratelimit_set(&rl, now, 1 * MiB);
    assert_in_range(ratelimit_take(&rl, now, 1), NSEC_PER_SEC / 4, NSEC_PER_SEC);
    uint64_t start = now;
    assert_near(drive(&rl, &now, start + 10 * NSEC_PER_SEC, 64 * KiB), 10 * MiB, 1 * MiB);
}

static void waiting_as_told_is_enough(void **state)
{
    struct random rnd = { random_seed(3) };

    for (int i = 0; i < 1000; i++) {
        struct ratelimit rl = RATELIMIT_INIT;
        uint64_t now = random_next(&rnd) >> 20;

        ratelimit_set(&rl, now, 1 + (random_next(&rnd) >> random_below(&rnd, 63)));
        for (int k = 0; k < 3; k++) {
            uint64_t wait = ratelimit_take(&rl, now, random_below(&rnd, 32 * MiB));

            now += wait;
            if (wait)
                assert_int_equal(ratelimit_take(&rl, now, random_below(&rnd, 32 * MiB)), 0);
        }
    }
}

static void extremes_do_not_overflow(void **state)
{
    struct ratelimit rl = RATELIMIT_INIT;

    ratelimit_set(&rl, 0, UINT64_MAX);
    assert_int_equal(ratelimit_take(&rl, UINT64_MAX, UINT64_MAX), 0);
    ratelimit_set(&rl, UINT64_MAX, 1);
    (void)ratelimit_take(&rl, UINT64_MAX, UINT64_MAX);
    /* A clock that went back is as one that stood still. */
    assert_true(ratelimit_take(&rl, 0, 1) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unlimited_never_waits),
        cmocka_unit_test(keeps_the_speed_for_any_chunk),
        cmocka_unit_test(polling_does_not_lose_bytes),
        cmocka_unit_test(idle_time_is_no_credit),
        cmocka_unit_test(faster_pays_old_debt_at_once),
        cmocka_unit_test(slower_does_not_stall),
        cmocka_unit_test(waiting_as_told_is_enough),
        cmocka_unit_test(extremes_do_not_overflow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
