/* SPDX-License-Identifier: Apache-2.0
 *
 * Watching a backup job over QMP.
 */
#include "app/backup_run.h"
#include "loop/co_sync.h"
#include <stdio.h>

/* A daemon that does not answer is asked again after this, so that Ctrl-C comes in
 * between. */
#define ASK_NS (5 * NSEC_PER_SEC)

/* Whether @event tells that a job of our name begins. */
static bool is_beginning(const json_t *event, const void *arg)
{
    const struct backup_run *r = arg;
    const json_t *data = json_object_get(event, "data");
    const char *name = json_string_value(json_object_get(event, "event"));
    const char *id = json_string_value(json_object_get(data, "id"));
    const char *status = json_string_value(json_object_get(data, "status"));

    return name && id && status && strcmp(name, "JOB_STATUS_CHANGE") == 0 &&
           strcmp(id, r->job) == 0 && strcmp(status, "created") == 0;
}

bool backup_run_start(struct backup_run *r, json_t *args)
{
    if (r->interrupt->count) {
        json_decref(args);
        return err_set(&r->err, -EINTR, "Interrupted");
    }
    /* Making the target may take its time. Who gave up now would not know whether
     * there is a job. */
    r->started = qmp_client_execute_until(r->client, DEADLINE_NEVER, "drive-backup", args, NULL,
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
        if (order(r, "block-job-complete", json_pack("{s:s}", "device", r->job)))
            return true;
        r->asked++;
    }
    if (r->asked == 1 + (unsigned)r->open_ended) {
        r->note = "cancelling; Ctrl-C again does not wait for it";
        (void)order(r, "block-job-cancel",
                    json_pack("{s:s, s:b}", "device", r->job, "force", 1));
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

static bool is_ours(const struct backup_run *r, const json_t *o)
{
    const char *device = json_string_value(json_object_get(o, "device"));

    return device && strcmp(device, r->job) == 0;
}

static void show(struct backup_run *r, const char *note)
{
    struct progress_state s = {
        .current = r->current, .total = r->total, .note = r->note ? r->note : note,
    };

    progress_update(r->progress, &s, loop_now());
}

/* Ask for the job and show it. False: the connection is of no use any more. */
static bool ask_and_show(struct backup_run *r)
{
    CLEANUP(json_decref) json_t *jobs = NULL;
    struct err err = ERR_INIT;
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
    json_array_foreach(jobs, i, job) {
        if (is_ours(r, job)) {
            r->current = bytes_of(job, "offset");
            r->total = bytes_of(job, "len");
            show(r, json_is_true(json_object_get(job, "paused")) ? "paused" : NULL);
            return true;
        }
    }
    /* Its last event is on the way. */
    show(r, NULL);
    return true;
}

static enum backup_end completed(struct backup_run *r, const json_t *data)
{
    const char *error = json_string_value(json_object_get(data, "error"));

    r->current = bytes_of(data, "offset");
    r->total = bytes_of(data, "len");
    if (!error)
        return BACKUP_END_DONE;
    err_set(&r->err, -EIO, "%s", error);
    return BACKUP_END_FAILED;
}

static bool is_pending(const struct backup_run *r, const json_t *data)
{
    const char *id = json_string_value(json_object_get(data, "id"));

    return id && strcmp(id, r->job) == 0;
}

/* Whether @event is the end of the job, or as good. */
static bool is_end(struct backup_run *r, const json_t *event, enum backup_end *ret)
{
    const char *name = json_string_value(json_object_get(event, "event"));
    const json_t *data = json_object_get(event, "data");

    if (name && strcmp(name, "SHUTDOWN") == 0)
        r->shut_down = true;
    if (name && strcmp(name, "BLOCK_JOB_PENDING") == 0 && is_pending(r, data)) {
        *ret = BACKUP_END_PENDING;
        return true;
    }
    if (!name || !is_ours(r, data))
        return false;
    if (strcmp(name, "BLOCK_JOB_COMPLETED") == 0) {
        *ret = completed(r, data);
        return true;
    }
    if (strcmp(name, "BLOCK_JOB_CANCELLED") != 0)
        return false;
    *ret = BACKUP_END_CANCELLED;
    if (r->shut_down && !r->asked) {
        err_set(&r->err, -ESHUTDOWN, "The daemon was ended during the backup");
        *ret = BACKUP_END_FAILED;
    }
    return true;
}

enum backup_end backup_run_finalize(struct backup_run *r, bool well)
{
    json_t *args = json_pack("{s:s}", "id", r->job);

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
