/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening and closing an image, what is told of it, and the table of operations.
 * Opening reads the header and the two tables that stay in memory; of what they
 * point to, nothing is read before it is needed, but that no two of them point to
 * the same cluster is checked before anything may be written.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/drivers.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/bitmaps.h"
#include "drivers/qcow2/qcow2.h"
#include <inttypes.h>
#include <stdio.h>

#define HEADER_READ_BYTES (64 * KiB)

/* ---- the header ---------------------------------------------------------- */

static bool co_read_header(struct qcow2 *s, struct err *err)
{
    uint64_t size = node_size(s->file), bytes = MIN(size, HEADER_READ_BYTES);
    CLEANUP(free) void *buf = try_alloc_aligned(MAX(bytes, 1ULL));
    int r = buf ? co_node_pread(s->file, 0, bytes, buf, 0) : -ENOMEM;

    if (r == 0 && MIN(size, (uint64_t)qcow2_peek_cluster_size(buf, bytes)) > bytes) {
        bytes = MIN(size, (uint64_t)qcow2_peek_cluster_size(buf, bytes));
        free(buf);
        buf = try_alloc_aligned(bytes);
        r = buf ? co_node_pread(s->file, 0, bytes, buf, 0) : -ENOMEM;
    }
    if (r < 0)
        return err_errno(err, r, "could not read the qcow2 header");
    return qcow2_header_parse(buf, bytes, &s->header, err);
}

/* The refcounts of an image that was not closed cleanly may be wrong (lazy refcounts):
 * they are made right before anything is written, as QEMU does. */
static bool co_repair_dirty(struct qcow2 *s, struct err *err)
{
    const struct qcow2_check_opts o = { .repair = QCOW2_REPAIR_ALL };
    struct qcow2_check_result result;

    if (!co_qcow2_check(s->file, &o, &result, err)) {
        err_prefix(err, "the image was not closed cleanly and could not be repaired: ");
        return false;
    }
    if (result.corruptions || result.check_errors)
        return err_set(err, -EROFS, "the image was not closed cleanly and is corrupt: it can only "
                       "be opened read-only; 'stillpoint check' tells what is wrong");
    return co_read_header(s, err);
}

static bool co_see_to_writable(struct qcow2 *s, struct err *err)
{
    if (s->header.incompatible & QCOW2_INCOMPAT_CORRUPT)
        return err_set(err, -EROFS, "the image is marked corrupt and can only be opened "
                       "read-only; repair it with 'stillpoint check --repair all'");
    return !(s->header.incompatible & QCOW2_INCOMPAT_DIRTY) || co_repair_dirty(s, err);
}

/* ---- metadata ------------------------------------------------------------ */

static bool co_read_table(struct qcow2 *s, struct qcow2_table *t, const char *what, uint64_t off,
                          uint32_t n, struct err *err)
{
    CLEANUP(free) void *disk = try_alloc_aligned(MAX(n, 1U) * 8ULL);
    int r = disk ? qcow2_table_init(t, off, n) : -ENOMEM;

    if (r == 0 && n)
        r = co_qcow2_meta_read(s, off, n * 8ULL, disk);
    if (r < 0)
        return err_errno(err, r, "could not read the %s", what);
    qcow2_table_decode(t, disk);
    return true;
}

/* A table at @host that nothing else may lie on. */
static bool claim_metadata(struct qcow2 *s, uint64_t host, const char *what, uint32_t i,
                           struct err *err)
{
    int r;

    if (qcow2_is_metadata(s, host, s->cluster_size))
        return err_set(err, -EINVAL, "the image is corrupt: %s %" PRIu32 " lies at offset "
                       "%" PRIu64 ", where other metadata is; 'stillpoint check' tells more",
                       what, i, host);
    r = qcow2_metaset_add(&s->meta, host >> s->geo.cluster_bits);
    return r == 0 || err_errno(err, r, "could not open the image");
}

/* Everything that is needed for writing: whose clusters the tables are, and the
 * refcounts. */
static bool map_metadata(struct qcow2 *s, struct err *err)
{
    uint64_t host;
    bool copied;

    for (uint32_t i = 0; i < s->l1.n; i++) {
        if (!s->l1.v[i])
            continue;
        if (!qcow2_l1_decode(&s->geo, s->l1.v[i], &host, &copied))
            return err_set(err, -EINVAL, "the image is corrupt: L1 entry %" PRIu32 " is invalid; "
                           "'stillpoint check' tells more", i);
        if (host && !claim_metadata(s, host, "L2 table", i, err))
            return false;
    }
    for (uint32_t i = 0; i < s->reftable.n; i++) {
        if (!qcow2_reftable_decode(&s->geo, s->reftable.v[i], &host))
            return err_set(err, -EINVAL, "the image is corrupt: refcount table entry %" PRIu32
                           " is invalid; 'stillpoint check' tells more", i);
        if (host && !claim_metadata(s, host, "refcount block", i, err))
            return false;
    }
    return true;
}

/* A bitmap directory that is not one is like none: with the first write it will be
 * said so. */
static bool co_load_bitmaps(struct qcow2 *s, struct err *err)
{
    struct err why = ERR_INIT;

    if (co_qcow2_load_bitmaps(s, &why) || s->node->read_only || why.code == -EINVAL ||
        why.code == -EFBIG)
        return true;
    return err_set(err, why.code, "%s", why.text);
}

/* What the header names; the caches are empty. */
static bool co_load_tables(struct qcow2 *s, struct err *err)
{
    const struct qcow2_header *h = &s->header;
    const struct qcow2_cache_sizes *sizes = &s->cache_sizes;
    int r;

    if (!co_read_table(s, &s->l1, "L1 table", h->l1_off, h->l1_entries, err))
        return false;
    s->l2_slice_bits = (uint8_t)(__builtin_ctz(sizes->l2_slice) -
                                qcow2_l2_entry_bits(&s->geo));
    s->l2 = qcow2_cache_new(&qcow2_l2_cache_ops, s, sizes->l2_slice, sizes->l2_entries);
    if (s->node->read_only)
        return true;

    s->ref_slice_bits = (uint8_t)(__builtin_ctz(sizes->refcount_slice) + 3 - h->refcount_order);
    s->ref_block_bits = (uint8_t)(h->cluster_bits + 3 - h->refcount_order);
    s->refcounts = qcow2_cache_new(&qcow2_refcount_cache_ops, s, sizes->refcount_slice,
                                   sizes->refcount_entries);
    if (!co_read_table(s, &s->reftable, "refcount table", h->reftable_off,
                       (uint32_t)(((uint64_t)h->reftable_clusters << h->cluster_bits) / 8), err))
        return false;
    r = qcow2_metaset_init(&s->meta, 64);
    if (r < 0)
        return err_errno(err, r, "could not open the image");
    return map_metadata(s, err);
}

static bool co_load_metadata(struct qcow2 *s, const struct qcow2_options *o, struct err *err)
{
    struct err why = ERR_INIT;

    /* An image whose snapshots cannot be told can be read all the same. */
    if (!co_qcow2_load_snapshots(s, &why) && (!s->node->read_only || o->has_snapshot))
        return err_set(err, why.code, "%s", why.text);
    if (o->has_snapshot && !qcow2_enter_snapshot(s, o->snapshot, err))
        return false;
    if (!qcow2_cache_sizes(o, s->cluster_size, (uint64_t)s->header.l1_entries * s->cluster_size,
                           &s->cache_sizes, err) ||
        !co_load_tables(s, err))
        return false;
    return (s->node->read_only || co_qcow2_guard_snapshots(s, err)) && co_load_bitmaps(s, err);
}

static void free_tables(struct qcow2 *s)
{
    qcow2_cache_free(s->l2);
    qcow2_cache_free(s->refcounts);
    qcow2_table_done(&s->l1);
    qcow2_table_done(&s->reftable);
    qcow2_metaset_done(&s->meta);
    qcow2_metaset_done(&s->inactive);
    qcow2_snapshots_done(&s->snapshots);
}

bool co_qcow2_reload(struct qcow2 *s, struct err *err)
{
    /* Too large for the stack of a coroutine to have two. */
    CLEANUP(free) struct qcow2 *old = xmemdup(s, sizeof(*s));

    s->pack_next = 0;        /* its cluster may be another's soon */
    s->l2 = s->refcounts = NULL;
    s->l1 = s->reftable = (struct qcow2_table){ 0 };
    s->meta = s->inactive = (struct qcow2_metaset){ 0 };
    s->snapshots = (struct qcow2_snapshots){ 0 };
    if (co_qcow2_load_snapshots(s, err) && co_load_tables(s, err) &&
        co_qcow2_guard_snapshots(s, err)) {
        free_tables(old);
        s->free_hint = 0;
        return true;
    }
    free_tables(s);
    s->l2 = old->l2;
    s->refcounts = old->refcounts;
    s->l1 = old->l1;
    s->reftable = old->reftable;
    s->meta = old->meta;
    s->inactive = old->inactive;
    s->snapshots = old->snapshots;
    return false;
}

/* ---- opening and closing ------------------------------------------------- */

static void init_state(struct qcow2 *s, struct node *n, const struct qcow2_options *o)
{
    s->node = n;
    s->file = edge_node(n->file);
    list_init(&s->claims);
    list_init(&s->creations);
    co_mutex_init(&s->header_lock);
    co_mutex_init(&s->reftable_lock);
    co_mutex_init(&s->store_lock);
    co_mutex_init(&s->grow_lock);
    co_mutex_init(&s->resize_lock);
    co_mutex_init(&s->bitmaps_lock);
    co_mutex_init(&s->sync_lock);
    co_mutex_init(&s->pack_lock);
    co_sem_init(&s->pack_slots, LIMIT_QCOW2_PACKERS);
    list_init(&s->packers);
    waitq_init(&s->reaped);
    waitq_init(&s->drained);
    /* Guests' discards come here only if discard=unmap, so that is the default. */
    s->pass_discard_request = !o->has_pass_discard_request || o->pass_discard_request;
    s->pass_discard_snapshot = !o->has_pass_discard_snapshot || o->pass_discard_snapshot;
    s->pass_discard_other = o->pass_discard_other;
    s->discard_no_unref = o->discard_no_unref;
}

static void set_geometry(struct qcow2 *s)
{
    const struct qcow2_header *h = &s->header;

    s->geo = qcow2_geometry_of(h);
    s->cluster_size = 1ULL << h->cluster_bits;
    s->unit_bits = (uint8_t)qcow2_unit_bits(&s->geo);
    s->names_backing = h->has_backing;
    s->host_bytes = node_size(s->file);
    /* A regular file reads as zero where it has been made longer. */
    s->fresh_from = s->file->zero_init ? align_up(node_size(s->file), s->cluster_size)
                                       : UINT64_MAX;
}

static void free_state(struct qcow2 *s)
{
    free_tables(s);
    qcow2_bitmap_dir_done(&s->bitmaps);
    qcow2_metaset_done(&s->bitmap_meta);
    qcow2_unpacker_free(s->unpacker);
    qcow2_packers_free(s);
    free(s->dropped.v);
    free(s->freed.v);
}

static bool co_open_backing(struct qcow2 *s, const struct qcow2_options *o, struct err *err)
{
    unsigned shared = EDGE_READ;

    if (!o->has_backing)
        return !s->header.has_backing || co_qcow2_open_named_backing(s, err);
    /* A node that exists is somebody's: he knows whether it is written to (the
     * target of a backup with sync=none stands on its source). */
    if (o->backing.kind == SCHEMA_ALT_STR)
        shared |= EDGE_WRITE | EDGE_RESIZE;
    return co_node_open_child(s->node, "backing", &o->backing, EDGE_READ, shared, err);
}

static bool co_open_image(struct qcow2 *s, const struct qcow2_options *o, struct err *err)
{
    struct node *n = s->node;

    if (o->has_snapshot && !n->read_only)
        return err_set(err, -EROFS, "a snapshot can only be opened read-only: add "
                       "\"read-only\": true");
    if (!co_read_header(s, err) || (!n->read_only && !co_see_to_writable(s, err)))
        return false;
    if (o->has_lazy_refcounts && o->lazy_refcounts && s->header.version < 3)
        return err_set(err, -EINVAL, "Lazy refcounts require a qcow2 image with at least qemu 1.1 "
                       "compatibility level");
    s->lazy = o->has_lazy_refcounts ? o->lazy_refcounts
                                    : s->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    set_geometry(s);
    if (!co_qcow2_open_data_file(s, o->has_data_file ? &o->data_file : NULL, err))
        return false;
    if (!co_load_metadata(s, o, err) || !co_open_backing(s, o, err))
        return false;
    n->size = s->header.size;
    n->zero_init = !n->backing && !s->names_backing;
    n->limits.request_align = 1;
    n->limits.zero_align = 1U << s->unit_bits;
    n->limits.write_flags = REQ_BULK | (s->geo.data_file ? 0 : REQ_COMPRESSED);
    n->limits.zero_flags = REQ_BULK | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    return true;
}

static bool co_qcow2_open(struct node *n, const void *opts, struct err *err)
{
    const struct qcow2_options *o = opts;
    struct qcow2 *s = n->state;
    unsigned perms = n->read_only ? EDGE_READ : EDGE_READ | EDGE_WRITE | EDGE_RESIZE;

    if (!qcow2_options_check(o, err) ||
        !co_node_open_child(n, "file", &o->file, perms, EDGE_READ, err))
        return false;
    init_state(s, n, o);
    n->of_the_past = o->has_snapshot;
    if (co_open_image(s, o, err)) {
        if (!o->has_snapshot)
            co_qcow2_bring_back_bitmaps(s);
        return true;
    }
    free_state(s);

    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    node_get_info(s->file, info);
    if (info->filename[0])
        err_prefix(err, "Could not open '%s': ", info->filename);
    return false;
}

/* Bring everything to the disk, what is being freed too. */
static void co_settle(struct qcow2 *s)
{
    co_qcow2_quiesce(s);
    if (s->stopped || (!s->wrote && !s->write_ready))
        return;

    /* Nobody is there to hear of a failure; a crash would have left the same. */
    s->lazy = false;
    int r = co_qcow2_sync(s);

    co_qcow2_quiesce(s);
    if (r == 0)
        r = co_qcow2_sync(s);
    if (r == 0)
        co_qcow2_host_trim(s);
    if (r == 0)
        r = co_qcow2_mark_clean(s);
    (void)r;
}

static void co_qcow2_close(struct node *n)
{
    struct qcow2 *s = n->state;

    if (!n->read_only)
        co_settle(s);
    free_state(s);
}

/* Nothing but the background's coroutines is bound to the loop. */
static void co_qcow2_detach(struct node *n)
{
    co_qcow2_quiesce(n->state);
}

/* ---- what is told of it -------------------------------------------------- */

static void add_data_file_info(struct qcow2 *s, struct node_info *ret)
{
    CLEANUP(free) struct node_info *data = xnew(struct node_info);

    node_get_info(s->data, data);
    ret->can_write_zeroes_fast = !s->raw_data || data->can_write_zeroes_fast;
    if (ret->allocated != UINT64_MAX && data->allocated != UINT64_MAX)
        ret->allocated += data->allocated;
}

static void qcow2_get_info(struct node *n, struct node_info *ret)
{
    struct qcow2 *s = n->state;

    ret->cluster_size = (uint32_t)s->cluster_size;
    ret->dirty = s->header.incompatible & QCOW2_INCOMPAT_DIRTY;
    ret->can_unmap = true;
    if (s->geo.data_file)
        add_data_file_info(s, ret);
    else
        ret->can_write_zeroes_fast = s->geo.version >= 3 || qcow2_unallocated_is_zero(s, 0);
    snprintf(ret->backing_file, sizeof(ret->backing_file), "%s", s->header.backing_file);
    snprintf(ret->backing_format, sizeof(ret->backing_format), "%s", s->header.backing_format);
}

/* QAPI ImageInfoSpecificQCow2. */
static json_t *qcow2_format_info(struct node *n)
{
    const struct qcow2 *s = n->state;
    const struct qcow2_header *h = &s->header;
    json_t *data = json_object();

    json_object_set_new(data, "compat", json_string(h->version == 2 ? "0.10" : "1.1"));
    json_object_set_new(data, "compression-type",
                        json_string(h->compression == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib"));
    json_object_set_new(data, "refcount-bits", json_integer(1 << h->refcount_order));
    if (h->version >= 3) {
        json_object_set_new(data, "lazy-refcounts",
                            json_boolean(h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS));
        if (qcow2_bitmaps_count(n))
            json_object_set_new(data, "bitmaps", qcow2_bitmaps_list(n));
        json_object_set_new(data, "corrupt",
                            json_boolean(h->incompatible & QCOW2_INCOMPAT_CORRUPT));
        json_object_set_new(data, "extended-l2", json_boolean(s->geo.extended));
        if (h->data_file[0])
            json_object_set_new(data, "data-file", json_string(h->data_file));
        if (s->geo.data_file)
            json_object_set_new(data, "data-file-raw", json_boolean(s->raw_data));
    }
    return json_pack("{s:s, s:o}", "type", "qcow2", "data", data);
}

const struct driver qcow2_driver = {
    .name = "qcow2",
    .doc = "an image in QEMU's format: sparse, with a backing file",
    .state_size = sizeof(struct qcow2),
    .options = &qcow2_options_type,
    .co_open = co_qcow2_open,
    .co_close = co_qcow2_close,
    .co_preadv = co_qcow2_preadv,
    .co_pwritev = co_qcow2_pwritev,
    .co_write_zeroes = co_qcow2_write_zeroes,
    .co_discard = co_qcow2_discard,
    .co_flush = co_qcow2_flush,
    .co_status = co_qcow2_status,
    .co_resize = co_qcow2_resize,
    .get_info = qcow2_get_info,
    .format_info = qcow2_format_info,
    .bitmaps = &qcow2_bitmap_storage,
    .co_detach = co_qcow2_detach,
};
