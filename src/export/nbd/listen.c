/* SPDX-License-Identifier: Apache-2.0
 *
 * Unix sockets whose file may be left over from a process that died, TCP
 * sockets on every address that a host name has, and sockets that somebody else
 * opened.
 */
#include "export/nbd/listen.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "loop/co_io.h"
#include <ctype.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* With port 0 and several addresses, the port that the first one got may be
 * taken on another: so many new ones are tried. */
#define PORT_TRIES 20

/* How long a dead process's listener is waited for. */
#define DYING_NS (2 * NSEC_PER_SEC)
#define DYING_STEP_NS (10 * NSEC_PER_MSEC)

/* Give the descriptor away. */
static int take_fd(int *fd)
{
    int taken = *fd;

    *fd = -1;
    return taken;
}

/* ---- Unix --------------------------------------------------------------- */

static bool unix_address(const char *path, struct sockaddr_un *ret, struct err *err)
{
    *ret = (struct sockaddr_un){ .sun_family = AF_UNIX };
    if (!*path)
        return err_set(err, -EINVAL, "UNIX socket path is empty");
    if (strlen(path) >= sizeof(ret->sun_path))
        return err_set(err, -ENAMETOOLONG,
                       "UNIX socket path '%s' is too long: it must be less than %zu bytes", path,
                       sizeof(ret->sun_path));
    memcpy(ret->sun_path, path, strlen(path));
    return true;
}

enum listener { LISTENER_LIVE, LISTENER_DYING, LISTENER_NONE };

/* Who listens on the file that is in the way. The listener of a process that was
 * killed can outlive it by a moment: io_uring lets go of what it polls in a kernel
 * worker, later. */
static enum listener look_for_listener(const struct sockaddr_un *sun)
{
    CLEANUP(close) int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct stat st;
    struct ucred owner;
    socklen_t len = sizeof(owner);

    if (fd < 0 || lstat(sun->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return LISTENER_LIVE;
    if (connect(fd, (const struct sockaddr *)sun, sizeof(*sun)) < 0)
        return errno == ECONNREFUSED ? LISTENER_NONE : LISTENER_LIVE;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &owner, &len) < 0 || owner.pid <= 0)
        return LISTENER_LIVE;
    return kill(owner.pid, 0) < 0 && errno == ESRCH ? LISTENER_DYING : LISTENER_LIVE;
}

static bool co_is_stale(const struct sockaddr_un *sun)
{
    uint64_t deadline = loop_now() + DYING_NS;
    enum listener l;

    while ((l = look_for_listener(sun)) == LISTENER_DYING && loop_now() < deadline)
        co_sleep(DYING_STEP_NS);
    return l == LISTENER_NONE;
}

static int co_bind_unix(int fd, const struct sockaddr_un *sun)
{
    if (bind(fd, (const struct sockaddr *)sun, sizeof(*sun)) == 0)
        return 0;
    if (errno != EADDRINUSE)
        return -errno;
    if (!co_is_stale(sun))
        return -EADDRINUSE;
    if (unlink(sun->sun_path) < 0 || bind(fd, (const struct sockaddr *)sun, sizeof(*sun)) < 0)
        return -errno;
    return 0;
}

static bool co_listen_unix(const struct nbd_address *a, struct nbd_listeners *l, struct err *err)
{
    CLEANUP(close) int fd = -1;
    struct sockaddr_un sun;
    struct stat st;
    int r;

    if (!unix_address(a->path, &sun, err))
        return false;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_errno(err, -errno, "Failed to create Unix socket");
    r = co_bind_unix(fd, &sun);
    if (r < 0)
        return err_errno(err, r, "Failed to bind socket to %s", a->path);
    if (listen(fd, SOMAXCONN) < 0 || lstat(a->path, &st) < 0) {
        r = -errno;
        unlink(a->path);
        return err_errno(err, r, "Failed to listen on socket %s", a->path);
    }
    l->path = xstrdup(a->path);
    l->unlink = true;
    l->dev = st.st_dev;
    l->ino = st.st_ino;
    l->fds[l->n++] = take_fd(&fd);
    return true;
}

void nbd_listeners_unlink(struct nbd_listeners *l)
{
    struct stat st;

    if (l->unlink && lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        unlink(l->path);
    l->unlink = false;
}

/* ---- TCP ---------------------------------------------------------------- */

struct lookup {
    const char *host, *port;
    struct addrinfo *found;
    int system_error;
};

/* In a worker thread. 0 or what gai_strerror explains. */
static int look_up(void *arg)
{
    struct lookup *l = arg;
    struct addrinfo hints = { .ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM };
    int r = getaddrinfo(l->host, l->port, &hints, &l->found);

    l->system_error = errno;
    return r;
}

static int open_tcp(const struct addrinfo *ai, int *ret_fd)
{
    CLEANUP(close) int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    /* IPv4 has a socket of its own. */
    if (ai->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, SOMAXCONN) < 0)
        return -errno;
    *ret_fd = take_fd(&fd);
    return 0;
}

static uint16_t *port_of(struct sockaddr *sa)
{
    return sa->sa_family == AF_INET6 ? &((struct sockaddr_in6 *)sa)->sin6_port
                                     : &((struct sockaddr_in *)sa)->sin_port;
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage ss = { 0 };
    socklen_t len = sizeof(ss);

    if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0 ||
        (ss.ss_family != AF_INET && ss.ss_family != AF_INET6))
        return 0;
    return ntohs(*port_of((struct sockaddr *)&ss));
}

static void close_all(struct nbd_listeners *l)
{
    while (l->n)
        close(l->fds[--l->n]);
}

/* Listen on every address of the list, with one port. Addresses of a family that
 * this machine does not have are passed over as long as one is left. */
static int listen_all(struct addrinfo *list, struct nbd_listeners *l)
{
    int last = -EADDRNOTAVAIL;

    for (struct addrinfo *ai = list; ai && l->n < LIMIT_NBD_LISTENERS; ai = ai->ai_next) {
        int r;

        if (ai->ai_family != AF_INET && ai->ai_family != AF_INET6)
            continue;
        if (l->n && !*port_of(ai->ai_addr))
            *port_of(ai->ai_addr) = htons(l->port);
        r = open_tcp(ai, &l->fds[l->n]);
        if (r == 0) {
            l->port = bound_port(l->fds[l->n++]);
        } else if (r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL) {
            last = r;
        } else {
            close_all(l);
            return r;
        }
    }
    return l->n ? 0 : last;
}

static void forget_port(struct addrinfo *list)
{
    for (struct addrinfo *ai = list; ai; ai = ai->ai_next)
        *port_of(ai->ai_addr) = 0;
}

static bool co_listen_inet(const struct nbd_address *a, struct nbd_listeners *l, struct err *err)
{
    const char *host = a->host && *a->host ? a->host : NULL;
    struct lookup lookup = { .host = host, .port = a->port };
    bool any_port;
    int r;

    if (!a->port || !*a->port)
        return err_set(err, -EINVAL, "port not specified");
    r = co_offload(look_up, &lookup);
    if (r)
        return err_set(err, -EADDRNOTAVAIL, "address resolution failed for %s:%s: %s",
                       host ? host : "", a->port,
                       r == EAI_SYSTEM ? strerror(lookup.system_error) : gai_strerror(r));
    any_port = *port_of(lookup.found->ai_addr) == 0;
    r = listen_all(lookup.found, l);
    for (int i = 1; i < PORT_TRIES && any_port && r == -EADDRINUSE; i++) {
        forget_port(lookup.found);
        r = listen_all(lookup.found, l);
    }
    freeaddrinfo(lookup.found);
    if (r < 0)
        return err_errno(err, r, "Failed to listen on %s:%s", host ? host : "", a->port);
    l->host = xstrdup(host && strcmp(host, "::") != 0 && strcmp(host, "0.0.0.0") != 0
                          ? host : "localhost");
    return true;
}

/* ---- sockets from elsewhere --------------------------------------------- */

static bool listen_fd(const struct nbd_address *a, struct nbd_listeners *l, struct err *err)
{
    struct sockaddr_un sun = { 0 };
    socklen_t len = sizeof(sun), size = sizeof(int);
    int listening = 0, type = 0;

    if (getsockopt(a->fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || !listening ||
        getsockopt(a->fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_STREAM)
        return err_set(err, -EINVAL, "file descriptor %d is not a listening stream socket", a->fd);
    l->port = bound_port(a->fd);
    if (l->port)
        l->host = xstrdup("localhost");
    else if (getsockname(a->fd, (struct sockaddr *)&sun, &len) == 0 &&
             sun.sun_family == AF_UNIX && sun.sun_path[0])
        l->path = xstrndup(sun.sun_path, sizeof(sun.sun_path));
    (void)fcntl(a->fd, F_SETFD, FD_CLOEXEC);
    l->fds[l->n++] = a->fd;
    return true;
}

/* ---- all kinds ---------------------------------------------------------- */

static bool co_open_all(const struct nbd_address *a, struct nbd_listeners *l, struct err *err)
{
    switch (a->kind) {
    case NBD_ADDRESS_UNIX:
        return co_listen_unix(a, l, err);
    case NBD_ADDRESS_INET:
        return co_listen_inet(a, l, err);
    case NBD_ADDRESS_FD:
        return listen_fd(a, l, err);
    }
    return err_set(err, -EINVAL, "unknown kind of address");
}

bool co_nbd_listen(const struct nbd_address *a, struct nbd_listeners *ret, struct err *err)
{
    *ret = (struct nbd_listeners){ 0 };
    if (!co_open_all(a, ret, err))
        return false;
    /* Several may accept from one socket that was passed on: nobody may block. */
    for (unsigned i = 0; i < ret->n; i++)
        (void)fcntl(ret->fds[i], F_SETFL, fcntl(ret->fds[i], F_GETFL) | O_NONBLOCK);
    return true;
}

void nbd_listeners_done(struct nbd_listeners *l)
{
    free(MOVE(l->host));
    free(MOVE(l->path));
}

/* RFC 3986: what is not unreserved is encoded, but for the slashes of a path. */
static void add_encoded(struct strbuf *sb, const char *text)
{
    for (const char *p = text; *p; p++) {
        if (isalnum((unsigned char)*p) || strchr("-._~/", *p))
            strbuf_addc(sb, *p);
        else
            strbuf_addf(sb, "%%%02X", (unsigned char)*p);
    }
}

char *nbd_listeners_uri(const struct nbd_listeners *l, const char *name)
{
    struct strbuf sb = STRBUF_INIT;

    if (l->path) {
        strbuf_add(&sb, "nbd+unix:///");
        add_encoded(&sb, name);
        strbuf_add(&sb, "?socket=");
        add_encoded(&sb, l->path);
    } else if (l->host) {
        strbuf_addf(&sb, strchr(l->host, ':') ? "nbd://[%s]:%u/" : "nbd://%s:%u/", l->host,
                    l->port);
        add_encoded(&sb, name);
    } else {
        return NULL;
    }
    return strbuf_steal(&sb);
}
