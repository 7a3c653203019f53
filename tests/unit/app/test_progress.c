/* SPDX-License-Identifier: Apache-2.0
 *
 * Rates, time left, and bars of any width.
 */
#include "app/progress.h"
#include "co_test.h"

#define S NSEC_PER_SEC

static struct progress fresh(bool open_ended)
{
    struct progress p;

    progress_init(&p, PROGRESS_NONE, "disk -> b.raw", open_ended, 100 * S);
    return p;
}

static void the_rate_is_that_of_the_last_seconds(void **state)
{
    struct progress p = fresh(false);

    assert_int_equal(progress_rate(&p, 101 * S, 10 * MiB), 10 * MiB);
    assert_int_equal(progress_rate(&p, 102 * S, 20 * MiB), 10 * MiB);
    /* From here on it is ten times as slow; after a while only that counts. */
    for (unsigned i = 1; i <= 20; i++)
        (void)progress_rate(&p, (102 + i) * S, 20 * MiB + i * MiB);
    assert_int_equal(progress_rate(&p, 123 * S, 41 * MiB), MiB);
}

static void the_rate_of_a_job_that_stands_is_zero(void **state)
{
    struct progress p = fresh(false);

    (void)progress_rate(&p, 101 * S, 10 * MiB);
    for (unsigned i = 1; i <= 60; i++)
        (void)progress_rate(&p, 101 * S + i * S / 4, 10 * MiB);
    assert_int_equal(progress_rate(&p, 120 * S, 10 * MiB), 0);
    /* Progress that goes back is no rate either. */
    assert_int_equal(progress_rate(&p, 121 * S, 9 * MiB), 0);
}

static void more_samples_than_there_is_room_for(void **state)
{
    struct progress p = fresh(false);

    for (unsigned i = 1; i <= 1000; i++)
        (void)progress_rate(&p, 100 * S + i * S / 100, i * KiB);
    assert_int_equal(progress_rate(&p, 111 * S, 1100 * KiB) / KiB, 100);
}

static void the_time_left_follows_from_the_rate(void **state)
{
    struct progress_state s = { .current = 10 * MiB, .total = 30 * MiB };
    uint64_t left;

    assert_true(progress_time_left(&s, 4 * MiB, &left));
    assert_int_equal(left, 5);
    assert_false(progress_time_left(&s, 0, &left));
    s.current = 31 * MiB;      /* totals are estimates */
    assert_false(progress_time_left(&s, MiB, &left));
}

static char *draw(const struct progress *p, const struct progress_state *s, unsigned columns)
{
    struct strbuf sb = STRBUF_INIT;

    progress_draw(&sb, p, s, 2 * MiB, columns);
    return strbuf_steal(&sb);
}

static void check_drawn(const struct progress *p, const struct progress_state *s,
                        unsigned columns, const char *text)
{
    char *drawn = draw(p, s, columns);

    assert_string_equal(drawn, text);
    free(drawn);
}

static void a_bar_gives_way_to_figures(void **state)
{
    struct progress p = fresh(false);
    struct progress_state s = { .current = 4 * MiB, .total = 16 * MiB };

    check_drawn(&p, &s, 75, "disk -> b.raw   25% [====>            ]  "
                            "4 MiB of 16 MiB  2 MiB/s  6 s left");
    check_drawn(&p, &s, 55, "disk -> b.raw   25% 4 MiB of 16 MiB  2 MiB/s  6 s left");
    check_drawn(&p, &s, 52, " 25% [==>      ]  4 MiB of 16 MiB  2 MiB/s  6 s left");
    check_drawn(&p, &s, 10, " 25% 4 MiB");
    check_drawn(&p, &s, 0, "");
    s.note = "paused";
    check_drawn(&p, &s, 55, "disk -> b.raw   25% 4 MiB of 16 MiB  2 MiB/s  paused");
}

static void bars_of_any_width_and_state_keep_to_it(void **state)
{
    const uint64_t values[] = { 0, 1, MiB, 7 * GiB, UINT64_MAX / 2, UINT64_MAX };

    for (unsigned columns = 0; columns < 200; columns++) {
        for (size_t c = 0; c < ARRAY_SIZE(values); c++) {
            for (size_t t = 0; t < ARRAY_SIZE(values); t++) {
                struct progress_state s = { .current = values[c], .total = values[t] };
                struct progress p = fresh(columns % 2);
                char *drawn = draw(&p, &s, columns);

                assert_true(strlen(drawn) <= columns);
                free(drawn);
            }
        }
    }
}

static void without_a_total_it_counts(void **state)
{
    struct progress p = fresh(true);
    struct progress_state s = { .current = 3 * MiB, .total = 3 * MiB };

    check_drawn(&p, &s, 80, "disk -> b.raw  3 MiB of old data kept");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rate_is_that_of_the_last_seconds),
        cmocka_unit_test(the_rate_of_a_job_that_stands_is_zero),
        cmocka_unit_test(more_samples_than_there_is_room_for),
        cmocka_unit_test(the_time_left_follows_from_the_rate),
        cmocka_unit_test(a_bar_gives_way_to_figures),
        cmocka_unit_test(bars_of_any_width_and_state_keep_to_it),
        cmocka_unit_test(without_a_total_it_counts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
