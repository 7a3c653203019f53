/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint backup: a disk as it stands now, to a file, a device or an NBD
 * export; or several at one instant, to files in a directory. With a daemon at hand
 * the disk is one that it serves, and may be written meanwhile; else it is a file that
 * nobody has open, served by a daemon for the time of the backup (local_daemon.c), so
 * that both are the same.
 */
#include "app/backup_command.h"
#include "app/human.h"
#include "app/image_name.h"
#include "base/mem.h"
#include "job/job.h"
#include "loop/loop.h"
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

const char *const backup_sync_names[] = { "full", "top", "none", NULL };

const char *backup_sync_name(const struct backup_command *c)
{
    return c->chain.incremental ? "incremental" : backup_sync_names[c->sync];
}

/* Nothing is copied. */
static bool is_dry(const struct backup_command *c)
{
    return c->dry_run && c->run.err.code == 0;
}

/* ---- the disks --------------------------------------------------------------------------- */

/* The name that a job gets unless the user says. */
static char *default_job_id(const struct backup_command *c, size_t i)
{
    const char *source = c->disks[i].source;
    CLEANUP(free) char *disk = c->control ? xstrdup(source) : image_disk_name(source);
    char *id = xasprintf("%s-%s", disk, backup_sync_name(c));

    if (c->control || job_id_wellformed(id))
        return id;
    free(id);
    return i ? xasprintf("backup-%zu-%s", i, backup_sync_name(c))
             : xasprintf("backup-%s", backup_sync_name(c));
}

/* The same for a set, whose jobs are known by their names' end. */
static void name_set_jobs(struct backup_command *c)
{
    CLEANUP(free) char *suffix = backup_set_job_suffix(c);

    for (size_t i = 0; i < c->n_disks; i++) {
        struct backup_disk *d = &c->disks[i];

        d->job = xasprintf("%s%s", c->set->disks[i].name, suffix);
        if (!job_id_wellformed(d->job)) {
            free(d->job);
            d->job = xasprintf("disk%zu%s", i, suffix);
        }
        c->jobs[i].id = d->job;
    }
}

static void make_disks(struct backup_command *c, char **operands, size_t n)
{
    c->n_disks = c->to ? n : 1;
    c->disks = xcalloc(c->n_disks, sizeof(*c->disks));
    c->jobs = xcalloc(c->n_disks, sizeof(*c->jobs));
    for (size_t i = 0; i < c->n_disks; i++) {
        struct backup_disk *d = &c->disks[i];

        d->source = operands[i];
        d->node = c->control ? xstrdup(d->source) : xasprintf("source%zu", i);
        if (c->to)
            continue;
        d->target_name = operands[1];
        d->job = c->job_id ? xstrdup(c->job_id) : default_job_id(c, i);
        c->jobs[i].id = d->job;
    }
}

static void free_disks(struct backup_command *c)
{
    for (size_t i = 0; i < c->n_disks; i++) {
        struct backup_disk *d = &c->disks[i];

        target_name_done(&d->target);
        json_decref(c->jobs[i].guest);
        free(d->made);
        free(d->node);
        free(d->job);
    }
    free(c->disks);
    free(c->jobs);
}

static bool settle_target(struct backup_command *c)
{
    const struct target_name_opts o = {
        .name = c->disks[0].target_name, .format = c->format, .force = c->force,
        .in_place = c->sync == SYNC_NONE,
    };

    return target_name_init(&c->disks[0].target, &o, &c->run.err) &&
           backup_chain_settle(&c->chain, &c->disks[0].target, &c->run.err);
}

/* What is to be copied, and where to. */
static bool settle_targets(struct backup_command *c)
{
    if (!c->to)
        return settle_target(c);
    if (!c->dry_run && !backup_set_end_stale_jobs(c))
        return false;
    if (!backup_set_plan(c))
        return false;
    if (c->dry_run)
        return true;
    if (!backup_set_begin(c))
        return false;
    name_set_jobs(c);
    backup_set_tell_plan(c);
    backup_set_add_bitmaps(c);
    return true;
}

/* ---- arguments ------------------------------------------------------------------------ */

static bool is_qcow2(const struct backup_command *c, const char *target)
{
    const char *by_name = c->to ? "qcow2" : image_format_by_name(target);

    return strcmp(c->format ? c->format : by_name, "qcow2") == 0;
}

/* What --to cannot go with. */
static const char *misuse_of_to(const struct backup_command *c)
{
    if (c->sync != SYNC_FULL)
        return "--sync is for a TARGET: a set has full backups, and incrementals over them";
    if (c->chain.bitmap || c->chain.backing)
        return "--bitmap and --backing are for a TARGET: a set keeps bitmaps of its own";
    if (c->job_id)
        return "--job-id is for a TARGET";
    if (c->format && strcmp(c->format, "qcow2") != 0)
        return "--format is for a TARGET: the images of a set are qcow2";
    if (c->force)
        return "--force is for a TARGET: nothing in a set is ever replaced";
    return NULL;
}

/* An exit status, or -1: all is well. @operands: SOURCE... and, without --to, TARGET. */
static int check(struct backup_command *c, const char *const *operands, size_t n)
{
    const char *wrong = backup_chain_misuse(&c->chain, backup_sync_names[c->sync]);
    const char *target = operands[n - 1];

    if (!c->to && n != 2)
        return cli_misuse("backup", "%s: it takes SOURCE TARGET, or SOURCE... --to DIR",
                          n < 2 ? "something is missing" : "too many arguments");
    if (c->control && (c->source_format || c->image_dirs.n))
        return cli_misuse("backup", "%s is for a SOURCE that is a file; the daemon at '%s' has "
                          "opened its disks", c->source_format ? "--source-format" : "--image-dir",
                          c->control);
    if (!c->control && c->sync == SYNC_NONE)
        return cli_misuse("backup", "--sync none is for a disk that is served: say --control");
    if (c->guest_latency_text &&
        !human_parse_factor(c->guest_latency_text, &c->guest_latency, &c->run.err))
        return cli_misuse("backup", "--guest-latency: %s", c->run.err.text);
    if (!wrong && c->to)
        wrong = misuse_of_to(c);
    else if (!wrong && (c->full || c->dry_run || c->json))
        wrong = "--full, --dry-run and --json go with --to DIR";
    if (!wrong)
        wrong = backup_quiesce_misuse(c);
    if (wrong)
        return cli_misuse("backup", "%s", wrong);
    if (c->compress && !is_qcow2(c, target))
        return cli_misuse("backup", "--compress needs a TARGET that can hold compressed data: a "
                          "name that ends in .qcow2, or --format qcow2");
    if (c->sync == SYNC_NONE && !is_qcow2(c, target))
        return cli_misuse("backup", "--sync none needs a TARGET that can stand on a backing file: "
                          "a name that ends in .qcow2, or --format qcow2");
    return -1;
}

static int parse(struct backup_command *c, int argc, char **argv)
{
    const struct cli_option options[] = {
        { "to", 0, CLI_TEXT, &c->to, "DIR",
          "add a point to the backup set there, which is made if there is none: all SOURCEs at one "
          "instant, in full the first time, then what has changed. If one fails, all do" },
        { "full", 0, CLI_FLAG, &c->full, NULL, "with --to: copy everything again" },
        { "dry-run", 'n', CLI_FLAG, &c->dry_run, NULL, "with --to: only tell what it would do" },
        { "json", 0, CLI_FLAG, &c->json, NULL, "with --to: put out the manifest, or the plan" },
        { "sync", 0, CLI_CHOICE, &c->sync, NULL,
          "full: everything, stands alone. top: what the topmost image holds, over the same "
          "backing file. none: old data, as it is overwritten from now on, over the disk itself; "
          "until Ctrl-C or 'stillpoint complete'", backup_sync_names },
        { "bitmap", 0, CLI_TEXT, &c->chain.bitmap, "NAME",
          "from this backup on have the disk's dirty bitmap NAME tell what changes, for "
          "incremental backups; it is made if it is not there" },
        { "incremental", 0, CLI_FLAG, &c->chain.incremental, NULL,
          "only what --bitmap tells has changed since the backup before" },
        { "backing", 0, CLI_TEXT, &c->chain.backing, "FILE",
          "with --incremental: the backup before, which TARGET stands on" },
        { "bitmap-mode", 0, CLI_CHOICE, &c->chain.mode, NULL,
          "when the bitmap begins anew: when the backup succeeds; never; always, as far as it "
          "came. On success unless given", backup_chain_modes },
        { "control", 0, CLI_TEXT, &c->control, "PATH",
          "the daemon's control socket; $STILLPOINT_CONTROL unless given; '' for none" },
        { "format", 'f', CLI_TEXT, &c->format, "FORMAT",
          "of TARGET: raw or qcow2; by the name's ending unless given, qcow2 with --to" },
        { "source-format", 0, CLI_TEXT, &c->source_format, "FORMAT", "of SOURCE if it is a file" },
        CLI_IMAGE_DIR(&c->image_dirs),
        { "speed", 0, CLI_RATE, &c->speed, "RATE", "at most, such as 50M; 0: no limit",
          .max = INT64_MAX },
        { "guest-latency", 0, CLI_TEXT, &c->guest_latency_text, "FACTOR",
          "that the disk's users may become slower by; 1.5 unless given; off: copy at full speed" },
        { "compress", 'c', CLI_FLAG, &c->compress, NULL, "TARGET's data; qcow2 only" },
        { "no-reflink", 0, CLI_FLAG, &c->no_reflink, NULL,
          "a raw TARGET gets storage of its own, also where the file system could share it" },
        { "force", 0, CLI_FLAG, &c->force, NULL, "replace TARGET if it is there" },
        { "job-id", 0, CLI_TEXT, &c->job_id, "ID", "name of the job; SOURCE-SYNC unless given" },
        BACKUP_QUIESCE_OPTIONS(c),
        { "scratch-dir", 0, CLI_TEXT, &c->scratch_dir, "DIR",
          "where old data waits that is overwritten before it was copied" },
        { "scratch-limit", 0, CLI_SIZE, &c->scratch_limit, "SIZE",
          "of it at most; then the disk's writers wait; 0: no limit", .max = INT64_MAX },
        { "cbw-timeout", 0, CLI_NUMBER, &c->cbw_timeout, "SECONDS",
          "that a writer waits at most, before the backup fails", .max = UINT32_MAX },
        { "progress", 0, CLI_CHOICE, &c->style, NULL,
          "auto: a bar on a terminal, else plain lines", progress_styles },
        { 0 },
    };
    const struct cli_command command = {
        "backup", "SOURCE TARGET | SOURCE... --to DIR", 1, -1,
        "Back up a disk, or several, as they stand at this moment. With a control socket\n"
        "SOURCE is a disk that the daemon there serves, and may be written meanwhile. Without,\n"
        "it is an image that no process has open. TARGET is a file, a block device or an NBD\n"
        "URI. A file is there under its name only when the backup is whole (except with --sync\n"
        "none).",
        options,
        "  stillpoint backup disk monday.qcow2 --control control.sock --bitmap daily\n"
        "  stillpoint backup disk tuesday.qcow2 --control control.sock --bitmap daily \\\n"
        "      --incremental --backing monday.qcow2\n"
        "  stillpoint backup data log --to /backups/vm --control control.sock",
    };
    int first, status = -1;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c->control = cli_control(c->control);
    status = check(c, (const char *const *)argv + first, (size_t)(argc - first));
    if (status >= 0)
        return status;
    make_disks(c, argv + first, (size_t)(argc - first));
    return cli_allow_image_dirs(&c->image_dirs, &c->run.err) ? -1 : cli_fail("backup", &c->run.err);
}

/* ---- telling --------------------------------------------------------------------------- */

/* What an event says of one backup is the event's own; of several it is in "disks". */
static json_t *event_of(const struct backup_command *c, const char *name, bool with_bytes)
{
    json_t *event = json_pack("{s:s}", "event", name), *disks = json_array();

    for (size_t i = 0; i < c->n_disks; i++) {
        const struct backup_disk *d = &c->disks[i];
        json_t *one = json_pack("{s:s}", "job", d->job);

        if (c->set)
            json_object_set_new(one, "kind", json_string(c->set->disks[i].parent ? "incremental"
                                                                                : "full"));
        if (c->set)
            json_object_set_new(one, "reason", schema_json_str(c->set->disks[i].reason));
        if (d->target.path) {
            json_object_set_new(one, "source", schema_json_str(d->source));
            json_object_set_new(one, "target", schema_json_str(d->target.path));
        }
        if (with_bytes)
            json_object_set_new(one, "bytes", json_integer((json_int_t)c->jobs[i].current));
        if (with_bytes && c->jobs[i].guest)
            json_object_set(one, "guest-latency", c->jobs[i].guest);
        json_array_append_new(disks, one);
    }
    if (c->to)
        json_object_set(event, "disks", disks);
    else
        json_object_update(event, json_array_get(disks, 0));
    json_decref(disks);
    return event;
}

static void tell_started(struct backup_command *c)
{
    json_t *event = event_of(c, "started", false);
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    c->instant_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (c->set)
        json_object_set_new(event, "point", json_string(c->set->id));
    else
        json_object_set_new(event, "sync", json_string(backup_sync_name(c)));
    json_object_set_new(event, "time", json_integer((json_int_t)now.tv_sec));
    if (backup_quiesces(c))
        json_object_set_new(event, "quiesce", backup_quiesce_json(c));
    progress_event(&c->progress, event);
    if (c->sync == SYNC_NONE && progress_for_people(&c->progress))
        printf("The instant is taken; Ctrl-C or 'stillpoint complete %s' ends the backup\n",
               c->disks[0].job);
}

/* What keeping the old data has cost who wrote the disk meanwhile. */
static void tell_guest(const struct backup_command *c, size_t i)
{
    const json_t *guest = c->jobs[i].guest;
    json_int_t writes = json_integer_value(json_object_get(guest, "writes"));
    static const char *const keys[] = { "p50-ns", "p99-ns", "p999-ns", "max-ns" };
    char text[ARRAY_SIZE(keys)][HUMAN_TEXT];

    if (!writes)
        return;
    for (size_t k = 0; k < ARRAY_SIZE(keys); k++)
        human_latency((uint64_t)json_integer_value(json_object_get(guest, keys[k])), text[k]);
    printf("%lld writes to '%s' meanwhile, %lld of them made longer: by %s (median), %s (99 %%), "
           "%s (99.9 %%), %s (longest)\n", (long long)writes, c->disks[i].source,
           (long long)json_integer_value(json_object_get(guest, "delayed")), text[0], text[1],
           text[2], text[3]);
}

static void tell_what(const struct backup_command *c)
{
    const struct backup_disk *d = &c->disks[0];
    time_t seconds = (time_t)(c->instant_ms / 1000);
    char instant[64];
    struct tm tm;

    localtime_r(&seconds, &tm);
    strftime(instant, sizeof(instant), "%Y-%m-%d %H:%M:%S", &tm);
    if (c->set)
        printf("%s: point %s, %s as %s stood at %s; ", c->to, c->set->id,
               c->n_disks == 1 ? "the disk" : "the disks", c->n_disks == 1 ? "it" : "they",
               instant);
    else
        printf("%s: '%s' as it stood at %s; ", d->target_name, d->source, instant);
}

static void tell_done(struct backup_command *c)
{
    uint64_t ns = loop_now() - c->began, bytes = backup_run_current(&c->run);
    char size[HUMAN_TEXT], rate[HUMAN_TEXT], duration[HUMAN_TEXT];
    double seconds = (double)MAX(ns, NSEC_PER_MSEC) / NSEC_PER_SEC;
    json_t *event = event_of(c, "completed", true);

    json_object_set_new(event, "bytes", json_integer((json_int_t)bytes));
    json_object_set_new(event, "seconds", json_real(seconds));
    if (c->set)
        json_object_set_new(event, "point", json_string(c->set->id));
    progress_event(&c->progress, event);
    if (!progress_for_people(&c->progress))
        return;
    human_duration((uint64_t)(seconds + 0.5), duration);
    if (seconds < 10)
        snprintf(duration, sizeof(duration), "%.2g s", seconds);
    tell_what(c);
    printf("%s in %s, %s/s\n", human_size(bytes, size), duration,
           human_size((uint64_t)((double)bytes / seconds), rate));
    if (c->quiesced.held && c->quiesced.file_systems)
        printf("%u of the guest's file systems stood still for %.2g s\n",
               c->quiesced.file_systems, (double)c->quiesced.frozen_ns / NSEC_PER_SEC);
    for (size_t i = 0; i < c->n_disks; i++)
        tell_guest(c, i);
}

/* Remove what was begun; the first of it that cannot be removed. */
static const char *discard_all(struct backup_command *c)
{
    const char *left = NULL;

    for (size_t i = 0; i < c->n_disks; i++) {
        struct target_name *t = &c->disks[i].target;

        if (t->path && !c->disks[i].published && !target_name_discard(t, c->run.started) && !left)
            left = target_name_job_path(t);
    }
    return left;
}

static int tell_cancelled(struct backup_command *c, bool given_up)
{
    const struct backup_disk *first = &c->disks[0];
    const char *left;

    progress_event(&c->progress, c->to ? json_pack("{s:s}", "event", "cancelled")
                   : json_pack("{s:s, s:s}", "event", "cancelled", "job", first->job));
    /* Somebody else's soft cancel is one of the ways to complete sync=none. */
    if (c->sync == SYNC_NONE && !c->run.asked && c->run.started)
        cli_failf("backup", "the job was cancelled; '%s' is whole only if that was done without "
                  "--force", first->target_name);
    else if ((left = discard_all(c)))
        cli_failf("backup", "cancelled; '%s' holds half a backup", left);
    else if (given_up && c->control)
        cli_failf("backup", "did not wait for the end of job '%s': 'stillpoint jobs' tells "
                  "whether it still runs", first->job);
    else
        cli_failf("backup", "cancelled; nothing was left behind");
    return EXIT_CANCELLED;
}

static int tell_failed(struct backup_command *c)
{
    json_t *event = c->to ? json_pack("{s:s}", "event", "failed")
                          : json_pack("{s:s, s:s}", "event", "failed", "job", c->disks[0].job);

    json_object_set_new(event, "error", schema_json_str(c->run.err.text));
    progress_event(&c->progress, event);
    return cli_fail("backup", &c->run.err);
}

/* ---- the end --------------------------------------------------------------------------- */

/* The target is closed, and gets its name. Only then may the bitmap forget what it knows:
 * whoever kills this command in between has the same changes in the next backup. */
static enum backup_end publish_and_finalize(struct backup_command *c)
{
    struct backup_disk *d = &c->disks[0];
    enum backup_end end;
    struct err why = ERR_INIT;

    d->published = target_name_publish(&d->target, &why);
    end = backup_run_finalize(&c->run, d->published);
    if (!d->published) {
        c->run.err = why;
        return BACKUP_END_FAILED;
    }
    if (end != BACKUP_END_DONE) {
        d->target.given_up = true;
        err_prefix(&c->run.err, "The backup '%s' is whole, but its changes will be in the next "
                   "one again: ", d->target_name);
        return BACKUP_END_FAILED;
    }
    return end;
}

/* All are whole, and get their names. One that cannot does not keep the others from it. */
static bool publish_all(struct backup_command *c)
{
    bool ok = true;

    for (size_t i = 0; i < c->n_disks; i++) {
        struct backup_disk *d = &c->disks[i];
        struct err why = ERR_INIT;

        if (!d->published)
            d->published = target_name_publish(&d->target, &why);
        if (!d->published && ok)
            c->run.err = why;
        ok &= d->published;
    }
    return ok;
}

/* The images of a point have been copied: it comes into being, or nothing of it stays. The disks
 * keep the bitmaps that go with that. */
static enum backup_end make_point(struct backup_command *c, enum backup_end end)
{
    if (end == BACKUP_END_DONE &&
        (!backup_set_make_digests(c) || !publish_all(c) || !backup_set_record(c)))
        end = c->run.err.code == -ECANCELED && c->interrupt.count ? BACKUP_END_CANCELLED
                                                                 : BACKUP_END_FAILED;
    for (size_t i = 0; end != BACKUP_END_DONE && i < c->n_disks; i++) {
        if (c->disks[i].published)
            (void)unlink(c->disks[i].made);
    }
    backup_set_settle(c);
    return end;
}

/* From jobs that were started, or not, to an exit status. */
static int finish(struct backup_command *c, enum backup_end end)
{
    progress_clear(&c->progress);
    /* The targets are closed when the jobs' end is told, unless they hang. */
    if (end == BACKUP_END_DONE && !c->to && !publish_all(c))
        end = BACKUP_END_FAILED;
    switch (end) {
    case BACKUP_END_DONE:
        if (is_dry(c))
            return backup_set_tell_dry(c);
        tell_done(c);
        if (c->json)
            (void)cli_put_json("backup", set_manifest_json(&c->set->m));
        /* Said or not: the backup is there. */
        (void)cli_end_output("backup");
        return EXIT_OK;
    case BACKUP_END_FAILED:
        (void)discard_all(c);
        return tell_failed(c);
    case BACKUP_END_CANCELLED:
    case BACKUP_END_GIVEN_UP:
        return tell_cancelled(c, end == BACKUP_END_GIVEN_UP);
    case BACKUP_END_PENDING:
        break;
    }
    abort();
}

/* Whether the instant was taken, and as the user wants it. The guest is let go in any case. */
static bool cut(struct backup_command *c)
{
    bool ok, quiet;

    if (!backup_hold_guest(c))
        return false;
    ok = backup_start_jobs(c);
    quiet = backup_let_guest_go(c);
    return ok && quiet;
}

static enum backup_end not_started(struct backup_command *c)
{
    if (c->run.started)
        backup_run_abandon(&c->run);
    if (c->run.err.code != -EINTR)
        return BACKUP_END_FAILED;
    /* After one interrupt no job is started; a second one does not wait for the answer. */
    return c->interrupt.count > 1 ? BACKUP_END_GIVEN_UP : BACKUP_END_CANCELLED;
}

static enum backup_end run_jobs(struct backup_command *c)
{
    if ((!c->to || backup_set_open(c)) && backup_connect(c) && settle_targets(c)) {
        if (is_dry(c))
            return BACKUP_END_DONE;
        if (!cut(c))
            return not_started(c);
        tell_started(c);
        return backup_run_wait(&c->run);
    }
    return not_started(c);
}

/* A name without the way to it; of an URI all. */
static const char *last_part(const char *name)
{
    const char *slash = image_name_is_uri(name) ? NULL : strrchr(name, '/');

    return slash && slash[1] ? slash + 1 : name;
}

int cmd_backup(int argc, char **argv)
{
    struct backup_command c = {
        .cbw_timeout = UINT64_MAX, .guest_latency = -1, .run.err = ERR_INIT, .chain.mode = -1,
    };
    int status = parse(&c, argc, argv);
    enum backup_end end;

    if (status >= 0)
        return status;
    /* Whoever reads the progress may go away: no reason to leave a job behind. */
    signal(SIGPIPE, SIG_IGN);
    if (!interrupt_init(&c.interrupt, &c.run.err))
        return cli_fail("backup", &c.run.err);
    c.began = loop_now();
    c.what = c.n_disks > 1 ? xasprintf("%zu disks -> %s", c.n_disks, c.to)
                           : xasprintf("%s -> %s", last_part(c.disks[0].source),
                                       last_part(c.to ? c.to : c.disks[0].target_name));
    progress_init(&c.progress, c.json ? PROGRESS_NONE : (enum progress_style)c.style, c.what,
                  c.sync == SYNC_NONE, c.began);
    c.run.interrupt = &c.interrupt;
    c.run.progress = &c.progress;
    c.run.jobs = c.jobs;
    c.run.n_jobs = c.n_disks;
    c.run.open_ended = c.sync == SYNC_NONE;
    end = run_jobs(&c);
    if (end == BACKUP_END_PENDING)
        end = publish_and_finalize(&c);
    if (c.to && !is_dry(&c))
        end = make_point(&c, end);
    /* A local daemon is gone before its targets are renamed or removed. */
    backup_disconnect(&c, end == BACKUP_END_GIVEN_UP);
    status = finish(&c, end);
    backup_set_close(&c);
    free_disks(&c);
    backup_chain_done(&c.chain);
    interrupt_done(&c.interrupt);
    free(c.what);
    return status;
}
