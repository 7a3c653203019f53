/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint backup and the daemon: reaching it, asking for the jobs, and its refusals in
 * words that say what to do.
 */
#include "app/backup_command.h"
#include "app/image_name.h"
#include "app/served.h"
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/drivers.h"
#include "job/job.h"
#include <unistd.h>

/* ---- the daemon ------------------------------------------------------------------------ */

static json_t *path_json(const char *path, struct err *err)
{
    json_t *s = json_string(path);

    if (!s)
        err_set(err, -EILSEQ, "The name '%s' has bytes that are not UTF-8, which QMP cannot carry",
                path);
    return s;
}

/* Have the local daemon open a source. */
static bool open_source(struct backup_command *c, const struct backup_disk *d)
{
    struct err *err = &c->run.err;
    const char *format = image_format_to_read(d->source, c->source_format, err);
    struct open_file_opts o = {
        .filename = d->source, .format = format, .node_name = d->node,
        /* Bitmaps are kept in the image. */
        .read_only = c->to ? c->dry_run || access(d->source, W_OK) < 0 : !c->chain.bitmap,
    };
    json_t *options;

    if (!format || !image_device_is_free(d->source, err))
        return false;
    options = node_json_for_file(&o, err);
    if (!options)
        return false;
    if (qmp_client_execute(c->run.client, "blockdev-add", options, NULL, err))
        return true;
    if (image_is_locked_by_others(err))
        return err_set(err, -EAGAIN, "'%s' is open in another process: if a daemon of Stillpoint "
                       "serves it, back up the live disk with --control PATH", d->source);
    return false;
}

bool backup_connect(struct backup_command *c)
{
    struct err *err = &c->run.err;
    int fd;

    if (c->control) {
        c->run.client = qmp_client_connect(c->control, &c->interrupt, err);
        return c->run.client != NULL;
    }
    fd = local_daemon_start(&c->local, err);
    if (fd < 0)
        return false;
    c->run.client = qmp_client_over(fd, &c->interrupt, err);
    if (!c->run.client)
        return false;
    drivers_register_all();
    for (size_t i = 0; i < c->n_disks; i++) {
        if (!open_source(c, &c->disks[i]))
            return false;
    }
    return true;
}

void backup_disconnect(struct backup_command *c, bool given_up)
{
    qmp_client_free(c->run.client);
    if (c->local.pid > 0)
        local_daemon_wait(&c->local, !given_up);
}

/* ---- the job --------------------------------------------------------------------------- */

static void set_optional(json_t *args, const char *key, uint64_t value)
{
    if (value)
        json_object_set_new(args, key, json_integer((json_int_t)value));
}

static bool add_scratch_dir(struct backup_command *c, json_t *args)
{
    struct err *err = &c->run.err;
    CLEANUP(free) char *dir = image_absolute_path(c->scratch_dir, err);
    json_t *json = dir ? path_json(dir, err) : NULL;

    return json && json_object_set_new(args, "scratch-dir", json) == 0;
}

static json_t *job_arguments(struct backup_command *c, const struct backup_disk *d,
                             bool make_bitmap)
{
    struct err *err = &c->run.err;
    json_t *target = path_json(target_name_job_path(&d->target), err);
    json_t *args;

    if (!target)
        return NULL;
    args = json_pack("{s:o, s:o, s:s, s:s, s:s, s:s}", "device",
                     schema_json_str(d->node), "target", target, "format", d->target.format,
                     "sync", backup_sync_names[c->sync], "mode", "absolute-paths", "job-id",
                     d->job);
    if (!args) {
        err_set(err, -EILSEQ, "The name of the job or format has bytes that are not UTF-8");
        return NULL;
    }
    if (c->to ? !backup_set_arguments(c, (size_t)(d - c->disks), args, err)
              : !backup_chain_arguments(&c->chain, make_bitmap, args, err)) {
        json_decref(args);
        return NULL;
    }
    set_optional(args, "speed", c->speed);
    set_optional(args, "scratch-limit", c->scratch_limit);
    if (c->no_reflink)
        json_object_set_new(args, "x-perf", json_pack("{s:b}", "use-copy-range", false));
    if (c->compress)
        json_object_set_new(args, "compress", json_true());
    if (c->cbw_timeout != UINT64_MAX)
        json_object_set_new(args, "cbw-timeout", json_integer((json_int_t)c->cbw_timeout));
    if (c->guest_latency >= 0)
        json_object_set_new(args, "guest-latency", json_real(c->guest_latency));
    if (!c->scratch_dir || add_scratch_dir(c, args))
        return args;
    json_decref(args);
    return NULL;
}

/* The disk that the daemon's words are about: where @name of it is in quotes. */
static const struct backup_disk *blamed(const struct backup_command *c, bool by_job)
{
    for (size_t i = 1; i < c->n_disks; i++) {
        const struct backup_disk *d = &c->disks[i];
        CLEANUP(free) char *quoted = xasprintf("'%s'", by_job ? d->job : d->node);

        if (strstr(c->run.err.text, quoted))
            return d;
    }
    return &c->disks[0];
}

/* The daemon's words in those of this command. */
static bool explain_refusal(struct backup_command *c)
{
    struct err *err = &c->run.err;
    const struct backup_disk *d = blamed(c, false);

    if (c->control && strstr(err->text, "Cannot find device="))
        return served_no_such_disk(c->run.client, c->control, d->source, err);
    if (backup_chain_explain(&c->chain, d->source, err))
        return false;
    if (strstr(err->text, "Backing file not supported"))
        return err_set(err, err->code, "'%s' stands on a backing file, and so must a backup with "
                       "--sync top: %s", c->to ? "A disk" : d->source, c->to ? "--format qcow2"
                       : "a TARGET that ends in .qcow2, or --format qcow2");
    if (strstr(err->text, "Job ID") && strstr(err->text, "already in use")) {
        const char *job = blamed(c, true)->job;

        return err_set(err, err->code, "A job '%s' runs already: 'stillpoint cancel %s' ends it%s",
                       job, job, c->to ? "" : ", --job-id gives this one another name");
    }
    return false;
}

static bool ask_for_job(struct backup_command *c, bool make_bitmap)
{
    json_t *args = job_arguments(c, &c->disks[0], make_bitmap);

    return args && backup_run_start(&c->run, "drive-backup", args);
}

static bool ask_for_jobs(struct backup_command *c)
{
    json_t *actions = json_array();

    for (size_t i = 0; i < c->n_disks; i++) {
        json_t *args = job_arguments(c, &c->disks[i], false);

        if (!args) {
            json_decref(actions);
            return false;
        }
        json_array_append_new(actions, json_pack("{s:s, s:o}", "type", "drive-backup", "data",
                                                 args));
    }
    return backup_run_start(&c->run, "transaction",
                            json_pack("{s:o, s:{s:s}}", "actions", actions, "properties",
                                      "completion-mode", "grouped"));
}

bool backup_start_jobs(struct backup_command *c)
{
    bool ok = c->to ? ask_for_jobs(c) : ask_for_job(c, false);

    if (!ok && !c->to && backup_chain_has_to_make(&c->chain, &c->run.err))
        ok = ask_for_job(c, true);
    if (!ok)
        return explain_refusal(c);
    for (size_t i = 0; i < c->n_disks; i++)
        target_name_hold(&c->disks[i].target);
    return true;
}
