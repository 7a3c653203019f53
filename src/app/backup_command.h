/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of `stillpoint backup` share: backup.c, which is the command and tells
 * people, backup_job.c, which talks to the daemon, and backup_quiesce.c, to the guest.
 */
#ifndef APP_BACKUP_COMMAND_H
#define APP_BACKUP_COMMAND_H

#include "app/backup_chain.h"
#include "app/backup_run.h"
#include "app/backup_set.h"
#include "app/cli.h"
#include "app/local_daemon.h"
#include "app/target_name.h"
#include "quiesce/quiesce.h"
#include <time.h>

enum sync { SYNC_FULL, SYNC_TOP, SYNC_NONE };
extern const char *const backup_sync_names[];

/* One disk, and where its backup goes. */
struct backup_disk {
    const char *source;            /* as the user typed it */
    const char *target_name;       /* the same, or .made */
    char *made;                    /* --to: the name in the set */
    char *node;                    /* what the daemon knows it by */
    char *job;                     /* id */
    struct target_name target;
    bool published;                /* the target has its name */
};

struct backup_command {
    int sync, style;
    const char *to;                /* the directory of a set; NULL: one TARGET */
    struct backup_set *set;        /* with it; NULL: not open */
    bool full, dry_run, json;      /* with it */
    const char *control;           /* NULL: the sources are files */
    const char *format, *source_format, *job_id, *scratch_dir;
    struct cli_list image_dirs;
    uint64_t speed, scratch_limit, cbw_timeout;
    const char *guest_latency_text;
    double guest_latency;          /* < 0: not given */
    bool compress, force, no_reflink;
    struct backup_chain chain;     /* of a single disk */
    struct quiesce_opts quiesce;
    uint64_t quiesce_seconds;
    bool require_quiesce;

    struct backup_disk *disks;
    struct backup_run_job *jobs;   /* of each */
    size_t n_disks;

    struct interrupt interrupt;
    struct local_daemon local;
    struct progress progress;
    struct backup_run run;
    struct quiesce guest;
    struct quiesce_result quiesced;
    char *what;
    int64_t instant_ms;            /* since 1970 */
    uint64_t began;                /* loop_now time */
};

/* What the target gets, for people and job ids: "incremental", too. */
const char *backup_sync_name(const struct backup_command *c);

/* ---- backup_job.c: false with .run.err ---------------------------------------- */

/* Reach the daemon, or start one and have it open the sources. */
MUST_CHECK bool backup_connect(struct backup_command *c);
/* @given_up: nobody waits for the end of a daemon of ours. */
void backup_disconnect(struct backup_command *c, bool given_up);

/* Start the jobs of all disks; when it returns true their instant has been taken. */
MUST_CHECK bool backup_start_jobs(struct backup_command *c);

/* ---- backup_quiesce.c ------------------------------------------------------------- */

/* For the command's table. */
#define BACKUP_QUIESCE_OPTIONS(c) \
    { "guest-agent", 0, CLI_TEXT, &(c)->quiesce.agent, "SOCKET", \
      "of the QEMU guest agent, which freezes the guest's file systems for the cut" }, \
    { "pre-cut", 0, CLI_TEXT, &(c)->quiesce.pre_cut, "COMMAND", \
      "for sh, before the cut (and the freeze): such as to flush a database" }, \
    { "post-cut", 0, CLI_TEXT, &(c)->quiesce.post_cut, "COMMAND", \
      "for sh, after it, also if it failed" }, \
    { "quiesce-timeout", 0, CLI_NUMBER, &(c)->quiesce_seconds, "SECONDS", \
      "that the guest stays frozen, and each command runs, at most; 10 unless given", \
      .max = 3600 }, \
    { "require-quiesce", 0, CLI_FLAG, &(c)->require_quiesce, NULL, \
      "no backup unless the guest held still" }

bool backup_quiesces(const struct backup_command *c);

/* What is wrong with the options for that; NULL: nothing. */
const char *backup_quiesce_misuse(const struct backup_command *c);

/* Around the cut: make the guest hold still, and let it go. False with .run.err: it did not,
 * and the user wants no backup then. Else that is told, and noted in .quiesced. */
MUST_CHECK bool backup_hold_guest(struct backup_command *c);
MUST_CHECK bool backup_let_guest_go(struct backup_command *c);

/* .quiesced, for programs. */
json_t *backup_quiesce_json(const struct backup_command *c);

#endif
