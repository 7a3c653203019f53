/* SPDX-License-Identifier: Apache-2.0
 *
 * The funnel's checks and the plain ways of a request: bounds, read-only nodes,
 * splitting, forced and ignored flushes, detection of zeros. The memory driver
 * itself asserts what the funnel guarantees to drivers.
 */
#include "co_test.h"
#include "memdrv.h"

static char buf[256 * KiB];

static void bounds_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':4096}");

    assert_int_equal(co_node_pread(n, 0, 4096, buf, 0), 0);
    assert_int_equal(co_node_pread(n, 4096, 0, buf, 0), 0);
    assert_int_equal(co_node_pwrite(n, 4096, 0, buf, 0), 0);
    assert_int_equal(co_node_pread(n, 0, 4097, buf, 0), -EINVAL);
    assert_int_equal(co_node_pread(n, 4097, 0, buf, 0), -EINVAL);
    assert_int_equal(co_node_pread(n, UINT64_MAX - 10, 20, buf, 0), -EINVAL);
    assert_int_equal(co_node_pread(n, 20, UINT64_MAX - 10, buf, 0), -EINVAL);
    assert_int_equal(co_node_pwrite(n, 4000, 97, buf, 0), -ENOSPC);
    assert_int_equal(co_node_pwrite(n, UINT64_MAX, 1, buf, 0), -ENOSPC);
    assert_int_equal(co_node_write_zeroes(n, 1, UINT64_MAX, 0), -ENOSPC);
    assert_int_equal(co_node_write_zeroes(n, 4096, 0, 0), 0);
    assert_int_equal(co_node_discard(n, 4096, 1), -ENOSPC);
    assert_int_equal(co_node_discard(n, 0, 0), 0);
    assert_int_equal(mem_of(n)->n_log, 1);
    co_node_unref(n);
}

static void requests_beyond_the_end_are_refused(void **state)
{
    in_loop(bounds_body);
}

static void read_only_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':4096,'read-only':true,"
                                  "'discard':'unmap'}");

    assert_int_equal(co_node_pwrite(n, 0, 512, buf, 0), -EPERM);
    assert_int_equal(co_node_pwrite(n, 0, 0, buf, 0), -EPERM);
    assert_int_equal(co_node_write_zeroes(n, 0, 512, 0), -EPERM);
    assert_int_equal(co_node_discard(n, 0, 512), -EPERM);
    assert_false(co_node_resize(n, 8192, NULL));
    assert_int_equal(co_node_pread(n, 0, 512, buf, 0), 0);
    assert_int_equal(mem_of(n)->n_log, 1);
    co_node_unref(n);
}

static void read_only_nodes_refuse_writes(void **state)
{
    in_loop(read_only_body);
}

/* Long requests with ragged lists of buffers come apart and together again. */
static void splitting_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':1048576,'max-transfer':10000,"
                                  "'request-align':512}");
    struct mem *m = mem_of(n);
    struct iovec iov[40];
    uint64_t len = 0;

    for (int i = 0; i < 40; i++) {
        iov[i] = (struct iovec){ buf + len, 100 + 37 * i };
        memset(iov[i].iov_base, 'a' + i, iov[i].iov_len);
        len += iov[i].iov_len;
    }
    iov[39].iov_len += align_up(len, 512) - len;
    len = align_up(len, 512);
    assert_int_equal(co_node_pwritev(n, 1024, len, iov, 40, 0), 0);
    assert_memory_equal(m->data + 1024, buf, len);
    assert_int_equal(mem_count(m, MEM_WRITE), div_round_up(len, 9728));
    assert_int_equal(mem_count(m, MEM_READ), 0);

    memset(buf, 0, len);
    assert_int_equal(co_node_preadv(n, 1024, len, iov, 40, 0), 0);
    assert_memory_equal(m->data + 1024, buf, len);

    m->fails[MEM_READ] = -EIO;
    assert_int_equal(co_node_preadv(n, 1024, len, iov, 40, 0), -EIO);
    co_node_unref(n);
}

static void long_requests_are_split(void **state)
{
    in_loop(splitting_body);
}

static void fua_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':4096,'fua':true}");
    struct mem *m = mem_of(n);

    assert_int_equal(co_node_pwrite(n, 0, 512, buf, REQ_FUA), 0);
    assert_int_equal(co_node_write_zeroes(n, 0, 512, REQ_FUA), 0);
    assert_int_equal(mem_nth(m, MEM_WRITE, 0)->flags, REQ_FUA);
    assert_int_equal(mem_nth(m, MEM_ZERO, 0)->flags, REQ_FUA);
    assert_int_equal(mem_count(m, MEM_FLUSH), 0);
    co_node_unref(n);

    n = co_test_open("{'driver':'test-mem','size':4096}");
    m = mem_of(n);
    assert_int_equal(co_node_pwrite(n, 0, 512, buf, REQ_FUA), 0);
    assert_int_equal(mem_nth(m, MEM_WRITE, 0)->flags, 0);
    assert_int_equal(mem_count(m, MEM_FLUSH), 1);
    assert_int_equal(co_node_write_zeroes(n, 0, 512, REQ_FUA), 0);
    assert_int_equal(mem_count(m, MEM_FLUSH), 2);
    m->fails[MEM_FLUSH] = -EIO;
    assert_int_equal(co_node_pwrite(n, 0, 512, buf, REQ_FUA), -EIO);
    assert_int_equal(co_node_pwrite(n, 0, 512, buf, 0), 0);
    m->fails[MEM_WRITE] = -ENOSPC;
    assert_int_equal(co_node_pwrite(n, 0, 512, buf, REQ_FUA), -ENOSPC);
    co_node_unref(n);
}

static void fua_is_a_flush_where_the_driver_has_none(void **state)
{
    in_loop(fua_body);
}

static void no_flush_body(void)
{
    struct node *n = co_test_open("{'driver':'test-filter','cache':{'no-flush':true},"
                                  "'file':{'driver':'test-mem','size':4096,'fua':true}}");
    struct mem *m = mem_of(edge_node(n->file));

    assert_int_equal(co_node_pwrite(n, 0, 512, buf, REQ_FUA), 0);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(mem_nth(m, MEM_WRITE, 0)->flags, 0);
    assert_int_equal(mem_count(m, MEM_FLUSH), 0);
    co_node_unref(n);

    n = co_test_open("{'driver':'test-filter','file':{'driver':'test-mem','size':4096}}");
    m = mem_of(edge_node(n->file));
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(mem_count(m, MEM_FLUSH), 1);
    co_node_unref(n);
}

static void flushes_go_down_unless_they_are_not_wanted(void **state)
{
    in_loop(no_flush_body);
}

static void detect_zeroes_body(void)
{
    static const struct { const char *mode; unsigned writes, zeroes, flags; } modes[] = {
        { "off", 2, 0, 0 }, { "on", 1, 1, 0 }, { "unmap", 1, 1, REQ_MAY_UNMAP },
    };
    static char zero[8192], data[8192];

    data[8191] = 1;
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        struct node *n = co_test_open("{'driver':'test-mem','size':65536,'discard':'unmap',"
                                      "'detect-zeroes':'%s'}", modes[i].mode);
        struct mem *m = mem_of(n);

        assert_int_equal(co_node_pwrite(n, 4096, 8192, zero, 0), 0);
        assert_int_equal(co_node_pwrite(n, 16384, 8192, data, 0), 0);
        assert_int_equal(mem_count(m, MEM_WRITE), modes[i].writes);
        assert_int_equal(mem_count(m, MEM_ZERO), modes[i].zeroes);
        if (modes[i].zeroes)
            assert_int_equal(mem_nth(m, MEM_ZERO, 0)->flags, modes[i].flags);
        co_node_unref(n);
    }
}

static void writes_of_zeros_become_zero_writes(void **state)
{
    in_loop(detect_zeroes_body);
}

static void resize_body(void)
{
    struct err err = ERR_INIT;
    struct node *n = co_test_open("{'driver':'test-filter',"
                                  "'file':{'driver':'test-mem','size':4096}}");

    assert_true(co_node_resize(n, 8192, &err));
    assert_int_equal(node_size(n), 8192);
    assert_int_equal(co_node_pwrite(n, 8000, 192, buf, 0), 0);
    assert_false(co_node_resize(n, 1ULL << 63, &err));
    assert_int_equal(err.code, -EFBIG);
    node_forbid_resize(n, "a view is open on it");
    assert_false(co_node_resize(n, 4096, &err));
    assert_int_equal(err.code, -EBUSY);
    assert_non_null(strstr(err.text, "a view is open on it"));
    node_allow_resize(n);
    assert_true(co_node_resize(n, 4096, &err));
    co_node_unref(n);
}

static void resize_goes_to_the_filtered_node(void **state)
{
    in_loop(resize_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_beyond_the_end_are_refused),
        cmocka_unit_test(read_only_nodes_refuse_writes),
        cmocka_unit_test(long_requests_are_split),
        cmocka_unit_test(fua_is_a_flush_where_the_driver_has_none),
        cmocka_unit_test(flushes_go_down_unless_they_are_not_wanted),
        cmocka_unit_test(writes_of_zeros_become_zero_writes),
        cmocka_unit_test(resize_goes_to_the_filtered_node),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
