/* SPDX-License-Identifier: Apache-2.0
 *
 * raw: the bytes of `file` as they are, or a part of them. The format of a disk
 * that has none.
 */
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/drivers.h"
#include <inttypes.h>
#include <stdio.h>

struct raw_options {
    struct schema_alt file;
    bool has_offset;
    uint64_t offset;
    bool has_size;
    uint64_t size;
};

struct raw_state {
    uint64_t offset;
    bool fixed_size;       /* option size was given */
};

static inline struct node *child(const struct node *n)
{
    return edge_node(n->file);
}

static inline uint64_t shifted(const struct node *n, uint64_t off)
{
    return off + ((const struct raw_state *)n->state)->offset;
}

static bool choose_range(struct node *n, const struct raw_options *o, struct err *err)
{
    uint64_t have = node_size(child(n));

    if (o->offset > have)
        return err_set(err, -EINVAL, "offset %" PRIu64 " lies beyond the end of '%s', which has "
                       "%" PRIu64 " bytes", o->offset, node_name(child(n)), have);
    if (o->has_size && o->size > have - o->offset)
        return err_set(err, -EINVAL, "offset %" PRIu64 " and size %" PRIu64 " reach beyond the "
                       "end of '%s', which has %" PRIu64 " bytes", o->offset, o->size,
                       node_name(child(n)), have);
    n->size = o->has_size ? o->size : have - o->offset;
    return true;
}

/* Whether whole clusters of the disk are whole clusters of the child, the last one too. */
static bool can_compress(const struct node *n, const struct raw_state *s)
{
    CLEANUP(free) struct node_info *ni = xnew(struct node_info);
    uint64_t end = s->offset + n->size;

    node_get_info(child(n), ni);
    return ni->can_compress && ni->cluster_size && is_aligned(s->offset, ni->cluster_size) &&
           (is_aligned(end, ni->cluster_size) || end == ni->size);
}

static bool co_raw_open(struct node *n, const void *opts, struct err *err)
{
    const struct raw_options *o = opts;
    struct raw_state *s = n->state;
    unsigned perms = EDGE_READ;

    if (!n->read_only)
        perms |= EDGE_WRITE | (o->has_size ? 0 : EDGE_RESIZE);
    /* Nobody else may write below: a view on this node would not see it. */
    if (!co_node_open_child(n, "file", &o->file, perms, EDGE_READ, err))
        return false;
    if (!choose_range(n, o, err))
        return false;
    s->offset = o->offset;
    s->fixed_size = o->has_size;

    /* Everything is taken as it comes; the child's own funnel fits it. */
    n->limits.request_align = 1;
    n->limits.write_flags = REQ_FUA | (can_compress(n, s) ? REQ_COMPRESSED : 0);
    n->limits.zero_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    n->zero_init = child(n)->zero_init;
    return true;
}

static int co_raw_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                         int niov, unsigned flags)
{
    return co_node_preadv(child(n), shifted(n, off), len, iov, niov, flags);
}

static int co_raw_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                          int niov, unsigned flags)
{
    return co_node_pwritev(child(n), shifted(n, off), len, iov, niov, flags);
}

static int co_raw_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    return co_node_write_zeroes(child(n), shifted(n, off), len, flags);
}

static int co_raw_discard(struct node *n, uint64_t off, uint64_t len)
{
    return co_node_discard(child(n), shifted(n, off), len);
}

static int co_raw_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    return co_node_status(child(n), shifted(n, off), len, ret);
}

static bool co_raw_resize(struct node *n, uint64_t size, struct err *err)
{
    struct raw_state *s = n->state;

    if (s->fixed_size)
        return err_set(err, -ENOTSUP, "Cannot resize fixed-size raw disks");
    if (size > INT64_MAX - s->offset)
        return err_set(err, -EFBIG, "Disk size too large");
    if (!co_node_resize(child(n), s->offset + size, err))
        return false;
    n->size = size;
    return true;
}

static uint64_t raw_fixed_offset(const struct node *n)
{
    return shifted(n, 0);
}

static void raw_cancel_in_flight(struct node *n)
{
    node_cancel_in_flight(child(n));
}

/* A part of a file is not to be had under the file's name. As QEMU calls it. */
static void name_part(const struct node *n, struct node_info *ret)
{
    json_t *json = json_pack("{s:s,s:I,s:I,s:{s:s,s:o}}", "driver", "raw", "offset",
                             (json_int_t)shifted(n, 0), "size", (json_int_t)n->size, "file",
                             "driver", node_driver_name(child(n)), "filename",
                             schema_json_str(ret->filename));
    CLEANUP(free) char *text = json_dumps(json, JSON_COMPACT);

    snprintf(ret->filename, sizeof(ret->filename), "json:%s", text);
    json_decref(json);
}

static void raw_get_info(struct node *n, struct node_info *ret)
{
    uint64_t size = ret->size;
    bool compress = ret->can_compress;

    node_get_info(child(n), ret);
    ret->can_compress = compress;
    if (ret->filename[0] && n->size != node_size(child(n)))
        name_part(n, ret);
    ret->size = size;
}

static const struct schema_member raw_members[] = {
    SCHEMA_REQUIRED(struct raw_options, file, "file", &blockdev_ref_type, "where the bytes are"),
    SCHEMA_OPTIONAL(struct raw_options, offset, "offset", &schema_size,
                    "where in the file the disk begins, bytes; default 0"),
    SCHEMA_OPTIONAL(struct raw_options, size, "size", &schema_size,
                    "size of the disk, bytes; default: up to the end"),
    SCHEMA_END,
};

static const struct schema_type raw_options_type = {
    .name = "BlockdevOptionsRaw",
    .kind = SCHEMA_STRUCT,
    .doc = "the bytes of a file, or a part of them",
    .size = sizeof(struct raw_options),
    .members = raw_members,
};

const struct driver raw_driver = {
    .name = "raw",
    .doc = "the bytes of a file, or a part of them",
    .state_size = sizeof(struct raw_state),
    .options = &raw_options_type,
    .co_open = co_raw_open,
    .co_preadv = co_raw_preadv,
    .co_pwritev = co_raw_pwritev,
    .co_write_zeroes = co_raw_write_zeroes,
    .co_discard = co_raw_discard,
    .co_status = co_raw_status,
    .co_resize = co_raw_resize,
    .get_info = raw_get_info,
    .cancel_in_flight = raw_cancel_in_flight,
    .fixed_offset = raw_fixed_offset,
};
