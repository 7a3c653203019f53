/* SPDX-License-Identifier: Apache-2.0
 *
 * What backup_scene.h declares.
 */
#include "backup_scene.h"
#include "base/mem.h"

static void on_status(void *arg, struct job *job, enum job_status status)
{
    struct scene *s = arg;

    s->paused += status == JOB_PAUSED;
}

static void on_error(void *arg, struct job *job, enum job_op op, enum job_action action, int err)
{
    struct scene *s = arg;

    s->errors++;
    s->stops += action == JOB_ACTION_STOP;
    s->last_op = op;
}

static void on_completed(void *arg, struct job *job)
{
    ((struct scene *)arg)->completed = true;
}

static void on_cancelled(void *arg, struct job *job)
{
    ((struct scene *)arg)->cancelled = true;
}

static void on_finished(void *arg, struct job *job, int ret, const struct err *err)
{
    struct scene *s = arg;

    s->finished = true;
    s->ret = ret;
    s->err = *err;
}

static const struct job_events events = {
    .status_change = on_status,
    .error = on_error,
    .completed = on_completed,
    .cancelled = on_cancelled,
    .finished = on_finished,
};

void co_scene(struct scene *s, const char *source_json)
{
    struct err err = ERR_INIT;

    *s = (struct scene){ .opts = BACKUP_OPTS_DEFAULT };
    s->source = source_json ? co_test_open("%s", source_json)
                            : co_test_open("{'driver':'test-mem','node-name':'src','size':%ju,"
                                           "'discard':'unmap'}", (uintmax_t)DISK_SIZE);
    s->target = co_test_open("{'driver':'test-mem','node-name':'dst','size':%ju,"
                             "'discard':'unmap'}", (uintmax_t)DISK_SIZE);
    s->from = mem_of(s->source);
    s->to = mem_of(s->target);
    s->guest = disk_open(s->source, "guest", EDGE_READ | EDGE_WRITE, EDGE_READ | EDGE_WRITE, &err);
    assert_non_null(s->guest);
    mem_fill(s->from, 0, DISK_SIZE / 2, MEM_IS_DATA, 1);
    mem_fill(s->to, 0, DISK_SIZE, MEM_IS_DATA, 0xee);
    s->opts.source = s->source;
    s->opts.target = s->target;
    s->opts.max_chunk = 64 * KiB;
    s->opts.events = &events;
    s->opts.events_arg = s;
}

void co_strike(struct scene *s)
{
    job_unref(s->job);
    disk_close(s->guest);
    co_node_unref(s->target);
    co_node_unref(s->source);
}

void co_start_backup(struct scene *s)
{
    struct err err = ERR_INIT;

    s->job = co_backup_start(&s->opts, &err);
    if (!s->job)
        fail_msg("%s", err.text);
}

int co_end_of_job(struct scene *s)
{
    assert_true(co_job_wait_concluded(s->job, loop_now() + 20 * NSEC_PER_SEC));
    assert_true(s->finished && s->completed != s->cancelled);
    return s->ret;
}

void co_guest_write(struct scene *s, uint64_t off, uint64_t len, int byte)
{
    CLEANUP(free) uint8_t *buf = xmalloc(len);
    struct iovec iov = { buf, len };

    memset(buf, byte, len);
    assert_int_equal(co_disk_pwritev(s->guest, off, len, &iov, 1, 0), 0);
}

uint8_t *co_content(struct node *n)
{
    uint8_t *buf = xmalloc(DISK_SIZE);

    assert_int_equal(co_node_pread(n, 0, DISK_SIZE, buf, 0), 0);
    return buf;
}

void co_expect_target(struct scene *s, const uint8_t *want)
{
    CLEANUP(free) uint8_t *got = co_content(s->target);

    for (uint64_t i = 0; i < DISK_SIZE; i++) {
        if (got[i] != want[i])
            fail_msg("byte %ju of the target: %d instead of %d", (uintmax_t)i, got[i], want[i]);
    }
}

struct job_info scene_query(struct scene *s)
{
    struct job_info info;

    job_query(s->job, &info);
    return info;
}
