/* SPDX-License-Identifier: Apache-2.0
 *
 * The sidecar file's format, docs/dirty-bitmaps.md: parsed and made here, without any
 * I/O. Numbers are big-endian; the bits themselves are words of 64, the first bit lowest,
 * little-endian.
 *
 *   0       header A       written in turn: the valid one with the higher number counts
 *   4096    header B
 *   8192    log            8 sectors, each with a checksum and a bit for each of its regions
 *   12288   beat           a sector: when the last write came, about
 *   64 KiB  directory 0, then directory 1 (2 MiB each): the header says which counts
 *   8 MiB   areas          the bits of each bitmap, in whole blocks of 4096
 */
#ifndef SIDECAR_FORMAT_H
#define SIDECAR_FORMAT_H

#include "base/bitmap.h"
#include "block/keeper.h"

#define SIDECAR_BLOCK 4096u
#define SIDECAR_BLOCK_BITS (8u * SIDECAR_BLOCK)
#define SIDECAR_BLOCK_WORDS (SIDECAR_BLOCK / 8u)
#define SIDECAR_SECTOR 512u

#define SIDECAR_LOG_AT 8192u
#define SIDECAR_LOG_SECTORS 8u
#define SIDECAR_BEAT_AT 12288u
#define SIDECAR_DIR_AT (64 * KiB)
#define SIDECAR_DIR_BYTES (2 * MiB)
#define SIDECAR_AREAS_AT (8 * MiB)

#define SIDECAR_SECTOR_REGIONS (8u * (SIDECAR_SECTOR - 8u))
#define SIDECAR_REGIONS_MAX (SIDECAR_LOG_SECTORS * SIDECAR_SECTOR_REGIONS)
#define SIDECAR_REGION_MIN (64 * MiB)
/* Aim at so many regions a disk at most. */
#define SIDECAR_REGIONS_AIM 8192u

#define SIDECAR_REASON_MAX 256      /* with the terminator */
#define SIDECAR_KIND_MAX 64
#define SIDECAR_IMAGE_MAX 1024

enum sidecar_state {
    SIDECAR_CLEAN,          /* the disk was closed in good order; the identities are of then */
    SIDECAR_OPEN,           /* it is written to, or was when something crashed */
    SIDECAR_SPOILED,        /* something could not be kept: no bitmap is good any more */
};

struct sidecar_header {
    uint64_t seq;
    enum sidecar_state state;
    uint8_t boot_id[16];    /* of the boot in which it was written */
    uint64_t disk_size;     /* bytes, the node's */
    uint64_t region_size;   /* bytes, a power of two */
    uint32_t dir_slot, dir_bytes, dir_crc, n_bitmaps;
    int64_t written_ns;     /* when this header was, since 1970 */
    uint32_t n_storages;
    struct storage_identity storages[NODE_STORAGES_MAX];
    char kind[SIDECAR_KIND_MAX];        /* whose bitmaps: driver "raw", "qcow2", ... */
    char image[SIDECAR_IMAGE_MAX];      /* for people */
    char reason[SIDECAR_REASON_MAX];    /* SPOILED: why */
};

struct sidecar_entry {
    char name[DIRTY_NAME_MAX + 1];
    uint32_t granularity;
    bool enabled;
    uint64_t nbits;
    uint64_t area;                      /* where its bits are in the file */
    uint32_t crc;                       /* CLEAN: of its bits (sidecar_bits_crc) */
    char reason[SIDECAR_REASON_MAX];    /* not empty: inconsistent */
};

struct sidecar_beat {
    uint8_t boot_id[16];
    int64_t time_ns;
};

/* Bytes that the bits take up in the file. */
static inline uint64_t sidecar_area_bytes(uint64_t nbits)
{
    return div_round_up(nbits, SIDECAR_BLOCK_BITS) * SIDECAR_BLOCK;
}

uint64_t sidecar_region_size(uint64_t disk_size);

void sidecar_header_encode(const struct sidecar_header *h, uint8_t *buf);
MUST_CHECK bool sidecar_header_decode(const uint8_t *buf, struct sidecar_header *ret,
                                      struct err *err);

/* The directory as bytes, of which there are sidecar_dir_bytes; fills dir_bytes, dir_crc and
 * n_bitmaps of @h. */
size_t sidecar_dir_bytes(const struct sidecar_entry *v, uint32_t n);
void sidecar_dir_encode(const struct sidecar_entry *v, uint32_t n, uint8_t *buf,
                        struct sidecar_header *h);
/* *ret is malloc'ed, h->n_bitmaps entries. */
MUST_CHECK bool sidecar_dir_decode(const struct sidecar_header *h, const uint8_t *buf,
                                   struct sidecar_entry **ret, struct err *err);

/* Sector @i of the log; @marked has a bit for each region. */
void sidecar_log_encode(const struct bitmap *marked, unsigned i, uint8_t *buf);
/* Adds to @marked. Where the sector makes no sense all its regions are. */
void sidecar_log_decode(const uint8_t *buf, unsigned i, struct bitmap *marked);

void sidecar_beat_encode(const struct sidecar_beat *b, uint8_t *buf);
bool sidecar_beat_decode(const uint8_t *buf, struct sidecar_beat *ret);

/* One block of bits, number @block. */
void sidecar_block_encode(const uint64_t *words, uint8_t *buf);
void sidecar_block_decode(const uint8_t *buf, struct bitmap *bits, uint64_t block);

uint32_t sidecar_bits_crc(const struct bitmap *bits);

#endif
