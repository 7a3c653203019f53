/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: every command of the transmission phase does to the disk what it says,
 * answers in the form that was negotiated, and an error is an answer after which
 * the connection goes on.
 * Method: raw requests against a disk in memory that records what reaches it.
 */
#include "nbd_rig.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/mem.h"
#include "block/node.h"

static struct rig rig;
static struct client client;
static uint8_t buf[256 * 1024];

static void co_begin(bool structured)
{
    co_rig_open(&rig, &(struct rig_opts){ 0 });
    client = structured ? co_client_ready_structured(&rig) : co_client_ready(&rig);
}

static void co_end(void)
{
    client_close(&client);
    co_rig_close(&rig);
}

static void co_expect_bytes(size_t len, int byte)
{
    co_get(&client, buf, len);
    for (size_t i = 0; i < len; i++)
        assert_int_equal(buf[i], byte);
}

/* ---- reading and writing ------------------------------------------------ */

static void simple_body(void)
{
    co_begin(false);
    memset(buf, 0x5a, sizeof(buf));
    co_write_request(&client, 1, 4095, buf, 8194);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    co_request(&client, NBD_CMD_READ, 0, 2, 4094, 8196);
    assert_int_equal(co_simple_reply(&client, 2), 0);
    co_expect_bytes(1, 0);
    co_expect_bytes(8194, 0x5a);
    co_expect_bytes(1, 0);
    co_request(&client, NBD_CMD_READ, 0, 3, 0, 0);
    assert_int_equal(co_simple_reply(&client, 3), 0);
    co_request(&client, NBD_CMD_WRITE, 0, 4, DISK_BYTES, 0);
    assert_int_equal(co_simple_reply(&client, 4), 0);
    expect_silence(&client);
    co_end();
}

static void what_was_written_is_read(void **state)
{
    in_loop(simple_body);
}

static void structured_body(void)
{
    struct chunk k;

    co_begin(true);
    co_rig_fill(&rig, 0, 1 * MiB, MEM_IS_DATA, 0x11);
    for (int df = 0; df < 2; df++) {
        co_request(&client, NBD_CMD_READ, df ? NBD_CMD_FLAG_DF : 0, 9, 512, 65536);
        co_chunk(&client, &k);
        assert_int_equal(k.flags, NBD_CHUNK_FLAG_DONE);
        assert_int_equal(k.type, NBD_CHUNK_OFFSET_DATA);
        assert_int_equal(k.cookie, 9);
        assert_int_equal(k.len, 8 + 65536);
        co_get(&client, buf, 8);
        assert_int_equal(load_be64(buf), 512);
        co_expect_bytes(65536, 0x11);
    }
    co_request(&client, NBD_CMD_READ, 0, 10, 0, 0);
    co_chunk(&client, &k);
    assert_int_equal(k.type, NBD_CHUNK_NONE);
    assert_int_equal(k.len, 0);
    co_end();
}

static void a_structured_read_is_one_chunk(void **state)
{
    in_loop(structured_body);
}

static void large_body(void)
{
    CLEANUP(free) uint8_t *big = xmalloc(LIMIT_NBD_REQUEST_BYTES);

    co_begin(false);
    for (size_t i = 0; i < LIMIT_NBD_REQUEST_BYTES / 8; i++)
        store_be64(big + 8 * i, i * 0x9e3779b97f4a7c15ULL);
    co_write_request(&client, 1, 12345, big, LIMIT_NBD_REQUEST_BYTES);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    co_request(&client, NBD_CMD_READ, 0, 2, 12345, LIMIT_NBD_REQUEST_BYTES);
    assert_int_equal(co_simple_reply(&client, 2), 0);
    for (size_t i = 0; i < LIMIT_NBD_REQUEST_BYTES; i += sizeof(buf)) {
        co_get(&client, buf, sizeof(buf));
        assert_memory_equal(buf, big + i, sizeof(buf));
    }
    co_end();
}

static void the_largest_request_passes(void **state)
{
    in_loop(large_body);
}

/* Answers come in the order in which the disk is done. */
static void overtaking_body(void)
{
    co_begin(false);
    co_rig_hold(&rig, MEM_WRITE);
    co_write_request(&client, 1, 0, buf, 4096);
    co_rig_wait_count(&rig, MEM_WRITE, 1);
    co_request(&client, NBD_CMD_READ, 0, 2, 8192, 512);
    assert_int_equal(co_simple_reply(&client, 2), 0);
    co_get(&client, buf, 512);
    co_rig_release(&rig, MEM_WRITE);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    co_end();
}

static void a_slow_request_holds_up_nobody(void **state)
{
    in_loop(overtaking_body);
}

static void two_connections_body(void)
{
    struct client other;

    co_begin(false);
    other = co_client_ready(&rig);
    for (int i = 0; i < 200; i++) {
        struct client *w = i % 2 ? &client : &other, *r = i % 2 ? &other : &client;

        memset(buf, i, 4096);
        co_write_request(w, i, 4096 * (i % 7), buf, 4096);
        assert_int_equal(co_simple_reply(w, i), 0);
        co_request(r, NBD_CMD_READ, 0, i, 4096 * (i % 7), 4096);
        assert_int_equal(co_simple_reply(r, i), 0);
        co_get(r, buf, 4096);
        for (int k = 0; k < 4096; k++)
            assert_int_equal(buf[k], i & 0xff);
    }
    client_close(&other);
    co_end();
}

static void two_connections_see_the_same_disk(void **state)
{
    in_loop(two_connections_body);
}

/* ---- what reaches the disk ---------------------------------------------- */

static void flags_body(void)
{
    co_begin(false);
    co_request(&client, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 1, 0, 512);
    co_put(&client, buf, 512);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    assert_int_equal(co_rig_flags(&rig, MEM_WRITE) & REQ_FUA, REQ_FUA);
    co_write_request(&client, 2, 0, buf, 512);
    assert_int_equal(co_simple_reply(&client, 2), 0);
    assert_int_equal(co_rig_flags(&rig, MEM_WRITE) & REQ_FUA, 0);
    assert_int_equal(co_rig_count(&rig, MEM_FLUSH), 0);

    co_request(&client, NBD_CMD_WRITE_ZEROES, 0, 3, 0, 65536);
    assert_int_equal(co_simple_reply(&client, 3), 0);
    assert_int_equal(co_rig_flags(&rig, MEM_ZERO), REQ_MAY_UNMAP);
    co_request(&client, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, 4, 0,
               65536);
    assert_int_equal(co_simple_reply(&client, 4), 0);
    assert_int_equal(co_rig_flags(&rig, MEM_ZERO), REQ_NO_FALLBACK);

    co_request(&client, NBD_CMD_FLUSH, 0, 5, 0, 0);
    assert_int_equal(co_simple_reply(&client, 5), 0);
    assert_int_equal(co_rig_count(&rig, MEM_FLUSH), 1);
    co_request(&client, NBD_CMD_TRIM, 0, 6, 0, 65536);
    assert_int_equal(co_simple_reply(&client, 6), 0);
    assert_int_equal(co_rig_count(&rig, MEM_DISCARD), 1);
    assert_int_equal(co_rig_count(&rig, MEM_FLUSH), 1);
    co_request(&client, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 7, 0, 65536);
    assert_int_equal(co_simple_reply(&client, 7), 0);
    assert_int_equal(co_rig_count(&rig, MEM_DISCARD), 2);
    assert_int_equal(co_rig_count(&rig, MEM_FLUSH), 2);

    co_request(&client, NBD_CMD_CACHE, 0, 8, 0, 3 * MiB);
    assert_int_equal(co_simple_reply(&client, 8), 0);
    assert_int_equal(co_rig_count(&rig, MEM_READ), 3);
    expect_silence(&client);
    co_end();
}

static void commands_reach_the_disk_with_their_flags(void **state)
{
    in_loop(flags_body);
}

static void writethrough_body(void)
{
    struct err err = ERR_INIT;
    struct nbd_export_opts o = { .id = "e1", .writable = true, .writethrough = true };

    co_rig_open(&rig, &(struct rig_opts){ 0 });
    assert_true(nbd_export_del(rig.exports, "e0", NBD_EXPORT_DEL_SAFE, &err));
    assert_true(co_nbd_export_wait_gone(rig.exports, "e0", DEADLINE_NEVER));
    o.node = rig.node;
    o.name = "disk";
    assert_true(co_nbd_export_add(rig.exports, &o, &err));
    client = co_client_ready(&rig);
    co_write_request(&client, 1, 0, buf, 512);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    assert_int_equal(co_rig_flags(&rig, MEM_WRITE), REQ_FUA);
    co_end();
}

static void a_writethrough_export_writes_through(void **state)
{
    in_loop(writethrough_body);
}

/* ---- block status ------------------------------------------------------- */

/* Expect the extents (length, flags, length, flags, ... 0) of a status reply. */
static void co_expect_extents(uint64_t cookie, const uint32_t *want)
{
    struct chunk k;

    co_chunk(&client, &k);
    assert_int_equal(k.type, NBD_CHUNK_BLOCK_STATUS);
    assert_int_equal(k.flags, NBD_CHUNK_FLAG_DONE);
    assert_int_equal(k.cookie, cookie);
    assert_in_range(k.len, 12, sizeof(buf));
    co_get(&client, buf, k.len);
    for (uint32_t at = 4; at < k.len; at += 8, want += 2) {
        assert_int_equal(load_be32(buf + at), want[0]);
        assert_int_equal(load_be32(buf + at + 4), want[1]);
    }
    assert_int_equal(*want, 0);
}

static void status_body(void)
{
    static const uint32_t hole = NBD_STATE_HOLE | NBD_STATE_ZERO;

    co_begin(true);
    /* Two kinds of nothing, which are one extent. */
    co_rig_fill(&rig, 4096, 8192, MEM_IS_ABSENT, 0);
    co_rig_fill(&rig, 65536, 65536, MEM_IS_DATA, 1);
    co_rig_fill(&rig, 262144, 512, MEM_IS_DATA, 0);
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 1 * MiB);
    co_expect_extents(1, (uint32_t[]){ 65536, hole, 65536, 0, 131072, hole, 512, 0,
                                       1 * MiB - 262144 - 512, hole, 0 });
    co_request(&client, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 2, 1024, 1 * MiB);
    co_expect_extents(2, (uint32_t[]){ 64512, hole, 0 });
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 3, 65537, 3);
    co_expect_extents(3, (uint32_t[]){ 3, 0, 0 });
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 4, DISK_BYTES - 1, 1);
    co_expect_extents(4, (uint32_t[]){ 1, hole, 0 });
    co_end();
}

static void block_status_tells_data_from_holes(void **state)
{
    in_loop(status_body);
}

static void fragmented_body(void)
{
    struct chunk k;

    co_begin(true);
    for (uint64_t i = 0; i < 2 * LIMIT_NBD_EXTENTS; i++)
        co_rig_fill(&rig, 1024 * i, 512, MEM_IS_DATA, 1);
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 1, 0, DISK_BYTES);
    co_chunk(&client, &k);
    assert_int_equal(k.len, 4 + 8 * LIMIT_NBD_EXTENTS);
    co_get(&client, buf, k.len);
    for (uint32_t i = 0; i < LIMIT_NBD_EXTENTS; i++)
        assert_int_equal(load_be32(buf + 4 + 8 * i), 512);
    co_end();
}

static void an_answer_about_a_fragmented_disk_is_bounded(void **state)
{
    in_loop(fragmented_body);
}

/* ---- errors ------------------------------------------------------------- */

static void disk_errors_body(void)
{
    static const struct {
        enum mem_op op;
        uint16_t cmd;
    } cases[] = {
        { MEM_READ, NBD_CMD_READ }, { MEM_WRITE, NBD_CMD_WRITE }, { MEM_FLUSH, NBD_CMD_FLUSH },
        { MEM_DISCARD, NBD_CMD_TRIM }, { MEM_ZERO, NBD_CMD_WRITE_ZEROES },
        { MEM_READ, NBD_CMD_CACHE }, { MEM_STATUS, NBD_CMD_BLOCK_STATUS },
    };

    co_begin(true);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint32_t len = cases[i].cmd == NBD_CMD_FLUSH ? 0 : 4096;

        co_rig_fail(&rig, cases[i].op, -ENOSPC);
        co_request(&client, cases[i].cmd, 0, i, 0, len);
        if (cases[i].cmd == NBD_CMD_WRITE)
            co_put(&client, buf, len);
        assert_int_equal(co_error_chunk(&client, i), 28);
        co_rig_fail(&rig, cases[i].op, 0);
    }
    co_request(&client, NBD_CMD_FLUSH, 0, 99, 0, 0);
    assert_int_equal(co_simple_reply(&client, 99), 0);
    co_end();
}

static void an_error_of_the_disk_is_an_error_chunk(void **state)
{
    in_loop(disk_errors_body);
}

static void simple_errors_body(void)
{
    co_begin(false);
    co_rig_fail(&rig, MEM_READ, -EIO);
    co_request(&client, NBD_CMD_READ, 0, 1, 0, 4096);
    assert_int_equal(co_simple_reply(&client, 1), 5);
    expect_silence(&client);
    co_rig_fail(&rig, MEM_READ, 0);
    co_request(&client, NBD_CMD_READ, 0, 2, 0, 4096);
    assert_int_equal(co_simple_reply(&client, 2), 0);
    co_get(&client, buf, 4096);
    co_end();
}

static void a_simple_error_has_no_data(void **state)
{
    in_loop(simple_errors_body);
}

/* Refused writes bring data that must not be taken for requests. */
static void refused_writes_body(void)
{
    CLEANUP(free) uint8_t *big = xzalloc(LIMIT_NBD_REQUEST_BYTES + 1);

    co_begin(true);
    co_write_request(&client, 1, DISK_BYTES - 100, buf, 101);
    assert_int_equal(co_error_chunk(&client, 1), 28);
    co_write_request(&client, 2, UINT64_MAX, buf, 4096);
    assert_int_equal(co_error_chunk(&client, 2), 28);
    co_write_request(&client, 3, 0, big, LIMIT_NBD_REQUEST_BYTES + 1);
    assert_int_equal(co_error_chunk(&client, 3), 22);
    assert_int_equal(co_rig_count(&rig, MEM_WRITE), 0);
    co_request(&client, NBD_CMD_FLUSH, 0, 4, 0, 0);
    assert_int_equal(co_simple_reply(&client, 4), 0);
    client_close(&client);
    co_rig_close(&rig);

    co_rig_open(&rig, &(struct rig_opts){ .read_only = true });
    client = co_client_ready_structured(&rig);
    co_write_request(&client, 1, 0, buf, 4096);
    assert_int_equal(co_error_chunk(&client, 1), 1);
    co_request(&client, NBD_CMD_TRIM, 0, 2, 0, 4096);
    assert_int_equal(co_error_chunk(&client, 2), 1);
    co_request(&client, NBD_CMD_FLUSH, 0, 3, 0, 0);
    assert_int_equal(co_simple_reply(&client, 3), 0);
    co_end();
}

static void a_refused_write_leaves_the_stream_in_step(void **state)
{
    in_loop(refused_writes_body);
}

/* ---- the end ------------------------------------------------------------ */

static void disconnect_body(void)
{
    co_begin(false);
    co_rig_hold(&rig, MEM_WRITE);
    for (uint64_t i = 0; i < 8; i++)
        co_write_request(&client, i, 4096 * i, buf, 4096);
    co_request(&client, NBD_CMD_DISC, 0, 0, 0, 0);
    co_rig_wait_count(&rig, MEM_WRITE, 8);
    co_rig_release(&rig, MEM_WRITE);
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(co_simple_reply(&client, i), 0);
    co_expect_end(&client);
    co_end();
}

static void a_disconnect_waits_for_what_was_asked(void **state)
{
    in_loop(disconnect_body);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(a_structured_read_is_one_chunk),
        cmocka_unit_test(the_largest_request_passes),
        cmocka_unit_test(a_slow_request_holds_up_nobody),
        cmocka_unit_test(two_connections_see_the_same_disk),
        cmocka_unit_test(commands_reach_the_disk_with_their_flags),
        cmocka_unit_test(a_writethrough_export_writes_through),
        cmocka_unit_test(block_status_tells_data_from_holes),
        cmocka_unit_test(an_answer_about_a_fragmented_disk_is_bounded),
        cmocka_unit_test(an_error_of_the_disk_is_an_error_chunk),
        cmocka_unit_test(a_simple_error_has_no_data),
        cmocka_unit_test(a_refused_write_leaves_the_stream_in_step),
        cmocka_unit_test(a_disconnect_waits_for_what_was_asked),
    };

    return nbd_rig_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests));
}
