/* SPDX-License-Identifier: Apache-2.0
 *
 * A monitor: one connection that speaks QMP. Two coroutines each, both on the
 * main loop: one reads messages and answers them in order, the other sends what
 * has gathered in the queue. Answers wait for the queue to drain before the next
 * message is read; events cannot wait, so a peer that does not read them is
 * disconnected when LIMIT_QMP_OUTPUT bytes are waiting.
 */
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "loop/stream.h"
#include "qmp/impl.h"
#include "qmp/json_stream.h"
#include <unistd.h>

#define READ_BUFFER_BYTES (16 * KiB)

/* No further message is read while more than this waits to be sent. */
#define QUIET_BYTES (64 * KiB)

struct monitor {
    struct qmp *qmp;
    struct list link;
    struct stream *stream;
    struct qmp_session session;
    bool pretty;
    void (*on_closed)(void *arg);
    void *on_closed_arg;

    struct json_stream input;
    struct strbuf queue;         /* to be sent, behind what the writer is sending */
    size_t sending;              /* bytes in the writer's hands */
    struct waitq writer_wake;    /* there is something to send, or no more to come */
    struct waitq drained;        /* the reader waits for less to be queued */
    bool closing;                /* send what is queued, then close */
    bool broken;                 /* close without sending */
    unsigned coroutines;
};

static size_t waiting_bytes(const struct monitor *m)
{
    return m->queue.len + m->sending;
}

static void monitor_break(struct monitor *m)
{
    m->broken = true;
    stream_shutdown(m->stream);
    waitq_wake_all(&m->writer_wake);
    waitq_wake_all(&m->drained);
}

/* Does not suspend. A message of any size is taken when nothing else waits. */
static void monitor_send(struct monitor *m, const json_t *message)
{
    size_t flags = JSON_ENCODE_ANY | JSON_ENSURE_ASCII | (m->pretty ? JSON_INDENT(4) : 0);

    if (m->broken)
        return;

    CLEANUP(free) char *text = json_dumps(message, flags);
    size_t len = text ? strlen(text) : 0;

    assert(text);

    if (waiting_bytes(m) && waiting_bytes(m) + len > LIMIT_QMP_OUTPUT) {
        log_warn("QMP: a client that does not read its messages was disconnected");
        monitor_break(m);
        return;
    }
    strbuf_addn(&m->queue, text, len);
    strbuf_add(&m->queue, "\r\n");
    waitq_wake_all(&m->writer_wake);
}

void qmp_monitors_send(struct qmp *q, const json_t *message)
{
    struct monitor *m;

    list_for_each(m, &q->monitors, link) {
        if (m->session.negotiated)
            monitor_send(m, message);
    }
}

/* The last of the two coroutines ends the monitor. */
static void monitor_leave(struct monitor *m)
{
    struct qmp *q = m->qmp;

    if (--m->coroutines)
        return;
    list_del(&m->link);
    q->n_monitors--;
    stream_free(m->stream);
    json_stream_done(&m->input);
    strbuf_done(&m->queue);
    if (m->on_closed)
        m->on_closed(m->on_closed_arg);
    free(m);
    waitq_wake_all(&q->monitor_gone);
}

/* ---- writing ---------------------------------------------------------------------- */

static int co_send_queue(struct monitor *m)
{
    size_t len = m->queue.len;
    CLEANUP(free) char *text = strbuf_steal(&m->queue);
    struct iovec iov = { .iov_base = text, .iov_len = len };

    m->sending = len;

    int r = co_stream_writev(m->stream, &iov, 1);

    m->sending = 0;
    waitq_wake_all(&m->drained);
    return r;
}

static void co_writer(void *arg)
{
    struct monitor *m = arg;

    while (!m->broken) {
        if (m->queue.len == 0) {
            if (m->closing)
                break;
            co_waitq_wait(&m->writer_wake);
        } else if (co_send_queue(m) < 0) {
            break;
        }
    }
    /* The reader may sit in a receive, or in a command: its next step ends it. */
    monitor_break(m);
    monitor_leave(m);
}

/* ---- reading ---------------------------------------------------------------------- */

/* One text that the stream has cut out. */
static void co_answer(struct monitor *m)
{
    struct err err = ERR_INIT;
    CLEANUP(json_decref) json_t *message =
        schema_parse_json(strbuf_text(&m->input.text), m->input.text.len, &err);
    CLEANUP(json_decref) json_t *response =
        message ? co_qmp_dispatch(m->qmp, &m->session, message) : qmp_error_response(&err);

    monitor_send(m, response);
    while (!m->broken && waiting_bytes(m) > QUIET_BYTES)
        co_waitq_wait(&m->drained);
}

static void refuse_long(struct monitor *m)
{
    struct err err;

    err_set(&err, -E2BIG, "JSON parse error, a message may have %llu bytes at most",
            (unsigned long long)LIMIT_QMP_INPUT);

    CLEANUP(json_decref) json_t *response = qmp_error_response(&err);

    monitor_send(m, response);
    m->closing = true;
}

/* Until the peer ends the connection, or it is ended from here. */
static void co_read_messages(struct monitor *m)
{
    while (!m->broken && !m->closing) {
        size_t len, taken;

        if (co_stream_fill(m->stream, 1) < 0)
            return;

        const char *bytes = stream_peek(m->stream, &len);
        enum json_stream_state state = json_stream_feed(&m->input, bytes, len, &taken);

        stream_consume(m->stream, taken);
        if (state == JSON_STREAM_TOO_LONG) {
            refuse_long(m);
        } else if (state == JSON_STREAM_VALUE) {
            co_answer(m);
            json_stream_next(&m->input);
        }
    }
}

static void send_greeting(struct monitor *m)
{
    CLEANUP(json_decref) json_t *greeting =
        json_pack("{s:{s:o,s:[]}}", "QMP", "version", qmp_version(), "capabilities");

    monitor_send(m, greeting);
}

static void co_reader(void *arg)
{
    struct monitor *m = arg;

    send_greeting(m);
    co_read_messages(m);
    /* What was answered is still sent to a peer that only ended its own side. */
    m->closing = true;
    waitq_wake_all(&m->writer_wake);
    monitor_leave(m);
}

/* ---- life -------------------------------------------------------------------------- */

void qmp_monitor_start(struct qmp *q, const struct qmp_monitor_opts *o)
{
    assert(loop_current() == q->loop);
    if (q->n_monitors >= LIMIT_QMP_MONITORS) {
        log_warn("QMP: a connection was refused: there are %u already", q->n_monitors);
        close(o->fd);
        if (o->on_closed)
            o->on_closed(o->arg);
        return;
    }

    struct monitor *m = xnew(struct monitor);

    m->qmp = q;
    m->stream = stream_new(o->fd, READ_BUFFER_BYTES);
    m->pretty = o->pretty;
    m->on_closed = o->on_closed;
    m->on_closed_arg = o->arg;
    m->coroutines = 2;
    waitq_init(&m->writer_wake);
    waitq_init(&m->drained);
    list_push_tail(&q->monitors, &m->link);
    q->n_monitors++;
    co_start(co_reader, m);
    co_start(co_writer, m);
}

bool co_qmp_monitors_close(struct qmp *q, uint64_t deadline)
{
    struct monitor *m;

    list_for_each(m, &q->monitors, link) {
        m->closing = true;
        waitq_wake_all(&m->writer_wake);
    }
    while (!list_empty(&q->monitors)) {
        if (!co_waitq_wait_until(&q->monitor_gone, deadline))
            return list_empty(&q->monitors);
    }
    return true;
}
