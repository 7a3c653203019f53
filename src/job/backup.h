/* SPDX-License-Identifier: Apache-2.0
 *
 * The backup job: copies a node as it stood at the instant of the start to a
 * target while the node goes on being written. It is a consumer of a view
 * (cbw/view.h); what it has to copy is its work list (worklist.h), how it is
 * copied is the copier's affair (copier.h).
 */
#ifndef JOB_BACKUP_H
#define JOB_BACKUP_H

#include "base/limits.h"
#include "block/dirty.h"
#include "block/graph.h"
#include "cbw/view.h"
#include "job/job_txn.h"

/* What the target receives. In the order of QAPI's MirrorSyncMode. */
enum backup_sync {
    BACKUP_TOP,     /* what the topmost image of the source holds */
    BACKUP_FULL,    /* everything */
    BACKUP_NONE,    /* old content of what is overwritten from now on; until ended */
    BACKUP_INCREMENTAL,    /* as BITMAP with BACKUP_BITMAP_ON_SUCCESS */
    BACKUP_BITMAP,  /* what is dirty in a bitmap */
};

/* What becomes of the bitmap. What is written during the job is dirty afterwards in any
 * case. In the order of QAPI's BitmapSyncMode. */
enum backup_bitmap_mode {
    BACKUP_BITMAP_ON_SUCCESS,   /* success: nothing else is; else all that was */
    BACKUP_BITMAP_NEVER,        /* all that was */
    BACKUP_BITMAP_ALWAYS,       /* also what should have been copied, and was not */
};

/* In the order of QAPI's BlockdevOnError. */
enum backup_on_error {
    BACKUP_ON_ERROR_REPORT,     /* the job fails */
    BACKUP_ON_ERROR_IGNORE,     /* tried again, paced, until it works */
    BACKUP_ON_ERROR_ENOSPC,     /* stop when space is out, else report */
    BACKUP_ON_ERROR_STOP,       /* the job pauses; resume tries again */
    BACKUP_ON_ERROR_AUTO,       /* as enospc */
};

#define BACKUP_MAX_WORKERS_DEFAULT LIMIT_BACKUP_WORKERS
#define BACKUP_GUEST_LATENCY_DEFAULT 1.5
#define BACKUP_BAD_GUEST_LATENCY "guest-latency must be 0 (which means no budget) or between 1 " \
                                 "and 1000"
bool backup_guest_latency_is_good(double factor);
#define BACKUP_MAX_CHUNK_DEFAULT 0      /* the copier chooses */

struct backup_opts {
    const char *job_id;          /* NULL: the source's node name */
    struct node *source;         /* on the calling loop; borrowed */
    struct node *target;         /* the same; the job takes references of its own */
    bool target_is_zero;         /* just created without backing file: what is not written reads
                                  * as zero (as node_info.zero_init confirms) */
    bool zero_is_sure;           /* the caller knows better than zero_init */
    bool allocate;               /* zeros are written as data, holes too */
    struct node *below;          /* full: what the target reads where it is not written, that is its
                                  * backing file; only what differs is written. NULL: not looked at.
                                  * Not written meanwhile; borrowed */
    bool compress;               /* store data compressed; the target must be able to */
    enum backup_sync sync;
    const char *bitmap;          /* of the source, for incremental and bitmap, or to be made
                                  * to record anew from the instant. NULL: none */
    bool has_bitmap_mode;
    enum backup_bitmap_mode bitmap_mode;
    struct dirty_bitmap_opts new_bitmap;   /* full, top: make this one, that records from the
                                  * instant on; until success it is all dirty, and after a
                                  * failure it is not there. .name NULL: none */
    uint64_t speed;              /* bytes a second; 0: no limit */
    double guest_latency;        /* copies as long as guests' requests take so many times at most
                                  * what they take alone: 1 to BUDGET_FACTOR_MAX (budget.h). 0:
                                  * copies as fast as it can */
    enum backup_on_error on_source_error, on_target_error;
    struct view_opts view;
    bool auto_finalize, auto_dismiss;
    struct job_txn *txn;         /* the job ends together with others; NULL: alone */
    bool reflink;                /* the target may share the source's storage where the file
                                  * system can: a full copy of a raw file takes milliseconds */
    uint32_t max_workers;        /* parallel copies at most, > 0; bounded by
                                  * LIMIT_BACKUP_WORKERS; depth.h says how many it takes */
    uint64_t max_chunk;          /* longest single copy, bytes; 0: choose */
    const struct job_events *events;     /* static; may be NULL */
    void *events_arg;
};

#define BACKUP_OPTS_DEFAULT \
    { \
        .sync = BACKUP_FULL, \
        .view = VIEW_OPTS_DEFAULT, \
        .auto_finalize = true, \
        .auto_dismiss = true, \
        .reflink = true, \
        .guest_latency = BACKUP_GUEST_LATENCY_DEFAULT, \
        .max_workers = BACKUP_MAX_WORKERS_DEFAULT, \
        .max_chunk = BACKUP_MAX_CHUNK_DEFAULT, \
    }

/* Whether the bitmap that @opts name is there and can be used, and goes with the other
 * options: QEMU's words. Start says the same; here it is said before a target is made. */
MUST_CHECK bool backup_check_bitmap(const struct backup_opts *opts, struct err *err);

/* Check everything, take the instant, and start the job on the calling loop,
 * where source and target live. When this returns the instant has passed: every
 * write that was acknowledged before the call is in, every write that is begun
 * after it returns is out.
 *
 * Refused before anything is touched: a target of another size, one that is
 * read-only, in use, or cannot compress if it shall, the source itself or a file of
 * its chain, a job id in use. With sync top and none the target need not have its backing file open
 * (open it with "backing": null): whole clusters are written, nothing is read
 * from it.
 *
 * Nests inside doors that the caller has shut: several disks, one instant.
 * @opts is used during the call only. Returns a reference. NULL with @err. */
struct job *co_backup_start(const struct backup_opts *opts, struct err *err);

/* The same in its steps, for one instant of several disks: prepare each (everything
 * that can fail; the guest notices nothing); shut the doors of all sources; begin
 * each; open the doors; start each. In place of start, drop leaves nothing behind.
 * All on the loop of source and target, and only prepare suspends. */
struct backup;
struct backup *co_backup_prepare(const struct backup_opts *opts, struct err *err);
struct job *backup_job(const struct backup *b);     /* borrowed; not started yet */
void backup_begin(struct backup *b);                /* the instant of this source */
struct job *backup_start(struct backup *b);         /* a reference */
void backup_drop(struct backup *b);                 /* takes NULL */

#endif
