/* SPDX-License-Identifier: Apache-2.0
 *
 * A backup as a link of a chain: the dirty bitmap that tells what has changed since
 * the backup before, and that backup as the backing file of the new one.
 */
#ifndef APP_BACKUP_CHAIN_H
#define APP_BACKUP_CHAIN_H

#include "app/target_name.h"
#include <jansson.h>

struct backup_chain {
    /* As the user typed it. */
    const char *bitmap;            /* NULL: there is no chain */
    const char *backing;           /* NULL: none */
    bool incremental;
    int mode;                      /* of backup_chain_modes; -1: not given */

    char *backing_name;            /* as the target stores it */
    const char *backing_format;
};

extern const char *const backup_chain_modes[];

/* Options that do not go together: what is wrong, for cli_misuse; NULL: nothing. @sync is
 * what --sync says. */
const char *backup_chain_misuse(const struct backup_chain *c, const char *sync);

/* Settle what @target stands on. */
MUST_CHECK bool backup_chain_settle(struct backup_chain *c, const struct target_name *target,
                                    struct err *err);
void backup_chain_done(struct backup_chain *c);

/* Add to the arguments of drive-backup. @make: the bitmap is not there yet. False with @err:
 * a name that QMP cannot carry. */
MUST_CHECK bool backup_chain_arguments(const struct backup_chain *c, bool make, json_t *args,
                                       struct err *err);

/* Whether the job was refused because there is no such bitmap, and a full backup can make
 * it. */
bool backup_chain_has_to_make(const struct backup_chain *c, const struct err *refusal);

/* The daemon's refusal in words that say what to do about it. Whether it is one about the
 * chain. */
bool backup_chain_explain(const struct backup_chain *c, const char *disk, struct err *err);

#endif
