/* SPDX-License-Identifier: Apache-2.0
 *
 * The bitmaps extension as pure code (QEMU docs/interop/qcow2.rst, "Bitmaps"): the
 * directory, bitmap tables and the bits themselves, everything checked. Entries that
 * are kept are kept byte for byte but for the flag in_use. No I/O, any thread;
 * tests/fuzz/fuzz_qcow2_tables.c feeds it rubbish.
 */
#ifndef QCOW2_BITMAPS_FORMAT_H
#define QCOW2_BITMAPS_FORMAT_H

#include "base/bitmap.h"
#include "drivers/qcow2/format.h"

#define QCOW2_BITMAP_NAME_MAX 1023       /* bytes, as QEMU */
#define QCOW2_BITMAP_MIN_GRANULARITY_BITS 9
#define QCOW2_BITMAP_MAX_GRANULARITY_BITS 31

enum {
    QCOW2_BITMAP_IN_USE = 1,             /* what is stored may be out of date */
    QCOW2_BITMAP_AUTO = 2,               /* enabled: it sees every write */
    QCOW2_BITMAP_EXTRA_COMPATIBLE = 4,   /* unknown extra data does not matter */
};

struct qcow2_bitmap_entry {
    const char *name;                    /* any bytes but 0 */
    uint64_t table_off;
    uint32_t table_entries;
    uint32_t flags;
    uint8_t granularity_bits;
    bool usable;                         /* of a kind that is known here */
    const uint8_t *extra;                /* data that is not known here, and stays as it is */
    uint32_t extra_bytes;
    uint32_t at, bytes;                  /* the entry in the directory */
};

struct qcow2_bitmap_dir {
    struct qcow2_bitmap_entry *v;
    struct qcow2_bitmap_entry **by_name;
    uint32_t n;
    uint8_t *raw;                        /* the directory */
    uint64_t bytes;
    char *texts;
};

/* Whether the extension can be: numbers within their limits, a place that can be. */
MUST_CHECK bool qcow2_bitmap_ext_check(const struct qcow2_geometry *g,
                                       const struct qcow2_bitmap_ext *x, struct err *err);
void qcow2_bitmap_ext_encode(const struct qcow2_bitmap_ext *x,
                             uint8_t buf[QCOW2_BITMAP_EXT_BYTES]);

/* Parse a directory of @n entries that fills the @len bytes at @buf (within the
 * limits). *ret owns a copy. */
MUST_CHECK bool qcow2_bitmap_dir_parse(const struct qcow2_geometry *g, const void *buf,
                                       uint64_t len, uint32_t n, struct qcow2_bitmap_dir *ret,
                                       struct err *err);
/* Of a zeroed or parsed one; leaves it empty. */
void qcow2_bitmap_dir_done(struct qcow2_bitmap_dir *d);
/* The entry of this name, NULL if there is none. */
struct qcow2_bitmap_entry *qcow2_bitmap_dir_find(const struct qcow2_bitmap_dir *d,
                                                 const char *name);
/* Set a flag, in the struct and in the directory. */
void qcow2_bitmap_set_flag(struct qcow2_bitmap_dir *d, struct qcow2_bitmap_entry *e,
                           uint32_t flag);

/* Bytes of the entry that qcow2_bitmap_entry_encode writes for one of this name, without extra
 * data. */
uint32_t qcow2_bitmap_entry_bytes(const char *name);
/* Name, table, flags, granularity and extra data of @e are used. Gives its bytes. */
uint32_t qcow2_bitmap_entry_encode(const struct qcow2_bitmap_entry *e, void *buf);

/* "Bitmap table entry": the host offset of a cluster of bits; 0: all of them are *ret_ones. */
MUST_CHECK static inline bool qcow2_bitmap_table_decode(const struct qcow2_geometry *g, uint64_t v,
                                                        uint64_t *ret_off, bool *ret_ones)
{
    *ret_off = v & QCOW2_OFFSET_MASK;
    *ret_ones = v & 1;
    return !(v & ~(QCOW2_OFFSET_MASK | 1)) && !(*ret_off && *ret_ones) &&
           is_aligned(*ret_off, qcow2_cluster_size(g));
}

/* Bits of a bitmap for a disk of @size bytes, and entries of its table. */
static inline uint64_t qcow2_bitmap_bits(uint64_t size, unsigned granularity_bits)
{
    return div_round_up(size, 1ULL << granularity_bits);
}

static inline uint64_t qcow2_bitmap_table_entries(const struct qcow2_geometry *g, uint64_t bits)
{
    return div_round_up(bits, 8ULL << g->cluster_bits);
}

/* The bits [first, first + n) of @bm from and to bytes as in a cluster of bits, @buf
 * of n / 8 bytes rounded up. Those past the bitmap's size do not count, and are
 * written as 0. */
void qcow2_bits_decode(struct bitmap *bm, uint64_t first, uint64_t n, const void *buf);
void qcow2_bits_encode(const struct bitmap *bm, uint64_t first, uint64_t n, void *buf);

#endif
