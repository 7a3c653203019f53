/* SPDX-License-Identifier: Apache-2.0
 *
 * From a message to a command and back: the checks that every message passes,
 * in the order and with the words of QEMU's qapi/qmp-dispatch.c and
 * monitor/qmp.c.
 */
#include "base/mem.h"
#include "qmp/impl.h"

json_t *qmp_error_response(const struct err *err)
{
    return json_pack("{s:{s:s,s:o}}", "error", "class", err_class_name(err->class), "desc",
                     schema_json_str(err->text));
}

/* The parts of a message, borrowed from it. */
struct message {
    const char *command;
    const json_t *args;          /* NULL: none */
};

static bool check_member(const char *name, const json_t *value, struct message *m, struct err *err)
{
    if (strcmp(name, "execute") == 0) {
        m->command = json_string_value(value);
        return m->command || err_set(err, -EINVAL, "QMP input member '%s' must be a string", name);
    }
    if (strcmp(name, "arguments") == 0) {
        m->args = value;
        return json_is_object(value) ||
               err_set(err, -EINVAL, "QMP input member 'arguments' must be an object");
    }
    return strcmp(name, "id") == 0 ||
           err_set(err, -EINVAL, "QMP input member '%.200s' is unexpected", name);
}

static bool parse_message(const json_t *message, struct message *m, struct err *err)
{
    const char *name;
    json_t *value;

    if (!json_is_object(message))
        return err_set(err, -EINVAL, "QMP input must be a JSON object");
    json_object_foreach((json_t *)message, name, value) {
        if (!check_member(name, value, m, err))
            return false;
    }
    return m->command || err_set(err, -EINVAL, "QMP input lacks member 'execute'");
}

/* Before qmp_capabilities nothing else is taken, and after it not once more. */
static bool check_mode(const struct qmp *q, const struct qmp_session *session,
                       const struct qmp_command *c, struct err *err)
{
    bool negotiates = c && strcmp(c->name, "qmp_capabilities") == 0;

    if (!session->negotiated && !negotiates)
        return err_set_class(err, ERR_COMMAND_NOT_FOUND, -ENOENT,
                             "Expecting capabilities negotiation with 'qmp_capabilities'");
    if (session->negotiated && negotiates)
        return err_set_class(err, ERR_COMMAND_NOT_FOUND, -ENOENT,
                             "Capabilities negotiation is already complete, command ignored");
    if (q->ending)
        return err_set(err, -ESHUTDOWN, "The program is about to end");
    return true;
}

/* Decode, run, encode. */
static bool co_run(const struct qmp_command *c, const struct qmp_call *call, json_t **ret,
                   struct err *err)
{
    static const struct schema_type no_args = { .name = "q_empty", .kind = SCHEMA_STRUCT };
    const struct schema_type *args_type = c->args ? c->args : &no_args;
    CLEANUP(free) void *args = xzalloc(args_type->size + 1);
    CLEANUP(free) void *out = c->ret ? xzalloc(c->ret->size) : NULL;

    if (!schema_decode(args_type, call->json, call->keyval, args, err))
        return false;

    bool ok = c->co_run(call, c->args ? args : NULL, out, err);

    schema_clear(args_type, args);
    if (ok)
        *ret = c->ret ? schema_encode(c->ret, out) : json_object();
    if (c->ret)
        schema_clear(c->ret, out);
    return ok;
}

static bool co_execute(struct qmp *q, struct qmp_session *session, const struct qmp_command *c,
                       const json_t *args, bool keyval, json_t **ret, struct err *err)
{
    CLEANUP(json_decref) json_t *none = args ? NULL : json_object();
    struct qmp_call call = {
        .qmp = q,
        .session = session,
        .json = args ? args : none,
        .keyval = keyval,
    };

    q->running++;

    bool ok = co_run(c, &call, ret, err);

    q->running--;
    waitq_wake_all(&q->idle);
    return ok;
}

static bool not_found(const char *command, struct err *err)
{
    return err_set_class(err, ERR_COMMAND_NOT_FOUND, -ENOENT,
                         "The command %.200s has not been found", command);
}

json_t *co_qmp_dispatch(struct qmp *q, struct qmp_session *session, const json_t *message)
{
    struct message m = { 0 };
    struct err err = ERR_INIT;
    json_t *result = NULL;
    json_t *id = json_object_get(message, "id");
    bool ok = parse_message(message, &m, &err);

    if (ok) {
        const struct qmp_command *c = qmp_command_find(m.command);

        ok = check_mode(q, session, c, &err) && (c || not_found(m.command, &err)) &&
             co_execute(q, session, c, m.args, false, &result, &err);
    }

    json_t *response = ok ? json_pack("{s:o}", "return", result) : qmp_error_response(&err);

    if (id)
        json_object_set(response, "id", id);
    return response;
}

bool co_qmp_execute(struct qmp *q, const char *command, const json_t *args, bool keyval,
                    json_t **ret, struct err *err)
{
    const struct qmp_command *c = qmp_command_find(command);
    json_t *result = NULL;

    if (!c)
        return not_found(command, err);
    if (!co_execute(q, NULL, c, args, keyval, &result, err))
        return false;
    if (ret)
        *ret = result;
    else
        json_decref(result);
    return true;
}
