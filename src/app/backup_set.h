/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint backup --to: what makes the backups of several disks a point of a set
 * (docs/backup-sets.md). In this order:
 *
 *   backup_set_open     the directory: its lock, what is in it
 *      (the daemon is reached)
 *   backup_set_end_stale_jobs
 *   backup_set_plan     each disk: full or incremental, and why
 *   backup_set_begin    leftovers go; names for the images; the pending manifest
 *   backup_set_add_bitmaps
 *      (the instant, the copying)
 *   backup_set_make_digests
 *      (the images get their names)
 *   backup_set_record   the manifest
 *   backup_set_settle   bitmaps that are needed no more
 *   backup_set_close
 */
#ifndef APP_BACKUP_SET_H
#define APP_BACKUP_SET_H

#include "app/qmp_client.h"
#include "set/catalog.h"

struct backup_command;

/* One disk, beside its struct backup_disk. */
struct backup_set_disk {
    char *name;                        /* in the set */
    json_t *info;                      /* of query-named-block-nodes */
    const struct set_image *parent;    /* what an incremental stands on; NULL: a full one */
    char *reason;
    uint64_t to_copy;                  /* bytes, as expected */
    char *bitmap;                      /* the new one, when it is at the disk; NULL: none */
};

struct backup_set {
    struct set_catalog catalog;        /* .dir NULL: there is none yet */
    char *dir;
    int lock;                          /* -1: none */
    char *id;
    uint64_t sequence;
    struct backup_set_disk *disks;
    size_t n;
    bool pending;                      /* the pending manifest is there */
    bool recorded;                     /* the point exists */
    struct set_manifest m;             /* of the point, when it is recorded */
};

/* All that can fail: with .run.err of the command. */
MUST_CHECK bool backup_set_open(struct backup_command *c);
MUST_CHECK bool backup_set_plan(struct backup_command *c);
MUST_CHECK bool backup_set_begin(struct backup_command *c);
MUST_CHECK bool backup_set_make_digests(struct backup_command *c);
MUST_CHECK bool backup_set_record(struct backup_command *c);
/* Also after a failure; the connection is still there. */
void backup_set_settle(struct backup_command *c);
void backup_set_close(struct backup_command *c);

/* End the jobs of an earlier run that was killed: the daemon goes on with them. */
MUST_CHECK bool backup_set_end_stale_jobs(struct backup_command *c);

/* Have each disk keep from now on what is written, for the next backup; where that cannot be,
 * it is told. Before the instant (I-M7). */
void backup_set_add_bitmaps(struct backup_command *c);

/* What the daemon says of that bitmap of the disk; NULL: it has none. */
const json_t *backup_set_find_bitmap(const struct backup_set_disk *d, const char *name);

/* What the ids of a set's jobs end with. free() it. */
char *backup_set_job_suffix(const struct backup_command *c);

/* What drive-backup needs for disk @i. */
MUST_CHECK bool backup_set_arguments(const struct backup_command *c, size_t i, json_t *args,
                                     struct err *err);

/* For people, before the copying. */
void backup_set_tell_plan(const struct backup_command *c);
/* --dry-run: what would be done. Gives an exit status. */
int backup_set_tell_dry(const struct backup_command *c);

/* ---- backup_set_sweep.c ------------------------------------------------------------- */

/* Remove what runs that were cut short have left: temporary files, but what is still being written
 * stays for the next time; images of pending points that nothing stands on; and the pending
 * manifests when all of theirs are gone (I-M2, I-M4). The caller has the set's lock. */
MUST_CHECK bool backup_set_sweep(const struct set_catalog *c, struct err *err);

#endif
