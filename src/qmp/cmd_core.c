/* SPDX-License-Identifier: Apache-2.0
 *
 * Commands about QMP itself: QEMU qapi/control.json, introspect.json, misc.json.
 */
#include "base/mem.h"
#include "qmp/impl.h"

/* ---- qmp_capabilities ------------------------------------------------------------- */

static const struct schema_type capability_enum = {
    .name = "QMPCapability", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "oob", NULL },
};
static const struct schema_type capability_list = {
    .name = "QMPCapabilityList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &capability_enum,
};

struct capabilities_args {
    bool has_enable;
    struct schema_array enable;
};
static const struct schema_type capabilities_args_type = {
    .name = "q_obj_qmp_capabilities-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct capabilities_args),
    .members = (const struct schema_member[]){
        SCHEMA_OPTIONAL(struct capabilities_args, enable, "enable", &capability_list,
                        "capabilities of the greeting to turn on"),
        SCHEMA_END,
    },
};

static bool co_capabilities(const struct qmp_call *call, const void *args, void *ret,
                            struct err *err)
{
    const struct capabilities_args *a = args;

    /* The greeting offers none. */
    if (a->enable.n)
        return err_set(err, -ENOTSUP, "Capability %s not available",
                       capability_enum.values[*(int *)a->enable.items]);
    if (call->session)
        call->session->negotiated = true;
    return true;
}

/* ---- query-version ------------------------------------------------------------------ */

struct version_triple {
    int64_t major, minor, micro;
};
static const struct schema_type version_triple_type = {
    .name = "VersionTriple", .kind = SCHEMA_STRUCT, .size = sizeof(struct version_triple),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct version_triple, major, "major", &schema_int, NULL),
        SCHEMA_REQUIRED(struct version_triple, minor, "minor", &schema_int, NULL),
        SCHEMA_REQUIRED(struct version_triple, micro, "micro", &schema_int, NULL),
        SCHEMA_END,
    },
};

struct version_info {
    struct version_triple qemu;
    char *package;
};
static const struct schema_type version_info_type = {
    .name = "VersionInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct version_info),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct version_info, qemu, "qemu", &version_triple_type, NULL),
        SCHEMA_REQUIRED(struct version_info, package, "package", &schema_str, NULL),
        SCHEMA_END,
    },
};

/* Clients look at qemu.major to know what they may ask for: it is the QEMU whose
 * QMP this is. */
static void fill_version(struct version_info *v)
{
    v->qemu = (struct version_triple){ .major = 10 };
    v->package = xstrdup("Stillpoint " STILLPOINT_VERSION);
}

json_t *qmp_version(void)
{
    struct version_info v;

    fill_version(&v);

    json_t *j = schema_encode(&version_info_type, &v);

    schema_clear(&version_info_type, &v);
    return j;
}

static bool co_query_version(const struct qmp_call *call, const void *args, void *ret,
                             struct err *err)
{
    fill_version(ret);
    return true;
}

/* ---- query-commands ----------------------------------------------------------------- */

struct command_info {
    char *name;
};
static const struct schema_type command_info_type = {
    .name = "CommandInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct command_info),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct command_info, name, "name", &schema_str, NULL),
        SCHEMA_END,
    },
};
static const struct schema_type command_list = {
    .name = "CommandInfoList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &command_info_type,
};

static unsigned count_commands(void)
{
    unsigned n = 0;

    while (qmp_command_nth(n))
        n++;
    return n;
}

static bool co_query_commands(const struct qmp_call *call, const void *args, void *ret,
                              struct err *err)
{
    struct schema_array *list = ret;
    unsigned n = count_commands();
    struct command_info *items = xcalloc(n, sizeof(*items));

    for (unsigned i = 0; i < n; i++)
        items[i].name = xstrdup(qmp_command_nth(i)->name);
    *list = (struct schema_array){ .n = n, .items = items };
    return true;
}

/* ---- query-qmp-schema ----------------------------------------------------------------- */

static const struct schema_type schema_info_list = {
    .name = "SchemaInfoList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &schema_any,
};

static bool co_query_schema(const struct qmp_call *call, const void *args, void *ret,
                            struct err *err)
{
    unsigned commands = count_commands(), n = commands;
    struct schema_array *list = ret;

    while (qmp_events[n - commands].name)
        n++;

    CLEANUP(free) struct schema_entity *entities = xcalloc(n, sizeof(*entities));

    for (unsigned i = 0; i < commands; i++) {
        const struct qmp_command *c = qmp_command_nth(i);

        entities[i] = (struct schema_entity){ .name = c->name, .arg = c->args, .ret = c->ret };
    }
    for (unsigned i = commands; i < n; i++) {
        const struct qmp_event *e = &qmp_events[i - commands];

        entities[i] = (struct schema_entity){ .name = e->name, .is_event = true, .arg = e->data };
    }

    CLEANUP(json_decref) json_t *infos = schema_introspect(entities, n);
    json_t **items = xcalloc(json_array_size(infos), sizeof(*items));
    json_t *info;
    size_t i;

    json_array_foreach(infos, i, info)
        items[i] = json_incref(info);
    *list = (struct schema_array){ .n = json_array_size(infos), .items = items };
    return true;
}

/* ---- quit ------------------------------------------------------------------------------ */

static bool co_quit(const struct qmp_call *call, const void *args, void *ret, struct err *err)
{
    qmp_emit_shutdown(call->qmp, QMP_SHUTDOWN_QUIT);
    if (call->qmp->on_quit)
        call->qmp->on_quit(call->qmp->quit_arg);
    return true;
}

const struct qmp_command qmp_core_commands[] = {
    { .name = "qmp_capabilities", .doc = "end the negotiation; commands may follow",
      .args = &capabilities_args_type, .co_run = co_capabilities },
    { .name = "query-version", .doc = "whose QMP this is, and this program's version",
      .ret = &version_info_type, .co_run = co_query_version },
    { .name = "query-commands", .doc = "names of all commands", .ret = &command_list,
      .co_run = co_query_commands },
    { .name = "query-qmp-schema", .doc = "types of all commands and events",
      .ret = &schema_info_list, .co_run = co_query_schema },
    { .name = "quit", .doc = "end the program in good order", .co_run = co_quit },
    { 0 },
};
