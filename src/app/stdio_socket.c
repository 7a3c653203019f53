/* SPDX-License-Identifier: Apache-2.0
 *
 * The two threads and their socket pair.
 */
#include "app/stdio_socket.h"
#include "base/mem.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct stdio_socket {
    atomic_uint users;       /* each thread, and whoever will finish it */
    int fd;                  /* our end */
    pthread_t writer;
};

static void leave(struct stdio_socket *s)
{
    if (atomic_fetch_sub(&s->users, 1) == 1) {
        close(s->fd);
        free(s);
    }
}

/* False when either end is gone. */
static bool carry(int from, int to)
{
    char buf[4096];
    ssize_t n = read(from, buf, sizeof(buf));

    if (n <= 0)
        return n < 0 && errno == EINTR;
    for (ssize_t done = 0; done < n;) {
        ssize_t w = write(to, buf + done, (size_t)(n - done));

        if (w < 0 && errno != EINTR)
            return false;
        if (w > 0)
            done += w;
    }
    return true;
}

static void *carry_in(void *arg)
{
    struct stdio_socket *s = arg;

    while (carry(STDIN_FILENO, s->fd)) {
    }
    shutdown(s->fd, SHUT_WR);
    leave(s);
    return NULL;
}

static void *carry_out(void *arg)
{
    struct stdio_socket *s = arg;

    while (carry(s->fd, STDOUT_FILENO)) {
    }
    shutdown(s->fd, SHUT_RD);
    leave(s);
    return NULL;
}

static int start_threads(struct stdio_socket *s)
{
    pthread_t reader;
    int r = pthread_create(&s->writer, NULL, carry_out, s);

    if (r)
        return -r;
    atomic_fetch_add(&s->users, 1);
    r = pthread_create(&reader, NULL, carry_in, s);
    if (r) {
        atomic_fetch_sub(&s->users, 1);
        return -r;
    }
    /* It sits in a read that nothing ends: nobody will wait for it. */
    pthread_detach(reader);
    return 0;
}

struct stdio_socket *stdio_socket_new(int *ret_fd, struct err *err)
{
    int ends[2], r;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        err_errno(err, -errno, "Cannot make a socket pair");
        return NULL;
    }

    struct stdio_socket *s = xnew(struct stdio_socket);

    s->fd = ends[0];
    atomic_init(&s->users, 2);
    r = start_threads(s);
    if (r < 0) {
        /* The process is about to end with this: a writer that runs may have @s. */
        err_errno(err, r, "Cannot start a thread");
        close(ends[1]);
        return NULL;
    }
    *ret_fd = ends[1];
    return s;
}

void stdio_socket_finish(struct stdio_socket *s, unsigned seconds)
{
    struct timespec until;

    if (!s)
        return;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += seconds;
    if (pthread_timedjoin_np(s->writer, NULL, &until) != 0)
        pthread_detach(s->writer);
    leave(s);
}
