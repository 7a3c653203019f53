/* SPDX-License-Identifier: Apache-2.0
 *
 * Drivers raw and null-co.
 */
#include "drivers_test.h"

CO_TEST(raw_is_the_file_as_it_is)
{
    const char *path = test_path("whole");
    struct node_info info, below;
    struct err err = ERR_INIT;
    struct node *n;

    make_file(path, MiB);
    n = co_test_open("{'driver': 'raw', 'discard': 'unmap', 'file': {'driver': 'file',"
                " 'filename': '%s'}}", path);
    assert_int_equal(n->size, MiB);
    co_fill(n, 1, 1000, 3);
    co_expect(n, 1, 1000, 3);
    assert_true(co_status(n, 0, MiB).flags & STATUS_DATA);
    assert_ptr_equal(co_status(n, 0, MiB).file, edge_node(n->file));
    assert_int_equal(co_node_write_zeroes(n, 0, MiB, REQ_MAY_UNMAP | REQ_NO_FALLBACK), 0);
    assert_true(co_status(n, 0, MiB).flags & STATUS_ZERO);
    assert_int_equal(co_node_discard(n, 0, MiB), 0);
    assert_int_equal(co_node_flush(n), 0);
    node_get_info(n, &info);
    node_get_info(edge_node(n->file), &below);
    assert_string_equal(info.filename, path);
    assert_int_equal(info.allocated, below.allocated);
    assert_true(co_node_resize(n, 2 * MiB, &err));
    assert_int_equal(n->size, 2 * MiB);
    co_fill(n, 2 * MiB - 1, 1, 9);
    co_node_unref(n);
}

CO_TEST(raw_shows_a_part_of_the_file)
{
    const char *path = test_path("part");
    struct err err = ERR_INIT;
    struct node_info info;
    unsigned char byte;
    struct node *n;

    make_file(path, MiB);
    n = co_test_open("{'driver': 'raw', 'offset': 4097, 'size': 8192, 'file': {'driver': 'file',"
                " 'filename': '%s'}}", path);
    assert_int_equal(n->size, 8192);
    co_fill(n, 0, 8192, 5);
    assert_int_equal(co_node_pwrite(n, 8192, 1, "x", 0), -ENOSPC);
    assert_int_equal(co_node_pread(n, 8192, 1, &byte, 0), -EINVAL);
    assert_int_equal(co_status(n, 0, 8192).host_off, 4097);
    /* It must not pass for the whole file, as in the name of a backing file. */
    node_get_info(n, &info);
    assert_ptr_equal(strstr(info.filename, "json:{\"driver\":\"raw\",\"offset\":4097,"
                            "\"size\":8192,\"file\":{\"driver\":\"file\""), info.filename);
    assert_non_null(strstr(info.filename, path));
    assert_false(co_node_resize(n, 4096, &err));
    assert_int_equal(err.code, -ENOTSUP);
    file_read(path, 4096, &byte, 1);
    assert_int_equal(byte, 0);
    file_read(path, 4097, &byte, 1);
    assert_int_equal(byte, 5);
    file_read(path, 4097 + 8192, &byte, 1);
    assert_int_equal(byte, 0);
    co_node_unref(n);

    n = co_test_open("{'driver': 'raw', 'offset': 4096, 'file': {'driver': 'file',"
                " 'filename': '%s'}}", path);
    assert_int_equal(n->size, MiB - 4096);
    assert_true(co_node_resize(n, MiB, &err));
    assert_int_equal(node_size(edge_node(n->file)), MiB + 4096);
    co_node_unref(n);
}

CO_TEST(a_part_beyond_the_end_is_refused)
{
    const char *path = test_path("short");

    make_file(path, MiB);
    co_open_refused("beyond the end", "{'driver': 'raw', 'offset': 1048577, 'file': {'driver':"
                    " 'file', 'filename': '%s'}}", path);
    co_open_refused("beyond the end", "{'driver': 'raw', 'offset': 1048576, 'size': 1, 'file':"
                    " {'driver': 'file', 'filename': '%s'}}", path);
    co_open_refused("beyond the end", "{'driver': 'raw', 'offset': 512, 'size':"
                    " 9223372036854775807, 'file': {'driver': 'file', 'filename': '%s'}}", path);
}

CO_TEST(a_file_under_a_writable_raw_node_is_not_written_by_others)
{
    struct node *file, *raw;

    file = co_test_open("{'driver': 'null-co', 'node-name': 'f'}");
    raw = co_test_open("{'driver': 'raw', 'node-name': 'r', 'file': 'f'}");
    co_open_refused("'f'", "{'driver': 'raw', 'file': 'f'}");
    co_node_unref(raw);
    co_node_unref(file);
}

CO_TEST(null_forgets_what_is_written)
{
    struct node *n = co_test_open("{'driver': 'null-co'}");
    struct err err = ERR_INIT;
    uint64_t before;

    assert_int_equal(n->size, GiB);
    co_fill(n, 100, 1000, 7);
    co_expect(n, 0, 4096, 0);
    assert_true(co_status(n, 0, GiB).flags & STATUS_DATA);
    assert_int_equal(co_node_flush(n), 0);
    assert_true(co_node_resize(n, MiB, &err));
    assert_int_equal(n->size, MiB);
    co_node_unref(n);

    n = co_test_open("{'driver': 'null-co', 'size': 4096, 'latency-ns': 20000000,"
                " 'read-zeroes': true}");
    assert_true(co_status(n, 0, 4096).flags & STATUS_ZERO);
    before = loop_now();
    co_expect(n, 0, 4096, 0);
    assert_true(loop_now() - before >= 20 * NSEC_PER_MSEC);
    co_node_unref(n);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(raw_is_the_file_as_it_is),
    cmocka_unit_test(raw_shows_a_part_of_the_file),
    cmocka_unit_test(a_part_beyond_the_end_is_refused),
    cmocka_unit_test(a_file_under_a_writable_raw_node_is_not_written_by_others),
    cmocka_unit_test(null_forgets_what_is_written),
};

DRIVERS_TEST_MAIN(tests)
