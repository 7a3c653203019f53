/* SPDX-License-Identifier: Apache-2.0
 *
 * The life of one connection, told by one coroutine of the main loop. While the
 * transmission phase runs on another loop, that coroutine waits in
 * co_loop_call; whoever wants something of the connection meanwhile crosses over
 * by a call of its own and holds a reference for as long.
 */
#include "base/log.h"
#include "base/mem.h"
#include "export/nbd/conn.h"
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

/* Bytes of requests and small writes that one receive may bring: 32 writes of
 * 4 KiB and some. Pages that are never filled cost nothing. */
#define RECEIVE_BYTES (160 * KiB)

/* A TCP peer that vanished without a word is noticed after two minutes. */
#define KEEPALIVE_IDLE_SECONDS 60
#define KEEPALIVE_INTERVAL_SECONDS 10
#define KEEPALIVE_PROBES 6

uint16_t nbd_conn_flags(const struct nbd_conn *c, const struct nbd_export *e)
{
    uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
                     NBD_FLAG_SEND_CACHE;

    if (!e->writable)
        flags |= NBD_FLAG_READ_ONLY;
    else if (e->discard_only)
        flags |= NBD_FLAG_SEND_TRIM;
    else
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    /* All connections of an export go to one disk on one loop, so that a flush
     * on any of them is a flush for all. */
    if (c->multi_conn)
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    if (c->structured)
        flags |= NBD_FLAG_SEND_DF;
    return flags;
}

/* ---- choosing an export ------------------------------------------------- */

void nbd_conn_choose(struct nbd_conn *c, struct nbd_export *e)
{
    assert(!c->export && e->state == NBD_EXPORT_LIVE);
    c->export = e;
    e->n_conns++;
    list_push_tail(&e->conns, &c->export_link);
}

void nbd_conn_unchoose(struct nbd_conn *c)
{
    struct nbd_export *e = c->export;

    if (!e)
        return;
    c->export = NULL;
    list_del(&c->export_link);
    e->n_conns--;
    nbd_export_conn_gone(e);
}

/* ---- transmission ------------------------------------------------------- */

static struct nbd_tx *make_tx(struct nbd_conn *c)
{
    struct nbd_export *e = c->export;
    struct nbd_tx *tx = xnew(struct nbd_tx);

    tx->stream = c->stream;
    tx->disk = e->disk;
    tx->stats = &e->stats;
    tx->buffers = e->buffers->buffers;
    tx->contexts = e->contexts;
    tx->writethrough = e->writethrough;
    tx->session = (struct nbd_session){
        .size = e->size,
        .writable = e->writable,
        .discard_only = e->discard_only,
        .structured = c->structured,
        /* Contexts hold for the export that they were selected for. */
        .contexts = c->contexts && strcmp(c->meta_name, e->name) == 0 ? c->contexts : 0,
    };
    return tx;
}

/* On the export's loop. */
static int co_transmit(void *arg)
{
    co_nbd_serve(arg);
    return 0;
}

/* ---- the whole life ----------------------------------------------------- */

static void conn_unref(struct nbd_conn *c)
{
    if (--c->refs)
        return;
    stream_free(c->stream);
    free(c->tx);
    free(c->meta_name);
    free(c);
}

static void negotiated(struct nbd_conn *c)
{
    c->negotiating = false;
    loop_timer_cancel(&c->deadline);
    nbd_server_conn_negotiated(c->server);
}

static void co_nbd_conn(void *arg)
{
    struct nbd_conn *c = arg;
    bool chosen = co_nbd_handshake(c);

    negotiated(c);
    if (chosen && !c->stopping) {
        c->tx = make_tx(c);
        c->tx_loop = node_loop(c->export->node);
        (void)co_loop_call(c->tx_loop, co_transmit, c->tx);
    }
    /* The peer sees the end now, even if somebody holds a reference still. */
    stream_shutdown(c->stream);
    nbd_conn_unchoose(c);
    nbd_server_conn_gone(c->server, c);
    conn_unref(c);
}

static void took_too_long(void *arg)
{
    struct nbd_conn *c = arg;

    log_debug("disconnecting an NBD client that has not chosen an export in time");
    stream_shutdown(c->stream);
}

/* Harmless for a socket that is not TCP. */
static void set_socket_options(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        { IPPROTO_TCP, TCP_NODELAY, 1 },
        { SOL_SOCKET, SO_KEEPALIVE, 1 },
        { IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS },
        { IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS },
        { IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES },
    };

    for (size_t i = 0; i < ARRAY_SIZE(options); i++)
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

struct nbd_conn *nbd_conn_start(const struct nbd_conn_opts *o)
{
    struct nbd_conn *c = xnew(struct nbd_conn);

    set_socket_options(o->fd);
    *c = (struct nbd_conn){
        .server = o->server,
        .exports = o->exports,
        .stream = stream_new(o->fd, RECEIVE_BYTES),
        .refs = 1,
        .negotiating = true,
        .multi_conn = o->multi_conn,
    };
    list_init(&c->link);
    list_init(&c->export_link);
    loop_timer_init(&c->deadline, took_too_long, c);
    if (o->handshake_seconds_max)
        loop_timer_arm(&c->deadline, loop_now() + o->handshake_seconds_max * NSEC_PER_SEC);
    co_start(co_nbd_conn, c);
    return c;
}

/* ---- stopping ----------------------------------------------------------- */

/* On the export's loop. */
static int stop_tx(void *arg)
{
    nbd_tx_stop(arg);
    return 0;
}

static void co_stop(void *arg)
{
    struct nbd_conn *c = arg;

    (void)co_loop_call(c->tx_loop, stop_tx, c->tx);
    conn_unref(c);
}

void nbd_conn_stop(struct nbd_conn *c)
{
    if (c->stopping)
        return;
    c->stopping = true;
    if (!c->tx) {
        stream_shutdown(c->stream);
        return;
    }
    c->refs++;
    co_start(co_stop, c);
}
