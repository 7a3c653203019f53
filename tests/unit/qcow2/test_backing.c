/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: the backing file that an image names is opened when the rules allow it
 * (image_dirs.h), with the format that the image says, and else refused with a
 * sentence that tells what to do; chains end.
 */
#include "drivers/image_dirs.h"
#include "qcow2_test.h"
#include <unistd.h>

static void co_make_over(const char *name, const char *backing, const char *format)
{
    co_make_image(name, &(struct qcow2_create_opts){ .size = MiB, .cluster_size = 4096,
                                                     .backing_file = backing,
                                                     .backing_format = format });
}

static void co_refused(const char *name, const char *words)
{
    co_open_refused(words, "{'driver': 'qcow2', 'read-only': true, 'file': {'driver': 'file', "
                    "'filename': '%s'}}", work_path(name));
}

static void make_base(const char *name, unsigned char byte)
{
    static unsigned char data[MiB];

    memset(data, byte, sizeof(data));
    make_file(work_path(name), 0);
    file_write(work_path(name), 0, data, sizeof(data));
}

static void co_expect_backing(const char *name, unsigned char byte)
{
    struct node *n = co_open_image(name, ", 'read-only': true");

    co_expect(n, 0, MiB, byte);
    assert_non_null(node_backing(n));
    assert_true(node_read_only(node_backing(n)));
    co_node_unref(n);
}

CO_TEST(names_count_from_the_directory_of_the_image)
{
    must_run("mkdir -p dir/sub");
    make_base("base.raw", 1);
    make_base("dir/base.raw", 2);
    make_base("dir/sub/base.raw", 3);
    co_make_over("o.qcow2", "base.raw", "raw");
    co_expect_backing("o.qcow2", 1);
    co_make_over("dir/o.qcow2", "base.raw", "raw");
    co_expect_backing("dir/o.qcow2", 2);
    co_make_over("dir/o.qcow2", "sub/../sub/base.raw", "raw");
    co_expect_backing("dir/o.qcow2", 3);
    co_make_over("o.qcow2", work_path("dir/base.raw"), "raw");
    co_expect_backing("o.qcow2", 2);
    co_make_over("o.qcow2", "file:base.raw", "raw");
    co_expect_backing("o.qcow2", 1);
}

CO_TEST(what_lies_outside_is_refused_until_it_is_allowed)
{
    struct err err = ERR_INIT;

    must_run("mkdir -p in out && ln -sf ../out/base.raw in/link.raw");
    make_base("out/base.raw", 4);
    co_make_over("in/o.qcow2", "../out/base.raw", "raw");
    co_refused("in/o.qcow2", "allow it with --image-dir");
    co_make_over("in/abs.qcow2", work_path("out/base.raw"), "raw");
    co_refused("in/abs.qcow2", "lies outside the image's directory");
    co_make_over("in/linked.qcow2", "link.raw", "raw");
    co_refused("in/linked.qcow2", "lies outside the image's directory");
    co_make_over("in/passwd.qcow2", "/etc/passwd", "raw");
    co_refused("in/passwd.qcow2", "'/etc/passwd' as its backing file, which lies outside");

    assert_false(image_dirs_allow(work_path("no-such-dir"), &err));
    assert_true(image_dirs_allow(work_path("out"), &err));
    co_expect_backing("in/o.qcow2", 4);
    co_expect_backing("in/abs.qcow2", 4);
    co_expect_backing("in/linked.qcow2", 4);
    /* A name that only begins like an allowed one. */
    must_run("mkdir -p outside");
    make_base("outside/base.raw", 5);
    co_make_over("in/o.qcow2", "../outside/base.raw", "raw");
    co_refused("in/o.qcow2", "lies outside the image's directory");
}

CO_TEST(an_image_opened_through_a_link_has_two_directories)
{
    must_run("mkdir -p store names && ln -sf ../store/o.qcow2 names/o.qcow2");
    make_base("store/base.raw", 6);
    co_make_over("store/o.qcow2", work_path("store/base.raw"), "raw");
    co_expect_backing("names/o.qcow2", 6);
}

CO_TEST(names_that_are_no_files)
{
    static const struct {
        const char *name, *words;
    } names[] = {
        { "json:{\"driver\":\"null-co\"}", "an image may name files only" },
        { "http://example.org/x", "an image may name files only" },
        { "fat:rw:/etc", "an image may name files only" },
        { "nbd:localhost:10809", "an image may name files only" },
        { "nbd://localhost/", "images may not name servers here" },
        { "nbd+unix:///?socket=/tmp/x", "images may not name servers here" },
        { "missing.raw", "missing.raw': No such file or directory" },
        { "/dev/zero", "lies outside the image's directory" },
    };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        co_make_over("o.qcow2", names[i].name, "raw");
        co_refused("o.qcow2", names[i].words);
    }
    must_run("mkfifo -m 600 fifo && mkdir -p d");
    co_make_over("o.qcow2", "fifo", "raw");
    co_refused("o.qcow2", "to be a regular file");
    co_make_over("o.qcow2", "d", "raw");
    co_refused("o.qcow2", "o.qcow2'");
}

CO_TEST(formats_are_said_and_known)
{
    make_base("base.raw", 1);
    co_make_over("o.qcow2", "base.raw", "vmdk");
    co_refused("o.qcow2", "the format 'vmdk' of the backing file 'base.raw' is not supported");
    co_make_over("o.qcow2", "base.raw", "null-co");
    co_refused("o.qcow2", "the format 'null-co'");
    /* A name without a format, as old programs wrote it: in a header without
     * extensions. */
    must_run("qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 1M");
    unsigned char name[] = "base.raw", at[12] = { [7] = 200, [11] = 8 };

    file_write(work_path("v2.qcow2"), 200, name, 8);
    file_write(work_path("v2.qcow2"), 8, at, 12);
    co_refused("v2.qcow2", "the image names the backing file 'base.raw' but not its format");
}

CO_TEST(the_option_backing_goes_before_the_name)
{
    struct node *base, *n;

    make_base("base.raw", 1);
    make_base("other.raw", 2);
    co_make_over("o.qcow2", "missing.raw", "raw");
    n = co_open_image("o.qcow2", ", 'backing': null");
    assert_null(node_backing(n));
    co_expect(n, 0, MiB, 0);
    co_node_unref(n);
    n = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': '%s'}, 'backing': "
                     "{'driver': 'raw', 'file': {'driver': 'file', 'filename': '%s'}}}",
                     work_path("o.qcow2"), work_path("other.raw"));
    co_expect(n, 0, MiB, 2);
    co_node_unref(n);
    base = co_test_open("{'driver': 'file', 'filename': '%s', 'node-name': 'base', "
                        "'read-only': true}", work_path("base.raw"));
    n = co_open_image("o.qcow2", ", 'backing': 'base'");
    co_expect(n, 0, MiB, 1);
    co_node_unref(n);
    co_node_unref(base);
}

/* Zeros written over a backing file that is not open must hide it later. */
CO_TEST(zeros_hide_a_backing_file_that_is_not_open_now)
{
    struct node *n;

    make_base("base.raw", 1);
    co_make_over("o.qcow2", "base.raw", "raw");
    n = co_open_image("o.qcow2", ", 'backing': null, 'discard': 'unmap'");
    assert_int_equal(co_node_write_zeroes(n, 0, 8192, 0), 0);
    assert_int_equal(co_node_write_zeroes(n, 16384, 100, 0), 0);
    assert_int_equal(co_node_discard(n, 32768, 4096), 0);
    co_node_unref(n);
    n = co_open_image("o.qcow2", "");
    co_expect(n, 0, 8192, 0);
    co_expect(n, 8192, 8192, 1);
    co_expect(n, 16384, 4096, 0);
    co_expect(n, 32768, 4096, 0);
    co_expect(n, 36864, 4096, 1);
    co_node_unref(n);
    expect_clean("o.qcow2", false);
}

CO_TEST(chains_that_end_in_themselves)
{
    must_run("mkdir -p loop");
    co_make_over("loop/a.qcow2", "b.qcow2", "qcow2");
    co_make_over("loop/b.qcow2", "c.qcow2", "qcow2");
    co_make_over("loop/c.qcow2", "a.qcow2", "qcow2");
    co_refused("loop/a.qcow2", "is its own backing file, directly or through others");
    co_refused("loop/b.qcow2", "is its own backing file");
    co_make_over("loop/self.qcow2", "self.qcow2", "qcow2");
    co_refused("loop/self.qcow2", "is its own backing file");
    must_run("ln -f loop/self.qcow2 loop/hard.qcow2");
    co_make_over("loop/self.qcow2", "hard.qcow2", "qcow2");
    must_run("ln -f loop/self.qcow2 loop/hard.qcow2");
    co_refused("loop/self.qcow2", "is its own backing file");
}

CO_TEST(a_long_chain_reads_and_writes)
{
    enum { DEPTH = 120 };
    struct node *n;

    must_run("mkdir -p chain");
    make_base("chain/0", 7);
    co_make_over("chain/1", "0", "raw");
    for (int i = 2; i <= DEPTH; i++)
        co_make_over(test_text("chain/%d", i), test_text("%d", i - 1), "qcow2");
    n = co_open_image(test_text("chain/%d", DEPTH), "");
    co_expect(n, 0, MiB, 7);
    co_fill(n, 100, 10000, 8);
    co_expect(n, 0, 100, 7);
    co_expect(n, 100, 10000, 8);
    co_expect(n, 10100, 100000, 7);
    co_node_unref(n);
    expect_clean(test_text("chain/%d", DEPTH), false);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_count_from_the_directory_of_the_image),
        cmocka_unit_test(what_lies_outside_is_refused_until_it_is_allowed),
        cmocka_unit_test(an_image_opened_through_a_link_has_two_directories),
        cmocka_unit_test(names_that_are_no_files),
        cmocka_unit_test(formats_are_said_and_known),
        cmocka_unit_test(the_option_backing_goes_before_the_name),
        cmocka_unit_test(zeros_hide_a_backing_file_that_is_not_open_now),
        cmocka_unit_test(chains_that_end_in_themselves),
        cmocka_unit_test(a_long_chain_reads_and_writes),
    };

    return drivers_test_main(argc, argv, "qcow2 backing files", tests, ARRAY_SIZE(tests));
}
