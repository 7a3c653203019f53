/* SPDX-License-Identifier: Apache-2.0
 *
 * Parsing and writing the header and its extensions, and refcount entries of any
 * width. See format.h.
 */
#include "drivers/qcow2/format.h"
#include "base/limits.h"
#include "base/range.h"
#include <inttypes.h>

/* "Feature name table" */
#define FEATURE_ENTRY_BYTES 48
#define FEATURE_NAME_BYTES 46
#define FEATURE_INCOMPATIBLE 0

static const char *const incompat_names[] = {
    "dirty bit", "corrupt bit", "external data file", "compression type",
    "extended L2 entries",
};

static_assert(QCOW2_BACKING_FILE_MAX == LIMIT_QCOW2_BACKING_NAME, "one number, two names");

/* ---- the fixed part ------------------------------------------------------ */

static void parse_fields(const uint8_t *p, size_t len, struct qcow2_header *h)
{
    h->version = load_be32(p + 4);
    h->cluster_bits = load_be32(p + 20);
    h->size = load_be64(p + 24);
    h->l1_entries = load_be32(p + 36);
    h->l1_off = load_be64(p + 40);
    h->reftable_off = load_be64(p + 48);
    h->reftable_clusters = load_be32(p + 56);
    h->n_snapshots = load_be32(p + 60);
    h->snapshots_off = load_be64(p + 64);
    h->refcount_order = 4;
    h->header_bytes = QCOW2_V2_HEADER_BYTES;
    if (h->version != 3 || len < QCOW2_V3_HEADER_BYTES)
        return;
    h->incompatible = load_be64(p + 72);
    h->compatible = load_be64(p + 80);
    h->autoclear = load_be64(p + 88);
    h->refcount_order = load_be32(p + 96);
    h->header_bytes = load_be32(p + 100);
    if (h->header_bytes > QCOW2_V3_HEADER_BYTES && len > QCOW2_V3_HEADER_BYTES)
        h->compression = p[104];
}

/* A table of @bytes at @off: on a cluster, and not past what an entry can name. */
static bool check_table(const struct qcow2_header *h, const char *what, uint64_t off,
                        uint64_t bytes, struct err *err)
{
    if (!is_aligned(off, 1ULL << h->cluster_bits))
        return err_set(err, -EINVAL, "%s at offset %" PRIu64 " is not aligned to a cluster", what,
                       off);
    if (off >= QCOW2_MAX_HOST_OFFSET || bytes > QCOW2_MAX_HOST_OFFSET - off)
        return err_set(err, -EINVAL, "%s at offset %" PRIu64 " lies outside what the format "
                       "can address", what, off);
    return true;
}

static bool check_basics(const struct qcow2_header *h, size_t len, struct err *err)
{
    if (h->version != 2 && h->version != 3)
        return err_set(err, -ENOTSUP, "qcow2 version %" PRIu32 " is not supported", h->version);
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return err_set(err, -EINVAL, "cluster size 2^%" PRIu32 " is not between 512 bytes and "
                       "2 MiB", h->cluster_bits);
    if (h->version == 2)
        return true;
    if (len < QCOW2_V3_HEADER_BYTES)
        return err_set(err, -EINVAL, "the qcow2 header is cut short");
    if (h->header_bytes < QCOW2_V3_HEADER_BYTES || h->header_bytes % 8 ||
        h->header_bytes > 1U << h->cluster_bits)
        return err_set(err, -EINVAL, "header length %" PRIu32 " is invalid", h->header_bytes);
    if (h->header_bytes > len)
        return err_set(err, -EINVAL, "the qcow2 header is cut short");
    if (h->refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
        return err_set(err, -EINVAL, "refcount width 2^%" PRIu32 " exceeds 64 bits",
                       h->refcount_order);
    return true;
}

static bool check_tables(const struct qcow2_header *h, struct err *err)
{
    bool extended = h->incompatible & QCOW2_INCOMPAT_EXTL2;
    uint64_t l1_needed, reftable_bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;

    if (h->size > INT64_MAX)
        return err_set(err, -EFBIG, "virtual size %" PRIu64 " is too large", h->size);
    l1_needed = qcow2_l1_entries_for(h->size, h->cluster_bits, extended);
    if (h->l1_entries > LIMIT_QCOW2_L1_BYTES / 8)
        return err_set(err, -EFBIG, "the active L1 table has %" PRIu32 " entries, more than the "
                       "%llu supported", h->l1_entries, LIMIT_QCOW2_L1_BYTES / 8);
    if (h->l1_entries < l1_needed)
        return err_set(err, -EINVAL, "the L1 table is too small: %" PRIu32 " entries where the "
                       "virtual size needs %" PRIu64, h->l1_entries, l1_needed);
    if (reftable_bytes > LIMIT_QCOW2_REFTABLE_BYTES)
        return err_set(err, -EFBIG, "the refcount table has %" PRIu64 " bytes, more than the %llu "
                       "supported", reftable_bytes, LIMIT_QCOW2_REFTABLE_BYTES);
    if (!h->l1_off && h->l1_entries)
        return err_set(err, -EINVAL, "the L1 table has no place in the image");
    if (h->n_snapshots > LIMIT_QCOW2_SNAPSHOTS)
        return err_set(err, -EFBIG, "the image has %" PRIu32 " snapshots, more than the %d "
                       "supported", h->n_snapshots, LIMIT_QCOW2_SNAPSHOTS);
    if (!check_table(h, "the L1 table", h->l1_off, (uint64_t)h->l1_entries * 8, err) ||
        !check_table(h, "the refcount table", h->reftable_off, reftable_bytes, err) ||
        !check_table(h, "the snapshot table", h->n_snapshots ? h->snapshots_off : 0, 0, err))
        return false;
    return true;
}

/* What makes the refcounts useless, but nothing else. */
static bool check_reftable(const struct qcow2_header *h, struct err *err)
{
    uint64_t bytes = (uint64_t)h->reftable_clusters << h->cluster_bits;

    if (!h->reftable_clusters)
        return err_set(err, -EINVAL, "the image has no refcount table");
    if (!h->reftable_off)
        return err_set(err, -EINVAL, "the refcount table has no place in the image");
    if (ranges_overlap(h->l1_off, (uint64_t)h->l1_entries * 8, h->reftable_off, bytes))
        return err_set(err, -EINVAL, "the L1 table and the refcount table lie over each other");
    return true;
}

/* ---- header extensions --------------------------------------------------- */

struct extensions {
    const uint8_t *names;      /* feature name table */
    size_t names_bytes;
    bool crypto;
};

static bool parse_backing_format(const uint8_t *p, uint32_t bytes, struct qcow2_header *h,
                                 struct err *err)
{
    if (bytes > QCOW2_BACKING_FORMAT_MAX)
        return err_set(err, -EINVAL, "the name of the backing file's format has %" PRIu32 " bytes, "
                       "more than %d", bytes, QCOW2_BACKING_FORMAT_MAX);
    for (uint32_t i = 0; i < bytes; i++) {
        if (p[i] < 0x20 || p[i] > 0x7e)
            return err_set(err, -EINVAL, "the name of the backing file's format is not text");
    }
    memcpy(h->backing_format, p, bytes);
    h->backing_format[bytes] = 0;
    return true;
}

static void parse_bitmap_ext(const uint8_t *p, uint32_t at, uint32_t bytes,
                             struct qcow2_bitmap_ext *x)
{
    *x = (struct qcow2_bitmap_ext){ .at = at, .bytes = bytes };
    if (bytes != QCOW2_BITMAP_EXT_BYTES)
        return;
    x->n = load_be32(p);
    x->reserved = load_be32(p + 4);
    x->dir_bytes = load_be64(p + 8);
    x->dir_off = load_be64(p + 16);
}

static bool parse_data_file(const uint8_t *p, uint32_t bytes, struct qcow2_header *h,
                            struct err *err)
{
    if (bytes > QCOW2_DATA_FILE_MAX)
        return err_set(err, -EINVAL, "the name of the data file has %" PRIu32 " bytes, more than "
                       "%d", bytes, QCOW2_DATA_FILE_MAX);
    if (memchr(p, 0, bytes))
        return err_set(err, -EINVAL, "the name of the data file contains a zero byte");
    memcpy(h->data_file, p, bytes);
    h->data_file[bytes] = 0;
    return true;
}

/* They fill [header_bytes, end) up to the end mark, or to @end without one. */
static bool parse_extensions(const uint8_t *buf, size_t end, struct qcow2_header *h,
                             struct extensions *x, struct err *err)
{
    size_t at = h->header_bytes;

    while (at <= end && end - at >= 8) {
        uint32_t type = load_be32(buf + at), bytes = load_be32(buf + at + 4);

        at += 8;
        if (type == QCOW2_EXT_END)
            return true;
        if (bytes > end - at)
            return err_set(err, -EINVAL, "header extension 0x%08" PRIx32 " of %" PRIu32 " bytes "
                           "does not fit into the header", type, bytes);
        if (type == QCOW2_EXT_BACKING_FORMAT && !parse_backing_format(buf + at, bytes, h, err))
            return false;
        if (type == QCOW2_EXT_DATA_FILE && !parse_data_file(buf + at, bytes, h, err))
            return false;
        if (type == QCOW2_EXT_FEATURE_NAMES) {
            x->names = buf + at;
            x->names_bytes = bytes;
        }
        if (type == QCOW2_EXT_BITMAPS)
            parse_bitmap_ext(buf + at, (uint32_t)at, bytes, &h->bitmaps);
        x->crypto |= type == QCOW2_EXT_CRYPTO;
        at += align_up(bytes, 8);
    }
    return true;
}

/* ---- features ------------------------------------------------------------ */

/* The name of incompatible feature @bit: the image's own word for it if it has
 * one, with what does not print replaced. */
static const char *feature_name(const struct extensions *x, unsigned bit,
                                char buf[FEATURE_NAME_BYTES + 1])
{
    for (size_t at = 0; at + FEATURE_ENTRY_BYTES <= x->names_bytes; at += FEATURE_ENTRY_BYTES) {
        const uint8_t *e = x->names + at;

        if (e[0] != FEATURE_INCOMPATIBLE || e[1] != bit || !e[2])
            continue;
        memcpy(buf, e + 2, FEATURE_NAME_BYTES);
        buf[FEATURE_NAME_BYTES] = 0;
        for (char *c = buf; *c; c++)
            *c = *c < 0x20 || *c > 0x7e ? '?' : *c;
        return buf;
    }
    return bit < ARRAY_SIZE(incompat_names) ? incompat_names[bit] : NULL;
}

static bool check_features(const struct qcow2_header *h, const struct extensions *x,
                           struct err *err)
{
    uint64_t unknown = h->incompatible & ~QCOW2_INCOMPAT_KNOWN;
    char buf[FEATURE_NAME_BYTES + 1];

    if (unknown) {
        unsigned bit = (unsigned)__builtin_ctzll(unknown);
        const char *name = feature_name(x, bit, buf);

        if (!name)
            return err_set(err, -ENOTSUP, "image uses incompatible feature bit %u which this "
                           "version does not support", bit);
        return err_set(err, -ENOTSUP, "image uses incompatible feature '%s' which this version "
                       "does not support", name);
    }
    if (!!(h->incompatible & QCOW2_INCOMPAT_COMPRESSION) != !!h->compression)
        return err_set(err, -EINVAL, "the compression type %u and its feature bit contradict each "
                       "other", h->compression);
    if (h->compression > QCOW2_COMPRESSION_ZSTD)
        return err_set(err, -ENOTSUP, "compression type %u is not supported", h->compression);
    if ((h->incompatible & QCOW2_INCOMPAT_EXTL2) &&
        h->cluster_bits < QCOW2_EXTL2_MIN_CLUSTER_BITS)
        return err_set(err, -EINVAL, "extended L2 entries need clusters of 16 KiB at least, and "
                       "these have %u bytes", 1U << h->cluster_bits);
    return true;
}

/* ---- the whole ----------------------------------------------------------- */

uint32_t qcow2_peek_cluster_size(const void *buf, size_t len)
{
    const uint8_t *p = buf;
    uint32_t bits;

    if (len < 24 || load_be32(p) != QCOW2_MAGIC)
        return 0;
    bits = load_be32(p + 20);
    return bits >= QCOW2_MIN_CLUSTER_BITS && bits <= QCOW2_MAX_CLUSTER_BITS ? 1U << bits : 0;
}

/* Find the backing name and with it where the extensions end. */
static bool parse_backing_file(const uint8_t *buf, size_t len, struct qcow2_header *h,
                               size_t *extensions_end, struct err *err)
{
    uint64_t off = load_be64(buf + 8);
    uint32_t bytes = load_be32(buf + 16);

    *extensions_end = len;
    if (!off)
        return true;
    if (off > 1ULL << h->cluster_bits || off < h->header_bytes)
        return err_set(err, -EINVAL, "the name of the backing file lies outside the header");
    *extensions_end = MIN((size_t)off, len);
    if (!bytes)
        return true;
    if (bytes > QCOW2_BACKING_FILE_MAX)
        return err_set(err, -EINVAL, "the name of the backing file has %" PRIu32 " bytes, more "
                       "than %d", bytes, QCOW2_BACKING_FILE_MAX);
    if (off > len || bytes > len - off)
        return err_set(err, -EINVAL, "the name of the backing file lies outside the header");
    if (memchr(buf + off, 0, bytes))
        return err_set(err, -EINVAL, "the name of the backing file contains a zero byte");
    memcpy(h->backing_file, buf + off, bytes);
    h->has_backing = true;
    return true;
}

static const char *crypt_name(uint32_t method)
{
    return method == 1 ? "AES" : method == 2 ? "LUKS" : "an unknown method";
}

bool qcow2_header_parse(const void *buf, size_t len, struct qcow2_header *ret, struct err *err)
{
    return qcow2_header_parse_to_check(buf, len, ret, err) && check_reftable(ret, err);
}

bool qcow2_header_parse_to_check(const void *buf, size_t len, struct qcow2_header *ret,
                                 struct err *err)
{
    struct qcow2_header h = { 0 };
    struct extensions x = { 0 };
    const uint8_t *p = buf;
    size_t extensions_end;

    if (len < 4 || load_be32(p) != QCOW2_MAGIC)
        return err_set(err, -EINVAL, "image is not in qcow2 format");
    if (len < QCOW2_V2_HEADER_BYTES)
        return err_set(err, -EINVAL, "the qcow2 header is cut short");
    parse_fields(p, len, &h);
    if (!check_basics(&h, len, err))
        return false;
    len = MIN(len, (size_t)1 << h.cluster_bits);
    if (!parse_backing_file(p, len, &h, &extensions_end, err) ||
        !parse_extensions(p, extensions_end, &h, &x, err) || !check_features(&h, &x, err))
        return false;
    if (load_be32(p + 32) || x.crypto)
        return err_set(err, -ENOTSUP, "encrypted qcow2 images are not supported (this one: %s)",
                       crypt_name(load_be32(p + 32)));
    if (!check_tables(&h, err))
        return false;
    *ret = h;
    return true;
}

/* A string extension at @p; the bytes that it takes, which are zero now. With @p NULL
 * only their number. */
static size_t put_string(uint8_t *p, uint32_t type, const char *text)
{
    size_t bytes = strlen(text);

    if (!bytes)
        return 0;
    if (p) {
        store_be32(p, type);
        store_be32(p + 4, (uint32_t)bytes);
        memcpy(p + 8, text, bytes);
    }
    return 8 + align_up(bytes, 8);
}

bool qcow2_header_write(const struct qcow2_header *h, void *buf, struct err *err)
{
    uint8_t *p = buf;
    size_t cluster = (size_t)1 << h->cluster_bits, at = h->header_bytes;
    size_t name_bytes = strlen(h->backing_file);
    size_t need = at + 8 + put_string(NULL, QCOW2_EXT_BACKING_FORMAT, h->backing_format) +
                  put_string(NULL, QCOW2_EXT_DATA_FILE, h->data_file) +
                  (h->has_backing ? name_bytes : 0);

    if (need > cluster)
        return err_set(err, -EINVAL, "the name of the %s file does not fit into a cluster of "
                       "%zu bytes", h->has_backing ? "backing" : "data", cluster);
    memset(p, 0, cluster);
    store_be32(p, QCOW2_MAGIC);
    store_be32(p + 4, h->version);
    store_be32(p + 20, h->cluster_bits);
    store_be64(p + 24, h->size);
    store_be32(p + 36, h->l1_entries);
    store_be64(p + 40, h->l1_off);
    store_be64(p + 48, h->reftable_off);
    store_be32(p + 56, h->reftable_clusters);
    store_be32(p + 60, h->n_snapshots);
    store_be64(p + 64, h->snapshots_off);
    if (h->version >= 3) {
        store_be64(p + 72, h->incompatible);
        store_be64(p + 80, h->compatible);
        store_be64(p + 88, h->autoclear);
        store_be32(p + 96, h->refcount_order);
        store_be32(p + 100, h->header_bytes);
        if (h->header_bytes > QCOW2_V3_HEADER_BYTES)
            p[104] = h->compression;
    }
    at += put_string(p + at, QCOW2_EXT_BACKING_FORMAT, h->backing_format);
    at += put_string(p + at, QCOW2_EXT_DATA_FILE, h->data_file);
    at += 8;      /* the end mark is zeros */
    if (h->has_backing) {
        store_be64(p + 8, at);
        store_be32(p + 16, (uint32_t)name_bytes);
        memcpy(p + at, h->backing_file, name_bytes);
    }
    return true;
}

/* ---- geometry ------------------------------------------------------------ */

struct qcow2_geometry qcow2_geometry_of(const struct qcow2_header *h)
{
    struct qcow2_geometry g = {
        .cluster_bits = (uint8_t)h->cluster_bits,
        .refcount_order = (uint8_t)h->refcount_order,
        .version = (uint8_t)h->version,
        .extended = h->incompatible & QCOW2_INCOMPAT_EXTL2,
        .data_file = h->incompatible & QCOW2_INCOMPAT_DATA_FILE,
    };

    g.l2_bits = (uint8_t)(g.cluster_bits - qcow2_l2_entry_bits(&g));
    return g;
}

uint64_t qcow2_l1_entries_for(uint64_t size, uint32_t cluster_bits, bool extended)
{
    /* An L2 table fills a cluster with entries of 8 or 16 bytes, each for a cluster. */
    return div_round_up(size, 1ULL << (2 * cluster_bits - (extended ? 4 : 3)));
}

/* ---- extended L2 entries ------------------------------------------------- */

bool qcow2_l2_entry_get_extended(const struct qcow2_geometry *g, const void *table, size_t i,
                                 struct qcow2_l2_entry *ret)
{
    uint64_t v = qcow2_entry_get(table, 2 * i), bitmap = qcow2_entry_get(table, 2 * i + 1);

    if (!qcow2_l2_decode(g, v, ret))
        return false;
    if (ret->kind == QCOW2_COMPRESSED_KIND)
        return true;            /* the bitmap is not used */
    if (v & QCOW2_ZERO)         /* the bitmap says that */
        return false;
    ret->alloc = (uint32_t)bitmap;
    ret->zero = (uint32_t)(bitmap >> 32);
    if ((ret->alloc & ret->zero) || (ret->alloc && !ret->placed))
        return false;
    if (ret->zero == UINT32_MAX)
        ret->kind = ret->placed ? QCOW2_ZERO_ALLOC : QCOW2_ZERO_PLAIN;
    else if (bitmap ? ret->alloc != UINT32_MAX : ret->placed)
        ret->kind = QCOW2_MIXED;
    return true;
}

/* ---- refcounts ----------------------------------------------------------- */

uint64_t qcow2_refcount_get(const void *block, unsigned order, size_t i)
{
    const uint8_t *p = block;

    switch (order) {
    case 3: return p[i];
    case 4: return load_be16(p + i * 2);
    case 5: return load_be32(p + i * 4);
    case 6: return load_be64(p + i * 8);
    default: {
        size_t bit = i << order;

        return (p[bit / 8] >> (bit % 8)) & ((1U << (1U << order)) - 1);
    }
    }
}

void qcow2_refcount_set(void *block, unsigned order, size_t i, uint64_t v)
{
    uint8_t *p = block;

    assert(v <= qcow2_refcount_max(order));
    switch (order) {
    case 3: p[i] = (uint8_t)v; return;
    case 4: store_be16(p + i * 2, (uint16_t)v); return;
    case 5: store_be32(p + i * 4, (uint32_t)v); return;
    case 6: store_be64(p + i * 8, v); return;
    default: {
        size_t bit = i << order;
        unsigned mask = ((1U << (1U << order)) - 1) << (bit % 8);

        p[bit / 8] = (uint8_t)((p[bit / 8] & ~mask) | ((unsigned)v << (bit % 8)));
        return;
    }
    }
}

size_t qcow2_refcount_find_free(const void *block, unsigned order, size_t from, size_t n,
                                size_t want, size_t *ret_run)
{
    size_t first = from, end;

    while (first < n && qcow2_refcount_get(block, order, first))
        first++;
    for (end = first; end < n && end - first < want; end++) {
        if (qcow2_refcount_get(block, order, end))
            break;
    }
    *ret_run = end - first;
    return first;
}
