/* SPDX-License-Identifier: Apache-2.0
 *
 * The bitmaps of an image: their directory, which stays in memory, their bits, and
 * the marks that tell valid ones from others. Changing them is in bitmaps_store.c.
 *
 * The autoclear bit says that the extension belongs to the image's present content. A
 * program that does not know of bitmaps clears it; then what is there is not
 * believed, and dropped from the header with our first write.
 */
#include "drivers/qcow2/bitmaps.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/qcow2.h"
#include <inttypes.h>

static bool is_valid(const struct qcow2 *s)
{
    return s->header.bitmaps.at && (s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS);
}

/* ---- the directory ------------------------------------------------------- */

int qcow2_guard_bitmaps(const struct qcow2 *s, const struct qcow2_bitmap_dir *d, uint64_t dir_off,
                        struct qcow2_metaset *ret)
{
    unsigned bits = s->geo.cluster_bits;
    uint64_t left = LIMIT_QCOW2_BITMAP_TABLE_ENTRIES;   /* clusters */
    int r = 0;

    *ret = (struct qcow2_metaset){ 0 };
    if (!d->n)
        return 0;
    r = qcow2_metaset_init(ret, 64);
    for (uint64_t i = 0; r == 0 && i < div_round_up(d->bytes, s->cluster_size); i++)
        r = qcow2_metaset_add(ret, (dir_off >> bits) + i);
    for (uint32_t k = 0; r == 0 && k < d->n; k++) {
        uint64_t n = div_round_up(d->v[k].table_entries * 8ULL, s->cluster_size);

        for (uint64_t i = 0; r == 0 && left && i < n; i++, left--)
            r = qcow2_metaset_add(ret, (d->v[k].table_off >> bits) + i);
    }
    return r;
}

bool co_qcow2_load_bitmaps(struct qcow2 *s, struct err *err)
{
    const struct qcow2_bitmap_ext *x = &s->header.bitmaps;
    CLEANUP(free) void *buf = NULL;
    int r;

    qcow2_bitmap_dir_done(&s->bitmaps);
    if (!is_valid(s))
        return true;
    if (!qcow2_bitmap_ext_check(&s->geo, x, err))
        return false;
    if (x->dir_off + x->dir_bytes > align_up(node_size(s->file), s->cluster_size))
        return err_set(err, -EINVAL, "the bitmap directory reaches past the end of the file");
    buf = try_alloc_aligned(x->dir_bytes);
    r = buf ? co_qcow2_meta_read(s, x->dir_off, x->dir_bytes, buf) : -ENOMEM;
    if (r < 0)
        return err_errno(err, r, "could not read the bitmap directory");
    if (!qcow2_bitmap_dir_parse(&s->geo, buf, x->dir_bytes, x->n, &s->bitmaps, err))
        return false;
    r = s->node->read_only ? 0 : qcow2_guard_bitmaps(s, &s->bitmaps, x->dir_off, &s->bitmap_meta);
    return r == 0 || err_errno(err, r, "could not open the image");
}

uint32_t qcow2_bitmaps_count(struct node *n)
{
    assert(n->drv == &qcow2_driver);
    return ((struct qcow2 *)n->state)->bitmaps.n;
}

void qcow2_bitmaps_get(struct node *n, uint32_t i, struct qcow2_bitmap_info *ret)
{
    struct qcow2 *s = n->state;
    const struct qcow2_bitmap_entry *e = &s->bitmaps.v[i];

    assert(n->drv == &qcow2_driver && i < s->bitmaps.n);
    *ret = (struct qcow2_bitmap_info){
        .name = e->name, .granularity = 1ULL << e->granularity_bits, .usable = e->usable,
        .in_use = e->flags & QCOW2_BITMAP_IN_USE, .enabled = e->flags & QCOW2_BITMAP_AUTO,
    };
}

json_t *qcow2_bitmaps_list(struct node *n)
{
    json_t *list = json_array();

    for (uint32_t i = 0; i < qcow2_bitmaps_count(n); i++) {
        struct qcow2_bitmap_info info;
        json_t *flags = json_array();

        qcow2_bitmaps_get(n, i, &info);
        if (info.in_use)
            json_array_append_new(flags, json_string("in-use"));
        if (info.enabled)
            json_array_append_new(flags, json_string("auto"));
        json_array_append_new(list, json_pack("{s:o, s:o, s:I}", "flags", flags,
                                              "name", schema_json_str(info.name), "granularity",
                                              (json_int_t)info.granularity));
    }
    return list;
}

/* ---- marks --------------------------------------------------------------- */

/* The flags of one entry, in place: four bytes inside a sector, and a mark too many
 * does no harm. */
static int co_write_flags(struct qcow2 *s, const struct qcow2_bitmap_entry *e, uint32_t flags)
{
    uint8_t buf[4];

    store_be32(buf, flags);
    return co_qcow2_meta_write(s, s->header.bitmaps.dir_off + e->at + QCOW2_BITMAP_FLAGS_AT,
                               sizeof(buf), buf);
}

int co_qcow2_bitmaps_mark(struct qcow2 *s, bool all)
{
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < s->bitmaps.n; i++) {
        struct qcow2_bitmap_entry *e = &s->bitmaps.v[i];

        if ((e->flags & QCOW2_BITMAP_IN_USE) || !(all || (e->flags & QCOW2_BITMAP_AUTO)))
            continue;
        r = co_write_flags(s, e, e->flags | QCOW2_BITMAP_IN_USE);
        if (r == 0)
            qcow2_bitmap_set_flag(&s->bitmaps, e, QCOW2_BITMAP_IN_USE);
    }
    return r;
}

static int co_mark_one(struct qcow2 *s, const char *name)
{
    struct qcow2_bitmap_entry *e = qcow2_bitmap_dir_find(&s->bitmaps, name);
    int r;

    if (!e || (e->flags & QCOW2_BITMAP_IN_USE))
        return 0;
    r = co_qcow2_begin_metadata(s);
    if (r == 0)
        r = co_write_flags(s, e, e->flags | QCOW2_BITMAP_IN_USE);
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r == 0)
        qcow2_bitmap_set_flag(&s->bitmaps, e, QCOW2_BITMAP_IN_USE);
    return r;
}

int co_qcow2_bitmap_mark(struct qcow2 *s, const char *name)
{
    int r;

    co_mutex_lock(&s->bitmaps_lock);
    r = co_mark_one(s, name);
    co_mutex_unlock(&s->bitmaps_lock);
    return r;
}

int co_qcow2_bitmaps_outdate(struct qcow2 *s)
{
    int r;

    co_mutex_lock(&s->bitmaps_lock);
    r = co_qcow2_bitmaps_mark(s, true);
    if (r == 0 && s->bitmaps.n)
        r = co_qcow2_flush_file(s);
    co_mutex_unlock(&s->bitmaps_lock);
    return r;
}

int co_qcow2_drop_stale_bitmaps(struct qcow2 *s)
{
    struct qcow2_extension none = { .type = QCOW2_EXT_BITMAPS };
    struct qcow2_header_change c = { .extensions = &none, .n_extensions = 1 };

    if (LIKELY(!s->header.bitmaps.at || is_valid(s) || s->geo.version < 3))
        return 0;
    /* It says nothing any more: no harm if it stays. */
    (void)!co_qcow2_rewrite_header(s, &c, NULL);
    return s->write_ready ? 0 : -EIO;
}

/* ---- bits ---------------------------------------------------------------- */

int co_qcow2_read_bitmap_table(struct qcow2 *s, const struct qcow2_bitmap_entry *e, uint64_t **ret)
{
    static_assert(LIMIT_QCOW2_BITMAP_TABLE_ENTRIES <= LIMIT_QCOW2_L1_BYTES / 8, "they fit");
    return co_qcow2_read_l1(s, e->table_off, e->table_entries, ret);
}

/* The cluster of bits that table entry @v describes, from bit @first on. */
static int co_load_cluster(struct qcow2 *s, uint64_t v, struct bitmap *bm, uint64_t first,
                           void *buf)
{
    uint64_t n = MIN(s->cluster_size * 8, bitmap_size(bm) - first), host;
    bool ones;
    int r;

    if (!qcow2_bitmap_table_decode(&s->geo, v, &host, &ones))
        return -EILSEQ;
    if (!host) {
        if (ones)
            bitmap_set(bm, first, n);
        return 0;
    }
    r = co_qcow2_meta_read(s, host, s->cluster_size, buf);
    if (r == 0 && !mem_is_zero(buf, s->cluster_size))
        qcow2_bits_decode(bm, first, n, buf);
    return r;
}

/* The bits that one table entry may touch, and once the sums above them. */
#define TOUCHED_PAGE 4096ULL
#define TOUCHED_SUMS (8 * TOUCHED_PAGE)

static bool take_from(uint64_t *budget, uint64_t bytes)
{
    bool enough = *budget >= bytes;

    *budget -= MIN(*budget, bytes);
    return enough;
}

/* @budget: bytes that may be touched for it; what was is taken off. -E2BIG: not enough. */
static int co_load_table(struct qcow2 *s, const struct qcow2_bitmap_entry *e, uint64_t *budget,
                         struct bitmap *bm)
{
    CLEANUP(free) void *buf = try_alloc_aligned(s->cluster_size);
    CLEANUP(free) uint64_t *table = NULL;
    uint64_t cost = MAX(s->cluster_size, TOUCHED_PAGE), sums = TOUCHED_SUMS;
    uint32_t n = e->table_entries;
    int r = buf ? co_qcow2_read_bitmap_table(s, e, &table) : -ENOMEM;

    for (uint32_t i = 0; r == 0 && i < n; i++) {
        if (!table[i])
            continue;
        if (!take_from(budget, cost + sums))
            return -E2BIG;
        sums = 0;
        r = co_load_cluster(s, table[i], bm, i * (s->cluster_size * 8), buf);
    }
    return r;
}

/* The bitmap @name, if it can be loaded, and how many bits it has. */
static const struct qcow2_bitmap_entry *find_loadable(struct qcow2 *s, const char *name,
                                                      uint64_t *ret_bits, struct err *err)
{
    const struct qcow2_bitmap_entry *e = qcow2_bitmap_dir_find(&s->bitmaps, name);
    uint64_t bits;
    bool ok = false;

    if (!e)
        ok = err_set(err, -ENOENT, "the image has no bitmap '%s'", name);
    else if (!e->usable)
        ok = err_set(err, -ENOTSUP, "bitmap '%s' is of a kind that this version does not know",
                     name);
    else if (e->flags & QCOW2_BITMAP_IN_USE)
        ok = err_set(err, -EINVAL, "bitmap '%s' is inconsistent: it was not stored after the "
                     "image was last written to. It can only be removed", name);
    else if ((bits = qcow2_bitmap_bits(s->node->size, e->granularity_bits)) >
             LIMIT_QCOW2_BITMAP_BYTES * 8)
        ok = err_set(err, -EFBIG, "bitmap '%s' has %" PRIu64 " bits, more than the %llu "
                     "supported", name, bits, LIMIT_QCOW2_BITMAP_BYTES * 8);
    else if (qcow2_bitmap_table_entries(&s->geo, bits) != e->table_entries)
        ok = err_set(err, -EINVAL, "the image is corrupt: bitmap '%s' is not of its disk's size",
                     name);
    else {
        *ret_bits = bits;
        ok = true;
    }
    return ok ? e : NULL;
}

/* Under bitmaps_lock. */
static bool co_load_one(struct qcow2 *s, const char *name, uint64_t *budget, struct bitmap **ret,
                        struct err *err)
{
    const struct qcow2_bitmap_entry *e;
    CLEANUP(bitmap_free) struct bitmap *bm = NULL;
    uint64_t bits = 0;
    int r;

    e = find_loadable(s, name, &bits, err);
    if (!e)
        return false;
    bm = bitmap_new(bits);
    r = bm ? co_load_table(s, e, budget, bm) : -ENOMEM;
    if (r == -EILSEQ)
        return err_set(err, -EINVAL, "the image is corrupt: the table of bitmap '%s' has an entry "
                       "that cannot be", name);
    if (r == -E2BIG)
        return err_set(err, r, "the image's bitmaps need more than %llu MiB of memory to be kept",
                       LIMIT_QCOW2_LOADED_BITMAP_BYTES / MiB);
    if (r < 0)
        return err_errno(err, r, "could not read bitmap '%s'", name);
    *ret = MOVE(bm);
    return true;
}

bool co_qcow2_load_bits(struct qcow2 *s, const char *name, uint64_t *budget, struct bitmap **ret,
                        struct err *err)
{
    bool ok;

    co_mutex_lock(&s->bitmaps_lock);
    ok = co_load_one(s, name, budget, ret, err);
    co_mutex_unlock(&s->bitmaps_lock);
    return ok;
}

bool co_qcow2_bitmap_load(struct node *n, const char *name, struct bitmap **ret, struct err *err)
{
    uint64_t no_bound = UINT64_MAX;

    assert(n->drv == &qcow2_driver);
    return co_qcow2_load_bits(n->state, name, &no_bound, ret, err);
}
