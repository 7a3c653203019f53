/* SPDX-License-Identifier: Apache-2.0
 *
 * Watching and steering jobs: the verbs of QEMU's qapi/job.json and their older
 * twins of qapi/block-core.json, which call a job's id "device" and have an
 * error class of their own for one that is not there.
 */
#include "base/mem.h"
#include "qmp/impl.h"

/* ---- verbs ------------------------------------------------------------------------ */

/* There is no such job: says so, in the words of the command's kind. */
typedef bool no_such(const char *id, struct err *err);

static bool no_job(const char *id, struct err *err)
{
    return err_set(err, -ENOENT, "Job not found");
}

static bool no_block_job(const char *id, struct err *err)
{
    return err_set_class(err, ERR_DEVICE_NOT_ACTIVE, -ENOENT, "Block job '%s' not found", id);
}

/* What is to be done to a job, on its loop. */
struct order {
    bool (*verb)(struct job *job, const struct order *o, struct err *err);
    no_such *none;
    bool force;              /* cancel */
    uint64_t speed;          /* set-speed */
    double guest_latency;    /* change */
    struct job *job;
    struct err *err;
};

static int give_order(void *arg)
{
    const struct order *o = arg;
    struct job_info info;

    /* It may have gone while we were on our way. */
    job_query(o->job, &info);
    if (info.status == JOB_NULL) {
        o->none(info.id, o->err);
        return -ENOENT;
    }
    return o->verb(o->job, o, o->err) ? 0 : -EINVAL;
}

static bool co_order(const char *id, struct order o, struct err *err)
{
    CLEANUP(job_unref) struct job *job = job_find(id);

    if (!job)
        return o.none(id, err);
    o.job = job;
    o.err = err;
    return co_loop_call(job_loop(job), give_order, &o) == 0;
}

static bool do_cancel(struct job *job, const struct order *o, struct err *err)
{
    return job_cancel(job, o->force, err);
}

static bool do_pause(struct job *job, const struct order *o, struct err *err)
{
    return job_user_pause(job, err);
}

static bool do_resume(struct job *job, const struct order *o, struct err *err)
{
    return job_user_resume(job, err);
}

static bool do_complete(struct job *job, const struct order *o, struct err *err)
{
    return job_complete(job, err);
}

static bool do_finalize(struct job *job, const struct order *o, struct err *err)
{
    return job_finalize(job, err);
}

static bool do_dismiss(struct job *job, const struct order *o, struct err *err)
{
    return job_dismiss(job, err);
}

static bool do_set_speed(struct job *job, const struct order *o, struct err *err)
{
    if (o->speed > INT64_MAX)        /* below zero as an argument */
        return err_set(err, -EINVAL, "Parameter 'speed' expects a non-negative value");
    return job_set_speed(job, o->speed, err);
}

static bool do_change(struct job *job, const struct order *o, struct err *err)
{
    return job_set_guest_latency(job, o->guest_latency, err);
}

/* ---- the commands of the verbs ------------------------------------------------------ */

struct id_args {
    char *id;
};
static const struct schema_type id_args_type = {
    .name = "q_obj_job-id-arg", .kind = SCHEMA_STRUCT, .size = sizeof(struct id_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct id_args, id, "id", &schema_str, "the job"),
        SCHEMA_END,
    },
};

struct device_args {
    char *device;
};
static const struct schema_type device_args_type = {
    .name = "q_obj_block-job-arg", .kind = SCHEMA_STRUCT, .size = sizeof(struct device_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct device_args, device, "device", &schema_str, "the job"),
        SCHEMA_END,
    },
};

struct cancel_args {
    char *device;
    bool has_force, force;
};
static const struct schema_type cancel_args_type = {
    .name = "q_obj_block-job-cancel-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct cancel_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct cancel_args, device, "device", &schema_str, "the job"),
        SCHEMA_OPTIONAL(struct cancel_args, force, "force", &schema_bool,
                        "also if it is paused, and without finishing what it has begun"),
        SCHEMA_END,
    },
};

struct set_speed_args {
    char *device;
    int64_t speed;
};
static const struct schema_type set_speed_args_type = {
    .name = "q_obj_block-job-set-speed-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct set_speed_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct set_speed_args, device, "device", &schema_str, "the job"),
        SCHEMA_REQUIRED(struct set_speed_args, speed, "speed", &schema_int,
                        "bytes a second; 0: no limit"),
        SCHEMA_END,
    },
};

/* QEMU's BlockJobChangeOptions, for the jobs that there are here. */
struct change_args {
    char *id;
    int type;
    double guest_latency;
};
static const struct schema_type change_args_type = {
    .name = "BlockJobChangeOptions", .kind = SCHEMA_STRUCT, .size = sizeof(struct change_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct change_args, id, "id", &schema_str, "the job"),
        SCHEMA_REQUIRED(struct change_args, type, "type", &job_type_enum, "backup"),
        SCHEMA_REQUIRED(struct change_args, guest_latency, "guest-latency", &schema_number,
                        "its latency budget; 0: none"),
        SCHEMA_END,
    },
};

/* A command whose job is named by member @member of @args_t. */
#define VERB_COMMAND(fn, args_t, member, no_such_job, do_verb) \
    static bool fn(const struct qmp_call *call, const void *args, void *ret, struct err *err) \
    { \
        const struct args_t *a = args; \
        return co_order(a->member, (struct order){ .verb = do_verb, .none = no_such_job }, err); \
    }
VERB_COMMAND(co_job_pause, id_args, id, no_job, do_pause)
VERB_COMMAND(co_job_resume, id_args, id, no_job, do_resume)
VERB_COMMAND(co_job_complete, id_args, id, no_job, do_complete)
VERB_COMMAND(co_job_finalize, id_args, id, no_job, do_finalize)
VERB_COMMAND(co_job_dismiss, id_args, id, no_job, do_dismiss)
VERB_COMMAND(co_block_job_pause, device_args, device, no_block_job, do_pause)
VERB_COMMAND(co_block_job_resume, device_args, device, no_block_job, do_resume)
VERB_COMMAND(co_block_job_complete, device_args, device, no_block_job, do_complete)
VERB_COMMAND(co_block_job_finalize, id_args, id, no_block_job, do_finalize)
VERB_COMMAND(co_block_job_dismiss, id_args, id, no_block_job, do_dismiss)

/* As QEMU's job-cancel: by force. */
static bool co_job_cancel(const struct qmp_call *call, const void *args, void *ret,
                          struct err *err)
{
    const struct id_args *a = args;

    return co_order(a->id, (struct order){ .verb = do_cancel, .none = no_job, .force = true },
                    err);
}

static bool co_block_job_cancel(const struct qmp_call *call, const void *args, void *ret,
                                struct err *err)
{
    const struct cancel_args *a = args;
    struct order o = { .verb = do_cancel, .none = no_block_job, .force = a->force };

    return co_order(a->device, o, err);
}

static bool co_block_job_set_speed(const struct qmp_call *call, const void *args, void *ret,
                                   struct err *err)
{
    const struct set_speed_args *a = args;
    struct order o = { .verb = do_set_speed, .none = no_block_job, .speed = (uint64_t)a->speed };

    return co_order(a->device, o, err);
}

static bool co_block_job_change(const struct qmp_call *call, const void *args, void *ret,
                                struct err *err)
{
    const struct change_args *a = args;
    struct order o = { .verb = do_change, .none = no_block_job,
                       .guest_latency = a->guest_latency };

    if (strcmp(job_type_enum.values[a->type], "backup") != 0)
        return err_set(err, -EINVAL, "Job type does not support change options");
    return co_order(a->id, o, err);
}

/* ---- query-jobs, query-block-jobs ---------------------------------------------------- */

static const struct schema_type iostatus_enum = {
    .name = "BlockDeviceIoStatus", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "ok", "failed", "nospace", NULL },
};

struct qapi_job_info {
    char *id;
    int type, status;
    int64_t current, total;
    bool has_guest;
    struct guest_latency guest;
    bool has_error;
    char *error;
};
static const struct schema_type qapi_job_info_type = {
    .name = "JobInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct qapi_job_info),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct qapi_job_info, id, "id", &schema_str, NULL),
        SCHEMA_REQUIRED(struct qapi_job_info, type, "type", &job_type_enum, NULL),
        SCHEMA_REQUIRED(struct qapi_job_info, status, "status", &job_status_enum, NULL),
        SCHEMA_REQUIRED(struct qapi_job_info, current, "current-progress", &schema_int, NULL),
        SCHEMA_REQUIRED(struct qapi_job_info, total, "total-progress", &schema_int, NULL),
        SCHEMA_OPTIONAL(struct qapi_job_info, error, "error", &schema_str, NULL),
        SCHEMA_OPTIONAL(struct qapi_job_info, guest, "guest-latency", &guest_latency_type, NULL),
        SCHEMA_END,
    },
};
static const struct schema_type job_info_list = {
    .name = "JobInfoList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &qapi_job_info_type,
};

struct block_job_info {
    int type, iostatus, status;
    char *device;
    int64_t len, offset, speed;
    bool busy, paused, ready, auto_finalize, auto_dismiss;
    bool has_guest;
    struct guest_latency guest;
    bool has_error;
    char *error;
};
#define BJI(field, json, type) SCHEMA_REQUIRED(struct block_job_info, field, json, type, NULL)
static const struct schema_type block_job_info_type = {
    .name = "BlockJobInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct block_job_info),
    .members = (const struct schema_member[]){
        BJI(type, "type", &job_type_enum),
        BJI(device, "device", &schema_str),
        BJI(len, "len", &schema_int),
        BJI(offset, "offset", &schema_int),
        BJI(busy, "busy", &schema_bool),
        BJI(paused, "paused", &schema_bool),
        BJI(speed, "speed", &schema_int),
        BJI(iostatus, "io-status", &iostatus_enum),
        BJI(ready, "ready", &schema_bool),
        BJI(status, "status", &job_status_enum),
        BJI(auto_finalize, "auto-finalize", &schema_bool),
        BJI(auto_dismiss, "auto-dismiss", &schema_bool),
        SCHEMA_OPTIONAL(struct block_job_info, error, "error", &schema_str, NULL),
        SCHEMA_OPTIONAL(struct block_job_info, guest, "guest-latency", &guest_latency_type, NULL),
        SCHEMA_END,
    },
};
static const struct schema_type block_job_info_list = {
    .name = "BlockJobInfoList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &block_job_info_type,
};

struct query {
    struct job *job;
    struct job_info info;
};

static int query_there(void *arg)
{
    struct query *q = arg;

    job_query(q->job, &q->info);
    return 0;
}

/* False for a job that has gone meanwhile. */
static bool co_query(struct job *job, struct job_info *ret)
{
    struct query q = { .job = job };

    if (co_loop_call(job_loop(job), query_there, &q) < 0 || q.info.status == JOB_NULL)
        return false;
    *ret = q.info;
    return true;
}

/* Room for one more item at the end of @list, zeroed. */
static void *add_item(struct schema_array *list, size_t size)
{
    list->items = xrealloc(list->items, (list->n + 1) * size);
    return memset((char *)list->items + list->n++ * size, 0, size);
}

static void co_add_job(struct job *job, void *arg)
{
    struct job_info info;

    if (!co_query(job, &info))
        return;

    struct qapi_job_info *out = add_item(arg, sizeof(*out));

    *out = (struct qapi_job_info){
        .id = xstrdup(info.id),
        .type = schema_enum_index(&job_type_enum, info.type),
        .status = (int)info.status,
        .current = (int64_t)info.current,
        .total = (int64_t)info.total,
        .has_guest = info.has_guest,
        .guest = guest_latency_of(&info),
        .has_error = info.ret < 0,
        .error = info.ret < 0 ? xstrdup(info.error) : NULL,
    };
}

static bool co_query_jobs(const struct qmp_call *call, const void *args, void *ret,
                          struct err *err)
{
    job_for_each(co_add_job, ret);
    return true;
}

static void co_add_block_job(struct job *job, void *arg)
{
    struct job_info info;

    if (!co_query(job, &info))
        return;

    struct block_job_info *out = add_item(arg, sizeof(*out));

    *out = (struct block_job_info){
        .type = schema_enum_index(&job_type_enum, info.type),
        .iostatus = (int)info.iostatus,
        .status = (int)info.status,
        .device = xstrdup(info.id),
        .len = (int64_t)info.total,
        .offset = (int64_t)info.current,
        .speed = (int64_t)info.speed,
        .busy = info.busy,
        .paused = info.paused,
        .ready = info.ready,
        .auto_finalize = info.auto_finalize,
        .auto_dismiss = info.auto_dismiss,
        .has_guest = info.has_guest,
        .guest = guest_latency_of(&info),
        .has_error = info.ret < 0,
        .error = info.ret < 0 ? xstrdup(info.error) : NULL,
    };
}

static bool co_query_block_jobs(const struct qmp_call *call, const void *args, void *ret,
                                struct err *err)
{
    job_for_each(co_add_block_job, ret);
    return true;
}

const struct qmp_command qmp_job_commands[] = {
    { .name = "query-jobs", .doc = "all jobs", .ret = &job_info_list, .co_run = co_query_jobs },
    { .name = "job-cancel", .doc = "cancel a job by force", .args = &id_args_type,
      .co_run = co_job_cancel },
    { .name = "job-pause", .doc = "pause a job", .args = &id_args_type, .co_run = co_job_pause },
    { .name = "job-resume", .doc = "let a paused job go on", .args = &id_args_type,
      .co_run = co_job_resume },
    { .name = "job-complete", .doc = "let a job finish that would go on for ever",
      .args = &id_args_type, .co_run = co_job_complete },
    { .name = "job-finalize", .doc = "finish a job with auto-finalize=off",
      .args = &id_args_type, .co_run = co_job_finalize },
    { .name = "job-dismiss", .doc = "forget a concluded job with auto-dismiss=off",
      .args = &id_args_type, .co_run = co_job_dismiss },
    { .name = "query-block-jobs", .doc = "all block jobs", .ret = &block_job_info_list,
      .co_run = co_query_block_jobs },
    { .name = "block-job-cancel", .doc = "cancel a job", .args = &cancel_args_type,
      .co_run = co_block_job_cancel },
    { .name = "block-job-pause", .doc = "as job-pause", .args = &device_args_type,
      .co_run = co_block_job_pause },
    { .name = "block-job-resume", .doc = "as job-resume", .args = &device_args_type,
      .co_run = co_block_job_resume },
    { .name = "block-job-set-speed", .doc = "change a job's speed limit",
      .args = &set_speed_args_type, .co_run = co_block_job_set_speed },
    { .name = "block-job-change", .doc = "change a job's latency budget",
      .args = &change_args_type, .co_run = co_block_job_change },
    { .name = "block-job-complete", .doc = "as job-complete", .args = &device_args_type,
      .co_run = co_block_job_complete },
    { .name = "block-job-finalize", .doc = "as job-finalize", .args = &id_args_type,
      .co_run = co_block_job_finalize },
    { .name = "block-job-dismiss", .doc = "as job-dismiss", .args = &id_args_type,
      .co_run = co_block_job_dismiss },
    { 0 },
};
