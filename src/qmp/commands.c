/* SPDX-License-Identifier: Apache-2.0
 *
 * All commands there are, in one row.
 */
#include "qmp/impl.h"

static const struct qmp_command *const areas[] = {
    qmp_core_commands, qmp_block_commands, qmp_export_commands, qmp_nbd_add_commands,
    qmp_fleece_commands, qmp_backup_commands, qmp_bitmap_commands, qmp_job_commands,
    qmp_transaction_commands,
};

const struct qmp_command *qmp_command_nth(unsigned i)
{
    for (size_t a = 0; a < ARRAY_SIZE(areas); a++) {
        for (const struct qmp_command *c = areas[a]; c->name; c++) {
            if (i-- == 0)
                return c;
        }
    }
    return NULL;
}

const struct qmp_command *qmp_command_find(const char *name)
{
    const struct qmp_command *c;

    for (unsigned i = 0; (c = qmp_command_nth(i)); i++) {
        if (strcmp(c->name, name) == 0)
            return c;
    }
    return NULL;
}

char *qmp_command_help(const char *command)
{
    const struct qmp_command *c = qmp_command_find(command);

    return c && c->args ? schema_help(c->args) : NULL;
}
