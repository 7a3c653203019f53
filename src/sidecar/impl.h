/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of this folder share: the keeper of one node. keep.c is told of changes,
 * store.c changes the file, work.c does what nobody waits for and closes, load.c reads,
 * open.c decides who gets a keeper.
 *
 * All fields belong to the node's loop. The file is changed by whoever holds @lock, but
 * for the beat, which has a sector of its own.
 */
#ifndef SIDECAR_IMPL_H
#define SIDECAR_IMPL_H

#include "loop/co_sync.h"
#include "sidecar/file.h"
#include "sidecar/place.h"

/* One bitmap in the file. Freed only under the lock. */
struct kept {
    struct list link;            /* s->kept */
    struct dirty_bitmap *bm;     /* NULL: it was removed or replaced; the area is still in use */
    uint64_t nbits, area;
    unsigned shift;
    struct bitmap *bits;         /* I-S1: only what is set in the file */
    bool has_area;               /* it is empty, or holds @bits */
    bool behind;                 /* bits were changed otherwise than by a write */
    uint64_t cleared;            /* s->clears when bits were cleared last */
};

struct sidecar {
    struct dirty_keeper k;
    struct node *node;           /* borrowed: it outlives its keeper */
    struct sidecar_place place;
    struct sidecar_file f;
    struct sidecar_header h;     /* as it is in the file */
    bool published;              /* the file has its name */
    bool has_header;
    uint8_t last[SIDECAR_BLOCK]; /* the header's bytes */

    struct co_mutex lock;
    struct list kept;
    bool stale;                  /* the directory has to be written */
    bool failed;                 /* no more use of it: all its bitmaps are inconsistent */

    /* The log, a bit for each region. */
    struct bitmap *marked;       /* on the disk */
    struct bitmap *wanted;       /* by who waits for the lock */
    struct bitmap *fresh;        /* with new bits since the last sync began */
    struct bitmap *recent;       /* and in the period before that */
    bool unsynced;               /* written since the last sync began */

    int64_t beat_ns;             /* the last beat */
    int64_t used_ns;             /* the last write or flush */
    uint64_t synced_at;          /* loop_now of the last sync's begin */

    /* I-S9: bits that were cleared stay in the file until the image is flushed. */
    uint64_t clears;             /* how often bits were cleared, or a bitmap was new */
    uint64_t flushed;            /* @clears when the image's last flush began */
    bool flushing;

    bool working, again, detached;
    struct waitq idle;           /* work.c has nothing under way */
    struct loop_timer timer;
};

/* ---- keep.c --------------------------------------------------------------------- */

extern const struct dirty_keeper_ops sidecar_keeper_ops;

/* ---- store.c: under the lock, except where noted ---------------------------------- */

struct sidecar *sidecar_new(struct node *n);
void sidecar_free(struct sidecar *s);

/* An entry for @bm without an area yet. Needs no lock. */
struct kept *sidecar_add_kept(struct sidecar *s, struct dirty_bitmap *bm);
bool sidecar_set_regions(struct sidecar *s, uint64_t disk_size);

/* Put the regions [first, first+n) and all wanted ones into the log (I-S2). */
MUST_CHECK int co_sidecar_mark(struct sidecar *s, uint64_t first, uint64_t n);
MUST_CHECK int co_sidecar_write_log(struct sidecar *s);
/* Make @n blocks of bits say @words. */
MUST_CHECK int co_sidecar_put(struct sidecar *s, struct kept *k, uint64_t block, uint64_t n,
                              const uint64_t *words);
/* Bring the bits in the file up to date. */
MUST_CHECK int co_sidecar_tidy(struct sidecar *s, struct kept *k);
/* Write directory and header. */
MUST_CHECK int co_sidecar_store(struct sidecar *s, enum sidecar_state state);
/* In the header: no bitmap is good any more. */
MUST_CHECK int co_sidecar_condemn(struct sidecar *s, const char *why);
/* Sync, and take quiet regions out of the log (I-S3). Takes the lock by itself. */
void co_sidecar_sync_all(struct sidecar *s);
/* Something could not be kept: say so in the file, and spoil all bitmaps. */
void co_sidecar_fail(struct sidecar *s, int r, const char *what);

/* Needs no lock. */
void co_sidecar_beat(struct sidecar *s);
bool sidecar_beat_due(const struct sidecar *s, int64_t now_ns);

/* ---- work.c ------------------------------------------------------------------------ */

void sidecar_kick(struct sidecar *s);
void sidecar_on_timer(void *s);
MUST_CHECK bool co_sidecar_settle(struct dirty_keeper *k, struct err *err);
void co_sidecar_detach(struct dirty_keeper *k);
void co_sidecar_attach(struct dirty_keeper *k);
void co_sidecar_close(struct dirty_keeper *k);

/* ---- load.c ------------------------------------------------------------------------ */

struct sidecar_loaded {
    struct sidecar_header h;
    uint8_t header_bytes[SIDECAR_BLOCK];
    struct sidecar_entry *entries;
    struct bitmap **bits;        /* of each entry; NULL: @why says what is wrong with it */
    char (*why)[SIDECAR_REASON_MAX];
    struct bitmap *marked;
    bool has_beat;
    struct sidecar_beat beat;
};

MUST_CHECK bool co_sidecar_load(struct sidecar_file *f, struct sidecar_loaded *ret,
                                struct err *err);
void sidecar_loaded_done(struct sidecar_loaded *l);

#endif
