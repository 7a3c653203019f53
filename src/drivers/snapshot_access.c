/* SPDX-License-Identifier: Apache-2.0
 *
 * snapshot-access: the disk as it was at the instant that the copy-before-write filter
 * below keeps (QEMU block/snapshot-access.c). Writing is refused; a discard (with
 * discard=unmap) releases: nothing more is kept there, and reading there fails.
 * Bitmaps that the filter has kept are this node's dirty bitmaps, and do not record.
 */
#include "drivers/snapshot_access.h"
#include "base/mem.h"
#include "block/dirty.h"
#include "drivers/copy_before_write.h"
#include <stdio.h>

struct access_options {
    struct schema_alt file;
};

static inline struct view *view_of(const struct node *n)
{
    return copy_before_write_view(edge_node(n->file));
}

static bool add_bitmaps(struct node *n, struct err *err)
{
    size_t count;
    const struct frozen_bitmap *f = copy_before_write_bitmaps(edge_node(n->file), &count);

    for (size_t i = 0; i < count; i++) {
        struct dirty_bitmap_opts o = {
            .name = f[i].name, .granularity = f[i].granularity, .disabled = true,
        };
        struct dirty_bitmap *bm = dirty_bitmap_add(n, &o, err);

        if (!bm)
            return false;
        dirty_bitmap_add_bits(bm, f[i].bits);
    }
    return true;
}

void snapshot_access_begin(struct node *n)
{
    size_t count;
    const struct frozen_bitmap *f;

    assert(n->drv == &snapshot_access_driver);
    copy_before_write_begin(edge_node(n->file));
    f = copy_before_write_bitmaps(edge_node(n->file), &count);
    for (size_t i = 0; i < count; i++) {
        struct dirty_bitmap *bm = dirty_bitmap_find(n, f[i].name, NULL);

        if (f[i].inconsistent)
            dirty_bitmap_spoil(bm, "%s", f[i].inconsistent);
        else
            dirty_bitmap_add_bits(bm, f[i].bits);
    }
}

struct node *co_snapshot_access_open_later(const json_t *json, struct err *err)
{
    struct blockdev_options *o = schema_decode_new(&blockdev_options_type, json, false, err);
    const struct access_options *own;
    struct node *n;

    if (!o)
        return NULL;
    assert(strcmp(o->driver, snapshot_access_driver.name) == 0);
    own = o->own;
    assert(own->file.kind == SCHEMA_ALT_OBJECT);
    copy_before_write_later(own->file.object);
    n = co_node_open_decoded(o, err);
    schema_free(&blockdev_options_type, o);
    return n;
}

static bool co_access_open(struct node *n, const void *opts, struct err *err)
{
    const struct access_options *o = opts;
    unsigned all = EDGE_READ | EDGE_WRITE | EDGE_RESIZE;

    if (!co_node_open_child(n, "file", &o->file, EDGE_READ, all, err))
        return false;
    if (!view_of(n))
        return err_set(err, -EINVAL, "Node '%s' keeps no snapshot: 'file' of snapshot-access is a "
                       "copy-before-write node", node_name(edge_node(n->file)));
    n->of_the_past = true;
    n->size = view_size(view_of(n));
    n->limits.request_align = 1;
    return add_bitmaps(n, err);
}

/* What clients are told of a snapshot that is no more; the log says why. */
static int broken(int r)
{
    return r == -ENOMEM ? r : -EIO;
}

/* The node holds its file, so the view is there; whether it is good is another
 * question. Before and behind the read: what is released meanwhile is not kept. */
static int co_access_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                            int niov, unsigned flags)
{
    struct view *v = view_of(n);
    int r;

    if (!view_has(v, off, len))
        return -EACCES;
    r = co_view_readv(v, off, len, iov, niov, flags);
    if (r < 0)
        return broken(r);
    return view_has(v, off, len) ? 0 : -EACCES;
}

static int co_access_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    struct view *v = view_of(n);
    int r;

    if (!view_has(v, off, 1))
        return -EACCES;
    r = co_view_status(v, NULL, off, len, ret);
    return r < 0 ? broken(r) : 0;
}

static int co_access_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                             int niov, unsigned flags)
{
    return -EPERM;
}

static int co_access_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    return -EPERM;
}

static int co_access_discard(struct node *n, uint64_t off, uint64_t len)
{
    uint64_t end = off + len;
    uint64_t from = align_up(off, VIEW_GRANULE);
    uint64_t to = end == n->size ? end : align_down(end, VIEW_GRANULE);

    if (from < to)
        view_release(view_of(n), from, to - from);
    return 0;
}

static void access_get_info(struct node *n, struct node_info *ret)
{
    node_get_info(edge_node(n->file), ret);
    ret->discard_only = true;
    ret->can_unmap = ret->can_write_zeroes_fast = ret->can_compress = false;
}

static json_t *access_format_info(struct node *n)
{
    return copy_before_write_info(edge_node(n->file), "snapshot-access");
}

static const struct schema_member access_members[] = {
    SCHEMA_REQUIRED(struct access_options, file, "file", &blockdev_ref_type,
                    "a copy-before-write node"),
    SCHEMA_END,
};

static const struct schema_type access_options_type = {
    .name = "BlockdevOptionsGenericFormat",
    .kind = SCHEMA_STRUCT,
    .doc = "the disk as a copy-before-write filter keeps it",
    .size = sizeof(struct access_options),
    .members = access_members,
};

const struct driver snapshot_access_driver = {
    .name = "snapshot-access",
    .doc = "the disk as a copy-before-write filter keeps it",
    .options = &access_options_type,
    .co_open = co_access_open,
    .co_preadv = co_access_preadv,
    .co_pwritev = co_access_pwritev,
    .co_write_zeroes = co_access_write_zeroes,
    .co_discard = co_access_discard,
    .co_status = co_access_status,
    .get_info = access_get_info,
    .format_info = access_format_info,
};
