/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading internal snapshots: their table, a disk as it was at one of them, and
 * where their tables lie so that nothing is written over them.
 */
#include "drivers/qcow2/snapshot.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"
#include <inttypes.h>

#define FIRST_READ_BYTES (64 * KiB)

/* ---- the table ----------------------------------------------------------- */

/* Parse the table out of its first @bytes. */
static bool co_load_part(struct qcow2 *s, uint64_t bytes, struct err *err)
{
    CLEANUP(free) void *buf = try_alloc_aligned(bytes);
    int r = buf ? co_qcow2_meta_read(s, s->header.snapshots_off, bytes, buf) : -ENOMEM;

    if (r < 0)
        return err_errno(err, r, "could not read the snapshot table");
    return qcow2_snapshots_parse(&s->geo, buf, bytes, s->header.n_snapshots, &s->snapshots, err);
}

/* What is behind the @end of the file's last cluster is lost. Were the file written to it
 * would become longer, and the snapshot read as zeros without a word. */
static bool flaw_cut_ones(struct qcow2 *s, uint64_t end, struct err *err)
{
    for (uint32_t i = 0; i < s->snapshots.n; i++) {
        struct qcow2_snapshot *sn = &s->snapshots.v[i];

        if (sn->flaw || !sn->l1_entries || sn->l1_off + sn->l1_entries * 8ULL <= end)
            continue;
        sn->flaw = "its L1 table reaches past the end of the file";
        if (!s->node->read_only)
            return err_set(err, -EINVAL, "the image is corrupt: the L1 table of snapshot '%.64s' "
                           "reaches past the end of the file; it can be opened read-only",
                           sn->name);
    }
    return true;
}

bool co_qcow2_load_snapshots(struct qcow2 *s, struct err *err)
{
    /* The last cluster of the file need not be whole. */
    uint64_t off = s->header.snapshots_off, size = align_up(node_size(s->file), s->cluster_size);
    uint64_t bytes = FIRST_READ_BYTES;

    if (!s->header.n_snapshots)
        return true;
    if (off < s->cluster_size || off >= size)
        return err_set(err, -EINVAL, "the image is corrupt: its snapshot table is at offset %"
                       PRIu64 ", where none can be", off);
    for (;; bytes *= 2) {
        struct err why = ERR_INIT;

        if (co_load_part(s, MIN(bytes, size - off), &why))
            return flaw_cut_ones(s, size, err);
        if (why.code != -EAGAIN)
            return err_set(err, why.code, "%s", why.text);
        /* The parser gives up by itself when the table is too large. */
        if (bytes >= size - off)
            return err_set(err, -EINVAL, "the image is corrupt: its snapshot table reaches past "
                           "the end of the file");
    }
}

/* ---- their L1 tables ----------------------------------------------------- */

int co_qcow2_read_l1(struct qcow2 *s, uint64_t off, uint32_t n, uint64_t **ret)
{
    CLEANUP(free) void *disk = try_alloc_aligned(MAX(n, 1U) * 8ULL);
    uint64_t *v = calloc(MAX(n, 1U), sizeof(*v));
    int r = disk && v ? 0 : -ENOMEM;

    assert(n <= LIMIT_QCOW2_L1_BYTES / 8);
    if (r == 0 && n)
        r = co_qcow2_meta_read(s, off, n * 8ULL, disk);
    if (r < 0) {
        free(v);
        return r;
    }
    for (uint32_t i = 0; i < n; i++)
        v[i] = qcow2_entry_get(disk, i);
    *ret = v;
    return 0;
}

static int co_guard_tables(struct qcow2 *s, const struct qcow2_snapshot *sn)
{
    uint64_t first = sn->l1_off >> s->geo.cluster_bits, host;
    CLEANUP(free) uint64_t *v = NULL;
    bool copied;
    int r = co_qcow2_read_l1(s, sn->l1_off, sn->l1_entries, &v);

    for (uint64_t i = 0; r == 0 && i < div_round_up(sn->l1_entries * 8ULL, s->cluster_size); i++)
        r = qcow2_metaset_add(&s->inactive, first + i);
    for (uint32_t i = 0; r == 0 && i < sn->l1_entries; i++) {
        /* One that cannot be guards nothing. */
        if (qcow2_l1_decode(&s->geo, v[i], &host, &copied) && host)
            r = qcow2_metaset_add(&s->inactive, host >> s->geo.cluster_bits);
    }
    return r;
}

bool co_qcow2_guard_snapshots(struct qcow2 *s, struct err *err)
{
    uint64_t bytes = 0;
    int r = 0;

    if (!s->snapshots.n)
        return true;
    r = qcow2_metaset_init(&s->inactive, 64);
    for (uint32_t i = 0; r == 0 && i < s->snapshots.n; i++) {
        const struct qcow2_snapshot *sn = &s->snapshots.v[i];

        if (sn->flaw)            /* the refcounts guard what it has */
            continue;
        bytes += sn->l1_entries * 8ULL;
        if (bytes > LIMIT_QCOW2_SNAPSHOT_L1_BYTES)
            break;
        if (sn->l1_entries)
            r = co_guard_tables(s, sn);
        if (r < 0)
            return err_errno(err, r, "could not read the L1 table of snapshot '%.64s'", sn->name);
    }
    return r == 0 || err_errno(err, r, "could not open the image");
}

bool qcow2_enter_snapshot(struct qcow2 *s, const char *which, struct err *err)
{
    struct qcow2_header *h = &s->header;
    uint32_t i;

    if (!qcow2_snapshots_find(&s->snapshots, which, &i, err))
        return false;

    const struct qcow2_snapshot *sn = &s->snapshots.v[i];
    uint64_t size = sn->disk_size ? sn->disk_size : h->size;

    if (sn->l1_entries < qcow2_l1_entries_for(size, h->cluster_bits, s->geo.extended))
        return err_set(err, -EINVAL, "the image is corrupt: the L1 table of snapshot '%.64s' is "
                       "too small for its disk", sn->name);
    h->l1_off = sn->l1_off;
    h->l1_entries = sn->l1_entries;
    h->size = size;
    return true;
}

/* ---- what is told of them ------------------------------------------------ */

const char *qcow2_snapshot_flaw(struct node *n, size_t i)
{
    const struct qcow2 *s = n->state;

    assert(strcmp(node_driver_name(n), "qcow2") == 0 && i < s->snapshots.n);
    return s->snapshots.v[i].flaw;
}

json_t *qcow2_snapshot_list(struct node *n)
{
    const struct qcow2 *s = n->state;
    json_t *list = json_array();

    assert(strcmp(node_driver_name(n), "qcow2") == 0);
    for (uint32_t i = 0; i < s->snapshots.n; i++) {
        const struct qcow2_snapshot *sn = &s->snapshots.v[i];
        json_t *info = json_pack("{s:o, s:o, s:I, s:I, s:I, s:I, s:I}",
                                 "id", schema_json_str(sn->id), "name", schema_json_str(sn->name),
                                 "vm-state-size", (json_int_t)sn->vm_state_bytes,
                                 "date-sec", (json_int_t)sn->date_sec,
                                 "date-nsec", (json_int_t)sn->date_nsec,
                                 "vm-clock-sec", (json_int_t)(sn->vm_clock_ns / 1000000000),
                                 "vm-clock-nsec", (json_int_t)(sn->vm_clock_ns % 1000000000));

        if (sn->icount != QCOW2_NO_ICOUNT)
            json_object_set_new(info, "icount", json_integer((json_int_t)sn->icount));
        json_array_append_new(list, info);
    }
    return list;
}
