/* SPDX-License-Identifier: Apache-2.0
 *
 * What tests of the backup job share: a source with a guest on it, a target,
 * both in memory, and an ear for the job's events.
 */
#ifndef TESTS_BACKUP_SCENE_H
#define TESTS_BACKUP_SCENE_H

#include "co_test.h"
#include "memdrv.h"
#include "block/disk.h"
#include "job/backup.h"

#define G VIEW_GRANULE
#define DISK_SIZE (1 * MiB)

struct scene {
    struct node *source, *target;
    struct mem *from, *to;
    struct disk_user *guest;
    struct backup_opts opts;
    struct job *job;

    /* What was heard. */
    unsigned errors, stops, paused;
    enum job_op last_op;
    bool finished, completed, cancelled;
    int ret;
    struct err err;
};

/* Source and target of DISK_SIZE; the first half of the source is data, the rest
 * zeros. @source_json NULL: a plain test-mem. */
void co_scene(struct scene *s, const char *source_json);
/* When the job is over. */
void co_strike(struct scene *s);

void co_start_backup(struct scene *s);
/* Until the job is concluded: 0 or -errno, as it told. */
int co_end_of_job(struct scene *s);

/* The guest writes; fails the test when that fails. */
void co_guest_write(struct scene *s, uint64_t off, uint64_t len, int byte);

/* The content of a node, DISK_SIZE bytes, to be freed. */
uint8_t *co_content(struct node *n);
/* Fails the test unless the target holds exactly this. */
void co_expect_target(struct scene *s, const uint8_t *want);

struct job_info scene_query(struct scene *s);

#endif
