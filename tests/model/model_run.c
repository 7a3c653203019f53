/* SPDX-License-Identifier: Apache-2.0
 *
 * One backup of the model: options and trouble by chance, the start behind shut
 * doors, steering while it runs, and what has to be true when it has ended.
 */
#include "model_run.h"
#include "base/mem.h"
#include "drivers/fault.h"
#include <stdio.h>
#include <sys/wait.h>

#define STUCK_NS (30 * NSEC_PER_SEC)

static void on_finished(void *arg, struct job *job, int ret, const struct err *err)
{
    struct run *r = arg;

    r->finished = true;
    r->ret = ret;
    r->err = *err;
}

static const struct job_events events = { .finished = on_finished };

/* ---- choosing --------------------------------------------------------------------------- */

static uint32_t pick_cluster(struct model *m)
{
    static const uint32_t clusters[] = { 4 * KiB, 16 * KiB, 64 * KiB, 64 * KiB, 512 * KiB };

    return clusters[model_random(m, ARRAY_SIZE(clusters))];
}

static void pick_view(struct run *r)
{
    struct view_opts *v = &r->o.view;
    struct model *m = r->m;

    v->scratch_dir = m->dir;
    if (r->trouble == TROUBLE_BREAK) {
        v->scratch_dir = NULL;
        v->scratch_memory = 2 * VIEW_GRANULE;
        v->cbw_timeout_ns = NSEC_PER_MSEC;
        return;
    }
    if (one_in(m, 2))
        v->scratch_memory = model_random(m, 64) * VIEW_GRANULE;
    /* Where guests have to wait for the drain the target must not stand still. */
    if (one_in(m, 4) && (r->trouble == TROUBLE_NONE || r->trouble == TROUBLE_SLOW))
        v->scratch_limit = (1 + model_random(m, 64)) * VIEW_GRANULE;
    m->limited |= v->scratch_limit != 0;
}

static void pick_trouble(struct run *r, unsigned troubles)
{
    struct model *m = r->m;

    if (one_in(m, 2))
        return;
    r->trouble = model_random(m, troubles);
    if (r->trouble == TROUBLE_HANG && !one_in(m, 4))   /* each costs its grace */
        r->trouble = TROUBLE_NONE;
    r->o.on_target_error = model_random(m, BACKUP_ON_ERROR_AUTO + 1);
    r->o.on_source_error = model_random(m, BACKUP_ON_ERROR_AUTO + 1);
}

static void add_trouble(struct run *r)
{
    static const enum fault_op ops[] = { FAULT_WRITE, FAULT_WRITE, FAULT_WRITE_ZEROES, FAULT_ANY };
    struct model *m = r->m;
    struct fault_rule rule = {
        .op = ops[model_random(m, ARRAY_SIZE(ops))],
        .nth = 1 + model_random(m, one_in(m, 2) ? 4 : 30),
        .once = true,
    };

    switch (r->trouble) {
    case TROUBLE_SLOW:
        rule = (struct fault_rule){ .op = FAULT_WRITE,
                                    .delay_ns = model_random(m, 3 * NSEC_PER_MSEC) };
        break;
    case TROUBLE_SLOW_SOURCE:
        rule = (struct fault_rule){ .op = FAULT_WRITE,
                                    .delay_ns = model_random(m, 2 * NSEC_PER_MSEC) };
        fault_add_rule(m->source_fault, &rule);
        return;
    case TROUBLE_TARGET_ERROR:
        rule.error = one_in(m, 2) ? -EIO : -ENOSPC;
        break;
    case TROUBLE_FLUSH_ERROR:
        rule = (struct fault_rule){ .op = FAULT_FLUSH, .error = -EIO };
        break;
    case TROUBLE_HANG:
        rule.hang = true;
        rule.once = false;
        break;
    case TROUBLE_SOURCE_ERROR:
        rule.op = FAULT_READ;
        rule.error = -EIO;
        fault_add_rule(m->source_fault, &rule);
        return;
    default:
        return;
    }
    fault_add_rule(r->target.fault, &rule);
}

/* What an image that existed before may hold. */
static void co_litter(struct run *r)
{
    CLEANUP(free) uint8_t *buf = xmalloc(r->m->size);

    model_fill(r->m, buf, r->m->size);
    int ret = co_node_pwrite(r->target.node, 0, r->m->size, buf, 0);

    if (ret < 0)
        model_fail(r->m, "cannot litter the target: %s", strerror(-ret));
}

void run_pick(struct run *r, unsigned troubles)
{
    struct model *m = r->m;

    pick_trouble(r, troubles);
    pick_view(r);
    r->o.auto_finalize = r->trouble != TROUBLE_CANCEL_PENDING;
    r->o.max_workers = 1 + model_random(m, 16);
    if (one_in(m, 2))
        r->o.max_chunk = 512 * KiB << model_random(m, 3);
    if (one_in(m, 4))
        r->o.speed = 1 * MiB + model_random(m, 32 * MiB);
}

static void co_make_target(struct run *r)
{
    struct model *m = r->m;
    struct image_opts o = { .cluster_size = pick_cluster(m) };

    o.format = m->size % 512 || one_in(m, 2) ? MODEL_RAW : MODEL_QCOW2;
    r->o.sync = model_random(m, 3);
    if (o.format == MODEL_RAW)
        r->o.sync = BACKUP_FULL;
    if (r->o.sync == BACKUP_TOP && m->backing[0]) {
        o.backing = m->backing;
        o.backing_format = m->backing_format;
    } else if (r->o.sync == BACKUP_NONE) {
        o.backing = m->path;
        o.backing_format = m->format == MODEL_RAW ? "raw" : "qcow2";
    }
    co_image_create(m, &r->target, &o);
    co_image_open(m, &r->target, false, false);
    r->fresh = r->o.sync != BACKUP_FULL || !one_in(m, 3);
    if (!r->fresh)
        co_litter(r);
    r->o.target_is_zero = r->fresh && !o.backing;
}

/* ---- steering ------------------------------------------------------------------------------- */

static struct job_info query(struct run *r)
{
    struct job_info info;

    job_query(r->job, &info);
    return info;
}

/* The end of sync=none. The source must not change any more for the target to be
 * of use. Writers may be waiting for this very job to drain, so it has to run. */
static void co_end_none(struct run *r)
{
    if (query(r).paused) {
        (void)!job_user_resume(r->job, NULL);
        return;
    }
    if (!r->resting)
        co_guest_hold(r->m);
    r->resting = true;
    if (one_in(r->m, 2))
        r->ended = r->cancelled = job_cancel(r->job, false, NULL);
    else
        r->ended = job_complete(r->job, NULL);
}

static void steer(struct run *r)
{
    struct model *m = r->m;
    bool accepted = true;

    switch (model_random(m, 8)) {
    case 0:
        accepted = job_user_pause(r->job, NULL);
        break;
    case 1:
        accepted = job_set_speed(r->job, one_in(m, 2) ? 0 : 4 * MiB + model_random(m, 64 * MiB),
                                 NULL);
        break;
    default:
        if (query(r).paused)
            accepted = job_user_resume(r->job, NULL);
        break;
    }
    (void)accepted;      /* refused when the job is just coming to its end */
}

/* The work is done, and how it ended is not final yet. */
static void end_pending(struct run *r)
{
    if (one_in(r->m, 2))
        r->cancelled = job_cancel(r->job, true, NULL);
    else if (!job_finalize(r->job, NULL))
        model_fail(r->m, "%s cannot be finalized", r->id);
}

static void co_steer_to_end(struct run *r)
{
    bool by_force = r->trouble == TROUBLE_CANCEL || r->trouble == TROUBLE_HANG;
    struct model *m = r->m;
    uint64_t stuck_at = loop_now() + STUCK_NS;

    while (!r->finished) {
        struct job_info info = query(r);

        if (loop_now() > stuck_at)
            model_fail(m, "%s is stuck: %s, %ju of %ju bytes", r->id,
                       job_status_name(info.status), (uintmax_t)info.current,
                       (uintmax_t)info.total);
        if (info.status == JOB_PENDING)
            end_pending(r);
        else if (loop_now() < r->ends_at || r->ended)
            steer(r);
        else if (by_force)
            r->ended = r->cancelled = job_cancel(r->job, true, NULL);
        else
            co_end_none(r);
        co_sleep(model_random(m, 3 * NSEC_PER_MSEC));
    }
}

/* ---- the judgement --------------------------------------------------------------------- */

static void judge_by_peer(struct run *r)
{
    char command[700];

    if (r->target.format != MODEL_QCOW2)
        return;
    snprintf(command, sizeof(command), "qemu-img check -q -U %s >&2", r->target.path);
    int status = system(command);

    if (!WIFEXITED(status) || WEXITSTATUS(status))
        model_fail(r->m, "%s: qemu-img check says %d", r->id, WEXITSTATUS(status));
}

/* Where the target holds nothing the source shows through. */
static void co_put_over_source(struct run *r, uint8_t *got)
{
    CLEANUP(free) uint8_t *below = co_guest_read(r->m);

    for (uint64_t at = 0; at < r->m->size;) {
        struct block_status st;
        int ret = co_node_status(r->target.node, at, r->m->size - at, &st);

        if (ret < 0)
            model_fail(r->m, "%s: status: %s", r->id, strerror(-ret));
        if (!(st.flags & STATUS_ALLOCATED))
            memcpy(got + at, below + at, st.len);
        at += st.len;
    }
}

void co_run_compare(struct run *r, bool backing)
{
    CLEANUP(free) uint8_t *got = xmalloc(r->m->size);
    char what[64];

    co_image_open(r->m, &r->target, backing, true);
    int ret = co_node_pread(r->target.node, 0, r->m->size, got, 0);

    if (ret < 0)
        model_fail(r->m, "%s: cannot read the target: %s", r->id, strerror(-ret));
    if (r->o.sync == BACKUP_NONE)
        co_put_over_source(r, got);
    snprintf(what, sizeof(what), "%s (sync %d)", r->id, r->o.sync);
    shadow_expect(r->m, &r->frozen, got, what);
    watch_expect(r->m, &r->watch, got, what);
    co_image_close(&r->target);
    if (r->m->peers)
        judge_by_peer(r);
}

static bool may_fail(struct run *r)
{
    bool retries = r->o.on_target_error == BACKUP_ON_ERROR_IGNORE ||
                   r->o.on_target_error == BACKUP_ON_ERROR_STOP;

    if (r->cancelled || r->trouble == TROUBLE_BREAK || fault_applied(r->m->source_fault))
        return true;
    /* A flush is never tried again, whatever the policy. */
    if (strstr(r->err.text, "Cannot flush"))
        retries = false;
    return r->trouble == TROUBLE_FLUSH_ERROR || (r->trouble == TROUBLE_TARGET_ERROR && !retries);
}

bool run_is_well(struct run *r)
{
    bool drained = r->o.sync == BACKUP_NONE && r->ret == -ECANCELED && r->ended &&
                   r->trouble != TROUBLE_CANCEL && r->trouble != TROUBLE_HANG;

    if (r->ret < 0 && !may_fail(r))
        model_fail(r->m, "%s failed: %s", r->id, r->err.text);
    if (r->ret == 0 || drained)
        r->m->passed++;
    else
        *(r->ret == -ECANCELED ? &r->m->cancelled : &r->m->failed) += 1;
    return r->ret == 0 || drained;
}

/* ---- all of it ------------------------------------------------------------------------- */

/* The shadow is frozen at the instant: either the doors are shut around both, or
 * what happened during the start may be in or out. */
static void co_start_at_an_instant(struct run *r)
{
    bool exact = one_in(r->m, 2);
    struct model *m = r->m;
    struct err err = ERR_INIT;
    int ret = exact ? co_shut_doors(m->source, loop_now() + STUCK_NS) : 0;

    if (ret < 0)
        model_fail(m, "the doors do not shut: %s", strerror(-ret));
    watch_begin(m, &r->watch);
    r->job = co_backup_start(&r->o, &err);
    if (!r->job)
        model_fail(m, "%s: %s", r->id, err.text);
    shadow_copy(m, &r->frozen, &m->now);
    watch_end(m, &r->watch, &r->frozen);
    if (exact)
        open_doors(m->source);
}

static void co_let_go(struct run *r)
{
    if (r->trouble == TROUBLE_HANG)
        fault_release(r->target.fault);
    if (r->trouble == TROUBLE_SOURCE_ERROR || r->trouble == TROUBLE_SLOW_SOURCE)
        fault_clear_rules(r->m->source_fault);
    co_node_unref(MOVE(r->target.fault));
}

struct run *run_new(struct model *m, const char *name, unsigned index)
{
    struct run *r = xnew(struct run);

    *r = (struct run){ .m = m, .o = BACKUP_OPTS_DEFAULT };
    snprintf(r->id, sizeof(r->id), "%.8s%u", name, index % 1000000);
    r->o.job_id = r->id;
    r->o.source = m->source;
    r->o.events = &events;
    r->o.events_arg = r;
    return r;
}

void run_free(struct run *r)
{
    if (r->resting)
        guest_go(r->m);
    shadow_free(&r->frozen);
    watch_free(&r->watch);
    free(r);
}

void co_run_job(struct run *r)
{
    struct model *m = r->m;

    add_trouble(r);
    r->o.target = r->target.node;
    co_start_at_an_instant(r);
    co_node_unref(MOVE(r->target.node));
    r->ends_at = UINT64_MAX;
    if (r->o.sync == BACKUP_NONE || r->trouble == TROUBLE_CANCEL || r->trouble == TROUBLE_HANG)
        r->ends_at = loop_now() + model_random(m, 40 * NSEC_PER_MSEC);
    if (m->verbose)
        printf("  %s: sync %d mode %d trouble %d to %s, %u workers\n", r->id, r->o.sync,
               r->o.bitmap_mode, r->trouble, r->target.path, r->o.max_workers);
    co_steer_to_end(r);
    co_let_go(r);
    job_unref(MOVE(r->job));
}

void co_model_backup(struct model *m, unsigned index)
{
    struct run *r = run_new(m, "backup", index);

    run_pick(r, TROUBLES);
    co_make_target(r);
    co_run_job(r);
    if (run_is_well(r))
        co_run_compare(r, r->o.sync == BACKUP_TOP);
    image_delete(&r->target);
    run_free(r);
}
