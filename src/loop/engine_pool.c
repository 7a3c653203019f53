/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine for kernels and containers where io_uring is forbidden. Its own
 * part is small: epoll, to sleep and to wait for descriptors. Everything else is
 * made of that in co_io.c: sockets are tried without blocking and then waited
 * for, files are read and written in the worker pool.
 *
 * Each wait arms its descriptor for one event (EPOLLONESHOT) and when that comes
 * asks poll(2) for the truth. So an event that is stale, because the descriptor
 * was closed and its number given away, costs a system call and no more.
 */
#include "base/mem.h"
#include "loop/engine.h"
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

/* Events taken from the kernel at once. */
#define BATCH 128

/* Those who wait for one descriptor. */
struct waits {
    struct list ops;        /* of struct engine_op */
    uint32_t armed;         /* what the kernel watches for; means nothing while @ops is
                             * empty, as the descriptor may be closed then */
};

struct pool {
    struct engine base;
    int epoll_fd;
    bool no_pwait2;         /* a kernel before 5.11, or a filter */
    struct waits *waits;    /* by descriptor */
    size_t n_fds;           /* entries of @waits */
};

static struct pool *to_pool(struct engine *e)
{
    return container_of(e, struct pool, base);
}

/* Descriptors are small numbers, bounded by RLIMIT_NOFILE. */
static struct waits *waits_of(struct pool *p, int fd)
{
    size_t need = (size_t)fd + 1;

    if (need > p->n_fds) {
        size_t n = MAX(need, p->n_fds * 2);
        struct waits *bigger = xcalloc(n, sizeof(*bigger));

        for (size_t i = 0; i < n; i++) {
            list_init(&bigger[i].ops);
            if (i < p->n_fds) {
                list_splice_tail(&bigger[i].ops, &p->waits[i].ops);
                bigger[i].armed = p->waits[i].armed;
            }
        }
        free(p->waits);
        p->waits = bigger;
        p->n_fds = n;
    }
    return &p->waits[fd];
}

/* Have the kernel watch @fd for @events. POLLIN is EPOLLIN and so on: it has one
 * set of numbers for both. */
static int arm(struct pool *p, int fd, uint32_t events)
{
    struct epoll_event ev = { .events = events | EPOLLONESHOT, .data.fd = fd };

    if (epoll_ctl(p->epoll_fd, EPOLL_CTL_MOD, fd, &ev) < 0) {
        /* Not known yet, or not any more, as it was closed in between. */
        if (errno != ENOENT || epoll_ctl(p->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
            return -errno;
    }
    p->waits[fd].armed = events;
    return 0;
}

static void pool_submit(struct engine *e, struct engine_op *op)
{
    struct pool *p = to_pool(e);

    assert(op->kind == OP_POLL);
    if (op->fd < 0) {
        engine_op_done(op, -EBADF);
        return;
    }

    struct waits *w = waits_of(p, op->fd);
    uint32_t already = list_empty(&w->ops) ? 0 : w->armed;
    uint32_t wanted = already | (unsigned short)op->events;
    int r = already == wanted && already ? 0 : arm(p, op->fd, wanted);

    if (r == 0)
        list_push_tail(&w->ops, &op->link);
    else if (r == -EPERM)
        engine_op_done(op, op->events & (POLLIN | POLLOUT));   /* a file: it never waits */
    else
        engine_op_done(op, r);
}

static void pool_cancel(struct engine *e, struct engine_op *op)
{
    /* It stays armed: the event will find nobody. */
    list_del(&op->link);
    engine_op_done(op, -ECANCELED);
}

static void fd_has_event(struct pool *p, int fd)
{
    struct waits *w = waits_of(p, fd);
    struct engine_op *op, *next;
    uint32_t left = 0;

    list_for_each_safe(op, next, &w->ops, link) {
        struct pollfd pfd = { .fd = fd, .events = op->events };

        if (poll(&pfd, 1, 0) > 0) {
            list_del(&op->link);
            engine_op_done(op, pfd.revents);
        } else {
            left |= (unsigned short)op->events;
        }
    }
    if (list_empty(&w->ops))
        return;

    int r = arm(p, fd, left);

    while (r < 0 && (op = list_pop_head(&w->ops, struct engine_op, link)))
        engine_op_done(op, r);
}

static int wait_events(struct pool *p, struct epoll_event *ev, uint64_t deadline)
{
    uint64_t now = deadline && deadline != UINT64_MAX ? loop_now() : 0;
    uint64_t ns = deadline > now ? deadline - now : 0;

    if (deadline == UINT64_MAX || ns == 0)
        return epoll_wait(p->epoll_fd, ev, BATCH, ns ? -1 : 0);
    if (!p->no_pwait2) {
        struct timespec ts = { .tv_sec = (time_t)(ns / NSEC_PER_SEC),
                               .tv_nsec = (long)(ns % NSEC_PER_SEC) };
        int n = epoll_pwait2(p->epoll_fd, ev, BATCH, &ts, NULL);

        if (n >= 0 || errno == EINTR)
            return n;
        p->no_pwait2 = true;
    }
    /* Late by up to a millisecond, never early; long sleeps in pieces. */
    return epoll_wait(p->epoll_fd, ev, BATCH,
                      (int)MIN(div_round_up(ns, NSEC_PER_MSEC), (uint64_t)INT32_MAX));
}

static void pool_turn(struct engine *e, uint64_t deadline)
{
    struct pool *p = to_pool(e);
    struct epoll_event ev[BATCH];
    int n = wait_events(p, ev, deadline);

    assert(n >= 0 || errno == EINTR);
    for (int i = 0; i < n; i++) {
        int fd = ev[i].data.fd;
        uint64_t wakes;

        if (fd != p->base.loop->wake_fd) {
            fd_has_event(p, fd);
        } else {
            ssize_t r = read(fd, &wakes, sizeof(wakes));
            assert(r == sizeof(wakes));
        }
    }
}

static bool pool_has_work(struct engine *e)
{
    struct pollfd pfd = { .fd = to_pool(e)->epoll_fd, .events = POLLIN };

    return poll(&pfd, 1, 0) > 0;
}

static void pool_start(struct engine *e)
{
}

static bool pool_quiesce(struct engine *e, uint64_t deadline)
{
    return true;   /* the kernel has no pointers of ours */
}

static void pool_free(struct engine *e)
{
    struct pool *p = to_pool(e);

    close(p->epoll_fd);
    free(p->waits);
    free(p);
}

static const struct engine_ops pool_ops = {
    .name = "pool",
    .does_io = false,
    .start = pool_start,
    .submit = pool_submit,
    .cancel = pool_cancel,
    .turn = pool_turn,
    .has_work = pool_has_work,
    .quiesce = pool_quiesce,
    .free = pool_free,
};

struct engine *engine_pool_new(struct loop *loop, struct err *err)
{
    struct epoll_event ev = { .events = EPOLLIN, .data.fd = loop->wake_fd };
    int fd = epoll_create1(EPOLL_CLOEXEC);

    if (fd < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, loop->wake_fd, &ev) < 0) {
        err_errno(err, -errno, "Cannot set up epoll");
        cleanup_close(&fd);
        return NULL;
    }

    struct pool *p = xnew(struct pool);

    p->base = (struct engine){ .ops = &pool_ops, .loop = loop };
    p->epoll_fd = fd;
    return &p->base;
}
