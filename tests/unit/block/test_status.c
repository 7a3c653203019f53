/* SPDX-License-Identifier: Apache-2.0
 *
 * Status: of one layer, through filters, and through chains whose backing files
 * are shorter or longer. A chain's status must agree with what reading gives.
 */
#include "co_test.h"
#include "memdrv.h"

static void check(struct node *n, struct node *base, uint64_t off, uint64_t len, unsigned flags,
                  uint64_t want_len, unsigned want_depth)
{
    struct block_status st;
    unsigned depth;

    assert_int_equal(co_node_status_above(n, base, off, len, &st, &depth), 0);
    assert_int_equal(st.flags & ~STATUS_OFFSET, flags);
    assert_int_equal(st.len, want_len);
    if (flags & STATUS_ALLOCATED)
        assert_int_equal(depth, want_depth);
    if (st.flags & STATUS_OFFSET) {
        assert_non_null(st.file);
        assert_int_equal(st.host_off, off);
    }
}

#define DATA (STATUS_DATA | STATUS_ALLOCATED)
#define ZERO (STATUS_ZERO | STATUS_ALLOCATED)

static void chain_body(void)
{
    struct node *top = co_test_open(
        "{'driver':'test-mem','size':65536,'backing':{'driver':'test-filter','file':"
        "{'driver':'test-mem','size':16384,'backing':{'driver':'test-mem','size':65536}}}}");
    struct node *mid = edge_node(node_backing(top)->file);
    struct node *low = node_backing(mid);

    mem_fill(mem_of(top), 4096, 4096, MEM_IS_DATA, 't');
    mem_fill(mem_of(mid), 0, 1024, MEM_IS_DATA, 'm');
    mem_fill(mem_of(low), 0, 65536, MEM_IS_DATA, 'l');
    mem_fill(mem_of(low), 2048, 512, MEM_IS_ZERO, 0);

    check(top, NULL, 0, 65536, DATA, 1024, 1);
    check(top, NULL, 1024, 64512, DATA, 1024, 2);
    check(top, NULL, 2048, 10, ZERO, 10, 2);
    check(top, NULL, 2560, 4096, DATA, 1536, 2);
    check(top, NULL, 4096, 65536 - 4096, DATA, 4096, 0);
    check(top, NULL, 8192, 65536 - 8192, DATA, 8192, 2);
    /* Beyond the short middle its own backing file does not show. */
    check(top, NULL, 16384, 65536 - 16384, ZERO, 65536 - 16384, 1);
    check(top, NULL, 65535, 1, ZERO, 1, 1);
    /* Above a base. */
    check(top, low, 1024, 64512, 0, 3072, 0);
    check(top, low, 16384, 100, ZERO, 100, 1);
    check(top, node_backing(top), 0, 65536, 0, 4096, 0);
    check(mid, NULL, 1024, 100, DATA, 100, 1);
    co_node_unref(top);
}

static void a_chain_is_seen_through(void **state)
{
    in_loop(chain_body);
}

static void bottom_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536,'backing':null}");
    struct block_status st;

    mem_fill(mem_of(n), 0, 65536, MEM_IS_ABSENT, 0);
    check(n, NULL, 0, 65536, STATUS_ZERO, 65536, 0);
    assert_int_equal(co_node_status(n, 65536, 1, &st), -EINVAL);
    assert_int_equal(co_node_status(n, 0, 0, &st), -EINVAL);
    assert_int_equal(co_node_status_above(n, NULL, 1, 65536, &st, NULL), -EINVAL);
    mem_of(n)->fails[MEM_STATUS] = -EIO;
    assert_int_equal(co_node_status_above(n, NULL, 0, 1, &st, NULL), -EIO);
    co_node_unref(n);
}

static void what_no_layer_has_is_zero(void **state)
{
    in_loop(bottom_body);
}

static void unit_body(void)
{
    struct node *n = co_test_open("{'driver':'test-mem','size':65536,'request-align':4096}");
    struct block_status st;

    mem_fill(mem_of(n), 4096, 8192, MEM_IS_DATA, 'x');
    assert_int_equal(co_node_status(n, 5000, 60000, &st), 0);
    assert_int_equal(st.len, 12288 - 5000);
    assert_int_equal(st.host_off, 5000);
    assert_int_equal(co_node_status(n, 5000, 3, &st), 0);
    assert_int_equal(st.len, 3);
    co_node_unref(n);
}

static void a_driver_is_asked_for_whole_blocks(void **state)
{
    in_loop(unit_body);
}

/* Random chains: status by status, what is said to be zero reads as zero, and the
 * layer that is said to decide is the one whose bytes come. */
static void co_check_random_chain(uint64_t *seed)
{
    struct node *layer[4];
    struct node *top = co_test_open(
        "{'driver':'test-mem','size':%d,'backing':{'driver':'test-mem','size':%d,"
        "'request-align':512,'backing':{'driver':'test-mem','size':%d,'backing':"
        "{'driver':'test-mem','size':%d}}}}", 16384, 512 * (int)test_random(seed, 40),
        (int)test_random(seed, 20000), (int)test_random(seed, 20000));

    layer[0] = top;
    for (int i = 1; i < 4; i++)
        layer[i] = node_backing(layer[i - 1]);
    for (int i = 0; i < 4; i++) {
        for (uint64_t off = 0; off + 512 <= layer[i]->size; off += 512) {
            enum mem_kind kind = (enum mem_kind)test_random(seed, i < 3 ? 3 : 2);

            mem_fill(mem_of(layer[i]), off, 512, kind, 'a' + i);
        }
    }
    for (uint64_t off = 0; off < top->size;) {
        struct block_status st;
        unsigned depth;
        static unsigned char got[16384];

        assert_int_equal(co_node_status_above(top, NULL, off, top->size - off, &st, &depth), 0);
        assert_true(st.len > 0 && st.len <= top->size - off);
        assert_int_equal(co_node_pread(top, off, st.len, got, 0), 0);
        for (uint64_t i = 0; i < st.len; i++)
            assert_int_equal(got[i], st.flags & STATUS_ZERO ? 0 : 'a' + (int)depth);
        off += st.len;
    }
    co_node_unref(top);
}

static void random_body(void)
{
    uint64_t seed = test_seed(5);

    for (int i = 0; i < 60; i++)
        co_check_random_chain(&seed);
}

static void status_agrees_with_reading(void **state)
{
    in_loop(random_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chain_is_seen_through),
        cmocka_unit_test(what_no_layer_has_is_zero),
        cmocka_unit_test(a_driver_is_asked_for_whole_blocks),
        cmocka_unit_test(status_agrees_with_reading),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
