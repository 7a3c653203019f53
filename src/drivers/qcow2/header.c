/* SPDX-License-Identifier: Apache-2.0
 *
 * The header while the image is open: fields that change are rewritten in place,
 * each group in one write that lies inside a sector; extensions and the backing
 * name move only when the first cluster is rewritten as a whole. And the last line
 * of defence: what may not be overwritten as data.
 */
#include "base/mem.h"
#include "base/range.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/rename.h"
#include "drivers/qcow2/qcow2.h"

#define SECTOR 512

/* Not while the cluster is being rewritten, which would bring the old field back. */
static int co_write_field(struct qcow2 *s, uint64_t at, uint64_t len, const void *buf)
{
    int r;

    co_mutex_lock(&s->header_lock);
    r = co_qcow2_meta_write(s, at, len, buf);
    co_mutex_unlock(&s->header_lock);
    return r;
}

void qcow2_stop_writing(struct qcow2 *s)
{
    s->write_ready = false;
    s->stopped = true;
    if (!s->flush_error)
        s->flush_error = -EIO;
}

/* The one write that comes after the stop: a field of its own, inside a sector. */
static int co_write_corrupt_bit(struct qcow2 *s)
{
    uint8_t buf[8];
    int r;

    co_mutex_lock(&s->header_lock);
    s->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
    store_be64(buf, s->header.incompatible);
    r = co_node_pwrite(s->file, QCOW2_FIELD_INCOMPATIBLE, sizeof(buf), buf, 0);
    co_mutex_unlock(&s->header_lock);
    if (r == 0)
        r = co_node_flush(s->file);
    return r < 0 ? r : -EIO;
}

int co_qcow2_mark_corrupt(struct qcow2 *s, const char *what, uint64_t host, uint64_t len)
{
    /* Where writing had stopped before, what looks wrong may come of that. */
    if (s->stopped)
        return -EIO;
    qcow2_stop_writing(s);
    node_report_corruption(s->node, &(struct node_corruption){ what, host, len });
    return s->geo.version < 3 || s->node->read_only ? -EIO : co_write_corrupt_bit(s);
}

/* Set and clear bits of *@bits, the field at @at, on the disk. What the others are is
 * looked up under the lock. */
static int co_change_bits(struct qcow2 *s, uint64_t at, uint64_t *bits, uint64_t set,
                          uint64_t clear)
{
    uint8_t buf[8];
    uint64_t v;
    int r;

    co_mutex_lock(&s->header_lock);
    v = (*bits | set) & ~clear;
    store_be64(buf, v);
    r = co_qcow2_meta_write(s, at, sizeof(buf), buf);
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r == 0)
        *bits = v;
    co_mutex_unlock(&s->header_lock);
    return r;
}

static int co_change_incompatible(struct qcow2 *s, uint64_t set, uint64_t clear)
{
    return co_change_bits(s, QCOW2_FIELD_INCOMPATIBLE, &s->header.incompatible, set, clear);
}

int co_qcow2_mark_dirty(struct qcow2 *s)
{
    if (LIKELY(s->header.incompatible & QCOW2_INCOMPAT_DIRTY))
        return 0;
    return co_change_incompatible(s, QCOW2_INCOMPAT_DIRTY, 0);
}

int co_qcow2_mark_clean(struct qcow2 *s)
{
    if (!(s->header.incompatible & QCOW2_INCOMPAT_DIRTY))
        return 0;
    return co_change_incompatible(s, 0, QCOW2_INCOMPAT_DIRTY);
}

/* Under sync_lock. I-Q6: what we do not keep up to date is off, on the disk, before
 * anything else is changed. */
static int co_make_ready(struct qcow2 *s)
{
    uint64_t known = (s->bitmaps.n ? QCOW2_AUTOCLEAR_BITMAPS : 0) |
                     (s->raw_data ? QCOW2_AUTOCLEAR_RAW_DATA : 0);
    int r = 0;

    if (s->stopped)
        return -EIO;
    if (s->write_ready)
        return 0;
    if (s->header.autoclear & ~known)
        r = co_change_bits(s, QCOW2_FIELD_AUTOCLEAR, &s->header.autoclear, 0, ~known);
    if (r == 0)
        s->write_ready = true;
    return r;
}

int co_qcow2_begin_metadata(struct qcow2 *s)
{
    int r;

    co_mutex_lock(&s->sync_lock);
    r = co_make_ready(s);
    co_mutex_unlock(&s->sync_lock);
    return r;
}

/* I-Q12: bitmaps that see every write are out of date from now on. */
static int co_outdate_enabled(struct qcow2 *s)
{
    int r = co_qcow2_bitmaps_mark(s, false);

    return r == 0 && s->bitmaps.n ? co_qcow2_flush_file(s) : r;
}

int co_qcow2_begin_write(struct qcow2 *s)
{
    int r;

    if (LIKELY(s->write_ready && s->outdated))
        return 0;
    co_mutex_lock(&s->bitmaps_lock);
    co_mutex_lock(&s->sync_lock);
    r = co_make_ready(s);
    if (r == 0 && !s->outdated)
        r = co_outdate_enabled(s);
    if (r == 0)
        s->outdated = true;
    co_mutex_unlock(&s->sync_lock);
    if (r == 0)
        r = co_qcow2_drop_stale_bitmaps(s);
    co_mutex_unlock(&s->bitmaps_lock);
    return r;
}

int co_qcow2_write_reftable_fields(struct qcow2 *s, uint64_t off, uint32_t clusters)
{
    uint8_t buf[12];
    int r;

    store_be64(buf, off);
    store_be32(buf + 8, clusters);
    r = co_write_field(s, QCOW2_FIELD_REFTABLE, sizeof(buf), buf);
    if (r < 0)
        return r;
    s->header.reftable_off = off;
    s->header.reftable_clusters = clusters;
    return 0;
}

int co_qcow2_write_l1_fields(struct qcow2 *s, uint64_t off, uint32_t entries)
{
    uint8_t buf[12];
    int r;

    store_be32(buf, entries);
    store_be64(buf + 4, off);
    r = co_write_field(s, QCOW2_FIELD_L1, sizeof(buf), buf);
    if (r < 0)
        return r;
    s->header.l1_entries = entries;
    s->header.l1_off = off;
    return 0;
}

int co_qcow2_write_size_field(struct qcow2 *s, uint64_t size)
{
    uint8_t buf[8];
    int r;

    store_be64(buf, size);
    r = co_write_field(s, QCOW2_FIELD_SIZE, sizeof(buf), buf);
    if (r < 0)
        return r;
    s->header.size = size;
    return 0;
}

int co_qcow2_write_tree_fields(struct qcow2 *s, const struct qcow2_trees *t)
{
    uint8_t buf[QCOW2_V2_HEADER_BYTES - QCOW2_FIELD_SIZE] = { 0 };
    int r;

    static_assert(QCOW2_V2_HEADER_BYTES <= 512, "the fields lie inside one sector");
    store_be64(buf, t->size);                     /* and no encryption behind it */
    store_be32(buf + 12, t->l1_entries);
    store_be64(buf + 16, t->l1_off);
    store_be64(buf + 24, t->reftable_off);
    store_be32(buf + 32, t->reftable_clusters);
    store_be32(buf + 36, t->n_snapshots);
    store_be64(buf + 40, t->snapshots_off);
    r = co_write_field(s, QCOW2_FIELD_SIZE, sizeof(buf), buf);
    if (r < 0)
        return r;
    s->header.size = t->size;
    s->header.l1_entries = t->l1_entries;
    s->header.l1_off = t->l1_off;
    s->header.reftable_off = t->reftable_off;
    s->header.reftable_clusters = t->reftable_clusters;
    s->header.n_snapshots = t->n_snapshots;
    s->header.snapshots_off = t->snapshots_off;
    return 0;
}

/* ---- the first cluster as a whole ----------------------------------------- */

/* I-Q14: the first sector last: what is behind it does not harm the old one, and the
 * rest of the new one is there when it comes. */
static int co_write_cluster(struct qcow2 *s, const uint8_t *buf, size_t bytes)
{
    int r = co_qcow2_flush_file(s);

    if (r == 0 && bytes > SECTOR) {
        r = co_qcow2_meta_write(s, SECTOR, bytes - SECTOR, buf + SECTOR);
        if (r == 0)
            r = co_qcow2_flush_file(s);
    }
    if (r == 0)
        r = co_qcow2_meta_write(s, 0, MIN(bytes, (size_t)SECTOR), buf);
    return r < 0 ? r : co_qcow2_flush_file(s);
}

static int co_write_steps(struct qcow2 *s, const struct qcow2_header_steps *steps)
{
    int r = steps->between_bytes ? co_write_cluster(s, steps->between, steps->between_bytes) : 0;

    return r < 0 ? r : co_write_cluster(s, steps->buf, steps->bytes);
}

static bool co_rewrite_locked(struct qcow2 *s, const struct qcow2_header_change *c,
                              struct err *err)
{
    uint64_t have = MIN(node_size(s->file), s->cluster_size);
    CLEANUP(free) void *old = try_alloc_aligned(s->cluster_size);
    CLEANUP(free) void *between = try_alloc_aligned(s->cluster_size);
    CLEANUP(free) void *buf = try_alloc_aligned(s->cluster_size);
    CLEANUP(free) struct qcow2_header *h = malloc(sizeof(*h));
    struct qcow2_header_steps steps = { .between = between, .buf = buf };
    int r = old && between && buf && h ? co_qcow2_meta_read(s, 0, have, old) : -ENOMEM;

    if (r < 0)
        return err_errno(err, r, "could not read the qcow2 header");
    if (!qcow2_header_rebuild(old, have, c, &steps, err) ||
        !qcow2_header_parse(buf, s->cluster_size, h, err))
        return false;
    if (!s->write_ready)
        return err_set(err, -EIO, "the image cannot be written to any more");
    r = co_write_steps(s, &steps);
    if (r < 0) {
        qcow2_stop_writing(s);      /* what the header says is not known */
        return err_errno(err, r, "could not write the qcow2 header");
    }
    s->header = *h;
    s->names_backing = h->has_backing;
    return true;
}

bool co_qcow2_rewrite_header(struct qcow2 *s, const struct qcow2_header_change *c,
                             struct err *err)
{
    bool ok;

    co_mutex_lock(&s->header_lock);
    ok = co_rewrite_locked(s, c, err);
    co_mutex_unlock(&s->header_lock);
    return ok;
}

bool co_qcow2_rename_backing(struct node *n, const char *file, const char *format,
                             struct err *err)
{
    struct qcow2_header_change c = {
        .backing = true, .backing_file = file, .backing_format = format,
    };
    int r;

    assert(n->drv == &qcow2_driver);
    if (n->read_only)
        return err_set(err, -EROFS, "Node '%s' is read-only", n->name);
    if (file && ((struct qcow2 *)n->state)->raw_data)
        return err_set(err, -EINVAL, "An image whose data file is raw cannot have a backing file");
    r = co_qcow2_begin_metadata(n->state);
    if (r < 0)
        return err_errno(err, r, "could not write to the image");
    return co_qcow2_rewrite_header(n->state, &c, err);
}

/* ---- what may not be overwritten ------------------------------------------ */

static bool touches_table(const struct qcow2 *s, const struct qcow2_table *t, uint64_t host,
                          uint64_t len)
{
    return ranges_overlap(host, len, t->off, align_up(t->n * 8ULL, s->cluster_size));
}

bool qcow2_is_metadata(const struct qcow2 *s, uint64_t host, uint64_t len)
{
    uint64_t last = (host + len - 1) >> s->geo.cluster_bits;

    if (host < s->cluster_size || touches_table(s, &s->l1, host, len) ||
        touches_table(s, &s->reftable, host, len) ||
        ranges_overlap(host, len, s->header.snapshots_off, s->snapshots.bytes))
        return true;
    for (uint64_t c = host >> s->geo.cluster_bits; c <= last; c++) {
        if (UNLIKELY(qcow2_metaset_has(&s->meta, c) ||
                     (s->inactive.n && qcow2_metaset_has(&s->inactive, c)) ||
                     (s->bitmap_meta.n && qcow2_metaset_has(&s->bitmap_meta, c))))
            return true;
    }
    return false;
}
