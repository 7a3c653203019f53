/* SPDX-License-Identifier: Apache-2.0
 *
 * Listening and accepting. One coroutine a listening socket takes connections
 * while there is room for them; what does not fit waits in the socket's backlog.
 */
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"
#include "export/nbd/conn.h"
#include "export/nbd/listen.h"
#include "loop/co_io.h"
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

/* After accept(2) failed for want of descriptors or memory. */
#define ACCEPT_PAUSE_NS (200 * NSEC_PER_MSEC)

struct acceptor {
    struct nbd_server *server;
    int fd;
    struct co_poll poll;
};

struct nbd_server {
    struct nbd_exports *exports;
    struct nbd_listeners listeners;
    uint32_t max_connections;      /* 0: no limit */
    uint32_t handshake_seconds_max;
    struct list conns;
    unsigned n_conns;
    unsigned n_negotiating;        /* of these */
    struct acceptor acceptors[LIMIT_NBD_LISTENERS];   /* one a socket */
    unsigned n_accepting;          /* of these */
    bool stopping;
    bool orphan;                   /* nobody waits for the end: the last one frees it */
    struct waitq room;             /* those who accept */
    struct waitq ended;
};

static bool has_room(const struct nbd_server *s)
{
    return s->n_negotiating < LIMIT_NBD_HANDSHAKES &&
           (!s->max_connections || s->n_conns < s->max_connections);
}

/* ---- connections -------------------------------------------------------- */

static void server_free(struct nbd_server *s)
{
    assert(!s->n_conns && !s->n_accepting);
    nbd_listeners_done(&s->listeners);
    free(s);
}

/* Something of the server ended. */
static void one_less(struct nbd_server *s)
{
    waitq_wake_all(&s->ended);
    if (s->orphan && !s->n_conns && !s->n_accepting)
        server_free(s);
}

void nbd_server_conn_negotiated(struct nbd_server *s)
{
    s->n_negotiating--;
    waitq_wake_all(&s->room);
}

void nbd_server_conn_gone(struct nbd_server *s, struct nbd_conn *c)
{
    list_del(&c->link);
    s->n_conns--;
    waitq_wake_all(&s->room);
    one_less(s);
}

static void add_conn(struct nbd_server *s, int fd)
{
    struct nbd_conn_opts o = {
        .server = s,
        .exports = s->exports,
        .fd = fd,
        .multi_conn = s->max_connections != 1,
        .handshake_seconds_max = s->handshake_seconds_max,
    };

    s->n_conns++;
    s->n_negotiating++;
    list_push_tail(&s->conns, &nbd_conn_start(&o)->link);
}

/* ---- accepting ---------------------------------------------------------- */

/* Whether it makes sense to accept again after @error. */
static bool co_accept_failed(struct nbd_server *s, int error)
{
    switch (-error) {
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
    case ENETDOWN:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return true;   /* that one connection's trouble, accept(2) */
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
        log_warn("NBD server: cannot accept a connection: %s", strerror(-error));
        co_sleep(ACCEPT_PAUSE_NS);
        return true;
    default:
        log_error("NBD server: stops accepting connections: %s", strerror(-error));
        return false;
    }
}

static void co_acceptor(void *arg)
{
    struct acceptor *a = arg;
    struct nbd_server *s = a->server;
    bool go_on = true;

    while (go_on && !s->stopping) {
        if (!has_room(s)) {
            co_waitq_wait(&s->room);
            continue;
        }
        int fd = accept4(a->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            add_conn(s, fd);
            continue;
        }
        int r = errno == EAGAIN ? co_poll(&a->poll, a->fd, POLLIN, DEADLINE_NEVER) : -errno;

        if (r < 0)
            go_on = co_accept_failed(s, r);
    }
    close(a->fd);
    s->n_accepting--;
    one_less(s);
}

struct nbd_server *co_nbd_server_start(const struct nbd_server_opts *o, struct err *err)
{
    struct nbd_listeners listeners;
    struct nbd_server *s;

    assert(loop_current() == o->exports->loop);
    if (!co_nbd_listen(&o->address, &listeners, err))
        return NULL;
    s = xnew(struct nbd_server);
    *s = (struct nbd_server){
        .exports = o->exports,
        .listeners = listeners,
        .max_connections = o->max_connections,
        .handshake_seconds_max = o->handshake_seconds_max,
    };
    list_init(&s->conns);
    waitq_init(&s->room);
    waitq_init(&s->ended);
    for (unsigned i = 0; i < listeners.n; i++) {
        s->acceptors[i] = (struct acceptor){ .server = s, .fd = listeners.fds[i] };
        s->n_accepting++;
        co_start(co_acceptor, &s->acceptors[i]);
    }
    return s;
}

/* ---- stopping ----------------------------------------------------------- */

void co_nbd_server_stop(struct nbd_server *s, uint64_t deadline)
{
    struct nbd_conn *c;

    if (!s)
        return;
    s->stopping = true;
    nbd_listeners_unlink(&s->listeners);
    /* Not shutdown: a socket that was passed to us may be somebody else's too. */
    for (unsigned i = 0; i < s->listeners.n; i++)
        co_poll_wake(&s->acceptors[i].poll);
    waitq_wake_all(&s->room);
    list_for_each(c, &s->conns, link)
        nbd_conn_stop(c);
    while (s->n_conns || s->n_accepting) {
        if (!co_waitq_wait_until(&s->ended, deadline)) {
            s->orphan = true;
            break;
        }
    }
    if (!s->n_conns && !s->n_accepting)
        server_free(s);
}

/* ---- facts -------------------------------------------------------------- */

uint16_t nbd_server_port(const struct nbd_server *s)
{
    return s->listeners.port;
}

char *nbd_server_uri(const struct nbd_server *s, const char *name)
{
    return nbd_listeners_uri(&s->listeners, name);
}

unsigned nbd_server_connections(const struct nbd_server *s)
{
    return s->n_conns;
}
