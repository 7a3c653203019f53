/* SPDX-License-Identifier: Apache-2.0
 *
 * What becomes of one message: its checks, the protocol's two modes, ids, error
 * classes. Wording is compared with QEMU's own program in the behaviour tests.
 */
#include "drivers/drivers.h"
#include "qmp_test.h"

static struct qmp_test t;
static struct qmp_session session;

/* The response to a message written with ' for ", in which @fmt may say things. */
static json_t *co_ask(const char *text)
{
    CLEANUP(json_decref) json_t *message = test_json("%s", text);

    return co_qmp_dispatch(t.qmp, &session, message);
}

static void co_expect_error(const char *text, const char *class, const char *desc)
{
    CLEANUP(json_decref) json_t *response = co_ask(text);
    json_t *error = json_object_get(response, "error");

    assert_non_null(error);
    assert_null(json_object_get(response, "return"));
    assert_string_equal(json_string_value(json_object_get(error, "class")), class);
    assert_string_equal(json_string_value(json_object_get(error, "desc")), desc);
}

static void co_expect_return(const char *text)
{
    CLEANUP(json_decref) json_t *response = co_ask(text);

    if (!json_object_get(response, "return"))
        fail_msg("%s: %s", text,
                 json_string_value(json_object_get(json_object_get(response, "error"), "desc")));
}

static void begin(bool negotiated)
{
    qmp_test_begin(&t);
    session = (struct qmp_session){ .negotiated = negotiated };
}

#define GENERIC "GenericError"
#define NOT_FOUND "CommandNotFound"

static void co_modes(void)
{
    begin(false);
    co_expect_error("{'execute': 'query-version'}", NOT_FOUND,
                    "Expecting capabilities negotiation with 'qmp_capabilities'");
    co_expect_error("{'execute': 'nope'}", NOT_FOUND,
                    "Expecting capabilities negotiation with 'qmp_capabilities'");
    co_expect_error("{'execute': 'qmp_capabilities', 'arguments': {'enable': ['oob']}}", GENERIC,
                    "Capability oob not available");
    assert_false(session.negotiated);
    co_expect_return("{'execute': 'qmp_capabilities', 'arguments': {'enable': []}}");
    assert_true(session.negotiated);
    co_expect_error("{'execute': 'qmp_capabilities'}", NOT_FOUND,
                    "Capabilities negotiation is already complete, command ignored");
    co_expect_return("{'execute': 'query-version'}");
    co_qmp_test_end(&t);
}

static void nothing_but_negotiation_at_first_and_never_again(void **state)
{
    in_loop(co_modes);
}

static void co_shapes(void)
{
    begin(true);
    co_expect_error("[]", GENERIC, "QMP input must be a JSON object");
    co_expect_error("5", GENERIC, "QMP input must be a JSON object");
    co_expect_error("null", GENERIC, "QMP input must be a JSON object");
    co_expect_error("{}", GENERIC, "QMP input lacks member 'execute'");
    co_expect_error("{'arguments': {}}", GENERIC, "QMP input lacks member 'execute'");
    co_expect_error("{'execute': 5}", GENERIC, "QMP input member 'execute' must be a string");
    co_expect_error("{'execute': 'quit', 'arguments': []}", GENERIC,
                    "QMP input member 'arguments' must be an object");
    co_expect_error("{'execute': 'quit', 'foo': 1}", GENERIC,
                    "QMP input member 'foo' is unexpected");
    co_expect_error("{'exec-oob': 'quit'}", GENERIC, "QMP input member 'exec-oob' is unexpected");
    co_expect_error("{'execute': 'nope'}", NOT_FOUND, "The command nope has not been found");
    co_expect_error("{'execute': 'query-version', 'arguments': {'a': 1}}", GENERIC,
                    "Parameter 'a' is unexpected");
    assert_int_equal(t.quits, 0);
    co_qmp_test_end(&t);
}

static void malformed_messages_are_told_why(void **state)
{
    in_loop(co_shapes);
}

static void co_expect_id(const char *text, const char *id_text)
{
    CLEANUP(json_decref) json_t *response = co_ask(text);
    CLEANUP(json_decref) json_t *id = id_text ? test_json("%s", id_text) : NULL;

    assert_true(json_equal(json_object_get(response, "id"), id) ||
                (!id && !json_object_get(response, "id")));
}

static void co_ids(void)
{
    begin(true);
    co_expect_id("{'execute': 'query-version', 'id': 'x'}", "'x'");
    co_expect_id("{'execute': 'query-version', 'id': {'a': [1, null]}}", "{'a': [1, null]}");
    co_expect_id("{'execute': 'query-version', 'id': null}", "null");
    co_expect_id("{'execute': 'nope', 'id': 7}", "7");
    co_expect_id("{'foo': 1, 'id': 8}", "8");
    co_expect_id("{'execute': 'query-version'}", NULL);
    co_qmp_test_end(&t);
}

static void an_id_comes_back_also_with_an_error(void **state)
{
    in_loop(co_ids);
}

static void co_classes(void)
{
    begin(true);
    co_expect_error("{'execute': 'block-job-cancel', 'arguments': {'device': 'j'}}",
                    "DeviceNotActive", "Block job 'j' not found");
    co_expect_error("{'execute': 'job-cancel', 'arguments': {'id': 'j'}}", GENERIC,
                    "Job not found");
    co_expect_error("{'execute': 'blockdev-del', 'arguments': {'node-name': 'n'}}", GENERIC,
                    "Failed to find node with node-name='n'");
    co_expect_error("{'execute': 'block-export-add', 'arguments': "
                    "{'type': 'nbd', 'id': 'e', 'node-name': 'n'}}", GENERIC,
                    "NBD server not running");
    co_qmp_test_end(&t);
}

static void errors_have_their_classes(void **state)
{
    in_loop(co_classes);
}

static void co_nodes(void)
{
    begin(true);
    co_expect_error("{'execute': 'blockdev-add', 'arguments': {'driver': 'null-co'}}", GENERIC,
                    "'node-name' must be specified for the root node");
    co_expect_return("{'execute': 'blockdev-add', 'arguments': "
                     "{'driver': 'null-co', 'node-name': 'n0', 'size': 65536}}");
    co_expect_return("{'execute': 'blockdev-add', 'arguments': "
                     "{'driver': 'raw', 'node-name': 'r0', 'file': 'n0'}}");
    assert_int_equal(test_node_count(), 2);

    CLEANUP(json_decref) json_t *response = co_ask("{'execute': 'query-named-block-nodes'}");
    json_t *list = json_object_get(response, "return");

    assert_int_equal(json_array_size(list), 2);
    assert_int_equal(json_integer_value(json_object_get(
                         json_object_get(json_array_get(list, 1), "image"), "virtual-size")),
                     65536);
    co_expect_return("{'execute': 'blockdev-del', 'arguments': {'node-name': 'r0'}}");
    assert_int_equal(test_node_count(), 1);
    /* n0 is left for the shutdown to delete. */
    co_qmp_test_end(&t);
    assert_int_equal(test_node_count(), 0);
}

static void nodes_come_and_go(void **state)
{
    in_loop(co_nodes);
}

static void co_inside(void)
{
    CLEANUP(json_decref) json_t *args = test_json("{'driver': 'null-co', 'node-name': 'n0', "
                                                  "'size': '64k', 'read-only': 'on'}");
    CLEANUP(json_decref) json_t *ret = NULL;
    struct err err = ERR_INIT;

    begin(false);
    assert_true(co_qmp_execute(t.qmp, "blockdev-add", args, true, NULL, &err));
    assert_false(co_qmp_execute(t.qmp, "blockdev-add", args, true, NULL, &err));
    assert_string_equal(err.text, "Duplicate nodes with node-name='n0'");
    assert_false(co_qmp_execute(t.qmp, "nope", NULL, false, NULL, &err));
    assert_int_equal(err.class, ERR_COMMAND_NOT_FOUND);
    assert_true(co_qmp_execute(t.qmp, "query-named-block-nodes", NULL, false, &ret, &err));
    assert_int_equal(json_array_size(ret), 1);
    assert_true(json_is_true(json_object_get(json_array_get(ret, 0), "ro")));
    co_qmp_test_end(&t);
}

static void the_program_gives_the_same_commands_itself(void **state)
{
    in_loop(co_inside);
}

static void co_quit(void)
{
    begin(true);
    co_expect_return("{'execute': 'quit'}");
    assert_int_equal(t.quits, 1);
    co_qmp_test_end(&t);
}

static void quit_is_passed_on(void **state)
{
    in_loop(co_quit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_but_negotiation_at_first_and_never_again),
        cmocka_unit_test(malformed_messages_are_told_why),
        cmocka_unit_test(an_id_comes_back_also_with_an_error),
        cmocka_unit_test(errors_have_their_classes),
        cmocka_unit_test(nodes_come_and_go),
        cmocka_unit_test(the_program_gives_the_same_commands_itself),
        cmocka_unit_test(quit_is_passed_on),
    };

    drivers_register_all();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
