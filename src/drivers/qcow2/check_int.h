/* SPDX-License-Identifier: Apache-2.0
 *
 * Private to check and repair: the state of one check and what its files call of
 * each other.
 *
 * The references are counted in windows of host clusters, nearly always in one
 * that holds the whole image (check_counts.h). For each window everything that
 * refers to clusters is gone through; entries are judged in the first window only.
 * A table that is named several times is read once and counts several times: what
 * has to be read is bounded by what the file really holds, however its tables are
 * tied together.
 */
#ifndef QCOW2_CHECK_INT_H
#define QCOW2_CHECK_INT_H

#include "drivers/qcow2/check.h"
#include "drivers/qcow2/check_counts.h"
#include "drivers/qcow2/format.h"

/* An array of 64-bit entries in the file: an L1 table, a bitmap table. */
struct check_table {
    uint64_t off;
    uint64_t n;                  /* entries */
};

/* An L2 table, and how many L1 entries name it. */
struct check_l2 {
    uint64_t off;
    uint64_t active;             /* those of the active L1 table */
    uint64_t all;
};

#define CHECK_SLICES 2048U
#define CHECK_SLICE_BYTES 4096U

struct check_slice {
    uint64_t off;                /* 0: empty */
    uint8_t bytes[CHECK_SLICE_BYTES];
};

struct check {
    struct node *file;
    const struct qcow2_check_opts *opts;
    struct qcow2_check_result *res;
    struct err err;              /* words for a failure, if there are better ones than errno's */
    unsigned lines;              /* told so far */
    uint64_t work;               /* done since others ran */

    /* The image. */
    struct qcow2_header h;
    struct qcow2_geometry geo;
    uint64_t cluster_size;
    uint64_t file_end;           /* bytes, rounded up to 512 */
    uint64_t clusters;           /* that the file has, or references reach */
    uint32_t entry_bytes;        /* of an L2 entry */
    uint8_t block_bits;          /* refcounts in a block */
    bool data_file;              /* data clusters are not in this file */
    uint64_t *reftable;          /* host order */
    uint32_t n_reftable;
    struct check_table *snapshots;       /* their L1 tables, those that can be */
    size_t n_snapshots;
    uint64_t snapshots_bytes;    /* of the snapshot table */
    uint64_t bitmaps_off, bitmaps_bytes; /* the bitmap directory; 0: none that is valid */
    struct check_table *bitmaps;
    size_t n_bitmaps;

    /* Of this going through. */
    struct qcow2_counts *counts;
    bool judging;                /* the first window of a check: entries are judged */
    bool without_refcounts;      /* the refcount table and blocks are not counted */
    int (*co_l2)(struct check *c, const struct check_l2 *t, uint8_t *table);   /* each L2 table */
    void *walk;                  /* of check_tables.c */

    /* What was found. */
    /* With a code: a table that refers to clusters cannot be followed, so that what it
     * holds looks like leaks. */
    struct err hidden;
    uint64_t cut_end;            /* references go to here, behind the end of the file; 0: none */
    bool rebuild;                /* the refcounts cannot be repaired where they are */
    bool bitmaps_broken;
    bool stray_snapshots;        /* no snapshots, but their table has an impossible place */
    bool invalid_entries;        /* there are L2 entries that a repair makes zero */
    uint64_t copied_errors;      /* those of the corruptions that are COPIED flags */
    uint64_t highest;            /* cluster in use */
    uint64_t compared;           /* refcounts looked at: bounds the work */

    struct check_slice *slices;  /* refcounts on disk, direct mapped */
    uint64_t n_slices;           /* at most CHECK_SLICES */
    uint64_t zero_from, zero_end, data_from, data_end;   /* what the file has there */
    uint8_t *block;              /* a cluster, for refcount blocks */

    /* Of a repair. */
    bool mute;                   /* what is wrong has been told */
    struct rebuild *rebuilding;
};

/* ---- check.c ------------------------------------------------------------- */

/* Say what is wrong, and count it @times times. */
void check_corrupt(struct check *c, uint64_t times, const char *fmt, ...) PRINTF_LIKE(3, 4);
void check_say(struct check *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* After @work entries or clusters that were gone through: let others run if it has been
 * much, and see whether to go on: -ECANCELED. */
MUST_CHECK int co_check_breathe(struct check *c, uint64_t work);
/* A table cannot be followed; the first is what a repair will tell of. */
void check_hide(struct check *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Bytes of the file; what lies behind its end is zero. */
MUST_CHECK int co_check_read(struct check *c, uint64_t off, uint64_t len, void *buf);
/* Whether the range is known to be zero without reading it. */
bool co_check_is_zero(struct check *c, uint64_t off, uint64_t len);
/* qsort that lets others run: what is long is sorted by a worker. */
void co_check_sort(void *v, size_t n, size_t size, int (*compare)(const void *, const void *));
/* qcow2_counts_pages of what was counted, the same way. */
MUST_CHECK int co_check_pages(struct check *c, uint64_t **ret, size_t *ret_n);
/* Go through the image, window by window: count, then co_each(c). */
MUST_CHECK int co_check_windows(struct check *c, int (*co_each)(struct check *c));
/* Read what the header points to anew, after the header was changed. */
MUST_CHECK int co_check_load_reftable(struct check *c);

/* ---- check_meta.c: snapshot table, bitmap directory ---------------------- */

/* Both judge what they read. An error leaves its words in c->err. */
MUST_CHECK int co_check_load_snapshots(struct check *c);
MUST_CHECK int co_check_load_bitmaps(struct check *c);

/* ---- check_tables.c ------------------------------------------------------ */

/* Whether the file ends before it has any of the last cluster of the range. (Of that
 * one it need not have all: what is missing is zero.) */
bool check_is_cut(const struct check *c, uint64_t off, uint64_t bytes);
/* Count @times references to the host range; those that the file has been cut before are
 * told, not counted. */
MUST_CHECK int check_add(struct check *c, uint64_t off, uint64_t bytes, uint64_t times);
/* Count everything that refers to clusters. */
MUST_CHECK int co_check_count(struct check *c);
/* Call co_entries for all that the tables have in the file: @n entries at @off that
 * @times of the tables share. */
MUST_CHECK int co_check_sweep(struct check *c, const struct check_table *tables, size_t n_tables,
                              int (*co_entries)(struct check *c, const uint8_t *entries,
                                                uint64_t off, uint32_t n, uint64_t times));
/* Call c->co_l2 for each L2 table. */
MUST_CHECK int co_check_each_l2(struct check *c);

struct check_entry {
    enum qcow2_kind kind;        /* by QEMU's reading: with flaws, it is what it is nearest to */
    uint64_t v, bitmap;
    uint64_t host;               /* as in the entry: may be anywhere */
};
struct check_entry check_entry_get(const struct check *c, const uint8_t *table, uint32_t i);
/* An entry that a repair may make zero: its place is not aligned and it has no data. */
bool check_entry_is_void(const struct check *c, const struct check_entry *e);

/* ---- check_refs.c -------------------------------------------------------- */

enum check_block { CHECK_BLOCK_NONE, CHECK_BLOCK_THERE, CHECK_BLOCK_BAD };
/* What the @i-th refcount table entry names. */
enum check_block check_block_at(const struct check *c, uint64_t i, uint64_t *ret_off);
/* The refcount on disk; an error when its block cannot be. */
MUST_CHECK int co_check_refcount(struct check *c, uint64_t cluster, uint64_t *ret);
void check_forget_slices(struct check *c);
/* Count and judge the refcount blocks. */
MUST_CHECK int co_check_blocks(struct check *c);
/* Compare what was counted in this window with what is on disk. */
MUST_CHECK int co_check_compare(struct check *c);
/* Make it what was counted: lower leaks, and raise the others with REPAIR_ALL. */
MUST_CHECK int co_check_correct(struct check *c);
/* References counted, as far as they can be written. */
static inline uint64_t check_counted(const struct check *c, uint64_t cluster)
{
    return MIN(qcow2_counts_get(c->counts, cluster), qcow2_refcount_max(c->geo.refcount_order));
}

/* ---- repair.c ------------------------------------------------------------ */

/* Repair what the check found, as far as opts->repair says. */
MUST_CHECK int co_check_repair(struct check *c);
/* The image is sound: say so in its header. */
MUST_CHECK int co_check_mark_clean(struct check *c);

#endif
