/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: host clusters are given out, shared, kept and given back as docs/qcow2.md
 * says, and no more requests reach the file than that takes.
 * Method: small images over driver `fault`, which counts operations and lets them
 * hang; block status tells where clusters are.
 */
#include "drivers/fault.h"
#include "qcow2_test.h"
#include <sys/stat.h>

#define CLUSTER 65536ULL

static struct node *fault;       /* under the image of the test */

static struct node *co_open_over_fault(const char *more)
{
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'discard': 'unmap', "
                         "'file': {'driver': 'file', "
                         "'filename': '%s'}}", work_path("i.qcow2"));
    return co_test_open("{'driver': 'qcow2', 'file': 'fault'%s}", more);
}

static struct node *co_new_image(const char *more)
{
    co_make_image("i.qcow2", &(struct qcow2_create_opts){ .size = 64 * MiB });
    return co_open_over_fault(more);
}

static void co_close(struct node *n)
{
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("i.qcow2", false);
}

static uint64_t co_host_of(struct node *n, uint64_t off)
{
    struct block_status st = co_status(n, off, 512);

    return st.flags & STATUS_OFFSET ? st.host_off : 0;
}

struct request {
    struct node *n;
    uint64_t off, len;
    unsigned char byte;          /* what to write; 0: discard */
    bool done;
};

static void co_request(void *arg)
{
    struct request *rq = arg;

    if (rq->byte)
        co_fill(rq->n, rq->off, rq->len, rq->byte);
    else
        assert_int_equal(co_node_discard(rq->n, rq->off, rq->len), 0);
    rq->done = true;
}

static void co_flush(void *arg)
{
    struct request *rq = arg;

    assert_int_equal(co_node_flush(rq->n), 0);
    rq->done = true;
}

/* Until so many requests hang in the file. */
static void co_until_hung(unsigned n)
{
    while (fault_hung(fault) < n)
        co_yield();
}

static void hang(enum fault_op op, uint64_t off, uint64_t len)
{
    struct fault_rule rule = { .op = op, .offset = off, .length = len, .hang = true,
                               .once = true };

    fault_add_rule(fault, &rule);
}

CO_TEST(allocating_costs_the_file_one_write_each)
{
    struct node *n = co_new_image("");

    co_fill(n, 0, 512, 1);       /* the L2 table */
    uint64_t before = fault_count(fault, FAULT_WRITE);

    for (uint64_t i = 1; i <= 200; i++)
        co_fill(n, i * CLUSTER + 4096, 4096, (unsigned char)i);
    assert_int_equal(fault_count(fault, FAULT_WRITE) - before, 200);
    assert_int_equal(fault_count(fault, FAULT_FLUSH), 0);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(fault_count(fault, FAULT_FLUSH), 2);
    /* A slice of the L2 table and one of refcounts, and the L1 table. */
    assert_int_equal(fault_count(fault, FAULT_WRITE) - before, 203);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(fault_count(fault, FAULT_FLUSH), 3);
    co_close(n);
}

CO_TEST(sequential_writes_make_one_extent)
{
    struct node *n = co_new_image("");

    for (uint64_t off = 0; off < 8 * MiB; off += MiB)
        co_fill(n, off, MiB, 1);

    struct block_status st = co_status(n, 0, 64 * MiB);

    assert_int_equal(st.flags, STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET);
    assert_int_equal(st.len, 8 * MiB);
    st = co_status(n, 8 * MiB, 56 * MiB);
    assert_int_equal(st.flags, STATUS_ZERO);
    assert_int_equal(st.len, 56 * MiB);
    co_close(n);
}

CO_TEST(small_writes_share_a_cluster_that_is_being_allocated)
{
    struct node *n = co_new_image("");
    struct request rqs[16];
    struct crew crew = { 0 };

    co_fill(n, 0, 512, 1);
    struct fault_rule rule = { .op = FAULT_WRITE, .hang = true };

    fault_add_rule(fault, &rule);
    for (unsigned i = 0; i < 16; i++) {
        rqs[i] = (struct request){ n, CLUSTER + i * 4096, 4096, (unsigned char)(i + 1), false };
        crew_start(&crew, co_request, &rqs[i]);
    }
    co_until_hung(16);           /* all at the same time */
    fault_clear_rules(fault);
    fault_release(fault);
    co_crew_wait(&crew);
    for (unsigned i = 0; i < 16; i++)
        co_expect(n, CLUSTER + i * 4096, 4096, (unsigned char)(i + 1));
    co_close(n);
}

static void co_failing_request(void *arg)
{
    static unsigned char data[4096];
    struct request *rq = arg;

    assert_int_equal(co_node_pwrite(rq->n, rq->off, rq->len, data, 0), -EIO);
}

CO_TEST(sharers_of_a_cluster_whose_owner_fails_write_again)
{
    struct node *n = co_new_image("");
    struct request rqs[4];
    struct crew crew = { 0 };

    co_fill(n, 0, 512, 1);

    uint64_t host = co_host_of(n, 0) + CLUSTER;
    struct fault_rule rule = { .op = FAULT_WRITE, .offset = host, .length = 4096, .hang = true,
                               .error = -EIO, .once = true };

    fault_add_rule(fault, &rule);
    hang(FAULT_WRITE, host + 4096, 4096);
    for (unsigned i = 0; i < 4; i++) {
        rqs[i] = (struct request){ n, CLUSTER + i * 4096, 4096, (unsigned char)(i + 1), false };
        crew_start(&crew, i ? co_request : co_failing_request, &rqs[i]);
    }
    co_until_hung(2);
    assert_int_equal(fault_count(fault, FAULT_WRITE), 5);
    fault_release(fault);
    co_crew_wait(&crew);
    co_expect(n, CLUSTER, 4096, 0);
    for (unsigned i = 1; i < 4; i++)
        co_expect(n, CLUSTER + i * 4096, 4096, (unsigned char)(i + 1));
    co_close(n);
}

CO_TEST(freed_clusters_are_not_used_before_a_flush)
{
    struct node *n = co_new_image(", 'discard': 'unmap'");

    co_fill(n, 0, 2 * CLUSTER, 1);
    assert_int_equal(co_node_flush(n), 0);

    uint64_t freed = co_host_of(n, 0);

    assert_int_equal(co_node_discard(n, 0, CLUSTER), 0);
    for (uint64_t i = 4; i < 20; i++) {
        co_fill(n, i * CLUSTER, CLUSTER, 2);
        assert_int_not_equal(co_host_of(n, i * CLUSTER), freed);
    }
    assert_int_equal(co_node_flush(n), 0);
    co_sleep(20 * NSEC_PER_MSEC);       /* it is freed beside */
    co_fill(n, 30 * CLUSTER, CLUSTER, 3);
    assert_int_equal(co_host_of(n, 30 * CLUSTER), freed);
    co_expect(n, 0, CLUSTER, 0);
    co_close(n);
}

CO_TEST(nor_while_that_flush_is_on_its_way)
{
    struct node *n = co_new_image(", 'discard': 'unmap'");
    struct request flush = { .n = n };
    struct crew crew = { 0 };

    co_fill(n, 0, 2 * CLUSTER, 1);
    assert_int_equal(co_node_flush(n), 0);

    uint64_t freed = co_host_of(n, 0);

    assert_int_equal(co_node_discard(n, 0, CLUSTER), 0);
    hang(FAULT_FLUSH, 0, 0);
    crew_start(&crew, co_flush, &flush);
    co_until_hung(1);
    for (uint64_t i = 4; i < 20; i++) {
        co_fill(n, i * CLUSTER, CLUSTER, 2);
        assert_int_not_equal(co_host_of(n, i * CLUSTER), freed);
    }
    assert_false(flush.done);
    fault_release(fault);
    co_crew_wait(&crew);
    co_close(n);
}

/* A write in place that is late must not land in a cluster that has become
 * another's (I-Q5). */
CO_TEST(nor_while_a_request_that_knows_them_is_in_flight)
{
    struct node *n = co_new_image(", 'discard': 'unmap'");
    struct request late = { n, 0, 4096, 9, false };
    struct crew crew = { 0 };

    co_fill(n, 0, 2 * CLUSTER, 1);
    assert_int_equal(co_node_flush(n), 0);

    uint64_t freed = co_host_of(n, 0);

    hang(FAULT_WRITE, freed, 4096);
    crew_start(&crew, co_request, &late);
    co_until_hung(1);
    assert_int_equal(co_node_discard(n, 0, CLUSTER), 0);
    assert_int_equal(co_node_flush(n), 0);
    co_sleep(20 * NSEC_PER_MSEC);
    for (uint64_t i = 4; i < 20; i++) {
        co_fill(n, i * CLUSTER, CLUSTER, 2);
        assert_int_not_equal(co_host_of(n, i * CLUSTER), freed);
    }
    fault_release(fault);
    co_crew_wait(&crew);
    for (uint64_t i = 4; i < 20; i++)
        co_expect(n, i * CLUSTER, CLUSTER, 2);
    co_close(n);
}

static void co_ask(void *arg)
{
    struct request *rq = arg;

    co_status(rq->n, rq->off, rq->len);
    rq->done = true;
}

/* Nor one that only tells where things are (I-Q5). */
CO_TEST(nor_while_block_status_is_told)
{
    struct node *n = co_new_image(", 'discard': 'unmap'");
    struct request late = { .n = n, .off = 32 * MiB, .len = 4096 };
    struct crew crew = { 0 };

    co_fill(n, 0, 64 * CLUSTER, 1);
    co_fill(n, 32 * MiB, CLUSTER, 1);
    co_close(n);
    n = late.n = co_open_over_fault(", 'discard': 'unmap', 'l2-cache-entry-size': 512");

    uint64_t freed = co_host_of(n, 0);

    fault_add_rule(fault, &(struct fault_rule){ .op = FAULT_READ, .hang = true, .once = true });
    crew_start(&crew, co_ask, &late);
    co_until_hung(1);
    assert_int_equal(co_node_discard(n, 0, CLUSTER), 0);
    assert_int_equal(co_node_flush(n), 0);
    co_sleep(20 * NSEC_PER_MSEC);
    for (uint64_t i = 300; i < 310; i++) {
        co_fill(n, i * CLUSTER, CLUSTER, 2);
        assert_int_not_equal(co_host_of(n, i * CLUSTER), freed);
    }
    fault_release(fault);
    co_crew_wait(&crew);
    co_close(n);
}

CO_TEST(discarded_clusters_are_punched_out_of_the_file)
{
    struct node *n = co_new_image(", 'discard': 'unmap'");
    struct stat before, after;

    co_fill(n, 0, 4 * MiB, 1);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(stat(work_path("i.qcow2"), &before), 0);
    assert_int_equal(co_node_discard(n, 0, 3 * MiB), 0);
    assert_int_equal(co_node_flush(n), 0);
    while (fault_count(fault, FAULT_DISCARD) == 0)
        co_yield();
    co_sleep(20 * NSEC_PER_MSEC);
    assert_int_equal(fault_count(fault, FAULT_DISCARD), 1);
    assert_int_equal(stat(work_path("i.qcow2"), &after), 0);
    assert_true(after.st_blocks + 5000 < before.st_blocks);
    co_close(n);
}

CO_TEST(discards_can_be_kept_from_the_file)
{
    struct node *n = co_new_image(", 'discard': 'unmap', 'pass-discard-request': false");

    co_fill(n, 0, MiB, 1);
    assert_int_equal(co_node_discard(n, 0, MiB), 0);
    assert_int_equal(co_status(n, 0, MiB).flags, STATUS_ZERO);
    assert_int_equal(co_node_flush(n), 0);
    co_sleep(10 * NSEC_PER_MSEC);
    assert_int_equal(fault_count(fault, FAULT_DISCARD), 0);
    co_close(n);
}

CO_TEST(zero_writes_keep_clusters_unless_they_may_unmap)
{
    struct node *n = co_new_image(", 'discard': 'unmap'");

    co_fill(n, 0, 4 * CLUSTER, 1);
    uint64_t host = co_host_of(n, 0);

    assert_int_equal(co_node_write_zeroes(n, 0, 4 * CLUSTER, 0), 0);
    assert_int_equal(co_status(n, 0, 4 * CLUSTER).flags, STATUS_ALLOCATED | STATUS_ZERO);
    co_expect(n, 0, 4 * CLUSTER, 0);
    /* The cluster that was kept is used again, and its old bytes do not show. */
    co_fill(n, 4096, 4096, 2);
    assert_int_equal(co_host_of(n, 0), host);
    co_expect(n, 0, 4096, 0);
    co_expect(n, 4096, 4096, 2);
    co_expect(n, 8192, 4 * CLUSTER - 8192, 0);
    assert_int_equal(co_node_write_zeroes(n, 0, 2 * CLUSTER, REQ_MAY_UNMAP), 0);
    assert_int_equal(co_status(n, 0, 2 * CLUSTER).flags, STATUS_ZERO);
    co_close(n);
}

CO_TEST(zero_writes_write_no_data_but_at_their_ends)
{
    struct node *n = co_new_image("");

    co_fill(n, 0, 8 * CLUSTER, 1);
    uint64_t before = fault_count(fault, FAULT_WRITE);

    assert_int_equal(co_node_write_zeroes(n, 1000, 6 * CLUSTER, REQ_NO_FALLBACK), 0);
    assert_int_equal(fault_count(fault, FAULT_WRITE) - before, 2);
    co_expect(n, 0, 1000, 1);
    co_expect(n, 1000, 6 * CLUSTER, 0);
    co_expect(n, 1000 + 6 * CLUSTER, 1000, 1);
    /* What reads as zero is left alone, whole or not. */
    before = fault_count(fault, FAULT_WRITE);
    assert_int_equal(co_node_write_zeroes(n, CLUSTER + 5, 3 * CLUSTER, 0), 0);
    assert_int_equal(co_node_write_zeroes(n, 20 * MiB + 5, 10 * MiB, 0), 0);
    assert_int_equal(fault_count(fault, FAULT_WRITE), before);
    co_close(n);
}

CO_TEST(a_full_file_is_enospc_until_freed_clusters_are_flushed)
{
    struct node *n;

    co_make_image("i.qcow2", &(struct qcow2_create_opts){ .size = 64 * MiB });
    must_run("truncate -s 1M i.qcow2");
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'file': {'driver': 'raw', "
                         "'size': 1048576, 'file': {'driver': 'file', 'filename': '%s'}}}",
                         work_path("i.qcow2"));
    n = co_test_open("{'driver': 'qcow2', 'discard': 'unmap', 'file': 'fault'}");

    uint64_t fits = 0;
    CLEANUP(free) void *data = xzalloc(CLUSTER);

    while (co_node_pwrite(n, fits * CLUSTER, CLUSTER, data, 0) == 0)
        fits++;
    assert_int_equal(fits, 11);  /* of 16: four for the empty image, one for the L2 table */
    assert_int_equal(co_node_pwrite(n, fits * CLUSTER, CLUSTER, data, 0), -ENOSPC);
    co_fill(n, 0, CLUSTER, 5);   /* in place it goes on */
    assert_int_equal(co_node_discard(n, 0, 2 * CLUSTER), 0);
    co_fill(n, fits * CLUSTER, CLUSTER, 6);
    co_expect(n, fits * CLUSTER, CLUSTER, 6);
    co_close(n);
}

CO_TEST(the_file_is_cut_to_its_last_cluster_on_closing)
{
    struct node *n = co_new_image("");
    struct stat st;

    co_fill(n, 0, CLUSTER, 1);
    assert_int_equal(stat(work_path("i.qcow2"), &st), 0);
    assert_true(st.st_size > (off_t)MiB);
    co_close(n);
    assert_int_equal(stat(work_path("i.qcow2"), &st), 0);
    assert_int_equal(st.st_size, 6 * CLUSTER);
}

/* Whoever made it so long had a reason. */
CO_TEST(but_not_shorter_than_it_was)
{
    struct node *n;
    struct stat st;

    co_make_image("i.qcow2", &(struct qcow2_create_opts){ .size = 64 * MiB });
    must_run("truncate -s 40M i.qcow2");
    n = co_open_over_fault("");
    co_fill(n, 0, CLUSTER, 1);
    co_close(n);
    assert_int_equal(stat(work_path("i.qcow2"), &st), 0);
    assert_int_equal(st.st_size, 40 * MiB);
    n = co_open_over_fault("");
    assert_true(co_node_resize(n, MiB, NULL));
    co_close(n);
    assert_int_equal(stat(work_path("i.qcow2"), &st), 0);
    assert_true(st.st_size < (off_t)MiB);
}

struct far {
    struct node *n;
    unsigned char was, next;
};

static int co_use_there(void *arg)
{
    struct far *f = arg;

    assert_true(node_loop(f->n) == loop_current());
    co_expect(f->n, 0, MiB, f->was);
    co_fill(f->n, 0, MiB, f->next);
    assert_int_equal(co_node_discard(f->n, 4 * MiB, MiB), 0);
    co_fill(f->n, 4 * MiB, MiB, f->next);
    assert_int_equal(co_node_discard(f->n, 4 * MiB, MiB / 2), 0);
    assert_int_equal(co_node_flush(f->n), 0);       /* something is freed in the background */
    return 0;
}

CO_TEST(an_image_moves_to_another_loop_with_what_is_not_written_yet)
{
    struct loop *there = test_loop_spawn("there"), *here = loop_current();
    struct far f = { .was = 0, .next = 1 };
    struct err err = ERR_INIT;

    co_make_image("i.qcow2", &(struct qcow2_create_opts){ .size = 64 * MiB });
    f.n = co_open_image("i.qcow2", ", 'discard': 'unmap'");
    for (unsigned char i = 0; i < 6; i++) {
        f.was = i;
        f.next = i + 1;
        assert_int_equal(co_loop_call(node_loop(f.n), co_use_there, &f), 0);
        if (!co_node_move(f.n, i % 2 ? here : there, &err))
            fail_msg("%s", err.text);
    }
    co_expect(f.n, 0, MiB, 6);
    co_node_unref(f.n);
    test_loop_end(there);
    expect_clean("i.qcow2", false);
}

CO_TEST(reading_changes_nothing)
{
    struct node *n = co_new_image("");

    co_expect(n, 0, MiB, 0);
    assert_int_equal(co_node_flush(n), 0);
    co_node_unref(n);
    assert_int_equal(fault_count(fault, FAULT_WRITE), 0);
    assert_int_equal(fault_count(fault, FAULT_RESIZE), 0);
    co_node_unref(fault);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocating_costs_the_file_one_write_each),
        cmocka_unit_test(sequential_writes_make_one_extent),
        cmocka_unit_test(small_writes_share_a_cluster_that_is_being_allocated),
        cmocka_unit_test(sharers_of_a_cluster_whose_owner_fails_write_again),
        cmocka_unit_test(freed_clusters_are_not_used_before_a_flush),
        cmocka_unit_test(nor_while_that_flush_is_on_its_way),
        cmocka_unit_test(nor_while_a_request_that_knows_them_is_in_flight),
        cmocka_unit_test(nor_while_block_status_is_told),
        cmocka_unit_test(discarded_clusters_are_punched_out_of_the_file),
        cmocka_unit_test(discards_can_be_kept_from_the_file),
        cmocka_unit_test(zero_writes_keep_clusters_unless_they_may_unmap),
        cmocka_unit_test(zero_writes_write_no_data_but_at_their_ends),
        cmocka_unit_test(a_full_file_is_enospc_until_freed_clusters_are_flushed),
        cmocka_unit_test(the_file_is_cut_to_its_last_cluster_on_closing),
        cmocka_unit_test(but_not_shorter_than_it_was),
        cmocka_unit_test(an_image_moves_to_another_loop_with_what_is_not_written_yet),
        cmocka_unit_test(reading_changes_nothing),
    };

    return drivers_test_main(argc, argv, "qcow2 space", tests, ARRAY_SIZE(tests));
}
