/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: ranges near the end of 64 bits are handled like any other.
 */
#include "base/range.h"
#include "unit.h"

static void end_is_refused_when_it_does_not_fit(void **state)
{
    uint64_t end = 7;

    assert_true(range_end(UINT64_MAX - 5, 5, &end));
    assert_int_equal(end, UINT64_MAX);
    assert_false(range_end(UINT64_MAX - 5, 6, &end));
}

static void inside_means_every_byte(void **state)
{
    assert_true(range_inside(0, 10, 10));
    assert_true(range_inside(10, 0, 10));
    assert_false(range_inside(10, 1, 10));
    assert_false(range_inside(11, 0, 10));
    assert_false(range_inside(5, UINT64_MAX, 10));
    assert_false(range_inside(UINT64_MAX, UINT64_MAX, UINT64_MAX - 1));
}

static void neighbours_do_not_overlap(void **state)
{
    assert_false(ranges_overlap(0, 10, 10, 10));
    assert_false(ranges_overlap(10, 10, 0, 10));
    assert_true(ranges_overlap(0, 11, 10, 10));
    assert_true(ranges_overlap(5, 1, 0, 100));
    assert_false(ranges_overlap(5, 0, 0, 100));
}

static void intersection_is_the_common_part(void **state)
{
    uint64_t off = 1, len = 2;

    assert_false(range_intersect(0, 4, 4, 4, &off, &len));
    assert_int_equal(off, 1);
    assert_int_equal(len, 2);
    assert_true(range_intersect(0, 10, 4, 100, &off, &len));
    assert_int_equal(off, 4);
    assert_int_equal(len, 6);
    assert_true(range_intersect(UINT64_MAX - 10, 10, 0, UINT64_MAX, &off, &len));
    assert_int_equal(off, UINT64_MAX - 10);
    assert_int_equal(len, 10);
}

static void widening_rounds_outwards(void **state)
{
    uint64_t off, len;

    assert_true(range_widen(4095, 2, 4096, &off, &len));
    assert_int_equal(off, 0);
    assert_int_equal(len, 8192);
    assert_true(range_widen(4096, 4096, 4096, &off, &len));
    assert_int_equal(off, 4096);
    assert_int_equal(len, 4096);
    assert_false(range_widen(UINT64_MAX - 10, 5, 4096, &off, &len));
    assert_false(range_widen(UINT64_MAX - 10, 50, 1, &off, &len));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(end_is_refused_when_it_does_not_fit),
        cmocka_unit_test(inside_means_every_byte),
        cmocka_unit_test(neighbours_do_not_overlap),
        cmocka_unit_test(intersection_is_the_common_part),
        cmocka_unit_test(widening_rounds_outwards),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
