/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: guest data in a file of its own, as QEMU does it: read and written by both
 * in turn; a raw data file reads as the disk at any time; the file is found by the
 * same rules as a backing file; and bytes are on the disk before an entry says so.
 */
#include "base/mem.h"
#include "drivers/fault.h"
#include "drivers/qcow2/format.h"
#include "qcow2_test.h"
#include <sys/stat.h>

static uint64_t file_bytes(const char *name)
{
    struct stat st;

    assert_int_equal(stat(work_path(name), &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void co_refused(const char *name, const char *more, const char *words)
{
    co_open_refused(words, "{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': '%s'}%s}",
                    work_path(name), more);
}

/* Patterns by QEMU, by us over them, and by QEMU again. */
static void co_take_turns(bool raw)
{
    struct node *n;

    must_run("qemu-img create -q -f qcow2 -o data_file=d.data,data_file_raw=%s d.qcow2 9M && "
             "qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 4000000 500000' "
             "-c 'write -z 64k 128k' -c 'discard 512k 64k' d.qcow2", raw ? "on" : "off");
    n = co_open_image("d.qcow2", ", 'discard': 'unmap'");
    co_expect(n, 0, 64 * KiB, 1);
    co_expect(n, 64 * KiB, 128 * KiB, 0);
    co_expect(n, 4000000, 500000, 2);
    co_expect(n, 6 * MiB, 3 * MiB, 0);
    co_fill(n, 5, 100000, 3);                      /* cluster 0, and one that is zero */
    co_fill(n, 6 * MiB + 1000, 3000, 4);
    co_fill(n, 9 * MiB - 700, 700, 5);             /* the last one */
    assert_int_equal(co_node_write_zeroes(n, 4 * MiB, 100000, REQ_MAY_UNMAP), 0);
    assert_int_equal(co_node_discard(n, 256 * KiB, 128 * KiB), 0);

    struct block_status st = co_status(n, 6 * MiB, 64 * KiB);

    assert_int_equal(st.flags, STATUS_ALLOCATED | STATUS_DATA | STATUS_OFFSET);
    assert_int_equal(st.host_off, 6 * MiB);
    assert_ptr_equal(st.file, edge_node(n->data_file));
    co_node_unref(n);
    expect_clean("d.qcow2", false);
    must_run("qemu-io -f qcow2 -c 'read -P 1 0 5' -c 'read -P 3 5 100000' "
             "-c 'read -P 0 100005 96603' -c 'read -P 1 192k 64k' -c 'read -P 0 256k 128k' "
             "-c 'read -P 0 4M 100000' -c 'read -P 4 6292456 3000' -c 'read -P 5 9436484 700' "
             "-c 'write -P 6 1M 1M' d.qcow2 | tee o; ! grep -i fail o");
    assert_int_equal(work_size("d.data"), 9 * MiB);
    if (raw)
        expect_same("d.qcow2", "d.data");
    n = co_open_image("d.qcow2", "");
    co_expect(n, MiB, MiB, 6);
    co_node_unref(n);
}

CO_TEST(qemus_images_in_turns)
{
    co_take_turns(false);
    co_take_turns(true);
}

CO_TEST(images_of_ours_are_qemus_too)
{
    struct qcow2_create_opts o = { .size = 3 * MiB, .data_file = "o.data" };
    struct err err = ERR_INIT;
    struct node *n;

    for (int raw = 0; raw < 2; raw++) {
        o.data_file_raw = raw;
        must_run("rm -f o.data");
        make_file(work_path("o.data"), 3 * MiB);
        co_make_image("o.qcow2", &o);
        must_run("qemu-img info -f qcow2 o.qcow2 | tr '\\n' ' ' | "
                 "grep 'data file: o.data *data file raw: %s'", raw ? "true" : "false");
        n = co_open_image("o.qcow2", "");
        co_fill(n, MiB, 12345, 7);
        if (!co_node_resize(n, 5 * MiB, &err))
            fail_msg("%s", err.text);
        assert_int_equal(work_size("o.data"), 5 * MiB);
        co_fill(n, 4 * MiB, MiB, 8);
        co_node_unref(n);
        expect_clean("o.qcow2", false);
        assert_true(work_size("o.qcow2") < 2 * MiB);
        must_run("qemu-io -f qcow2 -c 'write -P 9 0 64k' -c 'read -P 7 1M 12345' "
                 "-c 'read -P 8 4M 1M' o.qcow2 | tee o; ! grep -i fail o");
        if (raw)
            expect_same("o.qcow2", "o.data");
    }

    must_run("rm -f o.data");
    make_file(work_path("o.data"), 3 * MiB);
    file_write(work_path("o.data"), 2 * MiB, "stale", 5);
    o.size = 2 * MiB;                /* behind its end the file has something else */
    o.data_file_raw = true;
    co_make_image("o.qcow2", &o);
    n = co_open_image("o.qcow2", "");
    assert_true(co_node_resize(n, 3 * MiB, &err));
    co_expect(n, 2 * MiB, MiB, 0);
    co_fill(n, 0, 3 * MiB, 4);
    if (!co_node_resize(n, MiB + 512, &err))
        fail_msg("%s", err.text);
    assert_int_equal(work_size("o.data"), MiB + 512);
    assert_true(co_node_resize(n, 2 * MiB, &err));
    co_expect(n, 0, MiB + 512, 4);
    co_expect(n, MiB + 512, MiB - 512, 0);
    co_node_unref(n);
    expect_clean("o.qcow2", false);
    expect_same("o.qcow2", "o.data");

    /* Far behind its end, where no table is. */
    must_run("rm -f o.data && truncate -s 3M o.data && truncate -s 1G o.data");
    file_write(work_path("o.data"), 900 * MiB, "stale", 5);
    o.size = MiB;
    o.cluster_size = 4096;
    co_make_image("o.qcow2", &o);
    n = co_open_image("o.qcow2", "");
    assert_true(co_node_resize(n, 1024 * MiB, &err));
    co_node_unref(n);
    expect_same("o.qcow2", "o.data");
}

CO_TEST(the_data_file_is_found_by_the_rules)
{
    struct qcow2_create_opts o = { .size = MiB, .data_file = "r.data" };
    struct node *n;

    must_run("mkdir -p in && rm -f r.data");
    co_make_image("in/r.qcow2", &o);
    co_refused("in/r.qcow2", "", "data file '");
    must_run("qemu-img create -q -f raw in/r.data 1M && qemu-img create -q -f raw other 1M");
    n = co_open_image("in/r.qcow2", "");             /* from the image's directory */
    co_fill(n, 0, 4096, 1);
    co_node_unref(n);
    must_run("qemu-io -r -f raw -c 'read -P 1 0 4k' in/r.data");
    n = co_open_image("in/r.qcow2", test_text(", 'data-file': {'driver': 'file', 'filename': "
                                              "'%s'}", work_path("other")));
    co_expect(n, 0, 4096, 0);
    co_node_unref(n);

    o.data_file = "../other";
    co_make_image("in/r.qcow2", &o);
    co_refused("in/r.qcow2", "", "as its data file, which lies outside the image's directory");
    o.data_file = "r.qcow2";
    co_make_image("in/r.qcow2", &o);
    co_refused("in/r.qcow2", "", "names itself as its data file");
    o.data_file = "json:{}";
    co_make_image("in/r.qcow2", &o);
    co_refused("in/r.qcow2", "", "may name files only: say the option 'data-file'");
    o.data_file = NULL;
    co_make_image("in/r.qcow2", &o);
    co_refused("in/r.qcow2", test_text(", 'data-file': {'driver': 'file', 'filename': '%s'}",
                                       work_path("other")),
               "can only be set for images with an external data file");
}

CO_TEST(what_cannot_be_made_is_refused)
{
    static const struct {
        struct qcow2_create_opts o;
        const char *words;
    } bad[] = {
        { { .size = MiB, .data_file_raw = true }, "requires data-file" },
        { { .size = MiB, .data_file = "d", .version = 2 }, "compatibility level 1.1" },
        { { .size = MiB, .data_file = "" }, "empty" },
        { { .size = MiB, .data_file = "d", .data_file_raw = true, .backing_file = "b",
            .backing_format = "raw" }, "cannot be used at the same time" },
    };
    struct node *file;

    make_file(work_path("bad"), 0);
    file = co_test_open("{'driver': 'file', 'filename': '%s'}", work_path("bad"));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct err err = ERR_INIT;

        assert_false(co_qcow2_create(file, &bad[i].o, &err));
        if (!strstr(err.text, bad[i].words))
            fail_msg("'%s' has no '%s'", err.text, bad[i].words);
    }
    co_node_unref(file);
}

CO_TEST(the_data_file_is_locked_as_the_image_is)
{
    struct node *n;

    must_run("rm -f l.data");
    make_file(work_path("l.data"), MiB);
    co_make_image("l.qcow2", &(struct qcow2_create_opts){ .size = MiB, .data_file = "l.data" });
    n = co_open_image("l.qcow2", "");
    must_run("! qemu-io -f raw -c 'write 0 512' l.data");
    co_node_unref(n);
    must_run("qemu-io -f raw -c 'write 0 512' l.data");
    n = co_open_image("l.qcow2", ", 'read-only': true");
    assert_true(node_read_only(edge_node(n->data_file)));
    must_run("! qemu-io -f raw -c 'write 0 512' l.data");
    must_run("qemu-io -r -f qcow2 -c 'read 0 512' l.qcow2");
    co_node_unref(n);
}

/* Entries that may not be in such an image harm their own cluster alone. */
CO_TEST(a_cluster_in_another_place_is_an_error)
{
    uint8_t entry[8], head[48];
    uint64_t l1, l2;
    char buf[4096];
    struct node *n;

    make_file(work_path("e.data"), MiB);
    co_make_image("e.qcow2", &(struct qcow2_create_opts){ .size = MiB, .data_file = "e.data" });
    n = co_open_image("e.qcow2", "");
    co_fill(n, 0, MiB, 1);
    co_node_unref(n);
    file_read(work_path("e.qcow2"), 0, head, sizeof(head));
    l1 = load_be64(head + 40);
    file_read(work_path("e.qcow2"), l1, entry, sizeof(entry));
    l2 = load_be64(entry) & QCOW2_OFFSET_MASK;
    store_be64(entry, QCOW2_COPIED | 3 * 65536);
    file_write(work_path("e.qcow2"), l2 + 2 * 8, entry, sizeof(entry));
    store_be64(entry, QCOW2_COMPRESSED | 4 * 65536);
    file_write(work_path("e.qcow2"), l2 + 5 * 8, entry, sizeof(entry));
    n = co_open_image("e.qcow2", "");
    co_expect(n, 0, 2 * 65536, 1);
    co_expect(n, 3 * 65536, 2 * 65536, 1);
    assert_int_equal(co_node_pread(n, 2 * 65536, 4096, buf, 0), -EIO);
    assert_int_equal(co_node_pwrite(n, 2 * 65536, 4096, buf, 0), -EIO);
    assert_int_equal(co_node_pread(n, 5 * 65536, 4096, buf, 0), -EIO);
    assert_int_equal(co_node_pwrite(n, 5 * 65536, 4096, buf, 0), -EIO);
    co_expect(n, 6 * 65536, 65536, 1);
    co_node_unref(n);
}

/* I-Q1: while the data file has not said that the data is there, no entry goes out. */
CO_TEST(data_is_flushed_before_its_entry)
{
    struct fault_rule no_flush = { .op = FAULT_FLUSH, .error = -EIO };
    struct node *n, *fault;

    make_file(work_path("f.data"), MiB);
    co_make_image("f.qcow2", &(struct qcow2_create_opts){ .size = MiB, .data_file = "f.data" });
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'file': {'driver': 'file', "
                         "'filename': '%s'}}", work_path("f.data"));
    n = co_open_image("f.qcow2", ", 'data-file': 'fault'");
    co_fill(n, 0, 65536, 1);
    assert_int_equal(co_node_flush(n), 0);
    co_fill(n, 65536, 65536, 2);
    fault_add_rule(fault, &no_flush);
    assert_int_equal(co_node_flush(n), -EIO);
    assert_int_equal(co_node_flush(n), -EIO);       /* I-Q9 */
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("f.qcow2", true);
    n = co_open_image("f.qcow2", "");
    co_expect(n, 0, 65536, 1);
    co_expect(n, 65536, 65536, 0);
    co_node_unref(n);
}

/* The rest of a cluster that is a hole already is not written, and what another left there
 * does not show. */
CO_TEST(a_first_write_to_a_cluster_writes_what_is_needed)
{
    static const char *const options[] = { "", ",data_file_raw=on", ",extended_l2=on" };

    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        struct node *n;

        must_run("rm -f w.data && qemu-img create -q -f qcow2 -o data_file=w.data%s w.qcow2 9M",
                 options[i]);
        n = co_open_image("w.qcow2", "");
        for (uint64_t off = 0; off < 2 * MiB; off += 64 * KiB)
            co_fill(n, off + 8192, 4096, 7);
        co_fill(n, 3 * MiB + 5000, 10, 8);
        assert_int_equal(co_node_flush(n), 0);
        /* QEMU has written the first block, so the first cluster is no hole. */
        assert_true(file_bytes("w.data") <= 36 * 4096 + 64 * KiB);
        co_node_unref(n);
        must_run("qemu-io -f qcow2 -c 'read -P 0 0 8k' -c 'read -P 7 8k 4k' -c 'read -P 0 12k 60k' "
                 "-c 'read -P 8 3150728 10' -c 'read -P 0 3150738 50000' w.qcow2 | tee o; "
                 "! grep -i fail o");
        expect_clean("w.qcow2", false);
    }
    must_run("qemu-io -f raw -c 'write -P 9 4M 64k' w.data");
    struct node *n = co_open_image("w.qcow2", "");

    co_fill(n, 4 * MiB + 5000, 10, 8);
    co_expect(n, 4 * MiB, 5000, 0);
    co_expect(n, 4 * MiB + 5010, 60000 - 5010, 0);
    co_node_unref(n);
    must_run("qemu-io -f qcow2 -c 'read -P 0 4M 5000' -c 'read -P 0 4199314 60000' w.qcow2 "
             "| tee o; ! grep -i fail o");
}

static void co_write_first(void *arg)
{
    co_fill(arg, 4096 + 100, 100, 1);
}

static void co_write_beside(void *arg)
{
    co_fill(arg, 16384 + 100, 100, 2);
}

/* Of subclusters: around the first write there is nothing, around the other, which does not
 * wait for it, there is. */
CO_TEST(what_is_left_around_one_write_is_not_left_around_another)
{
    CLEANUP(free) void *rubbish = memset(xmalloc(8192), 9, 8192);
    struct crew crew = { 0 };
    struct node *n, *fault;

    must_run("rm -f b.data && qemu-img create -q -f qcow2 -o data_file=b.data,extended_l2=on "
             "b.qcow2 1M");
    file_write(work_path("b.data"), 16384, rubbish, 8192);
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'file': {'driver': 'file', "
                         "'filename': '%s'}}", work_path("b.data"));
    n = co_open_image("b.qcow2", ", 'data-file': 'fault'");
    fault_add_rule(fault, &(struct fault_rule){ .op = FAULT_WRITE, .hang = true, .once = true });
    crew_start(&crew, co_write_first, n);
    while (!fault_hung(fault))
        co_yield();
    crew_start(&crew, co_write_beside, n);
    while (fault_count(fault, FAULT_WRITE) < 2)
        co_yield();
    fault_release(fault);
    co_crew_wait(&crew);
    co_expect(n, 4096 + 100, 100, 1);
    co_expect(n, 4096 + 200, 16384 - 4096 - 100, 0);
    co_expect(n, 16384 + 100, 100, 2);
    co_expect(n, 16384 + 200, 65536, 0);
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("b.qcow2", false);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qemus_images_in_turns),
        cmocka_unit_test(images_of_ours_are_qemus_too),
        cmocka_unit_test(the_data_file_is_found_by_the_rules),
        cmocka_unit_test(what_cannot_be_made_is_refused),
        cmocka_unit_test(the_data_file_is_locked_as_the_image_is),
        cmocka_unit_test(a_cluster_in_another_place_is_an_error),
        cmocka_unit_test(data_is_flushed_before_its_entry),
        cmocka_unit_test(a_first_write_to_a_cluster_writes_what_is_needed),
        cmocka_unit_test(what_is_left_around_one_write_is_not_left_around_another),
    };

    return drivers_test_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests));
}
