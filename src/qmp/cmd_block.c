/* SPDX-License-Identifier: Apache-2.0
 *
 * Nodes: adding, deleting, describing them. QEMU qapi/block-core.json.
 */
#include "base/mem.h"
#include "block/dirty.h"
#include "qmp/impl.h"

/* ---- blockdev-add ------------------------------------------------------------------ */

struct adding {
    const struct qmp_call *call;
    struct err *err;
};

static int co_add_there(void *arg)
{
    const struct adding *a = arg;
    struct node *n = co_node_open(a->call->json, a->call->keyval, a->err);

    if (!n)
        return -EINVAL;
    node_set_monitor_owned(n);
    co_node_unref(n);
    return 0;
}

static bool co_blockdev_add(const struct qmp_call *call, const void *args, void *ret,
                            struct err *err)
{
    const struct blockdev_options *o = args;
    struct adding adding = { .call = call, .err = err };
    struct placement *p = call->qmp->placement;
    struct loop *loop = NULL;

    if (!o->has_node_name)
        return err_set(err, -EINVAL, "'node-name' must be specified for the root node");
    if (!co_node_json_loop(call->json, &loop, err))
        return false;
    if (loop)
        return co_loop_call(loop, co_add_there, &adding) == 0;

    loop = placement_pick(p, err);
    if (!loop)
        return false;

    bool ok = co_loop_call(loop, co_add_there, &adding) == 0;

    placement_settled(p, loop);
    return ok;
}

/* ---- blockdev-del ------------------------------------------------------------------ */

struct del_args {
    char *node_name;
};
static const struct schema_type del_args_type = {
    .name = "q_obj_blockdev-del-arg", .kind = SCHEMA_STRUCT, .size = sizeof(struct del_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct del_args, node_name, "node-name", &schema_str, "the node"),
        SCHEMA_END,
    },
};

struct deleting {
    struct node *node;
    struct err *err;
};

static int co_del_there(void *arg)
{
    struct deleting *d = arg;

    return co_node_monitor_del(node_ref(d->node), d->err) ? 0 : -EBUSY;
}

static bool co_blockdev_del(const struct qmp_call *call, const void *args, void *ret,
                            struct err *err)
{
    const struct del_args *a = args;
    struct qmp *q = call->qmp;
    struct deleting d = { .node = node_find(a->node_name, NULL), .err = err };

    if (!d.node)
        return err_set(err, -ENODEV, "Failed to find node with node-name='%s'", a->node_name);

    /* Whoever lists nodes holds references. Ours has to be the last, so that name and
     * files are free when the command is answered. */
    co_mutex_lock(&q->nodes_lock);

    int r = co_node_call(d.node, co_del_there, &d);

    co_mutex_unlock(&q->nodes_lock);
    co_node_unref(d.node);
    if (r == 0)
        json_object_del(q->targets, a->node_name);
    return r == 0;
}

/* ---- query-named-block-nodes: types ---------------------------------------------------- */

struct cache_info {
    bool writeback, direct, no_flush;
};
static const struct schema_type cache_info_type = {
    .name = "BlockdevCacheInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct cache_info),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct cache_info, writeback, "writeback", &schema_bool, NULL),
        SCHEMA_REQUIRED(struct cache_info, direct, "direct", &schema_bool, NULL),
        SCHEMA_REQUIRED(struct cache_info, no_flush, "no-flush", &schema_bool, NULL),
        SCHEMA_END,
    },
};

struct image_info {
    char *filename, *format;
    int64_t virtual_size;
    bool has_dirty_flag, dirty_flag;
    bool has_actual_size, has_cluster_size;
    int64_t actual_size, cluster_size;
    bool has_backing_filename, has_full_backing_filename, has_backing_format;
    char *backing_filename, *full_backing_filename, *backing_format;
    bool has_backing_image, has_format_specific;
    json_t *backing_image;       /* an ImageInfo again */
    json_t *format_specific;     /* ImageInfoSpecific, the driver's own affair */
};
#define II_OPT(field, json, type) SCHEMA_OPTIONAL(struct image_info, field, json, type, NULL)
static const struct schema_type image_info_type = {
    .name = "ImageInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct image_info),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct image_info, filename, "filename", &schema_str, NULL),
        SCHEMA_REQUIRED(struct image_info, format, "format", &schema_str, NULL),
        II_OPT(dirty_flag, "dirty-flag", &schema_bool),
        II_OPT(actual_size, "actual-size", &schema_int),
        SCHEMA_REQUIRED(struct image_info, virtual_size, "virtual-size", &schema_int, NULL),
        II_OPT(cluster_size, "cluster-size", &schema_int),
        II_OPT(backing_filename, "backing-filename", &schema_str),
        II_OPT(full_backing_filename, "full-backing-filename", &schema_str),
        II_OPT(backing_format, "backing-filename-format", &schema_str),
        II_OPT(backing_image, "backing-image", &schema_any),
        II_OPT(format_specific, "format-specific", &schema_any),
        SCHEMA_END,
    },
};

static const struct schema_type detect_zeroes_enum = {
    .name = "BlockdevDetectZeroesOptions", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "off", "on", "unmap", NULL },
};

struct dirty_info {
    char *name;
    int64_t count;
    uint32_t granularity;
    bool recording, busy, persistent;
    bool has_inconsistent, inconsistent;
    bool has_reason, has_over_reported;
    char *reason;
    int64_t over_reported;
};
#define DIRTY(field, type) SCHEMA_REQUIRED(struct dirty_info, field, #field, type, NULL)
static const struct schema_type dirty_info_type = {
    .name = "BlockDirtyInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct dirty_info),
    .members = (const struct schema_member[]){
        DIRTY(name, &schema_str),
        DIRTY(count, &schema_int),
        DIRTY(granularity, &schema_uint32),
        DIRTY(recording, &schema_bool),
        DIRTY(busy, &schema_bool),
        DIRTY(persistent, &schema_bool),
        SCHEMA_OPTIONAL(struct dirty_info, inconsistent, "inconsistent", &schema_bool, NULL),
        SCHEMA_OPTIONAL(struct dirty_info, reason, "inconsistent-reason", &schema_str, NULL),
        SCHEMA_OPTIONAL(struct dirty_info, over_reported, "over-reported", &schema_int, NULL),
        SCHEMA_END,
    },
};
static const struct schema_type dirty_info_list = {
    .name = "BlockDirtyInfoList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &dirty_info_type,
};

struct device_info {
    bool has_dirty_bitmaps;
    struct schema_array dirty_bitmaps;
    char *file, *node_name, *drv;
    bool ro, active, encrypted;
    bool has_backing_file;
    char *backing_file;
    int64_t backing_file_depth;
    int detect_zeroes;
    int64_t no_limit;            /* throttling is what nodes do not have */
    struct image_info image;
    struct cache_info cache;
};
#define DI(field, json, type) SCHEMA_REQUIRED(struct device_info, field, json, type, NULL)
static const struct schema_type device_info_type = {
    .name = "BlockDeviceInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct device_info),
    .members = (const struct schema_member[]){
        DI(file, "file", &schema_str),
        DI(node_name, "node-name", &schema_str),
        DI(ro, "ro", &schema_bool),
        DI(drv, "drv", &schema_str),
        SCHEMA_OPTIONAL(struct device_info, backing_file, "backing_file", &schema_str, NULL),
        DI(backing_file_depth, "backing_file_depth", &schema_int),
        DI(active, "active", &schema_bool),
        DI(encrypted, "encrypted", &schema_bool),
        DI(detect_zeroes, "detect_zeroes", &detect_zeroes_enum),
        DI(no_limit, "bps", &schema_int),
        DI(no_limit, "bps_rd", &schema_int),
        DI(no_limit, "bps_wr", &schema_int),
        DI(no_limit, "iops", &schema_int),
        DI(no_limit, "iops_rd", &schema_int),
        DI(no_limit, "iops_wr", &schema_int),
        DI(image, "image", &image_info_type),
        DI(cache, "cache", &cache_info_type),
        SCHEMA_OPTIONAL(struct device_info, dirty_bitmaps, "dirty-bitmaps", &dirty_info_list, NULL),
        DI(no_limit, "write_threshold", &schema_int),
        SCHEMA_END,
    },
};
static const struct schema_type device_info_list = {
    .name = "BlockDeviceInfoList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &device_info_type,
};

struct named_nodes_args {
    bool has_flat, flat;
};
static const struct schema_type named_nodes_args_type = {
    .name = "q_obj_query-named-block-nodes-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct named_nodes_args),
    .members = (const struct schema_member[]){
        SCHEMA_OPTIONAL(struct named_nodes_args, flat, "flat", &schema_bool,
                        "do not tell of each node's backing images inside it"),
        SCHEMA_END,
    },
};

/* ---- query-named-block-nodes: filling them ------------------------------------------------ */

/* Images told inside each other: parsers of the answer recurse, and each node's
 * chain is told again in the node above it. "flat" is for longer chains. */
#define BACKING_IMAGES_MAX 32

/* JSON has no integers above. */
static int64_t json_size(uint64_t bytes)
{
    return (int64_t)MIN(bytes, (uint64_t)INT64_MAX);
}

static void fill_backing(struct node *backing, const struct node_info *info,
                         struct image_info *ret)
{
    if (info->backing_file[0]) {
        ret->has_backing_filename = true;
        ret->backing_filename = xstrdup(info->backing_file);
    }
    if (info->backing_format[0]) {
        ret->has_backing_format = true;
        ret->backing_format = xstrdup(info->backing_format);
    }
    if (backing && info->backing_file[0]) {
        CLEANUP(free) struct node_info *below = xnew(struct node_info);

        node_get_info(backing, below);
        ret->has_full_backing_filename = true;
        ret->full_backing_filename = xstrdup(below->filename);
    }
}

static void fill_image(struct node *n, struct image_info *ret)
{
    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    node_get_info(n, info);
    *ret = (struct image_info){
        .filename = xstrdup(info->filename),
        .format = xstrdup(node_driver_name(n)),
        .virtual_size = json_size(info->size),
        .has_dirty_flag = true,
        .has_actual_size = info->allocated != UINT64_MAX,
        .actual_size = json_size(info->allocated),
        .has_cluster_size = info->cluster_size != 0,
        .cluster_size = info->cluster_size,
        .format_specific = node_format_info(n),
    };
    ret->has_format_specific = ret->format_specific != NULL;
    fill_backing(node_backing(n), info, ret);
}

static void fill_bitmaps(struct node *n, struct schema_array *ret)
{
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        const char *why = dirty_bitmap_inconsistent(bm);
        bool inconsistent = why != NULL;
        uint64_t over = inconsistent ? 0 : dirty_bitmap_over_reported(bm);

        ret->items = xrealloc(ret->items, (ret->n + 1) * sizeof(struct dirty_info));
        ((struct dirty_info *)ret->items)[ret->n++] = (struct dirty_info){
            .name = xstrdup(dirty_bitmap_name(bm)),
            .count = json_size(dirty_bitmap_count(bm)),
            .granularity = dirty_bitmap_granularity(bm),
            .recording = dirty_bitmap_enabled(bm) && !inconsistent,
            .busy = dirty_bitmap_busy(bm),
            .persistent = dirty_bitmap_persistent(bm),
            .has_inconsistent = inconsistent,
            .inconsistent = inconsistent,
            .has_reason = inconsistent,
            .reason = why ? xstrdup(why) : NULL,
            .has_over_reported = over != 0,
            .over_reported = json_size(over),
        };
    }
}

static json_t *image_json(struct node *n)
{
    struct image_info info;

    fill_image(n, &info);

    json_t *json = schema_encode(&image_info_type, &info);

    schema_clear(&image_info_type, &info);
    return json;
}

/* The images below @n, each inside the one above it; NULL: none. */
static json_t *backing_images(struct node *n)
{
    json_t *images[BACKING_IMAGES_MAX];
    unsigned count = 0;

    for (n = node_backing(n); n && count < BACKING_IMAGES_MAX; n = node_backing(n))
        images[count++] = image_json(n);
    while (count > 1) {
        count--;
        json_object_set_new(images[count - 1], "backing-image", images[count]);
    }
    return count ? images[0] : NULL;
}

struct describing {
    struct node *node;
    bool flat;
    struct device_info *ret;
};

static int describe_there(void *arg)
{
    const struct describing *d = arg;
    struct node *n = d->node;
    struct device_info *ret = d->ret;
    const char *detect = json_string_value(json_object_get(node_options(n), "detect-zeroes"));

    *ret = (struct device_info){
        .node_name = xstrdup(node_name(n)),
        .drv = xstrdup(node_driver_name(n)),
        .ro = node_read_only(n),
        .active = true,
        .detect_zeroes = detect ? schema_enum_index(&detect_zeroes_enum, detect) : 0,
        .cache = { .writeback = true, .direct = n->no_cache, .no_flush = n->no_flush },
    };
    fill_image(n, &ret->image);
    ret->file = xstrdup(ret->image.filename);
    fill_bitmaps(n, &ret->dirty_bitmaps);
    ret->has_dirty_bitmaps = ret->dirty_bitmaps.n > 0;
    if (node_backing(n) && ret->image.has_full_backing_filename) {
        ret->has_backing_file = true;
        ret->backing_file = xstrdup(ret->image.full_backing_filename);
    }
    if (!d->flat) {
        /* As in QEMU, which counts while it tells of them. */
        for (struct node *b = node_backing(n); b; b = node_backing(b))
            ret->backing_file_depth++;
        ret->image.backing_image = backing_images(n);
        ret->image.has_backing_image = ret->image.backing_image != NULL;
    }
    return 0;
}

struct listing {
    bool flat;
    struct schema_array *ret;
};

static void co_describe(struct node *n, void *arg)
{
    struct listing *l = arg;
    struct device_info *items = xrealloc(l->ret->items, (l->ret->n + 1) * sizeof(*items));
    struct describing d = { .node = n, .flat = l->flat, .ret = &items[l->ret->n] };

    l->ret->items = items;
    if (co_node_call(n, describe_there, &d) == 0)
        l->ret->n++;
}

static bool co_query_nodes(const struct qmp_call *call, const void *args, void *ret,
                           struct err *err)
{
    const struct named_nodes_args *a = args;
    struct listing l = { .flat = a->flat, .ret = ret };

    co_mutex_lock(&call->qmp->nodes_lock);
    node_for_each(co_describe, &l);
    co_mutex_unlock(&call->qmp->nodes_lock);
    return true;
}

const struct qmp_command qmp_block_commands[] = {
    { .name = "blockdev-add", .doc = "open a node and all that it names",
      .args = &blockdev_options_type, .co_run = co_blockdev_add },
    { .name = "blockdev-del", .doc = "close a node that blockdev-add has opened",
      .args = &del_args_type, .co_run = co_blockdev_del },
    { .name = "query-named-block-nodes", .doc = "all nodes", .args = &named_nodes_args_type,
      .ret = &device_info_list, .co_run = co_query_nodes },
    { 0 },
};
