/* SPDX-License-Identifier: Apache-2.0
 *
 * The qcow2 format as pure code: bytes of an image to host structs and back. All
 * that is big-endian is here, and every number out of an image is checked here,
 * before anything uses it as an offset, a length or a count. No I/O, nothing
 * suspends, any thread; tests/fuzz/fuzz_qcow2_format.c feeds it rubbish.
 *
 * The format: QEMU docs/interop/qcow2.rst. Section names below are that
 * document's.
 */
#ifndef QCOW2_FORMAT_H
#define QCOW2_FORMAT_H

#include "base/bytes.h"
#include "base/err.h"

#define QCOW2_MAGIC 0x514649fbU          /* "QFI\xfb" */
#define QCOW2_MIN_CLUSTER_BITS 9
#define QCOW2_MAX_CLUSTER_BITS 21        /* as QEMU; the format itself has no limit */
#define QCOW2_EXTL2_MIN_CLUSTER_BITS 14
#define QCOW2_MAX_REFCOUNT_ORDER 6
#define QCOW2_V2_HEADER_BYTES 72
#define QCOW2_V3_HEADER_BYTES 104        /* the least; what follows is optional */
#define QCOW2_BACKING_FILE_MAX 1023
#define QCOW2_DATA_FILE_MAX 4095
#define QCOW2_BACKING_FORMAT_MAX 15      /* as QEMU's field of 16 bytes */

/* Header: incompatible_features, compatible_features, autoclear_features. */
#define QCOW2_INCOMPAT_DIRTY (1ULL << 0)
#define QCOW2_INCOMPAT_CORRUPT (1ULL << 1)
#define QCOW2_INCOMPAT_DATA_FILE (1ULL << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ULL << 3)
#define QCOW2_INCOMPAT_EXTL2 (1ULL << 4)
#define QCOW2_INCOMPAT_KNOWN \
    (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DATA_FILE | \
     QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_EXTL2)
#define QCOW2_AUTOCLEAR_BITMAPS (1ULL << 0)      /* the bitmaps extension is up to date */
#define QCOW2_AUTOCLEAR_RAW_DATA (1ULL << 1)     /* the data file reads as the disk */
#define QCOW2_COMPAT_LAZY_REFCOUNTS (1ULL << 0)

enum qcow2_compression { QCOW2_COMPRESSION_ZLIB = 0, QCOW2_COMPRESSION_ZSTD = 1 };

/* Offsets of the header fields that are rewritten in place. */
enum {
    QCOW2_FIELD_SIZE = 24,
    QCOW2_FIELD_L1 = 36,             /* u32 entries, u64 offset */
    QCOW2_FIELD_REFTABLE = 48,       /* u64 offset, u32 clusters */
    QCOW2_FIELD_SNAPSHOTS_OFFSET = 64,
    QCOW2_FIELD_INCOMPATIBLE = 72,
    QCOW2_FIELD_AUTOCLEAR = 88,
};

/* The bitmaps extension as it is, before qcow2_bitmap_ext_check (bitmaps_format.h). */
#define QCOW2_BITMAP_EXT_BYTES 24
#define QCOW2_BITMAP_FLAGS_AT 12         /* in an entry of the directory */
struct qcow2_bitmap_ext {
    uint32_t at;                     /* of its data in the first cluster; 0: there is none */
    uint32_t bytes;
    uint32_t n, reserved;
    uint64_t dir_bytes, dir_off;
};

struct qcow2_header {
    uint32_t version;                /* 2 or 3 */
    uint32_t cluster_bits;
    uint64_t size;                   /* of the virtual disk, bytes */
    uint32_t l1_entries;
    uint64_t l1_off;
    uint64_t reftable_off;
    uint32_t reftable_clusters;
    uint32_t n_snapshots;
    uint64_t snapshots_off;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;         /* a refcount has 1 << order bits */
    uint32_t header_bytes;
    uint8_t compression;             /* enum qcow2_compression */
    struct qcow2_bitmap_ext bitmaps;
    bool has_backing;
    char backing_file[QCOW2_BACKING_FILE_MAX + 1];
    char backing_format[QCOW2_BACKING_FORMAT_MAX + 1];   /* empty: not said */
    char data_file[QCOW2_DATA_FILE_MAX + 1];             /* the same */
};

/* Parse the first cluster of an image, or as much of it as the file has; @len
 * bytes. False with a sentence in @err that does not name the file. A dirty or
 * corrupt image parses; one that needs a feature which is not known here does not. */
MUST_CHECK bool qcow2_header_parse(const void *buf, size_t len, struct qcow2_header *ret,
                                   struct err *err);

/* The same for a check, to which a refcount table that is missing, or lies in the
 * header or over the L1 table, is no obstacle: it can be made anew. */
MUST_CHECK bool qcow2_header_parse_to_check(const void *buf, size_t len,
                                            struct qcow2_header *ret, struct err *err);

/* The size of the clusters of the image that begins with @buf, or 0 if it is not
 * one: how much to read for qcow2_header_parse. Needs 24 bytes. */
uint32_t qcow2_peek_cluster_size(const void *buf, size_t len);

/* Write header, extensions and backing name to @buf of one cluster (zeroed here).
 * False when they do not fit into the cluster. */
MUST_CHECK bool qcow2_header_write(const struct qcow2_header *h, void *buf, struct err *err);

/* ---- Header extensions --------------------------------------------------- */

#define QCOW2_EXT_END 0x00000000U
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acaU
#define QCOW2_EXT_FEATURE_NAMES 0x6803f857U
#define QCOW2_EXT_BITMAPS 0x23852875U
#define QCOW2_EXT_CRYPTO 0x0537be77U
#define QCOW2_EXT_DATA_FILE 0x44415441U
/* Says nothing: what a rewrite of the header that was cut half way may leave (I-Q14). For
 * others it is an extension that they do not know; the next rewrite drops it. */
#define QCOW2_EXT_PADDING 0x70616421U

struct qcow2_extension {
    uint32_t type, bytes;
    const void *data;            /* NULL: none of this type */
};

/* The extension in a first cluster at *at, a position that begins with the header's
 * length: true and *ret, and *at is past it; false at the end of them. A cluster
 * that qcow2_header_parse accepted; @len as there, and cut at the backing name. */
bool qcow2_next_extension(const void *buf, size_t len, size_t *at, struct qcow2_extension *ret);

/* What a rewrite of the header changes; all else stays byte for byte. */
struct qcow2_header_change {
    bool backing;                /* another backing file, or none: */
    const char *backing_file, *backing_format;   /* NULL: none */
    /* Put these in place of those of the same type, or behind all, or leave their
     * type out. */
    const struct qcow2_extension *extensions;
    size_t n_extensions;
    uint64_t autoclear_set, autoclear_clear;     /* version 3 */
};

/* The table with the names of all features that are known here (version 3). */
#define QCOW2_FEATURE_NAMES_BYTES (8 * 48)
void qcow2_feature_names(uint8_t buf[QCOW2_FEATURE_NAMES_BYTES]);

/* The clusters to be written, one after the other: first all behind the first sector, then,
 * after a flush, the first sector. Wherever that is cut, the first cluster says what it
 * said before or what it will. */
struct qcow2_header_steps {
    /* In: room for a cluster each; between may be NULL, as for an image that is being made. */
    void *between, *buf;
    /* Out: as far as they differ from what is there. */
    size_t between_bytes, bytes; /* between_bytes 0: that is not needed */
};

/* Make the first cluster anew from the one at @old (@len bytes, which may end
 * early): header fields as they are, however long it is, unknown extensions as they
 * are, what @c says changed. The table of feature names goes if there is no room
 * otherwise. -ENOSPC: nor is there without. (What an older first sector told may stay
 * behind the end, where nothing points to it.) */
MUST_CHECK bool qcow2_header_rebuild(const void *old, size_t len,
                                     const struct qcow2_header_change *c,
                                     struct qcow2_header_steps *ret, struct err *err);

/* ---- geometry: what the entries below are checked against ---------------- */

struct qcow2_geometry {
    uint8_t cluster_bits;
    uint8_t l2_bits;                 /* entries in an L2 table: 1 << l2_bits */
    uint8_t refcount_order;
    uint8_t version;
    bool extended;                   /* L2 entries have a bitmap of subclusters */
    bool data_file;                  /* data is in a file of its own, where the guest has it */
};

struct qcow2_geometry qcow2_geometry_of(const struct qcow2_header *h);

/* L1 entries that a disk of @size bytes needs. */
uint64_t qcow2_l1_entries_for(uint64_t size, uint32_t cluster_bits, bool extended);

static inline uint64_t qcow2_cluster_size(const struct qcow2_geometry *g)
{
    return 1ULL << g->cluster_bits;
}

/* An L2 entry has 1 << bits bytes. */
static inline unsigned qcow2_l2_entry_bits(const struct qcow2_geometry *g)
{
    return 3U + g->extended;
}

/* Clusters are allocated and made zero in units of 1 << bits bytes: subclusters
 * with extended L2 entries, else whole. */
#define QCOW2_SUBCLUSTER_BITS 5
#define QCOW2_SUBCLUSTERS (1U << QCOW2_SUBCLUSTER_BITS)
static inline unsigned qcow2_unit_bits(const struct qcow2_geometry *g)
{
    return g->cluster_bits - (g->extended ? QCOW2_SUBCLUSTER_BITS : 0U);
}

/* ---- Cluster mapping ----------------------------------------------------- */

#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ULL   /* bits 9-55 */
#define QCOW2_COPIED (1ULL << 63)
#define QCOW2_COMPRESSED (1ULL << 62)
#define QCOW2_ZERO (1ULL << 0)
/* Above this no offset can be written into an L1 or L2 entry. */
#define QCOW2_MAX_HOST_OFFSET (1ULL << 56)

enum qcow2_kind {
    QCOW2_UNALLOCATED,      /* the backing file decides */
    QCOW2_ZERO_PLAIN,       /* reads as zero, no host cluster */
    QCOW2_ZERO_ALLOC,       /* reads as zero, with a host cluster kept for it */
    QCOW2_NORMAL,
    QCOW2_COMPRESSED_KIND,
    QCOW2_MIXED,            /* extended entries: its subclusters are not all alike, or none
                             * has data though there is a host cluster */
};

struct qcow2_l2_entry {
    enum qcow2_kind kind;
    bool copied;            /* its host cluster's refcount is exactly one */
    bool placed;            /* it has a host cluster (in a data file offset 0 is one) */
    uint64_t host;          /* of the cluster; COMPRESSED: of the first byte; else 0 */
    uint32_t compressed_bytes;   /* COMPRESSED: up to the end of its last sector */
    uint32_t alloc, zero;   /* extended entries: a bit for each subcluster that has data,
                             * that reads as zero; no bit is in both */
};

/* Bits of a compressed cluster's entry for its offset; above them are its sectors. */
static inline unsigned qcow2_compressed_shift(const struct qcow2_geometry *g)
{
    return 62 - (g->cluster_bits - 8U);
}

/* The entry of @bytes of compressed data (less than a cluster) at @host; false when
 * that lies behind what such an entry can address. */
MUST_CHECK static inline bool qcow2_compressed_encode(const struct qcow2_geometry *g,
                                                      uint64_t host, uint32_t bytes, uint64_t *ret)
{
    unsigned x = qcow2_compressed_shift(g);
    uint64_t more_sectors = ((host + bytes - 1) >> 9) - (host >> 9);

    *ret = QCOW2_COMPRESSED | more_sectors << x | host;
    return host + bytes <= MIN(1ULL << x, QCOW2_MAX_HOST_OFFSET);
}

/* "Standard Cluster Descriptor" and "Compressed Clusters Descriptor": the whole of
 * a standard entry, the first half of an extended one (use qcow2_l2_entry_get). False: no
 * such entry may be (reserved bits, an offset off the clusters). On the way of
 * every request, hence inline. */
MUST_CHECK static inline bool qcow2_l2_decode(const struct qcow2_geometry *g, uint64_t v,
                                              struct qcow2_l2_entry *ret)
{
    if (UNLIKELY(v & QCOW2_COMPRESSED)) {
        unsigned x = qcow2_compressed_shift(g);
        uint64_t sectors = ((v & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> x) + 1;

        ret->kind = QCOW2_COMPRESSED_KIND;
        ret->copied = false;
        ret->placed = true;
        ret->host = v & ((1ULL << x) - 1);
        ret->alloc = ret->zero = 0;
        ret->compressed_bytes = (uint32_t)(sectors * 512 - (ret->host & 511));
        return ret->host < QCOW2_MAX_HOST_OFFSET && !g->data_file;
    }

    uint64_t host = v & QCOW2_OFFSET_MASK;

    ret->copied = v >> 63;
    ret->host = host;
    ret->placed = host || (g->data_file && ret->copied);
    ret->compressed_bytes = 0;
    ret->alloc = ret->zero = 0;
    if (LIKELY(!(v & QCOW2_ZERO)))
        ret->kind = ret->placed ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
    else
        ret->kind = ret->placed ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
    if (UNLIKELY(v & ~(QCOW2_OFFSET_MASK | QCOW2_COPIED | QCOW2_ZERO)))
        return false;
    if (UNLIKELY((v & QCOW2_ZERO) && g->version < 3))
        return false;
    /* Cluster 0 is the header's, unless data is in another file. */
    if (UNLIKELY(ret->copied && !ret->placed))
        return false;
    return is_aligned(host, qcow2_cluster_size(g));
}

/* "L1 table entry": the offset of the L2 table, 0 for none. */
MUST_CHECK static inline bool qcow2_l1_decode(const struct qcow2_geometry *g, uint64_t v,
                                              uint64_t *ret_off, bool *ret_copied)
{
    *ret_off = v & QCOW2_OFFSET_MASK;
    *ret_copied = v >> 63;
    return !(v & ~(QCOW2_OFFSET_MASK | QCOW2_COPIED)) && (*ret_off || !*ret_copied) &&
           is_aligned(*ret_off, qcow2_cluster_size(g));
}

/* The @i-th entry of a table or of a part of one. */
static inline uint64_t qcow2_entry_get(const void *table, size_t i)
{
    return load_be64((const uint8_t *)table + i * 8);
}

static inline void qcow2_entry_set(void *table, size_t i, uint64_t v)
{
    store_be64((uint8_t *)table + i * 8, v);
}

/* ---- L2 tables, or parts of them, of either kind of entry ---------------- */

/* The descriptor of the @i-th entry, as it is: offset and flags. */
static inline uint64_t qcow2_l2_descriptor(const struct qcow2_geometry *g, const void *table,
                                           size_t i)
{
    return qcow2_entry_get(table, i << g->extended);
}

/* Change it alone. */
static inline void qcow2_l2_set_descriptor(const struct qcow2_geometry *g, void *table, size_t i,
                                           uint64_t v)
{
    qcow2_entry_set(table, i << g->extended, v);
}

/* "Extended L2 Entries". False also when the bitmap cannot be; *ret has host and
 * kind of the descriptor then, if that is sound. */
MUST_CHECK bool qcow2_l2_entry_get_extended(const struct qcow2_geometry *g, const void *table,
                                            size_t i, struct qcow2_l2_entry *ret);

/* The @i-th entry. */
MUST_CHECK static inline bool qcow2_l2_entry_get(const struct qcow2_geometry *g, const void *table,
                                                 size_t i, struct qcow2_l2_entry *ret)
{
    if (UNLIKELY(g->extended))
        return qcow2_l2_entry_get_extended(g, table, i, ret);
    return qcow2_l2_decode(g, qcow2_entry_get(table, i), ret);
}

/* Set the whole entry; standard ones have no @alloc and @zero (the descriptor says
 * it), compressed clusters neither. */
static inline void qcow2_l2_entry_set(const struct qcow2_geometry *g, void *table, size_t i,
                                      uint64_t v, uint32_t alloc, uint32_t zero)
{
    if (UNLIKELY(g->extended)) {
        qcow2_entry_set(table, 2 * i, v);
        qcow2_entry_set(table, 2 * i + 1, (uint64_t)zero << 32 | alloc);
    } else {
        qcow2_entry_set(table, i, v);
    }
}

/* The host clusters that a compressed cluster has a part of, and so a reference
 * to: *ret_n of them, at most 3. */
static inline uint64_t qcow2_compressed_clusters(const struct qcow2_geometry *g,
                                                 const struct qcow2_l2_entry *e, unsigned *ret_n)
{
    uint64_t first = e->host >> g->cluster_bits;
    uint64_t last = (e->host + e->compressed_bytes - 1) >> g->cluster_bits;

    *ret_n = (unsigned)(last - first + 1);
    return first;
}

/* ---- Host cluster management --------------------------------------------- */

/* "Refcount table entry": the offset of the refcount block, 0 for none. */
MUST_CHECK static inline bool qcow2_reftable_decode(const struct qcow2_geometry *g, uint64_t v,
                                                    uint64_t *ret_off)
{
    *ret_off = v & ~511ULL;
    return !(v & 511) && v < QCOW2_MAX_HOST_OFFSET && is_aligned(v, qcow2_cluster_size(g));
}

/* The @i-th refcount of a refcount block or of a part of one that begins at a
 * byte boundary. Widths below a byte count from its least significant bit. */
uint64_t qcow2_refcount_get(const void *block, unsigned order, size_t i);
/* @v fits into the width. */
void qcow2_refcount_set(void *block, unsigned order, size_t i, uint64_t v);
static inline uint64_t qcow2_refcount_max(unsigned order)
{
    return order == 6 ? UINT64_MAX : (1ULL << (1U << order)) - 1;
}

/* The first of the entries [from, n) that is 0 (n if none is), and how many
 * follow it that are 0 too, up to @want in all. */
size_t qcow2_refcount_find_free(const void *block, unsigned order, size_t from, size_t n,
                                size_t want, size_t *ret_run);

#endif
