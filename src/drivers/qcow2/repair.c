/* SPDX-License-Identifier: Apache-2.0
 *
 * Repairing an image after a check. The order makes a crash at any moment leave
 * nothing worse than it was (I-Q13):
 *
 *     unknown autoclear bits, the bit of broken bitmaps    flush
 *     L2 entries that cannot be and have no data           flush: before their
 *                                                          clusters are freed
 *     refcounts where they are, each to what was counted   flush
 *       or: new blocks and a new table in free clusters    flush
 *           the header points to them                      flush
 *     COPIED flags                                         flush: refcounts of one
 *                                                          are on the disk before
 *     after a further check that finds nothing: the dirty and the corrupt bit
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/check_int.h"
#include "drivers/qcow2/repair.h"
#include <inttypes.h>

/* ---- the header ---------------------------------------------------------- */

static int co_write_u64(struct check *c, uint64_t at, uint64_t v)
{
    uint8_t buf[8];
    int r;

    store_be64(buf, v);
    r = co_node_pwrite(c->file, at, sizeof(buf), buf, 0);
    return r < 0 ? r : co_node_flush(c->file);
}

static int co_begin(struct check *c)
{
    uint64_t known = QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_RAW_DATA, bits;
    int r;

    if (c->bitmaps_broken && c->opts->repair == QCOW2_REPAIR_ALL)
        known &= ~QCOW2_AUTOCLEAR_BITMAPS;
    bits = c->h.autoclear & known;
    if (c->geo.version < 3 || bits == c->h.autoclear)
        return 0;
    r = co_write_u64(c, QCOW2_FIELD_AUTOCLEAR, bits);
    if (r < 0)
        return r;
    c->h.autoclear = bits;
    return co_check_load_bitmaps(c);
}

int co_check_mark_clean(struct check *c)
{
    uint64_t bits = c->h.incompatible & ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    int r;

    if (c->geo.version < 3 || bits == c->h.incompatible)
        return 0;
    r = co_node_flush(c->file);
    if (r == 0)
        r = co_write_u64(c, QCOW2_FIELD_INCOMPATIBLE, bits);
    if (r == 0)
        c->h.incompatible = bits;
    return r;
}

/* ---- entries ------------------------------------------------------------- */

/* Whether nothing but @refs references is to the cluster at @off: what is read as a
 * table is not somebody's data, nor another table. In a window that has it. */
static bool is_only(const struct check *c, uint64_t off, uint64_t refs)
{
    uint64_t cluster = off >> c->geo.cluster_bits;

    return cluster >= qcow2_counts_from(c->counts) && cluster < qcow2_counts_end(c->counts) &&
           qcow2_counts_get(c->counts, cluster) == refs;
}

/* Write the entries [first, last] of a table back. */
static int co_write_entries(struct check *c, const struct check_l2 *t, const uint8_t *table,
                            uint32_t first, uint32_t last)
{
    uint64_t from = (uint64_t)first * c->entry_bytes, to = (last + 1ULL) * c->entry_bytes;

    if (first > last || t->off + to > node_size(c->file))
        return 0;
    return co_node_pwrite(c->file, t->off + from, to - from, table + from, 0);
}

/* Entries with an impossible place and no data become zeros without a cluster. */
static int co_fix_void(struct check *c, const struct check_l2 *t, uint8_t *table)
{
    uint32_t n = 1U << c->geo.l2_bits, first = n, last = 0;

    if (!is_aligned(t->off, c->cluster_size) || !is_only(c, t->off, t->all))
        return 0;                /* it stays an error */
    for (uint32_t i = 0; i < n; i++) {
        struct check_entry e = check_entry_get(c, table, i);
        uint8_t *p = table + (size_t)i * c->entry_bytes;

        if (!check_entry_is_void(c, &e))
            continue;
        store_be64(p, c->entry_bytes == 16 ? 0 : QCOW2_ZERO);
        if (c->entry_bytes == 16)
            store_be64(p + 8, (e.bitmap | e.bitmap << 32) & ~(uint64_t)UINT32_MAX);
        first = MIN(first, i);
        last = i;
    }
    return co_write_entries(c, t, table, first, last);
}

/* Whether a refcount of one says that there is one reference. Of one bit it may be short
 * of what was counted; and outside of this window nothing was. */
static bool is_sole(const struct check *c, uint64_t cluster)
{
    return c->geo.refcount_order > 0 || is_only(c, cluster << c->geo.cluster_bits, 1);
}

static int co_right_flag(struct check *c, uint64_t host, uint64_t v, uint64_t *ret)
{
    uint64_t refcount = 0, cluster = host >> c->geo.cluster_bits;
    int r = co_check_refcount(c, cluster, &refcount);

    *ret = refcount == 1 ? v | QCOW2_COPIED : v & ~QCOW2_COPIED;
    /* Who writes in place writes for all that refer to it: not by our word. */
    if (r == -EUCLEAN || (refcount == 1 && !is_sole(c, cluster)))
        *ret = v;
    return r == -EUCLEAN ? 0 : r;
}

static int co_fix_copied(struct check *c, const struct check_l2 *t, uint8_t *table)
{
    uint32_t n = 1U << c->geo.l2_bits, first = n, last = 0;

    if (!t->active || !is_aligned(t->off, c->cluster_size) || !is_only(c, t->off, t->all))
        return 0;
    for (uint32_t i = 0; i < n; i++) {
        struct check_entry e = check_entry_get(c, table, i);
        uint64_t v = e.v | QCOW2_COPIED;
        int r = 0;

        if (e.kind != QCOW2_NORMAL && e.kind != QCOW2_ZERO_ALLOC)
            continue;
        if (!c->data_file)
            r = co_right_flag(c, e.host, e.v, &v);
        if (r < 0)
            return r;
        if (v == e.v)
            continue;
        store_be64(table + (size_t)i * c->entry_bytes, v);
        first = MIN(first, i);
        last = i;
    }
    return co_write_entries(c, t, table, first, last);
}

static int co_fix_l1(struct check *c, const uint8_t *entries, uint64_t at, uint32_t n,
                     uint64_t times)
{
    (void)times;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t v = qcow2_entry_get(entries, i), host = v & QCOW2_OFFSET_MASK, right;
        uint8_t buf[8];
        int r = host ? co_right_flag(c, host, v, &right) : 0;

        if (r == 0 && host && right != v && is_only(c, at + i * 8ULL, 1)) {
            store_be64(buf, right);
            r = co_node_pwrite(c->file, at + i * 8ULL, sizeof(buf), buf, 0);
        }
        if (r < 0)
            return r;
    }
    return 0;
}

static int co_flags_window(struct check *c)
{
    struct check_table active = { c->h.l1_off, c->h.l1_entries };
    int r;

    c->co_l2 = co_fix_copied;
    r = co_check_each_l2(c);
    return r < 0 ? r : co_check_sweep(c, &active, 1, co_fix_l1);
}

static int co_fix_flags(struct check *c)
{
    int r;

    check_forget_slices(c);
    r = co_check_windows(c, co_flags_window);
    return r < 0 ? r : co_node_flush(c->file);
}

static int co_void_window(struct check *c)
{
    c->co_l2 = co_fix_void;
    return co_check_each_l2(c);
}

/* ---- all of it ----------------------------------------------------------- */

static int co_fix_refcounts(struct check *c)
{
    int r;

    if (c->rebuild)
        return co_check_rebuild(c);
    r = co_check_windows(c, co_check_correct);
    return r < 0 ? r : co_node_flush(c->file);
}

static int co_repair_leaks(struct check *c)
{
    if (c->rebuild || c->bitmaps_broken) {
        err_set(&c->err, -EIO, "The image needs more than its leaks repaired: --repair all does "
                "that");
        return -EIO;
    }
    if (c->res->leaks)
        return co_fix_refcounts(c);
    return c->res->corruptions == c->copied_errors ? co_fix_flags(c) : 0;
}

static int co_repair_all(struct check *c)
{
    int r = 0;

    if (c->stray_snapshots) {
        r = co_write_u64(c, QCOW2_FIELD_SNAPSHOTS_OFFSET, 0);
        c->h.snapshots_off = 0;
    }
    if (r == 0 && c->invalid_entries) {
        r = co_check_windows(c, co_void_window);
        if (r == 0)
            r = co_node_flush(c->file);
    }
    if (r == 0)
        r = co_fix_refcounts(c);
    return r < 0 ? r : co_fix_flags(c);
}

static int refuse_hidden(struct check *c)
{
    err_set(&c->err, -EUCLEAN, "Nothing was repaired: %s, so what it holds cannot be told from "
            "leaks, and would be given away. Copy what can be read to a new image with "
            "'stillpoint convert', and keep this one for whoever can put that right",
            c->hidden.text);
    return -EUCLEAN;
}

int co_check_repair(struct check *c)
{
    int r;

    if (c->hidden.code)
        return refuse_hidden(c);
    c->mute = true;
    c->file_end = align_up(node_size(c->file), 512);
    r = co_begin(c);
    if (r == 0)
        r = c->opts->repair == QCOW2_REPAIR_ALL ? co_repair_all(c) : co_repair_leaks(c);
    c->mute = false;
    return r;
}
