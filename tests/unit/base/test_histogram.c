/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: quantiles are never below the truth and at most a sixteenth above it, for values
 * of all sizes; the maximum is exact; nothing that is counted gets lost.
 * Method: the same values in a sorted array.
 */
#include "base/histogram.h"
#include "unit.h"

#define N 20000

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void assert_close(uint64_t got, uint64_t truth)
{
    if (got < truth || got - truth > truth / HISTOGRAM_SUB)
        print_error("got %ju, the truth is %ju\n", (uintmax_t)got, (uintmax_t)truth);
    assert_true(got >= truth && got - truth <= truth / HISTOGRAM_SUB);
}

/* @n values, which get sorted. */
static void compare(uint64_t *values, size_t n)
{
    struct histogram h = { 0 };
    struct histogram_summary s;
    size_t above = 0;

    for (size_t i = 0; i < n; i++) {
        histogram_add(&h, values[i]);
        above += values[i] > 0;
    }
    qsort(values, n, sizeof(*values), by_value);
    histogram_summarize(&h, &s);
    assert_int_equal(s.count, n);
    assert_int_equal(s.above_zero, above);
    assert_int_equal(s.max, values[n - 1]);
    assert_close(s.p50, values[(n * 500 + 999) / 1000 - 1]);
    assert_close(s.p99, values[(n * 990 + 999) / 1000 - 1]);
    assert_close(s.p999, values[(n * 999 + 999) / 1000 - 1]);
}

static void quantiles_are_close(void **state)
{
    uint64_t *values = calloc(N, sizeof(*values)), x = 88172645463325252;

    for (unsigned bits = 1; bits <= HISTOGRAM_MAX_BITS; bits++) {
        for (size_t i = 0; i < N; i++) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            /* All magnitudes below 2^bits. */
            values[i] = (x >> 22) % (1ull << (1 + i % bits));
        }
        for (size_t n = 1; n <= N; n = n * 7 + 1)
            compare(values, n);
        compare(values, N);
    }
    free(values);
}

static void borders_of_buckets_are_exact_enough(void **state)
{
    for (unsigned bits = 0; bits < HISTOGRAM_MAX_BITS; bits++) {
        for (int64_t d = -1; d <= 1; d++)
            compare((uint64_t[]){ (1ull << bits) + (uint64_t)d }, 1);
    }
}

static void zeros_count(void **state)
{
    struct histogram h = { 0 };
    struct histogram_summary s;

    histogram_summarize(&h, &s);
    assert_int_equal(s.count, 0);
    for (int i = 0; i < 989; i++)
        histogram_add_zero(&h);
    for (int i = 0; i < 11; i++)
        histogram_add(&h, 1000);
    histogram_summarize(&h, &s);
    assert_int_equal(s.count, 1000);
    assert_int_equal(s.above_zero, 11);
    assert_int_equal(s.p50, 0);
    assert_int_equal(s.p99, 1000);
    assert_int_equal(s.max, 1000);
}

static void what_is_too_large_is_still_the_largest(void **state)
{
    struct histogram h = { 0 };
    struct histogram_summary s;

    histogram_add(&h, UINT64_MAX);
    histogram_add(&h, 1);
    histogram_summarize(&h, &s);
    assert_int_equal(s.p50, 1);
    assert_true(s.p999 == UINT64_MAX && s.max == UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_are_close),
        cmocka_unit_test(borders_of_buckets_are_exact_enough),
        cmocka_unit_test(zeros_count),
        cmocka_unit_test(what_is_too_large_is_still_the_largest),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
