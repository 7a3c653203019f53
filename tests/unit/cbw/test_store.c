/* SPDX-License-Identifier: Apache-2.0
 *
 * The scratch store: what is kept in which tier, what is not kept at all, that
 * space comes back, and that a write which fails leaves nothing behind.
 */
#include "co_test.h"
#include "cbw/store.h"
#include "cbw/view.h"
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#define G VIEW_GRANULE

static uint8_t buf[64 * G], back[64 * G];

/* Granules a, b, 0, c ... : a digit 0 is zeros, others a byte. */
static void pattern(const char *granules)
{
    for (size_t i = 0; granules[i]; i++)
        memset(buf + i * G, granules[i] - '0', G);
}

static int co_write(struct store *s, uint64_t granule, const char *granules)
{
    uint64_t len = strlen(granules) * G;

    pattern(granules);
    assert_int_equal(store_reserve(s, len), len);
    return co_store_write(s, granule * G, len, buf);
}

static void co_expect(struct store *s, uint64_t granule, const char *granules)
{
    uint64_t len = strlen(granules) * G;
    struct iovec iov[] = { { back, 100 }, { back + 100, len - 100 } };

    pattern(granules);
    memset(back, 0xee, sizeof(back));
    assert_int_equal(co_store_readv(s, granule * G, len, iov, 2, 0), 0);
    assert_memory_equal(back, buf, len);
}

static void expect_usage(struct store *s, uint64_t memory, uint64_t file)
{
    uint64_t m, f;

    store_usage(s, &m, &f);
    assert_int_equal(m, memory * G);
    assert_int_equal(f, file * G);
}

static struct store *co_store(uint64_t size, const char *dir, uint64_t memory, uint64_t limit)
{
    struct err err = ERR_INIT;
    struct store *s = co_store_new(size, dir, memory, limit, &err);

    if (!s)
        fail_msg("%s", err.text);
    return s;
}

static void tiers_body(void)
{
    struct store *s = co_store(1 * TiB, "/var/tmp", 3 * G, 0);
    uint64_t n;

    assert_int_equal(co_write(s, 1000, "1203"), 0);
    expect_usage(s, 3, 0);
    assert_int_equal(co_write(s, 50, "45"), 0);
    expect_usage(s, 3, 2);
    co_expect(s, 1000, "1203");
    co_expect(s, 49, "0450");
    assert_false(store_has(s, 1002 * G, 10 * G, &n));
    assert_int_equal(n, G);
    assert_true(store_has(s, 1000 * G + 5, 10 * G, &n));
    assert_int_equal(n, 2 * G - 5);
    store_free(s);
}

static void memory_comes_first_then_the_file_and_zeros_take_nothing(void **state)
{
    in_loop(tiers_body);
}

static void split_body(void)
{
    struct store *s = co_store(64 * G, "/var/tmp", 2 * G, 0);

    assert_int_equal(co_write(s, 0, "12345"), 0);
    expect_usage(s, 2, 3);
    co_expect(s, 0, "123450");
    store_free(s);
}

static void one_run_may_lie_in_both_tiers(void **state)
{
    in_loop(split_body);
}

static void release_body(void)
{
    struct store *s = co_store(64 * G, "/var/tmp", 2 * G, 0);

    assert_int_equal(co_write(s, 0, "1122"), 0);
    assert_int_equal(co_write(s, 10, "3333"), 0);
    expect_usage(s, 2, 6);
    store_release(s, 1 * G, 11 * G);
    for (uint64_t m = 0, f = 6; f != 2 * G; store_usage(s, &m, &f))
        co_waitq_wait(store_space(s));
    expect_usage(s, 1, 2);
    co_expect(s, 0, "1000");
    co_expect(s, 10, "0033");
    store_release(s, 0, 64 * G);
    store_free(s);   /* while holes are being punched */
}

static void released_space_comes_back(void **state)
{
    in_loop(release_body);
}

static void limit_body(void)
{
    struct store *s = co_store(64 * G, "/var/tmp", 64 * G, 4 * G + 5);

    assert_int_equal(co_write(s, 0, "110"), 0);
    expect_usage(s, 2, 0);
    assert_int_equal(store_reserve(s, 8 * G), 2 * G);
    assert_int_equal(store_reserve(s, G), 0);
    store_release(s, 0, G);
    assert_int_equal(store_reserve(s, 8 * G), G);
    store_unreserve(s, 3 * G);
    assert_int_equal(store_reserve(s, 8 * G), 3 * G);
    store_unreserve(s, 3 * G);
    store_free(s);

    s = co_store(64 * G, "/var/tmp", 0, 1);
    assert_int_equal(store_reserve(s, 8 * G), G);   /* a limit lets one granule through */
    store_unreserve(s, G);
    store_free(s);
}

static void the_limit_counts_what_is_stored_and_what_is_promised(void **state)
{
    in_loop(limit_body);
}

static void memory_only_body(void)
{
    struct store *s = co_store(64 * G, NULL, 4 * G, 0);

    assert_int_equal(store_reserve(s, 8 * G), 4 * G);
    pattern("1234");
    assert_int_equal(co_store_write(s, 0, 4 * G, buf), 0);
    assert_int_equal(store_reserve(s, G), 0);
    store_free(s);
}

static void without_a_file_memory_is_the_limit(void **state)
{
    in_loop(memory_only_body);
}

static void promises_body(void)
{
    struct store *s = co_store(64 * G, NULL, 3 * G, 0);
    uint64_t n;

    assert_int_equal(store_reserve(s, 3 * G), 3 * G);
    pattern("1");
    assert_int_equal(co_store_write(s, 20 * G, G, buf), 0);
    store_unreserve(s, 2 * G);
    assert_int_equal(store_reserve(s, 2 * G), 2 * G);
    store_release(s, 20 * G, G);
    assert_int_equal(co_write(s, 40, "2"), 0);
    expect_usage(s, 1, 0);
    assert_false(store_has(s, 20 * G, G, &n));
    store_unreserve(s, 2 * G);
    store_free(s);
}

static void reservations_survive_releases(void **state)
{
    in_loop(promises_body);
}

static void limit_file_size(rlim_t bytes)
{
    struct rlimit lim;

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &lim), 0);
    lim.rlim_cur = bytes == RLIM_INFINITY ? lim.rlim_max : bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &lim), 0);
}

/* RLIMIT_FSIZE stands in for a disk that is full: a write that crosses it comes
 * back short, the next one fails. */
static void undo_body(void)
{
    struct store *s = co_store(64 * G, "/var/tmp", 2 * G, 0);
    uint64_t n;

    limit_file_size(10 * G);
    assert_int_equal(co_write(s, 6, "110222"), -EFBIG);
    expect_usage(s, 0, 0);
    assert_false(store_has(s, 0, 64 * G, &n));
    assert_int_equal(n, 64 * G);
    co_expect(s, 6, "000000");
    limit_file_size(RLIM_INFINITY);
    assert_int_equal(co_write(s, 6, "304055"), 0);
    expect_usage(s, 2, 2);
    co_expect(s, 5, "03040550");
    store_free(s);
}

static void a_write_that_fails_leaves_nothing_and_may_be_tried_again(void **state)
{
    signal(SIGXFSZ, SIG_IGN);
    in_loop(undo_body);
}

static void bad_directory_body(void)
{
    struct err err = ERR_INIT;

    assert_null(co_store_new(G, "/nonexistent/scratch", 0, 0, &err));
    assert_string_equal(err.text, "Cannot create a scratch file in '/nonexistent/scratch': "
                                  "No such file or directory");
    assert_null(co_store_new(G, NULL, 0, 0, &err));
    assert_string_equal(err.text, "A view needs scratch memory or a scratch directory");
}

/* No file may be as large as the disk: the tier is several, and a run may cross from one
 * into the next in every way. */
static void parts_body(void)
{
    struct store *s;

    limit_file_size(20 * G);
    s = co_store(128 * G, "/var/tmp", 0, 0);
    assert_int_equal(co_write(s, 12, "123456789"), 0);
    assert_int_equal(co_write(s, 124, "1234"), 0);
    expect_usage(s, 0, 13);
    co_expect(s, 10, "001234567890");
    co_expect(s, 124, "1234");
    store_release(s, 15 * G, 3 * G);
    for (uint64_t m, f = 13; f != 10; f /= G) {
        co_waitq_wait(store_space(s));
        store_usage(s, &m, &f);
    }
    co_expect(s, 12, "123");
    co_expect(s, 15, "000");
    co_expect(s, 18, "789");
    store_free(s);
    limit_file_size(RLIM_INFINITY);
}

static void a_file_tier_larger_than_a_file_may_be_is_several(void **state)
{
    signal(SIGXFSZ, SIG_IGN);
    in_loop(parts_body);
    signal(SIGXFSZ, SIG_DFL);
}

static void a_store_without_a_place_is_refused(void **state)
{
    in_loop(bad_directory_body);
}

static void random_body(void)
{
    uint64_t seed = test_seed(7);
    struct store *s = co_store(4096 * G, "/var/tmp", 40 * G, 0);
    uint8_t want[4096] = { 0 }, ever[4096] = { 0 };
    uint64_t kept = 0, memory, file;

    for (int i = 0; i < 2000; i++) {
        uint64_t at = test_random(&seed, 4090), n = 1 + test_random(&seed, 6);

        if (test_random(&seed, 3) == 0) {
            store_release(s, at * G, n * G);
            memset(want + at, 0, n);
            memset(ever + at, 1, n);
            continue;
        }
        if (memchr(ever + at, 1, n))
            continue;
        for (uint64_t k = 0; k < n; k++) {
            want[at + k] = test_random(&seed, 3) ? 1 + test_random(&seed, 250) : 0;
            memset(buf + k * G, want[at + k], G);
        }
        memset(ever + at, 1, n);
        assert_int_equal(store_reserve(s, n * G), n * G);
        assert_int_equal(co_store_write(s, at * G, n * G, buf), 0);
    }
    for (uint64_t at = 0; at < 4096; at++) {
        struct iovec iov = { back, G };

        assert_int_equal(co_store_readv(s, at * G, G, &iov, 1, 0), 0);
        memset(buf, want[at], G);
        assert_memory_equal(back, buf, G);
        kept += want[at] != 0;
    }
    /* What was released is given back in the end. */
    do {
        co_sleep(NSEC_PER_MSEC);
        store_usage(s, &memory, &file);
    } while (memory + file != kept * G);
    store_free(s);
}

static void anything_kept_comes_back_the_same(void **state)
{
    in_loop(random_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_comes_first_then_the_file_and_zeros_take_nothing),
        cmocka_unit_test(one_run_may_lie_in_both_tiers),
        cmocka_unit_test(released_space_comes_back),
        cmocka_unit_test(the_limit_counts_what_is_stored_and_what_is_promised),
        cmocka_unit_test(without_a_file_memory_is_the_limit),
        cmocka_unit_test(reservations_survive_releases),
        cmocka_unit_test(a_write_that_fails_leaves_nothing_and_may_be_tried_again),
        cmocka_unit_test(a_file_tier_larger_than_a_file_may_be_is_several),
        cmocka_unit_test(a_store_without_a_place_is_refused),
        cmocka_unit_test(anything_kept_comes_back_the_same),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
