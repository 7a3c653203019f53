/* SPDX-License-Identifier: Apache-2.0
 *
 * Dirty bitmaps: named records, kept at a node, of what has been written to it
 * since they were made or last used by a backup. Bit i stands for the bytes
 * [i, i + 1) * granularity. Memory follows what is dirty, not the disk's size.
 *
 * docs/dirty-bitmaps.md gives the invariants that the code cites. The first of them:
 * I-B1, a bit is set before the write that it stands for reaches the driver;
 * bits are cleared, and recording begins or ends, only with the node's doors
 * shut (disk.h), when no write is on its way. So a bitmap may say too much,
 * never too little, whatever fails.
 *
 * A bitmap lives and ends with its node. Everything here is for the node's loop
 * and does not suspend, except where the name says so.
 */
#ifndef BLOCK_DIRTY_H
#define BLOCK_DIRTY_H

#include "base/bitmap.h"
#include "block/node.h"

struct dirty_bitmap;

/* Bytes a bit may stand for: powers of two. */
#define DIRTY_GRANULARITY_MIN 512u
#define DIRTY_GRANULARITY_MAX (1u << 31)

/* Bytes of a name without its terminator, as QEMU (BDRV_BITMAP_MAX_NAME_SIZE). */
#define DIRTY_NAME_MAX 1023

struct dirty_bitmap_opts {
    const char *name;            /* not empty, one a node */
    uint32_t granularity;        /* bytes; 0: dirty_default_granularity */
    bool disabled;               /* does not record */
    bool persistent;             /* stays when the node is closed */

    /* For those who bring back one that was kept. */
    bool stored;                 /* kept as it is here: see dirty_bitmap_stored. The caller knows
                                  * that the name is not taken */
    struct bitmap *bits;         /* what is dirty, taken over on success; NULL: nothing */
    const char *inconsistent;    /* why it cannot be trusted; NULL: it can. Without .bits */
};

/* What QEMU takes: the node's cluster size between 4 and 64 KiB, else 64 KiB. */
uint32_t dirty_default_granularity(struct node *n);

/* A new one. With the doors shut if it records. NULL with @err: the name is taken or bad, the
 * granularity is no power of two, no memory. Whether a persistent one can be kept is
 * another question (dirty_bitmap_can_keep). */
struct dirty_bitmap *dirty_bitmap_add(struct node *n, const struct dirty_bitmap_opts *opts,
                                      struct err *err);
/* Forget it. Nobody holds it. What is kept of it in an image stays: co_dirty_bitmap_unkeep. */
void dirty_bitmap_remove(struct dirty_bitmap *bm);

/* NULL: there is none of that name. With @err: "Dirty bitmap 'b0' not found" (QEMU's words). */
struct dirty_bitmap *dirty_bitmap_find(struct node *n, const char *name, struct err *err);
/* All of a node in the order in which they were added; NULL begins and ends. */
struct dirty_bitmap *dirty_bitmap_next(struct node *n, struct dirty_bitmap *bm);

/* ---- facts ----------------------------------------------------------------- */

const char *dirty_bitmap_name(const struct dirty_bitmap *bm);
struct node *dirty_bitmap_node(const struct dirty_bitmap *bm);      /* borrowed */
uint32_t dirty_bitmap_granularity(const struct dirty_bitmap *bm);   /* bytes */
bool dirty_bitmap_enabled(const struct dirty_bitmap *bm);           /* records writes */
bool dirty_bitmap_persistent(const struct dirty_bitmap *bm);
bool dirty_bitmap_busy(const struct dirty_bitmap *bm);
/* Why it cannot be trusted any more; NULL: it can. */
const char *dirty_bitmap_inconsistent(const struct dirty_bitmap *bm);
/* Of the bytes that are dirty, so many at most only because nobody knew better when the bitmap was
 * brought back after a power cut. Until it is cleared or a backup has used it. */
uint64_t dirty_bitmap_over_reported(const struct dirty_bitmap *bm);
void dirty_bitmap_set_over_reported(struct dirty_bitmap *bm, uint64_t bytes);
/* Bytes that are dirty: what a backup that begins now would copy, and while one
 * runs, what it began with (as QEMU counts). The last granule counts whole. */
uint64_t dirty_bitmap_count(const struct dirty_bitmap *bm);

/* The bits that the count is of. Borrowed; good until something suspends. */
const struct bitmap *dirty_bitmap_bits(const struct dirty_bitmap *bm);

/* ---- use ------------------------------------------------------------------- */

/* Whether it can be used and changed: nobody holds it, it is not inconsistent, and it is not
 * kept in an image that is open read-only, unless @allow says that this does no harm. QEMU's
 * words. */
enum { DIRTY_BUSY_OK = 1, DIRTY_INCONSISTENT_OK = 2, DIRTY_READ_ONLY_OK = 4 };
MUST_CHECK bool dirty_bitmap_check(const struct dirty_bitmap *bm, unsigned allow, struct err *err);

/* Somebody works with it (a job, an export): nobody else may change it, and the
 * node is not resized. Not nested: check first. */
void dirty_bitmap_hold(struct dirty_bitmap *bm);
void dirty_bitmap_let_go(struct dirty_bitmap *bm);

/* With the doors shut, each of these. */
void dirty_bitmap_enable(struct dirty_bitmap *bm);
void dirty_bitmap_disable(struct dirty_bitmap *bm);
/* Nothing is dirty any more. Takes @empty, from dirty_bitmap_new_row, in place of what was,
 * which is returned, for who may have to undo it by dirty_bitmap_add_bits; the caller
 * frees it. Nobody holds the bitmap. */
struct bitmap *dirty_bitmap_clear(struct dirty_bitmap *bm, struct bitmap *empty);

/* An empty row of bits for dirty_bitmap_clear or _freeze, got before the doors are shut so
 * that nothing can fail behind them. Good while the node keeps its size. NULL with @err: no
 * memory. The caller frees it if it is not used. */
struct bitmap *dirty_bitmap_new_row(const struct dirty_bitmap *bm, struct err *err);

/* Make dirty what is set in @bits, which are of this bitmap's granularity and size. At any time. */
void dirty_bitmap_add_bits(struct dirty_bitmap *bm, const struct bitmap *bits);
/* Make dirty all granules that touch a dirty one of @src, which is of any granularity, and
 * of a node of the same size. At any time. */
void dirty_bitmap_merge(struct dirty_bitmap *bm, const struct dirty_bitmap *src);
/* Make dirty all that touches [off, off+len). At any time. */
void dirty_bitmap_set(struct dirty_bitmap *bm, uint64_t off, uint64_t len);

/* It missed something: from now on it is of no use, and says why. */
void dirty_bitmap_spoil(struct dirty_bitmap *bm, const char *why_fmt, ...) PRINTF_LIKE(2, 3);

/* Who is told when one becomes inconsistent while its node is in use, on the node's loop; NULL:
 * nobody. One for the process, set while no node is open. */
void dirty_set_spoil_listener(void (*fn)(void *arg, const struct dirty_bitmap *bm), void *arg);

/* ---- a backup's use ---------------------------------------------------------
 * At the instant, with the doors shut, what is dirty is set aside (frozen): the
 * backup's work. From there on the bitmap records anew what is written. When the
 * job has ended the bitmap is what was recorded meanwhile, and of the frozen bits
 * those that the backup does not vouch for. A bitmap that is frozen is held. */

/* Takes @empty from dirty_bitmap_new_row: what is written from now on is recorded there. */
void dirty_bitmap_freeze(struct dirty_bitmap *bm, struct bitmap *empty);
/* @still: of the frozen bits, those that stay dirty (all of dirty_bitmap_bits after a
 * failure); NULL: none. May be dirty_bitmap_bits itself. Lets go of it, too. Also
 * outside shut doors: it clears nothing that was written since. */
void dirty_bitmap_thaw(struct dirty_bitmap *bm, const struct bitmap *still);

/* ---- keeping them when the node is closed --------------------------------------
 * A format may keep persistent bitmaps in its images (driver.h, struct bitmap_storage): its
 * driver brings them back when it opens one, and they are stored before the node is closed. */

/* Whether the node could keep one more like @opts: its image, or a keeper (keeper.h). */
MUST_CHECK bool dirty_bitmap_can_keep(struct node *n, const struct dirty_bitmap_opts *opts,
                                      struct err *err);
/* Before more becomes dirty than writes make it, or it begins to record: what the image keeps of
 * it is no longer to be trusted, and is said so on the disk. No harm if it comes to nothing. */
MUST_CHECK bool co_dirty_bitmap_outdate(const struct dirty_bitmap *bm, struct err *err);
/* The image is to keep no bitmap @name any more. Success if there is none. */
MUST_CHECK bool co_dirty_bitmap_unkeep(struct node *n, const char *name, struct err *err);
/* Store what is persistent and not yet in the image as it is here (I-B8). Closing does so as well,
 * and logs a failure. All that can be stored is, also when it returns false. */
MUST_CHECK bool co_dirty_bitmaps_store(struct node *n, struct err *err);

/* Whether the image has it as it is here: bits, recording or not. For drivers, who set it
 * when that is true; changes end it. */
bool dirty_bitmap_stored(const struct dirty_bitmap *bm);
void dirty_bitmap_set_stored(struct dirty_bitmap *bm);

/* ---- keeping bits where a crash does not reach them (keeper.h) ------------------ */

/* Whether the bit is dirty for who comes after a crash: frozen bits count. */
bool dirty_bitmap_must_keep(const struct dirty_bitmap *bm, uint64_t bit);
/* The same of @n words of 64 bits from word @first on, bit 0 lowest; zeros behind the end. */
void dirty_bitmap_kept_words(const struct dirty_bitmap *bm, uint64_t first, uint64_t n,
                             uint64_t *ret);
/* The first such bit at or behind @from; the number of bits when there is none. */
uint64_t dirty_bitmap_next_kept(const struct dirty_bitmap *bm, uint64_t from);
/* What an inconsistent one missed is known after all: from now on it says @bits, which
 * are of its granularity and the node's size and are taken over, and can be used again. */
void dirty_bitmap_mend(struct dirty_bitmap *bm, struct bitmap *bits);

#endif
