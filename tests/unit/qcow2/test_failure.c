/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: whichever operation on the image file fails, the guest gets an error for
 * it or for a later flush, what was flushed before stays, and the image has leaks
 * at worst.
 * Method: one fixed session under the N-th failure loop, with plain errors, a full
 * disk and power cuts; then random sessions of several coroutines with a failure
 * somewhere.
 */
#include "base/bytes.h"
#include "drivers/qcow2/bitmaps.h"
#include "drivers/qcow2/qcow2.h"
#include "drivers/qcow2/rename.h"
#include "drivers/qcow2/snapshot.h"
#include "model.h"
#include "nth_failure.h"
#include <unistd.h>

/* ---- a fixed session ----------------------------------------------------- */

struct session {
    uint32_t cluster, refcount_bits;
    bool over_backing, extended;
};

static struct node *co_open_for(struct nth_failure *nf, struct node **ret_fault)
{
    *ret_fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'discard': 'unmap', "
                              "'file': {'driver': 'file', 'filename': '%s'}}",
                              work_path("f.qcow2"));
    return co_test_open("{'driver': 'qcow2', 'file': 'fault', 'discard': 'unmap'" TINY_CACHES "}");
}

/* Fill [off, off+len). */
static int co_put(struct node *n, uint64_t off, uint64_t len, unsigned char byte)
{
    CLEANUP(free) void *data = memset(xmalloc(len), byte, len);

    return co_node_pwrite(n, off, len, data, 0);
}

static void expect_byte(const unsigned char *p, uint64_t off, uint64_t len, int byte)
{
    for (uint64_t i = off; i < off + len; i++) {
        if (p[i] != byte)
            fail_msg("byte %" PRIu64 " is %d, not %d", i, p[i], byte);
    }
}

/* What the first flush promised, whatever came after. */
static void co_judge_session(const struct session *s, bool first_flush)
{
    CLEANUP(free) unsigned char *data = xmalloc(MiB);
    struct node *n;

    expect_clean("f.qcow2", true);
    n = co_open_image("f.qcow2", "");
    assert_int_equal(co_node_pread(n, 0, MiB, data, 0), 0);
    if (first_flush) {
        expect_byte(data, 0, 100000, 1);
        expect_byte(data, 300000, 5000, 2);
        expect_byte(data, 305000, 5000, s->over_backing ? 9 : 0);
    }
    co_fill(n, 0, MiB, 3);       /* it works again */
    co_expect(n, 0, MiB, 3);
    co_node_unref(n);
    expect_clean("f.qcow2", true);
}

static int co_session(struct nth_failure *nf, void *arg)
{
    const struct session *s = arg;
    struct node *fault, *n;
    bool first_flush;
    int r;

    co_make_image("f.qcow2", &(struct qcow2_create_opts){
        .size = MiB, .cluster_size = s->cluster, .refcount_bits = s->refcount_bits,
        .extended_l2 = s->extended,
        .backing_file = s->over_backing ? "base.raw" : NULL,
        .backing_format = s->over_backing ? "raw" : NULL });
    n = co_open_for(nf, &fault);
    nth_failure_arm(nf, fault);
    r = co_put(n, 0, 100000, 1);
    if (r == 0)
        r = co_put(n, 300000, 5000, 2);
    if (r == 0)
        r = co_node_flush(n);
    first_flush = r == 0;
    if (r == 0)
        r = co_node_discard(n, 400000, 200000);
    if (r == 0)
        r = co_put(n, 500000, 300000, 4);
    if (r == 0)
        r = co_node_write_zeroes(n, 600000, 100000, REQ_MAY_UNMAP);
    if (r == 0)
        r = co_node_flush(n);
    if (r == 0)
        r = co_put(n, 900000, 100000, 5);
    if (r == 0)
        r = co_node_flush(n);
    if (nf->cut) {               /* what closing writes does not arrive either */
        co_node_unref(n);
        nth_failure_disarm(nf, fault);
    } else {
        nth_failure_disarm(nf, fault);
        co_node_unref(n);
    }
    co_node_unref(fault);
    co_judge_session(s, first_flush);
    return r;
}

static void make_base(void)
{
    static unsigned char data[MiB];

    memset(data, 9, sizeof(data));
    make_file(work_path("base.raw"), 0);
    file_write(work_path("base.raw"), 0, data, sizeof(data));
}

static void co_run_session(struct session *s, enum fault_op op, int error, bool cut)
{
    struct nth_failure nf = { .co_scenario = co_session, .arg = s, .op = op, .error = error,
                              .cut = cut, .tolerates = true };

    alarm(300);
    make_base();
    assert_true(co_nth_failure_run(&nf) >= 1);
}

static struct session plain = { 4096, 16, false };
static struct session overlay = { 65536, 16, true };
static struct session tables_grow = { 512, 64, false };
static struct session subclusters = { 16384, 16, true, .extended = true };

CO_TEST(no_failing_write_hurts)
{
    co_run_session(&plain, FAULT_WRITE, -EIO, false);
    co_run_session(&tables_grow, FAULT_WRITE, -EIO, false);
    co_run_session(&subclusters, FAULT_WRITE, -EIO, false);
}

CO_TEST(no_failing_flush_hurts)
{
    co_run_session(&plain, FAULT_FLUSH, -EIO, false);
    co_run_session(&tables_grow, FAULT_FLUSH, -EIO, false);
}

CO_TEST(no_full_disk_hurts)
{
    co_run_session(&plain, FAULT_RESIZE, -ENOSPC, false);
    co_run_session(&overlay, FAULT_WRITE, -ENOSPC, false);
}

CO_TEST(no_power_cut_hurts)
{
    co_run_session(&overlay, FAULT_ANY, -EIO, true);
    co_run_session(&tables_grow, FAULT_ANY, -EIO, true);
    co_run_session(&subclusters, FAULT_ANY, -EIO, true);
}

/* After a flush has failed nobody knows what of the data before it is on the disk:
 * no later flush may say that all of it is. */
CO_TEST(a_failed_flush_is_not_forgotten)
{
    struct fault_rule rule = { .op = FAULT_FLUSH, .error = -EIO, .once = true };
    struct node *fault, *n;

    co_make_image("f.qcow2", &(struct qcow2_create_opts){ .size = MiB });
    n = co_open_for(NULL, &fault);
    co_fill(n, 0, 4096, 1);
    fault_add_rule(fault, &rule);
    assert_int_equal(co_node_flush(n), -EIO);
    assert_int_equal(co_node_flush(n), -EIO);
    co_fill(n, 0, 4096, 2);
    assert_int_equal(co_node_flush(n), -EIO);
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("f.qcow2", true);
}

/* ---- the header ---------------------------------------------------------- */

static bool co_grow(struct node *n, struct err *err)
{
    return co_node_resize(n, 4096 * MiB, err);
}

static bool co_shrink(struct node *n, struct err *err)
{
    return co_node_resize(n, 512 * KiB, err);
}

static bool co_rename(struct node *n, struct err *err)
{
    return co_qcow2_rename_backing(n, "base.raw", "raw", err);
}

static bool co_store_bitmap(struct node *n, struct err *err)
{
    return co_qcow2_bitmaps_store(n, &(struct qcow2_bitmap_put){ "b", 65536, true, NULL }, 1, err);
}

static bool co_snapshot(struct node *n, struct err *err)
{
    return co_qcow2_snapshot_create(n, "s", err);
}

/* When it is not known whether a write to the header has arrived, or a flush behind it,
 * nothing more is written (I-Q15): not by requests, nor by closing, and the image is not
 * called corrupt for it. */
static void co_stop(bool (*co_change)(struct node *n, struct err *err), uint64_t field,
                    bool at_flush)
{
    struct fault_rule rule = { .op = FAULT_WRITE, .offset = field, .length = 4, .error = -EIO,
                               .once = true };
    struct err err = ERR_INIT;
    struct node *fault, *n;
    uint8_t features[8];

    co_make_image("f.qcow2", &(struct qcow2_create_opts){ .size = MiB, .cluster_size = 4096,
                                                         .lazy_refcounts = true });
    n = co_open_for(NULL, &fault);
    co_fill(n, 0, 100000, 1);
    assert_int_equal(co_node_flush(n), 0);
    co_fill(n, 200000, 100000, 2);
    if (at_flush)
        rule = (struct fault_rule){ .op = FAULT_FLUSH, .error = -EIO, .once = true };
    fault_add_rule(fault, &rule);
    assert_false(co_change(n, &err));
    assert_int_equal(fault_applied(fault), 1);
    assert_true(co_put(n, 0, 4096, 3) < 0 || at_flush);
    assert_true(co_node_flush(n) < 0);
    assert_false(co_change(n, &err));
    co_expect(n, 4096, 90000, 1);            /* it can be read */
    must_run("cp f.qcow2 then.qcow2");
    co_node_unref(n);
    co_node_unref(fault);
    if (!at_flush)
        must_run("cmp f.qcow2 then.qcow2");
    file_read(work_path("f.qcow2"), QCOW2_FIELD_INCOMPATIBLE, features, sizeof(features));
    assert_int_equal(load_be64(features), QCOW2_INCOMPAT_DIRTY);
    must_run("qemu-img check -r all -f qcow2 f.qcow2; qemu-img check -f qcow2 f.qcow2");
    n = co_open_image("f.qcow2", "");
    co_expect(n, 4096, 90000, 1);
    co_node_unref(n);
}

CO_TEST(a_header_write_of_unknown_outcome_is_the_last)
{
    static const struct {
        bool (*co_change)(struct node *n, struct err *err);
        uint64_t field;
    } changes[] = {
        { co_grow, QCOW2_FIELD_L1 }, { co_grow, QCOW2_FIELD_SIZE }, { co_shrink, QCOW2_FIELD_SIZE },
        { co_rename, 0 }, { co_store_bitmap, 0 }, { co_snapshot, QCOW2_FIELD_L1 },
    };

    make_base();
    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        alarm(60);
        co_stop(changes[i].co_change, changes[i].field, false);
        co_stop(changes[i].co_change, 0, true);
    }
}

/* ---- random sessions ----------------------------------------------------- */

static const struct shape shapes[] = {
    { "4k", 4096, 16, 3, 2 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 150 },
    { "64k-over-qcow2", 65536, 16, 3, 4 * MiB, QCOW2_BACKING, 3 * MiB, ", 'discard': 'unmap'",
      150 },
    { "4k-compressed", 4096, 2, 3, 2 * MiB, RAW_BACKING, 1 * MiB,
      TINY_CACHES ", 'discard': 'unmap'", 150, .compress = true },
    { "512-refcount1", 512, 1, 3, 1 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 150 },
    { "32k-extended-over-raw", 32768, 16, 3, 2 * MiB, RAW_BACKING, MiB, ", 'discard': 'unmap'",
      150, .extended = true },
};

static void co_random_session(const struct shape *shape, uint64_t seed)
{
    static const enum fault_op ops[] = { FAULT_WRITE, FAULT_READ, FAULT_FLUSH, FAULT_ANY };
    struct fault_rule rule = { .error = -EIO, .once = true };
    struct node *fault;
    struct model m;

    co_model_init(&m, shape, seed);
    m.may_fail = true;
    rule.op = ops[test_random(&seed, ARRAY_SIZE(ops))];
    rule.nth = 1 + test_random(&seed, rule.op == FAULT_FLUSH ? 8 : 300);
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'discard': 'unmap', "
                         "'file': {'driver': 'file', 'filename': '%s'}}",
                         work_path("model.qcow2"));
    m.node = co_test_open("{'driver': 'qcow2', 'file': 'fault'%s}", shape->options);
    fault_add_rule(fault, &rule);
    co_model_work(&m, shape->ops);
    co_node_unref(m.node);
    co_node_unref(fault);
    expect_clean("model.qcow2", true);
    m.node = co_open_image("model.qcow2", shape->options);
    co_model_work(&m, 30);
    assert_int_equal(m.node->size, shape->size);
    co_node_unref(m.node);
    expect_clean("model.qcow2", true);
    model_done(&m);
}

CO_TEST(failures_among_many_requests)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    uint64_t seed = test_seed(20261126);

    for (long round = 0; round < (rounds ? atol(rounds) : 10); round++) {
        for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
            alarm(120);
            co_random_session(&shapes[i], seed + (uint64_t)round);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_failing_write_hurts),
        cmocka_unit_test(no_failing_flush_hurts),
        cmocka_unit_test(no_full_disk_hurts),
        cmocka_unit_test(no_power_cut_hurts),
        cmocka_unit_test(a_failed_flush_is_not_forgotten),
        cmocka_unit_test(a_header_write_of_unknown_outcome_is_the_last),
        cmocka_unit_test(failures_among_many_requests),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 failures", tests, ARRAY_SIZE(tests));
}
