/* SPDX-License-Identifier: Apache-2.0
 *
 * Driver fault: its rules by option and from inside, hanging and letting go, the
 * record of operations, and the N-th failure loop that stands on it.
 */
#include "base/bytes.h"
#include "drivers/fault.h"
#include "drivers_test.h"
#include "loop/co_sync.h"
#include "nth_failure.h"

#define NULL_DISK "'file': {'driver': 'null-co', 'size': 1048576, 'read-zeroes': true}"

static int co_write_one(struct node *n, uint64_t off)
{
    static const unsigned char data[4096] = { 1 };

    return co_node_pwrite(n, off, sizeof(data), data, 0);
}

static int co_read_one(struct node *n, uint64_t off)
{
    unsigned char data[4096];

    return co_node_pread(n, off, sizeof(data), data, 0);
}

CO_TEST(without_rules_everything_passes)
{
    struct node *n = co_test_open("{'driver': 'fault', " NULL_DISK "}");

    assert_int_equal(n->size, MiB);
    assert_int_equal(co_write_one(n, 0), 0);
    co_expect(n, 0, 4096, 0);
    assert_int_equal(co_node_write_zeroes(n, 0, MiB, REQ_NO_FALLBACK), 0);
    assert_int_equal(co_node_flush(n), 0);
    assert_true(co_status(n, 0, MiB).flags & STATUS_ZERO);
    assert_int_equal(fault_count(n, FAULT_WRITE), 1);
    assert_int_equal(fault_count(n, FAULT_ANY), 5);
    assert_int_equal(fault_applied(n), 0);
    co_node_unref(n);
}

CO_TEST(the_nth_operation_of_a_kind_fails)
{
    struct node *n = co_test_open("{'driver': 'fault', " NULL_DISK ", 'rules': ["
                             "{'op': 'write', 'nth': 2, 'errno': 'ENOSPC'},"
                             "{'op': 'flush', 'errno': '5', 'once': true}]}");

    assert_int_equal(co_write_one(n, 0), 0);
    assert_int_equal(co_read_one(n, 0), 0);
    assert_int_equal(co_write_one(n, 0), -ENOSPC);
    assert_int_equal(co_write_one(n, 0), 0);
    assert_int_equal(co_node_flush(n), -EIO);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(fault_applied(n), 2);
    co_node_unref(n);
}

CO_TEST(a_rule_may_be_about_a_range)
{
    struct node *n = co_test_open("{'driver': 'fault', " NULL_DISK ", 'rules': ["
                             "{'op': 'any', 'offset': 8192, 'length': 1}]}");

    assert_int_equal(co_read_one(n, 4096), 0);
    assert_int_equal(co_read_one(n, 8192), -EIO);
    assert_int_equal(co_write_one(n, 8000), -EIO);
    assert_int_equal(co_write_one(n, 8193), 0);
    assert_int_equal(co_node_flush(n), 0);
    co_node_unref(n);
}

CO_TEST(a_power_cut_ends_everything)
{
    struct node *n = co_test_open("{'driver': 'fault', " NULL_DISK ", 'rules': ["
                             "{'op': 'write', 'nth': 2, 'cut': true}]}");

    assert_int_equal(co_write_one(n, 0), 0);
    assert_false(fault_is_cut(n));
    assert_int_equal(co_write_one(n, 0), -EIO);
    assert_true(fault_is_cut(n));
    assert_int_equal(co_read_one(n, 0), -EIO);
    assert_int_equal(co_node_flush(n), -EIO);
    fault_set_cut(n, false);
    assert_int_equal(co_node_flush(n), 0);
    co_node_unref(n);
}

CO_TEST(a_delay_is_a_delay)
{
    struct node *n = co_test_open("{'driver': 'fault', " NULL_DISK ", 'rules': ["
                             "{'op': 'read', 'delay-ns': 30000000}]}");
    uint64_t before = loop_now();

    assert_int_equal(co_read_one(n, 0), 0);
    assert_true(loop_now() - before >= 30 * NSEC_PER_MSEC);
    co_node_unref(n);
}

struct hanging {
    struct node *n;
    int result;
    bool done;
};

static void co_hanging_write(void *arg)
{
    struct hanging *h = arg;

    h->result = co_write_one(h->n, 0);
    h->done = true;
}

static void co_until_hung(struct node *n, unsigned count)
{
    while (fault_hung(n) != count)
        co_yield();
}

CO_TEST(a_hung_request_waits_until_it_is_released_or_cancelled)
{
    struct node *n = co_test_open("{'driver': 'raw', 'file': {'driver': 'fault', 'node-name': 'f', "
                             NULL_DISK ", 'rules': [{'op': 'write', 'hang': true}]}}");
    struct node *f = node_find("f", NULL);
    struct hanging h = { .n = n };

    co_start(co_hanging_write, &h);
    co_until_hung(f, 1);
    assert_int_equal(co_read_one(n, 0), 0);
    assert_false(h.done);
    fault_release(f);
    while (!h.done)
        co_yield();
    assert_int_equal(h.result, 0);

    h.done = false;
    co_start(co_hanging_write, &h);
    co_until_hung(f, 1);
    node_cancel_in_flight(n);
    while (!h.done)
        co_yield();
    assert_int_equal(h.result, -ECANCELED);
    co_node_unref(f);
    co_node_unref(n);
}

CO_TEST(bad_rules_are_refused)
{
    co_open_refused("not the name or number", "{'driver': 'fault', " NULL_DISK ", 'rules': ["
                    "{'op': 'read', 'errno': 'EWHAT'}]}");
    co_open_refused("not the name or number", "{'driver': 'fault', " NULL_DISK ", 'rules': ["
                    "{'op': 'read', 'errno': '99999'}]}");
    co_open_refused("together", "{'driver': 'fault', " NULL_DISK ", 'rules': ["
                    "{'op': 'read', 'offset': 3}]}");
    co_open_refused("empty", "{'driver': 'fault', " NULL_DISK ", 'rules': ["
                    "{'op': 'read', 'offset': 3, 'length': 0}]}");
    co_open_refused("does not accept value", "{'driver': 'fault', " NULL_DISK ", 'rules': ["
                    "{'op': 'reads'}]}");
    co_open_refused("Could not open", "{'driver': 'fault', " NULL_DISK
                    ", 'record': '/nonexistent/x'}");
}

/* ---- the record --------------------------------------------------------------------- */

struct record {
    int phase;
    enum fault_op op;
    uint64_t id, off, len, data;
    uint32_t flags;
    int32_t result;
};

static struct record parse_record(const unsigned char *p)
{
    assert_int_equal(load_be32(p), 0x46524543);
    return (struct record){
        .phase = p[4],
        .op = p[5],
        .id = load_be64(p + 8),
        .off = load_be64(p + 16),
        .len = load_be64(p + 24),
        .flags = load_be32(p + 32),
        .result = (int32_t)load_be32(p + 36),
        .data = load_be64(p + 40),
    };
}

static void expect_record(const unsigned char **p, struct record want)
{
    struct record got = parse_record(*p);

    assert_memory_equal(&got, &want, sizeof(got));
    *p += 48;
}

CO_TEST(the_record_tells_what_was_asked_of_the_storage_and_when)
{
    const char *log = test_path("oplog");
    struct node *n = co_test_open("{'driver': 'fault', " NULL_DISK ", 'record': '%s', 'rules': ["
                             "{'op': 'write', 'nth': 2}]}", log);
    unsigned char bytes[32 + 6 * 48 + 5], *end = bytes + sizeof(bytes);
    const unsigned char *p = bytes;

    assert_int_equal(co_node_pwrite(n, 4096, 5, "hello", REQ_FUA), 0);
    assert_int_equal(co_node_pwrite(n, 0, 5, "fails", 0), -EIO);   /* never reached it */
    assert_int_equal(co_read_one(n, 0), 0);                        /* changes nothing */
    assert_int_equal(co_node_write_zeroes(n, 0, 8192, REQ_MAY_UNMAP), 0);
    assert_int_equal(co_node_flush(n), 0);
    co_node_unref(n);

    file_read(log, 0, bytes, sizeof(bytes));
    assert_memory_equal(p, "STILLPOINT-OPLOG", 16);
    assert_int_equal(load_be64(p + 16), 1);
    assert_int_equal(load_be64(p + 24), MiB);
    p += 32;
    expect_record(&p, (struct record){ 1, FAULT_WRITE, 0, 4096, 5, 5, REQ_FUA, 0 });
    assert_memory_equal(p, "hello", 5);
    p += 5;
    expect_record(&p, (struct record){ 2, FAULT_WRITE, 0, 4096, 5, 0, REQ_FUA, 0 });
    /* The node was opened without discard=unmap. */
    expect_record(&p, (struct record){ 1, FAULT_WRITE_ZEROES, 1, 0, 8192, 0, 0, 0 });
    expect_record(&p, (struct record){ 2, FAULT_WRITE_ZEROES, 1, 0, 8192, 0, 0, 0 });
    expect_record(&p, (struct record){ 1, FAULT_FLUSH, 2, 0, 0, 0, 0, 0 });
    expect_record(&p, (struct record){ 2, FAULT_FLUSH, 2, 0, 0, 0, 0, 0 });
    assert_true(p == end);
}

/* Concurrent writes of random blocks; replaying what ended must give the disk. */
struct recording {
    struct node *n;
    uint64_t rnd;
    unsigned char next;
};

static void co_record_some(void *arg)
{
    struct recording *rec = arg;

    for (int i = 0; i < 20; i++) {
        unsigned char byte = ++rec->next;
        uint64_t off = test_random(&rec->rnd, 256) * 4096;

        co_fill(rec->n, off, 4096, byte);
    }
}

CO_TEST(replaying_the_record_gives_the_disk)
{
    const char *log = test_path("replay"), *disk = test_path("disk");
    CLEANUP(free) unsigned char *want = xmalloc(MiB), *got = xzalloc(MiB);
    unsigned char head[48];
    struct recording rec = { .rnd = 5 };
    uint64_t at = 32, begun = 0, ended = 0;

    make_file(disk, MiB);
    rec.n = co_test_open("{'driver': 'fault', 'record': '%s', 'file': {'driver': 'file',"
                    " 'filename': '%s'}}", log, disk);
    co_together(4, co_record_some, &rec);
    co_node_unref(rec.n);
    file_read(disk, 0, want, MiB);
    while (ended < 80) {
        file_read(log, at, head, sizeof(head));
        struct record r = parse_record(head);

        at += sizeof(head);
        if (r.phase == 1)
            begun++;
        else
            ended++;
        assert_true(ended <= begun);
        if (r.data)
            file_read(log, at, got + r.off, r.data);
        at += r.data;
    }
    assert_int_equal(begun, 80);
    for (size_t i = 0; i < MiB; i += 4096) {
        /* Of writes that overlapped in time either may have won. */
        if (memcmp(want + i, got + i, 4096) != 0)
            assert_true(want[i] != 0 && got[i] != 0);
    }
}

/* ---- the N-th failure loop ------------------------------------------------------------- */

static int co_three_steps(struct nth_failure *nf, void *arg)
{
    struct node *n = co_test_open("{'driver': 'fault', " NULL_DISK "}");
    int r;

    nth_failure_arm(nf, n);
    r = co_write_one(n, 0);
    if (r == 0)
        r = co_read_one(n, 0);
    if (r == 0)
        r = co_node_flush(n);
    nth_failure_disarm(nf, n);
    assert_int_equal(co_node_flush(n), 0);
    co_node_unref(n);
    return r;
}

CO_TEST(the_nth_failure_loop_fails_each_operation_once)
{
    struct nth_failure nf = { .co_scenario = co_three_steps, .op = FAULT_ANY };

    assert_int_equal(co_nth_failure_run(&nf), 3);
    nf.cut = true;
    assert_int_equal(co_nth_failure_run(&nf), 3);
    nf.op = FAULT_FLUSH;
    assert_int_equal(co_nth_failure_run(&nf), 1);
    nf.op = FAULT_DISCARD;
    assert_int_equal(co_nth_failure_run(&nf), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(without_rules_everything_passes),
    cmocka_unit_test(the_nth_operation_of_a_kind_fails),
    cmocka_unit_test(a_rule_may_be_about_a_range),
    cmocka_unit_test(a_power_cut_ends_everything),
    cmocka_unit_test(a_delay_is_a_delay),
    cmocka_unit_test(a_hung_request_waits_until_it_is_released_or_cancelled),
    cmocka_unit_test(bad_rules_are_refused),
    cmocka_unit_test(the_record_tells_what_was_asked_of_the_storage_and_when),
    cmocka_unit_test(replaying_the_record_gives_the_disk),
    cmocka_unit_test(the_nth_failure_loop_fails_each_operation_once),
};

DRIVERS_TEST_MAIN(tests)
