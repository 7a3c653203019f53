/* SPDX-License-Identifier: Apache-2.0
 *
 * The command `transaction`: QEMU qapi/transaction.json. Of QEMU's actions those are
 * there whose commands are; the others are refused by name. One is our own.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "qmp/transaction.h"

/* ---- abort ------------------------------------------------------------------------------ */

static const struct schema_type abort_args = {
    .name = "Abort", .kind = SCHEMA_STRUCT,
    .members = (const struct schema_member[]){ SCHEMA_END },
};
static const struct schema_type abort_wrapper = ACTION_WRAPPER("AbortWrapper", &abort_args, 0);

static bool co_abort_prepare(struct action *a, struct err *err)
{
    return err_set(err, -ECANCELED, "Transaction aborted using Abort action");
}

static const struct action_ops abort_action[] = {
    { .name = "abort", .args = &abort_args, .wrapper = &abort_wrapper, .may_group = true,
      .co_prepare = co_abort_prepare },
    { 0 },
};

/* ---- all actions -------------------------------------------------------------------------- */

static const struct action_ops *const areas[] = {
    abort_action, qmp_backup_actions, qmp_bitmap_actions, qmp_fleece_actions,
};

static const struct action_ops *action_nth(unsigned i)
{
    for (size_t a = 0; a < ARRAY_SIZE(areas); a++) {
        for (const struct action_ops *ops = areas[a]; ops->name; ops++) {
            if (i-- == 0)
                return ops;
        }
    }
    return NULL;
}

static const struct action_ops *find_action(const char *name)
{
    const struct action_ops *ops;

    for (unsigned i = 0; (ops = action_nth(i)); i++) {
        if (strcmp(ops->name, name) == 0)
            return ops;
    }
    return NULL;
}

static const char *action_name(unsigned i)
{
    const struct action_ops *ops = action_nth(i);

    return ops ? ops->name : NULL;
}

static const struct schema_type *action_branch(const char *name)
{
    const struct action_ops *ops = find_action(name);

    return ops ? ops->wrapper : NULL;
}

/* ---- arguments ------------------------------------------------------------------------------ */

struct action_args {
    char *type;
    void *data;
};
static const struct schema_type action_type = {
    .name = "TransactionAction", .kind = SCHEMA_UNION, .size = sizeof(struct action_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct action_args, type, "type", &schema_str, "what to do"),
        SCHEMA_END,
    },
    .tag = "type", .branch = action_branch, .branch_name = action_name,
    .branch_offset = offsetof(struct action_args, data),
};
static const struct schema_type action_list_type = {
    .name = "TransactionActionList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &action_type,
};

enum { MODE_INDIVIDUAL, MODE_GROUPED };
static const struct schema_type completion_mode_enum = {
    .name = "ActionCompletionMode", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "individual", "grouped", NULL },
};

struct properties {
    bool has_completion_mode;
    int completion_mode;
};
static const struct schema_type properties_type = {
    .name = "TransactionProperties", .kind = SCHEMA_STRUCT, .size = sizeof(struct properties),
    .members = (const struct schema_member[]){
        SCHEMA_OPTIONAL(struct properties, completion_mode, "completion-mode",
                        &completion_mode_enum, "whether one job that fails cancels all others"),
        SCHEMA_END,
    },
};

struct transaction_args {
    struct schema_array actions;
    bool has_properties;
    struct properties properties;
};
static const struct schema_type transaction_args_type = {
    .name = "q_obj_transaction-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct transaction_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct transaction_args, actions, "actions", &action_list_type,
                        "what to do at one instant"),
        SCHEMA_OPTIONAL(struct transaction_args, properties, "properties", &properties_type,
                        "how the jobs end"),
        SCHEMA_END,
    },
};

/* ---- the command ------------------------------------------------------------------------- */

static bool fill(struct action *a, const struct action_args *args, int mode, struct err *err)
{
    a->ops = find_action(args->type);
    a->args = args->data;
    if (mode == MODE_INDIVIDUAL || a->ops->may_group)
        return true;
    return err_set(err, -EINVAL, "Action '%s' does not support transaction property "
                   "completion-mode = %s", a->ops->name, completion_mode_enum.values[mode]);
}

static bool co_transaction_command(const struct qmp_call *call, const void *args, void *ret,
                                   struct err *err)
{
    const struct transaction_args *t = args;
    const struct action_args *in = t->actions.items;
    CLEANUP(free) struct action *actions = xcalloc(t->actions.n + 1, sizeof(*actions));
    int mode = t->properties.completion_mode;

    if (t->actions.n > LIMIT_TRANSACTION_ACTIONS)
        return err_set(err, -E2BIG, "A transaction has at most %u actions",
                       LIMIT_TRANSACTION_ACTIONS);
    for (size_t i = 0; i < t->actions.n; i++) {
        if (!fill(&actions[i], &in[i], mode, err))
            return false;
    }
    return co_transaction(call, actions, t->actions.n, mode == MODE_GROUPED, err);
}

const struct qmp_command qmp_transaction_commands[] = {
    { .name = "transaction", .doc = "do all of these at one instant, or none",
      .args = &transaction_args_type, .co_run = co_transaction_command },
    { 0 },
};
