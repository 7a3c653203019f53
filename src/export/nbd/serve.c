/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading requests and carrying them out. serve.h draws how this works together
 * with reply.c.
 */
#include "export/nbd/serve.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include <sys/socket.h>

/* How long a client that has to go may leave a reply in the socket. */
#define STOP_PATIENCE_SECONDS 2

/* Data of a write is read in steps, so that a slow client can be told from one
 * that stalls. */
#define RECEIVE_STEP_BYTES (2 * MiB)

/* ---- carrying out ------------------------------------------------------- */

static int co_do_read(struct nbd_slot *s)
{
    struct iovec iov = { s->buf.p, s->rq.length };

    return co_disk_preadv(s->tx->disk, s->rq.offset, s->rq.length, &iov, 1, 0);
}

static unsigned write_flags(const struct nbd_slot *s)
{
    return s->rq.flags & NBD_CMD_FLAG_FUA || s->tx->writethrough ? REQ_FUA : 0;
}

static int co_do_write(struct nbd_slot *s)
{
    struct iovec iov = { s->buf.p, s->rq.length };

    return co_disk_pwritev(s->tx->disk, s->rq.offset, s->rq.length, &iov, 1, write_flags(s));
}

static int co_do_flush(struct nbd_slot *s)
{
    return co_disk_flush(s->tx->disk);
}

static int co_do_trim(struct nbd_slot *s)
{
    int r = co_disk_discard(s->tx->disk, s->rq.offset, s->rq.length);

    if (r == -ENOTSUP)
        r = 0;   /* TRIM is a hint */
    if (r == 0 && write_flags(s))
        r = co_disk_flush(s->tx->disk);
    return r;
}

/* Bring the range into whatever cache lies below, by reading it. */
static int co_do_cache(struct nbd_slot *s)
{
    uint64_t off = s->rq.offset, end = off + s->rq.length;

    while (off < end) {
        uint64_t len = MIN(end - off, (uint64_t)LIMIT_NBD_CACHE_STEP_BYTES);
        struct iovec iov = { s->buf.p, len };
        int r = co_disk_preadv(s->tx->disk, off, len, &iov, 1, 0);

        if (r < 0)
            return r;
        off += len;
    }
    return 0;
}

static int co_do_write_zeroes(struct nbd_slot *s)
{
    unsigned flags = write_flags(s);

    if (!(s->rq.flags & NBD_CMD_FLAG_NO_HOLE))
        flags |= REQ_MAY_UNMAP;
    if (s->rq.flags & NBD_CMD_FLAG_FAST_ZERO)
        flags |= REQ_NO_FALLBACK;
    return co_disk_write_zeroes(s->tx->disk, s->rq.offset, s->rq.length, flags);
}

static int (*const co_do[])(struct nbd_slot *s) = {
    [NBD_CMD_READ] = co_do_read,
    [NBD_CMD_WRITE] = co_do_write,
    [NBD_CMD_FLUSH] = co_do_flush,
    [NBD_CMD_TRIM] = co_do_trim,
    [NBD_CMD_CACHE] = co_do_cache,
    [NBD_CMD_WRITE_ZEROES] = co_do_write_zeroes,
    [NBD_CMD_BLOCK_STATUS] = co_nbd_block_status,
};

static void count(struct nbd_stats *stats, const struct nbd_request *rq, int r)
{
    static const struct { bool counts; enum nbd_stat requests, bytes; } of[] = {
        [NBD_CMD_READ] = { true, NBD_STAT_READS, NBD_STAT_READ_BYTES },
        [NBD_CMD_WRITE] = { true, NBD_STAT_WRITES, NBD_STAT_WRITTEN_BYTES },
        [NBD_CMD_WRITE_ZEROES] = { true, NBD_STAT_WRITES, NBD_STAT_WRITTEN_BYTES },
        [NBD_CMD_TRIM] = { true, NBD_STAT_DISCARDS, NBD_STAT_DISCARDED_BYTES },
    };

    if (r < 0) {
        nbd_stats_add(stats, NBD_STAT_ERRORS, 1);
    } else if (rq->type == NBD_CMD_FLUSH) {
        nbd_stats_add(stats, NBD_STAT_FLUSHES, 1);
    } else if (rq->type < ARRAY_SIZE(of) && of[rq->type].counts) {
        nbd_stats_add(stats, of[rq->type].requests, 1);
        nbd_stats_add(stats, of[rq->type].bytes, rq->length);
    }
}

static void co_request(void *arg)
{
    struct nbd_slot *s = arg;
    int r = co_do[s->rq.type](s);

    count(s->tx->stats, &s->rq, r);
    nbd_reply(s, r);
}

/* ---- slots -------------------------------------------------------------- */

/* NULL when the connection is being stopped. */
static struct nbd_slot *co_get_slot(struct nbd_tx *tx)
{
    struct nbd_slot *s;

    while (tx->busy == LIMIT_NBD_CONN_REQUESTS && !tx->stopping)
        co_waitq_wait(&tx->idle);
    if (tx->stopping)
        return NULL;
    s = list_pop_head(&tx->free, struct nbd_slot, link);
    if (!s) {
        s = xnew(struct nbd_slot);
        s->tx = tx;
        list_init(&s->link);
        tx->n_slots++;
    }
    tx->busy++;
    return s;
}

void nbd_slot_free(struct nbd_slot *s)
{
    struct nbd_tx *tx = s->tx;

    nbd_buffer_put(&tx->holder, &s->buf);
    list_push_head(&tx->free, &s->link);
    tx->busy--;
    if (!waitq_empty(&tx->idle))
        waitq_wake_all(&tx->idle);
}

/* ---- reading ------------------------------------------------------------ */

/* The data of a write that was refused. */
static int co_skip_data(struct nbd_tx *tx, const struct nbd_request *rq)
{
    if (rq->type != NBD_CMD_WRITE)
        return 0;
    if (rq->length > LIMIT_NBD_SKIP_BYTES)
        return -EMSGSIZE;
    return co_stream_skip(tx->stream, rq->length);
}

static int co_read_data(struct nbd_slot *s)
{
    struct nbd_tx *tx = s->tx;
    uint8_t *p = s->buf.p;
    size_t buffered;
    int r = 0;

    (void)stream_peek(tx->stream, &buffered);
    if (LIKELY(buffered >= s->rq.length))
        return co_stream_read(tx->stream, p, s->rq.length);
    for (uint32_t left = s->rq.length; left && r == 0;) {
        uint32_t step = MIN(left, (uint32_t)RECEIVE_STEP_BYTES);

        nbd_holder_waits(&tx->holder, NBD_WAIT_SEND);
        r = co_stream_read(tx->stream, p, step);
        nbd_holder_moved(&tx->holder, NBD_WAIT_SEND);
        p += step;
        left -= step;
    }
    return r;
}

/* Take on one request: start it, or answer at once what is refused. Negative
 * when the stream is of no use any more. */
static int co_take_request(struct nbd_tx *tx, const struct nbd_request *rq)
{
    struct nbd_slot *s = co_get_slot(tx);
    uint32_t need;
    int error, r = 0;

    if (!s)
        return -ESHUTDOWN;
    s->rq = *rq;
    s->why = NULL;
    error = nbd_check_request(rq, &tx->session, &s->why);
    need = error ? 0 : nbd_request_buffer(rq, &tx->session);
    if (need)
        error = co_nbd_buffer_get(&tx->holder, need, &s->buf);
    if (error) {
        r = co_skip_data(tx, rq);
        nbd_reply(s, error);
        return r;
    }
    if (rq->type == NBD_CMD_WRITE && rq->length)
        r = co_read_data(s);
    if (r < 0) {
        nbd_slot_free(s);
        return r;
    }
    co_start(co_request, s);
    return 0;
}

static int co_read_requests(struct nbd_tx *tx)
{
    struct nbd_request rq;
    size_t len;

    for (;;) {
        int r = co_stream_fill(tx->stream, NBD_REQUEST_BYTES);

        if (r < 0)
            return r;
        if (tx->stopping)
            return -ESHUTDOWN;
        if (!nbd_get_request(stream_peek(tx->stream, &len), &rq))
            return -EPROTO;
        stream_consume(tx->stream, NBD_REQUEST_BYTES);
        if (rq.type == NBD_CMD_DISC)
            return 0;
        r = co_take_request(tx, &rq);
        if (r < 0)
            return r;
    }
}

/* ---- begin and end ------------------------------------------------------ */

static void evict(struct nbd_holder *h)
{
    struct nbd_tx *tx = container_of(h, struct nbd_tx, holder);

    log_warn("disconnecting an NBD client of '%s' that holds memory and does not move",
             node_name(disk_node(tx->disk)));
    stream_shutdown(tx->stream);
}

/* The connection is to end, and has not yet: is it the client's fault? A disk
 * that takes its time is not. */
static void look_after_stop(void *arg)
{
    struct nbd_tx *tx = arg;

    if (nbd_holder_stalls(&tx->holder, NBD_WAIT_TAKE, STOP_PATIENCE_SECONDS))
        stream_shutdown(tx->stream);
    else
        loop_timer_arm(&tx->stop_watch, loop_now() + NSEC_PER_SEC);
}

void nbd_tx_stop(struct nbd_tx *tx)
{
    if (tx->stopping || tx->ended)
        return;
    tx->stopping = true;
    shutdown(stream_fd(tx->stream), SHUT_RD);
    if (tx->writer_running) {
        waitq_wake_all(&tx->idle);
        loop_timer_arm(&tx->stop_watch, loop_now() + NSEC_PER_SEC);
    }
}

static void begin(struct nbd_tx *tx)
{
    nbd_holder_init(&tx->holder, tx->buffers, evict);
    list_init(&tx->free);
    list_init(&tx->replies);
    waitq_init(&tx->idle);
    waitq_init(&tx->replies_ready);
    waitq_init(&tx->writer_gone);
    loop_timer_init(&tx->stop_watch, look_after_stop, tx);
    tx->writer_running = true;
    co_start(co_nbd_writer, tx);
}

static void end(struct nbd_tx *tx)
{
    struct nbd_slot *s;

    tx->ended = true;
    loop_timer_cancel(&tx->stop_watch);
    while ((s = list_pop_head(&tx->free, struct nbd_slot, link))) {
        tx->n_slots--;
        free(s);
    }
    assert(!tx->busy && !tx->n_slots);
    nbd_holder_done(&tx->holder);
}

void co_nbd_serve(struct nbd_tx *tx)
{
    int r;

    begin(tx);
    r = tx->stopping ? -ESHUTDOWN : co_read_requests(tx);
    if (r == -EPROTO)
        log_debug("an NBD client of '%s' sent something that is no request",
                  node_name(disk_node(tx->disk)));

    while (tx->busy)
        co_waitq_wait(&tx->idle);
    tx->drained = true;
    waitq_wake_all(&tx->replies_ready);
    while (tx->writer_running)
        co_waitq_wait(&tx->writer_gone);
    end(tx);
}
