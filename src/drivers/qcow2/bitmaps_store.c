/* SPDX-License-Identifier: Apache-2.0
 *
 * Changing the bitmaps that an image stores. New bits, tables and a new directory are
 * written beside the old ones and flushed; then the header extension is pointed to
 * them (I-Q12); then what was replaced is given up.
 *
 * The extension's 24 bytes are changed in place where they lie in one sector. Else
 * the header is rewritten, which is one write to its first sector, too (I-Q14).
 *
 * All of it happens under bitmaps_lock, for which a write that would have to mark
 * bitmaps waits, and resize_lock: bitmaps are of the disk's size.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/bitmaps.h"
#include "drivers/qcow2/qcow2.h"
#include <inttypes.h>

#define SECTOR 512U

/* ---- a new directory ----------------------------------------------------- */

struct change {
    struct qcow2 *s;
    uint8_t *dir;                        /* as it will be */
    struct qcow2_bitmap_ext ext;
    struct qcow2_bitmap_dir parsed;      /* the same, and its clusters */
    struct qcow2_metaset meta;
    const struct qcow2_bitmap_put *puts;
    size_t n_puts;
    const char **names;                  /* of the puts, sorted */
    const char *removed;                 /* NULL: none */
    /* Clusters that were taken for it: given back if it comes to nothing. */
    struct qcow2_runs taken;
};

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool is_replaced(const struct change *c, const char *name)
{
    if (c->removed && strcmp(c->removed, name) == 0)
        return true;
    return c->n_puts && bsearch(&name, c->names, c->n_puts, sizeof(*c->names), compare_names);
}

static void sort_puts(struct change *c)
{
    c->names = xcalloc(MAX(c->n_puts, (size_t)1), sizeof(*c->names));
    for (size_t i = 0; i < c->n_puts; i++)
        c->names[i] = c->puts[i].name;
    qsort(c->names, c->n_puts, sizeof(*c->names), compare_names);
}

static void note_taken(struct change *c, uint64_t host, uint32_t n)
{
    struct qcow2_runs *t = &c->taken;

    if (t->n == t->cap) {
        t->cap = MAX(2 * t->cap, (size_t)16);
        t->v = xrealloc(t->v, t->cap * sizeof(*t->v));
    }
    t->v[t->n++] = (struct qcow2_run){ .first = host >> c->s->geo.cluster_bits, .n = n };
}

static int co_take(struct change *c, uint64_t bytes, uint64_t *ret_host)
{
    uint32_t n = (uint32_t)div_round_up(bytes, c->s->cluster_size);
    int r = co_qcow2_alloc_table(c->s, n, ret_host);

    if (r == 0)
        note_taken(c, *ret_host, n);
    return r;
}

static void co_give_back(struct change *c)
{
    for (size_t i = 0; i < c->taken.n && c->s->write_ready; i++) {
        int ignored = co_qcow2_unref(c->s, c->taken.v[i].first, c->taken.v[i].n);

        (void)ignored;      /* at worst they leak */
    }
}

/* The bits [first, first + n) in a cluster of their own, or *ret = 0 or 1 if they are
 * all alike. */
static int co_store_cluster(struct change *c, const struct bitmap *bm, uint64_t first, uint64_t n,
                            void *buf, uint64_t *ret)
{
    struct qcow2 *s = c->s;
    uint64_t part = MIN(n, bitmap_size(bm) - first), host;
    int r;

    *ret = 0;
    if (!bitmap_any_set(bm, first, part))
        return 0;
    if (part == n && bitmap_all_set(bm, first, n)) {
        *ret = 1;
        return 0;
    }
    r = co_take(c, s->cluster_size, &host);
    if (r < 0)
        return r;
    qcow2_bits_encode(bm, first, n, buf);
    *ret = host;
    return co_qcow2_meta_write(s, host, s->cluster_size, buf);
}

/* Write the bits and the table of one: its entry. */
static int co_store_one(struct change *c, const struct qcow2_bitmap_put *put,
                        struct qcow2_bitmap_entry *ret)
{
    struct qcow2 *s = c->s;
    const struct qcow2_bitmap_entry *old = qcow2_bitmap_dir_find(&s->bitmaps, put->name);
    unsigned bits = (unsigned)__builtin_ctzll(put->granularity);
    uint64_t n = qcow2_bitmap_table_entries(&s->geo, qcow2_bitmap_bits(s->node->size, bits));
    uint64_t per_cluster = s->cluster_size * 8, v;
    CLEANUP(free) uint8_t *table = calloc(n, 8);
    CLEANUP(free) void *buf = try_alloc_aligned(s->cluster_size);
    int r = table && buf ? 0 : -ENOMEM;

    *ret = (struct qcow2_bitmap_entry){
        .name = put->name, .table_entries = (uint32_t)n, .granularity_bits = (uint8_t)bits,
        .flags = put->enabled ? QCOW2_BITMAP_AUTO : 0,
    };
    if (old) {
        ret->flags |= old->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE;
        ret->extra = old->extra;
        ret->extra_bytes = old->extra_bytes;
    }
    for (uint64_t i = 0; r == 0 && put->bits && i < n; i++) {
        r = co_store_cluster(c, put->bits, i * per_cluster, per_cluster, buf, &v);
        qcow2_entry_set(table, i, v);
    }
    if (r == 0)
        r = co_take(c, n * 8, &ret->table_off);
    if (r == 0)
        r = co_qcow2_meta_write(s, ret->table_off, n * 8, table);
    return r;
}

/* Write the directory that is to be; c->ext says where, if it has anything. */
static int co_write_dir(struct change *c)
{
    const struct qcow2_bitmap_dir *old = &c->s->bitmaps;
    uint64_t bytes = old->bytes, at = 0;
    int r = 0;

    for (size_t i = 0; i < c->n_puts; i++)
        bytes += qcow2_bitmap_entry_bytes(c->puts[i].name);
    c->dir = malloc(bytes + 1);
    if (!c->dir)
        return -ENOMEM;
    for (uint32_t i = 0; i < old->n; i++) {
        if (is_replaced(c, old->v[i].name))
            continue;
        memcpy(c->dir + at, old->raw + old->v[i].at, old->v[i].bytes);
        at += old->v[i].bytes;
        c->ext.n++;
    }
    for (size_t i = 0; r == 0 && i < c->n_puts; i++) {
        struct qcow2_bitmap_entry e;

        r = co_store_one(c, &c->puts[i], &e);
        if (r == 0)
            at += qcow2_bitmap_entry_encode(&e, c->dir + at);
        c->ext.n++;
    }
    c->ext.dir_bytes = at;
    if (r == 0 && (c->ext.n > LIMIT_QCOW2_BITMAPS || at > LIMIT_QCOW2_BITMAP_DIR_BYTES))
        r = -EFBIG;
    if (r == 0 && at)
        r = co_take(c, at, &c->ext.dir_off);
    if (r == 0 && at)
        r = co_qcow2_meta_write(c->s, c->ext.dir_off, at, c->dir);
    return r;
}

/* ---- the header ---------------------------------------------------------- */

static bool co_switch_in_place(struct change *c, const uint8_t *data, struct err *err)
{
    struct qcow2 *s = c->s;
    int r;

    co_mutex_lock(&s->header_lock);
    r = co_qcow2_meta_write(s, s->header.bitmaps.at, QCOW2_BITMAP_EXT_BYTES, data);
    co_mutex_unlock(&s->header_lock);
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r < 0) {
        qcow2_stop_writing(s);           /* which directory counts is not known */
        return err_errno(err, r, "could not write the header");
    }
    c->ext.at = s->header.bitmaps.at;
    c->ext.bytes = QCOW2_BITMAP_EXT_BYTES;
    s->header.bitmaps = c->ext;
    return true;
}

/* Point the header to the new directory, or leave the extension out of it. */
static bool co_switch(struct change *c, struct err *err)
{
    struct qcow2 *s = c->s;
    uint8_t data[QCOW2_BITMAP_EXT_BYTES];
    struct qcow2_extension x = { .type = QCOW2_EXT_BITMAPS };
    struct qcow2_header_change change = { .extensions = &x, .n_extensions = 1 };
    uint32_t at = s->header.bitmaps.at;
    bool valid = s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS;

    if (c->ext.n) {
        qcow2_bitmap_ext_encode(&c->ext, data);
        x.data = data;
        x.bytes = sizeof(data);
        change.autoclear_set = QCOW2_AUTOCLEAR_BITMAPS;
        if (valid && at && at / SECTOR == (at + sizeof(data) - 1) / SECTOR)
            return co_switch_in_place(c, data, err);
    }
    if (!c->ext.n)
        change.autoclear_clear = QCOW2_AUTOCLEAR_BITMAPS;
    return co_qcow2_rewrite_header(s, &change, err);
}

/* ---- the whole ----------------------------------------------------------- */

/* Clusters of the old directory @d, and of what it has that is replaced. */
static void co_drop_replaced(struct change *c, const struct qcow2_bitmap_dir *d,
                             const struct qcow2_bitmap_ext *ext)
{
    struct qcow2 *s = c->s;
    unsigned bits = s->geo.cluster_bits;

    for (uint32_t k = 0; k < d->n; k++) {
        const struct qcow2_bitmap_entry *e = &d->v[k];
        CLEANUP(free) uint64_t *table = NULL;
        uint64_t host;
        bool ones;

        if (!is_replaced(c, e->name) || !e->table_entries)
            continue;
        if (co_qcow2_read_bitmap_table(s, e, &table) < 0)
            continue;                    /* they leak */
        for (uint32_t i = 0; i < e->table_entries; i++) {
            if (qcow2_bitmap_table_decode(&s->geo, table[i], &host, &ones) && host)
                qcow2_drop_clusters(s, host >> bits, 1, false);
        }
        qcow2_drop_clusters(s, e->table_off >> bits,
                            (uint32_t)div_round_up(e->table_entries * 8ULL, s->cluster_size),
                            false);
    }
    if (d->n)
        qcow2_drop_clusters(s, ext->dir_off >> bits,
                            (uint32_t)div_round_up(ext->dir_bytes, s->cluster_size), false);
}

/* Nothing may fail behind the switch: a directory that is not known would not be marked
 * when the disk is written to. */
static bool parse_new(struct change *c, struct err *err)
{
    int r;

    if (c->ext.n && !qcow2_bitmap_dir_parse(&c->s->geo, c->dir, c->ext.dir_bytes, c->ext.n,
                                            &c->parsed, err))
        return false;
    r = qcow2_guard_bitmaps(c->s, &c->parsed, c->ext.dir_off, &c->meta);
    return r == 0 || err_errno(err, r, "could not note where the bitmaps are");
}

/* I-Q12: all of it, and its refcounts, before the header names it. */
static bool co_prepare(struct change *c, struct err *err)
{
    struct qcow2 *s = c->s;
    int r = co_write_dir(c);

    if (r == 0)
        r = co_qcow2_sync(s);
    if (r == 0)
        r = co_qcow2_store_refcounts(s);
    if (r == 0)
        r = co_qcow2_flush_file(s);
    if (r < 0)
        return err_errno(err, r, "could not write the bitmaps");
    return parse_new(c, err);
}

static bool co_apply(struct change *c, struct err *err)
{
    struct qcow2 *s = c->s;
    struct qcow2_bitmap_dir old = s->bitmaps;
    struct qcow2_bitmap_ext old_ext = s->header.bitmaps;
    int r;

    s->outdated = false;                 /* by the next write they will be */
    if (!co_prepare(c, err) || !co_switch(c, err)) {
        co_give_back(c);
        return false;
    }
    s->bitmaps = c->parsed;
    c->parsed = old;
    qcow2_metaset_done(&s->bitmap_meta);
    s->bitmap_meta = c->meta;
    c->meta = (struct qcow2_metaset){ 0 };
    co_drop_replaced(c, &old, &old_ext);
    r = co_qcow2_sync(s);
    (void)r;                             /* at worst the old ones leak */
    return true;
}

static bool check_node(struct node *n, struct err *err)
{
    assert(n->drv == &qcow2_driver);
    if (n->read_only)
        return err_set(err, -EROFS, "Node '%s' is read-only", n->name);
    return true;
}

bool qcow2_bitmap_check_put(struct node *n, const struct qcow2_bitmap_put *put, struct err *err)
{
    uint64_t bits;

    if (((struct qcow2 *)n->state)->geo.version < 3)
        return err_set(err, -ENOTSUP, "Cannot store dirty bitmaps in qcow2 v2 files");
    if (!*put->name || strlen(put->name) > QCOW2_BITMAP_NAME_MAX)
        return err_set(err, -EINVAL, "a bitmap that is stored in an image needs a name of at most "
                       "%d bytes", QCOW2_BITMAP_NAME_MAX);
    if (!is_power_of_2(put->granularity) ||
        put->granularity < 1ULL << QCOW2_BITMAP_MIN_GRANULARITY_BITS ||
        put->granularity > 1ULL << QCOW2_BITMAP_MAX_GRANULARITY_BITS)
        return err_set(err, -EINVAL, "the granularity of a bitmap must be a power of two from 512 "
                       "bytes to 2 GiB");
    /* QEMU opens no image with a table that has no entries, and uses no other for it. */
    if (!n->size)
        return err_set(err, -EINVAL, "a disk without bytes cannot have bitmaps that are stored");
    bits = qcow2_bitmap_bits(n->size, (unsigned)__builtin_ctzll(put->granularity));
    if (bits > LIMIT_QCOW2_BITMAP_BYTES * 8)
        return err_set(err, -EFBIG, "bitmap '%s' is too large to be stored: use a larger "
                       "granularity", put->name);
    if (put->bits && bitmap_size(put->bits) != bits)
        return err_set(err, -EINVAL, "bitmap '%s' is not of the disk's size", put->name);
    return true;
}

/* Under the locks. */
static bool co_change_alone(struct node *n, struct change *c, struct err *err)
{
    int r;
    bool ok;

    for (size_t i = 0; i < c->n_puts; i++) {
        if (!qcow2_bitmap_check_put(n, &c->puts[i], err))
            return false;
    }
    if (c->removed && !qcow2_bitmap_dir_find(&c->s->bitmaps, c->removed))
        return err_set(err, -ENOENT, "the image has no bitmap '%s'", c->removed);
    r = co_qcow2_begin_metadata(c->s);
    if (r < 0)
        return err_errno(err, r, "could not write to the image");
    sort_puts(c);
    ok = co_apply(c, err);
    free(c->names);
    qcow2_bitmap_dir_done(&c->parsed);
    qcow2_metaset_done(&c->meta);
    free(c->dir);
    free(c->taken.v);
    return ok;
}

static bool co_change(struct node *n, struct change *c, struct err *err)
{
    struct qcow2 *s = c->s = n->state;
    bool ok;

    if (!check_node(n, err))
        return false;
    co_mutex_lock(&s->resize_lock);
    co_mutex_lock(&s->bitmaps_lock);
    ok = co_change_alone(n, c, err);
    co_mutex_unlock(&s->bitmaps_lock);
    co_mutex_unlock(&s->resize_lock);
    return ok;
}

bool co_qcow2_bitmaps_store(struct node *n, const struct qcow2_bitmap_put *v, size_t count,
                            struct err *err)
{
    struct change c = { .puts = v, .n_puts = count };

    return co_change(n, &c, err);
}

bool co_qcow2_bitmap_remove(struct node *n, const char *name, struct err *err)
{
    struct change c = { .removed = name };

    return co_change(n, &c, err);
}
