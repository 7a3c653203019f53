/* SPDX-License-Identifier: Apache-2.0
 *
 * What a dirty bitmap of the source and a backup have to do with each other: the
 * bits that are set aside at the instant, what is copied for their sake, and which
 * are dirty again when the job has ended (I-B2, I-W5).
 *
 * Part of a job (backup_impl.h). Nothing here suspends but what is called so.
 */
#ifndef JOB_BACKUP_BITMAP_H
#define JOB_BACKUP_BITMAP_H

#include "job/backup.h"
#include "job/worklist.h"

struct backup_bitmap {
    struct dirty_bitmap *bm;       /* held, from begin on frozen. NULL: there is none */
    struct edge *user;             /* so that the node with it stays */
    enum backup_bitmap_mode mode;
    bool made;                     /* by this job, which removes it if it fails */
    bool begun;
    struct bitmap *empty;          /* what it records in from begin on; until then */

    uint64_t unit;                 /* bytes a bit of the next two */
    struct bitmap *wanted;         /* what shall be copied; NULL: not the bitmap says so. Until
                                    * begin fills it, and gives it to the view */
    bool limits;                   /* the bitmap says so */
    struct bitmap *copied;         /* what is on the target; NULL: nobody will ask */
    bool vouched;                  /* and was flushed since */
};

/* Get hold of the bitmap that @o names, or make the one that it wants, for a backup in units
 * of @unit bytes. False with @err: nothing was changed. */
MUST_CHECK bool backup_bitmap_prepare(struct backup_bitmap *bb, const struct backup_opts *o,
                                      enum backup_sync sync, uint64_t unit, const char *who,
                                      struct err *err);

/* The instant, with the doors shut: freeze. Limits @view to what shall be copied, and
 * returns that, borrowed from the view; NULL: everything may be. */
const struct bitmap *backup_bitmap_begin(struct backup_bitmap *bb, struct view *view);

/* Whole units are on the target, or it needs nothing there. */
void backup_bitmap_copied(struct backup_bitmap *bb, uint64_t off, uint64_t len);

/* The job has failed, and more may be dirty afterwards than was before: what an image keeps of
 * the bitmap is not to be trusted any more. */
void co_backup_bitmap_expect_more(struct backup_bitmap *bb);

/* How the job ended is final: 0 or -errno. The bitmap is let go of. */
void backup_bitmap_end(struct backup_bitmap *bb, int ret);

/* In place of begin. */
void backup_bitmap_drop(struct backup_bitmap *bb);

#endif
