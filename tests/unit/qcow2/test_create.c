/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: images that are made or made larger here are sound for QEMU, whatever their
 * shape; options that cannot be are refused in its words.
 */
#include "base/limits.h"
#include "qcow2_test.h"
#include <sys/stat.h>

static void co_create_refused(const struct qcow2_create_opts *o, const char *words)
{
    struct err err = ERR_INIT;
    struct node *file;

    make_file(work_path("c.qcow2"), 0);
    file = co_test_open("{'driver': 'file', 'filename': '%s'}", work_path("c.qcow2"));
    assert_false(co_qcow2_create(file, o, &err));
    co_node_unref(file);
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

CO_TEST(empty_images_of_every_shape)
{
    static const uint64_t sizes[] = { 0, 1, 512, MiB, 100 * MiB + 1024, 127 * GiB };

    for (uint32_t cluster = 512; cluster <= 2 * MiB; cluster *= 4) {
        for (uint32_t bits = 1; bits <= 64; bits *= 2) {
            uint64_t size = sizes[(cluster + bits) % ARRAY_SIZE(sizes)];
            struct qcow2_create_opts o = { .size = size, .cluster_size = cluster,
                                           .refcount_bits = bits };

            co_make_image("c.qcow2", &o);
            expect_clean("c.qcow2", false);
            must_run("qemu-img info c.qcow2 | grep 'virtual size.*(%" PRIu64 " bytes)'",
                     align_up(size, 512));
        }
    }
    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB, .version = 2 });
    expect_clean("c.qcow2", false);
}

/* As large as can be, too: an L2 table maps half of what one of other images does. */
CO_TEST(empty_images_with_subclusters)
{
    for (uint32_t cluster = 16384, bits = 14; cluster <= 2 * MiB; cluster *= 2, bits++) {
        uint64_t most = LIMIT_QCOW2_L1_BYTES / 8 << (2 * bits - 4);
        struct qcow2_create_opts o = { .size = bits % 2 ? most : 100 * MiB + 512,
                                       .cluster_size = cluster, .extended_l2 = true };

        co_make_image("c.qcow2", &o);
        must_run("qemu-img info c.qcow2 | grep 'virtual size.*(%" PRIu64 " bytes)'", o.size);
        must_run("qemu-img info c.qcow2 | grep 'extended l2: true'");
        if (o.size != most)
            expect_clean("c.qcow2", false);

        struct node *n = co_open_image("c.qcow2", "");

        co_fill(n, o.size - 700, 700, 1);
        co_expect(n, o.size - 700, 700, 1);
        co_node_unref(n);
        must_run("qemu-io -f qcow2 -c 'read -P 1 %" PRIu64 " 512' c.qcow2", o.size - 512);
        assert_null(strstr(run_output(), "failed"));
        o.size = most + 512;
        co_create_refused(&o, "try a larger cluster size");
    }
}

CO_TEST(the_header_names_the_backing_file_and_its_format)
{
    make_file(work_path("base.raw"), MiB);
    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB, .backing_file = "base.raw",
                                                          .backing_format = "raw" });
    must_run("qemu-img info c.qcow2");
    assert_non_null(strstr(run_output(), "backing file: base.raw"));
    assert_non_null(strstr(run_output(), "backing file format: raw"));

    struct node *n = co_open_image("c.qcow2", "");
    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    node_get_info(n, info);
    assert_string_equal(info->backing_file, "base.raw");
    assert_string_equal(info->backing_format, "raw");
    assert_int_equal(info->cluster_size, 65536);
    assert_false(info->zero_init);
    co_node_unref(n);
}

CO_TEST(what_was_in_the_file_is_gone)
{
    struct node *n;

    must_run("yes | head -c 3000000 >c.qcow2");
    n = co_test_open("{'driver': 'file', 'filename': '%s'}", work_path("c.qcow2"));
    assert_true(co_qcow2_create(n, &(struct qcow2_create_opts){ .size = MiB }, NULL));
    co_node_unref(n);
    expect_clean("c.qcow2", false);
    must_run("test $(stat -c %%s c.qcow2) = 262144");

    /* A device cannot be resized: its old content stays behind the image, and does
     * not come through. */
    must_run("yes | head -c 3145728 >c.qcow2");
    n = co_test_open("{'driver': 'raw', 'size': 3145728, 'file': {'driver': 'file', "
                     "'filename': '%s'}}", work_path("c.qcow2"));
    assert_true(co_qcow2_create(n, &(struct qcow2_create_opts){ .size = MiB }, NULL));
    co_node_unref(n);
    expect_clean("c.qcow2", false);
    n = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'raw', 'size': 3145728, 'file': "
                     "{'driver': 'file', 'filename': '%s'}}}", work_path("c.qcow2"));
    co_fill(n, 1000, 1000, 1);
    co_expect(n, 0, 1000, 0);
    co_expect(n, 2000, 100000, 0);
    co_node_unref(n);
    expect_clean("c.qcow2", false);
}

CO_TEST(options_that_cannot_be)
{
    static char long_name[1100];

    memset(long_name, 'x', sizeof(long_name) - 1);
    co_create_refused(&(struct qcow2_create_opts){ .cluster_size = 256 }, "Cluster size must be");
    co_create_refused(&(struct qcow2_create_opts){ .cluster_size = 3000 }, "Cluster size must be");
    co_create_refused(&(struct qcow2_create_opts){ .cluster_size = 4 * MiB }, "Cluster size");
    co_create_refused(&(struct qcow2_create_opts){ .refcount_bits = 3 }, "Refcount width");
    co_create_refused(&(struct qcow2_create_opts){ .refcount_bits = 128 }, "Refcount width");
    co_create_refused(&(struct qcow2_create_opts){ .version = 4 }, "version 4");
    co_create_refused(&(struct qcow2_create_opts){ .version = 2, .refcount_bits = 8 },
                      "Different refcount widths");
    co_create_refused(&(struct qcow2_create_opts){ .size = 200 * GiB, .cluster_size = 512 },
                      "try a larger cluster size");
    co_create_refused(&(struct qcow2_create_opts){ .size = UINT64_MAX }, "too large");
    co_create_refused(&(struct qcow2_create_opts){ .extended_l2 = true, .cluster_size = 8192 },
                      "cluster sizes of at least 16384 bytes");
    co_create_refused(&(struct qcow2_create_opts){ .extended_l2 = true, .version = 2 },
                      "compatibility level 1.1");
    co_create_refused(&(struct qcow2_create_opts){ .size = 1, .backing_file = "a" }, "format");
    co_create_refused(&(struct qcow2_create_opts){ .size = 1, .backing_file = long_name,
                                                   .backing_format = "raw" }, "longer than 1023");
    long_name[1000] = 0;
    co_create_refused(&(struct qcow2_create_opts){ .size = 1, .backing_file = long_name,
                                                   .cluster_size = 512, .backing_format = "raw" },
                      "does not fit into a cluster");
}

/* ---- resizing ------------------------------------------------------------ */

static void co_grow(struct node *n, uint64_t size)
{
    struct err err = ERR_INIT;

    if (!co_node_resize(n, size, &err))
        fail_msg("%s", err.text);
    assert_int_equal(n->size, size);
}

CO_TEST(disks_grow_and_read_zeros_behind_their_old_end)
{
    struct node *n;

    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB + 512 });
    n = co_open_image("c.qcow2", "");
    co_fill(n, 0, MiB + 512, 1);
    co_grow(n, 3 * MiB);
    co_expect(n, 0, MiB + 512, 1);
    co_expect(n, MiB + 512, 2 * MiB - 512, 0);
    co_fill(n, 3 * MiB - 4096, 4096, 2);
    co_node_unref(n);
    expect_clean("c.qcow2", false);
    n = co_open_image("c.qcow2", "");
    assert_int_equal(n->size, 3 * MiB);
    co_expect(n, 0, MiB + 512, 1);
    co_expect(n, 3 * MiB - 4096, 4096, 2);
    co_node_unref(n);
}

/* The L1 table is moved to a longer place, for 512-byte clusters again and again. */
CO_TEST(the_l1_table_grows_with_the_disk)
{
    static const uint32_t refcount_bits[] = { 1, 16, 64 };

    for (size_t i = 0; i < ARRAY_SIZE(refcount_bits); i++) {
        struct node *n;
        uint64_t size = 64 * KiB;

        co_make_image("c.qcow2", &(struct qcow2_create_opts){
            .size = size, .cluster_size = 512, .refcount_bits = refcount_bits[i] });
        n = co_open_image("c.qcow2", "");
        for (unsigned char byte = 1; size < 2 * GiB; byte++) {
            co_fill(n, size - 5000, 5000, byte);
            co_grow(n, size * 4 + 512);
            co_expect(n, size - 5000, 5000, byte);
            co_expect(n, size, 10000, 0);
            size = n->size;
        }
        co_node_unref(n);
        expect_clean("c.qcow2", false);
    }
}

CO_TEST(what_a_longer_backing_file_has_does_not_come_into_sight)
{
    struct node *n;

    make_file(work_path("base.raw"), 0);
    must_run("yes | head -c 3145728 >base.raw");
    co_make_image("c.qcow2", &(struct qcow2_create_opts){
        .size = MiB + 1024, .backing_file = "base.raw", .backing_format = "raw" });
    n = co_open_image("c.qcow2", "");
    co_fill(n, MiB, 512, 1);
    co_grow(n, 4 * MiB);
    co_expect(n, MiB, 512, 1);
    co_expect(n, MiB + 1024, 3 * MiB - 1024, 0);
    co_node_unref(n);
    expect_clean("c.qcow2", false);
    must_run("qemu-io -f qcow2 -c 'read -P 0 1049600 3144704' c.qcow2");
    assert_null(strstr(run_output(), "verification failed"));
}

CO_TEST(resizes_that_cannot_be)
{
    struct err err = ERR_INIT;
    struct node *n;

    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB, .cluster_size = 512 });
    n = co_open_image("c.qcow2", "");
    assert_false(co_node_resize(n, MiB + 1, &err));
    assert_non_null(strstr(err.text, "multiple of 512"));
    assert_false(co_node_resize(n, 128 * GiB + 512, &err));
    assert_non_null(strstr(err.text, "too many"));
    assert_true(co_node_resize(n, MiB, &err));
    co_node_unref(n);
    must_run("qemu-img create -q -f qcow2 -o compat=0.10 c.qcow2 1M && "
             "qemu-img snapshot -c s c.qcow2");
    n = co_open_image("c.qcow2", "");
    assert_false(co_node_resize(n, 2 * MiB, &err));
    assert_non_null(strstr(err.text, "snapshots"));
    co_node_unref(n);
}

/* ---- options, and what is told ------------------------------------------- */

CO_TEST(options_of_the_node)
{
    static const struct {
        const char *more, *words;
    } bad[] = {
        { "'encrypt': {'format': 'luks'}", "encrypted qcow2 images are not supported" },
        { "'data-file': 'x'", "can only be set for images with an external" },
        { "'overlap-check': 'some'", "does not accept value 'some'" },
        { "'overlap-check': 7", "Parameter 'overlap-check'" },
        { "'l2-cache-entry-size': 1000", "power of two" },
        { "'l2-cache-entry-size': 131072", "power of two" },
        { "'l2-cache-size': 2000000000", "may not exceed" },
        { "'cache-size': 1000, 'l2-cache-size': 2000", "l2-cache-size may not exceed cache-size" },
        { "'cache-size': 9, 'l2-cache-size': 2, 'refcount-cache-size': 1", "at the same time" },
    };
    struct node *n;

    co_make_image("c.qcow2", &(struct qcow2_create_opts){ .size = MiB });
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        co_open_refused(bad[i].words, "{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': "
                        "'%s'}, %s}", work_path("c.qcow2"), bad[i].more);
    n = co_open_image("c.qcow2", ", 'lazy-refcounts': true, 'overlap-check': 'all', "
                      "'cache-size': 1048576, 'cache-clean-interval': 60, "
                      "'pass-discard-snapshot': false, 'l2-cache-entry-size': 512");
    co_fill(n, 0, MiB, 1);
    co_node_unref(n);
    expect_clean("c.qcow2", false);
}

CO_TEST(format_specific_information_is_that_of_qemu_img)
{
    static const char *const options[] = {
        "", "-o compat=0.10", "-o compression_type=zstd,refcount_bits=8,lazy_refcounts=on",
    };

    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        struct node *n;
        json_t *ours, *theirs;

        must_run("qemu-img create -q -f qcow2 %s c.qcow2 1M && "
                 "qemu-img info --output=json c.qcow2 >info.json", options[i]);
        theirs = json_load_file(work_path("info.json"), 0, NULL);
        n = co_open_image("c.qcow2", "");
        ours = node_format_info(n);
        co_node_unref(n);
        assert_non_null(ours);
        assert_true(json_equal(ours, json_object_get(theirs, "format-specific")));
        json_decref(ours);
        json_decref(theirs);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_images_of_every_shape),
        cmocka_unit_test(empty_images_with_subclusters),
        cmocka_unit_test(the_header_names_the_backing_file_and_its_format),
        cmocka_unit_test(what_was_in_the_file_is_gone),
        cmocka_unit_test(options_that_cannot_be),
        cmocka_unit_test(disks_grow_and_read_zeros_behind_their_old_end),
        cmocka_unit_test(the_l1_table_grows_with_the_disk),
        cmocka_unit_test(what_a_longer_backing_file_has_does_not_come_into_sight),
        cmocka_unit_test(resizes_that_cannot_be),
        cmocka_unit_test(options_of_the_node),
        cmocka_unit_test(format_specific_information_is_that_of_qemu_img),
    };

    return drivers_test_main(argc, argv, "qcow2 create and resize", tests, ARRAY_SIZE(tests));
}
