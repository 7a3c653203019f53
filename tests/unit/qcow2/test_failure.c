/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: whichever operation on the image file fails, the guest gets an error for
 * it or for a later flush, what was flushed before stays, and the image has leaks
 * at worst.
 * Method: one fixed session under the N-th failure loop, with plain errors, a full
 * disk and power cuts; then random sessions of several coroutines with a failure
 * somewhere.
 */
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
        cmocka_unit_test(failures_among_many_requests),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 failures", tests, ARRAY_SIZE(tests));
}
