/* SPDX-License-Identifier: Apache-2.0
 *
 * Watching backup jobs over QMP.
 */
#include "app/backup_run.h"
#include "loop/co_sync.h"
#include <stdio.h>

/* A daemon that does not answer is asked again after this, so that Ctrl-C comes in
 * between. */
#define ASK_NS (5 * NSEC_PER_SEC)

static struct backup_run_job *find_job(const struct backup_run *r, const char *id)
{
    for (size_t i = 0; id && i < r->n_jobs; i++) {
        if (strcmp(id, r->jobs[i].id) == 0)
            return &r->jobs[i];
    }
    return NULL;
}

/* Whether @event tells that a job of our name begins. The first of several is told of first. */
static bool is_beginning(const json_t *event, const void *arg)
{
    const struct backup_run *r = arg;
    const json_t *data = json_object_get(event, "data");
    const char *name = json_string_value(json_object_get(event, "event"));
    const char *id = json_string_value(json_object_get(data, "id"));
    const char *status = json_string_value(json_object_get(data, "status"));

    return name && id && status && strcmp(name, "JOB_STATUS_CHANGE") == 0 &&
           strcmp(id, r->jobs[0].id) == 0 && strcmp(status, "created") == 0;
}

bool backup_run_start(struct backup_run *r, const char *command, json_t *args)
{
    if (r->interrupt->count) {
        json_decref(args);
        return err_set(&r->err, -EINTR, "Interrupted");
    }
    /* Making the target may take its time. Who gave up now would not know whether
     * there is a job. */
    r->started = qmp_client_execute_until(r->client, DEADLINE_NEVER, command, args, NULL,
                                          &r->err);
    /* One of the same name may have ended just before: its end is not ours. That ours
     * begins is told before the answer. */
    if (r->started)
        qmp_client_forget_until(r->client, is_beginning, r);
    return r->started;
}

/* ---- Ctrl-C ------------------------------------------------------------------------- */

static bool order(struct backup_run *r, const char *command, json_t *args)
{
    struct err err = ERR_INIT;

    if (qmp_client_execute_until(r->client, loop_now() + ASK_NS, command, args, NULL, &err))
        return true;
    /* The job has just ended: that is told by an event. Or: yes, we know. */
    if (err.class == ERR_DEVICE_NOT_ACTIVE || err.code == -EINTR)
        return true;
    progress_clear(r->progress);
    fprintf(stderr, "stillpoint backup: %s\n", err.text);
    return false;
}

/* Pass one more interrupt on. False: the user has had enough. */
static bool pass_interrupt(struct backup_run *r)
{
    r->asked++;
    if (r->open_ended && r->asked == 1) {
        r->note = "finishing; Ctrl-C again cancels";
        if (order(r, "block-job-complete", json_pack("{s:s}", "device", r->jobs[0].id)))
            return true;
        r->asked++;
    }
    if (r->asked == 1 + (unsigned)r->open_ended) {
        r->note = "cancelling; Ctrl-C again does not wait for it";
        /* All others go with it. */
        (void)order(r, "block-job-cancel",
                    json_pack("{s:s, s:b}", "device", r->jobs[0].id, "force", 1));
        return true;
    }
    return false;
}

/* ---- how far, and how it ends ---------------------------------------------------------- */

static uint64_t bytes_of(const json_t *o, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(o, key));

    return v > 0 ? (uint64_t)v : 0;
}

uint64_t backup_run_current(const struct backup_run *r)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < r->n_jobs; i++)
        sum += r->jobs[i].current;
    return sum;
}

static uint64_t total(const struct backup_run *r)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < r->n_jobs; i++)
        sum += r->jobs[i].total;
    return sum;
}

/* How far each of several is, for programs. */
static json_t *each_job(const struct backup_run *r)
{
    json_t *all = json_array();

    for (size_t i = 0; i < r->n_jobs; i++)
        json_array_append_new(all, json_pack("{s:s, s:I, s:I}", "job", r->jobs[i].id, "current",
                                             (json_int_t)r->jobs[i].current, "total",
                                             (json_int_t)r->jobs[i].total));
    return all;
}

static void show(struct backup_run *r, const char *note)
{
    CLEANUP(json_decref) json_t *jobs = r->n_jobs > 1 ? each_job(r) : NULL;
    char copied[64];
    struct progress_state s = {
        .current = backup_run_current(r), .total = total(r), .jobs = jobs,
        .note = r->note ? r->note : note,
    };

    if (!s.note && r->n_copied) {
        snprintf(copied, sizeof(copied), "%zu of %zu copied", r->n_copied, r->n_jobs);
        s.note = copied;
    }
    progress_update(r->progress, &s, loop_now());
}

/* Take over what query-block-jobs says of a job of ours. */
static void note_job(struct backup_run *r, const json_t *o, const char **note)
{
    struct backup_run_job *job = find_job(r, json_string_value(json_object_get(o, "device")));
    const char *status = json_string_value(json_object_get(o, "status"));

    if (!job)
        return;
    job->current = bytes_of(o, "offset");
    job->total = bytes_of(o, "len");
    if (json_is_true(json_object_get(o, "paused")))
        *note = "paused";
    r->n_copied += status && strcmp(status, "waiting") == 0;
}

/* Ask for the jobs and show them. False: the connection is of no use any more. */
static bool ask_and_show(struct backup_run *r)
{
    CLEANUP(json_decref) json_t *jobs = NULL;
    struct err err = ERR_INIT;
    const char *note = NULL;
    json_t *job;
    size_t i;

    if (!qmp_client_execute_until(r->client, loop_now() + ASK_NS, "query-block-jobs", NULL, &jobs,
                                  &err)) {
        if (err.code == -ECONNRESET) {
            r->err = err;
            return false;
        }
        show(r, "the daemon does not answer");
        return true;
    }
    r->n_copied = 0;
    json_array_foreach(jobs, i, job)
        note_job(r, job, &note);
    /* Of one that is not there any more the last event is on the way. */
    show(r, note);
    return true;
}

static void completed(struct backup_run *r, struct backup_run_job *job, const json_t *data)
{
    const char *error = json_string_value(json_object_get(data, "error"));

    job->current = bytes_of(data, "offset");
    job->total = bytes_of(data, "len");
    json_decref(job->guest);
    job->guest = json_incref(json_object_get(data, "guest-latency"));
    if (!error)
        return;
    /* The others were cancelled because of the first. */
    if (!r->failed)
        err_set(&r->err, -EIO, "%s", error);
    if (!r->failed && r->n_jobs > 1)
        err_prefix(&r->err, "Job '%s': ", job->id);
    r->failed = true;
}

static enum backup_end how_it_ended(struct backup_run *r)
{
    if (r->cancelled && !r->failed && r->shut_down && !r->asked) {
        err_set(&r->err, -ESHUTDOWN, "The daemon was ended during the backup");
        r->failed = true;
    }
    return r->failed ? BACKUP_END_FAILED : r->cancelled ? BACKUP_END_CANCELLED : BACKUP_END_DONE;
}

/* Whether @event is the end of the last job, or as good. */
static bool is_end(struct backup_run *r, const json_t *event, enum backup_end *ret)
{
    const char *name = json_string_value(json_object_get(event, "event"));
    const json_t *data = json_object_get(event, "data");
    struct backup_run_job *job = find_job(r, json_string_value(json_object_get(data, "device")));

    if (name && strcmp(name, "SHUTDOWN") == 0)
        r->shut_down = true;
    if (name && strcmp(name, "BLOCK_JOB_PENDING") == 0 &&
        find_job(r, json_string_value(json_object_get(data, "id")))) {
        *ret = BACKUP_END_PENDING;
        return true;
    }
    if (!name || !job)
        return false;
    if (strcmp(name, "BLOCK_JOB_COMPLETED") == 0)
        completed(r, job, data);
    else if (strcmp(name, "BLOCK_JOB_CANCELLED") == 0)
        r->cancelled = true;
    else
        return false;
    if (++r->n_over < r->n_jobs)
        return false;
    *ret = how_it_ended(r);
    return true;
}

enum backup_end backup_run_finalize(struct backup_run *r, bool well)
{
    json_t *args = json_pack("{s:s}", "id", r->jobs[0].id);

    if (!qmp_client_execute_until(r->client, DEADLINE_NEVER, well ? "job-finalize" : "job-cancel",
                                  args, NULL, &r->err))
        return BACKUP_END_FAILED;
    return backup_run_wait(r);
}

enum backup_end backup_run_wait(struct backup_run *r)
{
    enum backup_end end;

    for (;;) {
        json_t *event;

        /* Also one that came while an answer was waited for. */
        if (r->interrupt->count > r->asked) {
            if (!pass_interrupt(r))
                return BACKUP_END_GIVEN_UP;
            continue;
        }
        switch (qmp_client_wait(r->client, r->progress->next, &event, &r->err)) {
        case QMP_WAIT_GONE:
            return BACKUP_END_FAILED;
        case QMP_WAIT_INTERRUPT:
            break;
        case QMP_WAIT_TIMEOUT:
            if (!ask_and_show(r))
                return BACKUP_END_FAILED;
            break;
        case QMP_WAIT_EVENT: {
            bool over = is_end(r, event, &end);

            json_decref(event);
            if (over)
                return end;
            break;
        }
        }
    }
}

void backup_run_abandon(struct backup_run *r)
{
    const struct err why = r->err;

    r->asked = 1 + (unsigned)r->open_ended;
    if (order(r, "block-job-cancel",
              json_pack("{s:s, s:b}", "device", r->jobs[0].id, "force", 1)) &&
        backup_run_wait(r) == BACKUP_END_PENDING)
        (void)backup_run_finalize(r, false);
    r->err = why;
}
