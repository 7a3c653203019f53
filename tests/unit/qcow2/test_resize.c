/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: disks made smaller and larger in turn read as they should, zeros where they
 * have grown, and their images are sound, and give back what was behind the end; a
 * power cut leaves the old or the new size. Clusters that are allocated before they
 * are written read as before.
 * Method: a shadow, random sizes and writes; QEMU judges and reads; replays of a
 * record (record.h).
 */
#include "base/mem.h"
#include "drivers/fault.h"
#include "record.h"
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST (4 * MiB)

struct kind {
    struct qcow2_create_opts create;
    bool snapshots;
};

static const struct kind kinds[] = {
    { { .cluster_size = 65536 }, true },
    { { .cluster_size = 512, .refcount_bits = 64 }, true },
    { { .cluster_size = 4096, .backing_file = "base.raw", .backing_format = "raw" }, true },
    { { .cluster_size = 4096, .version = 2 }, false },
    { { .cluster_size = 16384, .extended_l2 = true, .backing_file = "base.raw",
        .backing_format = "raw" }, true },
    { { .cluster_size = 1024, .lazy_refcounts = true }, true },
};

static uint64_t seed;

static void make_base(void)
{
    must_run("yes | head -c 3145728 >base.raw");
}

static uint64_t random_size(void)
{
    return MAX(512ULL, align_down(test_random(&seed, MOST), test_random(&seed, 2) ? 512 : 65536));
}

static unsigned char *new_shadow(const struct kind *k, uint64_t size)
{
    unsigned char *shadow = xzalloc(MOST);

    if (k->create.backing_file)
        file_read(work_path("base.raw"), 0, shadow, MIN(size, 3 * MiB));
    return shadow;
}

static void co_resize_both(struct node *n, unsigned char *shadow, uint64_t size)
{
    struct err err = ERR_INIT;
    uint64_t before = node_size(n);

    if (!co_node_resize(n, size, &err))
        fail_msg("from %" PRIu64 " to %" PRIu64 ": %s", before, size, err.text);
    assert_int_equal(node_size(n), size);
    if (size < before)
        memset(shadow + size, 0, before - size);
}

static void co_write_both(struct node *n, unsigned char *shadow)
{
    for (int i = 0; i < 6; i++) {
        uint64_t size = node_size(n), off = test_random(&seed, size);
        uint64_t len = 1 + test_random(&seed, MIN(size - off, 300000ULL));
        unsigned char byte = (unsigned char)(1 + test_random(&seed, 255));

        co_fill(n, off, len, byte);
        memset(shadow + off, byte, len);
    }
}

static void co_compare(struct node *n, const unsigned char *shadow)
{
    uint64_t size = node_size(n);
    CLEANUP(free) unsigned char *data = xmalloc(size);

    assert_int_equal(co_node_pread(n, 0, size, data, 0), 0);
    for (uint64_t i = 0; i < size; i++) {
        if (data[i] != shadow[i])
            fail_msg("byte %" PRIu64 " of %" PRIu64 " is %d instead of %d", i, size, data[i],
                     shadow[i]);
    }
}

static void judge(const unsigned char *shadow, uint64_t size)
{
    expect_clean("r.qcow2", false);
    make_file(work_path("shadow.raw"), size);
    file_write(work_path("shadow.raw"), 0, shadow, size);
    expect_same("r.qcow2", "shadow.raw");
}

static void co_one_life(const struct kind *k)
{
    struct qcow2_create_opts o = k->create;
    CLEANUP(free) unsigned char *shadow = NULL;

    o.size = random_size();
    shadow = new_shadow(k, o.size);
    co_make_image("r.qcow2", &o);
    for (int round = 0; round < 5; round++) {
        struct node *n = co_open_image("r.qcow2", test_random(&seed, 2) ? ", 'discard': 'unmap'"
                                                                         : "");

        co_write_both(n, shadow);
        co_resize_both(n, shadow, random_size());
        co_compare(n, shadow);
        co_write_both(n, shadow);
        co_resize_both(n, shadow, random_size());
        co_compare(n, shadow);
        uint64_t size = node_size(n);

        co_node_unref(n);
        judge(shadow, size);
        if (k->snapshots && round == 2)
            must_run("qemu-img snapshot -c s r.qcow2");
    }
}

CO_TEST(disks_that_grow_and_shrink_in_turn)
{
    seed = test_seed(90125);
    make_base();
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        alarm(120);
        co_one_life(&kinds[i]);
    }
}

CO_TEST(what_was_behind_the_end_is_given_back)
{
    struct node *n;
    struct stat st;

    co_make_image("r.qcow2", &(struct qcow2_create_opts){ .size = 600 * MiB });
    n = co_open_image("r.qcow2", ", 'discard': 'unmap'");
    co_fill(n, 0, MiB, 1);
    co_fill(n, 595 * MiB, 4 * MiB, 2);
    co_fill(n, 100 * MiB, 4 * MiB, 3);
    assert_true(co_node_resize(n, MiB, NULL));
    co_node_unref(n);
    expect_clean("r.qcow2", false);
    assert_int_equal(stat(work_path("r.qcow2"), &st), 0);
    assert_true((uint64_t)st.st_size < 2 * MiB);       /* without the L2 tables too */
}

/* The overlay's backing file, which is not open, is longer: it must not come into sight. */
CO_TEST(growing_without_the_backing_file_hides_it)
{
    struct node *n;

    make_base();
    co_make_image("r.qcow2", &(struct qcow2_create_opts){
        .size = MiB, .backing_file = "base.raw", .backing_format = "raw" });
    n = co_open_image("r.qcow2", ", 'backing': null");
    assert_true(co_node_resize(n, 2 * MiB + 512, NULL));
    co_node_unref(n);
    expect_clean("r.qcow2", false);
    n = co_open_image("r.qcow2", "");
    co_expect(n, MiB, MiB + 512, 0);
    co_node_unref(n);
}

/* Both ways that are told to those who would have to hide one do help. */
CO_TEST(version_2_cannot_hide_a_longer_backing_file)
{
    struct err err = ERR_INIT;
    struct node *n;

    make_base();
    must_run("rm -f r.qcow2 && qemu-img create -q -f qcow2 -o compat=0.10 -b base.raw -F raw "
             "r.qcow2 1M");
    n = co_open_image("r.qcow2", ", 'backing': null");
    assert_false(co_node_resize(n, 2 * MiB, &err));
    assert_non_null(strstr(err.text, "is not open: open it with its backing file"));
    co_node_unref(n);
    n = co_open_image("r.qcow2", "");
    assert_false(co_node_resize(n, 2 * MiB, &err));
    assert_non_null(strstr(err.text, "over a backing file that is longer"));
    assert_int_equal(node_size(n), MiB);
    co_node_unref(n);
    must_run("qemu-img amend -f qcow2 -o compat=1.1 r.qcow2");
    n = co_open_image("r.qcow2", "");
    assert_true(co_node_resize(n, 2 * MiB, NULL));
    co_expect(n, MiB, MiB, 0);
    co_node_unref(n);
    must_run("qemu-img create -q -f qcow2 -o compat=0.10 -b base.raw -F raw r.qcow2 64M");
    n = co_open_image("r.qcow2", "");
    assert_true(co_node_resize(n, 65 * MiB, NULL));
    co_node_unref(n);
    expect_clean("r.qcow2", false);
}

CO_TEST(version_2_with_snapshots_cannot)
{
    struct err err = ERR_INIT;
    struct node *n;

    must_run("qemu-img create -q -f qcow2 -o compat=0.10 r.qcow2 1M && "
             "qemu-img snapshot -c s r.qcow2");
    n = co_open_image("r.qcow2", "");
    assert_false(co_node_resize(n, 512, &err));
    assert_non_null(strstr(err.text, "snapshots"));
    co_node_unref(n);
}

/* ---- power cuts ---------------------------------------------------------- */

#define TRIALS 12

/* Behind a cut the disk has the old size and all of its content, or the new size. */
static void co_judge_cut(const unsigned char *whole, uint64_t before, uint64_t after)
{
    CLEANUP(free) unsigned char *data = xmalloc(MOST);
    struct node *n;
    uint64_t size;

    if (run("qemu-img check -f qcow2 crashed.qcow2") == 2)
        fail_msg("%s", run_output());
    n = co_open_image("crashed.qcow2", ", 'read-only': true");
    size = node_size(n);
    assert_true(size == before || size == after);
    assert_int_equal(co_node_pread(n, 0, size, data, 0), 0);
    for (uint64_t i = 0; i < size; i++) {
        if (data[i] != whole[i])
            fail_msg("byte %" PRIu64 " of %" PRIu64 " is %d instead of %d", i, size, data[i],
                     whole[i]);
    }
    co_node_unref(n);
    must_run("cp crashed.qcow2 r.qcow2");
    n = co_open_image("r.qcow2", "");
    assert_true(co_node_resize(n, before, NULL));
    assert_int_equal(co_node_pread(n, 0, before, data, 0), 0);
    for (uint64_t i = after; size == after && i < before; i++) {
        if (data[i])
            fail_msg("byte %" PRIu64 " came back", i);
    }
    co_node_unref(n);
}

static void co_run_cuts(const struct kind *k)
{
    struct qcow2_create_opts o = k->create;
    CLEANUP(free) unsigned char *shadow = NULL, *whole = NULL;
    uint64_t before = MOST, after = 700 * KiB + 512;
    struct record r;
    struct node *n;

    o.size = before;
    shadow = new_shadow(k, before);
    co_make_image("before.qcow2", &o);
    n = co_open_image("before.qcow2", "");
    for (int i = 0; i < 4; i++)
        co_write_both(n, shadow);
    co_fill(n, after - 2000, 4000, 77);          /* on both sides of the new end */
    memset(shadow + after - 2000, 77, 4000);
    co_node_unref(n);
    whole = xmemdup(shadow, before);
    must_run("cp before.qcow2 r.qcow2; rm -f record");
    n = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', 'discard': "
                     "'unmap', 'file': {'driver': 'file', 'filename': '%s'}}, 'discard': 'unmap'}",
                     work_path("record"), work_path("r.qcow2"));
    co_resize_both(n, shadow, after);
    co_node_unref(n);
    r = load_record();
    for (int trial = 0; trial < TRIALS; trial++) {
        replay("before.qcow2", "crashed.qcow2", &r, trial ? pick_cut(&r, &seed) : r.n, &seed);
        if (k->create.lazy_refcounts)
            must_run("qemu-img check -r all -f qcow2 crashed.qcow2");
        co_judge_cut(whole, before, after);
    }
    record_done(&r);
}

CO_TEST(a_power_cut_leaves_one_of_the_sizes)
{
    seed = test_seed(5150);
    make_base();
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        alarm(120);
        co_run_cuts(&kinds[i]);
    }
}

/* ---- allocated before it is written -------------------------------------- */

static void co_prealloc(struct node *n, uint64_t off, uint64_t len, enum qcow2_prealloc mode)
{
    struct err err = ERR_INIT;

    if (!co_qcow2_preallocate(n, off, len, mode, &err))
        fail_msg("%s", err.text);
}

static void co_one_prealloc(const struct kind *k, enum qcow2_prealloc mode)
{
    struct qcow2_create_opts o = k->create;
    CLEANUP(free) unsigned char *shadow = NULL;
    struct node *n;
    uint64_t size;

    o.size = size = MAX(random_size(), 70000ULL);
    shadow = new_shadow(k, size);
    co_make_image("r.qcow2", &o);
    n = co_open_image("r.qcow2", "");
    co_write_both(n, shadow);
    co_prealloc(n, 0, node_size(n), mode);
    co_compare(n, shadow);
    assert_true(k->create.backing_file || co_status(n, 0, 512).flags & STATUS_ALLOCATED);
    co_write_both(n, shadow);
    size = MOST;
    co_resize_both(n, shadow, size);
    co_prealloc(n, size - 100000, 100000, mode);
    co_compare(n, shadow);
    co_node_unref(n);
    judge(shadow, size);
}

CO_TEST(clusters_allocated_before_they_are_written)
{
    seed = test_seed(2112);
    make_base();
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        for (int mode = QCOW2_PREALLOC_METADATA; mode <= QCOW2_PREALLOC_FULL; mode++)
            co_one_prealloc(&kinds[i], mode);
    }
}

CO_TEST(space_is_reserved_if_that_is_asked_for)
{
    static const struct {
        enum qcow2_prealloc mode;
        bool space;
    } modes[] = {
        { QCOW2_PREALLOC_METADATA, false }, { QCOW2_PREALLOC_FALLOC, true },
        { QCOW2_PREALLOC_FULL, true },
    };

    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        struct stat st;
        struct node *n;

        co_make_image("r.qcow2", &(struct qcow2_create_opts){ .size = 20 * MiB });
        n = co_open_image("r.qcow2", "");
        co_prealloc(n, 0, 20 * MiB, modes[i].mode);
        assert_int_equal(co_status(n, 0, 20 * MiB).len, 20 * MiB);    /* in one piece */
        co_node_unref(n);
        expect_clean("r.qcow2", false);
        assert_int_equal(stat(work_path("r.qcow2"), &st), 0);
        assert_true((uint64_t)st.st_size > 20 * MiB);
        assert_int_equal((uint64_t)st.st_blocks * 512 >= 20 * MiB, modes[i].space);
    }
}

/* ---- requests on their way while the disk grows ------------------------------- */

static struct node *fault;       /* below the image of the test, or its data file */

static void co_open_fault(const char *name)
{
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'discard': 'unmap', "
                         "'file': {'driver': 'file', 'filename': '%s'}}", work_path(name));
}

static void hang_once(enum fault_op op)
{
    fault_add_rule(fault, &(struct fault_rule){ .op = op, .hang = true, .once = true });
}

static void co_until_hung(void)
{
    while (!fault_hung(fault))
        co_yield();
}

#define OLD_END (65536 + 8192)
#define NEW_END (65536 + 32768)

static void co_zero_to_end(void *arg)
{
    assert_int_equal(co_node_write_zeroes(arg, 65536, OLD_END - 65536, REQ_MAY_UNMAP), 0);
}

static void co_discard_to_end(void *arg)
{
    assert_int_equal(co_node_discard(arg, 65536, OLD_END - 65536), 0);
}

static void co_write_behind(void *arg)
{
    co_fill(arg, OLD_END, 10000, 3);
}

/* The last cluster is cut off by the end of the disk, so it is whole; when its turn comes
 * there is more of it, with data. What hangs is @op of the request. */
static void co_grow_meanwhile(struct node *n, enum fault_op op, void (*co_request)(void *arg),
                              unsigned char byte)
{
    struct crew crew = { 0 };

    hang_once(op);
    crew_start(&crew, co_request, n);
    co_until_hung();
    if (!co_node_resize(n, NEW_END, NULL))
        fail();
    crew_start(&crew, co_write_behind, n);
    fault_release(fault);
    co_crew_wait(&crew);
    co_expect(n, 0, 65536, 1);
    co_expect(n, 65536, 8192, byte);
    co_expect(n, OLD_END, 10000, 3);
    co_expect(n, OLD_END + 10000, NEW_END - OLD_END - 10000, 0);
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("g.qcow2", false);
}

/* What is to be zeroed lies in the image: its L2 table is copied, for a snapshot has it. */
static void co_grow_while_table_is_copied(void (*co_request)(void *arg))
{
    must_run("qemu-img create -q -f qcow2 g.qcow2 %d && qemu-io -c 'write -P 1 0 64k' g.qcow2 && "
             "qemu-img snapshot -c s g.qcow2", OLD_END);
    co_open_fault("g.qcow2");
    co_grow_meanwhile(co_test_open("{'driver': 'qcow2', 'file': 'fault', 'discard': 'unmap'}"),
                      FAULT_WRITE, co_request, 0);
}

/* In a data file: it is zeroed there first. */
static void co_grow_while_data_is_zeroed(const char *options, void (*co_request)(void *arg),
                                         unsigned char byte)
{
    must_run("rm -f g.data && qemu-img create -q -f qcow2 -o data_file=g.data%s g.qcow2 %d && "
             "qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 64k 8k' g.qcow2", options, OLD_END);
    co_open_fault("g.data");
    co_grow_meanwhile(co_open_image("g.qcow2", ", 'data-file': 'fault', 'discard': 'unmap'"),
                      FAULT_WRITE_ZEROES, co_request, byte);
}

CO_TEST(what_is_zeroed_to_the_end_of_a_disk_spares_what_it_grows_by)
{
    co_grow_while_table_is_copied(co_zero_to_end);
    co_grow_while_table_is_copied(co_discard_to_end);
    co_grow_while_data_is_zeroed("", co_zero_to_end, 0);
    /* The data file has zeros there already. */
    co_grow_while_data_is_zeroed("", co_discard_to_end, 0);
    co_grow_while_data_is_zeroed(",data_file_raw=on", co_zero_to_end, 0);
    co_grow_while_data_is_zeroed(",extended_l2=on", co_zero_to_end, 0);
}

static void co_grow(void *arg)
{
    if (!co_node_resize(arg, 65536, NULL))
        fail();
}

/* The first write to the last cluster comes when what is revealed is zero already, but
 * before the disk is longer. */
CO_TEST(what_a_longer_data_file_has_does_not_show_when_the_disk_grows)
{
    static const char *const options[] = { "", ",extended_l2=on" };
    CLEANUP(free) void *rubbish = memset(xmalloc(65536), 9, 65536);

    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        struct crew crew = { 0 };
        struct node *n;

        must_run("rm -f d.data && qemu-img create -q -f qcow2 -o data_file=d.data%s d.qcow2 1k",
                 options[i]);
        make_file(work_path("d.data"), 65536);
        file_write(work_path("d.data"), 0, rubbish, 65536);
        co_open_fault("d.qcow2");
        n = co_test_open("{'driver': 'qcow2', 'file': 'fault'}");
        co_expect(n, 0, 1024, 0);
        hang_once(FAULT_FLUSH);
        crew_start(&crew, co_grow, n);
        co_until_hung();
        co_fill(n, 0, 512, 7);
        fault_release(fault);
        co_crew_wait(&crew);
        co_expect(n, 0, 512, 7);
        co_expect(n, 512, 65024, 0);
        co_node_unref(n);
        co_node_unref(fault);
        expect_clean("d.qcow2", false);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(disks_that_grow_and_shrink_in_turn),
        cmocka_unit_test(what_was_behind_the_end_is_given_back),
        cmocka_unit_test(growing_without_the_backing_file_hides_it),
        cmocka_unit_test(version_2_cannot_hide_a_longer_backing_file),
        cmocka_unit_test(version_2_with_snapshots_cannot),
        cmocka_unit_test(a_power_cut_leaves_one_of_the_sizes),
        cmocka_unit_test(what_is_zeroed_to_the_end_of_a_disk_spares_what_it_grows_by),
        cmocka_unit_test(what_a_longer_data_file_has_does_not_show_when_the_disk_grows),
        cmocka_unit_test(clusters_allocated_before_they_are_written),
        cmocka_unit_test(space_is_reserved_if_that_is_asked_for),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 resize and preallocation", tests,
                             ARRAY_SIZE(tests));
}
