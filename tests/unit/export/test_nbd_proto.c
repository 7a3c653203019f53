/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: bytes of the protocol mean what doc/proto.md says, and malformed option
 * data is refused without being read past its end.
 * Method: messages written out by hand; data cut at every length, in blocks of
 * exactly that size for the sanitizers.
 */
#include "export/nbd/proto.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/mem.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void request_is_parsed_field_by_field(void **state)
{
    static const uint8_t wire[NBD_REQUEST_BYTES] = {
        0x25, 0x60, 0x95, 0x13, 0x00, 0x05, 0x00, 0x06, 1, 2, 3, 4, 5, 6, 7, 8,
        0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x02, 0x00,
    };
    struct nbd_request rq;

    assert_true(nbd_get_request(wire, &rq));
    assert_int_equal(rq.flags, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF);
    assert_int_equal(rq.type, NBD_CMD_WRITE_ZEROES);
    assert_int_equal(rq.cookie, 0x0102030405060708);
    assert_int_equal(rq.offset, 0x100001000);
    assert_int_equal(rq.length, 512);
}

static void request_with_wrong_magic_is_refused(void **state)
{
    uint8_t wire[NBD_REQUEST_BYTES] = { 0x25, 0x60, 0x95, 0x14 };
    struct nbd_request rq;

    assert_false(nbd_get_request(wire, &rq));
}

static void option_with_wrong_magic_is_refused(void **state)
{
    uint8_t wire[NBD_OPTION_BYTES] = "IHAVEOPT\0\0\0\7\0\0\1";
    uint32_t option, len;

    assert_true(nbd_get_option(wire, &option, &len));
    assert_int_equal(option, NBD_OPT_GO);
    assert_int_equal(len, 256);
    wire[3] ^= 1;
    assert_false(nbd_get_option(wire, &option, &len));
}

static void export_reply_has_its_padding_unless_waived(void **state)
{
    uint8_t out[NBD_EXPORT_REPLY_BYTES_MAX];

    memset(out, 0xaa, sizeof(out));
    assert_int_equal(nbd_put_export_reply(out, 0x1122, 0x8001, true), 10);
    assert_int_equal(out[10], 0xaa);
    assert_int_equal(nbd_put_export_reply(out, 0x1122, 0x8001, false), 134);
    assert_int_equal(load_be64(out), 0x1122);
    assert_int_equal(load_be16(out + 8), 0x8001);
    for (int i = 10; i < 134; i++)
        assert_int_equal(out[i], 0);
}

/* ---- GO, INFO ----------------------------------------------------------- */

static size_t put_go(uint8_t *out, const char *name, unsigned n_infos)
{
    size_t len = strlen(name);

    store_be32(out, len);
    memcpy(out + 4, name, len);
    store_be16(out + 4 + len, n_infos);
    for (unsigned i = 0; i < n_infos; i++)
        store_be16(out + 6 + len + 2 * i, i + 1);
    return 6 + len + 2 * n_infos;
}

static bool go_is_accepted(const uint8_t *data, size_t len)
{
    CLEANUP(free) uint8_t *exact = xmemdup(data, len);
    const char *why = NULL;
    struct nbd_go go;
    bool ok = nbd_get_go(exact, len, &go, &why);

    assert_true(ok || why);
    return ok;
}

static void go_names_an_export_and_asks(void **state)
{
    uint8_t data[64];
    const char *why;
    struct nbd_go go;

    assert_true(nbd_get_go(data, put_go(data, "disk", 2), &go, &why));
    assert_true(nbd_str_is(&go.name, "disk"));
    assert_false(nbd_str_is(&go.name, "dis"));
    assert_true(nbd_go_asks(&go, NBD_INFO_NAME));
    assert_true(nbd_go_asks(&go, NBD_INFO_DESCRIPTION));
    assert_false(nbd_go_asks(&go, NBD_INFO_BLOCK_SIZE));
}

static void go_of_any_other_length_is_refused(void **state)
{
    uint8_t data[64] = { 0 };
    size_t len = put_go(data, "disk", 3);

    for (size_t cut = 0; cut < sizeof(data); cut++)
        assert_int_equal(go_is_accepted(data, cut), cut == len);
}

static void go_with_too_long_a_name_is_refused(void **state)
{
    static uint8_t data[8192];
    CLEANUP(free) char *name = xzalloc(LIMIT_NBD_STRING_BYTES + 2);

    memset(name, 'x', LIMIT_NBD_STRING_BYTES);
    assert_true(go_is_accepted(data, put_go(data, name, 0)));
    name[LIMIT_NBD_STRING_BYTES] = 'x';
    assert_false(go_is_accepted(data, put_go(data, name, 0)));
    store_be32(data, UINT32_MAX);
    assert_false(go_is_accepted(data, sizeof(data)));
}

/* ---- metadata contexts -------------------------------------------------- */

static size_t put_str(uint8_t *out, const char *text)
{
    store_be32(out, strlen(text));
    memcpy(out + 4, text, strlen(text));
    return 4 + strlen(text);
}

static bool meta_is_accepted(const uint8_t *data, size_t len)
{
    CLEANUP(free) uint8_t *exact = xmemdup(data, len);
    const char *why = NULL;
    struct nbd_meta m;
    bool ok = nbd_get_meta(exact, len, &m, &why);

    assert_true(ok || why);
    for (uint32_t i = 0; ok && i < m.n_queries; i++)
        (void)nbd_next_query(&m);
    return ok;
}

static void queries_come_in_order(void **state)
{
    uint8_t data[128];
    size_t n = put_str(data, "disk");
    const char *why;
    struct nbd_meta m;
    struct nbd_str q;

    store_be32(data + n, 3);
    n += 4;
    n += put_str(data + n, "base:allocation");
    n += put_str(data + n, "");
    n += put_str(data + n, "qemu:");
    assert_true(nbd_get_meta(data, n, &m, &why));
    assert_true(nbd_str_is(&m.name, "disk"));
    q = nbd_next_query(&m);
    assert_true(nbd_str_is(&q, "base:allocation"));
    q = nbd_next_query(&m);
    assert_true(nbd_str_is(&q, ""));
    q = nbd_next_query(&m);
    assert_true(nbd_str_is(&q, "qemu:"));
    for (size_t cut = 0; cut < n; cut++)
        assert_false(meta_is_accepted(data, cut));
    assert_false(meta_is_accepted(data, n + 1));
}

static void more_queries_than_bytes_are_refused(void **state)
{
    uint8_t data[64] = { 0 };
    size_t n = put_str(data, "disk");

    store_be32(data + n, UINT32_MAX);
    assert_false(meta_is_accepted(data, sizeof(data)));
    store_be32(data + n, 1);
    store_be32(data + n + 4, UINT32_MAX - 3);
    assert_false(meta_is_accepted(data, sizeof(data)));
}

/* ---- replies ------------------------------------------------------------ */

static void chunks_are_single_and_final(void **state)
{
    uint8_t out[NBD_REPLY_HEAD_BYTES_MAX];

    assert_int_equal(nbd_put_data_chunk(out, 7, 4096, 512), 28);
    assert_int_equal(load_be32(out), NBD_CHUNK_MAGIC);
    assert_int_equal(load_be16(out + 4), NBD_CHUNK_FLAG_DONE);
    assert_int_equal(load_be16(out + 6), NBD_CHUNK_OFFSET_DATA);
    assert_int_equal(load_be64(out + 8), 7);
    assert_int_equal(load_be32(out + 16), 8 + 512);
    assert_int_equal(load_be64(out + 20), 4096);

    assert_int_equal(nbd_put_error_chunk(out, 7, 28, 5), 26);
    assert_int_equal(load_be16(out + 6), NBD_CHUNK_ERROR);
    assert_int_equal(load_be32(out + 16), 6 + 5);
    assert_int_equal(load_be32(out + 20), 28);
    assert_int_equal(load_be16(out + 24), 5);

    assert_int_equal(nbd_put_status_chunk(out, 7, 1, 3, true), 24);
    assert_int_equal(load_be16(out + 4), NBD_CHUNK_FLAG_DONE);
    assert_int_equal(load_be32(out + 16), 4 + 3 * 8);

    assert_int_equal(nbd_put_none_chunk(out, 7), 20);
    assert_int_equal(load_be32(out + 16), 0);
}

static void errors_have_the_protocols_numbers(void **state)
{
    static const struct {
        int errno_value;
        uint32_t nbd;
    } cases[] = {
        { 0, 0 }, { EPERM, 1 }, { EROFS, 1 }, { EACCES, 1 }, { EIO, 5 }, { ENOMEM, 12 },
        { EINVAL, 22 }, { ENOSPC, 28 }, { EDQUOT, 28 }, { EFBIG, 28 }, { EOVERFLOW, 75 },
        { ENOTSUP, 95 }, { ESHUTDOWN, 108 }, { ENOENT, 5 }, { ETIMEDOUT, 5 }, { 4000, 5 },
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_int_equal(nbd_error_of(-cases[i].errno_value), cases[i].nbd);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(request_is_parsed_field_by_field),
        cmocka_unit_test(request_with_wrong_magic_is_refused),
        cmocka_unit_test(option_with_wrong_magic_is_refused),
        cmocka_unit_test(export_reply_has_its_padding_unless_waived),
        cmocka_unit_test(go_names_an_export_and_asks),
        cmocka_unit_test(go_of_any_other_length_is_refused),
        cmocka_unit_test(go_with_too_long_a_name_is_refused),
        cmocka_unit_test(queries_come_in_order),
        cmocka_unit_test(more_queries_than_bytes_are_refused),
        cmocka_unit_test(chunks_are_single_and_final),
        cmocka_unit_test(errors_have_the_protocols_numbers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
