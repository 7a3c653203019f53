/* SPDX-License-Identifier: Apache-2.0
 *
 * Events: what they carry, and their way from the loop where something happens
 * to every monitor. Messages of one loop stay in order because posts do.
 * Members: QEMU qapi/job.json, block-core.json, block-export.json, run-state.json.
 */
#include "base/mem.h"
#include "qmp/impl.h"
#include <math.h>
#include <time.h>

/* ---- their types -------------------------------------------------------------------- */

const struct schema_type job_type_enum = {
    .name = "JobType", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "commit", "stream", "mirror", "backup", "create", "amend",
                                     "snapshot-load", "snapshot-save", "snapshot-delete", NULL },
};
const struct schema_type job_status_enum = {
    .name = "JobStatus", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "undefined", "created", "running", "paused", "ready",
                                     "standby", "waiting", "pending", "aborting", "concluded",
                                     "null", NULL },
};
static const struct schema_type io_operation_enum = {
    .name = "IoOperationType", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "read", "write", NULL },
};
static const struct schema_type error_action_enum = {
    .name = "BlockErrorAction", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "ignore", "report", "stop", NULL },
};
static const struct schema_type shutdown_cause_enum = {
    .name = "ShutdownCause", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "host-qmp-quit", "host-signal", NULL },
};

struct status_change {
    char *id;
    int status;
};
static const struct schema_type status_change_type = {
    .name = "q_obj_JOB_STATUS_CHANGE-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct status_change),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct status_change, id, "id", &schema_str, NULL),
        SCHEMA_REQUIRED(struct status_change, status, "status", &job_status_enum, NULL),
        SCHEMA_END,
    },
};

#define GL(field, json) SCHEMA_REQUIRED(struct guest_latency, field, json, &schema_int, NULL)
const struct schema_type guest_latency_type = {
    .name = "JobGuestLatency", .kind = SCHEMA_STRUCT, .size = sizeof(struct guest_latency),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct guest_latency, factor, "factor", &schema_number, NULL),
        SCHEMA_OPTIONAL(struct guest_latency, slowdown, "slowdown", &schema_number, NULL),
        SCHEMA_REQUIRED(struct guest_latency, binds, "holding-back", &schema_bool, NULL),
        GL(writes, "writes"), GL(delayed, "delayed"), GL(p50, "p50-ns"), GL(p99, "p99-ns"),
        GL(p999, "p999-ns"), GL(max, "max-ns"), SCHEMA_END,
    },
};

struct guest_latency guest_latency_of(const struct job_info *info)
{
    const struct histogram_summary *s = &info->guest.added;

    return (struct guest_latency){
        .factor = info->guest.factor,
        .has_slowdown = info->guest.slowdown > 0,
        .slowdown = round(info->guest.slowdown * 1000) / 1000,
        .binds = info->guest.binds,
        .writes = (int64_t)s->count,
        .delayed = (int64_t)s->above_zero,
        .p50 = (int64_t)s->p50,
        .p99 = (int64_t)s->p99,
        .p999 = (int64_t)s->p999,
        .max = (int64_t)s->max,
    };
}

struct block_job_end {
    int type;
    char *device;
    int64_t len, offset, speed;
    bool has_guest;
    struct guest_latency guest;
    bool has_error;
    char *error;
};
#define BLOCK_JOB_END_MEMBERS \
    SCHEMA_REQUIRED(struct block_job_end, type, "type", &job_type_enum, NULL), \
    SCHEMA_REQUIRED(struct block_job_end, device, "device", &schema_str, NULL), \
    SCHEMA_REQUIRED(struct block_job_end, len, "len", &schema_int, NULL), \
    SCHEMA_REQUIRED(struct block_job_end, offset, "offset", &schema_int, NULL), \
    SCHEMA_REQUIRED(struct block_job_end, speed, "speed", &schema_int, NULL), \
    SCHEMA_OPTIONAL(struct block_job_end, guest, "guest-latency", &guest_latency_type, NULL)
static const struct schema_type block_job_end_type = {
    .name = "q_obj_BLOCK_JOB_CANCELLED-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct block_job_end),
    .members = (const struct schema_member[]){ BLOCK_JOB_END_MEMBERS, SCHEMA_END },
};
static const struct schema_type block_job_completed_type = {
    .name = "q_obj_BLOCK_JOB_COMPLETED-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct block_job_end),
    .members = (const struct schema_member[]){
        BLOCK_JOB_END_MEMBERS,
        SCHEMA_OPTIONAL(struct block_job_end, error, "error", &schema_str, NULL),
        SCHEMA_END,
    },
};

struct block_job_error {
    char *device;
    int operation, action;
};
static const struct schema_type block_job_error_type = {
    .name = "q_obj_BLOCK_JOB_ERROR-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct block_job_error),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct block_job_error, device, "device", &schema_str, NULL),
        SCHEMA_REQUIRED(struct block_job_error, operation, "operation", &io_operation_enum, NULL),
        SCHEMA_REQUIRED(struct block_job_error, action, "action", &error_action_enum, NULL),
        SCHEMA_END,
    },
};

struct block_job_pending {
    int type;
    char *id;
};
static const struct schema_type block_job_pending_type = {
    .name = "q_obj_BLOCK_JOB_PENDING-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct block_job_pending),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct block_job_pending, type, "type", &job_type_enum, NULL),
        SCHEMA_REQUIRED(struct block_job_pending, id, "id", &schema_str, NULL),
        SCHEMA_END,
    },
};

struct image_corrupted {
    char *device, *node_name, *msg;
    bool has_node_name, has_offset, has_size, fatal;
    int64_t offset, size;
};
static const struct schema_type image_corrupted_type = {
    .name = "q_obj_BLOCK_IMAGE_CORRUPTED-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct image_corrupted),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct image_corrupted, device, "device", &schema_str, NULL),
        SCHEMA_OPTIONAL(struct image_corrupted, node_name, "node-name", &schema_str, NULL),
        SCHEMA_REQUIRED(struct image_corrupted, msg, "msg", &schema_str, NULL),
        SCHEMA_OPTIONAL(struct image_corrupted, offset, "offset", &schema_int, NULL),
        SCHEMA_OPTIONAL(struct image_corrupted, size, "size", &schema_int, NULL),
        SCHEMA_REQUIRED(struct image_corrupted, fatal, "fatal", &schema_bool, NULL),
        SCHEMA_END,
    },
};

struct bitmap_spoiled {
    char *node_name, *name, *reason;
};
static const struct schema_type bitmap_spoiled_type = {
    .name = "DirtyBitmapInconsistentEvent", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct bitmap_spoiled),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct bitmap_spoiled, node_name, "node-name", &schema_str, NULL),
        SCHEMA_REQUIRED(struct bitmap_spoiled, name, "name", &schema_str, NULL),
        SCHEMA_REQUIRED(struct bitmap_spoiled, reason, "reason", &schema_str, NULL),
        SCHEMA_END,
    },
};

struct export_deleted {
    char *id;
};
static const struct schema_type export_deleted_type = {
    .name = "q_obj_BLOCK_EXPORT_DELETED-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct export_deleted),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct export_deleted, id, "id", &schema_str, NULL),
        SCHEMA_END,
    },
};

struct shutdown {
    bool guest;
    int reason;
};
static const struct schema_type shutdown_type = {
    .name = "q_obj_SHUTDOWN-arg", .kind = SCHEMA_STRUCT, .size = sizeof(struct shutdown),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct shutdown, guest, "guest", &schema_bool, NULL),
        SCHEMA_REQUIRED(struct shutdown, reason, "reason", &shutdown_cause_enum, NULL),
        SCHEMA_END,
    },
};

const struct qmp_event qmp_events[] = {
    { "BLOCK_DIRTY_BITMAP_INCONSISTENT", &bitmap_spoiled_type },
    { "BLOCK_EXPORT_DELETED", &export_deleted_type },
    { "BLOCK_IMAGE_CORRUPTED", &image_corrupted_type },
    { "BLOCK_JOB_CANCELLED", &block_job_end_type },
    { "BLOCK_JOB_COMPLETED", &block_job_completed_type },
    { "BLOCK_JOB_ERROR", &block_job_error_type },
    { "BLOCK_JOB_PENDING", &block_job_pending_type },
    { "BLOCK_JOB_READY", &block_job_end_type },
    { "JOB_STATUS_CHANGE", &status_change_type },
    { "SHUTDOWN", &shutdown_type },
    { 0 },
};

/* ---- sending ------------------------------------------------------------------------ */

static json_t *event_new(const char *name, json_t *data)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);

    json_t *event = json_pack("{s:{s:I,s:I},s:s}", "timestamp", "seconds", (json_int_t)now.tv_sec,
                              "microseconds", (json_int_t)(now.tv_nsec / 1000), "event", name);

    if (data)
        json_object_set_new(event, "data", data);
    return event;
}

void qmp_emit(struct qmp *q, const char *name, json_t *data)
{
    CLEANUP(json_decref) json_t *event = event_new(name, data);

    assert(loop_current() == q->loop);
    qmp_monitors_send(q, event);
}

/* An event on its way to the main loop. */
struct posted {
    struct qmp *qmp;
    json_t *event;
};

static void deliver(void *arg)
{
    struct posted *p = arg;

    qmp_monitors_send(p->qmp, p->event);
    json_decref(p->event);
    free(p);
}

void qmp_post_event(struct qmp *q, const char *name, json_t *data)
{
    struct posted *p = xnew(struct posted);

    p->qmp = q;
    p->event = event_new(name, data);
    loop_post(q->loop, deliver, p);
}

void qmp_emit_shutdown(struct qmp *q, enum qmp_shutdown_cause cause)
{
    struct shutdown data = { .reason = (int)cause };

    if (q->shutdown_told)
        return;
    q->shutdown_told = true;
    qmp_emit(q, "SHUTDOWN", schema_encode(&shutdown_type, &data));
}

void qmp_emit_export_deleted(struct qmp *q, const char *id)
{
    struct export_deleted data = { .id = (char *)id };

    qmp_emit(q, "BLOCK_EXPORT_DELETED", schema_encode(&export_deleted_type, &data));
}

/* Nodes have no device names here. Always fatal: the driver has stopped writing. */
void qmp_image_corrupted(void *arg, const struct node *n, const struct node_corruption *c)
{
    struct image_corrupted data = {
        .device = (char *)"",
        .has_node_name = true, .node_name = (char *)node_name(n),
        .msg = (char *)c->what,
        .has_offset = true, .offset = (int64_t)c->off,
        .has_size = true, .size = (int64_t)c->len,
        .fatal = true,
    };

    qmp_post_event(arg, "BLOCK_IMAGE_CORRUPTED", schema_encode(&image_corrupted_type, &data));
}

void qmp_bitmap_spoiled(void *arg, const struct dirty_bitmap *bm)
{
    struct bitmap_spoiled data = {
        .node_name = (char *)node_name(dirty_bitmap_node(bm)),
        .name = (char *)dirty_bitmap_name(bm),
        .reason = (char *)dirty_bitmap_inconsistent(bm),
    };

    qmp_post_event(arg, "BLOCK_DIRTY_BITMAP_INCONSISTENT",
                   schema_encode(&bitmap_spoiled_type, &data));
}

/* ---- jobs ---------------------------------------------------------------------------- */

static void on_status(void *arg, struct job *job, enum job_status status)
{
    struct status_change data = { .id = (char *)job_id(job), .status = (int)status };

    qmp_post_event(arg, "JOB_STATUS_CHANGE", schema_encode(&status_change_type, &data));
}

/* What BLOCK_JOB_COMPLETED, _CANCELLED and _READY tell. */
static void post_end(struct qmp *q, const char *name, const struct schema_type *type,
                     struct job *job)
{
    struct job_info info;

    job_query(job, &info);

    struct block_job_end data = {
        .type = schema_enum_index(&job_type_enum, info.type),
        .device = info.id,
        .len = (int64_t)info.total,
        .offset = (int64_t)info.current,
        .speed = (int64_t)info.speed,
        .has_guest = info.has_guest,
        .guest = guest_latency_of(&info),
        .has_error = info.ret < 0,
        .error = info.error,
    };

    qmp_post_event(q, name, schema_encode(type, &data));
}

static void on_completed(void *arg, struct job *job)
{
    post_end(arg, "BLOCK_JOB_COMPLETED", &block_job_completed_type, job);
}

static void on_cancelled(void *arg, struct job *job)
{
    post_end(arg, "BLOCK_JOB_CANCELLED", &block_job_end_type, job);
}

static void on_ready(void *arg, struct job *job)
{
    post_end(arg, "BLOCK_JOB_READY", &block_job_end_type, job);
}

static void on_pending(void *arg, struct job *job)
{
    struct job_info info;

    job_query(job, &info);

    struct block_job_pending data = {
        .type = schema_enum_index(&job_type_enum, info.type),
        .id = info.id,
    };

    qmp_post_event(arg, "BLOCK_JOB_PENDING", schema_encode(&block_job_pending_type, &data));
}

static void on_error(void *arg, struct job *job, enum job_op op, enum job_action action, int err)
{
    struct block_job_error data = {
        .device = (char *)job_id(job),
        .operation = (int)op,
        .action = (int)action,
    };

    qmp_post_event(arg, "BLOCK_JOB_ERROR", schema_encode(&block_job_error_type, &data));
}

const struct job_events qmp_job_events = {
    .status_change = on_status,
    .error = on_error,
    .ready = on_ready,
    .pending = on_pending,
    .completed = on_completed,
    .cancelled = on_cancelled,
};
