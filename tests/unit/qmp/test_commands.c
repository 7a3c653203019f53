/* SPDX-License-Identifier: Apache-2.0
 *
 * The table of commands and events as a whole: what every entry must have, and
 * that query-qmp-schema can be followed from each to its last type.
 */
#include "co_test.h"
#include "drivers/drivers.h"
#include "qmp/impl.h"

static void every_command_is_found_by_its_name(void **state)
{
    const struct qmp_command *c;
    unsigned n = 0;

    for (; (c = qmp_command_nth(n)); n++) {
        assert_non_null(c->co_run);
        assert_non_null(c->doc);
        assert_ptr_equal(qmp_command_find(c->name), c);
        assert_true(!c->args || c->args->kind == SCHEMA_STRUCT || c->args->kind == SCHEMA_UNION);
    }
    assert_true(n > 20);
    assert_null(qmp_command_find("nope"));
    assert_null(qmp_command_find(""));
}

static void every_argument_is_explained(void **state)
{
    const struct qmp_command *c;

    for (unsigned i = 0; (c = qmp_command_nth(i)); i++) {
        CLEANUP(free) char *help = qmp_command_help(c->name);

        assert_true(!c->args == !help);
        for (const struct schema_member *m = c->args ? c->args->members : NULL; m && m->name; m++)
            assert_true(m->doc || (c->args->tag && strcmp(m->name, c->args->tag) == 0));
    }
    assert_null(qmp_command_help("nope"));
}

/* What a SchemaInfo says of another. */
static const char *const references[] = { "arg-type", "ret-type", "element-type", "type" };

static void collect(const json_t *info, json_t *into)
{
    const char *key;
    json_t *value;
    size_t i;

    if (json_is_array(info)) {
        json_array_foreach(info, i, value)
            collect(value, into);
        return;
    }
    json_object_foreach((json_t *)info, key, value) {
        for (i = 0; i < ARRAY_SIZE(references); i++) {
            if (strcmp(key, references[i]) == 0 && json_is_string(value))
                json_object_set(into, json_string_value(value), json_true());
        }
        collect(value, into);
    }
}

static json_t *co_query(const char *command)
{
    struct placement *p = placement_new(LOOP_ENGINE_AUTO, 1);
    struct qmp_opts o = { .placement = p };
    struct qmp *q = qmp_new(&o);
    struct err err = ERR_INIT;
    json_t *ret = NULL;

    if (!co_qmp_execute(q, command, NULL, false, &ret, &err))
        fail_msg("%s", err.text);
    qmp_free(q);
    placement_free(p);
    return ret;
}

static bool has_entity(const json_t *schema, const char *name, const char *meta_type)
{
    json_t *info;
    size_t i;

    json_array_foreach(schema, i, info) {
        if (strcmp(json_string_value(json_object_get(info, "name")), name) == 0)
            return strcmp(json_string_value(json_object_get(info, "meta-type")), meta_type) == 0;
    }
    return false;
}

static void co_schema_is_closed(void)
{
    CLEANUP(json_decref) json_t *schema = co_query("query-qmp-schema");
    CLEANUP(json_decref) json_t *used = json_object();
    CLEANUP(json_decref) json_t *named = json_object();
    const struct qmp_command *c;
    const char *name;
    json_t *info;
    size_t i;

    json_array_foreach(schema, i, info) {
        name = json_string_value(json_object_get(info, "name"));
        assert_null(json_object_get(named, name));
        json_object_set_new(named, name, json_true());
        collect(info, used);
    }
    json_object_foreach(used, name, info)
        assert_non_null(json_object_get(named, name));
    for (i = 0; (c = qmp_command_nth((unsigned)i)); i++)
        assert_true(has_entity(schema, c->name, "command"));
    for (const struct qmp_event *e = qmp_events; e->name; e++)
        assert_true(has_entity(schema, e->name, "event"));
}

static void the_schema_tells_every_command_event_and_type(void **state)
{
    in_loop(co_schema_is_closed);
}

static void co_commands_are_listed(void)
{
    CLEANUP(json_decref) json_t *list = co_query("query-commands");

    for (unsigned i = 0; i < json_array_size(list); i++)
        assert_string_equal(json_string_value(json_object_get(json_array_get(list, i), "name")),
                            qmp_command_nth(i)->name);
    assert_null(qmp_command_nth((unsigned)json_array_size(list)));
}

static void query_commands_tells_all(void **state)
{
    in_loop(co_commands_are_listed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_command_is_found_by_its_name),
        cmocka_unit_test(every_argument_is_explained),
        cmocka_unit_test(the_schema_tells_every_command_event_and_type),
        cmocka_unit_test(query_commands_tells_all),
    };

    drivers_register_all();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
