/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: compressed writes make images that QEMU finds sound and reads the same, as
 * small as QEMU's, whatever the size of clusters and refcounts.
 * Method: data of all sorts written with REQ_COMPRESSED over random configurations, in
 * parallel, judged by qemu-img; then the corners, one by one. Writes of every kind
 * together are in test_model.c, power cuts in test_crash.c.
 */
#include "base/bytes.h"
#include "drivers/fault.h"
#include "drivers/qcow2/codec.h"
#include "qcow2_test.h"
#include <sys/stat.h>
#include <unistd.h>

/* ---- random configurations ----------------------------------------------- */

static const char *const type_names[] = { "zlib", "zstd" };

struct batch {
    struct node *n;
    unsigned char *data;
    uint64_t size, step, next;
};

/* Text repeats with a period longer than QEMU's window, zeros, and noise. */
static unsigned char *make_data(uint64_t size, uint64_t *seed)
{
    unsigned char *data = xzalloc(size);

    for (uint64_t off = 0; off < size;) {
        uint64_t len = MIN(1 + test_random(seed, 200000), size - off);
        unsigned kind = (unsigned)test_random(seed, 4);

        for (uint64_t i = off; kind && i < off + len; i++)
            data[i] = kind == 1 || i < 20000 ? (unsigned char)test_random(seed, 256)
                    : kind == 2              ? data[i - 20000]
                                             : (unsigned char)(i / 64);
        off += len;
    }
    return data;
}

static void co_write_steps(void *arg)
{
    struct batch *b = arg;

    while (b->next < b->size) {
        uint64_t off = b->next, len = MIN(b->step, b->size - off);

        b->next += len;
        assert_int_equal(co_node_pwrite(b->n, off, len, b->data + off,
                                        REQ_COMPRESSED | (off / b->step % 2 ? REQ_BULK : 0)), 0);
    }
}

static void co_write_all(struct node *n, unsigned char *data, uint64_t size, uint64_t step)
{
    struct batch b = { n, data, size, step, 0 };

    co_together(5, co_write_steps, &b);
}

static void expect_content(const char *image, const unsigned char *data, uint64_t size)
{
    make_file(work_path("want.raw"), 0);
    file_write(work_path("want.raw"), 0, data, size);
    expect_clean(image, false);
    expect_same(image, "want.raw");
}

static void co_expect_data(struct node *n, const unsigned char *data, uint64_t size)
{
    CLEANUP(free) unsigned char *got = xmalloc(size);

    assert_int_equal(co_node_pread(n, 0, size, got, 0), 0);
    assert_memory_equal(got, data, size);
}

static void co_one_configuration(uint64_t seed)
{
    unsigned cluster_bits = 9 + (unsigned)test_random(&seed, 13);
    uint64_t cluster = 1ULL << cluster_bits;
    uint64_t size = align_up(1 + test_random(&seed, cluster_bits < 12 ? 400000 : 6 * MiB), 512);
    struct qcow2_create_opts o = {
        .size = size, .cluster_size = (uint32_t)cluster,
        .refcount_bits = 1U << test_random(&seed, 7),
        .compression = (enum qcow2_compression)test_random(&seed, 2),
        .extended_l2 = cluster_bits >= QCOW2_EXTL2_MIN_CLUSTER_BITS && test_random(&seed, 2),
    };
    CLEANUP(free) unsigned char *data = make_data(size, &seed);
    struct node *n;

    print_message("cluster %llu, size %llu, refcount %u bits, %s%s\n", (unsigned long long)cluster,
                  (unsigned long long)size, o.refcount_bits, type_names[o.compression],
                  o.extended_l2 ? ", extended" : "");
    co_make_image("c.qcow2", &o);
    for (int pass = 0; pass < 2; pass++) {
        n = co_open_image("c.qcow2", ", 'discard': 'unmap'");
        co_write_all(n, data, size, cluster * (1 + test_random(&seed, 20)));
        co_expect_data(n, data, size);
        co_node_unref(n);
        expect_content("c.qcow2", data, size);
        /* The second time over what is there. */
        free(data);
        data = make_data(size, &seed);
    }
}

CO_TEST(images_of_every_configuration_are_sound)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    uint64_t seed = test_seed(20261127);

    for (long i = 0; i < (rounds ? atol(rounds) : 12); i++) {
        alarm(120);
        co_one_configuration(seed + (uint64_t)i);
    }
}

/* ---- corners ------------------------------------------------------------- */

CO_TEST(only_whole_clusters_and_only_where_it_can_be)
{
    CLEANUP(free) unsigned char *data = xzalloc(3 * 65536);
    struct node_info info;
    struct node *n;

    data[0] = 1;
    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = 2 * 65536 + 512 });
    n = co_open_image("c.qcow2", "");
    node_get_info(n, &info);
    assert_true(info.can_compress);
    assert_int_equal(co_node_pwrite(n, 0, 512, data, REQ_COMPRESSED), -EINVAL);
    assert_int_equal(co_node_pwrite(n, 512, 65536, data, REQ_COMPRESSED), -EINVAL);
    assert_int_equal(co_node_pwrite(n, 0, 65536 + 512, data, REQ_COMPRESSED), -EINVAL);
    assert_int_equal(co_node_pwrite(n, 2 * 65536, 512, data, REQ_COMPRESSED), 0);
    assert_int_equal(co_node_pwrite(n, 0, 2 * 65536 + 512, data, REQ_COMPRESSED), 0);
    assert_int_equal(co_status(n, 0, 65536).flags,
                     STATUS_ALLOCATED | STATUS_DATA | STATUS_COMPRESSED);
    co_node_unref(n);
    expect_clean("c.qcow2", false);

    make_file(work_path("f.raw"), MiB);
    n = co_test_open("{'driver': 'file', 'filename': '%s'}", work_path("f.raw"));
    node_get_info(n, &info);
    assert_false(info.can_compress);
    assert_int_equal(co_node_pwrite(n, 0, 65536, data, REQ_COMPRESSED), -ENOTSUP);
    co_node_unref(n);
}

CO_TEST(zeros_and_noise_are_not_compressed)
{
    CLEANUP(free) unsigned char *data = xzalloc(2 * 65536);
    uint64_t seed = 1;
    struct node *n;

    for (int i = 0; i < 65536; i++)
        data[65536 + i] = (unsigned char)test_random(&seed, 256);
    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB });
    n = co_open_image("c.qcow2", "");
    assert_int_equal(co_node_pwrite(n, 0, 2 * 65536, data, REQ_COMPRESSED), 0);
    assert_int_equal(co_status(n, 0, 65536).flags, STATUS_ZERO);
    assert_int_equal(co_status(n, 65536, 65536).flags & ~STATUS_OFFSET,
                     STATUS_ALLOCATED | STATUS_DATA);
    co_expect_data(n, data, 2 * 65536);
    co_node_unref(n);
    expect_clean("c.qcow2", false);

    /* Over a backing file zeros hide what it has. */
    must_run("truncate -s 1M base.raw && qemu-io -f raw -c 'write -P 7 0 1M' base.raw");
    co_make_image("c.qcow2", &(struct qcow2_create_opts){
        .size = MiB, .backing_file = "base.raw", .backing_format = "raw" });
    n = co_open_image("c.qcow2", "");
    assert_int_equal(co_node_pwrite(n, 0, 2 * 65536, data, REQ_COMPRESSED), 0);
    assert_int_equal(co_status(n, 0, 65536).flags, STATUS_ALLOCATED | STATUS_ZERO);
    co_expect_data(n, data, 2 * 65536);
    co_expect(n, 2 * 65536, 65536, 7);
    co_node_unref(n);
    expect_clean("c.qcow2", false);
}

/* Refcounts of one and two bits: one and three compressed clusters a host cluster. */
CO_TEST(narrow_refcounts_do_not_overflow)
{
    for (uint32_t bits = 1; bits <= 4; bits *= 2) {
        CLEANUP(free) unsigned char *data = xmalloc(MiB);
        uint64_t most = (1U << bits) - 1;
        struct node *n;
        struct stat st;

        memset(data, 'x', MiB);
        co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB, .cluster_size = 4096,
                                                              .refcount_bits = bits });
        n = co_open_image("c.qcow2", "");
        co_write_all(n, data, MiB, 4096);
        co_node_unref(n);
        expect_content("c.qcow2", data, MiB);
        assert_int_equal(stat(work_path("c.qcow2"), &st), 0);
        /* All that fits is shared, and nothing more. */
        assert_in_range((uint64_t)st.st_size / 4096, 256 / MIN(most, 15ULL),
                        div_round_up(256, most) + 12);
    }
}

/* Overwritten and discarded, packed clusters lose their references one by one, and
 * what they leave is used again. */
CO_TEST(space_comes_back)
{
    CLEANUP(free) unsigned char *data = xmalloc(2 * MiB);
    uint64_t seed = 3;
    struct node *n;
    struct stat st;

    for (int i = 0; i < 2 * (int)MiB; i++)
        data[i] = i % 4096 < 2000 ? (unsigned char)test_random(&seed, 256) : 'y';
    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = 2 * MiB, .cluster_size = 4096 });
    n = co_open_image("c.qcow2", ", 'discard': 'unmap'");
    for (int round = 0; round < 12; round++) {
        co_write_all(n, data, 2 * MiB, 16384);
        assert_int_equal(co_node_flush(n), 0);
        if (round % 3 == 2)
            assert_int_equal(co_node_discard(n, MiB, MiB), 0);
        assert_int_equal(co_node_flush(n), 0);
    }
    co_write_all(n, data, 2 * MiB, 65536);
    co_expect_data(n, data, 2 * MiB);
    co_node_unref(n);
    expect_content("c.qcow2", data, 2 * MiB);
    assert_int_equal(stat(work_path("c.qcow2"), &st), 0);
    assert_true(st.st_size < 5 * (off_t)MiB);
}

/* The data as one file, against QEMU's own conversion of it. zstd is set to be faster. */
CO_TEST(as_small_as_qemu_makes_it)
{
    for (int type = 0; type < 2; type++) {
        uint64_t seed = 11, size = 8 * MiB;
        CLEANUP(free) unsigned char *data = make_data(size, &seed);
        struct stat ours, theirs;
        struct node *n;

        co_make_image("c.qcow2", &(struct qcow2_create_opts){
            .size = size, .compression = (enum qcow2_compression)type });
        n = co_open_image("c.qcow2", "");
        co_write_all(n, data, size, MiB);
        co_node_unref(n);
        expect_content("c.qcow2", data, size);
        must_run("qemu-img convert -c -f raw -O qcow2 -o compression_type=%s want.raw q.qcow2",
                 type_names[type]);
        assert_int_equal(stat(work_path("c.qcow2"), &ours), 0);
        assert_int_equal(stat(work_path("q.qcow2"), &theirs), 0);
        assert_true((double)ours.st_size < (type ? 1.1 : 1.0) * (double)theirs.st_size + 65536);
    }
}

CO_TEST(entries_say_what_was_written)
{
    uint64_t seed = 5, v;

    for (int i = 0; i < 20000; i++) {
        struct qcow2_geometry g = { .cluster_bits = (uint8_t)(9 + test_random(&seed, 13)),
                                    .version = 3 };
        uint32_t bytes = 1 + (uint32_t)test_random(&seed, (1ULL << g.cluster_bits) - 1);
        uint64_t host = test_random(&seed, 1ULL << (20 + test_random(&seed, 37)));
        struct qcow2_l2_entry e;

        if (!qcow2_compressed_encode(&g, host, bytes, &v)) {
            assert_true(host + bytes > 1ULL << MIN(qcow2_compressed_shift(&g), 56U));
            continue;
        }
        assert_true(qcow2_l2_decode(&g, v, &e));
        assert_int_equal(e.kind, QCOW2_COMPRESSED_KIND);
        assert_int_equal(e.host, host);
        assert_in_range(e.compressed_bytes, bytes, bytes + 511);
        assert_int_equal((e.host + e.compressed_bytes) % 512, 0);
    }
}

/* What other encoders leave: no end mark, more data than a cluster, and rubbish. */
CO_TEST(odd_streams_are_unpacked_as_far_as_they_go)
{
    struct qcow2_codec *c = qcow2_codec_new();
    unsigned char data[8192], packed[9000], out[8192];

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (unsigned char)(i / 16 * 7);
    for (int type = 0; type < 2; type++) {
        int64_t n = qcow2_codec_pack(c, (enum qcow2_compression)type, data, sizeof(data), packed,
                                     sizeof(packed));

        assert_in_range(n, 1, sizeof(data));
        memset(packed + n, 0xa5, 100);
        assert_int_equal(qcow2_codec_unpack(c, (enum qcow2_compression)type, packed,
                                            (size_t)n + 100, out, sizeof(out)), 0);
        assert_memory_equal(out, data, sizeof(data));
        /* Only the first half is wanted. */
        assert_int_equal(qcow2_codec_unpack(c, (enum qcow2_compression)type, packed, (size_t)n,
                                            out, sizeof(out) / 2), 0);
        assert_memory_equal(out, data, sizeof(data) / 2);
        assert_int_equal(qcow2_codec_unpack(c, (enum qcow2_compression)type, packed,
                                            (size_t)n / 2, out, sizeof(out)), -EIO);
        assert_int_equal(qcow2_codec_unpack(c, (enum qcow2_compression)type, data, 4000, out,
                                            sizeof(out)), -EIO);
        assert_int_equal(qcow2_codec_pack(c, (enum qcow2_compression)type, data, sizeof(data),
                                          packed, (size_t)n / 2), 0);
    }
    qcow2_codec_free(c);
}

CO_TEST(a_failed_write_leaves_nothing_behind)
{
    struct fault_rule rule = { .op = FAULT_WRITE, .error = -EIO, .once = true };
    CLEANUP(free) unsigned char *data = xmalloc(MiB);
    struct node *fault, *n;

    memset(data, 'z', MiB);
    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB });
    fault = co_test_open("{'driver': 'fault', 'node-name': 'f', 'file': {'driver': 'file', "
                         "'filename': '%s'}}", work_path("c.qcow2"));
    n = co_test_open("{'driver': 'qcow2', 'file': 'f'}");
    assert_int_equal(co_node_pwrite(n, 0, 65536, data, REQ_COMPRESSED), 0);
    for (int i = 0; i < 3; i++) {
        fault_add_rule(fault, &rule);
        assert_int_equal(co_node_pwrite(n, 65536, 65536, data, REQ_COMPRESSED), -EIO);
    }
    co_expect(n, 0, 65536, 'z');
    co_expect(n, 65536, 65536, 0);
    assert_int_equal(co_node_pwrite(n, 65536, MiB - 65536, data, REQ_COMPRESSED), 0);
    co_node_unref(n);
    co_node_unref(fault);
    expect_content("c.qcow2", data, MiB);
}

/* Driver raw passes it on where its clusters are the image's. */
CO_TEST(through_a_raw_node)
{
    static const struct { const char *part; bool can; } parts[] = {
        { "", true }, { ", 'offset': 65536", true }, { ", 'offset': 4096", false },
        { ", 'offset': 65536, 'size': 131072", true }, { ", 'size': 70000", false },
    };
    unsigned char data[65536];

    memset(data, 'x', sizeof(data));
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
        struct node_info info;
        struct node *n;

        co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB + 1024 });
        n = co_test_open("{'driver': 'raw'%s, 'file': {'driver': 'qcow2', 'file': {'driver': "
                         "'file', 'filename': '%s'}}}", parts[i].part, work_path("c.qcow2"));
        node_get_info(n, &info);
        assert_int_equal(info.can_compress, parts[i].can);
        assert_int_equal(co_node_pwrite(n, 0, 65536, data, REQ_COMPRESSED),
                         parts[i].can ? 0 : -ENOTSUP);
        if (parts[i].can)
            assert_int_equal(co_node_pwrite(n, align_down(n->size - 1, 65536),
                                            (n->size - 1) % 65536 + 1, data, REQ_COMPRESSED), 0);
        co_expect(n, 0, 65536, parts[i].can ? 'x' : 0);
        co_node_unref(n);
        expect_clean("c.qcow2", false);
        must_run("qemu-img check -f qcow2 --output=json c.qcow2");
        assert_int_equal(strstr(run_output(), "compressed-clusters\": 2") != NULL, parts[i].can);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(images_of_every_configuration_are_sound),
        cmocka_unit_test(only_whole_clusters_and_only_where_it_can_be),
        cmocka_unit_test(zeros_and_noise_are_not_compressed),
        cmocka_unit_test(narrow_refcounts_do_not_overflow),
        cmocka_unit_test(space_comes_back),
        cmocka_unit_test(as_small_as_qemu_makes_it),
        cmocka_unit_test(entries_say_what_was_written),
        cmocka_unit_test(odd_streams_are_unpacked_as_far_as_they_go),
        cmocka_unit_test(a_failed_write_leaves_nothing_behind),
        cmocka_unit_test(through_a_raw_node),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 pack", tests, ARRAY_SIZE(tests));
}
