/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: dirty bitmaps of any granularity on disks of any size: no overflow at their ends,
 * memory that follows what is dirty. Method: disks of null-co, written at their borders.
 */
#include "block/dirty.h"
#include "drivers_test.h"

static struct node *co_open_size(uint64_t size)
{
    return co_test_open("{'driver': 'null-co', 'size': %llu}", (unsigned long long)size);
}

static struct dirty_bitmap *add(struct node *n, const char *name, uint32_t granularity)
{
    struct err err = ERR_INIT;
    struct dirty_bitmap *bm = dirty_bitmap_add(n, &(struct dirty_bitmap_opts){
        .name = name, .granularity = granularity }, &err);

    if (!bm)
        fail_msg("%s", err.text);
    return bm;
}

static uint64_t resident(void)
{
    unsigned long long total, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%llu %llu", &total, &pages), 2);
    fclose(f);
    return pages * 4096;
}

CO_TEST(borders_of_the_largest_disk)
{
    static const uint64_t sizes[] = { INT64_MAX, INT64_MAX - 511, (1ULL << 62) + 1 };
    static const uint32_t grains[] = { 1u << 31, 1u << 20, 64 * KiB };

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        struct node *n = co_open_size(sizes[i]);
        struct err err = ERR_INIT;

        for (size_t g = 0; g < ARRAY_SIZE(grains); g++) {
            struct dirty_bitmap *bm = add(n, test_text("b%zu", g), grains[g]);

            assert_int_equal(co_node_write_zeroes(n, 0, 1, 0), 0);
            assert_int_equal(co_node_write_zeroes(n, sizes[i] - 1, 1, 0), 0);
            assert_int_equal(dirty_bitmap_count(bm), 2ULL * grains[g]);
            dirty_bitmap_set(bm, sizes[i] - 5ULL * grains[g], 5ULL * grains[g]);
            assert_true(bitmap_test(dirty_bitmap_bits(bm), (sizes[i] - 1) / grains[g]));
            dirty_bitmap_remove(bm);
        }
        /* 2^54 bits are more than there are addresses: a clean refusal. */
        assert_null(dirty_bitmap_add(n, &(struct dirty_bitmap_opts){
            .name = "fine", .granularity = 512 }, &err));
        assert_non_null(strstr(err.text, "larger granularity"));
        co_node_unref(n);
    }
}

CO_TEST(disks_of_next_to_nothing)
{
    for (uint64_t size = 0; size < 3; size++) {
        struct node *n = co_open_size(size);
        struct dirty_bitmap *fine = add(n, "fine", 512), *coarse = add(n, "coarse", 1u << 31);

        assert_int_equal(dirty_bitmap_count(fine), 0);
        if (size)
            assert_int_equal(co_node_write_zeroes(n, size - 1, 1, 0), 0);
        assert_int_equal(dirty_bitmap_count(fine), size ? 512 : 0);
        dirty_bitmap_merge(coarse, fine);
        assert_int_equal(dirty_bitmap_count(coarse), size ? 1ULL << 31 : 0);
        co_node_unref(n);
    }
}

CO_TEST(many_bitmaps_of_a_large_disk_cost_little)
{
    enum { MANY = 100 };
    uint64_t before = resident();
    struct node *n = co_open_size(64 * TiB);

    for (unsigned i = 0; i < MANY; i++)
        add(n, test_text("b%u", i), 64 * KiB);
    assert_int_equal(co_node_write_zeroes(n, 0, 1, 0), 0);
    assert_int_equal(co_node_write_zeroes(n, 64 * TiB - 1, 1, 0), 0);
    printf("%llu KiB for %d bitmaps\n", (unsigned long long)(resident() - before) / KiB, MANY);
    assert_true(resident() - before < MANY * 128 * KiB);
    co_node_unref(n);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(borders_of_the_largest_disk),
        cmocka_unit_test(disks_of_next_to_nothing),
        cmocka_unit_test(many_bitmaps_of_a_large_disk_cost_little),
    };

    return drivers_test_main(argc, argv, "sizes of dirty bitmaps", tests, ARRAY_SIZE(tests));
}
