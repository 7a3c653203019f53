/* SPDX-License-Identifier: Apache-2.0
 *
 * copy-before-write: a filter that keeps its `file` as it is when it is opened, while
 * guests go on writing (QEMU qapi/block-core.json, BlockdevOptionsCbw). It is a view
 * (cbw/view.h) in the clothes of a node; snapshot-access reads what it keeps.
 *
 * QEMU's filter sees only what is written through it, so it has to be put between the
 * disk and its users. This one hears of every write to `file`, from whomever, and the
 * instant is that of its opening. Requests to the filter itself just pass.
 *
 * Old data goes to `target`, at its own place, if one is given: an overlay of `file`
 * then shows the instant too. A guest's write waits for that; without a target it
 * waits for scratch only.
 */
#include "drivers/copy_before_write.h"
#include "base/log.h"
#include "base/mem.h"
#include "block/bitmap_ref.h"
#include "block/dirty.h"
#include "block/disk.h"
#include "block/graph.h"
#include "loop/co_sync.h"
#include <stdio.h>

struct cbw_options {
    struct schema_alt file;
    bool has_target;
    struct schema_alt target;
    bool has_bitmap;
    struct bitmap_ref bitmap;
    bool has_on_cbw_error;
    int on_cbw_error;
    bool has_cbw_timeout;
    uint32_t cbw_timeout;
    bool has_min_cluster_size;
    uint64_t min_cluster_size;

    /* Stillpoint's own */
    bool has_bitmaps;
    struct schema_array bitmaps;       /* char * */
    bool has_scratch_dir;
    char *scratch_dir;
    bool has_scratch_memory, has_scratch_limit;
    uint64_t scratch_memory, scratch_limit;

    bool later;                        /* not for users: copy_before_write_later */
};

struct cbw_state {
    struct node *node;
    struct view *view;
    struct view_listener listener;
    struct frozen_bitmap *bitmaps;
    size_t n_bitmaps;
};

static inline struct node *child(const struct node *n)
{
    return edge_node(n->file);
}

/* ---- for snapshot-access ---------------------------------------------------------- */

struct view *copy_before_write_view(struct node *n)
{
    const struct cbw_state *s = n->state;

    return n->drv == &copy_before_write_driver ? s->view : NULL;
}

const struct frozen_bitmap *copy_before_write_bitmaps(struct node *n, size_t *ret_n)
{
    const struct cbw_state *s = n->state;

    assert(n->drv == &copy_before_write_driver);
    *ret_n = s->n_bitmaps;
    return s->bitmaps;
}

void copy_before_write_later(struct blockdev_options *o)
{
    assert(strcmp(o->driver, copy_before_write_driver.name) == 0);
    ((struct cbw_options *)o->own)->later = true;
}

void copy_before_write_begin(struct node *n)
{
    struct cbw_state *s = n->state;

    assert(n->drv == &copy_before_write_driver);
    for (size_t i = 0; i < s->n_bitmaps; i++) {
        struct frozen_bitmap *f = &s->bitmaps[i];
        const struct dirty_bitmap *bm = dirty_bitmap_find(child(n), f->name, NULL);
        const char *why;

        assert(bm && dirty_bitmap_granularity(bm) == f->granularity);
        why = dirty_bitmap_inconsistent(bm);
        if (why)
            f->inconsistent = xstrdup(why);
        else
            bitmap_merge(f->bits, dirty_bitmap_bits(bm));
    }
    view_begin(s->view);
}

json_t *copy_before_write_info(struct node *n, const char *type)
{
    struct view *v = copy_before_write_view(n);
    struct view_stats st;
    struct err why;
    json_t *data;

    view_get_stats(v, &st);
    data = json_pack("{s:I,s:I,s:I,s:I}", "captured", (json_int_t)st.captured, "held",
                     (json_int_t)st.held, "scratch-memory", (json_int_t)st.memory, "scratch-file",
                     (json_int_t)st.file);
    if (view_error(v, &why) < 0)
        json_object_set_new(data, "broken", schema_json_str(why.text));
    return json_pack("{s:s,s:o}", "type", type, "data", data);
}

/* ---- the instant -------------------------------------------------------------------- */

static void view_changed(struct view_listener *l)
{
    struct cbw_state *s = container_of(l, struct cbw_state, listener);
    struct err why;

    if (view_error(s->view, &why) < 0 && why.code != -ESHUTDOWN)
        log_warn("the snapshot that node '%s' keeps is broken: %s", node_name(s->node), why.text);
}

/* Room for them first, so that nothing can fail at the instant. If that is later whoever takes it
 * holds them until then. */
static bool prepare_bitmaps(struct node *n, const struct cbw_options *o, struct err *err)
{
    unsigned allow = o->later ? DIRTY_BUSY_OK : 0;
    struct cbw_state *s = n->state;
    char *const *names = o->bitmaps.items;

    s->bitmaps = xcalloc(o->bitmaps.n + 1, sizeof(*s->bitmaps));
    for (size_t i = 0; i < o->bitmaps.n; i++) {
        const struct dirty_bitmap *bm = dirty_bitmap_find(child(n), names[i], err);
        struct bitmap *bits;

        if (!bm || !dirty_bitmap_check(bm, allow, err))
            return false;
        bits = bitmap_new(bitmap_size(dirty_bitmap_bits(bm)));
        if (!bits)
            return err_set(err, -ENOMEM, "No memory for a copy of bitmap '%s'", names[i]);
        s->bitmaps[s->n_bitmaps++] = (struct frozen_bitmap){
            .name = xstrdup(names[i]),
            .granularity = dirty_bitmap_granularity(bm),
            .bits = bits,
        };
    }
    return true;
}

/* Behind shut doors nothing sets a bit. Whoever has taken a bitmap away meanwhile, or
 * began a job with it, was before us. */
static bool freeze_bitmaps(struct node *n, struct err *err)
{
    struct cbw_state *s = n->state;

    for (size_t i = 0; i < s->n_bitmaps; i++) {
        const struct frozen_bitmap *f = &s->bitmaps[i];
        const struct dirty_bitmap *bm = dirty_bitmap_find(child(n), f->name, err);

        if (!bm || !dirty_bitmap_check(bm, 0, err))
            return false;
        if (dirty_bitmap_granularity(bm) != f->granularity)
            return err_set(err, -EBUSY, "Bitmap '%s' was replaced meanwhile", f->name);
        bitmap_merge(f->bits, dirty_bitmap_bits(bm));
    }
    return true;
}

/* Only what is dirty is kept. */
static void release_clean(struct view *v, const struct dirty_bitmap *bm)
{
    const struct bitmap *bits = dirty_bitmap_bits(bm);
    uint64_t granularity = dirty_bitmap_granularity(bm), size = view_size(v);
    uint64_t all = bitmap_size(bits), first, count, at = 0;

    for (uint64_t bit = 0; bitmap_next_range(bits, bit, all, &first, &count); bit = first + count) {
        uint64_t from = align_down(first * granularity, VIEW_GRANULE);

        if (from > at)
            view_release(v, at, from - at);
        at = MAX(at, MIN(size, align_up((first + count) * granularity, VIEW_GRANULE)));
    }
    if (at < size)
        view_release(v, at, size - at);
}

static bool find_access(const struct bitmap_ref *ref, struct node *n,
                        const struct dirty_bitmap **ret, struct err *err)
{
    CLEANUP(node_unref) struct node *owner = node_find(ref->node, err);

    if (!owner)
        return false;
    if (node_loop(owner) != n->loop || node_size(owner) != node_size(child(n)))
        return err_set(err, -EINVAL, "Bitmap '%s' of node '%s' is not for the disk '%s'", ref->name,
                       ref->node, node_name(child(n)));
    *ret = dirty_bitmap_find(owner, ref->name, err);
    return *ret && dirty_bitmap_check(*ret, 0, err);
}

static bool co_take_instant(struct node *n, const struct cbw_options *o, struct err *err)
{
    struct cbw_state *s = n->state;
    const struct dirty_bitmap *access = NULL;
    bool ok;

    if (!co_shut_doors_by(child(n), loop_now() + INSTANT_TIMEOUT_NS, err))
        return false;
    ok = (!o->has_bitmap || find_access(&o->bitmap, n, &access, err)) && freeze_bitmaps(n, err);
    if (ok) {
        if (access)
            release_clean(s->view, access);
        view_begin(s->view);
    }
    open_doors(child(n));
    return ok;
}

static bool co_open_view(struct node *n, const struct cbw_options *o, struct err *err)
{
    CLEANUP(free) char *who = xasprintf("node '%s'", n->name);
    struct cbw_state *s = n->state;
    struct view_opts opts = VIEW_OPTS_DEFAULT;

    opts.target = node_child(n, "target");
    if (o->has_scratch_dir)
        opts.scratch_dir = o->scratch_dir;
    if (o->has_scratch_memory)
        opts.scratch_memory = o->scratch_memory;
    opts.scratch_limit = o->scratch_limit;
    /* QEMU's defaults. */
    opts.cbw_timeout_ns = o->cbw_timeout * NSEC_PER_SEC;
    opts.on_cbw_error = o->has_on_cbw_error ? (enum view_on_cbw_error)o->on_cbw_error
                                            : VIEW_BREAK_GUEST_WRITE;
    s->view = co_view_prepare(child(n), &opts, who, err);
    if (!s->view)
        return false;
    s->listener.changed = view_changed;
    view_add_listener(s->view, &s->listener);
    return o->later || co_take_instant(n, o, err);
}

/* ---- opening and closing ---------------------------------------------------------------- */

/* Captures that are under way use what the node has. */
static void co_close_view(struct cbw_state *s)
{
    struct view *v = s->view;

    if (v) {
        view_remove_listener(&s->listener);
        view_ref(v);
        view_close(v);
        while (!co_view_settle(v, DEADLINE_NEVER))
            ;
        view_unref(v);
        s->view = NULL;
    }
    while (s->n_bitmaps) {
        struct frozen_bitmap *f = &s->bitmaps[--s->n_bitmaps];

        free(f->name);
        free(f->inconsistent);
        bitmap_free(f->bits);
    }
    free(MOVE(s->bitmaps));
}

static bool check_target(struct node *n, struct err *err)
{
    struct node *target = node_child(n, "target");

    if (!target)
        return true;
    if (target == child(n))
        return err_set(err, -EINVAL, "Source and target cannot be the same");
    if (node_read_only(target))
        return err_set(err, -EACCES, "Target '%s' is read-only", node_name(target));
    if (node_size(target) < node_size(child(n)))
        return err_set(err, -EINVAL, "Target '%s' has %llu bytes, fewer than '%s' with %llu",
                       node_name(target), (unsigned long long)node_size(target),
                       node_name(child(n)), (unsigned long long)node_size(child(n)));
    return true;
}

static bool co_cbw_open(struct node *n, const void *opts, struct err *err)
{
    const struct cbw_options *o = opts;
    struct cbw_state *s = n->state;
    unsigned both = EDGE_READ | EDGE_WRITE;

    s->node = n;
    if (o->min_cluster_size && !is_power_of_2(o->min_cluster_size))
        return err_set(err, -EINVAL, "min-cluster-size needs to be a power of 2");
    /* Others may write to both: the view hears of writes to the one, and the other
     * may be an overlay of it. */
    if (!co_node_open_child(n, "file", &o->file, n->read_only ? EDGE_READ : both, both, err))
        return false;
    if (o->has_target && !co_node_open_child(n, "target", &o->target, both, both, err))
        return false;
    n->size = node_size(child(n));
    n->limits.request_align = 1;
    n->limits.write_flags = REQ_FUA;
    n->limits.zero_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    n->zero_init = child(n)->zero_init;
    if (check_target(n, err) && prepare_bitmaps(n, o, err) && co_open_view(n, o, err))
        return true;
    co_close_view(s);
    return false;
}

static void co_cbw_close(struct node *n)
{
    co_close_view(n->state);
}

/* ---- requests pass ------------------------------------------------------------------------ */

static int co_cbw_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                         int niov, unsigned flags)
{
    return co_node_preadv(child(n), off, len, iov, niov, flags);
}

static int co_cbw_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                          int niov, unsigned flags)
{
    return co_node_pwritev(child(n), off, len, iov, niov, flags);
}

static int co_cbw_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    return co_node_write_zeroes(child(n), off, len, flags);
}

static int co_cbw_discard(struct node *n, uint64_t off, uint64_t len)
{
    return co_node_discard(child(n), off, len);
}

static int co_cbw_flush(struct node *n)
{
    return n->read_only ? 0 : co_node_flush(child(n));
}

static void cbw_get_info(struct node *n, struct node_info *ret)
{
    node_get_info(child(n), ret);
}

static json_t *cbw_format_info(struct node *n)
{
    return copy_before_write_info(n, "copy-before-write");
}

static void cbw_cancel_in_flight(struct node *n)
{
    node_cancel_in_flight(child(n));
}

/* ---- options --------------------------------------------------------------------------------- */

static const struct schema_type name_list_type = {
    .name = "strList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &schema_str,
};

#define CBW_OPT(field, json, type, doc) SCHEMA_OPTIONAL(struct cbw_options, field, json, type, doc)
static const struct schema_member cbw_members[] = {
    SCHEMA_REQUIRED(struct cbw_options, file, "file", &blockdev_ref_type,
                    "the node that is kept as it is now"),
    CBW_OPT(target, "target", &blockdev_ref_type,
            "where old data goes, at its own place; default: scratch"),
    CBW_OPT(bitmap, "bitmap", &bitmap_ref_type, "keep only what is dirty there"),
    CBW_OPT(on_cbw_error, "on-cbw-error", &on_cbw_error_type,
            "when old data cannot be kept; default break-guest-write"),
    CBW_OPT(cbw_timeout, "cbw-timeout", &schema_uint32,
            "seconds that a guest's write may wait for that; default 0: no limit"),
    CBW_OPT(min_cluster_size, "min-cluster-size", &schema_size,
            "no effect: 4 KiB are kept at once"),
    CBW_OPT(bitmaps, "bitmaps", &name_list_type,
            "dirty bitmaps of file that snapshot-access nodes have as they are now"),
    CBW_OPT(scratch_dir, "scratch-dir", &schema_str, "where scratch is when memory is not enough"),
    CBW_OPT(scratch_memory, "scratch-memory", &schema_size,
            "scratch in memory, bytes; default 128M"),
    CBW_OPT(scratch_limit, "scratch-limit", &schema_size,
            "of scratch in all, bytes; default 0: no limit"),
    SCHEMA_END,
};

static const struct schema_type cbw_options_type = {
    .name = "BlockdevOptionsCbw",
    .kind = SCHEMA_STRUCT,
    .doc = "keeps a disk as it is now while it is written",
    .size = sizeof(struct cbw_options),
    .members = cbw_members,
};

const struct driver copy_before_write_driver = {
    .name = "copy-before-write",
    .doc = "keeps a disk as it is now while it is written",
    .state_size = sizeof(struct cbw_state),
    .options = &cbw_options_type,
    .is_filter = true,
    .co_open = co_cbw_open,
    .co_close = co_cbw_close,
    .co_preadv = co_cbw_preadv,
    .co_pwritev = co_cbw_pwritev,
    .co_write_zeroes = co_cbw_write_zeroes,
    .co_discard = co_cbw_discard,
    .co_flush = co_cbw_flush,
    .get_info = cbw_get_info,
    .format_info = cbw_format_info,
    .cancel_in_flight = cbw_cancel_in_flight,
};
