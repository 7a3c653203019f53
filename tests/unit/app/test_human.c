/* SPDX-License-Identifier: Apache-2.0
 *
 * Sizes, times and rates as people write and read them.
 */
#include "app/human.h"
#include "co_test.h"

static void sizes_have_three_digits(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        { 0, "0 B" },
        { 1, "1 B" },
        { 999, "999 B" },
        { 1000, "0.977 KiB" },
        { 1024, "1 KiB" },
        { 397312, "388 KiB" },
        { 999 * KiB, "999 KiB" },
        { 999 * KiB + 900, "0.976 MiB" },
        { 5000192, "4.77 MiB" },
        { 10 * MiB, "10 MiB" },
        { 3 * TiB / 2, "1.5 TiB" },
        { UINT64_MAX, "16 EiB" },
    };
    char buf[HUMAN_TEXT];

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_string_equal(human_size(cases[i].bytes, buf), cases[i].text);
}

static void durations_have_two_units(void **state)
{
    static const struct {
        uint64_t seconds;
        const char *text;
    } cases[] = {
        { 0, "0 s" },         { 59, "59 s" },         { 60, "1 min 00 s" },
        { 200, "3 min 20 s" }, { 3599, "59 min 59 s" }, { 7500, "2 h 05 min" },
    };
    char buf[HUMAN_TEXT];

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_string_equal(human_duration(cases[i].seconds, buf), cases[i].text);
    /* The longest there is fits too. */
    assert_true(strlen(human_duration(UINT64_MAX, buf)) < HUMAN_TEXT);
}

static void latencies_have_three_digits(void **state)
{
    static const struct {
        uint64_t ns;
        const char *text;
    } cases[] = {
        { 0, "0 ns" },          { 999, "999 ns" },        { 1000, "1 us" },
        { 12345, "12.3 us" },   { 999499, "999 us" },     { 999500, "1 ms" },
        { 4771234, "4.77 ms" }, { 45000000000, "45 s" },  { 4500000000000, "4500 s" },
    };
    char buf[HUMAN_TEXT];

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_string_equal(human_latency(cases[i].ns, buf), cases[i].text);
    assert_true(strlen(human_latency(UINT64_MAX, buf)) < HUMAN_TEXT);
}

static void factors_are_numbers(void **state)
{
    static const char *const bad[] = { "", "x", "1.5x", "1,5", "nan", "inf", "1e999" };
    struct err err = ERR_INIT;
    double v;

    assert_true(human_parse_factor("1.5", &v, &err) && v == 1.5);
    assert_true(human_parse_factor("2", &v, &err) && v == 2);
    assert_true(human_parse_factor("off", &v, &err) && v == 0);
    assert_true(human_parse_factor("0", &v, &err) && v == 0);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(human_parse_factor(bad[i], &v, &err));
}

static void rates_are_sizes_with_a_second(void **state)
{
    static const struct {
        const char *text;
        uint64_t rate;
    } good[] = {
        { "0", 0 },
        { "50M", 50 * MiB },
        { "50M/s", 50 * MiB },
        { "50MiB/s", 50 * MiB },
        { "1.5GiB/s", 3 * GiB / 2 },
        { "1000B/s", 1000 },
        { "1000", 1000 },
    };
    static const char *const bad[] = { "", "/s", "B", "iB/s", "fast", "-1", "50MB", "50MB/s",
                                       "50kB", "50M/h", "50M/s/s", "99999999999E" };
    struct err err;
    uint64_t rate;

    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        assert_true(human_parse_rate(good[i].text, &rate, &err));
        assert_int_equal(rate, good[i].rate);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        if (human_parse_rate(bad[i], &rate, &err))
            fail_msg("'%s' passed as a rate", bad[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_have_three_digits),
        cmocka_unit_test(durations_have_two_units),
        cmocka_unit_test(latencies_have_three_digits),
        cmocka_unit_test(factors_are_numbers),
        cmocka_unit_test(rates_are_sizes_with_a_second),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
