/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a check takes bounded time and memory whatever the image says: tables that
 * name one table millions of times, snapshots over each other, refcount blocks that
 * count an endless file; and large images are checked whole, window by window.
 * Method: images made by hand; the peak of the process's memory is asserted, alarm(2)
 * ends what does not end. The counts are compared with a plain array.
 */
#include "base/bytes.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/check_counts.h"
#include "qcow2_test.h"
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define COPIED (1ULL << 63)

/* ---- the counts ---------------------------------------------------------- */

#define CLUSTERS 60000U

static void add_random(struct qcow2_counts *c, uint64_t *plain, uint64_t random)
{
    for (int i = 0; i < 3000; i++) {
        uint64_t first = test_random(&random, CLUSTERS), times = 1;
        uint64_t n = MIN(test_random(&random, test_random(&random, 8) ? 20 : 2000) + 1,
                         CLUSTERS - first);

        if (!test_random(&random, 50))
            times = test_random(&random, 2) ? 300 : UINT64_MAX / 2;
        assert_int_equal(qcow2_counts_add(c, first, n, times), 0);
        for (uint64_t k = first; plain && k < first + n; k++)
            plain[k] = plain[k] > UINT64_MAX - times ? UINT64_MAX : plain[k] + times;
    }
}

static void counts_are_exact_in_windows(void **state)
{
    CLEANUP(free) uint64_t *plain = xcalloc(CLUSTERS, sizeof(*plain));
    uint64_t seed = test_seed(7), from = 0;
    unsigned windows = 0;

    (void)state;
    do {
        struct qcow2_counts *c = qcow2_counts_new(from, 40000);
        CLEANUP(free) uint64_t *pages = NULL;
        uint64_t end, v;
        size_t n;

        add_random(c, windows ? NULL : plain, seed);
        end = MIN(qcow2_counts_end(c), (uint64_t)CLUSTERS);
        assert_true(end > from);
        for (uint64_t k = from; k < end; k++)
            assert_int_equal(qcow2_counts_get(c, k), plain[k]);
        assert_int_equal(qcow2_counts_pages(c, &pages, &n), 0);
        for (size_t i = 0; i < n; i++) {
            assert_true(!i || pages[i] > pages[i - 1]);
            if (qcow2_counts_is_even(c, pages[i], &v))
                assert_int_equal(v, plain[pages[i] * QCOW2_COUNTS_PAGE]);
        }
        from = qcow2_counts_end(c);
        qcow2_counts_free(c);
        windows++;
    } while (from < CLUSTERS);
    assert_true(windows > 3);
}

/* ---- images by hand ------------------------------------------------------ */

static void put(uint64_t at, uint64_t v)
{
    uint8_t buf[8];

    store_be64(buf, v);
    file_write(work_path("h.qcow2"), at, buf, sizeof(buf));
}

/* @n entries from @at on. */
static void fill(uint64_t at, uint64_t v, uint64_t n)
{
    CLEANUP(free) uint8_t *buf = xmalloc(n * 8);

    for (uint64_t i = 0; i < n; i++)
        store_be64(buf + i * 8, v);
    file_write(work_path("h.qcow2"), at, buf, n * 8);
}

/* A header, and a file of @file bytes: @l1 entries at cluster 16, the refcount table of
 * @reftable clusters at cluster 1. */
static void make(unsigned cluster_bits, unsigned order, uint64_t size, uint64_t l1,
                 uint32_t reftable, uint64_t file)
{
    uint64_t cluster = 1ULL << cluster_bits;

    make_file(work_path("h.qcow2"), file);
    put(0, (uint64_t)0x514649fb << 32 | 3);
    put(16, cluster_bits);
    put(24, size);
    put(32, l1);
    put(40, 16 * cluster);
    put(48, cluster);
    put(56, (uint64_t)reftable << 32);
    put(96, (uint64_t)order << 32 | 104);
}

static struct qcow2_check_result co_check(enum qcow2_repair repair, const char *words)
{
    const struct qcow2_check_opts o = { .repair = repair };
    struct node *file = co_test_open("{'driver': 'file', 'filename': '%s'}", work_path("h.qcow2"));
    struct qcow2_check_result ret;
    struct err err = ERR_INIT;
    bool ok = co_qcow2_check(file, &o, &ret, &err);

    co_node_unref(file);
    if (ok == !!words || (words && !strstr(err.text, words)))
        fail_msg("'%s' instead of '%s'", err.text, words ? words : "success");
    return ret;
}

/* Of this process so far, bytes. Sanitizers keep what was freed for a while. */
static uint64_t peak(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    uint64_t kib = 0;

    while (f && fgets(line, sizeof(line), f)) {
        if (sscanf(line, "VmHWM: %" SCNu64, &kib) == 1)
            break;
    }
    fclose(f);
    return kib * 1024;
}

CO_TEST(one_l2_table_named_four_million_times)
{
    struct qcow2_check_result r;
    uint64_t cluster = 2 * MiB, l1 = LIMIT_QCOW2_L1_BYTES / 8;

    alarm(60);
    make(21, 6, 1ULL << 60, l1, 1, 64 * cluster);
    fill(16 * cluster, 40 * cluster, l1);
    fill(40 * cluster, 41 * cluster, cluster / 8);
    r = co_check(QCOW2_REPAIR_NONE, NULL);
    assert_int_equal(r.allocated, l1 * (cluster / 8));
    assert_int_equal(r.corruptions, 1 + 1 + 16 + 2);      /* header, reftable, L1, L2, data */
    alarm(0);
}

CO_TEST(snapshots_over_each_other)
{
    uint64_t cluster = 64 * KiB, table = 1024 * cluster, n = LIMIT_QCOW2_SNAPSHOTS;
    CLEANUP(free) uint8_t *buf = xcalloc(n, 56);
    struct qcow2_check_result r;

    alarm(120);
    make(16, 4, GiB, 2, 1, 2048 * cluster);
    put(56, 1ULL << 32 | n);
    put(64, table);
    for (uint64_t i = 0; i < n; i++) {
        store_be64(buf + i * 56, (17 + i % 100) * cluster);
        store_be32(buf + i * 56 + 8, (uint32_t)(LIMIT_QCOW2_L1_BYTES / 8 - i));
        store_be32(buf + i * 56 + 36, 16);
    }
    file_write(work_path("h.qcow2"), table, buf, n * 56);
    fill(17 * cluster, 900 * cluster, 100000);
    fill(900 * cluster, COPIED | 901 * cluster, cluster / 8);
    r = co_check(QCOW2_REPAIR_NONE, NULL);
    assert_true(r.corruptions > 100);
    alarm(0);
}

/* A file of exabytes, every cluster of which a single block counts. */
CO_TEST(a_block_that_counts_an_endless_file)
{
    uint64_t cluster = 2 * MiB, n = 4 * cluster / 8;

    alarm(120);
    make(21, 0, GiB, 1, 4, 1ULL << 50);
    fill(cluster, 50 * cluster, n);
    fill(50 * cluster, UINT64_MAX, cluster / 8);
    assert_true(co_check(QCOW2_REPAIR_NONE, NULL).leaks > 1ULL << 28);
    alarm(0);
}

CO_TEST(a_sparse_image_of_16_tib)
{
    struct qcow2_check_result r;
    struct node *n;

    alarm(60);
    co_make_image("h.qcow2", &(struct qcow2_create_opts){ .size = 16 * TiB });
    n = co_open_image("h.qcow2", "");
    for (uint64_t at = 0; at < 16 * TiB; at += 256 * GiB)
        co_fill(n, at, 4096, 1);
    co_node_unref(n);
    must_run("truncate -s 16T h.qcow2");
    r = co_check(QCOW2_REPAIR_NONE, NULL);
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
    assert_int_equal(r.allocated, 64);
    assert_int_equal(r.total, 16 * TiB / 65536);

    /* Its refcounts are lost. */
    put(56, 1ULL << 32);
    fill(65536, 0, 100);
    assert_true(co_check(QCOW2_REPAIR_NONE, NULL).corruptions > 100);
    r = co_check(QCOW2_REPAIR_ALL, NULL);
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
    n = co_open_image("h.qcow2", "");
    for (uint64_t at = 0; at < 16 * TiB; at += 256 * GiB)
        co_expect(n, at, 4096, 1);
    co_fill(n, MiB, MiB, 2);
    co_node_unref(n);
    alarm(0);
    /* After all of these: the check's own bound. */
    assert_true(peak() < 512 * MiB);
}

/* No snapshots, but a place for them that QEMU does not open. */
CO_TEST(a_stray_place_of_the_snapshot_table)
{
    must_run("qemu-img create -q -f qcow2 h.qcow2 1G");
    put(64, 12345);
    must_run("! qemu-img info h.qcow2");
    assert_int_equal(co_check(QCOW2_REPAIR_NONE, NULL).corruptions, 1);
    assert_int_equal(co_check(QCOW2_REPAIR_ALL, NULL).corruptions, 0);
    expect_clean("h.qcow2", false);
}

static bool always(void *ctx)
{
    (void)ctx;
    return true;
}

CO_TEST(a_check_can_be_cancelled)
{
    const struct qcow2_check_opts o = { .cancelled = always };
    struct qcow2_check_result ret;
    struct err err = ERR_INIT;
    struct node *file;

    must_run("qemu-img create -q -f qcow2 h.qcow2 1G && qemu-io -f qcow2 -c 'write 0 1M' h.qcow2");
    file = co_test_open("{'driver': 'file', 'filename': '%s', 'read-only': true}",
                        work_path("h.qcow2"));
    assert_false(co_qcow2_check(file, &o, &ret, &err));
    assert_int_equal(err.code, -ECANCELED);
    co_node_unref(file);
}

/* ---- nothing is done at a long stretch ----------------------------------- */

static bool count_asked(void *ctx)
{
    ++*(unsigned *)ctx;
    return false;
}

/* How often it is asked whether to go on, which is also where others on the loop run. */
static unsigned co_breaths(enum qcow2_repair repair)
{
    unsigned asked = 0;
    const struct qcow2_check_opts o = {
        .repair = repair, .cancelled = count_asked, .ctx = &asked,
    };
    struct node *file = co_test_open("{'driver': 'file', 'filename': '%s'}", work_path("h.qcow2"));
    struct qcow2_check_result ret;

    assert_true(co_qcow2_check(file, &o, &ret, NULL));
    co_node_unref(file);
    return asked;
}

/* Millions of refcounts of one block that differ from what was counted. */
CO_TEST(a_block_of_refcounts_is_not_gone_through_at_a_stretch)
{
    uint64_t cluster = 2 * MiB;

    alarm(60);
    make(21, 0, GiB, 1, 1, (1ULL << 24) * cluster);
    fill(cluster, 50 * cluster, 1);
    fill(50 * cluster, 0x5555555555555555, cluster / 8);
    assert_true(co_breaths(QCOW2_REPAIR_NONE) > 60000);
    alarm(0);
}

/* An L2 table of the largest kind, and new refcounts for what it refers to. */
CO_TEST(a_table_is_not_gone_through_at_a_stretch)
{
    uint64_t cluster = 2 * MiB;
    unsigned asked;

    alarm(60);
    make(21, 4, 512 * GiB, 1, 1, (1ULL << 18) * cluster);
    fill(16 * cluster, COPIED | 40 * cluster, 1);
    fill(40 * cluster, COPIED | 41 * cluster, 1);
    fill(40 * cluster + 8 * (cluster / 8 - 1), COPIED | ((1ULL << 18) - 1) * cluster, 1);
    for (uint64_t i = 0; i < 1024; i++)
        fill(40 * cluster + 8 * (1 + i * 255), COPIED | (50 + i * 255) * cluster, 1);
    asked = co_breaths(QCOW2_REPAIR_NONE);
    assert_true(asked > 200);
    assert_true(co_breaths(QCOW2_REPAIR_ALL) > 2 * asked + 1000);
    alarm(0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts_are_exact_in_windows),
        cmocka_unit_test(one_l2_table_named_four_million_times),
        cmocka_unit_test(snapshots_over_each_other),
        cmocka_unit_test(a_block_that_counts_an_endless_file),
        cmocka_unit_test(a_sparse_image_of_16_tib),
        cmocka_unit_test(a_stray_place_of_the_snapshot_table),
        cmocka_unit_test(a_check_can_be_cancelled),
        cmocka_unit_test(a_block_of_refcounts_is_not_gone_through_at_a_stretch),
        cmocka_unit_test(a_table_is_not_gone_through_at_a_stretch),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "bounds of a qcow2 check", tests, ARRAY_SIZE(tests));
}
