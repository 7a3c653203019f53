/* SPDX-License-Identifier: Apache-2.0
 *
 * Taking, deleting and going back to internal snapshots. Each of them works out
 * the new L1 table, the new snapshot table and which trees gain and lose a
 * reference; retree.c makes that the state of the image.
 *
 *     create    the snapshot gets the active L1 table; a copy of it becomes active
 *     delete    the snapshot's L1 table goes; the active one may own clusters again
 *     apply     the active L1 table becomes a copy of the snapshot's
 */
#include "base/limits.h"
#include "base/mem.h"
#include "block/dirty.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/retree.h"
#include "drivers/qcow2/snapshot.h"
#include <inttypes.h>
#include <time.h>

/* ---- before -------------------------------------------------------------- */

static bool check_node(struct node *n, struct err *err)
{
    struct qcow2 *s = n->state;

    assert(n->drv == &qcow2_driver);
    if (n->read_only)
        return err_set(err, -EROFS, "Node '%s' is read-only", n->name);
    if (s->header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return err_set(err, -ENOTSUP, "an image with an external data file has no snapshots");
    return true;
}

static uint32_t l1_entries_for(const struct qcow2 *s, uint64_t size)
{
    return (uint32_t)MAX(qcow2_l1_entries_for(size, s->geo.cluster_bits, s->geo.extended), 1ULL);
}

/* The first @n entries of the active L1 table, or all of it with 0s behind. */
static uint64_t *copy_l1(const struct qcow2 *s, uint32_t n)
{
    uint64_t *v = calloc(n, sizeof(*v));

    if (v)
        memcpy(v, s->l1.v, MIN(n, s->l1.n) * sizeof(*v));
    return v;
}

/* The snapshot table without entry @skip (UINT32_MAX: with all), and with @more,
 * which may be NULL, behind them. NULL: out of memory. */
static uint8_t *make_table(const struct qcow2 *s, uint32_t skip, const struct qcow2_snapshot *more,
                           struct qcow2_retree *t)
{
    uint32_t more_bytes = more ? qcow2_snapshot_entry_bytes(more) : 0;
    uint8_t *table = malloc(s->snapshots.bytes + more_bytes + 1);
    uint64_t at = 0;

    if (!table)
        return NULL;
    for (uint32_t i = 0; i < s->snapshots.n; i++) {
        const struct qcow2_snapshot *sn = &s->snapshots.v[i];

        if (i == skip)
            continue;
        memcpy(table + at, sn->raw, sn->raw_bytes);
        at += sn->raw_bytes;
    }
    if (more)
        qcow2_snapshot_encode(more, table + at);
    t->snapshots = table;
    t->snapshots_bytes = at + more_bytes;
    t->n_snapshots = s->snapshots.n - (skip < s->snapshots.n) + !!more;
    return table;
}

/* ---- create -------------------------------------------------------------- */

/* One more than the largest id that is a number, as QEMU counts. */
static uint64_t next_id(const struct qcow2_snapshots *t)
{
    uint64_t most = 0;

    for (uint32_t i = 0; i < t->n; i++) {
        char *end;
        unsigned long long id = strtoull(t->v[i].id, &end, 10);

        if (end != t->v[i].id && !*end && id < UINT64_MAX)
            most = MAX(most, id);
    }
    return most + 1;
}

static bool check_new_name(const struct qcow2 *s, const char *name, struct err *err)
{
    if (!*name)
        return err_set(err, -EINVAL, "a snapshot needs a name");
    if (strlen(name) > QCOW2_SNAPSHOT_NAME_MAX)
        return err_set(err, -EINVAL, "the name of a snapshot may have %d bytes at most",
                       QCOW2_SNAPSHOT_NAME_MAX);
    for (uint32_t i = 0; i < s->snapshots.n; i++) {
        if (strcmp(s->snapshots.v[i].name, name) == 0)
            return err_set(err, -EEXIST, "the image has a snapshot '%s' already: choose another "
                           "name, or delete that one", name);
    }
    if (s->snapshots.n >= LIMIT_QCOW2_SNAPSHOTS ||
        s->snapshots.bytes + KiB > LIMIT_QCOW2_SNAPSHOT_TABLE_BYTES)
        return err_set(err, -EFBIG, "the image has too many snapshots: delete some");
    return true;
}

static struct qcow2_snapshot describe(const struct qcow2 *s, const char *id, const char *name)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (struct qcow2_snapshot){
        .id = id, .name = name,
        .l1_off = s->l1.off, .l1_entries = s->l1.n,
        .date_sec = (uint32_t)now.tv_sec, .date_nsec = (uint32_t)now.tv_nsec,
        .disk_size = s->header.size, .icount = QCOW2_NO_ICOUNT,
    };
}

bool co_qcow2_snapshot_create(struct node *n, const char *name, struct err *err)
{
    struct qcow2 *s = n->state;

    if (!check_node(n, err) || !check_new_name(s, name, err))
        return false;

    CLEANUP(free) char *id = xasprintf("%" PRIu64, next_id(&s->snapshots));
    struct qcow2_snapshot sn = describe(s, id, name);
    struct qcow2_retree t = { .size = s->header.size, .keep_old_l1 = true,
                              .l1_entries = l1_entries_for(s, s->header.size) };
    CLEANUP(free) uint64_t *l1 = copy_l1(s, t.l1_entries);
    CLEANUP(free) uint8_t *table = make_table(s, UINT32_MAX, &sn, &t);

    if (!l1 || !table)
        return err_set(err, -ENOMEM, "Out of memory");
    t.l1 = l1;
    if (!co_qcow2_retree_begin(s, &t, err))
        return false;
    if (!co_qcow2_retree_refer(&t, l1, t.l1_entries, false, err)) {
        co_qcow2_retree_abort(&t);
        return false;
    }
    return co_qcow2_retree_commit(&t, err);
}

/* ---- delete -------------------------------------------------------------- */

bool co_qcow2_snapshot_delete(struct node *n, const char *which, struct err *err)
{
    struct qcow2 *s = n->state;
    uint32_t i;

    if (!check_node(n, err) || !qcow2_snapshots_find(&s->snapshots, which, &i, err))
        return false;

    const struct qcow2_snapshot sn = s->snapshots.v[i];
    struct qcow2_retree t = { .size = s->header.size, .l1_entries = MAX(s->l1.n, 1U) };
    CLEANUP(free) uint64_t *l1 = copy_l1(s, t.l1_entries);
    CLEANUP(free) uint64_t *gone = NULL;
    CLEANUP(free) uint8_t *table = make_table(s, i, NULL, &t);
    int r = co_qcow2_read_l1(s, sn.l1_off, sn.l1_entries, &gone);

    if (r < 0)
        return err_errno(err, r, "could not read the L1 table of snapshot '%.64s'", sn.name);
    if (!l1 || !table)
        return err_set(err, -ENOMEM, "Out of memory");
    t.l1 = l1;
    if (!co_qcow2_retree_begin(s, &t, err))
        return false;
    if (!co_qcow2_retree_refer(&t, gone, sn.l1_entries, true, err) ||
        !co_qcow2_retree_drop(&t, sn.l1_off, sn.l1_entries * 8ULL, err)) {
        co_qcow2_retree_abort(&t);
        return false;
    }
    return co_qcow2_retree_commit(&t, err);
}

/* ---- apply --------------------------------------------------------------- */

/* What the disk has become nobody has written. */
static void spoil_bitmaps(struct node *n, bool resized)
{
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        if (dirty_bitmap_enabled(bm) || resized)
            dirty_bitmap_spoil(bm, "the disk was set back to a snapshot");
    }
}

bool co_qcow2_snapshot_apply(struct node *n, const char *which, struct err *err)
{
    struct qcow2 *s = n->state;
    uint32_t i;

    if (!check_node(n, err) || !qcow2_snapshots_find(&s->snapshots, which, &i, err))
        return false;

    const struct qcow2_snapshot *sn = &s->snapshots.v[i];
    uint64_t size = sn->disk_size ? sn->disk_size : s->header.size, size_before = n->size;
    struct qcow2_retree t = { .size = size, .l1_entries = l1_entries_for(s, size) };
    CLEANUP(free) uint64_t *old = copy_l1(s, MAX(s->l1.n, 1U));
    CLEANUP(free) uint64_t *l1 = NULL, *all = NULL;
    CLEANUP(free) uint8_t *table = make_table(s, UINT32_MAX, NULL, &t);
    int r = co_qcow2_read_l1(s, sn->l1_off, sn->l1_entries, &all);

    if (r < 0)
        return err_errno(err, r, "could not read the L1 table of snapshot '%.64s'", sn->name);
    if (sn->l1_entries < qcow2_l1_entries_for(size, s->geo.cluster_bits, s->geo.extended))
        return err_set(err, -EINVAL, "the image is corrupt: the L1 table of snapshot '%.64s' is "
                       "too small for its disk", sn->name);
    if (t.l1_entries > LIMIT_QCOW2_L1_BYTES / 8)
        return err_set(err, -EFBIG, "the disk of snapshot '%.64s' is too large", sn->name);
    l1 = calloc(t.l1_entries, sizeof(*l1));
    if (!old || !table || !l1)
        return err_set(err, -ENOMEM, "Out of memory");
    /* What is behind the disk's end is the state of a virtual machine: not the disk's. */
    memcpy(l1, all, MIN(t.l1_entries, sn->l1_entries) * sizeof(*l1));
    t.l1 = l1;
    r = co_qcow2_begin_write(s);
    if (r == 0 && size != s->header.size)
        r = co_qcow2_bitmaps_outdate(s);
    if (r < 0)
        return err_errno(err, r, "could not write to the image");
    if (!co_qcow2_retree_begin(s, &t, err))
        return false;
    if (!co_qcow2_retree_refer(&t, l1, t.l1_entries, false, err) ||
        !co_qcow2_retree_refer(&t, old, s->l1.n, true, err)) {
        co_qcow2_retree_abort(&t);
        return false;
    }
    if (!co_qcow2_retree_commit(&t, err))
        return false;
    spoil_bitmaps(n, size != size_before);
    return true;
}
