/* SPDX-License-Identifier: Apache-2.0
 *
 * Starting a backup: everything that can be refused, the users on both nodes,
 * the view and with it the instant, and the choice of sizes.
 */
#include "base/mem.h"
#include "job/backup_impl.h"
#include <stdio.h>

#define UNIT_MIN (64 * KiB)        /* smaller pieces cost more than they save */
#define CHUNK_DEFAULT (1 * MiB)
#define CHUNK_MAX (16 * MiB)
#define WATERMARK_DEFAULT (64 * MiB)

/* QEMU rounds sizes up to sectors; so does an image format. */
#define SECTOR 512

/* What co_backup_start finds out on its way. */
struct plan {
    enum backup_sync sync;         /* top without a backing file is full */
    uint64_t cluster;              /* the target's */
    uint64_t unit, chunk;
    bool target_is_zero;
    bool in_target;                /* the target shows the instant while the job runs: see below */
};

/* ---- checks ------------------------------------------------------------------------ */

/* Whether what is written to @target ends up in something that @source is made
 * of. The target's backing files do not count: with sync=none the source is one. */
static bool writes_into(struct node *target, struct node *source)
{
    struct node *file = edge_node(target->file), *data = edge_node(target->data_file);

    if (!file)
        return node_shares_storage(target, source);
    return target == source || writes_into(file, source) || (data && writes_into(data, source));
}

static bool check_sizes(const struct backup_opts *o, struct err *err)
{
    uint64_t from = node_size(o->source), to = node_size(o->target);

    if (to >= from && align_up(from, SECTOR) >= to)
        return true;
    return err_set(err, -EINVAL, "Source and target image have different sizes (source '%s' has "
                   "%llu bytes, target '%s' has %llu)", node_name(o->source),
                   (unsigned long long)from, node_name(o->target), (unsigned long long)to);
}

static bool check(const struct backup_opts *o, struct err *err)
{
    if (node_loop(o->source) != loop_current() || node_loop(o->target) != loop_current())
        return err_set(err, -EXDEV, "Source '%s' and target '%s' are not on one loop",
                       node_name(o->source), node_name(o->target));
    if (o->source == o->target)
        return err_set(err, -EINVAL, "Source and target cannot be the same");
    if (writes_into(o->target, o->source))
        return err_set(err, -EINVAL, "Target '%s' is the source '%s' or a part of its backing "
                       "chain", node_name(o->target), node_name(o->source));
    if (node_read_only(o->target))
        return err_set(err, -EACCES, "Target '%s' is read-only", node_name(o->target));
    if (!check_sizes(o, err))
        return false;
    if (o->max_workers < 1)
        return err_set(err, -EINVAL, "max-workers must be between 1 and %u",
                       LIMIT_BACKUP_WORKERS);
    if (!backup_guest_latency_is_good(o->guest_latency))
        return err_set(err, -EINVAL, BACKUP_BAD_GUEST_LATENCY);
    return backup_check_bitmap(o, err);
}

/* ---- sizes -------------------------------------------------------------------------- */

static uint64_t granularity_of(const struct backup_opts *o)
{
    return dirty_bitmap_granularity(dirty_bitmap_find(o->source, o->bitmap, NULL));
}

/* An overlay whose backing node is the live source: whoever reads it wants the instant,
 * while the job runs (QEMU's fleecing by sync=none). So old data goes there before the
 * guest's write lands, as into scratch (I-V9), and there is nothing left to copy. */
static bool stands_on(struct node *target, struct node *source)
{
    for (struct node *n = target; n; n = node_backing(n)) {
        n = node_skip_filters(n);
        if (n == node_skip_filters(source))
            return true;
    }
    return false;
}

static bool make_plan(const struct backup_opts *o, struct plan *p, struct err *err)
{
    CLEANUP(free) struct node_info *info = xnew(struct node_info);
    uint64_t max_chunk = o->max_chunk ? MIN(o->max_chunk, CHUNK_MAX) : CHUNK_DEFAULT;
    uint64_t cluster;

    node_get_info(o->target, info);
    /* Words of QEMU block/backup.c. */
    if (o->compress && !info->can_compress)
        return err_set(err, -ENOTSUP, "Compression is not supported for this drive '%s'",
                       node_name(o->target));
    cluster = MAX(info->cluster_size, VIEW_GRANULE);
    assert(is_power_of_2(cluster));
    p->cluster = cluster;
    p->sync = o->sync == BACKUP_INCREMENTAL ? BACKUP_BITMAP : o->sync;
    if (o->sync == BACKUP_TOP && !node_backing(node_skip_filters(o->source)))
        p->sync = BACKUP_FULL;
    /* I-W2: whole clusters of the target, so that it never reads its backing file. */
    p->unit = MAX(cluster, UNIT_MIN);
    /* Little more than what is dirty. */
    if (p->sync == BACKUP_BITMAP)
        p->unit = MAX(cluster, MIN(granularity_of(o), UNIT_MIN));
    if (p->sync == BACKUP_NONE || max_chunk < p->unit)
        p->unit = cluster;
    if (o->max_chunk && o->max_chunk < cluster)
        return err_set(err, -EINVAL, "Required max-chunk (%llu) is less than backup cluster size "
                       "(%llu)", (unsigned long long)o->max_chunk, (unsigned long long)cluster);
    p->in_target = p->sync == BACKUP_NONE && !o->compress && stands_on(o->target, o->source);
    p->chunk = MAX(align_down(max_chunk, p->unit), p->unit);
    p->target_is_zero = o->target_is_zero && (info->zero_init || o->zero_is_sure) &&
                        !o->allocate && p->sync == BACKUP_FULL && !info->backing_file[0] &&
                        !node_backing(node_skip_filters(o->target));
    return true;
}

/* Bytes of data that the scan will find, roughly. */
static uint64_t expected_data(const struct backup_opts *o, const struct plan *p)
{
    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    if (p->sync == BACKUP_FULL && node_backing(node_skip_filters(o->source)))
        return UINT64_MAX;
    node_get_info(o->source, info);
    return info->allocated;
}

static uint64_t watermark(const struct view_opts *v)
{
    uint64_t mark = v->scratch_memory ? v->scratch_memory / 2 : WATERMARK_DEFAULT;

    return v->scratch_limit ? MIN(mark, v->scratch_limit / 2) : mark;
}

/* ---- putting it together --------------------------------------------------------------- */

static void kick_job(void *arg)
{
    struct backup *b = arg;

    job_kick(b->job);
}

/* A full backup looks at the store as it goes along. But it may be waiting for the
 * scanner, and a guest for room in the store. */
static void view_changed(struct view_listener *self)
{
    struct backup *b = container_of(self, struct backup, listener);

    if (view_error(b->view, NULL) || (b->list && worklist_drains(b->list)))
        job_kick(b->job);
}

static void units_copied(void *arg, uint64_t off, uint64_t len)
{
    struct backup *b = arg;

    backup_bitmap_copied(&b->bitmap, off, len);
}

static bool make_worklist(struct backup *b, const struct backup_opts *o, const struct plan *p,
                          struct err *err)
{
    struct worklist_opts w = {
        .view = b->view,
        .captured_only = b->captured_only,
        .in_target = p->in_target,
        .target_is_zero = p->target_is_zero,
        .zeros_are_data = o->allocate,
        .unit = p->unit,
        .max_copy = p->chunk,
        .watermark = watermark(&o->view),
        .copied = units_copied,
        .copied_arg = b,
        .expected = expected_data(o, p),
        .kick = kick_job,
        .kick_arg = b,
    };

    if (p->sync == BACKUP_TOP)
        w.base = node_backing(node_skip_filters(o->source));
    b->list = worklist_new(&w);
    if (!b->list)
        return err_set(err, -ENOMEM, "Not enough memory for the work list of node '%s'",
                       node_name(o->source));
    return true;
}

/* Everything but the instant. */
static bool co_set_up(struct backup *b, const struct backup_opts *o, const struct plan *p,
                      struct err *err)
{
    char who[JOB_ID_MAX + 16];
    struct view_opts view_opts;
    struct disk_user *target;

    snprintf(who, sizeof(who), "job '%s'", job_id(b->job));
    if (!backup_bitmap_prepare(&b->bitmap, o, p->sync, p->unit, who, err))
        return false;
    target = disk_open(o->target, who, EDGE_READ | EDGE_WRITE, EDGE_READ, err);
    if (!target)
        return false;
    view_opts = o->view;
    view_opts.target = p->in_target ? o->target : NULL;
    b->view = co_view_prepare(o->source, &view_opts, who, err);
    if (!b->view) {
        disk_close(target);
        return false;
    }
    b->listener.changed = view_changed;
    view_add_listener(b->view, &b->listener);
    b->copier = copier_new(&(struct copier_opts){
        .view = b->view,
        .target = target,
        .max_copy = p->chunk,
        .clone = o->reflink && p->sync == BACKUP_FULL && !o->compress && !o->allocate && !o->below,
        .zero_unit = MAX(p->unit, UNIT_MIN),
        .target_is_zero = p->target_is_zero,
        .allocate = o->allocate,
        .below = o->below,
        .compress_unit = o->compress ? p->cluster : 0,
        .kick = kick_job,
        .kick_arg = b,
    });
    depth_init(&b->depth, MIN(MIN(o->max_workers, LIMIT_BACKUP_WORKERS),
                              (unsigned)(LIMIT_BACKUP_BYTES / p->chunk)), loop_now());
    return make_worklist(b, o, p, err);
}

static void undo(struct backup *b)
{
    backup_end_metering(b);
    worklist_free(MOVE(b->list));
    if (b->view) {
        view_remove_listener(&b->listener);
        view_close(MOVE(b->view));
    }
    copier_abandon(MOVE(b->copier));
    backup_bitmap_drop(&b->bitmap);
    node_allow_resize(b->target);
    node_unref(MOVE(b->target));
    node_unref(MOVE(b->source));
}

static struct job *make_job(const struct backup_opts *o, const struct plan *p, struct backup *b,
                            struct err *err)
{
    const char *id = o->job_id ? o->job_id : node_name(o->source);

    if (!o->job_id && !job_id_wellformed(id)) {
        err_set(err, -EINVAL, "An explicit job ID is required for this node");
        return NULL;
    }
    return job_new(&(struct job_opts){
        .id = id,
        .ops = p->sync == BACKUP_NONE ? &backup_none_job_ops : &backup_job_ops,
        .state = b,
        .speed = o->speed,
        .auto_finalize = o->auto_finalize,
        .auto_dismiss = o->auto_dismiss,
        .txn = o->txn,
        .events = o->events,
        .events_arg = o->events_arg,
    }, err);
}

struct backup *co_backup_prepare(const struct backup_opts *o, struct err *err)
{
    struct plan plan = { 0 };
    struct backup *b;

    if (!check(o, err) || !make_plan(o, &plan, err))
        return NULL;
    b = xnew(struct backup);
    b->job = make_job(o, &plan, b, err);
    if (!b->job) {
        free(b);
        return NULL;
    }
    b->source = node_ref(o->source);
    b->target = node_ref(o->target);
    node_forbid_resize(b->target, "it is the target of a backup");
    b->captured_only = plan.sync == BACKUP_NONE;
    b->on_error[JOB_OP_READ] = o->on_source_error;
    b->on_error[JOB_OP_WRITE] = o->on_target_error;
    b->backoff = BACKUP_BACKOFF_MIN_NS;
    b->scratch_limit = plan.in_target ? 0 : o->view.scratch_limit;
    ratelimit_set(&b->limit, loop_now(), o->speed);
    if (co_set_up(b, o, &plan, err)) {
        backup_set_guest_latency(b, o->guest_latency);
        return b;
    }
    backup_drop(b);
    return NULL;
}

struct job *backup_job(const struct backup *b)
{
    return b->job;
}

void backup_begin(struct backup *b)
{
    worklist_limit(b->list, backup_bitmap_begin(&b->bitmap, b->view));
    view_begin(b->view);
    /* Something it should have recorded may have been lost since the checks. */
    if (b->bitmap.bm && !dirty_bitmap_check(b->bitmap.bm, DIRTY_BUSY_OK, &b->err))
        b->ret = b->err.code;
}

struct job *backup_start(struct backup *b)
{
    worklist_start(b->list);
    job_start(b->job);
    return b->job;
}

void backup_drop(struct backup *b)
{
    if (!b)
        return;
    undo(b);
    job_drop(b->job);
}

struct job *co_backup_start(const struct backup_opts *o, struct err *err)
{
    struct backup *b = co_backup_prepare(o, err);

    if (!b)
        return NULL;
    if (!co_shut_doors_by(o->source, loop_now() + INSTANT_TIMEOUT_NS, err)) {
        backup_drop(b);
        return NULL;
    }
    backup_begin(b);
    open_doors(o->source);
    return backup_start(b);
}
