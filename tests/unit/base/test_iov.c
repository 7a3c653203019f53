/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a scatter-gather list behaves as the flat buffer it stands for, and the
 * zero test sees every byte.
 * Method: a flat copy of the same bytes, cut at seeded random places (empty
 * pieces too), compared after each operation.
 */
#include "base/bytes.h"
#include "base/iov.h"
#include "base/mem.h"
#include "unit.h"

enum { BYTES = 1000, PIECES = 12 };

struct cut {
    struct random rnd;
    unsigned char bytes[BYTES];
    struct iovec iov[PIECES];
};

/* Cover c->bytes with pieces of random length, in order. */
static void cut_randomly(struct cut *c)
{
    size_t at = 0;

    for (int i = 0; i < BYTES; i++)
        c->bytes[i] = random_next(&c->rnd);
    for (int i = 0; i < PIECES; i++) {
        size_t n = i == PIECES - 1 ? BYTES - at : random_below(&c->rnd, (BYTES - at) / 3 + 1);

        c->iov[i] = (struct iovec){ c->bytes + at, n };
        at += n;
    }
}

static void slices_and_copies_match_the_flat_buffer(void **state)
{
    struct cut c = { .rnd.state = random_seed(4) };

    for (int round = 0; round < 2000; round++) {
        unsigned char flat[BYTES], other[BYTES];
        struct iovec part[PIECES];

        cut_randomly(&c);
        uint64_t off = random_below(&c.rnd, BYTES + 1);
        uint64_t len = random_below(&c.rnd, BYTES - off + 1);

        assert_int_equal(iov_length(c.iov, PIECES), BYTES);
        iov_to_buf(flat, c.iov, PIECES, off, len);
        assert_memory_equal(flat, c.bytes + off, len);

        int n = iov_slice(part, c.iov, PIECES, off, len);
        assert_in_range(n, 0, PIECES);
        assert_int_equal(iov_length(part, n), len);
        iov_to_buf(flat, part, n, 0, len);
        assert_memory_equal(flat, c.bytes + off, len);

        memcpy(flat, c.bytes, BYTES);
        for (uint64_t i = 0; i < len; i++)
            other[i] = flat[off + i] = random_next(&c.rnd);
        iov_from_buf(c.iov, PIECES, off, other, len);
        assert_memory_equal(c.bytes, flat, BYTES);

        iov_zero(c.iov, PIECES, off, len);
        memset(flat + off, 0, len);
        assert_memory_equal(c.bytes, flat, BYTES);
        assert_true(iov_is_zero(part, n));
    }
}

static void one_byte_spoils_a_zero_list(void **state)
{
    struct cut c = { .rnd.state = random_seed(5) };

    for (int round = 0; round < 500; round++) {
        cut_randomly(&c);
        memset(c.bytes, 0, BYTES);
        assert_true(iov_is_zero(c.iov, PIECES));
        c.bytes[random_below(&c.rnd, BYTES)] = 1 << random_below(&c.rnd, 8);
        assert_false(iov_is_zero(c.iov, PIECES));
    }
}

static void the_zero_test_sees_every_byte_at_any_alignment(void **state)
{
    static unsigned char buf[700];

    for (size_t start = 0; start < 17; start++) {
        for (size_t len = 0; len < 600; len += start + 1) {
            buf[start + len] = 0xff;        /* just outside, on both sides */
            if (start)
                buf[start - 1] = 0xff;
            assert_true(mem_is_zero(buf + start, len));
            for (size_t i = 0; i < len; i += 7) {
                buf[start + i] = 0x80;
                assert_false(mem_is_zero(buf + start, len));
                buf[start + i] = 0;
            }
            memset(buf, 0, sizeof(buf));
        }
    }
}

static void buffers_are_aligned_for_direct_io(void **state)
{
    void *p = try_alloc_aligned(100);

    assert_non_null(p);
    assert_true(is_aligned((uintptr_t)p, 4096));
    free(p);
}

static void big_endian_at_any_alignment(void **state)
{
    static const unsigned char wire[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8 };
    unsigned char out[9] = { 0 };

    assert_int_equal(load_be16(wire + 1), 0x0102);
    assert_int_equal(load_be32(wire + 1), 0x01020304);
    assert_true(load_be64(wire + 1) == 0x0102030405060708ULL);
    store_be64(out + 1, 0x0102030405060708ULL);
    assert_memory_equal(out, wire, sizeof(out));
    store_be32(out + 5, 0x05060708);
    store_be16(out + 7, 0x0708);
    assert_memory_equal(out, wire, sizeof(out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slices_and_copies_match_the_flat_buffer),
        cmocka_unit_test(one_byte_spoils_a_zero_list),
        cmocka_unit_test(the_zero_test_sees_every_byte_at_any_alignment),
        cmocka_unit_test(buffers_are_aligned_for_direct_io),
        cmocka_unit_test(big_endian_at_any_alignment),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
