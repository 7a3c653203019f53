/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint backup: a disk as it stands now, to a file, a device or an NBD
 * export. With a daemon at hand the disk is one that it serves, and may be
 * written meanwhile; else it is a file that nobody has open, served by a daemon
 * for the time of the backup (local_daemon.c), so that both are the same.
 */
#include "app/backup_chain.h"
#include "app/backup_run.h"
#include "app/cli.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/local_daemon.h"
#include "app/target_name.h"
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/drivers.h"
#include "job/job.h"
#include "loop/loop.h"
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum sync { SYNC_FULL, SYNC_TOP, SYNC_NONE };
static const char *const sync_names[] = { "full", "top", "none", NULL };

#define LOCAL_NODE "source"

struct backup_command {
    const char *source, *target_name;
    int sync, style;
    const char *control;           /* NULL: the source is a file */
    const char *format, *source_format, *job_id, *scratch_dir;
    struct cli_list image_dirs;
    uint64_t speed, scratch_limit, cbw_timeout;
    bool compress, force, no_reflink;
    struct backup_chain chain;
    bool published;                /* the target has its name */

    struct interrupt interrupt;
    struct local_daemon local;
    struct target_name target;
    struct progress progress;
    struct backup_run run;
    char *job, *what;
    time_t instant;
    uint64_t began;                /* loop_now time */
};

/* ---- arguments ------------------------------------------------------------------------ */

static const char *sync_name(const struct backup_command *c)
{
    return c->chain.incremental ? "incremental" : sync_names[c->sync];
}

static bool is_qcow2(const struct backup_command *c)
{
    return strcmp(c->format ? c->format : image_format_by_name(c->target_name), "qcow2") == 0;
}

static int parse(struct backup_command *c, int argc, char **argv)
{
    const struct cli_option options[] = {
        { "sync", 0, CLI_CHOICE, &c->sync, NULL,
          "full: everything, stands alone. top: what the topmost image holds, over the same "
          "backing file. none: old data, as it is overwritten from now on, over the disk itself; "
          "until Ctrl-C or 'stillpoint complete'", sync_names },
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
          "of TARGET: raw or qcow2; by the name's ending unless given" },
        { "source-format", 0, CLI_TEXT, &c->source_format, "FORMAT",
          "of SOURCE if it is a file" },
        CLI_IMAGE_DIR(&c->image_dirs),
        { "speed", 0, CLI_RATE, &c->speed, "RATE", "at most, such as 50M; 0: no limit",
          .max = INT64_MAX },
        { "compress", 'c', CLI_FLAG, &c->compress, NULL, "TARGET's data; qcow2 only" },
        { "no-reflink", 0, CLI_FLAG, &c->no_reflink, NULL,
          "a raw TARGET gets storage of its own, also where the file system could share it" },
        { "force", 0, CLI_FLAG, &c->force, NULL, "replace TARGET if it is there" },
        { "job-id", 0, CLI_TEXT, &c->job_id, "ID", "name of the job; SOURCE-SYNC unless given" },
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
        "backup", "SOURCE TARGET", 2, 2,
        "Back up a disk as it stands at this moment. With a control socket SOURCE is a disk\n"
        "that the daemon there serves, and may be written meanwhile. Without, it is an image\n"
        "that no process has open. TARGET is a file, a block device or an NBD URI. A file is\n"
        "there under its name only when the backup is whole (except with --sync none).",
        options,
        "  stillpoint backup disk monday.qcow2 --control control.sock --bitmap daily\n"
        "  stillpoint backup disk tuesday.qcow2 --control control.sock --bitmap daily \\\n"
        "      --incremental --backing monday.qcow2",
    };
    int first, status = -1;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c->source = argv[first];
    c->target_name = argv[first + 1];
    c->control = cli_control(c->control);
    if (c->control && (c->source_format || c->image_dirs.n))
        return cli_misuse("backup", "%s is for a SOURCE that is a file; the daemon at '%s' has "
                          "opened its disks", c->source_format ? "--source-format" : "--image-dir",
                          c->control);
    if (!c->control && c->sync == SYNC_NONE)
        return cli_misuse("backup", "--sync none is for a disk that is served: say --control");
    if (backup_chain_misuse(&c->chain, sync_names[c->sync]))
        return cli_misuse("backup", "%s", backup_chain_misuse(&c->chain, sync_names[c->sync]));
    if (c->compress && !is_qcow2(c))
        return cli_misuse("backup", "--compress needs a TARGET that can hold compressed data: a "
                          "name that ends in .qcow2, or --format qcow2");
    if (c->sync == SYNC_NONE && !is_qcow2(c))
        return cli_misuse("backup", "--sync none needs a TARGET that can stand on a backing file: "
                          "a name that ends in .qcow2, or --format qcow2");
    return cli_allow_image_dirs(&c->image_dirs, &c->run.err) ? -1 : cli_fail("backup", &c->run.err);
}

/* ---- the daemon ------------------------------------------------------------------------ */

static json_t *path_json(const char *path, struct err *err)
{
    json_t *s = json_string(path);

    if (!s)
        err_set(err, -EILSEQ, "The name '%s' has bytes that are not UTF-8, which QMP cannot carry",
                path);
    return s;
}

/* Have the local daemon open the source. */
static bool open_source(struct backup_command *c)
{
    struct err *err = &c->run.err;
    const char *format = image_format_to_read(c->source, c->source_format, err);
    struct open_file_opts o = {
        .filename = c->source, .format = format, .node_name = LOCAL_NODE,
        .read_only = !c->chain.bitmap,     /* which is kept in the image */
    };
    json_t *options;

    if (!format || !image_device_is_free(c->source, err))
        return false;
    drivers_register_all();
    options = node_json_for_file(&o, err);
    if (!options)
        return false;
    if (qmp_client_execute(c->run.client, "blockdev-add", options, NULL, err))
        return true;
    if (image_is_locked_by_others(err))
        return err_set(err, -EAGAIN, "'%s' is open in another process: if a daemon of Stillpoint "
                       "serves it, back up the live disk with --control PATH", c->source);
    return false;
}

static bool connect_daemon(struct backup_command *c)
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
    return c->run.client && open_source(c);
}

static void disconnect(struct backup_command *c, bool given_up)
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

static json_t *job_arguments(struct backup_command *c, bool make_bitmap)
{
    struct err *err = &c->run.err;
    json_t *target = path_json(target_name_job_path(&c->target), err);
    json_t *args, *scratch;

    if (!target)
        return NULL;
    args = json_pack("{s:o, s:o, s:s, s:s, s:s, s:s}", "device",
                     schema_json_str(c->control ? c->source : LOCAL_NODE), "target", target,
                     "format", c->target.format, "sync", sync_names[c->sync], "mode",
                     "absolute-paths", "job-id", c->job);
    if (!args) {
        err_set(err, -EILSEQ, "The name of the job or format has bytes that are not UTF-8");
        return NULL;
    }
    if (!backup_chain_arguments(&c->chain, make_bitmap, args, err)) {
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
    if (c->scratch_dir) {
        CLEANUP(free) char *dir = image_absolute_path(c->scratch_dir, err);

        scratch = dir ? path_json(dir, err) : NULL;
        if (!scratch) {
            json_decref(args);
            return NULL;
        }
        json_object_set_new(args, "scratch-dir", scratch);
    }
    return args;
}

/* The name that a job gets unless the user says. */
static char *default_job_id(const struct backup_command *c)
{
    CLEANUP(free) char *disk = c->control ? xstrdup(c->source) : image_disk_name(c->source);
    char *id = xasprintf("%s-%s", disk, sync_name(c));

    if (c->control || job_id_wellformed(id))
        return id;
    free(id);
    return xasprintf("backup-%s", sync_name(c));
}

/* "a, b and c" of the disks that the daemon serves. */
static void add_served(struct backup_command *c, struct strbuf *sb)
{
    CLEANUP(json_decref) json_t *exports = NULL;
    json_t *export;
    size_t i, n;

    if (!qmp_client_execute(c->run.client, "query-block-exports", NULL, &exports, NULL))
        return;
    n = json_array_size(exports);
    strbuf_add(sb, n ? "; it serves " : "; it serves none");
    json_array_foreach(exports, i, export)
        strbuf_addf(sb, "%s'%s'", i == 0 ? "" : i + 1 < n ? ", " : " and ",
                    json_string_value(json_object_get(export, "id")));
}

static bool no_such_disk(struct backup_command *c)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    add_served(c, &sb);
    if (access(c->source, F_OK) == 0)
        strbuf_add(&sb, ". For a file that nobody has open say --control ''");
    return err_set(&c->run.err, -ENODEV, "The daemon at '%s' has no disk '%s'%s", c->control,
                   c->source, strbuf_text(&sb));
}

/* The daemon's words in those of this command. */
static bool explain_refusal(struct backup_command *c)
{
    struct err *err = &c->run.err;

    if (c->control && strstr(err->text, "Cannot find device="))
        return no_such_disk(c);
    if (backup_chain_explain(&c->chain, c->source, err))
        return false;
    if (strstr(err->text, "Backing file not supported"))
        return err_set(err, err->code, "'%s' stands on a backing file, and so must a backup with "
                       "--sync top: a TARGET that ends in .qcow2, or --format qcow2", c->source);
    if (strstr(err->text, "Job ID") && strstr(err->text, "already in use"))
        return err_set(err, err->code, "A job '%s' runs already: 'stillpoint cancel %s' ends it, "
                       "--job-id gives this one another name", c->job, c->job);
    return false;
}

static bool ask_for_job(struct backup_command *c, bool make_bitmap)
{
    json_t *args = job_arguments(c, make_bitmap);

    return args && backup_run_start(&c->run, args);
}

static bool start_job(struct backup_command *c)
{
    if (!ask_for_job(c, false) && (!backup_chain_has_to_make(&c->chain, &c->run.err) ||
                                   !ask_for_job(c, true)))
        return explain_refusal(c);
    target_name_hold(&c->target);
    c->instant = time(NULL);
    progress_event(&c->progress,
                   json_pack("{s:s, s:s, s:o, s:o, s:s, s:I}", "event", "started", "job", c->job,
                             "source", schema_json_str(c->source), "target",
                             schema_json_str(c->target.path), "sync", sync_name(c),
                             "time", (json_int_t)c->instant));
    if (c->sync == SYNC_NONE && progress_for_people(&c->progress))
        printf("The instant is taken; Ctrl-C or 'stillpoint complete %s' ends the backup\n",
               c->job);
    return true;
}

/* ---- the end --------------------------------------------------------------------------- */

static void tell_done(struct backup_command *c)
{
    uint64_t ns = loop_now() - c->began;
    char size[HUMAN_TEXT], rate[HUMAN_TEXT], duration[HUMAN_TEXT], instant[64];
    double seconds = (double)MAX(ns, NSEC_PER_MSEC) / NSEC_PER_SEC;
    struct tm tm;

    progress_event(&c->progress,
                   json_pack("{s:s, s:s, s:o, s:I, s:f}", "event", "completed", "job", c->job,
                             "target", schema_json_str(c->target.path), "bytes",
                             (json_int_t)c->run.current, "seconds", seconds));
    if (!progress_for_people(&c->progress))
        return;
    localtime_r(&c->instant, &tm);
    strftime(instant, sizeof(instant), "%Y-%m-%d %H:%M:%S", &tm);
    human_duration((uint64_t)(seconds + 0.5), duration);
    if (seconds < 10)
        snprintf(duration, sizeof(duration), "%.2g s", seconds);
    printf("%s: '%s' as it stood at %s; %s in %s, %s/s\n", c->target_name, c->source, instant,
           human_size(c->run.current, size), duration,
           human_size((uint64_t)((double)c->run.current / seconds), rate));
}

static int tell_cancelled(struct backup_command *c, bool given_up)
{
    progress_event(&c->progress, json_pack("{s:s, s:s}", "event", "cancelled", "job", c->job));
    /* Somebody else's soft cancel is one of the ways to complete sync=none. */
    if (c->sync == SYNC_NONE && !c->run.asked && c->run.started)
        cli_failf("backup", "the job was cancelled; '%s' is whole only if that was done without "
                  "--force", c->target_name);
    else if (!target_name_discard(&c->target, c->run.started))
        cli_failf("backup", "cancelled; '%s' holds half a backup",
                  target_name_job_path(&c->target));
    else if (given_up && c->control)
        cli_failf("backup", "did not wait for the end of job '%s': 'stillpoint jobs' tells "
                  "whether it still runs", c->job);
    else
        cli_failf("backup", "cancelled; nothing was left behind");
    return EXIT_CANCELLED;
}

static int tell_failed(struct backup_command *c)
{
    progress_event(&c->progress, json_pack("{s:s, s:s, s:o}", "event", "failed", "job", c->job,
                                           "error", schema_json_str(c->run.err.text)));
    return cli_fail("backup", &c->run.err);
}

/* The target is closed, and gets its name. Only then may the bitmap forget what it knows:
 * whoever kills this command in between has the same changes in the next backup. */
static enum backup_end publish_and_finalize(struct backup_command *c)
{
    enum backup_end end;
    struct err why = ERR_INIT;

    c->published = target_name_publish(&c->target, &why);
    end = backup_run_finalize(&c->run, c->published);
    if (!c->published) {
        c->run.err = why;
        return BACKUP_END_FAILED;
    }
    if (end != BACKUP_END_DONE) {
        c->target.given_up = true;
        err_prefix(&c->run.err, "The backup '%s' is whole, but its changes will be in the next "
                   "one again: ", c->target_name);
        return BACKUP_END_FAILED;
    }
    return end;
}

/* From a job that was started, or not, to an exit status. */
static int finish(struct backup_command *c, enum backup_end end)
{
    progress_clear(&c->progress);
    /* The target is closed when the job's end is told, unless it hangs. */
    if (end == BACKUP_END_DONE && !c->published && !target_name_publish(&c->target, &c->run.err))
        end = BACKUP_END_FAILED;
    switch (end) {
    case BACKUP_END_DONE:
        tell_done(c);
        /* Said or not: the backup is there. */
        (void)cli_end_output("backup");
        return EXIT_OK;
    case BACKUP_END_FAILED:
        (void)target_name_discard(&c->target, c->run.started);
        return tell_failed(c);
    case BACKUP_END_CANCELLED:
    case BACKUP_END_GIVEN_UP:
        return tell_cancelled(c, end == BACKUP_END_GIVEN_UP);
    case BACKUP_END_PENDING:
        break;
    }
    abort();
}

static enum backup_end run_job(struct backup_command *c)
{
    const struct target_name_opts o = {
        .name = c->target_name, .format = c->format, .force = c->force,
        .in_place = c->sync == SYNC_NONE,
    };

    if (connect_daemon(c) && target_name_init(&c->target, &o, &c->run.err) &&
        backup_chain_settle(&c->chain, &c->target, &c->run.err) && start_job(c))
        return backup_run_wait(&c->run);
    if (c->run.err.code != -EINTR)
        return BACKUP_END_FAILED;
    /* After one interrupt no job is started; a second one does not wait for the answer. */
    return c->interrupt.count > 1 ? BACKUP_END_GIVEN_UP : BACKUP_END_CANCELLED;
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
        .cbw_timeout = UINT64_MAX, .run.err = ERR_INIT, .chain.mode = -1,
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
    c.job = c.job_id ? xstrdup(c.job_id) : default_job_id(&c);
    c.what = xasprintf("%s -> %s", last_part(c.source), last_part(c.target_name));
    progress_init(&c.progress, (enum progress_style)c.style, c.what, c.sync == SYNC_NONE,
                  c.began);
    c.run.interrupt = &c.interrupt;
    c.run.progress = &c.progress;
    c.run.job = c.job;
    c.run.open_ended = c.sync == SYNC_NONE;
    end = run_job(&c);
    if (end == BACKUP_END_PENDING)
        end = publish_and_finalize(&c);
    /* A local daemon is gone before its target is renamed or removed. */
    disconnect(&c, end == BACKUP_END_GIVEN_UP);
    status = finish(&c, end);
    target_name_done(&c.target);
    backup_chain_done(&c.chain);
    interrupt_done(&c.interrupt);
    free(c.job);
    free(c.what);
    return status;
}
