/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: emptying an overlay whose content is in its backing file changes nothing of what
 * is read, at no moment: whatever operation fails, and wherever the power is cut, the
 * image has leaked clusters at worst and reads as the backing file.
 * Method: overlays of several kinds, made by QEMU, that hold what their backing file
 * holds; under the N-th failure loop, and with the record of what the file was asked
 * replayed up to any moment.
 */
#include "drivers/qcow2/empty.h"
#include "drivers_test.h"
#include "nth_failure.h"
#include "record.h"
#include <unistd.h>

#define TRIALS 25
#define OPTIONS ", 'discard': 'unmap', 'l2-cache-size': 4096, 'l2-cache-entry-size': 512"

struct kind {
    const char *create;          /* options of qemu-img create */
    bool snapshot;               /* half of it is shared with one */
    bool compressed;             /* some of it is */
};

static const struct kind kinds[] = {
    { "cluster_size=4k", true, true },
    { "cluster_size=64k", false, true },
    { "cluster_size=16k,extended_l2=on", true, false },
    { "cluster_size=512,compat=0.10,refcount_bits=16", false, false },
};

/* overlay.qcow2 over base.raw, which has 9 in its first half. */
static void make_overlay(const struct kind *k)
{
    must_run("rm -f overlay.qcow2 base.raw && truncate -s 2M base.raw && "
             "qemu-io -f raw -c 'write -P 9 0 1M' base.raw && "
             "qemu-img create -q -f qcow2 -o %s -b base.raw -F raw overlay.qcow2 2M && "
             "qemu-io -c 'write -P 9 0 300k' -c 'write -P 9 500001 100k' overlay.qcow2", k->create);
    if (k->snapshot)
        must_run("qemu-img snapshot -c s overlay.qcow2 && "
                 "qemu-io -c 'write -P 9 100k 60k' -c 'write -P 9 900k 10k' overlay.qcow2");
    if (k->compressed)
        must_run("qemu-io -c 'write -c -P 9 640k 64k' overlay.qcow2");
    if (!strstr(k->create, "0.10"))
        must_run("qemu-io -c 'write -z 1200k 100k' -c 'write -z 1500k 3k' overlay.qcow2");
    expect_same("overlay.qcow2", "base.raw");
}

static bool is_allocated(struct node *n)
{
    struct block_status st;

    for (uint64_t off = 0; off < node_size(n); off += st.len) {
        assert_int_equal(co_node_status(n, off, node_size(n) - off, &st), 0);
        if (st.flags & STATUS_ALLOCATED)
            return true;
    }
    return false;
}

static void co_expect_empty(const char *image)
{
    struct node *n = co_open_image(image, "");

    assert_false(is_allocated(n));
    co_node_unref(n);
}

/* ---- failures ------------------------------------------------------------ */

static int co_scenario(struct nth_failure *nf, void *arg)
{
    struct err err = ERR_INIT;
    struct node *fault, *n;
    bool ok;

    must_run("cp overlay.qcow2 f.qcow2");
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'discard': 'unmap', "
                         "'file': {'driver': 'file', 'filename': '%s'}}", work_path("f.qcow2"));
    n = co_test_open("{'driver': 'qcow2', 'file': 'fault', 'backing': {'driver': 'raw', 'file': "
                     "{'driver': 'file', 'filename': '%s'}}" OPTIONS "}", work_path("base.raw"));
    nth_failure_arm(nf, fault);
    ok = co_qcow2_make_empty(n, &err);
    if (nf->cut) {               /* what closing writes does not arrive either */
        co_node_unref(n);
        nth_failure_disarm(nf, fault);
    } else {
        nth_failure_disarm(nf, fault);
        co_node_unref(n);
    }
    co_node_unref(fault);
    expect_clean("f.qcow2", true);
    expect_same("f.qcow2", "base.raw");
    if (ok)
        co_expect_empty("f.qcow2");
    assert_true(ok || err.code < 0);
    return ok ? 0 : err.code;
}

static void co_run_failures(enum fault_op op, bool cut)
{
    struct nth_failure nf = { .co_scenario = co_scenario, .op = op, .error = -EIO, .cut = cut,
                              .tolerates = true };

    alarm(300);
    for (size_t i = 0; i < ARRAY_SIZE(kinds) - 1; i++) {
        make_overlay(&kinds[i]);
        assert_true(co_nth_failure_run(&nf) >= 1);
    }
}

CO_TEST(no_failing_operation_hurts)
{
    co_run_failures(FAULT_ANY, false);
}

CO_TEST(no_operation_that_is_the_last_hurts)
{
    co_run_failures(FAULT_ANY, true);
}

/* ---- power cuts ---------------------------------------------------------- */

static void co_run_cuts(const struct kind *k, uint64_t seed)
{
    struct err err = ERR_INIT;
    struct record r;
    struct node *n;

    make_overlay(k);
    must_run("cp overlay.qcow2 f.qcow2");
    n = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', "
                     "'discard': 'unmap', 'file': {'driver': 'file', 'filename': '%s'}}, "
                     "'backing': {'driver': 'raw', 'file': {'driver': 'file', 'filename': "
                     "'%s'}}" OPTIONS "}", work_path("record"), work_path("f.qcow2"),
                     work_path("base.raw"));
    assert_true(co_qcow2_make_empty(n, &err));
    co_node_unref(n);
    expect_clean("f.qcow2", false);
    co_expect_empty("f.qcow2");
    r = load_record();
    for (int trial = 0; trial < TRIALS; trial++) {
        replay("overlay.qcow2", "crashed.qcow2", &r, trial ? pick_cut(&r, &seed) : r.n, &seed);
        expect_clean("crashed.qcow2", true);
        expect_same("crashed.qcow2", "base.raw");
    }
    record_done(&r);
}

CO_TEST(no_power_cut_hurts)
{
    uint64_t seed = test_seed(20261124);

    alarm(300);
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        co_run_cuts(&kinds[i], seed + i);
}

/* A snapshot keeps what it has. */
CO_TEST(a_snapshot_stays)
{
    struct err err = ERR_INIT;
    struct node *n;

    make_overlay(&kinds[0]);
    n = co_open_image("overlay.qcow2", OPTIONS);
    assert_true(co_qcow2_make_empty(n, &err));
    co_node_unref(n);
    must_run("qemu-img snapshot -a s overlay.qcow2");
    expect_clean("overlay.qcow2", false);
    expect_same("overlay.qcow2", "base.raw");
    n = co_open_image("overlay.qcow2", "");
    assert_true(is_allocated(n));
    co_node_unref(n);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_failing_operation_hurts),
        cmocka_unit_test(no_operation_that_is_the_last_hurts),
        cmocka_unit_test(no_power_cut_hurts),
        cmocka_unit_test(a_snapshot_stays),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 emptying", tests, ARRAY_SIZE(tests));
}
