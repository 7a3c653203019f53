/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a bitmap is an array of booleans, only faster and smaller.
 * Method: seeded random operations on a bitmap and on such an array, all answers
 * compared; sizes around the words and levels of the pyramid. Then the promises
 * that an array cannot check: size without cost, memory given back.
 */
#include "base/bitmap.h"
#include "unit.h"
#include <unistd.h>

enum { OPS = 1500 };

struct model {
    struct random rnd;
    struct bitmap *bm;
    bool *bits;
    uint64_t n;
};

static uint64_t naive_next(const struct model *m, uint64_t from, bool value)
{
    while (from < m->n && m->bits[from] != value)
        from++;
    return from;
}

static uint64_t naive_count(const struct model *m, uint64_t start, uint64_t len)
{
    uint64_t count = 0;

    for (uint64_t i = start; i < start + len; i++)
        count += m->bits[i];
    return count;
}

/* Lengths of all magnitudes: single bits, words, most of the bitmap. */
static void pick_range(struct model *m, uint64_t *start, uint64_t *len)
{
    *start = random_below(&m->rnd, m->n + 1);
    *len = random_below(&m->rnd, (m->n - *start) >> random_below(&m->rnd, 16));
    if (random_below(&m->rnd, 8) == 0)
        *len = m->n - *start;
    if (random_below(&m->rnd, 4) == 0) {
        *start &= ~63ULL;
        *len = MIN(*len & ~63ULL, m->n - *start);
    }
}

static void change(struct model *m)
{
    uint64_t start, len, bit = random_below(&m->rnd, m->n);

    pick_range(m, &start, &len);
    switch (random_below(&m->rnd, 8)) {
    case 0: case 1:
        bitmap_set(m->bm, start, len);
        memset(m->bits + start, true, len);
        break;
    case 2: case 3:
        bitmap_clear(m->bm, start, len);
        memset(m->bits + start, false, len);
        break;
    case 4: case 5:
        if (m->n) {
            assert_int_equal(bitmap_set_bit(m->bm, bit), !m->bits[bit]);
            m->bits[bit] = true;
        }
        break;
    case 6:
        if (m->n) {
            assert_int_equal(bitmap_clear_bit(m->bm, bit), m->bits[bit]);
            m->bits[bit] = false;
        }
        break;
    case 7:
        if (random_below(&m->rnd, 20) == 0) {
            bitmap_clear_all(m->bm);
            memset(m->bits, false, m->n);
        }
        break;
    }
}

static void compare(struct model *m)
{
    uint64_t start, len, run_start = 0, run_len = 0, from = random_below(&m->rnd, m->n + 1);
    uint64_t max = 1 + random_below(&m->rnd, m->n + 10);

    pick_range(m, &start, &len);
    uint64_t count = naive_count(m, start, len);

    assert_int_equal(bitmap_count(m->bm), naive_count(m, 0, m->n));
    assert_int_equal(bitmap_next_set(m->bm, from), naive_next(m, from, true));
    assert_int_equal(bitmap_next_clear(m->bm, from), naive_next(m, from, false));
    assert_int_equal(bitmap_any_set(m->bm, start, len), count > 0);
    assert_int_equal(bitmap_all_set(m->bm, start, len), count == len);
    if (from < m->n)
        assert_int_equal(bitmap_test(m->bm, from), m->bits[from]);

    uint64_t words[2];

    bitmap_get_words(m->bm, from / 64, 2, words);
    for (uint64_t i = 0, bit = from & ~63ULL; i < 128; i++, bit++)
        assert_int_equal(words[i / 64] >> (i % 64) & 1, bit < m->n && m->bits[bit]);

    bool found = bitmap_next_range(m->bm, from, max, &run_start, &run_len);
    uint64_t first = naive_next(m, from, true);

    assert_int_equal(found, first < m->n);
    if (found) {
        assert_int_equal(run_start, first);
        assert_int_equal(run_len, MIN(naive_next(m, first, false) - first, max));
    }
}

static void run_model(uint64_t n, uint64_t seed)
{
    struct model m = { .rnd.state = seed, .bm = bitmap_new(n), .bits = calloc(n + 1, 1), .n = n };

    assert_non_null(m.bm);
    assert_int_equal(bitmap_size(m.bm), n);
    print_message("size %ju seed %ju\n", (uintmax_t)n, (uintmax_t)seed);
    for (int i = 0; i < OPS; i++) {
        change(&m);
        compare(&m);
    }
    bitmap_clear(m.bm, 0, n);
    assert_int_equal(bitmap_next_set(m.bm, 0), n);
    assert_int_equal(bitmap_count(m.bm), 0);
    bitmap_free(m.bm);
    free(m.bits);
}

static void answers_as_an_array_of_booleans(void **state)
{
    static const uint64_t sizes[] = {
        0, 1, 63, 64, 65, 127, 4095, 4096, 4097, 4096 + 64, 20000,
        64 * 64 * 8, 64 * 64 * 64, 64 * 64 * 64 + 1,
    };
    uint64_t seed = random_seed(1);

    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
        run_model(sizes[i], seed + i);
}

static void merge_is_union(void **state)
{
    struct random rnd = { random_seed(2) };
    uint64_t n = 64 * 64 * 3 + 7;
    struct bitmap *a = bitmap_new(n), *b = bitmap_new(n);
    bool *both = calloc(n, 1);

    for (int i = 0; i < 60; i++) {
        uint64_t start = random_below(&rnd, n), len = random_below(&rnd, (n - start) / 16 + 1);

        bitmap_set(i % 2 ? a : b, start, len);
        memset(both + start, true, len);
    }
    bitmap_set(b, n - 1, 1);
    both[n - 1] = true;
    uint64_t count_b = bitmap_count(b), count = 0;

    bitmap_merge(a, b);

    struct bitmap *copy = bitmap_new(n);
    uint64_t *words = calloc(n / 64 + 2, 8);

    bitmap_get_words(a, 0, n / 64 + 2, words);
    words[n / 64] |= ~0ULL << (n % 64);      /* behind the end */
    words[n / 64 + 1] = ~0ULL;
    bitmap_add_words(copy, 0, n / 64 + 2, words);
    assert_int_equal(bitmap_count(copy), bitmap_count(a));
    free(words);
    bitmap_free(a);
    a = copy;
    for (uint64_t i = 0; i < n; i++) {
        assert_int_equal(bitmap_test(a, i), both[i]);
        count += both[i];
    }
    assert_int_equal(bitmap_count(a), count);
    assert_int_equal(bitmap_count(b), count_b);
    bitmap_free(a);
    bitmap_free(b);
    free(both);
}

static size_t resident_bytes(void)
{
    unsigned long size, resident;
    FILE *f = fopen("/proc/self/statm", "r");

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%lu %lu", &size, &resident), 2);
    fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

/* 64 TiB in 4 KiB granules: 2 GiB of bits, of which a few pages are touched. */
static void a_vast_bitmap_costs_what_is_set(void **state)
{
    const uint64_t n = 1ULL << 34;
    const uint64_t at[] = { 0, 5, (1ULL << 33) + 77, n - 64, n - 1 };
    struct bitmap *bm = bitmap_new(n);
    size_t before = resident_bytes(), i = 0;

    assert_non_null(bm);
    for (i = 0; i < ARRAY_SIZE(at); i++)
        assert_true(bitmap_set_bit(bm, at[i]));
    i = 0;
    for (uint64_t b = 0; (b = bitmap_next_set(bm, b)) < n; b++)
        assert_int_equal(b, at[i++]);
    assert_int_equal(i, ARRAY_SIZE(at));
    bitmap_clear(bm, 1, n - 1);
    assert_int_equal(bitmap_count(bm), 1);
    bitmap_set(bm, 1ULL << 32, 1ULL << 22);
    assert_int_equal(bitmap_next_clear(bm, 1ULL << 32), (1ULL << 32) + (1ULL << 22));
    /* Half a MiB of bits, and generously for pages and the sanitizers' own. */
    assert_true(resident_bytes() - before < 4 * MiB);
    bitmap_free(bm);
}

static void clear_all_gives_memory_back(void **state)
{
    const uint64_t n = 1ULL << 28;          /* 32 MiB of bits */
    struct bitmap *bm = bitmap_new(n);

    bitmap_set(bm, 0, n);
    assert_true(bitmap_all_set(bm, 0, n));
    assert_int_equal(bitmap_next_clear(bm, 0), n);
    size_t full = resident_bytes();

    bitmap_clear_all(bm);
    assert_true(full - resident_bytes() > 30 * MiB);
    assert_int_equal(bitmap_count(bm), 0);
    assert_int_equal(bitmap_next_set(bm, 0), n);
    assert_int_equal(bitmap_next_clear(bm, 12345), 12345);
    assert_true(bitmap_set_bit(bm, n - 1));
    assert_int_equal(bitmap_next_set(bm, 0), n - 1);
    bitmap_free(bm);
}

static void no_address_space_is_no_bitmap(void **state)
{
    assert_null(bitmap_new(1ULL << 60));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_as_an_array_of_booleans),
        cmocka_unit_test(merge_is_union),
        cmocka_unit_test(a_vast_bitmap_costs_what_is_set),
        cmocka_unit_test(clear_all_gives_memory_back),
        cmocka_unit_test(no_address_space_is_no_bitmap),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
