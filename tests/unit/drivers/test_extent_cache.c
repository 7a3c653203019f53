/* SPDX-License-Identifier: Apache-2.0
 *
 * The cache of block status: what a look-up leaves in it, and what changes take out.
 */
#include "drivers/extent_cache.h"
#include "drivers_test.h"

#define SIZE (1000 * KiB)

static void fill(struct extent_cache *c, uint64_t base, uint64_t align, const uint64_t *lens,
                 size_t n)
{
    struct extent_fill f;

    extent_fill_begin(c, &f, base, align, SIZE);
    for (size_t i = 0; i < n; i++)
        (void)extent_fill_add(&f, lens[i], i % 2 ? STATUS_ZERO : STATUS_DATA);
    extent_fill_end(c, &f);
}

static void expect(struct extent_cache *c, uint64_t off, uint64_t len, unsigned flags)
{
    uint64_t got_len;
    unsigned got_flags;

    assert_true(extent_cache_find(c, off, &got_len, &got_flags));
    assert_int_equal(got_len, len);
    assert_int_equal(got_flags, flags);
}

static void expect_nothing(struct extent_cache *c, uint64_t off)
{
    uint64_t len;
    unsigned flags;

    assert_false(extent_cache_find(c, off, &len, &flags));
}

static void what_was_looked_up_is_found(void **state)
{
    const uint64_t lens[] = { 10, 20, 30 };
    struct extent_cache c;

    extent_cache_init(&c);
    expect_nothing(&c, 0);
    fill(&c, 100, 1, lens, 3);
    expect_nothing(&c, 99);
    expect(&c, 100, 10, STATUS_DATA);
    expect(&c, 109, 1, STATUS_DATA);
    expect(&c, 110, 20, STATUS_ZERO);
    expect(&c, 130, 30, STATUS_DATA);
    expect(&c, 159, 1, STATUS_DATA);
    expect_nothing(&c, 160);
}

static void a_change_takes_out_what_follows_it(void **state)
{
    const uint64_t lens[] = { 10, 20, 30 };
    struct extent_cache c;

    extent_cache_init(&c);
    fill(&c, 100, 1, lens, 3);
    extent_cache_forget(&c, 0, 100, STATUS_DATA);       /* before it */
    extent_cache_forget(&c, 160, 100, STATUS_DATA);     /* after it */
    extent_cache_forget(&c, 131, 29, STATUS_DATA);      /* says so already */
    expect(&c, 130, 30, STATUS_DATA);
    extent_cache_forget(&c, 131, 30, STATUS_DATA);      /* reaches out of it */
    expect(&c, 130, 1, STATUS_DATA);
    expect_nothing(&c, 131);
    extent_cache_forget(&c, 115, 1, STATUS_DATA);
    expect(&c, 110, 5, STATUS_ZERO);
    expect_nothing(&c, 115);
    extent_cache_forget(&c, 102, 1, 0);
    expect(&c, 100, 2, STATUS_DATA);
    extent_cache_forget(&c, 0, 101, 0);
    expect_nothing(&c, 100);
}

static void a_change_that_ends_during_a_look_up_cuts_it(void **state)
{
    struct extent_cache c;
    struct extent_fill a, b;

    extent_cache_init(&c);
    extent_fill_begin(&c, &a, 0, 1, SIZE);
    extent_fill_begin(&c, &b, 500, 1, SIZE);
    extent_fill_add(&a, 100, STATUS_ZERO);
    extent_fill_add(&a, 100, STATUS_DATA);
    extent_fill_add(&b, 100, STATUS_ZERO);
    extent_cache_forget(&c, 150, 10, STATUS_DATA);
    extent_fill_end(&c, &a);
    expect(&c, 0, 100, STATUS_ZERO);
    expect(&c, 100, 50, STATUS_DATA);
    expect_nothing(&c, 150);
    extent_cache_forget(&c, 400, 101, STATUS_DATA);
    extent_fill_end(&c, &b);
    expect_nothing(&c, 500);
    expect(&c, 0, 100, STATUS_ZERO);
}

static void answers_are_kept_in_whole_blocks(void **state)
{
    /* data 0-100, zero 100-1124, data 1124-1136, zero 1136-1536 */
    const uint64_t lens[] = { 100, 1024, 12, 400 };
    struct extent_cache c;

    extent_cache_init(&c);
    fill(&c, 0, 512, lens, 4);
    expect(&c, 0, 512, STATUS_DATA);
    expect(&c, 512, 512, STATUS_ZERO);
    expect(&c, 1024, 512, STATUS_DATA);
    expect_nothing(&c, 1536);
}

static void the_end_of_the_disk_is_the_end(void **state)
{
    const uint64_t lens[] = { KiB, UINT64_MAX - 10, 5 };
    struct extent_cache c;

    extent_cache_init(&c);
    fill(&c, SIZE - 2 * KiB, 512, lens, 3);
    expect(&c, SIZE - KiB, KiB, STATUS_ZERO);
    expect_nothing(&c, SIZE);
}

static void there_is_room_for_so_many(void **state)
{
    struct extent_cache c;
    struct extent_fill f;
    unsigned n = 0;

    extent_cache_init(&c);
    extent_fill_begin(&c, &f, 0, 1, SIZE);
    while (extent_fill_add(&f, 10, n % 2 ? STATUS_ZERO : STATUS_DATA))
        n++;
    assert_int_equal(n, EXTENT_CACHE_MAX);
    extent_fill_end(&c, &f);
    expect(&c, 10 * (EXTENT_CACHE_MAX - 1), 10, STATUS_ZERO);
    expect_nothing(&c, 10 * EXTENT_CACHE_MAX);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_was_looked_up_is_found),
    cmocka_unit_test(a_change_takes_out_what_follows_it),
    cmocka_unit_test(a_change_that_ends_during_a_look_up_cuts_it),
    cmocka_unit_test(answers_are_kept_in_whole_blocks),
    cmocka_unit_test(the_end_of_the_disk_is_the_end),
    cmocka_unit_test(there_is_room_for_so_many),
};

DRIVERS_TEST_MAIN(tests)
