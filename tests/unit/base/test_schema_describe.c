/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: the tables tell people (help) and programs (query-qmp-schema) the truth.
 * Method: help of a small type is compared whole; the introspection is followed
 * by names from a command to its leaves, as libvirt does, and checked for what
 * QEMU's qapi/introspect.json promises of any answer.
 */
#include "schema_types.h"
#include "unit.h"

static void help_lists_members_and_branches(void **state)
{
    char *help = schema_help(&node_options_type);

    assert_string_equal(help,
        "  driver=<str>                      the kind of node (required)\n"
        "  node-name=<str>\n"
        "  read-only=<on|off>\n"
        "  driver=file: a file\n"
        "    filename=<str>                  path of the file (required)\n"
        "    aio=<threads|native|io_uring>   how to do I/O\n"
        "  driver=raw\n"
        "    file=<NodeRef>                  (required)\n"
        "    offset=<size>                   where the disk starts\n"
        "  driver=null\n");
    free(help);
}

static void help_spells_nested_keys_as_typed(void **state)
{
    char *help = schema_help(&everything_type);

    assert_non_null(strstr(help, "\n  nested.<FileOptions>\n    nested.filename=<str> "));
    assert_non_null(strstr(help, "\n  names.0=<str>\n"));
    assert_non_null(strstr(help, "\n  nodes.0.<NodeOptions>\n    nodes.0.driver=<str> "));
    /* The type that is being explained is named, not opened again. */
    assert_non_null(strstr(help, "\n      nodes.0.file=<NodeRef> "));
    assert_null(strstr(help, "nodes.0.file.driver"));
    free(help);
}

static const struct schema_entity entities[] = {
    { "blockdev-add", .arg = &node_options_type },
    { "query-things", .ret = &everything_type, .allow_oob = true },
    { "SHAPE_CHANGED", .is_event = true, .arg = &shape_type },
    { "STOPPED", .is_event = true },
};

static json_t *find_info(json_t *schema, const char *name)
{
    json_t *info, *found = NULL;
    size_t i;

    json_array_foreach(schema, i, info) {
        if (strcmp(json_string_value(json_object_get(info, "name")), name) == 0) {
            assert_null(found);             /* names are unique */
            found = info;
        }
    }
    assert_non_null(found);
    return found;
}

/* The info of the type that @info names under @key. */
static json_t *follow(json_t *schema, json_t *info, const char *key)
{
    return find_info(schema, json_string_value(json_object_get(info, key)));
}

static json_t *by_field(json_t *list, const char *field, const char *value)
{
    json_t *v;
    size_t i;

    json_array_foreach(list, i, v) {
        if (strcmp(json_string_value(json_object_get(v, field)), value) == 0)
            return v;
    }
    fail_msg("no %s '%s'", field, value);
    return NULL;
}

static const char *text_of(json_t *info, const char *key)
{
    return json_string_value(json_object_get(info, key));
}

static void a_command_is_followed_to_its_leaves(void **state)
{
    json_t *schema = schema_introspect(entities, ARRAY_SIZE(entities));
    json_t *command = find_info(schema, "blockdev-add");

    assert_string_equal(text_of(command, "meta-type"), "command");
    assert_null(json_object_get(command, "allow-oob"));
    json_t *arg = follow(schema, command, "arg-type");
    assert_string_equal(text_of(arg, "meta-type"), "object");
    assert_string_equal(text_of(arg, "tag"), "driver");

    json_t *driver = by_field(json_object_get(arg, "members"), "name", "driver");
    assert_null(json_object_get(driver, "default"));
    json_t *tag = follow(schema, driver, "type");
    assert_string_equal(text_of(tag, "meta-type"), "enum");
    assert_int_equal(json_array_size(json_object_get(tag, "values")), 3);
    (void)by_field(json_object_get(tag, "members"), "name", "raw");

    json_t *read_only = by_field(json_object_get(arg, "members"), "name", "read-only");
    assert_true(json_is_null(json_object_get(read_only, "default")));
    assert_string_equal(text_of(read_only, "type"), "bool");

    json_t *raw = follow(schema, by_field(json_object_get(arg, "variants"), "case", "raw"),
                         "type");
    json_t *file = follow(schema, by_field(json_object_get(raw, "members"), "name", "file"),
                          "type");
    assert_string_equal(text_of(file, "meta-type"), "alternate");
    /* The reference leads back to the union itself. */
    (void)by_field(json_object_get(file, "members"), "type", text_of(command, "arg-type"));
    (void)by_field(json_object_get(file, "members"), "type", "str");
    json_t *offset = by_field(json_object_get(raw, "members"), "name", "offset");
    assert_string_equal(text_of(follow(schema, offset, "type"), "json-type"), "int");
    json_decref(schema);
}

static void results_events_and_arrays(void **state)
{
    json_t *schema = schema_introspect(entities, ARRAY_SIZE(entities));
    json_t *query = find_info(schema, "query-things");

    assert_true(json_is_true(json_object_get(query, "allow-oob")));
    assert_int_equal(
        json_array_size(json_object_get(follow(schema, query, "arg-type"), "members")), 0);
    json_t *members = json_object_get(follow(schema, query, "ret-type"), "members");
    assert_string_equal(text_of(by_field(members, "name", "names"), "type"), "[str]");
    json_t *nodes = follow(schema, by_field(members, "name", "nodes"), "type");
    assert_string_equal(text_of(nodes, "meta-type"), "array");
    assert_string_equal(text_of(nodes, "element-type"),
                        text_of(find_info(schema, "blockdev-add"), "arg-type"));
    json_t *ref = follow(schema, by_field(members, "name", "ref"), "type");
    (void)by_field(json_object_get(ref, "members"), "type", "null");

    json_t *event = find_info(schema, "SHAPE_CHANGED");
    assert_string_equal(text_of(event, "meta-type"), "event");
    assert_null(json_object_get(event, "ret-type"));
    json_t *stopped = follow(schema, find_info(schema, "STOPPED"), "arg-type");
    assert_int_equal(json_array_size(json_object_get(stopped, "members")), 0);
    json_decref(schema);
}

/* Every name that stands anywhere in the answer is explained in it, once. */
static void every_type_that_is_named_is_there(void **state)
{
    static const char *const refs[] = { "arg-type", "ret-type", "element-type", "type" };
    static const char *const lists[] = { "members", "variants" };
    json_t *schema = schema_introspect(entities, ARRAY_SIZE(entities));
    json_t *info, *member;
    size_t i, k;

    json_array_foreach(schema, i, info) {
        (void)find_info(schema, text_of(info, "name"));
        for (size_t r = 0; r < ARRAY_SIZE(refs); r++) {
            if (json_object_get(info, refs[r]))
                (void)follow(schema, info, refs[r]);
        }
        for (size_t l = 0; l < ARRAY_SIZE(lists); l++) {
            json_array_foreach(json_object_get(info, lists[l]), k, member) {
                if (json_object_get(member, "type"))
                    (void)follow(schema, member, "type");
            }
        }
    }
    json_decref(schema);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_lists_members_and_branches),
        cmocka_unit_test(help_spells_nested_keys_as_typed),
        cmocka_unit_test(a_command_is_followed_to_its_leaves),
        cmocka_unit_test(results_events_and_arrays),
        cmocka_unit_test(every_type_that_is_named_is_there),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
