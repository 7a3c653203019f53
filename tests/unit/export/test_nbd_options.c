/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: every option of the negotiation does what doc/proto.md says, and answers
 * data that is wrong with an error after which the negotiation goes on.
 * Method: a client of raw bytes against a server in the same process.
 */
#include "nbd_rig.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/mem.h"
#include <stdio.h>

static struct rig rig;
static struct client client;
static struct option_reply reply;
static uint8_t data[16384];

/* Each test is a body between these two, with a client that has been greeted. */
static void co_begin(void)
{
    co_rig_open(&rig, &(struct rig_opts){ 0 });
    client = co_client_connect(&rig);
    co_greet(&client);
}

static void co_end(void)
{
    client_close(&client);
    co_rig_close(&rig);
}

/* The connection negotiates still. */
static void co_expect_alive(void)
{
    co_option(&client, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    co_expect_option_reply(&client, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
}

static void co_expect_refusal(uint32_t option, uint32_t len, uint32_t error)
{
    co_option(&client, option, data, len);
    co_option_reply(&client, option, &reply);
    assert_int_equal(reply.type, error);
    assert_true(reply.len > 0);   /* a text for people */
}

static void co_go_to_disk(void)
{
    co_option(&client, NBD_OPT_GO, data, put_go(data, "disk"));
    do {
        co_option_reply(&client, NBD_OPT_GO, &reply);
    } while (reply.type == NBD_REP_INFO);
    assert_int_equal(reply.type, NBD_REP_ACK);
}

/* ---- what they do ------------------------------------------------------- */

static void info_body(void)
{
    unsigned seen = 0;

    co_begin();
    uint32_t n = put_go(data, "disk");

    store_be16(data + n - 2, 2);
    store_be16(data + n, NBD_INFO_NAME);
    store_be16(data + n + 2, NBD_INFO_DESCRIPTION);
    co_option(&client, NBD_OPT_INFO, data, n + 4);
    for (;;) {
        co_option_reply(&client, NBD_OPT_INFO, &reply);
        if (reply.type == NBD_REP_ACK)
            break;
        assert_int_equal(reply.type, NBD_REP_INFO);
        uint16_t type = load_be16(reply.data);

        seen |= 1U << type;
        if (type == NBD_INFO_EXPORT) {
            assert_int_equal(load_be64(reply.data + 2), DISK_BYTES);
            assert_int_equal(load_be16(reply.data + 10),
                             NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                             NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                             NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
                             NBD_FLAG_SEND_FAST_ZERO);
        } else if (type == NBD_INFO_NAME) {
            assert_string_equal(reply.data + 2, "disk");
        } else if (type == NBD_INFO_DESCRIPTION) {
            assert_string_equal(reply.data + 2, "a disk in memory");
        } else if (type == NBD_INFO_BLOCK_SIZE) {
            assert_int_equal(load_be32(reply.data + 2), 1);
            assert_int_equal(load_be32(reply.data + 6), 4096);
            assert_int_equal(load_be32(reply.data + 10), 32 * MiB);
        }
    }
    assert_int_equal(seen, 15);
    co_expect_alive();
    co_end();
}

static void info_tells_everything_and_goes_on(void **state)
{
    in_loop(info_body);
}

static void list_body(void)
{
    struct err err = ERR_INIT;
    struct nbd_export_opts o = { .id = "e1", .node = NULL, .name = "second" };

    co_begin();
    o.node = rig.node;
    assert_true(co_nbd_export_add(rig.exports, &o, &err));
    co_option(&client, NBD_OPT_LIST, NULL, 0);
    co_option_reply(&client, NBD_OPT_LIST, &reply);
    assert_int_equal(reply.type, NBD_REP_SERVER);
    assert_int_equal(load_be32(reply.data), 4);
    assert_string_equal(reply.data + 4, "diska disk in memory");
    co_option_reply(&client, NBD_OPT_LIST, &reply);
    assert_int_equal(reply.type, NBD_REP_SERVER);
    assert_string_equal(reply.data + 4, "second");
    co_expect_option_reply(&client, NBD_OPT_LIST, NBD_REP_ACK);
    co_expect_refusal(NBD_OPT_LIST, 1, NBD_REP_ERR_INVALID);
    co_expect_alive();
    co_end();
}

static void list_names_every_export(void **state)
{
    in_loop(list_body);
}

/* More than is sent at a time, with exports that come and go meanwhile. */
static void long_list_body(void)
{
    CLEANUP(free) char *words = xzalloc(LIMIT_NBD_STRING_BYTES + 1);
    struct err err = ERR_INIT;
    char id[16];

    co_begin();
    memset(words, 'w', LIMIT_NBD_STRING_BYTES);
    for (int i = 0; i < 200; i++) {
        struct nbd_export_opts o = {
            .id = id, .node = rig.node, .name = id, .description = words,
        };

        snprintf(id, sizeof(id), "x%d", i);
        assert_true(co_nbd_export_add(rig.exports, &o, &err));
    }
    co_option(&client, NBD_OPT_LIST, NULL, 0);
    co_option_reply(&client, NBD_OPT_LIST, &reply);
    for (int i = 0; i < 200; i++) {
        snprintf(id, sizeof(id), "x%d", i);
        co_option_reply(&client, NBD_OPT_LIST, &reply);
        assert_int_equal(reply.type, NBD_REP_SERVER);
        assert_int_equal(load_be32(reply.data), strlen(id));
        assert_memory_equal(reply.data + 4, id, strlen(id));
        if (i == 20) {   /* by now the server waits with some of the rest */
            assert_true(nbd_export_del(rig.exports, "x190", NBD_EXPORT_DEL_SAFE, &err));
            assert_true(co_nbd_export_wait_gone(rig.exports, "x190", DEADLINE_NEVER));
        }
        if (i == 189)
            i++;
    }
    co_expect_option_reply(&client, NBD_OPT_LIST, NBD_REP_ACK);
    co_end();
}

static void a_long_list_survives_changes(void **state)
{
    in_loop(long_list_body);
}

static void export_name_body(void)
{
    uint8_t out[134];

    co_begin();
    co_option(&client, NBD_OPT_EXPORT_NAME, "disk", 4);
    co_get(&client, out, 10);
    assert_int_equal(load_be64(out), DISK_BYTES);
    co_request(&client, NBD_CMD_READ, 0, 1, 0, 512);
    assert_int_equal(co_simple_reply(&client, 1), 0);
    client_close(&client);

    /* A client of the first newstyle: no flags, so no options and 124 zeros. */
    client = co_client_connect(&rig);
    co_greet_with(&client, 0);
    co_option(&client, NBD_OPT_EXPORT_NAME, "disk", 4);
    co_get(&client, out, 134);
    assert_true(mem_is_zero(out + 10, 124));
    co_request(&client, NBD_CMD_FLUSH, 0, 2, 0, 0);
    assert_int_equal(co_simple_reply(&client, 2), 0);
    client_close(&client);

    client = co_client_connect(&rig);
    co_greet_with(&client, 0);
    co_option(&client, NBD_OPT_LIST, NULL, 0);
    co_expect_end(&client);
    client_close(&client);

    client = co_client_connect(&rig);
    co_greet(&client);
    co_option(&client, NBD_OPT_EXPORT_NAME, "nothing", 7);
    co_expect_end(&client);
    co_end();
}

static void export_name_serves_old_clients(void **state)
{
    in_loop(export_name_body);
}

static void default_export_body(void)
{
    struct err err = ERR_INIT;
    struct nbd_export_opts o = { .id = "e1", .name = "second" };

    co_begin();
    co_option(&client, NBD_OPT_INFO, data, put_go(data, ""));
    co_option_reply(&client, NBD_OPT_INFO, &reply);
    assert_int_equal(reply.type, NBD_REP_INFO);
    do {
        co_option_reply(&client, NBD_OPT_INFO, &reply);
    } while (reply.type == NBD_REP_INFO);
    assert_int_equal(reply.type, NBD_REP_ACK);
    o.node = rig.node;
    assert_true(co_nbd_export_add(rig.exports, &o, &err));
    co_expect_refusal(NBD_OPT_INFO, put_go(data, ""), NBD_REP_ERR_UNKNOWN);
    co_end();
}

static void the_empty_name_means_the_only_export(void **state)
{
    in_loop(default_export_body);
}

static void meta_body(void)
{
    co_begin();
    co_option(&client, NBD_OPT_LIST_META_CONTEXT, data, put_meta(data, "disk", NULL));
    co_option_reply(&client, NBD_OPT_LIST_META_CONTEXT, &reply);
    assert_int_equal(reply.type, NBD_REP_META_CONTEXT);
    assert_string_equal(reply.data + 4, "base:allocation");
    co_expect_option_reply(&client, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);

    co_option(&client, NBD_OPT_LIST_META_CONTEXT, data, put_meta(data, "disk", "qemu:"));
    co_expect_option_reply(&client, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);
    co_option(&client, NBD_OPT_LIST_META_CONTEXT, data, put_meta(data, "disk", "base:"));
    co_expect_option_reply(&client, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT);
    co_expect_option_reply(&client, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);

    /* Selecting needs structured replies, and a whole name. */
    co_expect_refusal(NBD_OPT_SET_META_CONTEXT, put_meta(data, "disk", "base:allocation"),
                      NBD_REP_ERR_INVALID);
    co_expect_alive();
    co_option(&client, NBD_OPT_SET_META_CONTEXT, data, put_meta(data, "disk", "base:"));
    co_expect_option_reply(&client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    co_option(&client, NBD_OPT_SET_META_CONTEXT, data, put_meta(data, "disk", "base:allocation"));
    co_option_reply(&client, NBD_OPT_SET_META_CONTEXT, &reply);
    assert_int_equal(reply.type, NBD_REP_META_CONTEXT);
    assert_int_not_equal(load_be32(reply.data), 0);
    assert_string_equal(reply.data + 4, "base:allocation");
    co_expect_option_reply(&client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    co_end();
}

static void contexts_are_listed_and_selected(void **state)
{
    in_loop(meta_body);
}

static void other_export_body(void)
{
    struct err err = ERR_INIT;
    struct nbd_export_opts o = { .id = "e1", .name = "second" };

    co_begin();
    o.node = rig.node;
    assert_true(co_nbd_export_add(rig.exports, &o, &err));
    co_expect_alive();
    co_option(&client, NBD_OPT_SET_META_CONTEXT, data,
              put_meta(data, "second", "base:allocation"));
    co_expect_option_reply(&client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
    co_expect_option_reply(&client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    co_go_to_disk();
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 7, 0, 4096);
    assert_int_equal(co_error_chunk(&client, 7), 22);
    co_end();
}

static void contexts_hold_for_their_export_only(void **state)
{
    in_loop(other_export_body);
}

/* "Issuing this command replaces all previously-set metadata contexts." */
static void deselected_body(void)
{
    co_begin();
    co_expect_alive();
    co_option(&client, NBD_OPT_SET_META_CONTEXT, data, put_meta(data, "disk", "base:allocation"));
    co_expect_option_reply(&client, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
    co_expect_option_reply(&client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    co_option(&client, NBD_OPT_SET_META_CONTEXT, data, put_meta(data, "disk", "qemu:other"));
    co_expect_option_reply(&client, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    co_go_to_disk();
    co_request(&client, NBD_CMD_BLOCK_STATUS, 0, 7, 0, 4096);
    assert_int_equal(co_error_chunk(&client, 7), 22);
    co_end();
}

static void selecting_again_replaces(void **state)
{
    in_loop(deselected_body);
}

static void abort_body(void)
{
    co_begin();
    co_option(&client, NBD_OPT_ABORT, NULL, 0);
    co_expect_option_reply(&client, NBD_OPT_ABORT, NBD_REP_ACK);
    co_expect_end(&client);
    co_rig_wait_connections(&rig, 0);
    co_end();
}

static void abort_is_acknowledged(void **state)
{
    in_loop(abort_body);
}

/* ---- what is wrong with them -------------------------------------------- */

static void refusals_body(void)
{
    co_begin();
    co_expect_refusal(NBD_OPT_STARTTLS, 0, NBD_REP_ERR_UNSUP);
    co_expect_refusal(NBD_OPT_STARTTLS, 4, NBD_REP_ERR_INVALID);
    co_expect_refusal(NBD_OPT_STRUCTURED_REPLY, 4, NBD_REP_ERR_INVALID);
    co_expect_refusal(4, 0, NBD_REP_ERR_UNSUP);           /* PEEK_EXPORT, withdrawn */
    co_expect_refusal(0, 0, NBD_REP_ERR_UNSUP);
    co_expect_refusal(UINT32_MAX, sizeof(data), NBD_REP_ERR_UNSUP);
    co_expect_refusal(NBD_OPT_GO, put_go(data, "nothing"), NBD_REP_ERR_UNKNOWN);
    assert_string_equal(reply.data, "export 'nothing' not present");
    co_expect_refusal(NBD_OPT_LIST_META_CONTEXT, put_meta(data, "nothing", NULL),
                      NBD_REP_ERR_UNKNOWN);
    co_expect_alive();
    co_end();
}

static void refusals_name_what_is_wrong(void **state)
{
    in_loop(refusals_body);
}

static void lengths_body(void)
{
    static const uint32_t options[] = {
        NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT,
    };

    co_begin();
    co_expect_alive();
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        bool go = options[i] <= NBD_OPT_GO;
        uint32_t whole = go ? put_go(data, "disk") : put_meta(data, "disk", "base:allocation");

        for (uint32_t len = 0; len < whole; len++)
            co_expect_refusal(options[i], len, NBD_REP_ERR_INVALID);
        co_expect_refusal(options[i], whole + 1, NBD_REP_ERR_INVALID);
        memset(data, 0xff, sizeof(data));
        co_expect_refusal(options[i], sizeof(data), NBD_REP_ERR_INVALID);
    }
    co_expect_alive();
    co_end();
}

static void data_of_any_wrong_length_is_refused(void **state)
{
    in_loop(lengths_body);
}

static void long_names_body(void)
{
    char name[LIMIT_NBD_STRING_BYTES + 2] = "";

    co_begin();
    memset(name, 'n', LIMIT_NBD_STRING_BYTES);
    co_expect_refusal(NBD_OPT_INFO, put_go(data, name), NBD_REP_ERR_UNKNOWN);
    name[LIMIT_NBD_STRING_BYTES] = 'n';
    co_expect_refusal(NBD_OPT_INFO, put_go(data, name), NBD_REP_ERR_INVALID);
    co_expect_refusal(NBD_OPT_LIST_META_CONTEXT, put_meta(data, name, NULL),
                      NBD_REP_ERR_INVALID);
    co_option(&client, NBD_OPT_EXPORT_NAME, name, LIMIT_NBD_STRING_BYTES + 1);
    co_expect_end(&client);
    co_end();
}

static void names_are_bounded(void **state)
{
    in_loop(long_names_body);
}

static void long_options_body(void)
{
    CLEANUP(free) uint8_t *big = xzalloc(LIMIT_NBD_OPTION_SKIP_BYTES);

    co_begin();
    co_option(&client, NBD_OPT_GO, big, LIMIT_NBD_OPTION_BYTES + 1);
    co_expect_option_reply(&client, NBD_OPT_GO, NBD_REP_ERR_TOO_BIG);
    co_option(&client, 99, big, LIMIT_NBD_OPTION_SKIP_BYTES);
    co_expect_option_reply(&client, 99, NBD_REP_ERR_UNSUP);
    co_expect_alive();
    /* Longer still: the data need not even come. */
    uint8_t head[NBD_OPTION_BYTES];

    store_be64(head, NBD_OPTION_MAGIC);
    store_be32(head + 8, NBD_OPT_GO);
    store_be32(head + 12, UINT32_MAX);
    co_put(&client, head, sizeof(head));
    co_expect_end(&client);
    co_end();
}

static void options_are_bounded(void **state)
{
    in_loop(long_options_body);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(info_tells_everything_and_goes_on),
        cmocka_unit_test(list_names_every_export),
        cmocka_unit_test(a_long_list_survives_changes),
        cmocka_unit_test(export_name_serves_old_clients),
        cmocka_unit_test(the_empty_name_means_the_only_export),
        cmocka_unit_test(contexts_are_listed_and_selected),
        cmocka_unit_test(contexts_hold_for_their_export_only),
        cmocka_unit_test(selecting_again_replaces),
        cmocka_unit_test(abort_is_acknowledged),
        cmocka_unit_test(refusals_name_what_is_wrong),
        cmocka_unit_test(data_of_any_wrong_length_is_refused),
        cmocka_unit_test(names_are_bounded),
        cmocka_unit_test(options_are_bounded),
    };

    return nbd_rig_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests));
}
