/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a connection can use several metadata contexts. Each is found by the
 * queries that the protocol and QEMU's docs/interop/nbd.rst name, and answers
 * block status with a chunk of its own.
 * Method: a client of raw bytes against a server in the same process.
 */
#include "nbd_rig.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "block/dirty.h"
#include <stdio.h>

static struct rig rig;
static struct client client;
static struct option_reply reply;
static uint8_t data[16384];
static uint8_t buf[8 * LIMIT_NBD_EXTENTS + 64];

static void co_begin(void)
{
    co_rig_open(&rig, &(struct rig_opts){ .allocation_depth = true, .bitmap = "b:0" });
    client = co_client_connect(&rig);
    co_greet(&client);
    co_option(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    co_expect_option_reply(&client, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
}

static void co_end(void)
{
    client_close(&client);
    co_rig_close(&rig);
}

static void co_go_to_disk(void)
{
    co_option(&client, NBD_OPT_GO, data, put_go(data, "disk"));
    do {
        co_option_reply(&client, NBD_OPT_GO, &reply);
    } while (reply.type == NBD_REP_INFO);
    assert_int_equal(reply.type, NBD_REP_ACK);
}

/* Ask with queries (up to a NULL), expect contexts (up to a NULL) and their ids. */
static void co_expect_contexts(uint32_t option, const char *const *queries,
                               const char *const *want, uint32_t *ret_ids)
{
    unsigned n = 0;

    while (queries[n])
        n++;
    co_option(&client, option, data, put_queries(data, "disk", queries, n));
    for (; *want; want++) {
        co_option_reply(&client, option, &reply);
        assert_int_equal(reply.type, NBD_REP_META_CONTEXT);
        assert_string_equal(reply.data + 4, *want);
        if (ret_ids)
            *ret_ids++ = load_be32(reply.data);
    }
    co_expect_option_reply(&client, option, NBD_REP_ACK);
}
#define STRS(...) ((const char *const[]){ __VA_ARGS__ __VA_OPT__(,) NULL })

#define ALLOCATION "base:allocation"
#define DEPTH "qemu:allocation-depth"
#define BITMAP "qemu:dirty-bitmap:b:0"

static void listing_body(void)
{
    co_begin();
    co_expect_contexts(NBD_OPT_LIST_META_CONTEXT, STRS(), STRS(ALLOCATION, DEPTH, BITMAP), NULL);
    co_expect_contexts(NBD_OPT_LIST_META_CONTEXT, STRS("qemu:"), STRS(DEPTH, BITMAP), NULL);
    co_expect_contexts(NBD_OPT_LIST_META_CONTEXT, STRS("base:"), STRS(ALLOCATION), NULL);
    co_expect_contexts(NBD_OPT_LIST_META_CONTEXT, STRS("qemu:dirty-bitmap:"), STRS(BITMAP),
                       NULL);
    co_expect_contexts(NBD_OPT_LIST_META_CONTEXT, STRS(DEPTH, BITMAP, DEPTH),
                       STRS(DEPTH, BITMAP), NULL);
    co_expect_contexts(NBD_OPT_LIST_META_CONTEXT,
                       STRS("", ":", "q", "qemu", "qemu:allocation", "qemu:allocation-depth:",
                            "base:allocation:", "other:", BITMAP ":",
                            "qemu:dirty-bitmap:b", "qemu:dirty-bitmap:b:"), STRS(), NULL);
    co_end();
}

static void contexts_are_listed_by_name_and_by_name_space(void **state)
{
    in_loop(listing_body);
}

static void selecting_body(void)
{
    uint32_t ids[3];

    co_begin();
    /* Only whole names select, each once, whatever else is asked for. */
    co_expect_contexts(NBD_OPT_SET_META_CONTEXT, STRS("qemu:", "base:"), STRS(), NULL);
    co_expect_contexts(NBD_OPT_SET_META_CONTEXT, STRS(BITMAP, DEPTH, "x:y", ALLOCATION, DEPTH),
                       STRS(ALLOCATION, DEPTH, BITMAP), ids);
    assert_true(ids[0] && ids[1] && ids[2]);
    assert_true(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    co_end();
}

static void contexts_are_selected_by_their_names(void **state)
{
    in_loop(selecting_body);
}

/* Expect a chunk of block status with these extents (length, value, ... 0). */
static void co_expect_status(uint64_t cookie, uint32_t id, bool last, const uint32_t *want)
{
    struct chunk k;

    co_chunk(&client, &k);
    assert_int_equal(k.type, NBD_CHUNK_BLOCK_STATUS);
    assert_int_equal(k.flags, last ? NBD_CHUNK_FLAG_DONE : 0);
    assert_int_equal(k.cookie, cookie);
    assert_in_range(k.len, 12, sizeof(buf));
    co_get(&client, buf, k.len);
    assert_int_equal(load_be32(buf), id);
    for (uint32_t at = 4; at < k.len; at += 8, want += 2) {
        assert_int_equal(load_be32(buf + at), want[0]);
        assert_int_equal(load_be32(buf + at + 4), want[1]);
    }
    assert_int_equal(*want, 0);
}

static void several_body(void)
{
    static const uint32_t hole = NBD_STATE_HOLE | NBD_STATE_ZERO;
    uint32_t ids[2];

    co_begin();
    /* Nobody has it; zeros that this layer has; data. */
    co_rig_fill(&rig, 0, 8192, MEM_IS_ABSENT, 0);
    co_rig_fill(&rig, 8192, 8192, MEM_IS_ZERO, 0);
    co_rig_fill(&rig, 16384, 4096, MEM_IS_DATA, 1);
    co_rig_fill(&rig, 20480, 4096, MEM_IS_ABSENT, 0);
    co_expect_contexts(NBD_OPT_SET_META_CONTEXT, STRS(ALLOCATION, DEPTH), STRS(ALLOCATION, DEPTH),
                       ids);
    co_go_to_disk();
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 24576);
    co_expect_status(1, ids[0], false, (uint32_t[]){ 16384, hole, 4096, 0, 4096, hole, 0 });
    co_expect_status(1, ids[1], true, (uint32_t[]){ 8192, 0, 12288, 1, 4096, 0, 0 });
    co_request(&client, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 2, 4096, 20480);
    co_expect_status(2, ids[0], false, (uint32_t[]){ 12288, hole, 0 });
    co_expect_status(2, ids[1], true, (uint32_t[]){ 4096, 0, 0 });

    /* One error for all of them. */
    co_rig_fail(&rig, MEM_STATUS, -EIO);
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 3, 0, 4096);
    assert_int_equal(co_error_chunk(&client, 3), 5);
    co_rig_fail(&rig, MEM_STATUS, 0);
    co_end();
}

static void each_context_answers_with_its_own_chunk(void **state)
{
    in_loop(several_body);
}

static void dirty_body(void)
{
    uint32_t id;

    co_begin();
    co_expect_contexts(NBD_OPT_SET_META_CONTEXT, STRS(BITMAP), STRS(BITMAP), &id);
    co_go_to_disk();
    /* Nothing is dirty; then what is written through the export is. */
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 1, 0, DISK_BYTES);
    co_expect_status(1, id, true, (uint32_t[]){ DISK_BYTES, 0, 0 });
    co_write_request(&client, 2, 100 * KiB, buf, 1);
    assert_int_equal(co_simple_reply(&client, 2), 0);
    co_write_request(&client, 3, DISK_BYTES - 1, buf, 1);
    assert_int_equal(co_simple_reply(&client, 3), 0);
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 4, 1, DISK_BYTES - 1);
    co_expect_status(4, id, true,
                     (uint32_t[]){ 64 * KiB - 1, 0, 64 * KiB, NBD_STATE_DIRTY,
                                   DISK_BYTES - 192 * KiB, 0, 64 * KiB, NBD_STATE_DIRTY, 0 });
    co_request(&client, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 5, 65 * KiB, 1 * MiB);
    co_expect_status(5, id, true, (uint32_t[]){ 63 * KiB, NBD_STATE_DIRTY, 0 });
    co_end();
}

static void a_bitmap_tells_what_is_dirty_at_the_moment(void **state)
{
    in_loop(dirty_body);
}

static int spoil_there(void *arg)
{
    dirty_bitmap_spoil(dirty_bitmap_find(rig.node, "b:0", NULL), "a test");
    return 0;
}

static void spoiled_body(void)
{
    uint32_t id;

    co_begin();
    co_expect_contexts(NBD_OPT_SET_META_CONTEXT, STRS(BITMAP), STRS(BITMAP), &id);
    co_go_to_disk();
    (void)co_node_call(rig.node, spoil_there, NULL);
    co_write_request(&client, 1, 100 * KiB, buf, 1);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 2, 0, DISK_BYTES);
    assert_int_equal(co_error_chunk(&client, 2), 5);
    co_end();
}

static void a_bitmap_that_missed_something_says_nothing(void **state)
{
    in_loop(spoiled_body);
}

static void refused_body(void)
{
    struct err err = ERR_INIT;
    struct nbd_export_bitmap b = { .name = "b:0" };
    struct nbd_export_opts o = { .id = "e1", .name = "second", .bitmaps = &b, .n_bitmaps = 1 };

    co_begin();
    o.node = rig.node;
    assert_false(co_nbd_export_add(rig.exports, &o, &err));
    assert_non_null(strstr(err.text, "Bitmap 'b:0' is currently in use"));
    b.name = "b:1";
    assert_false(co_nbd_export_add(rig.exports, &o, &err));
    assert_string_equal(err.text, "Bitmap 'b:1' is not found");
    b.node = "nothing";
    assert_false(co_nbd_export_add(rig.exports, &o, &err));
    /* When its export is gone others may have it, but a read-only one. */
    b = (struct nbd_export_bitmap){ .node = node_name(rig.node), .name = "b:0" };
    assert_true(nbd_export_del(rig.exports, "e0", NBD_EXPORT_DEL_HARD, &err));
    assert_true(co_nbd_export_wait_gone(rig.exports, "e0", DEADLINE_NEVER));
    assert_false(co_nbd_export_add(rig.exports, &o, &err));
    assert_string_equal(err.text, "Enabled bitmap 'b:0' incompatible with readonly export");
    o.writable = true;
    assert_true(co_nbd_export_add(rig.exports, &o, &err));
    co_end();
}

static void a_bitmap_is_held_by_its_export(void **state)
{
    in_loop(refused_body);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(contexts_are_listed_by_name_and_by_name_space),
        cmocka_unit_test(contexts_are_selected_by_their_names),
        cmocka_unit_test(each_context_answers_with_its_own_chunk),
        cmocka_unit_test(a_bitmap_tells_what_is_dirty_at_the_moment),
        cmocka_unit_test(a_bitmap_that_missed_something_says_nothing),
        cmocka_unit_test(a_bitmap_is_held_by_its_export),
    };

    return nbd_rig_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests));
}
