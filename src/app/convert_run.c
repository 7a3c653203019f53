/* SPDX-License-Identifier: Apache-2.0
 *
 * Everything that can be found wrong is found before the target is touched; then
 * its image is made and opened, a backup job is started, and seen to its end. Only
 * one coroutine here: it shows the progress and hears Ctrl-C while the job's work.
 */
#include "app/convert_run.h"
#include "app/convert_target.h"
#include "app/image_name.h"
#include "base/mem.h"
#include "job/backup.h"
#include "loop/co_io.h"
#include <poll.h>

struct run {
    struct convert *c;
    struct node *source, *below;     /* references */
    struct convert_target to;
    struct co_poll poll;       /* for Ctrl-C; woken by the job */
    bool over;
    struct err why;            /* it failed */
    enum convert_end end;
};

/* ---- what is read ------------------------------------------------------------------------ */

static bool co_open_source(struct run *run)
{
    struct convert *c = run->c;

    run->source = co_offline_open(&c->source, &c->err);
    if (!run->source)
        return false;
    c->size = node_size(run->source);
    if (node_uses_file(run->source, c->target->path))
        return err_set(&c->err, -EINVAL, "'%s' belongs to the source '%s': choose another target",
                       c->target->name, c->source.name);
    return true;
}

/* What the new image will show where nothing is written to it. */
static bool co_open_below(struct run *run)
{
    struct convert *c = run->c;
    CLEANUP(free) char *path = NULL;

    if (!c->options->has_backing_file)
        return true;
    path = image_path_beside(c->target->path, c->options->backing_file);

    const struct offline_open o = {
        .name = path, .format = image_formats[c->options->backing_fmt],
        .force_share = c->source.force_share,
    };

    run->below = co_offline_open(&o, &c->err);
    if (!run->below) {
        err_prefix(&c->err, "The backing file: ");
        return false;
    }
    if (node_uses_file(run->below, c->target->path))
        return err_set(&c->err, -EINVAL, "'%s' belongs to the backing file '%s': choose another "
                       "target", c->target->name, path);
    return true;
}

/* ---- what is written ----------------------------------------------------------------------- */

static bool co_make_target(struct run *run)
{
    struct convert *c = run->c;
    bool ok;

    run->to = (struct convert_target){
        .name = c->target, .format = c->format, .options = c->options, .existing = c->existing,
        .size = c->size, .watch = c->watch,
    };
    ok = co_convert_target_open(&run->to, &c->err);
    c->started = run->to.started;
    return ok;
}

/* ---- names ------------------------------------------------------------------------------- */

/* Where @err names @n as the graph does, name it as the user did. */
static void name_node(struct err *err, const struct node *n, const char *name)
{
    CLEANUP(free) char *old = n ? xasprintf("'%s'", node_name(n)) : NULL;
    const char *at = old ? strstr(err->text, old) : NULL;

    if (at) {
        CLEANUP(free) char *text = xasprintf("%.*s'%s'%s", (int)(at - err->text), err->text, name,
                                             at + strlen(old));

        err_set(err, err->code, "%s", text);
    }
}

static enum convert_end failed(struct run *run)
{
    name_node(&run->c->err, run->source, run->c->source.name);
    name_node(&run->c->err, run->to.image, run->c->target->name);
    return CONVERT_FAILED;
}

/* ---- the job ------------------------------------------------------------------------------- */

static void job_finished(void *arg, struct job *job, int ret, const struct err *err)
{
    struct run *run = arg;

    if (ret < 0)
        run->why = *err;
    run->over = true;
    co_poll_wake(&run->poll);
}

static const struct job_events events = { .finished = job_finished };

static struct job *co_start_job(struct run *run)
{
    struct convert *c = run->c;
    struct backup_opts o = BACKUP_OPTS_DEFAULT;

    o.job_id = "convert";
    o.source = run->source;
    o.target = run->to.image;
    o.target_is_zero = run->to.is_zero || c->target_is_zero;
    o.zero_is_sure = c->target_is_zero;
    o.allocate = c->allocate;
    o.below = run->below;
    o.compress = c->compress;
    o.speed = c->speed;
    if (c->parallel)
        o.max_workers = (uint32_t)c->parallel;
    o.events = &events;
    o.events_arg = run;
    return co_backup_start(&o, &c->err);
}

static void show(struct run *run, struct job *job)
{
    struct convert *c = run->c;
    struct job_info info;

    job_query(job, &info);
    c->copied = info.current;
    if (!run->over && loop_now() >= c->watch->progress.next) {
        const struct progress_state s = {
            .current = info.current, .total = info.total,
            .note = info.cancelling ? "cancelling; Ctrl-C again does not wait for it" : NULL,
        };

        progress_update(&c->watch->progress, &s, loop_now());
    }
}

/* Pass Ctrl-C on. False: the user has had enough. */
static bool hear_interrupt(struct run *run, struct job *job)
{
    struct interrupt *i = &run->c->watch->interrupt;
    unsigned before = i->count;

    interrupt_take(i);
    if (i->count > 1)
        return false;
    if (i->count > before) {
        struct err ignored;

        /* It cannot be that it is not allowed, only that it is not needed any more. */
        if (job_cancel(job, true, &ignored))
            run->c->watch->progress.next = 0;
    }
    return true;
}

static enum convert_end co_see_to_end(struct run *run, struct job *job)
{
    struct convert *c = run->c;

    while (!run->over) {
        if (!hear_interrupt(run, job))
            return CONVERT_GIVEN_UP;
        show(run, job);
        (void)co_poll(&run->poll, c->watch->interrupt.fd, POLLIN,
                      c->watch->progress.next);
    }
    show(run, job);
    /* What it was is told; now it shall be gone, too. */
    while (!co_job_wait_concluded(job, DEADLINE_NEVER))
        ;
    if (job_is_cancelled(job))
        return CONVERT_CANCELLED;
    if (!run->why.text[0])
        return CONVERT_DONE;
    c->err = run->why;
    return failed(run);
}

static enum convert_end co_copy(struct run *run)
{
    struct job *job = co_start_job(run);

    if (!job)
        return failed(run);
    run->c->started = true;

    enum convert_end end = co_see_to_end(run, job);

    job_unref(job);
    return end;
}

static int co_convert(void *arg)
{
    struct run *run = arg;
    struct convert *c = run->c;

    run->end = CONVERT_FAILED;
    if (co_open_source(run) && co_open_below(run) && co_make_target(run))
        run->end = co_copy(run);
    else if (c->err.code == -ECANCELED && watch_cancelled(c->watch))
        run->end = CONVERT_CANCELLED;
    /* What hangs is left to the end of the process. */
    if (run->end == CONVERT_GIVEN_UP)
        return 0;
    co_convert_target_close(&run->to);
    co_node_unref(run->below);
    co_node_unref(run->source);
    return 0;
}

enum convert_end convert_run(struct convert *c)
{
    struct run run = { .c = c, .why = ERR_INIT };

    if (offline_run(co_convert, &run, &c->err) < 0)
        return CONVERT_FAILED;
    return run.end;
}
