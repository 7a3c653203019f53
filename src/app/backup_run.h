/* SPDX-License-Identifier: Apache-2.0
 *
 * Backup jobs as seen from the command that asked for them: start them over QMP,
 * show how far they are, pass Ctrl-C on, hear how they ended.
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

struct backup_run_job {
    const char *id;            /* borrowed */
    uint64_t current, total;   /* as last heard, bytes */
    json_t *guest;             /* what it cost the disk's writers, when it is over (docs/qmp.md,
                                * guest-latency); NULL: not told. The caller frees it */
};

struct backup_run {
    /* The caller's; borrowed. */
    struct qmp_client *client;
    struct interrupt *interrupt;
    struct progress *progress;
    struct backup_run_job *jobs;     /* of several none ends well unless all do */
    size_t n_jobs;
    bool open_ended;           /* sync=none: the first Ctrl-C completes it */

    bool started;              /* the daemon has said so */
    bool shut_down;            /* the daemon is ending */
    const char *note;          /* for the progress: what was passed on */
    unsigned asked;            /* interrupts that were passed on */
    size_t n_over, n_copied;   /* jobs that have ended; those that wait for the others */
    bool failed, cancelled;    /* some job */
    struct err err;
};

/* Give @command, drive-backup or a grouped transaction of such, with @args (taken over).
 * When it returns true the instant has been taken. False with .err. */
MUST_CHECK bool backup_run_start(struct backup_run *r, const char *command, json_t *args);

/* Bytes of all jobs together, as last heard. */
uint64_t backup_run_current(const struct backup_run *r);

/* See the jobs to their end, or a single one to where it waits to be finalized. */
enum backup_end backup_run_wait(struct backup_run *r);

/* They have been started and are not wanted after all: cancel them, and see that through, but
 * keep the error that is there. */
void backup_run_abandon(struct backup_run *r);

/* It waits: end it well, or as if it had been cancelled. */
enum backup_end backup_run_finalize(struct backup_run *r, bool well);

#endif
