/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: images that QEMU made read the same here, can be written here, and are
 * sound for QEMU afterwards.
 * Method: qemu-img makes every kind of image that this driver knows from one raw
 * file; it is read here and compared, written in a few places, and given back.
 */
#include "qcow2_test.h"
#include "drivers/fault.h"

#define SIZE (6 * MiB)

static unsigned char *shadow;

/* Data that compresses, data that does not, and holes, in pieces of many sizes. */
static void make_source(void)
{
    uint64_t seed = 42;

    shadow = xzalloc(SIZE);
    for (uint64_t off = 0; off < SIZE;) {
        uint64_t len = MIN(1 + test_random(&seed, 300000), SIZE - off);
        unsigned kind = (unsigned)test_random(&seed, 3);

        for (uint64_t i = 0; kind && i < len; i++)
            shadow[off + i] = kind == 1 ? (unsigned char)(i / 100)
                                        : (unsigned char)test_random(&seed, 256);
        off += len;
    }
    make_file(work_path("src.raw"), 0);
    file_write(work_path("src.raw"), 0, shadow, SIZE);
}

static void co_expect_shadow(struct node *n, uint64_t step)
{
    CLEANUP(free) unsigned char *buf = xmalloc(step);

    assert_int_equal(n->size, SIZE);
    for (uint64_t off = 0; off < SIZE; off += step) {
        uint64_t len = MIN(step, SIZE - off);

        assert_int_equal(co_node_pread(n, off, len, buf, 0), 0);
        for (uint64_t i = 0; i < len; i++) {
            if (buf[i] != shadow[off + i])
                fail_msg("byte %" PRIu64 " is %d, not %d", off + i, buf[i], shadow[off + i]);
        }
    }
}

static void co_overwrite(struct node *n, uint64_t off, uint64_t len, unsigned char byte)
{
    co_fill(n, off, len, byte);
    memset(shadow + off, byte, len);
}

/* Read all, in large and small steps, write here and there, and give it back. */
static void co_use(const char *name)
{
    struct node *n = co_open_image(name, ", 'discard': 'unmap'");

    co_expect_shadow(n, SIZE);
    co_expect_shadow(n, 5000);
    for (uint64_t off = 1000; off < SIZE; off += 700000)
        co_overwrite(n, off, 3000, (unsigned char)(off / 1000));
    co_overwrite(n, 2 * MiB - 100, 200000, 77);
    assert_int_equal(co_node_write_zeroes(n, 3 * MiB + 10, 400000, REQ_MAY_UNMAP), 0);
    memset(shadow + 3 * MiB + 10, 0, 400000);
    co_expect_shadow(n, SIZE);
    co_node_unref(n);
    expect_clean(name, false);
    make_file(work_path("shadow.raw"), 0);
    file_write(work_path("shadow.raw"), 0, shadow, SIZE);
    expect_same(name, "shadow.raw");
    free(MOVE(shadow));
}

static void co_use_converted(const char *options)
{
    make_source();
    must_run("qemu-img convert -f raw -O qcow2 %s src.raw p.qcow2", options);
    co_use("p.qcow2");
}

CO_TEST(plain_images_of_both_versions)
{
    co_use_converted("");
    co_use_converted("-o compat=0.10");
    co_use_converted("-o compat=1.1,lazy_refcounts=on");
}

CO_TEST(clusters_and_refcounts_of_every_size)
{
    for (unsigned bits = 0; bits <= 6; bits++) {
        CLEANUP(free) char *o = xasprintf("-o cluster_size=%u,refcount_bits=%u", 512U << bits * 2,
                                          1U << bits);

        co_use_converted(o);
    }
}

CO_TEST(preallocated_images)
{
    static const char *const kinds[] = { "metadata", "falloc", "full" };

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        make_source();
        must_run("qemu-img create -q -f qcow2 -o preallocation=%s p.qcow2 %llu && qemu-img "
                 "convert -n -f raw -O qcow2 src.raw p.qcow2", kinds[i], SIZE);
        co_use("p.qcow2");
    }
}

CO_TEST(compressed_clusters)
{
    co_use_converted("-c");
    co_use_converted("-c -o compat=0.10");
    co_use_converted("-c -o compression_type=zstd");
    co_use_converted("-c -o cluster_size=4k");
    co_use_converted("-c -o cluster_size=512,compression_type=zstd");
    co_use_converted("-c -o cluster_size=2M");
}

CO_TEST(backing_chains)
{
    make_source();
    must_run("qemu-img convert -f raw -O qcow2 -c src.raw base.qcow2 && "
             "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2 && "
             "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 -o cluster_size=4k p.qcow2 && "
             "qemu-io -f qcow2 -c 'write -P 9 1M 300k' mid.qcow2");
    memset(shadow + MiB, 9, 300 * KiB);
    co_use("p.qcow2");
    must_run("qemu-img check -f qcow2 mid.qcow2");
}

CO_TEST(a_raw_base_that_ends_earlier)
{
    make_source();
    must_run("truncate -s 2500000 src.raw && "
             "qemu-img create -q -f qcow2 -b src.raw -F raw p.qcow2 %llu", SIZE);
    memset(shadow + 2500000, 0, SIZE - 2500000);
    co_use("p.qcow2");
}

CO_TEST(an_image_with_a_snapshot_keeps_it)
{
    make_source();
    must_run("qemu-img convert -f raw -O qcow2 src.raw p.qcow2 && qemu-img snapshot -c s p.qcow2");
    co_use("p.qcow2");
    must_run("qemu-img convert -f qcow2 -l snapshot.name=s -O raw p.qcow2 s.raw && "
             "cmp s.raw src.raw");
}

/* QEMU keeps compressed clusters of a snapshot, too: they lose one reference. */
CO_TEST(a_snapshot_of_compressed_clusters)
{
    make_source();
    must_run("qemu-img convert -c -f raw -O qcow2 src.raw p.qcow2 && "
             "qemu-img snapshot -c s p.qcow2");
    co_use("p.qcow2");
    must_run("qemu-img convert -f qcow2 -l snapshot.name=s -O raw p.qcow2 s.raw && "
             "cmp s.raw src.raw");
}

CO_TEST(zero_and_unmapped_clusters)
{
    make_source();
    must_run("qemu-img convert -f raw -O qcow2 src.raw p.qcow2 && qemu-io -f qcow2 -d unmap "
             "-c 'write -z 1M 1M' -c 'write -zu 3M 512k' -c 'discard 4M 256k' p.qcow2");
    memset(shadow + MiB, 0, MiB);
    memset(shadow + 3 * MiB, 0, 512 * KiB);
    memset(shadow + 4 * MiB, 0, 256 * KiB);
    co_use("p.qcow2");
}

CO_TEST(a_compressed_cluster_is_unpacked_once)
{
    struct node *n, *fault;

    must_run("truncate -s %llu src.raw && qemu-io -f raw -c 'write -P 5 0 6M' src.raw && "
             "qemu-img convert -c -f raw -O qcow2 src.raw p.qcow2", SIZE);
    fault = co_test_open("{'driver': 'fault', 'node-name': 'f', 'file': {'driver': 'file', "
                         "'filename': '%s'}}", work_path("p.qcow2"));
    n = co_test_open("{'driver': 'qcow2', 'read-only': true, 'file': 'f'}");
    uint64_t before = fault_count(fault, FAULT_READ);

    for (uint64_t off = 0; off < SIZE; off += 4096)
        co_expect(n, off, 4096, 5);
    /* A cluster each, and the slice of the L2 table. */
    assert_int_equal(fault_count(fault, FAULT_READ) - before, SIZE / 65536 + 1);
    co_node_unref(n);
    co_node_unref(fault);
}

CO_TEST(block_status_agrees_with_qemu_img_map)
{
    struct node *n;
    struct block_status st;
    uint64_t off = 0, data = 0;

    make_source();
    must_run("qemu-img convert -f raw -O qcow2 src.raw p.qcow2");
    must_run("qemu-img map --output=json p.qcow2 | grep -o '\"length\": [0-9]*.*data\": true' | "
             "grep -o 'length\": [0-9]*' | awk '{s += $2} END {print s}'");
    n = co_open_image("p.qcow2", ", 'read-only': true");
    for (; off < SIZE; off += st.len) {
        st = co_status(n, off, SIZE - off);
        data += st.flags & STATUS_DATA ? st.len : 0;
    }
    co_node_unref(n);
    assert_int_equal(data, strtoull(run_output(), NULL, 10));
    free(MOVE(shadow));
}

/* A bitmap that nobody keeps up to date has to be known as such (I-Q6), but an
 * image that is not written keeps it. */
CO_TEST(bitmaps_become_inconsistent_with_the_first_write_only)
{
    struct node *n;

    make_source();
    must_run("qemu-img convert -f raw -O qcow2 src.raw p.qcow2 && qemu-img bitmap --add p.qcow2 b");
    n = co_open_unfollowed("p.qcow2", "");
    co_expect_shadow(n, SIZE);
    assert_int_equal(co_node_flush(n), 0);
    co_node_unref(n);
    expect_clean("p.qcow2", false);
    must_run("qemu-img info p.qcow2");
    assert_null(strstr(run_output(), "in-use"));
    n = co_open_unfollowed("p.qcow2", "");
    co_overwrite(n, 0, 512, 1);
    co_node_unref(n);
    expect_clean("p.qcow2", false);
    must_run("qemu-img info p.qcow2");
    assert_non_null(strstr(run_output(), "in-use"));
    free(MOVE(shadow));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_images_of_both_versions),
        cmocka_unit_test(clusters_and_refcounts_of_every_size),
        cmocka_unit_test(preallocated_images),
        cmocka_unit_test(compressed_clusters),
        cmocka_unit_test(backing_chains),
        cmocka_unit_test(a_raw_base_that_ends_earlier),
        cmocka_unit_test(an_image_with_a_snapshot_keeps_it),
        cmocka_unit_test(a_snapshot_of_compressed_clusters),
        cmocka_unit_test(zero_and_unmapped_clusters),
        cmocka_unit_test(a_compressed_cluster_is_unpacked_once),
        cmocka_unit_test(block_status_agrees_with_qemu_img_map),
        cmocka_unit_test(bitmaps_become_inconsistent_with_the_first_write_only),
    };

    return drivers_test_main(argc, argv, "qcow2 and QEMU", tests, ARRAY_SIZE(tests));
}
