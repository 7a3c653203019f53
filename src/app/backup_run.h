/* SPDX-License-Identifier: Apache-2.0
 *
 * A backup job as seen from the command that asked for it: start it over QMP,
 * show how far it is, pass Ctrl-C on, hear how it ended.
 */
#ifndef APP_BACKUP_RUN_H
#define APP_BACKUP_RUN_H

#include "app/progress.h"
#include "app/qmp_client.h"

enum backup_end {
    BACKUP_END_DONE,           /* everything is on the target, flushed */
    BACKUP_END_PENDING,        /* the same, and backup_run_finalize is waited for */
    BACKUP_END_FAILED,         /* .err tells why */
    BACKUP_END_CANCELLED,      /* by Ctrl-C, or by somebody else */
    BACKUP_END_GIVEN_UP,       /* nobody knows: the user would not wait for the end */
};

struct backup_run {
    /* The caller's; borrowed. */
    struct qmp_client *client;
    struct interrupt *interrupt;
    struct progress *progress;
    const char *job;           /* the job's id */
    bool open_ended;           /* sync=none: the first Ctrl-C completes it */

    bool started;              /* the daemon has said so */
    bool shut_down;            /* the daemon is ending */
    const char *note;          /* for the progress: what was passed on */
    unsigned asked;            /* interrupts that were passed on */
    uint64_t current, total;   /* as last heard, bytes */
    struct err err;
};

/* Give drive-backup with @args (taken over). When it returns true the instant has
 * been taken. False with .err. */
MUST_CHECK bool backup_run_start(struct backup_run *r, json_t *args);

/* See the job to its end, or to where it waits to be finalized. */
enum backup_end backup_run_wait(struct backup_run *r);

/* It waits: end it well, or as if it had been cancelled. */
enum backup_end backup_run_finalize(struct backup_run *r, bool well);

#endif
