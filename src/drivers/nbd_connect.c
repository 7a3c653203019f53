/* SPDX-License-Identifier: Apache-2.0
 *
 * Making a connection to an NBD server: look the name up, connect, negotiate. All
 * of it waits without holding up the loop, ends at a deadline, and ends early when
 * s->stop is set and the waits are ended (nbd_link_wake).
 */
#include "drivers/nbd.h"
#include "base/mem.h"
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/un.h>
#include <unistd.h>

/* A Unix socket whose backlog is full cannot be waited for, only tried again. */
#define BACKLOG_PAUSE (10 * NSEC_PER_MSEC)

/* Why to stop waiting for a connection: 0, or -errno. */
static int must_give_up(const struct nbd_state *s, uint64_t deadline)
{
    if (s->stop)
        return -ECANCELED;
    return loop_now() >= deadline ? -ETIMEDOUT : 0;
}

/* ---- looking up a name ------------------------------------------------------- */

/* getaddrinfo cannot be interrupted. It runs in a worker for a coroutine of its
 * own, which is left alone when nobody wants the answer any more. */
struct lookup {
    char *host, *port;
    struct addrinfo hints, *result;
    int error;               /* EAI_ */
    bool done;
    struct waitq *asker;     /* NULL: nobody asks any more */
};

static int look_up_blocking(void *arg)
{
    struct lookup *l = arg;

    return getaddrinfo(l->host, l->port, &l->hints, &l->result);
}

static void lookup_free(struct lookup *l)
{
    if (l->result)
        freeaddrinfo(l->result);
    free(l->host);
    free(l->port);
    free(l);
}

static void co_lookup_main(void *arg)
{
    struct lookup *l = arg;

    l->error = co_offload(look_up_blocking, l);
    l->done = true;
    if (l->asker)
        waitq_wake_all(l->asker);
    else
        lookup_free(l);
}

/* Free the result with lookup_free. */
static struct lookup *co_look_up(struct nbd_state *s, uint64_t deadline, struct err *err)
{
    const struct nbd_address *a = &s->address;
    struct lookup *l = xnew(struct lookup);
    int r = 0;

    l->host = xstrdup(a->host);
    l->port = xstrdup(a->port);
    l->asker = &s->nap;
    l->hints.ai_family = a->family;
    l->hints.ai_socktype = SOCK_STREAM;
    l->hints.ai_flags = a->numeric ? AI_NUMERICHOST : 0;
    co_start(co_lookup_main, l);
    while (!l->done && (r = must_give_up(s, deadline)) == 0) {
        if (!co_waitq_wait_until(&s->nap, deadline))
            continue;
    }
    if (!l->done) {
        l->asker = NULL;
        err_errno(err, r, "address resolution failed for %s:%s", a->host, a->port);
        return NULL;
    }
    if (l->error) {
        err_set(err, -EHOSTUNREACH, "address resolution failed for %s:%s: %s", a->host, a->port,
                gai_strerror(l->error));
        lookup_free(l);
        return NULL;
    }
    return l;
}

/* ---- connecting ---------------------------------------------------------------- */

/* Wait for a connection that was begun. */
static int co_await_connected(struct nbd_state *s, int fd, uint64_t deadline)
{
    int r, error = 0;
    socklen_t len = sizeof(error);

    while ((r = must_give_up(s, deadline)) == 0) {
        r = co_poll(&s->poll, fd, POLLOUT, deadline);
        if (r < 0)
            return r;
        if (r > 0)
            break;
    }
    if (r < 0)
        return r;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
        return -errno;
    return -error;
}

static int co_begin_connect(struct nbd_state *s, int fd, const struct sockaddr *addr,
                            socklen_t len, uint64_t deadline)
{
    while (connect(fd, addr, len) < 0) {
        uint64_t until = MIN(deadline, loop_now() + BACKLOG_PAUSE);
        int r = must_give_up(s, deadline);

        if (errno == EINPROGRESS || errno == EINTR)
            return co_await_connected(s, fd, deadline);
        if (errno != EAGAIN)
            return -errno;
        if (r < 0)
            return r;
        if (!co_waitq_wait_until(&s->nap, until))
            continue;
    }
    return 0;
}

/* A connected socket, or -errno. */
static int co_connect_to(struct nbd_state *s, const struct sockaddr *addr, socklen_t len,
                         uint64_t deadline)
{
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int one = 1;

    if (fd < 0)
        return -errno;
    if (addr->sa_family != AF_UNIX) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        if (s->address.keep_alive)
            setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    }

    int r = co_begin_connect(s, fd, addr, len, deadline);

    if (r < 0) {
        close(fd);
        return r;
    }
    return fd;
}

static int co_connect_unix(struct nbd_state *s, uint64_t deadline, struct err *err)
{
    const struct nbd_address *a = &s->address;
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    size_t skip = a->abstract, n = strlen(a->path);
    socklen_t len = sizeof(sun);

    if (skip + n + !skip > sizeof(sun.sun_path)) {
        err_set(err, -ENAMETOOLONG, "UNIX socket path '%s' is too long: at most %zu bytes fit",
                a->path, sizeof(sun.sun_path) - 1);
        return -1;
    }
    memcpy(sun.sun_path + skip, a->path, n);
    if (a->abstract && a->tight)
        len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + skip + n);

    int fd = co_connect_to(s, (struct sockaddr *)&sun, len, deadline);

    if (fd < 0)
        err_errno(err, fd, "Failed to connect to '%s'", a->path);
    return fd;
}

static int co_connect_inet(struct nbd_state *s, uint64_t deadline, struct err *err)
{
    struct lookup *l = co_look_up(s, deadline, err);
    int fd = -EHOSTUNREACH;
    unsigned left = 0;

    if (!l)
        return -1;
    for (const struct addrinfo *ai = l->result; ai; ai = ai->ai_next)
        left++;
    /* One that does not answer must not use up the time of the others. */
    for (const struct addrinfo *ai = l->result; ai && fd < 0; ai = ai->ai_next, left--) {
        uint64_t now = loop_now();
        uint64_t share = deadline > now ? (deadline - now) / left : 0;

        fd = co_connect_to(s, ai->ai_addr, ai->ai_addrlen, now + share);
    }
    lookup_free(l);
    if (fd < 0)
        err_errno(err, fd, "Failed to connect to '%s:%s'", s->address.host, s->address.port);
    return fd;
}

/* ---- negotiating ----------------------------------------------------------------- */

short nbd_poll_events(unsigned direction)
{
    return (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                   (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
}

/* Reading goes first: what comes may make it needless to write. */
int nbd_notify(struct nbd_handle *h, short revents)
{
    unsigned direction = nbd_aio_get_direction(h);
    short broken = POLLERR | POLLHUP | POLLNVAL;

    if ((direction & LIBNBD_AIO_DIRECTION_READ) && (revents & (POLLIN | broken)))
        return nbd_aio_notify_read(h);
    if ((direction & LIBNBD_AIO_DIRECTION_WRITE) && (revents & (POLLOUT | broken)))
        return nbd_aio_notify_write(h);
    return 0;
}

const char *nbd_reason(void)
{
    const char *text = nbd_get_error();
    const char *colon = text ? strstr(text, ": ") : NULL;

    if (!text)
        return "the connection was closed";
    return colon && strncmp(text, "nbd_", 4) == 0 ? colon + 2 : text;
}

static bool co_negotiate(struct nbd_state *s, struct nbd_connection *c, uint64_t deadline,
                         struct err *err)
{
    while (nbd_aio_is_connecting(c->h) > 0) {
        int r = must_give_up(s, deadline);

        if (r == 0)
            r = co_poll(&s->poll, c->fd, nbd_poll_events(nbd_aio_get_direction(c->h)), deadline);
        if (r < 0)
            return err_errno(err, r, "Negotiation failed");
        if (r > 0 && nbd_notify(c->h, (short)r) < 0)
            return err_set(err, -EIO, "Negotiation failed: %s", nbd_reason());
    }
    if (nbd_aio_is_ready(c->h) > 0)
        return true;
    return err_set(err, -ECONNRESET, "Negotiation failed: the server closed the connection");
}

static bool prepare_handle(struct nbd_state *s, struct nbd_handle *h, struct err *err)
{
    /* An export whose size is no multiple of its own block size needs requests that
     * are not either. */
    uint32_t strict = nbd_get_strict_mode(h) & ~(uint32_t)LIBNBD_STRICT_ALIGN;

    if (nbd_set_export_name(h, s->export) < 0 || nbd_set_strict_mode(h, strict) < 0 ||
        nbd_add_meta_context(h, s->context) < 0 ||
        nbd_set_pread_initialize(h, false) < 0)
        return err_set(err, -EINVAL, "%s", nbd_reason());
    return true;
}

static uint32_t block_size(struct nbd_handle *h, int kind)
{
    int64_t size = nbd_get_block_size(h, kind);

    return size > 0 ? (uint32_t)MIN(size, UINT32_MAX) : 0;
}

static bool learn_facts(const struct nbd_state *s, struct nbd_handle *h, struct nbd_facts *f,
                        struct err *err)
{
    int64_t size = nbd_get_size(h);

    if (size < 0)
        return err_set(err, -EINVAL, "%s", nbd_reason());
    *f = (struct nbd_facts){
        .size = (uint64_t)size,
        .block_min = block_size(h, LIBNBD_SIZE_MINIMUM),
        .block_preferred = block_size(h, LIBNBD_SIZE_PREFERRED),
        .block_max = block_size(h, LIBNBD_SIZE_MAXIMUM),
        .read_only = nbd_is_read_only(h) > 0,
        .can_flush = nbd_can_flush(h) > 0,
        .can_fua = nbd_can_fua(h) > 0,
        .can_trim = nbd_can_trim(h) > 0,
        .can_zero = nbd_can_zero(h) > 0,
        .can_fast_zero = nbd_can_fast_zero(h) > 0,
        .has_status = nbd_can_meta_context(h, s->context) > 0,
    };
    return true;
}

/* Takes over the socket @fd. */
static bool start_handle(struct nbd_state *s, int fd, struct nbd_connection *c, struct err *err)
{
    c->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    c->h = nbd_create();
    if (c->fd < 0 || !c->h) {
        close(fd);
        return err_set(err, -ENOMEM, "No memory or descriptor for another connection");
    }
    if (!prepare_handle(s, c->h, err)) {
        close(fd);
        return false;
    }
    if (nbd_aio_connect_socket(c->h, fd) < 0) {
        err_set(err, -EIO, "%s", nbd_reason());
        /* It owns the socket as soon as it has begun to negotiate. */
        if (nbd_aio_is_created(c->h) > 0)
            close(fd);
        return false;
    }
    return true;
}

bool co_nbd_connect(struct nbd_state *s, uint64_t deadline, struct nbd_connection *ret,
                    struct err *err)
{
    struct nbd_connection c = { .fd = -1 };
    int fd = s->address.path ? co_connect_unix(s, deadline, err)
                             : co_connect_inet(s, deadline, err);

    if (fd < 0)
        return false;
    if (start_handle(s, fd, &c, err) && co_negotiate(s, &c, deadline, err) &&
        learn_facts(s, c.h, &c.facts, err)) {
        *ret = c;
        return true;
    }
    nbd_connection_close(&c);
    return false;
}

void nbd_connection_close(struct nbd_connection *c)
{
    nbd_close(c->h);
    c->h = NULL;
    cleanup_close(&c->fd);
    c->fd = -1;
}
