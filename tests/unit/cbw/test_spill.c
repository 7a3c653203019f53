/* SPDX-License-Identifier: Apache-2.0
 *
 * Scratch that moves from memory to the file while it is used: nothing is lost,
 * counted twice or kept too long, whenever it is read or released, and a file
 * that takes no more leaves what is in memory where it is.
 */
#include "co_test.h"
#include "cbw/store.h"
#include "cbw/view.h"
#include "base/mem.h"
#include "loop/co_sync.h"
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#define G VIEW_GRANULE
#define GRANULES 4096u
#define BUDGET 512u

static uint8_t want[GRANULES];

static struct store *co_store(void)
{
    struct err err = ERR_INIT;
    struct store *s = co_store_new(GRANULES * G, "/var/tmp", BUDGET * G, 0, &err);

    if (!s)
        fail_msg("%s", err.text);
    memset(want, 0, sizeof(want));
    return s;
}

static void co_keep(struct store *s, uint64_t at, uint8_t byte)
{
    uint8_t buf[G];

    want[at] = byte;
    memset(buf, byte, G);
    assert_int_equal(store_reserve(s, G), G);
    assert_int_equal(co_store_write(s, at * G, G, buf), 0);
}

/* Large enough that a worker does the reading. */
static void co_expect(struct store *s, uint64_t at, uint64_t n)
{
    CLEANUP(free) uint8_t *buf = xmalloc(n * G);
    struct iovec iov = { buf, n * G };

    assert_int_equal(co_store_readv(s, at * G, n * G, &iov, 1, 0), 0);
    for (uint64_t i = 0; i < n; i++) {
        for (unsigned k = 0; k < G; k += 511)
            assert_int_equal(buf[i * G + k], want[at + i]);
    }
}

static void usage(struct store *s, uint64_t *memory, uint64_t *file)
{
    store_usage(s, memory, file);
    *memory /= G;
    *file /= G;
}

/* Let workers and the store's coroutines go on until memory has come down. */
static void co_until_memory_is(struct store *s, uint64_t most)
{
    uint64_t memory, file;

    do {
        co_sleep(NSEC_PER_MSEC);
        usage(s, &memory, &file);
    } while (memory > most);
}

static void drains_body(void)
{
    struct store *s = co_store();
    uint64_t memory, file;

    for (uint64_t i = 0; i <= BUDGET / 2; i++)
        co_keep(s, 3 * i, 1 + i % 200);
    usage(s, &memory, &file);
    assert_int_equal(memory, BUDGET / 2 + 1);
    co_expect(s, 0, GRANULES);
    co_until_memory_is(s, BUDGET / 4);
    co_expect(s, 0, GRANULES);
    usage(s, &memory, &file);
    assert_int_equal(memory + file, BUDGET / 2 + 1);
    assert_true(file > 0);
    store_free(s);
}

static void memory_that_is_half_full_moves_to_the_file(void **state)
{
    in_loop(drains_body);
}

static void release_body(void)
{
    struct store *s = co_store();
    uint64_t memory, file;

    for (uint64_t i = 0; i <= BUDGET / 2; i++)
        co_keep(s, i, 7);
    co_yield();    /* the move has begun */
    store_release(s, 0, (BUDGET / 2 + 1) * G);
    do {
        co_sleep(NSEC_PER_MSEC);
        usage(s, &memory, &file);
    } while (memory + file);
    memset(want, 0, sizeof(want));
    co_expect(s, 0, BUDGET);
    store_free(s);
}

static void what_is_released_while_it_moves_is_gone_from_both(void **state)
{
    in_loop(release_body);
}

static void limit_file_size(rlim_t bytes)
{
    struct rlimit lim;

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &lim), 0);
    lim.rlim_cur = bytes == RLIM_INFINITY ? lim.rlim_max : bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &lim), 0);
}

static void full_body(void)
{
    struct store *s = co_store();
    uint64_t memory, file;

    for (uint64_t i = 0; i <= BUDGET / 2; i++)
        co_keep(s, 2 * i, 1 + i % 250);
    limit_file_size(100 * G);
    co_yield();    /* the move has begun */
    usage(s, &memory, &file);
    assert_true(file > 0);
    while (file) {
        co_sleep(NSEC_PER_MSEC);
        usage(s, &memory, &file);
    }
    limit_file_size(RLIM_INFINITY);
    assert_int_equal(memory, BUDGET / 2 + 1);
    co_expect(s, 0, GRANULES);
    store_free(s);
}

static void a_file_that_takes_no_more_leaves_memory_as_it_is(void **state)
{
    signal(SIGXFSZ, SIG_IGN);
    in_loop(full_body);
}

static void closed_body(void)
{
    struct store *s = co_store();

    for (uint64_t i = 0; i <= BUDGET / 2; i++)
        co_keep(s, i, 9);
    co_yield();
    store_release(s, 0, 10 * G);
    store_free(s);
    co_sleep(20 * NSEC_PER_MSEC);
}

static void a_store_may_end_while_it_moves(void **state)
{
    in_loop(closed_body);
}

/* Captures, large reads and releases, all while the store moves. */
static void storm_body(void)
{
    uint64_t seed = test_seed(11);
    struct store *s = co_store();
    bool ever[GRANULES] = { 0 };
    uint64_t memory, file, kept = 0;

    for (int i = 0; i < 3000; i++) {
        uint64_t at = test_random(&seed, GRANULES - 64);

        if (!ever[at]) {
            co_keep(s, at, 1 + test_random(&seed, 250));
            ever[at] = true;
        }
        if (i % 7 == 0) {
            uint64_t n = 1 + test_random(&seed, 4);

            store_release(s, at * G, n * G);
            for (uint64_t k = at; k < at + n; k++) {
                want[k] = 0;
                ever[k] = true;
            }
        }
        if (i % 5 == 0)
            co_expect(s, at, 64);
    }
    co_expect(s, 0, GRANULES);
    for (uint64_t i = 0; i < GRANULES; i++)
        kept += want[i] != 0;
    do {
        co_sleep(NSEC_PER_MSEC);
        usage(s, &memory, &file);
    } while (memory + file != kept);
    store_free(s);
}

static void a_storm_of_everything_loses_nothing(void **state)
{
    in_loop(storm_body);
}

/* Reads by workers that begin before the granules move and end after it. */
struct reader {
    struct store *s;
    uint64_t at, n;
};

static void co_reader(void *arg)
{
    struct reader *r = arg;

    co_expect(r->s, r->at, r->n);
}

static void overtaken_body(void)
{
    struct store *s = co_store();

    for (uint64_t at = 0; at < GRANULES; at += BUDGET) {
        struct reader r = { s, at, BUDGET };
        struct crew crew = { 0 };

        for (uint64_t i = 0; i < BUDGET / 2 + 1; i++)
            co_keep(s, at + i, 1 + i % 250);
        for (int i = 0; i < 24; i++)
            crew_start(&crew, co_reader, &r);
        co_crew_wait(&crew);
        co_until_memory_is(s, BUDGET / 4);
    }
    store_free(s);
}

static void a_read_that_the_move_overtakes_looks_again(void **state)
{
    in_loop(overtaken_body);
}

/* A write that fails in the middle, when its beginning is being moved already, and is
 * tried again (as a guest does whose write failed): what comes late of the first
 * attempt, copies and holes, does not hit the second. */
static void again_body(void)
{
    enum { FILL = 400, AT = 1000, LIMIT = 2048, LEN = 1060 };
    CLEANUP(free) uint8_t *buf = xzalloc(LEN * G);

    memset(buf, 5, G);
    for (unsigned i = 0; i < 240; i++) {
        struct store *s = co_store();
        uint64_t begin = LIMIT - AT - 17 - i;

        /* How long the second half takes to fail: where in its work the move is then. */
        memset(buf + begin * G, 6, (LEN - begin) * G);
        for (uint64_t k = 0; k < FILL; k++)
            co_keep(s, k, 7);
        limit_file_size(LIMIT * G);
        assert_int_equal(store_reserve(s, LEN * G), LEN * G);
        assert_true(co_store_write(s, AT * G, LEN * G, buf) < 0);
        co_keep(s, AT, 5);
        limit_file_size(RLIM_INFINITY);
        co_sleep(2 * NSEC_PER_MSEC);
        co_until_memory_is(s, BUDGET / 2);
        co_expect(s, 0, GRANULES);
        store_free(s);
    }
}

static void what_failed_in_the_middle_can_be_kept_again(void **state)
{
    signal(SIGXFSZ, SIG_IGN);
    in_loop(again_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_that_is_half_full_moves_to_the_file),
        cmocka_unit_test(what_is_released_while_it_moves_is_gone_from_both),
        cmocka_unit_test(a_file_that_takes_no_more_leaves_memory_as_it_is),
        cmocka_unit_test(a_store_may_end_while_it_moves),
        cmocka_unit_test(a_read_that_the_move_overtakes_looks_again),
        cmocka_unit_test(what_failed_in_the_middle_can_be_kept_again),
        cmocka_unit_test(a_storm_of_everything_loses_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
