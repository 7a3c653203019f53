/* SPDX-License-Identifier: Apache-2.0
 *
 * For a check: the snapshot table and the bitmap directory, as far as they say
 * which clusters are in use. A snapshot table that cannot be read to its end ends
 * the check, for what its snapshots hold would look like leaks.
 */
#include "base/limits.h"
#include "base/mem.h"
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

/* Keep its L1 table if it can be one. */
static void add_snapshot(struct check *c, uint32_t i, uint64_t l1_off, uint32_t l1_entries)
{
    if (!is_aligned(l1_off, c->cluster_size)) {
        check_corrupt(c, 1, "ERROR snapshot %" PRIu32 " l1_offset=%#" PRIx64 ": L1 table is not "
                      "cluster aligned; snapshot table entry corrupted", i, l1_off);
        return;
    }
    if (l1_entries > LIMIT_QCOW2_L1_BYTES / 8) {
        check_corrupt(c, 1, "ERROR snapshot %" PRIu32 " l1_size=%#" PRIx32 ": L1 table is too "
                      "large; snapshot table entry corrupted", i, l1_entries);
        return;
    }
    if (l1_entries)
        c->snapshots[c->n_snapshots++] = (struct check_table){ l1_off, l1_entries };
}

/* @e is the fixed part of the entry at @off; *ret_end is where it ends. */
static bool take_snapshot(struct check *c, uint32_t i, const uint8_t *e, uint64_t off,
                          uint64_t *ret_end)
{
    uint32_t extra = load_be32(e + 36), names = load_be16(e + 12) + load_be16(e + 14);

    if (extra > LIMIT_QCOW2_SNAPSHOT_EXTRA_BYTES)
        return err_set(&c->err, -EFBIG, "Entry %" PRIu32 " of the snapshot table has %" PRIu32
                       " bytes of extra data, more than %u", i, extra,
                       LIMIT_QCOW2_SNAPSHOT_EXTRA_BYTES);
    *ret_end = off + SNAPSHOT_BYTES + extra + names;
    if (*ret_end - c->h.snapshots_off > LIMIT_QCOW2_SNAPSHOT_TABLE_BYTES)
        return err_set(&c->err, -EFBIG, "The snapshot table is larger than %llu bytes",
                       LIMIT_QCOW2_SNAPSHOT_TABLE_BYTES);
    if (c->geo.version >= 3 && extra < SNAPSHOT_EXTRA_NEEDED)
        check_corrupt(c, 1, "ERROR snapshot table entry %" PRIu32 " is incomplete", i);
    add_snapshot(c, i, load_be64(e), load_be32(e + 8));
    return true;
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
        uint64_t off = align_up(end, 8);
        const uint8_t *e;
        int r = co_get_fixed(c, &reader, off, &e);

        if (r < 0)
            return r;
        if (!take_snapshot(c, i, e, off, &end))
            return c->err.code;
    }
    c->snapshots_bytes = end - c->h.snapshots_off;
    if (c->data_file && c->h.n_snapshots)
        check_corrupt(c, 1, "ERROR %" PRIu32 " snapshots in image with data file",
                      c->h.n_snapshots);
    return 0;
}

/* ---- bitmaps ------------------------------------------------------------- */

#define EXT_BITMAPS 0x23852875U
#define EXT_BYTES 24
#define BITMAP_BYTES 24          /* "Bitmap directory": the fixed part of an entry */
#define BITMAP_IN_USE 1U
#define BITMAP_FLAGS 3U
#define BITMAP_TYPE_DIRTY 1

/* The "Bitmaps extension" of the header, if the image has one that counts. Points
 * into @buf. */
static const uint8_t *find_extension(const struct check *c, const uint8_t *buf, size_t len)
{
    uint64_t name = load_be64(buf + 8), end = name ? MIN(name, (uint64_t)len) : len;

    if (c->geo.version < 3 || !(c->h.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return NULL;
    for (uint64_t at = c->h.header_bytes; at + 8 <= end; ) {
        uint32_t type = load_be32(buf + at), bytes = load_be32(buf + at + 4);

        at += 8;
        if (!type || bytes > end - at)
            return NULL;
        if (type == EXT_BITMAPS)
            return bytes == EXT_BYTES ? buf + at : NULL;
        at += align_up(bytes, 8);
    }
    return NULL;
}

/* Take the entry at @e, of a directory that has @left bytes from there on; the bytes
 * that it takes, 0 if it cannot be. */
static uint64_t take_bitmap(struct check *c, const uint8_t *e, uint64_t left)
{
    uint64_t off, n, bytes, disk_bytes;
    uint32_t flags;

    if (left < BITMAP_BYTES)
        return 0;
    off = load_be64(e);
    n = load_be32(e + 8);
    flags = load_be32(e + 12);
    bytes = align_up(BITMAP_BYTES + (uint64_t)load_be32(e + 20) + load_be16(e + 18), 8);
    disk_bytes = n << c->geo.cluster_bits;
    if (bytes > left || load_be32(e + 20) || !n || !off || !is_aligned(off, c->cluster_size) ||
        off >= QCOW2_MAX_HOST_OFFSET || disk_bytes > LIMIT_QCOW2_BITMAP_BYTES || e[17] < 9 ||
        e[17] > 31 || flags & ~BITMAP_FLAGS || load_be16(e + 18) > 1023 ||
        e[16] != BITMAP_TYPE_DIRTY)
        return 0;
    if (!(flags & BITMAP_IN_USE) && c->h.size > (disk_bytes * 8) << e[17])
        return 0;
    c->bitmaps[c->n_bitmaps++] = (struct check_table){ off, n };
    return bytes;
}

static int broken(struct check *c, const char *what)
{
    c->bitmaps_broken = true;
    c->n_bitmaps = 0;
    check_corrupt(c, 1, "ERROR bitmap directory: %s", what);
    return 0;
}

static int co_load_directory(struct check *c, uint32_t n)
{
    CLEANUP(free) uint8_t *dir = try_alloc_aligned(c->bitmaps_bytes);
    uint64_t at = 0;
    int r = dir ? co_check_read(c, c->bitmaps_off, c->bitmaps_bytes, dir) : -ENOMEM;

    c->bitmaps = calloc(n, sizeof(*c->bitmaps));
    if (r == 0 && !c->bitmaps)
        r = -ENOMEM;
    if (r < 0)
        return r;
    while (at < c->bitmaps_bytes) {
        uint64_t bytes = c->n_bitmaps < n ? take_bitmap(c, dir + at, c->bitmaps_bytes - at) : 0;

        if (!bytes)
            return broken(c, "an entry is invalid");
        at += bytes;
    }
    return c->n_bitmaps == n ? 0 : broken(c, "there are fewer bitmaps than the header says");
}

int co_check_load_bitmaps(struct check *c)
{
    uint64_t len = MIN(node_size(c->file), c->cluster_size);
    const uint8_t *ext;
    uint32_t n;
    int r;

    free(MOVE(c->bitmaps));
    c->n_bitmaps = 0;
    c->bitmaps_off = c->bitmaps_bytes = 0;
    r = co_check_read(c, 0, c->cluster_size, c->block);
    if (r < 0)
        return r;
    ext = find_extension(c, c->block, len);
    n = ext ? load_be32(ext) : 0;
    if (!n)
        return 0;
    c->bitmaps_bytes = load_be64(ext + 8);
    c->bitmaps_off = load_be64(ext + 16);
    if (n > LIMIT_QCOW2_BITMAPS || !c->bitmaps_bytes ||
        c->bitmaps_bytes > LIMIT_QCOW2_BITMAP_DIR_BYTES ||
        c->bitmaps_off >= QCOW2_MAX_HOST_OFFSET ||
        !is_aligned(c->bitmaps_off, c->cluster_size)) {
        c->bitmaps_bytes = 0;
        return broken(c, "its place or size is invalid");
    }
    return co_load_directory(c, n);
}
