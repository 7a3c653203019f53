/* SPDX-License-Identifier: Apache-2.0
 *
 * For a check: the snapshot table and the bitmap directory, as far as they say
 * which clusters are in use. A snapshot table that cannot be read to its end ends
 * the check, for what its snapshots hold would look like leaks.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/bitmaps_format.h"
#include "drivers/qcow2/check_int.h"
#include <inttypes.h>

/* ---- snapshots ----------------------------------------------------------- */

#define SNAPSHOT_BYTES 40        /* "Snapshots": the fixed part of an entry */
#define SNAPSHOT_EXTRA_NEEDED 16 /* version 3: size of the VM state, of the disk */
#define CHUNK_BYTES (64 * KiB)

/* A part of the table in memory. */
struct reader {
    uint64_t from;               /* UINT64_MAX: nothing yet */
    uint8_t *buf;                /* CHUNK_BYTES */
};

static int co_get_fixed(struct check *c, struct reader *r, uint64_t off, const uint8_t **ret)
{
    if (off < r->from || off + SNAPSHOT_BYTES > r->from + CHUNK_BYTES) {
        int error = co_check_read(c, off, CHUNK_BYTES, r->buf);

        if (error < 0)
            return error;
        r->from = off;
    }
    *ret = r->buf + (off - r->from);
    return 0;
}

/* An entry of the table. */
struct entry {
    uint32_t i;
    uint64_t off, end;
    uint32_t extra;
    uint16_t id_bytes;
    uint64_t l1_off;
    uint32_t l1_entries;
};

/* What an L1 table that cannot be one holds is not known: it must not be taken for
 * leaks. Whoever is to do something about it looks for the snapshot by its id. */
static int co_hide_snapshot(struct check *c, const struct entry *e)
{
    char id[64];
    uint64_t bytes = MIN(e->id_bytes, sizeof(id) - 1);
    int r = co_check_read(c, e->off + SNAPSHOT_BYTES + e->extra, bytes, id);

    id[bytes] = 0;
    check_hide(c, "the L1 table of the snapshot with id '%s' cannot be where the image says "
               "(offset %#" PRIx64 ", %" PRIu32 " entries)", id, e->l1_off, e->l1_entries);
    return r;
}

/* Keep its L1 table if it can be one. */
static int co_add_snapshot(struct check *c, const struct entry *e)
{
    bool aligned = is_aligned(e->l1_off, c->cluster_size);
    bool fits = e->l1_entries <= LIMIT_QCOW2_L1_BYTES / 8;

    if (!aligned)
        check_corrupt(c, 1, "ERROR snapshot %" PRIu32 " l1_offset=%#" PRIx64 ": L1 table is not "
                      "cluster aligned; snapshot table entry corrupted", e->i, e->l1_off);
    else if (!fits)
        check_corrupt(c, 1, "ERROR snapshot %" PRIu32 " l1_size=%#" PRIx32 ": L1 table is too "
                      "large; snapshot table entry corrupted", e->i, e->l1_entries);
    if (aligned && fits && e->l1_entries)
        c->snapshots[c->n_snapshots++] = (struct check_table){ e->l1_off, e->l1_entries };
    if (!aligned || !fits || (e->l1_entries && !e->l1_off))
        return co_hide_snapshot(c, e);
    return 0;
}

/* @p is the fixed part of the entry at e->off; e->end is where it ends. */
static int co_take_snapshot(struct check *c, const uint8_t *p, struct entry *e)
{
    uint32_t names = load_be16(p + 12) + load_be16(p + 14);

    e->extra = load_be32(p + 36);
    e->id_bytes = load_be16(p + 12);
    e->l1_off = load_be64(p);
    e->l1_entries = load_be32(p + 8);
    if (e->extra > LIMIT_QCOW2_SNAPSHOT_EXTRA_BYTES) {
        err_set(&c->err, -EFBIG, "Entry %" PRIu32 " of the snapshot table has %" PRIu32
                " bytes of extra data, more than %u", e->i, e->extra,
                LIMIT_QCOW2_SNAPSHOT_EXTRA_BYTES);
        return -EFBIG;
    }
    e->end = e->off + SNAPSHOT_BYTES + e->extra + names;
    if (e->end - c->h.snapshots_off > LIMIT_QCOW2_SNAPSHOT_TABLE_BYTES) {
        err_set(&c->err, -EFBIG, "The snapshot table is larger than %llu bytes",
                LIMIT_QCOW2_SNAPSHOT_TABLE_BYTES);
        return -EFBIG;
    }
    if (c->geo.version >= 3 && e->extra < SNAPSHOT_EXTRA_NEEDED)
        check_corrupt(c, 1, "ERROR snapshot table entry %" PRIu32 " is incomplete", e->i);
    return co_add_snapshot(c, e);
}

int co_check_load_snapshots(struct check *c)
{
    CLEANUP(free) uint8_t *buf = try_alloc_aligned(CHUNK_BYTES);
    struct reader reader = { .from = UINT64_MAX, .buf = buf };
    uint64_t end = c->h.snapshots_off;

    free(c->snapshots);
    c->n_snapshots = 0;
    c->snapshots = calloc(c->h.n_snapshots + 1ULL, sizeof(*c->snapshots));
    if (!buf || !c->snapshots)
        return -ENOMEM;
    c->stray_snapshots = !c->h.n_snapshots && !is_aligned(c->h.snapshots_off, c->cluster_size);
    if (c->stray_snapshots)      /* QEMU does not open it */
        check_corrupt(c, 1, "ERROR the snapshot table, which is empty, has the invalid offset %#"
                      PRIx64, c->h.snapshots_off);
    for (uint32_t i = 0; i < c->h.n_snapshots; i++) {
        struct entry e = { .i = i, .off = align_up(end, 8) };
        const uint8_t *fixed;
        int r = co_get_fixed(c, &reader, e.off, &fixed);

        if (r == 0)
            r = co_take_snapshot(c, fixed, &e);
        if (r < 0)
            return r;
        end = e.end;
    }
    c->snapshots_bytes = end - c->h.snapshots_off;
    if (c->data_file && c->h.n_snapshots)
        check_corrupt(c, 1, "ERROR %" PRIu32 " snapshots in image with data file",
                      c->h.n_snapshots);
    return 0;
}

/* ---- bitmaps ------------------------------------------------------------- */

/* The driver's own reading decides what is a directory: what it keeps, though it cannot
 * use it, is no error of the directory, and a repair does not take it away. */

/* Whether a bitmap of a kind that is known can be one of this image. */
static bool is_possible(const struct check *c, const struct qcow2_bitmap_entry *e)
{
    uint64_t bytes = (uint64_t)e->table_entries << c->geo.cluster_bits;

    if (!bytes || bytes > LIMIT_QCOW2_BITMAP_BYTES)
        return false;
    return (e->flags & QCOW2_BITMAP_IN_USE) || c->h.size <= (bytes * 8) << e->granularity_bits;
}

static int broken(struct check *c, const char *what)
{
    c->bitmaps_broken = true;
    check_corrupt(c, 1, "ERROR bitmap directory: %s", what);
    return 0;
}

static int take_bitmaps(struct check *c, const struct qcow2_bitmap_dir *d)
{
    c->bitmaps = calloc(d->n, sizeof(*c->bitmaps));
    if (!c->bitmaps)
        return -ENOMEM;
    for (uint32_t i = 0; i < d->n; i++) {
        const struct qcow2_bitmap_entry *e = &d->v[i];

        if (e->usable && !is_possible(c, e))
            check_corrupt(c, 1, "ERROR bitmap '%.64s' cannot be: %" PRIu32 " table entries, "
                          "granularity 2^%u", e->name, e->table_entries, e->granularity_bits);
        if (e->table_entries)
            c->bitmaps[c->n_bitmaps++] = (struct check_table){ e->table_off, e->table_entries };
    }
    return 0;
}

int co_check_load_bitmaps(struct check *c)
{
    const struct qcow2_bitmap_ext *x = &c->h.bitmaps;
    uint64_t file_end = align_up(node_size(c->file), c->cluster_size);
    CLEANUP(free) uint8_t *buf = NULL;
    struct qcow2_bitmap_dir dir;
    struct err err = ERR_INIT;
    int r;

    free(MOVE(c->bitmaps));
    c->n_bitmaps = 0;
    c->bitmaps_off = c->bitmaps_bytes = 0;
    if (!x->at || !(c->h.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    if (!qcow2_bitmap_ext_check(&c->geo, x, &err))
        return broken(c, err.text);
    if (x->dir_off + x->dir_bytes > file_end)
        return broken(c, "it reaches past the end of the file");
    buf = try_alloc_aligned(x->dir_bytes);
    r = buf ? co_check_read(c, x->dir_off, x->dir_bytes, buf) : -ENOMEM;
    if (r < 0)
        return r;
    if (!qcow2_bitmap_dir_parse(&c->geo, buf, x->dir_bytes, x->n, &dir, &err))
        return err.code == -ENOMEM ? err.code : broken(c, err.text);
    c->bitmaps_off = x->dir_off;
    c->bitmaps_bytes = x->dir_bytes;
    r = take_bitmaps(c, &dir);
    qcow2_bitmap_dir_done(&dir);
    return r;
}
