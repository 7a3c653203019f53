/* SPDX-License-Identifier: Apache-2.0
 *
 * drive-backup and blockdev-backup: QEMU qapi/block-core.json (BackupCommon,
 * DriveBackup, BlockdevBackup), and what Stillpoint adds. All that can be found
 * wrong is found before the target is touched.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "block/keeper.h"
#include "job/backup.h"
#include "qmp/backup_target.h"
#include "qmp/impl.h"
#include "qmp/transaction.h"
#include <limits.h>

/* ---- arguments ---------------------------------------------------------------------- */

/* enum backup_sync */
static const struct schema_type sync_enum = {
    .name = "MirrorSyncMode", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "top", "full", "none", "incremental", "bitmap", NULL },
};
/* enum backup_bitmap_mode */
static const struct schema_type bitmap_mode_enum = {
    .name = "BitmapSyncMode", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "on-success", "never", "always", NULL },
};
static const struct schema_type on_error_enum = {
    .name = "BlockdevOnError", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "report", "ignore", "enospc", "stop", "auto", NULL },
};
enum { MODE_EXISTING, MODE_ABSOLUTE_PATHS };
static const struct schema_type mode_enum = {
    .name = "NewImageMode", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "existing", "absolute-paths", NULL },
};

struct perf_args {
    bool has_use_copy_range, use_copy_range, has_max_workers, has_max_chunk, has_min_cluster_size;
    int64_t max_workers, max_chunk;
    uint64_t min_cluster_size;
};
static const struct schema_type perf_args_type = {
    .name = "BackupPerf", .kind = SCHEMA_STRUCT, .size = sizeof(struct perf_args),
    .members = (const struct schema_member[]){
        SCHEMA_OPTIONAL(struct perf_args, use_copy_range, "use-copy-range", &schema_bool,
                        "a raw copy may share the source's storage (reflink) where the file "
                        "system can; on unless given"),
        SCHEMA_OPTIONAL(struct perf_args, max_workers, "max-workers", &schema_int,
                        "copies at the same time"),
        SCHEMA_OPTIONAL(struct perf_args, max_chunk, "max-chunk", &schema_int,
                        "bytes of the longest copy; 0: chosen"),
        SCHEMA_OPTIONAL(struct perf_args, min_cluster_size, "min-cluster-size", &schema_size,
                        "no effect: guests' writes are captured in units of 4 KiB"),
        SCHEMA_END,
    },
};

struct new_bitmap_args {
    char *name;
    bool has_granularity, has_persistent, persistent;
    uint32_t granularity;
};
static const struct schema_type new_bitmap_args_type = {
    .name = "BackupNewBitmap", .kind = SCHEMA_STRUCT, .size = sizeof(struct new_bitmap_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct new_bitmap_args, name, "name", &schema_str, "its name"),
        SCHEMA_OPTIONAL(struct new_bitmap_args, granularity, "granularity", &schema_uint32,
                        "bytes a bit; the cluster size unless given"),
        SCHEMA_OPTIONAL(struct new_bitmap_args, persistent, "persistent", &schema_bool,
                        "stays when the node is closed"),
        SCHEMA_END,
    },
};

struct backup_args {
    /* BackupCommon */
    bool has_job_id, has_speed, has_bitmap, has_bitmap_mode, has_compress, has_filter_node_name;
    char *job_id, *device, *bitmap, *filter_node_name;
    int sync, bitmap_mode, on_source_error, on_target_error, on_cbw_error;
    int64_t speed;
    bool has_on_source_error, has_on_target_error, has_on_cbw_error;
    bool compress, has_auto_finalize, auto_finalize, has_auto_dismiss, auto_dismiss;
    bool has_discard_source, discard_source, has_x_perf;
    struct perf_args x_perf;

    /* Stillpoint's own */
    bool has_scratch_dir, has_scratch_memory, has_scratch_limit, has_cbw_timeout;
    char *scratch_dir;
    uint64_t scratch_memory, scratch_limit;
    uint32_t cbw_timeout;        /* seconds */
    bool has_guest_latency;
    double guest_latency;
    bool has_new_bitmap;
    struct new_bitmap_args new_bitmap;

    /* DriveBackup: a file; BlockdevBackup: a node */
    char *target, *format, *backing_file, *backing_fmt;
    bool has_format, has_mode, has_backing_file, has_backing_fmt;
    int mode;
};
#define BA_REQ(field, json, type, doc) SCHEMA_REQUIRED(struct backup_args, field, json, type, doc)
#define BA_OPT(field, json, type, doc) SCHEMA_OPTIONAL(struct backup_args, field, json, type, doc)
#define COMMON_MEMBERS \
    BA_OPT(job_id, "job-id", &schema_str, "a name for the job; the device's unless given"), \
    BA_REQ(device, "device", &schema_str, "the node to back up, or the id of an export of it"), \
    BA_REQ(sync, "sync", &sync_enum, "what the target gets"), \
    BA_OPT(speed, "speed", &schema_int, "bytes a second; 0: no limit"), \
    BA_OPT(bitmap, "bitmap", &schema_str, \
           "what is dirty in it is copied; with full and top: where to record anew"), \
    BA_OPT(bitmap_mode, "bitmap-mode", &bitmap_mode_enum, \
           "when what was copied is no longer dirty"), \
    BA_OPT(new_bitmap, "new-bitmap", &new_bitmap_args_type, \
           "for full and top: a bitmap to be made, which records from the instant on; not " \
           "there after a failure"), \
    BA_OPT(compress, "compress", &schema_bool, \
           "store data compressed, if the target's format can"), \
    BA_OPT(on_source_error, "on-source-error", &on_error_enum, "when reading fails"), \
    BA_OPT(on_target_error, "on-target-error", &on_error_enum, "when writing fails"), \
    BA_OPT(on_cbw_error, "on-cbw-error", &on_cbw_error_type, \
           "when old data cannot be kept; break-snapshot unless given"), \
    BA_OPT(auto_finalize, "auto-finalize", &schema_bool, "else wait for job-finalize"), \
    BA_OPT(auto_dismiss, "auto-dismiss", &schema_bool, "else stay until job-dismiss"), \
    BA_OPT(filter_node_name, "filter-node-name", &schema_str, "no effect: there is no filter"), \
    BA_OPT(discard_source, "discard-source", &schema_bool, "not supported"), \
    BA_OPT(x_perf, "x-perf", &perf_args_type, "how to copy"), \
    BA_OPT(scratch_dir, "scratch-dir", &schema_str, "where old data waits for the target"), \
    BA_OPT(scratch_memory, "scratch-memory", &schema_size, "of it so much in memory, bytes"), \
    BA_OPT(scratch_limit, "scratch-limit", &schema_size, "of it at most, bytes; 0: no limit"), \
    BA_OPT(cbw_timeout, "cbw-timeout", &schema_uint32, \
           "seconds that a guest's write may wait; 0: no limit"), \
    BA_OPT(guest_latency, "guest-latency", &schema_number, \
           "copy as long as guests' requests take so many times at most what they take alone; " \
           "1.5 unless given; 0: copy as fast as possible")

static const struct schema_type drive_backup_args = {
    .name = "DriveBackup", .kind = SCHEMA_STRUCT, .size = sizeof(struct backup_args),
    .members = (const struct schema_member[]){
        COMMON_MEMBERS,
        BA_REQ(target, "target", &schema_str, "file, block device or nbd URI to write to"),
        BA_OPT(format, "format", &schema_str, "of the target; the source's unless given"),
        BA_OPT(mode, "mode", &mode_enum, "make the target (absolute-paths), or is it there"),
        BA_OPT(backing_file, "backing-file", &schema_str,
               "for incremental and bitmap: what the target that is made stands on"),
        BA_OPT(backing_fmt, "backing-fmt", &schema_str, "its format"),
        SCHEMA_END,
    },
};
static const struct schema_type blockdev_backup_args = {
    .name = "BlockdevBackup", .kind = SCHEMA_STRUCT, .size = sizeof(struct backup_args),
    .members = (const struct schema_member[]){
        COMMON_MEMBERS,
        BA_REQ(target, "target", &schema_str, "the node to write to"),
        SCHEMA_END,
    },
};

/* ---- what they mean --------------------------------------------------------------------- */

/* What QEMU has and this program has not; better told than left out silently. */
static bool check_supported(const struct backup_args *a, struct err *err)
{
    bool by_bitmap = a->sync == BACKUP_INCREMENTAL || a->sync == BACKUP_BITMAP;

    if (a->has_backing_file && (!by_bitmap || (a->has_mode && a->mode == MODE_EXISTING)))
        return err_set(err, -EINVAL, "Parameter 'backing-file' is for sync modes 'incremental' and "
                       "'bitmap', and for a target that is made");
    if (a->has_backing_file != a->has_backing_fmt)
        return err_set(err, -EINVAL, "Parameters 'backing-file' and 'backing-fmt' go together");
    if (a->discard_source)
        return err_set(err, -ENOTSUP, "Discarding the source of a backup is not supported");
    return true;
}

static bool check_numbers(const struct backup_args *a, struct err *err)
{
    if (a->speed < 0)
        return err_set(err, -EINVAL, "Parameter 'speed' expects a non-negative value");
    if (a->has_guest_latency && !backup_guest_latency_is_good(a->guest_latency))
        return err_set(err, -EINVAL, BACKUP_BAD_GUEST_LATENCY);
    if (a->x_perf.has_max_workers &&
        (a->x_perf.max_workers < 1 || a->x_perf.max_workers > INT_MAX))
        return err_set(err, -EINVAL, "max-workers must be between 1 and %d", INT_MAX);
    if (a->x_perf.max_chunk < 0)
        return err_set(err, -EINVAL, "max-chunk must be zero (which means no limit) or positive");
    if (a->x_perf.min_cluster_size && !is_power_of_2(a->x_perf.min_cluster_size))
        return err_set(err, -EINVAL, "min-cluster-size needs to be a power of 2");
    return true;
}

/* So that a target is not made for a job that cannot be. */
static bool check_job_id(const char *id, struct err *err)
{
    CLEANUP(job_unref) struct job *other = job_find(id);

    if (!job_id_wellformed(id))
        return err_set(err, -EINVAL, "Invalid job ID '%s'", id);
    if (other)
        return err_set(err, -EEXIST, "Job ID '%s' already in use", id);
    return true;
}

static const char *job_name(const struct backup_args *a)
{
    return a->has_job_id ? a->job_id : a->device;
}

static void fill_opts(struct qmp *q, const struct backup_args *a, struct backup_opts *o)
{
    *o = (struct backup_opts)BACKUP_OPTS_DEFAULT;
    o->job_id = job_name(a);
    o->sync = (enum backup_sync)a->sync;
    o->bitmap = a->bitmap;
    o->has_bitmap_mode = a->has_bitmap_mode;
    o->bitmap_mode = (enum backup_bitmap_mode)a->bitmap_mode;
    o->new_bitmap = (struct dirty_bitmap_opts){
        .name = a->new_bitmap.name,
        .granularity = a->new_bitmap.granularity,
        .persistent = a->new_bitmap.persistent,
    };
    o->compress = a->compress;
    o->speed = (uint64_t)a->speed;
    o->on_source_error = (enum backup_on_error)a->on_source_error;
    o->on_target_error = (enum backup_on_error)a->on_target_error;
    o->auto_finalize = !a->has_auto_finalize || a->auto_finalize;
    o->auto_dismiss = !a->has_auto_dismiss || a->auto_dismiss;
    if (a->x_perf.has_use_copy_range)
        o->reflink = a->x_perf.use_copy_range;
    if (a->x_perf.has_max_workers)
        o->max_workers = (uint32_t)MIN(a->x_perf.max_workers, (int64_t)LIMIT_BACKUP_WORKERS);
    o->max_chunk = (uint64_t)a->x_perf.max_chunk;
    if (q->scratch_dir)
        o->view.scratch_dir = q->scratch_dir;
    if (a->has_scratch_dir)
        o->view.scratch_dir = a->scratch_dir;
    if (a->has_scratch_memory)
        o->view.scratch_memory = a->scratch_memory;
    o->view.scratch_limit = a->scratch_limit;
    if (a->has_cbw_timeout)
        o->view.cbw_timeout_ns = a->cbw_timeout * NSEC_PER_SEC;
    if (a->has_on_cbw_error)
        o->view.on_cbw_error = (enum view_on_cbw_error)a->on_cbw_error;
    if (a->has_guest_latency)
        o->guest_latency = a->guest_latency;
    o->events = &qmp_job_events;
    o->events_arg = q;
}

/* ---- what both do -------------------------------------------------------------------------- */

struct backup_state {
    struct backup_opts opts;
    struct backup *backup;
    struct backup_target file;     /* drive-backup */
    struct node *target;           /* blockdev-backup: a reference */
    struct err *err;               /* of co_prepare */
};

/* The source, and everything checked that needs neither loop nor target. */
static bool prepare(struct action *a, struct err *err)
{
    const struct backup_args *args = a->args;
    struct backup_state *s = a->state;

    if (!check_supported(args, err) || !check_numbers(args, err) ||
        !check_job_id(job_name(args), err))
        return false;
    fill_opts(a->call->qmp, args, &s->opts);
    s->opts.txn = a->group;
    s->err = err;
    a->disk = qmp_find_device(a->call->qmp, args->device, err);
    return a->disk != NULL;
}

/* The bitmap, if an earlier action of the same transaction has made or changed it: the
 * backup may have it. */
static struct dirty_bitmap *take_bitmap(struct action *a)
{
    const struct backup_args *args = a->args;
    struct dirty_bitmap *bm = args->bitmap ? dirty_bitmap_find(a->disk, args->bitmap, NULL) : NULL;

    return bm && action_yield_bitmap(a, bm) ? bm : NULL;
}

static bool check_bitmap(struct action *a)
{
    struct backup_state *s = a->state;
    struct dirty_bitmap *bm = take_bitmap(a);
    bool ok = backup_check_bitmap(&s->opts, s->err);

    return ok && (!bm || action_hold_bitmap(a, bm, 0, s->err));
}

/* On the loop of both. */
static bool co_prepare_job(struct action *a, struct node *target)
{
    struct backup_state *s = a->state;

    s->opts.source = a->disk;
    s->opts.target = target;
    (void)take_bitmap(a);
    if (s->opts.new_bitmap.name && s->opts.new_bitmap.persistent &&
        !co_dirty_keep(a->disk, s->err))
        return false;
    s->backup = co_backup_prepare(&s->opts, s->err);
    if (s->backup)
        a->job = backup_job(s->backup);
    return s->backup != NULL;
}

static void backup_cut(struct action *a)
{
    struct backup_state *s = a->state;

    backup_begin(s->backup);
}

static void backup_commit(struct action *a)
{
    struct backup_state *s = a->state;

    job_unref(backup_start(s->backup));
}

/* A new bitmap is where a crash does not reach it before that is answered; or else it is
 * inconsistent, and was logged. */
static int co_settle_there(void *arg)
{
    struct action *a = arg;
    struct backup_state *s = a->state;
    struct err ignored;

    if (a->committed && s->opts.new_bitmap.name)
        (void)!co_dirty_settle(a->disk, &ignored);
    return 0;
}

static int drop_there(void *arg)
{
    struct backup_state *s = arg;

    backup_drop(s->backup);
    return 0;
}

static void co_backup_abort(struct action *a)
{
    (void)co_node_call(a->disk, drop_there, a->state);
}

/* ---- drive-backup ------------------------------------------------------------------------ */

static int co_drive_prepare_there(void *arg)
{
    struct action *a = arg;
    struct backup_state *s = a->state;
    const struct backup_args *args = a->args;
    struct backup_target_opts o = {
        .filename = args->target,
        .format = args->format,
        .existing = args->has_mode && args->mode == MODE_EXISTING,
        .sync = s->opts.sync,
        .backing_file = args->backing_file,
        .backing_format = args->backing_fmt,
    };

    s->opts.source = a->disk;
    if (!check_bitmap(a) ||
        !co_backup_target_open(a->disk, &o, &s->file, s->err))
        return -EINVAL;
    s->opts.target_is_zero = s->file.is_zero;
    if (co_prepare_job(a, s->file.node))
        return 0;
    co_backup_target_done(&s->file, false);
    return -EINVAL;
}

static bool co_drive_prepare(struct action *a, struct err *err)
{
    if (prepare(a, err) && co_node_call(a->disk, co_drive_prepare_there, a) == 0)
        return true;
    node_unref(MOVE(a->disk));
    return false;
}

static int co_drive_clean_there(void *arg)
{
    struct action *a = arg;
    struct backup_state *s = a->state;

    co_backup_target_done(&s->file, a->committed);
    return co_settle_there(a);
}

static void co_drive_clean(struct action *a)
{
    (void)co_node_call(a->disk, co_drive_clean_there, a);
}

/* ---- blockdev-backup ----------------------------------------------------------------------- */

static int co_blockdev_prepare_there(void *arg)
{
    struct action *a = arg;
    struct backup_state *s = a->state;

    if (node_loop(s->target) != loop_current()) {
        err_set(s->err, -EAGAIN, "Node '%s' was moved to another thread meanwhile: try again",
                node_name(s->target));
        return -EAGAIN;
    }
    return co_prepare_job(a, s->target) ? 0 : -EINVAL;
}

/* The target comes to the source, or the source to the target. */
static bool co_join_loops(struct node *source, struct node *target, struct err *err)
{
    struct err why;

    if (node_loop(target) == node_loop(source) ||
        co_node_move(target, node_loop(source), &why) ||
        co_node_move(source, node_loop(target), NULL))
        return true;
    return err_set(err, -EBUSY, "Target '%s' cannot be moved to the thread of '%s': %s",
                   node_name(target), node_name(source), why.text);
}

static bool co_blockdev_prepare(struct action *a, struct err *err)
{
    const struct backup_args *args = a->args;
    struct backup_state *s = a->state;
    bool ok = prepare(a, err);

    if (ok) {
        s->target = node_find(args->target, NULL);
        ok = s->target || err_set(err, -ENODEV, "Cannot find device='%s' nor node-name='%s'",
                                  args->target, args->target);
    }
    if (ok && co_join_loops(a->disk, s->target, err) &&
        co_node_call(a->disk, co_blockdev_prepare_there, a) == 0)
        return true;
    node_unref(MOVE(s->target));
    node_unref(MOVE(a->disk));
    return false;
}

static void co_blockdev_clean(struct action *a)
{
    struct backup_state *s = a->state;

    if (a->committed)
        json_object_set_new(a->call->qmp->targets, node_name(s->target), json_true());
    node_unref(MOVE(s->target));
    (void)co_node_call(a->disk, co_settle_there, a);
}

/* ---- the commands ---------------------------------------------------------------------------- */

static const struct schema_type drive_backup_wrapper =
    ACTION_WRAPPER("DriveBackupWrapper", &drive_backup_args, sizeof(struct backup_args));
static const struct schema_type blockdev_backup_wrapper =
    ACTION_WRAPPER("BlockdevBackupWrapper", &blockdev_backup_args, sizeof(struct backup_args));

enum { DRIVE_BACKUP, BLOCKDEV_BACKUP };
const struct action_ops qmp_backup_actions[] = {
    [DRIVE_BACKUP] = {
        .name = "drive-backup", .args = &drive_backup_args, .wrapper = &drive_backup_wrapper,
        .state_size = sizeof(struct backup_state), .may_group = true,
        .co_prepare = co_drive_prepare, .cut = backup_cut, .commit = backup_commit,
        .co_abort = co_backup_abort, .co_clean = co_drive_clean,
    },
    [BLOCKDEV_BACKUP] = {
        .name = "blockdev-backup", .args = &blockdev_backup_args,
        .wrapper = &blockdev_backup_wrapper,
        .state_size = sizeof(struct backup_state), .may_group = true,
        .co_prepare = co_blockdev_prepare, .cut = backup_cut, .commit = backup_commit,
        .co_abort = co_backup_abort, .co_clean = co_blockdev_clean,
    },
    { 0 },
};

static bool co_drive_backup(const struct qmp_call *call, const void *args, void *ret,
                            struct err *err)
{
    return co_transaction_single(call, &qmp_backup_actions[DRIVE_BACKUP], args, ret, err);
}

static bool co_blockdev_backup(const struct qmp_call *call, const void *args, void *ret,
                               struct err *err)
{
    return co_transaction_single(call, &qmp_backup_actions[BLOCKDEV_BACKUP], args, ret, err);
}

const struct qmp_command qmp_backup_commands[] = {
    { .name = "drive-backup", .doc = "back up a node to a file, device or NBD export",
      .args = &drive_backup_args, .co_run = co_drive_backup },
    { .name = "blockdev-backup", .doc = "back up a node to another node",
      .args = &blockdev_backup_args, .co_run = co_blockdev_backup },
    { 0 },
};
