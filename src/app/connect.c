/* SPDX-License-Identifier: Apache-2.0
 *
 * Connecting to Unix and TCP sockets, trying each address that a name has.
 */
#include "app/connect.h"
#include "loop/co_io.h"
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>
#include <unistd.h>

static int co_open_and_connect(const struct sockaddr *sa, socklen_t len)
{
    int fd = socket(sa->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;

    int r = co_connect(fd, sa, len);

    if (r == 0)
        return fd;
    close(fd);
    return r;
}

static int co_connect_unix(const char *path, struct err *err)
{
    struct sockaddr_un sun = { .sun_family = AF_UNIX };

    if (!*path || strlen(path) >= sizeof(sun.sun_path)) {
        err_set(err, -EINVAL, "UNIX socket path '%s' must have 1 to %zu bytes", path,
                sizeof(sun.sun_path) - 1);
        return -EINVAL;
    }
    memcpy(sun.sun_path, path, strlen(path));

    int fd = co_open_and_connect((const struct sockaddr *)&sun, sizeof(sun));

    if (fd < 0)
        err_errno(err, fd, "Failed to connect to '%s'", path);
    return fd;
}

struct lookup {
    const char *host, *port;
    struct addrinfo *found;
};

/* In a worker. */
static int look_up(void *arg)
{
    struct lookup *l = arg;
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM };

    return getaddrinfo(l->host, l->port, &hints, &l->found);
}

static int co_connect_inet(const char *host, const char *port, struct err *err)
{
    struct lookup l = { .host = host && *host ? host : NULL, .port = port };
    int r = co_offload(look_up, &l), fd = -EADDRNOTAVAIL, one = 1;

    if (r) {
        err_set(err, -EADDRNOTAVAIL, "address resolution failed for %s:%s: %s", host ? host : "",
                port, gai_strerror(r));
        return -EADDRNOTAVAIL;
    }
    for (const struct addrinfo *ai = l.found; ai && fd < 0; ai = ai->ai_next)
        fd = co_open_and_connect(ai->ai_addr, ai->ai_addrlen);
    freeaddrinfo(l.found);
    if (fd < 0)
        err_errno(err, fd, "Failed to connect to '%s:%s'", host ? host : "", port);
    else
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static int check_fd(int fd, struct err *err)
{
    struct sockaddr_storage ss;
    socklen_t len = sizeof(ss);

    if (getpeername(fd, (struct sockaddr *)&ss, &len) < 0) {
        err_set(err, -ENOTCONN, "file descriptor %d is not a connected socket", fd);
        return -ENOTCONN;
    }
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

int co_connect_to(const struct nbd_address *a, struct err *err)
{
    switch (a->kind) {
    case NBD_ADDRESS_UNIX:
        return co_connect_unix(a->path, err);
    case NBD_ADDRESS_INET:
        return co_connect_inet(a->host, a->port, err);
    case NBD_ADDRESS_FD:
        return check_fd(a->fd, err);
    }
    return -EINVAL;
}
