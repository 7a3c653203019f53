/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: in images with extended L2 entries a write touches only the subclusters that
 * it has to, writes to one cluster run side by side, and nothing else notices.
 * Method: driver `fault` counts and holds back what reaches the image and its backing
 * file; entries are looked at and spoilt in the file. test_subcluster_peer.c has QEMU
 * judge.
 */
#include "base/bytes.h"
#include "drivers/fault.h"
#include "qcow2_test.h"

#define CLUSTER 65536ULL
#define SUB (CLUSTER / 32)
#define L2 (4 * CLUSTER)        /* of an image made here: the first cluster allocated */
#define DATA (5 * CLUSTER)
#define COPIED (1ULL << 63)

static struct node *fault, *base_fault;      /* under the image and its backing file */

static void set64(uint64_t at, uint64_t v)
{
    uint8_t buf[8];

    store_be64(buf, v);
    file_write(work_path("s.qcow2"), at, buf, sizeof(buf));
}

static uint64_t get64(uint64_t at)
{
    uint8_t buf[8];

    file_read(work_path("s.qcow2"), at, buf, sizeof(buf));
    return load_be64(buf);
}

/* The bitmap of a cluster: allocated subclusters, or those that are zero. */
static uint32_t alloc_bits(uint64_t cluster)
{
    return (uint32_t)get64(L2 + cluster * 16 + 8);
}

static uint32_t zero_bits(uint64_t cluster)
{
    return (uint32_t)(get64(L2 + cluster * 16 + 8) >> 32);
}

static struct node *co_open_over_fault(bool over_base)
{
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'discard': 'unmap', "
                         "'file': {'driver': 'file', 'filename': '%s'}}", work_path("s.qcow2"));
    base_fault = NULL;
    if (!over_base)
        return co_test_open("{'driver': 'qcow2', 'file': 'fault', 'discard': 'unmap'}");
    base_fault = co_test_open("{'driver': 'fault', 'node-name': 'base', 'file': {'driver': "
                              "'file', 'filename': '%s'}}", work_path("base.raw"));
    return co_test_open("{'driver': 'qcow2', 'file': 'fault', 'discard': 'unmap', 'backing': "
                        "'base'}");
}

static void make_base(void)
{
    must_run("truncate -s 64M base.raw && qemu-io -f raw -c 'write -P 9 0 4M' base.raw");
}

/* Cluster 0 has its first subcluster, and the L2 table is there. */
static struct node *co_new(bool over_base)
{
    struct node *n;

    if (over_base)
        make_base();
    co_make_image("s.qcow2", &(struct qcow2_create_opts){
        .size = 64 * MiB, .extended_l2 = true,
        .backing_file = over_base ? "base.raw" : NULL,
        .backing_format = over_base ? "raw" : NULL });
    n = co_open_over_fault(over_base);
    co_fill(n, 0, SUB, 1);
    return n;
}

static void co_close(struct node *n)
{
    co_node_unref(n);
    co_node_unref(fault);
    if (base_fault)
        co_node_unref(base_fault);
    expect_clean("s.qcow2", false);
}

/* ---- what a write costs -------------------------------------------------- */

struct cost {
    uint64_t writes, reads, base_reads;
};

static struct cost count(void)
{
    return (struct cost){ fault_count(fault, FAULT_WRITE), fault_count(fault, FAULT_READ),
                          base_fault ? fault_count(base_fault, FAULT_READ) : 0 };
}

static void expect_cost(struct cost before, uint64_t writes, uint64_t reads, uint64_t base_reads)
{
    struct cost now = count();

    assert_int_equal(now.writes - before.writes, writes);
    assert_int_equal(now.reads - before.reads, reads);
    assert_int_equal(now.base_reads - before.base_reads, base_reads);
}

CO_TEST(whole_subclusters_are_written_without_copying_any)
{
    struct node *n = co_new(true);
    struct cost before = count();

    co_fill(n, CLUSTER + 3 * SUB, 2 * SUB, 2);         /* a new cluster */
    expect_cost(before, 1, 0, 0);
    co_fill(n, CLUSTER + 10 * SUB, SUB, 3);            /* the one that is there */
    expect_cost(before, 2, 0, 0);
    co_fill(n, CLUSTER + 3 * SUB + 100, SUB, 4);       /* in place */
    expect_cost(before, 3, 0, 0);
    co_fill(n, CLUSTER + 3 * SUB, 9 * SUB, 5);         /* all of it, in one */
    expect_cost(before, 4, 0, 0);
    co_expect(n, CLUSTER, 3 * SUB, 9);
    co_expect(n, CLUSTER + 3 * SUB, 9 * SUB, 5);
    co_expect(n, CLUSTER + 12 * SUB, CLUSTER, 9);
    co_close(n);
    assert_int_equal(alloc_bits(1), 0xff8);
    assert_int_equal(zero_bits(1), 0);
}

CO_TEST(of_a_subcluster_in_part_the_rest_is_copied)
{
    struct node *n = co_new(true);
    struct cost before = count();

    co_fill(n, CLUSTER + 3 * SUB + 512, 512, 2);
    expect_cost(before, 1, 0, 1);
    co_fill(n, CLUSTER + 5 * SUB + 512, 3 * SUB, 3);     /* both ends in part */
    expect_cost(before, 2, 0, 2);
    co_expect(n, CLUSTER + 3 * SUB, 512, 9);
    co_expect(n, CLUSTER + 3 * SUB + 512, 512, 2);
    co_expect(n, CLUSTER + 3 * SUB + 1024, 2 * SUB - 512, 9);
    co_expect(n, CLUSTER + 5 * SUB + 512, 3 * SUB, 3);
    co_expect(n, CLUSTER + 8 * SUB + 512, CLUSTER, 9);
    co_close(n);
    assert_int_equal(alloc_bits(1), 0x1e8);
}

CO_TEST(zeros_around_are_written_and_not_read)
{
    struct node *n = co_new(true);
    struct cost before;

    co_fill(n, CLUSTER, CLUSTER, 7);
    assert_int_equal(co_node_write_zeroes(n, CLUSTER + SUB, 4 * SUB, 0), 0);
    before = count();
    co_fill(n, CLUSTER + 2 * SUB + 600, 512, 2);
    expect_cost(before, 1, 0, 0);
    co_expect(n, CLUSTER, SUB, 7);
    co_expect(n, CLUSTER + SUB, SUB + 600, 0);
    co_expect(n, CLUSTER + 2 * SUB + 600, 512, 2);
    co_expect(n, CLUSTER + 2 * SUB + 1112, 3 * SUB - 1112, 0);
    co_expect(n, CLUSTER + 5 * SUB, 20 * SUB, 7);
    co_close(n);
    assert_int_equal(alloc_bits(1), ~0x1aU);
    assert_int_equal(zero_bits(1), 0x1a);
}

/* Of a cluster that a snapshot has too, what is allocated moves and no more. */
CO_TEST(a_shared_cluster_keeps_its_holes)
{
    struct node *n = co_new(true);

    co_fill(n, CLUSTER + 4 * SUB, SUB, 2);
    co_fill(n, CLUSTER + 9 * SUB, SUB, 3);
    assert_int_equal(co_node_write_zeroes(n, CLUSTER + 6 * SUB, SUB, 0), 0);
    co_close(n);
    must_run("qemu-img snapshot -c then s.qcow2");
    n = co_open_over_fault(true);
    co_fill(n, CLUSTER + 20 * SUB + 1, 10, 5);
    co_expect(n, CLUSTER, 4 * SUB, 9);
    co_expect(n, CLUSTER + 4 * SUB, SUB, 2);
    co_expect(n, CLUSTER + 5 * SUB, SUB, 9);
    co_expect(n, CLUSTER + 6 * SUB, SUB, 0);
    co_expect(n, CLUSTER + 9 * SUB, SUB, 3);
    co_expect(n, CLUSTER + 20 * SUB + 1, 10, 5);
    co_expect(n, CLUSTER + 20 * SUB + 11, SUB, 9);

    struct block_status st = co_status(n, CLUSTER + 5 * SUB, SUB);

    assert_false(st.flags & STATUS_ALLOCATED);
    st = co_status(n, CLUSTER + 10 * SUB, CLUSTER);
    assert_false(st.flags & STATUS_ALLOCATED);
    assert_int_equal(st.len, 10 * SUB);
    co_close(n);
    must_run("qemu-img snapshot -a then s.qcow2");
    n = co_open_over_fault(true);
    co_expect(n, CLUSTER + 10 * SUB, 20 * SUB, 9);
    co_close(n);
}

/* QEMU's files end with the last subcluster that was written. */
CO_TEST(the_last_cluster_of_a_file_may_be_short)
{
    struct node *n;

    must_run("qemu-img create -q -f qcow2 -o extended_l2=on s.qcow2 64M && "
             "qemu-io -f qcow2 -c 'write -P 1 1M 4k' s.qcow2 && "
             "test $(($(stat -c %%s s.qcow2) %% 65536)) != 0");
    n = co_open_over_fault(false);
    co_fill(n, MiB + 40 * 1024, 100, 2);
    co_expect(n, MiB, 4096, 1);
    co_expect(n, MiB + 4096, 36 * 1024, 0);
    co_expect(n, MiB + 40 * 1024, 100, 2);
    co_expect(n, MiB + 40 * 1024 + 100, 40 * 1024, 0);
    co_close(n);
}

/* ---- side by side -------------------------------------------------------- */

struct request {
    struct node *n;
    uint64_t off, len;
    unsigned char byte;          /* what to write; 0: zeros, by the entry */
    int result;
    bool done;
};

static void co_request(void *arg)
{
    struct request *rq = arg;
    CLEANUP(free) void *data = memset(xmalloc(rq->len), rq->byte, rq->len);

    rq->result = rq->byte ? co_node_pwrite(rq->n, rq->off, rq->len, data, 0)
                          : co_node_write_zeroes(rq->n, rq->off, rq->len, 0);
    rq->done = true;
}

static void co_until_hung(unsigned n)
{
    while (fault_hung(fault) < n)
        co_yield();
}

/* All reach the file at the same time, aligned to subclusters or not. */
static void co_side_by_side(bool over_base, uint64_t cluster, uint64_t step, uint64_t shift,
                            uint64_t len)
{
    struct fault_rule rule = { .op = FAULT_WRITE, .hang = true };
    struct node *n = co_new(over_base);
    struct request rqs[8];
    struct crew crew = { 0 };

    fault_add_rule(fault, &rule);
    for (unsigned i = 0; i < ARRAY_SIZE(rqs); i++) {
        rqs[i] = (struct request){ n, cluster * CLUSTER + i * step + shift, len,
                                   (unsigned char)(i + 10), 0, false };
        crew_start(&crew, co_request, &rqs[i]);
    }
    co_until_hung(ARRAY_SIZE(rqs));
    fault_clear_rules(fault);
    fault_release(fault);
    co_crew_wait(&crew);
    for (unsigned i = 0; i < ARRAY_SIZE(rqs); i++) {
        assert_int_equal(rqs[i].result, 0);
        co_expect(n, rqs[i].off, len, rqs[i].byte);
        co_expect(n, rqs[i].off + len, step - len, over_base ? 9 : 0);
    }
    co_close(n);
}

CO_TEST(writes_to_one_cluster_run_side_by_side)
{
    co_side_by_side(false, 1, 4 * SUB, 0, 2 * SUB);      /* a new cluster */
    co_side_by_side(true, 1, 4 * SUB, 300, SUB);
    co_side_by_side(true, 0, 2 * SUB, SUB + 300, 700);   /* one that is there */
}

/* Those that ride in the host cluster of one that fails try again for themselves. */
CO_TEST(a_failed_allocation_fails_its_own_write_only)
{
    struct fault_rule all = { .op = FAULT_WRITE, .hang = true };
    struct fault_rule first = { .op = FAULT_WRITE, .error = -EIO, .once = true };
    struct node *n = co_new(true);
    struct request rqs[3];
    struct crew crew = { 0 };

    fault_add_rule(fault, &all);
    fault_add_rule(fault, &first);
    for (unsigned i = 0; i < ARRAY_SIZE(rqs); i++) {
        rqs[i] = (struct request){ n, CLUSTER + i * 4 * SUB + 100, 1000, (unsigned char)(i + 10),
                                   0, false };
        crew_start(&crew, co_request, &rqs[i]);
    }
    co_until_hung(ARRAY_SIZE(rqs));
    fault_clear_rules(fault);
    fault_release(fault);
    co_crew_wait(&crew);
    assert_int_equal(rqs[0].result, -EIO);
    co_expect(n, CLUSTER, 4 * SUB, 9);
    for (unsigned i = 1; i < ARRAY_SIZE(rqs); i++) {
        assert_int_equal(rqs[i].result, 0);
        co_expect(n, rqs[i].off, 1000, rqs[i].byte);
        co_expect(n, rqs[i].off + 1000, 3 * SUB, 9);
    }
    co_close(n);
    assert_int_equal(alloc_bits(1), 0x110);
}

CO_TEST(zeros_wait_for_what_is_being_allocated_in_the_cluster)
{
    struct fault_rule rule = { .op = FAULT_WRITE, .hang = true, .once = true };
    struct node *n = co_new(true);
    struct request write = { n, CLUSTER + 4 * SUB, SUB, 2, 0, false };
    struct request zero = { n, CLUSTER + 4 * SUB, 2 * SUB, 0, 0, false };
    struct crew crew = { 0 };

    fault_add_rule(fault, &rule);
    crew_start(&crew, co_request, &write);
    co_until_hung(1);
    crew_start(&crew, co_request, &zero);
    for (int i = 0; i < 100; i++)
        co_yield();
    fault_release(fault);
    co_crew_wait(&crew);
    assert_int_equal(write.result | zero.result, 0);
    co_expect(n, CLUSTER + 5 * SUB, SUB, 0);
    co_expect(n, CLUSTER + 6 * SUB, SUB, 9);
    co_close(n);
}

/* ---- zeros and discards -------------------------------------------------- */

CO_TEST(zeros_are_bits_of_the_entry)
{
    struct node *n = co_new(true);
    struct cost before = count();

    co_fill(n, CLUSTER, CLUSTER, 2);
    before = count();
    assert_int_equal(co_node_write_zeroes(n, CLUSTER + SUB, 3 * SUB, 0), 0);
    assert_int_equal(co_node_discard(n, CLUSTER + 8 * SUB - 100, 2 * SUB + 200), 0);
    assert_int_equal(co_node_write_zeroes(n, 2 * CLUSTER + SUB, SUB, REQ_MAY_UNMAP), 0);
    expect_cost(before, 0, 0, 0);
    co_expect(n, CLUSTER + SUB, 3 * SUB, 0);
    co_expect(n, CLUSTER + 8 * SUB - 100, 100, 2);
    co_expect(n, CLUSTER + 8 * SUB, 2 * SUB, 0);
    co_expect(n, 2 * CLUSTER, SUB, 9);
    co_expect(n, 2 * CLUSTER + SUB, SUB, 0);
    co_close(n);
    assert_int_equal(zero_bits(1), 0x30e);
    assert_int_equal(alloc_bits(1), ~0x30eU);
    assert_int_equal(get64(L2 + 2 * 16), 0);
    assert_int_equal(zero_bits(2), 2);
}

CO_TEST(the_host_cluster_goes_with_its_last_data)
{
    struct node *n = co_new(false);

    co_fill(n, CLUSTER + 2 * SUB, 2 * SUB, 2);
    assert_int_equal(co_node_discard(n, CLUSTER + 2 * SUB, SUB), 0);
    co_close(n);
    assert_int_not_equal(get64(L2 + 16), 0);
    assert_int_equal(alloc_bits(1), 8);
    assert_int_equal(zero_bits(1), 0);         /* unallocated is as good */
    n = co_open_over_fault(false);
    assert_int_equal(co_node_discard(n, CLUSTER + 3 * SUB, SUB), 0);
    co_close(n);
    assert_int_equal(get64(L2 + 16), 0);
    assert_int_equal(get64(L2 + 24), 0);
}

CO_TEST(a_part_of_a_compressed_cluster_becomes_zero)
{
    struct node *n;

    must_run("truncate -s 1M c.raw && qemu-io -f raw -c 'write -P 6 0 256k' c.raw && "
             "qemu-img convert -c -f raw -O qcow2 -o extended_l2=on c.raw s.qcow2");
    n = co_open_over_fault(false);
    co_expect(n, 0, 256 * KiB, 6);
    /* A discard is not worth unpacking it. */
    assert_int_equal(co_node_discard(n, CLUSTER + SUB, SUB), 0);
    co_expect(n, CLUSTER, CLUSTER, 6);
    assert_int_equal(co_node_write_zeroes(n, CLUSTER - SUB, 4 * SUB, REQ_MAY_UNMAP), 0);
    co_expect(n, 0, CLUSTER - SUB, 6);
    co_expect(n, CLUSTER - SUB, 4 * SUB, 0);
    co_expect(n, CLUSTER + 3 * SUB, CLUSTER, 6);
    co_fill(n, 2 * CLUSTER + 5, 10, 7);
    co_expect(n, 2 * CLUSTER, 5, 6);
    co_expect(n, 2 * CLUSTER + 5, 10, 7);
    co_expect(n, 2 * CLUSTER + 15, CLUSTER, 6);
    assert_int_equal(co_node_write_zeroes(n, 3 * CLUSTER, CLUSTER, 0), 0);
    co_expect(n, 3 * CLUSTER, CLUSTER, 0);
    co_close(n);
}

/* ---- status -------------------------------------------------------------- */

CO_TEST(status_goes_over_subclusters_and_clusters_that_are_alike)
{
    struct node *n = co_new(true);
    struct block_status st;

    co_fill(n, CLUSTER - 2 * SUB, 3 * CLUSTER + 4 * SUB, 2);
    assert_int_equal(co_node_write_zeroes(n, 5 * CLUSTER + SUB, 2 * CLUSTER, 0), 0);
    st = co_status(n, SUB, 64 * MiB - SUB);
    assert_int_equal(st.flags, 0);
    assert_int_equal(st.len, CLUSTER - 3 * SUB);
    st = co_status(n, CLUSTER, 63 * MiB);
    assert_int_equal(st.flags, STATUS_ALLOCATED | STATUS_DATA | STATUS_OFFSET);
    assert_int_equal(st.len, 3 * CLUSTER + 2 * SUB);
    st = co_status(n, 4 * CLUSTER + 3 * SUB, 60 * MiB);
    assert_int_equal(st.flags, 0);
    assert_int_equal(st.len, CLUSTER - 2 * SUB);
    st = co_status(n, 6 * CLUSTER, 60 * MiB);
    assert_int_equal(st.flags, STATUS_ALLOCATED | STATUS_ZERO);
    assert_int_equal(st.len, CLUSTER + SUB);
    co_close(n);
}

/* ---- trust --------------------------------------------------------------- */

static int co_try_read(struct node *n, uint64_t off, uint64_t len)
{
    CLEANUP(free) void *data = xzalloc(len);

    return co_node_pread(n, off, len, data, 0);
}

CO_TEST(a_bitmap_that_cannot_be_is_an_error_for_its_cluster_only)
{
    static const uint64_t entries[][2] = {
        { COPIED | DATA, 1ULL << 40 | 1ULL << 8 },     /* allocated, and zero */
        { 0, 1 },                                      /* allocated nowhere */
        { COPIED | DATA | 1, 0 },                      /* the zero flag of other images */
        { COPIED | (DATA + SUB), 1 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        struct node *n = co_new(false);

        for (uint64_t c = 1; c < 4; c++)
            co_fill(n, c * CLUSTER, CLUSTER, (unsigned char)c);
        co_close(n);
        set64(L2 + 2 * 16, entries[i][0]);
        set64(L2 + 2 * 16 + 8, entries[i][1]);
        n = co_open_over_fault(false);
        co_expect(n, CLUSTER, CLUSTER, 1);
        co_expect(n, 3 * CLUSTER, CLUSTER, 3);
        for (uint64_t sub = 0; sub < 32; sub += 31) {
            struct request rq = { n, 2 * CLUSTER + sub * SUB, 512, 7, 0, false };

            assert_int_equal(co_try_read(n, rq.off, 512), -EIO);
            co_request(&rq);
            assert_int_equal(rq.result, -EIO);
            assert_int_equal(co_node_write_zeroes(n, rq.off, SUB, 0), -EIO);
        }
        assert_int_equal(co_try_read(n, CLUSTER, 2 * CLUSTER), -EIO);
        co_fill(n, CLUSTER, 512, 8);
        co_fill(n, 3 * CLUSTER, 512, 8);
        co_node_unref(n);
        co_node_unref(fault);
    }
}

/* A bitmap makes a place of the guest's own of what is metadata. */
CO_TEST(metadata_is_never_written_as_a_subcluster)
{
    static const uint64_t places[] = { CLUSTER, 2 * CLUSTER, 3 * CLUSTER, L2 };

    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        struct node *n = co_new(false);
        struct request rq = { n, 2 * CLUSTER + SUB, SUB, 7, 0, false };

        co_close(n);
        set64(L2 + 2 * 16, COPIED | places[i]);
        rq.n = co_open_over_fault(false);
        co_request(&rq);
        assert_int_equal(rq.result, -EIO);
        co_node_unref(rq.n);
        co_node_unref(fault);
        assert_int_equal(get64(3 * CLUSTER), COPIED | L2);
    }
}

/* ---- size ---------------------------------------------------------------- */

CO_TEST(growing_shows_zeros)
{
    struct err err = ERR_INIT;
    struct node *n;

    make_base();
    co_make_image("s.qcow2", &(struct qcow2_create_opts){
        .size = MiB + 512, .extended_l2 = true, .cluster_size = 16384,
        .backing_file = "base.raw", .backing_format = "raw" });
    n = co_open_over_fault(true);
    co_fill(n, MiB, 512, 2);
    if (!co_node_resize(n, 100 * MiB, &err))
        fail_msg("%s", err.text);
    co_expect(n, 0, MiB, 9);
    co_expect(n, MiB, 512, 2);
    co_expect(n, MiB + 512, 99 * MiB - 512, 0);
    co_fill(n, 90 * MiB + 1, 1, 3);
    co_close(n);
    must_run("qemu-io -f qcow2 -c 'read -P 2 1M 512' -c 'read -P 0 1049088 6M' s.qcow2");
    assert_null(strstr(run_output(), "failed"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_subclusters_are_written_without_copying_any),
        cmocka_unit_test(of_a_subcluster_in_part_the_rest_is_copied),
        cmocka_unit_test(zeros_around_are_written_and_not_read),
        cmocka_unit_test(a_shared_cluster_keeps_its_holes),
        cmocka_unit_test(the_last_cluster_of_a_file_may_be_short),
        cmocka_unit_test(writes_to_one_cluster_run_side_by_side),
        cmocka_unit_test(a_failed_allocation_fails_its_own_write_only),
        cmocka_unit_test(zeros_wait_for_what_is_being_allocated_in_the_cluster),
        cmocka_unit_test(zeros_are_bits_of_the_entry),
        cmocka_unit_test(the_host_cluster_goes_with_its_last_data),
        cmocka_unit_test(a_part_of_a_compressed_cluster_becomes_zero),
        cmocka_unit_test(status_goes_over_subclusters_and_clusters_that_are_alike),
        cmocka_unit_test(a_bitmap_that_cannot_be_is_an_error_for_its_cluster_only),
        cmocka_unit_test(metadata_is_never_written_as_a_subcluster),
        cmocka_unit_test(growing_shows_zeros),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 subclusters", tests, ARRAY_SIZE(tests));
}
