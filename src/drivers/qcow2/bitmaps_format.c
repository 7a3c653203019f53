/* SPDX-License-Identifier: Apache-2.0
 *
 * The bitmaps extension, see bitmaps_format.h.
 */
#include "drivers/qcow2/bitmaps_format.h"
#include "base/limits.h"
#include "base/mem.h"
#include <inttypes.h>

#define ENTRY_BYTES 24               /* before extra data and name */
#define TYPE_DIRTY 1
#define KNOWN_FLAGS \
    (QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO | QCOW2_BITMAP_EXTRA_COMPATIBLE)

/* ---- the header extension ------------------------------------------------ */

bool qcow2_bitmap_ext_check(const struct qcow2_geometry *g, const struct qcow2_bitmap_ext *x,
                            struct err *err)
{
    if (x->bytes != QCOW2_BITMAP_EXT_BYTES || x->reserved)
        return err_set(err, -EINVAL, "the bitmaps extension is not as it should be");
    if (!x->n || x->n > LIMIT_QCOW2_BITMAPS)
        return err_set(err, -EINVAL, "the bitmaps extension tells of %" PRIu32 " bitmaps", x->n);
    if (x->dir_bytes > LIMIT_QCOW2_BITMAP_DIR_BYTES || x->dir_bytes < x->n * 32ULL)
        return err_set(err, -EINVAL, "the bitmap directory has %" PRIu64 " bytes for %" PRIu32
                       " bitmaps", x->dir_bytes, x->n);
    if (!x->dir_off || x->dir_off >= QCOW2_MAX_HOST_OFFSET ||
        !is_aligned(x->dir_off, qcow2_cluster_size(g)))
        return err_set(err, -EINVAL, "the bitmap directory is at offset %" PRIu64 ", where none "
                       "can be", x->dir_off);
    return true;
}

void qcow2_bitmap_ext_encode(const struct qcow2_bitmap_ext *x, uint8_t buf[QCOW2_BITMAP_EXT_BYTES])
{
    store_be32(buf, x->n);
    store_be32(buf + 4, 0);
    store_be64(buf + 8, x->dir_bytes);
    store_be64(buf + 16, x->dir_off);
}

/* ---- the directory ------------------------------------------------------- */

static uint64_t entry_bytes(uint64_t extra, uint64_t name)
{
    return align_up(ENTRY_BYTES + extra + name, 8);
}

/* Whether we know what the bits mean. Others are left as they are. */
static bool is_usable(const uint8_t *p, const struct qcow2_bitmap_entry *e)
{
    bool extra = load_be32(p + 20) && !(e->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE);

    return p[16] == TYPE_DIRTY && !(e->flags & ~(uint32_t)KNOWN_FLAGS) && !extra &&
           e->granularity_bits >= QCOW2_BITMAP_MIN_GRANULARITY_BITS &&
           e->granularity_bits <= QCOW2_BITMAP_MAX_GRANULARITY_BITS;
}

static bool check_entry(const struct qcow2_geometry *g, const struct qcow2_bitmap_entry *e,
                        uint32_t name_bytes, uint32_t i, struct err *err)
{
    if (!name_bytes || name_bytes > QCOW2_BITMAP_NAME_MAX || strlen(e->name) != name_bytes)
        return err_set(err, -EINVAL, "the name of bitmap %" PRIu32 " is not a name", i);
    if (e->granularity_bits > 63)
        return err_set(err, -EINVAL, "the granularity of bitmap '%.64s' is 2^%u", e->name,
                       e->granularity_bits);
    if (e->table_entries > LIMIT_QCOW2_BITMAP_TABLE_ENTRIES)
        return err_set(err, -EFBIG, "the table of bitmap '%.64s' has %" PRIu32 " entries, more "
                       "than the %u supported", e->name, e->table_entries,
                       LIMIT_QCOW2_BITMAP_TABLE_ENTRIES);
    if (!is_aligned(e->table_off, qcow2_cluster_size(g)) ||
        e->table_off >= QCOW2_MAX_HOST_OFFSET || (e->table_entries && !e->table_off))
        return err_set(err, -EINVAL, "the table of bitmap '%.64s' is at offset %" PRIu64 ", where "
                       "none can be", e->name, e->table_off);
    return true;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct qcow2_bitmap_entry *const *)a)->name,
                  (*(struct qcow2_bitmap_entry *const *)b)->name);
}

static bool sort_names(struct qcow2_bitmap_dir *d, struct err *err)
{
    for (uint32_t i = 0; i < d->n; i++)
        d->by_name[i] = &d->v[i];
    qsort(d->by_name, d->n, sizeof(struct qcow2_bitmap_entry *), by_name);
    for (uint32_t i = 1; i < d->n; i++) {
        if (by_name(&d->by_name[i - 1], &d->by_name[i]) == 0)
            return err_set(err, -EINVAL, "two bitmaps are called '%.64s'", d->by_name[i]->name);
    }
    return true;
}

/* Fill d->v from d->raw; d->texts has room for all names. */
static bool decode_entries(const struct qcow2_geometry *g, struct qcow2_bitmap_dir *d,
                           struct err *err)
{
    char *text = d->texts;
    uint64_t at = 0;

    for (uint32_t i = 0; i < d->n; i++) {
        const uint8_t *p = d->raw + at;
        struct qcow2_bitmap_entry *e = &d->v[i];
        uint64_t left = d->bytes - at, total;
        uint32_t extra, name;

        if (left < ENTRY_BYTES)
            return err_set(err, -EINVAL, "the bitmap directory is too short for its bitmaps");
        extra = load_be32(p + 20);
        name = load_be16(p + 18);
        total = entry_bytes(extra, name);
        if (total > left)
            return err_set(err, -EINVAL, "the bitmap directory is too short for its bitmaps");
        *e = (struct qcow2_bitmap_entry){
            .table_off = load_be64(p), .table_entries = load_be32(p + 8),
            .flags = load_be32(p + 12), .granularity_bits = p[17], .name = text,
            .at = (uint32_t)at, .bytes = (uint32_t)total,
            .extra = p + ENTRY_BYTES, .extra_bytes = extra,
        };
        e->usable = is_usable(p, e);
        memcpy(text, p + ENTRY_BYTES + extra, name);
        text[name] = 0;
        text += name + 1;
        if (!check_entry(g, e, name, i, err))
            return false;
        at += total;
    }
    return at == d->bytes ||
           err_set(err, -EINVAL, "the bitmap directory is longer than its bitmaps");
}

bool qcow2_bitmap_dir_parse(const struct qcow2_geometry *g, const void *buf, uint64_t len,
                            uint32_t n, struct qcow2_bitmap_dir *ret, struct err *err)
{
    struct qcow2_bitmap_dir d = { .n = n, .bytes = len };

    assert(n <= LIMIT_QCOW2_BITMAPS && len <= LIMIT_QCOW2_BITMAP_DIR_BYTES);
    d.v = calloc(MAX(n, 1U), sizeof(*d.v));
    d.by_name = calloc(MAX(n, 1U), sizeof(struct qcow2_bitmap_entry *));
    d.raw = malloc(MAX(len, 1ULL));
    d.texts = malloc(len + n + 1);       /* names are part of @len */
    if (!d.v || !d.by_name || !d.raw || !d.texts) {
        qcow2_bitmap_dir_done(&d);
        return err_set(err, -ENOMEM, "out of memory for the bitmap directory");
    }
    memcpy(d.raw, buf, len);
    if (!decode_entries(g, &d, err) || !sort_names(&d, err)) {
        qcow2_bitmap_dir_done(&d);
        return false;
    }
    *ret = d;
    return true;
}

void qcow2_bitmap_dir_done(struct qcow2_bitmap_dir *d)
{
    free(d->v);
    free(d->by_name);
    free(d->raw);
    free(d->texts);
    *d = (struct qcow2_bitmap_dir){ 0 };
}

struct qcow2_bitmap_entry *qcow2_bitmap_dir_find(const struct qcow2_bitmap_dir *d,
                                                 const char *name)
{
    const struct qcow2_bitmap_entry wanted = { .name = name }, *key = &wanted;
    struct qcow2_bitmap_entry **found = d->n ? bsearch(&key, d->by_name, d->n, sizeof(*found),
                                                       by_name) : NULL;

    return found ? *found : NULL;
}

void qcow2_bitmap_set_flag(struct qcow2_bitmap_dir *d, struct qcow2_bitmap_entry *e, uint32_t flag)
{
    e->flags |= flag;
    store_be32(d->raw + e->at + QCOW2_BITMAP_FLAGS_AT, e->flags);
}

uint32_t qcow2_bitmap_entry_bytes(const char *name)
{
    return (uint32_t)entry_bytes(0, strlen(name));
}

uint32_t qcow2_bitmap_entry_encode(const struct qcow2_bitmap_entry *e, void *buf)
{
    size_t name = strlen(e->name), extra = e->extra_bytes;
    uint64_t bytes = entry_bytes(extra, name);
    uint8_t *p = buf;

    assert(name && name <= QCOW2_BITMAP_NAME_MAX);
    memset(p, 0, bytes);
    store_be64(p, e->table_off);
    store_be32(p + 8, e->table_entries);
    store_be32(p + QCOW2_BITMAP_FLAGS_AT, e->flags);
    p[16] = TYPE_DIRTY;
    p[17] = e->granularity_bits;
    store_be16(p + 18, (uint16_t)name);
    store_be32(p + 20, e->extra_bytes);
    if (extra)
        memcpy(p + ENTRY_BYTES, e->extra, extra);
    memcpy(p + ENTRY_BYTES + extra, e->name, name);
    return (uint32_t)bytes;
}

/* ---- bits ---------------------------------------------------------------- */

void qcow2_bits_decode(struct bitmap *bm, uint64_t first, uint64_t n, const void *buf)
{
    const uint8_t *p = buf;
    uint64_t end = MIN(n, bitmap_size(bm) - first), from = 0;
    bool in_run = false;

    /* Whole bytes that are alike at once: bitmaps are mostly 0 or mostly 1. */
    for (uint64_t i = 0; i < end; i++) {
        bool set = p[i / 8] >> (i % 8) & 1;

        if (i % 8 == 0 && i + 8 <= end && p[i / 8] == (in_run ? 0xff : 0)) {
            i += 7;
            continue;
        }
        if (set && !in_run)
            from = i;
        if (!set && in_run)
            bitmap_set(bm, first + from, i - from);
        in_run = set;
    }
    if (in_run)
        bitmap_set(bm, first + from, end - from);
}

void qcow2_bits_encode(const struct bitmap *bm, uint64_t first, uint64_t n, void *buf)
{
    uint64_t end = first + MIN(n, bitmap_size(bm) - first), at = first, len;
    uint8_t *p = buf;

    memset(p, 0, div_round_up(n, 8));
    while (at < end && bitmap_next_range(bm, at, end - at, &at, &len) && at < end) {
        len = MIN(len, end - at);
        for (uint64_t i = at - first; i < at - first + len; i++) {
            if (i % 8 == 0 && i + 8 <= at - first + len) {
                p[i / 8] = 0xff;
                i += 7;
            } else {
                p[i / 8] |= (uint8_t)(1 << (i % 8));
            }
        }
        at += len;
    }
}
