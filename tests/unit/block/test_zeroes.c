/* SPDX-License-Identifier: Apache-2.0
 *
 * Zero writes and discards: how they are cut, what becomes of ragged ends, and
 * the fallback where a driver cannot zero.
 */
#include "co_test.h"
#include "memdrv.h"

static struct node *co_open_filled(const char *more)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':1048576%s}", more);

    mem_fill(mem_of(n), 0, n->size, MEM_IS_DATA, 'x');
    return n;
}

/* Exactly [off, off+len) is zero. */
static void check_zeroed(struct node *n, uint64_t off, uint64_t len)
{
    const unsigned char *data = mem_of(n)->data;

    for (uint64_t i = 0; i < n->size; i++)
        assert_int_equal(data[i], i >= off && i - off < len ? 0 : 'x');
}

static void ends_body(void)
{
    struct { uint64_t off, len; unsigned zeroes, writes; } cases[] = {
        { 0, 4096, 1, 0 },           /* whole */
        { 100, 50, 0, 1 },           /* inside a block */
        { 100, 412, 0, 1 },          /* to its end */
        { 512, 100, 0, 1 },          /* from its beginning */
        { 500, 24, 0, 2 },           /* over a border */
        { 500, 5000, 1, 2 },
        { 1048000, 576, 1, 1 },      /* to the end of the node */
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct node *n = co_open_filled(",'request-align':512");

        assert_int_equal(co_node_write_zeroes(n, cases[i].off, cases[i].len, 0), 0);
        check_zeroed(n, cases[i].off, cases[i].len);
        assert_int_equal(mem_count(mem_of(n), MEM_ZERO), cases[i].zeroes);
        assert_int_equal(mem_count(mem_of(n), MEM_WRITE), cases[i].writes);
        co_node_unref(n);
    }
}

static void ragged_ends_are_written(void **state)
{
    in_loop(ends_body);
}

static void pieces_body(void)
{
    struct node *n = co_open_filled(",'request-align':512,'zero-align':65536,"
                                    "'max-zeroes':200000");
    struct mem *m = mem_of(n);
    static const uint64_t want[][2] = {
        { 1024, 64512 }, { 65536, 196608 }, { 262144, 196608 }, { 458752, 65536 },
        { 524288, 512 },
    };

    assert_int_equal(co_node_write_zeroes(n, 1024, 523776, 0), 0);
    check_zeroed(n, 1024, 523776);
    assert_int_equal(m->n_log, ARRAY_SIZE(want));
    for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
        assert_int_equal(mem_nth(m, MEM_ZERO, i)->off, want[i][0]);
        assert_int_equal(mem_nth(m, MEM_ZERO, i)->len, want[i][1]);
    }
    co_node_unref(n);
}

static void zero_writes_are_cut_where_the_driver_likes_it(void **state)
{
    in_loop(pieces_body);
}

static void fallback_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':4194304,'max-transfer':1000000}");
    struct mem *m = mem_of(n);

    mem_fill(m, 0, n->size, MEM_IS_DATA, 'x');
    m->fails[MEM_ZERO] = -ENOTSUP;
    assert_int_equal(co_node_write_zeroes(n, 77, 3 * MiB, REQ_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(mem_count(m, MEM_WRITE), 0);
    check_zeroed(n, 0, 0);
    assert_int_equal(co_node_write_zeroes(n, 77, 3 * MiB, REQ_MAY_UNMAP), 0);
    assert_true(mem_count(m, MEM_WRITE) >= 4);
    check_zeroed(n, 77, 3 * MiB);

    m->fails[MEM_ZERO] = -EIO;
    mem_clear_log(m);
    assert_int_equal(co_node_write_zeroes(n, 0, 512, 0), -EIO);
    assert_int_equal(mem_count(m, MEM_WRITE), 0);
    co_node_unref(n);

    /* No operation at all, and nothing known of REQ_NO_FALLBACK. */
    n = co_test_open("{'driver':'test-filter','file':{'driver':'test-mem','size':65536}}");
    mem_fill(mem_of(edge_node(n->file)), 0, 65536, MEM_IS_DATA, 'x');
    assert_int_equal(co_node_write_zeroes(n, 0, 1000, REQ_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(co_node_write_zeroes(n, 0, 1000, 0), 0);
    check_zeroed(edge_node(n->file), 0, 1000);
    co_node_unref(n);
}

static void zeros_are_written_where_a_driver_cannot_zero(void **state)
{
    in_loop(fallback_body);
}

static void may_unmap_body(void)
{
    struct node *n = co_open_filled("");

    assert_int_equal(co_node_write_zeroes(n, 0, 512, REQ_MAY_UNMAP | REQ_NO_FALLBACK), 0);
    assert_int_equal(mem_nth(mem_of(n), MEM_ZERO, 0)->flags, REQ_NO_FALLBACK);
    co_node_unref(n);
    n = co_open_filled(",'discard':'unmap'");
    assert_int_equal(co_node_write_zeroes(n, 0, 512, REQ_MAY_UNMAP), 0);
    assert_int_equal(mem_nth(mem_of(n), MEM_ZERO, 0)->flags, REQ_MAY_UNMAP);
    co_node_unref(n);
}

static void holes_are_made_only_where_discard_is_unmap(void **state)
{
    in_loop(may_unmap_body);
}

static void discard_body(void)
{
    struct node *n = co_open_filled(",'request-align':4096");
    struct mem *m = mem_of(n);

    assert_int_equal(co_node_discard(n, 0, 65536), 0);
    assert_int_equal(m->n_log, 0);
    co_node_unref(n);

    n = co_open_filled(",'request-align':4096,'max-zeroes':65536,'discard':'unmap'");
    m = mem_of(n);
    assert_int_equal(co_node_discard(n, 1, 8190), 0);        /* not one whole block */
    assert_int_equal(m->n_log, 0);
    assert_int_equal(co_node_discard(n, 1, 131072), 0);
    check_zeroed(n, 4096, 126976);
    assert_int_equal(mem_count(m, MEM_DISCARD), 2);
    m->fails[MEM_DISCARD] = -ENOTSUP;
    assert_int_equal(co_node_discard(n, 0, 65536), 0);
    m->fails[MEM_DISCARD] = -EIO;
    assert_int_equal(co_node_discard(n, 0, 65536), -EIO);
    co_node_unref(n);
}

static void discards_are_a_hint(void **state)
{
    in_loop(discard_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ragged_ends_are_written),
        cmocka_unit_test(zero_writes_are_cut_where_the_driver_likes_it),
        cmocka_unit_test(zeros_are_written_where_a_driver_cannot_zero),
        cmocka_unit_test(holes_are_made_only_where_discard_is_unmap),
        cmocka_unit_test(discards_are_a_hint),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
