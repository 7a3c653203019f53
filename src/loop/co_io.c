/* SPDX-License-Identifier: Apache-2.0
 *
 * System calls as coroutine calls, whichever engine the loop has. What an engine
 * cannot do itself is made here of what it can: see engine.h.
 */
#include "loop/co_io.h"
#include "loop/engine.h"
#include "loop/workers.h"
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/vfs.h>
#include <unistd.h>

/* --- Worker pool --- */

struct offload {
    struct worker_job job;
    int (*fn)(void *arg);
    void *arg;
    int result;
    struct co *co;
};

static void offload_run(struct worker_job *job)
{
    struct offload *o = container_of(job, struct offload, job);

    o->result = o->fn(o->arg);
}

static void offload_done(struct worker_job *job)
{
    co_wake(container_of(job, struct offload, job)->co);
}

static int co_run_offload(int (*fn)(void *arg), void *arg, bool bulk)
{
    struct offload o = {
        .job.run = offload_run,
        .job.done = offload_done,
        .job.bulk = bulk,
        .fn = fn,
        .arg = arg,
        .co = co_self(),
    };

    assert(o.co);
    workers_submit(loop_current()->workers, &o.job);
    co_suspend();
    return o.result;
}

int co_offload(int (*fn)(void *arg), void *arg)
{
    return co_run_offload(fn, arg, false);
}

int co_offload_bulk(int (*fn)(void *arg), void *arg)
{
    return co_run_offload(fn, arg, true);
}

/* --- Operations --- */

/* A file operation in a worker thread, for an engine that does none. */
static int run_blocking(void *arg)
{
    const struct engine_op *op = arg;
    ssize_t r = -1;

    switch (op->kind) {
    case OP_PREADV:
        r = preadv2(op->fd, op->rw.iov, op->rw.niov, (off_t)op->rw.off, op->rw.flags);
        break;
    case OP_PWRITEV:
        r = pwritev2(op->fd, op->rw.iov, op->rw.niov, (off_t)op->rw.off, op->rw.flags);
        break;
    case OP_FDATASYNC:
        r = fdatasync(op->fd);
        break;
    case OP_FALLOCATE:
        r = fallocate(op->fd, op->fallocate.mode, (off_t)op->fallocate.off,
                      (off_t)op->fallocate.len);
        break;
    default:
        abort();
    }
    /* One call transfers less than 2 GiB (MAX_RW_COUNT), so that an int holds it. */
    return r < 0 ? -errno : (int)r;
}

static ssize_t co_run_op(struct engine_op *op)
{
    struct engine *e = loop_current()->engine;

    if (!e->ops->does_io && op->kind != OP_POLL)
        return co_run_offload(run_blocking, op, op->bulk);
    op->co = co_self();
    assert(op->co);
    op->done = false;
    e->ops->submit(e, op);
    co_suspend();
    assert(op->done);
    return op->result;
}

/* --- Files --- */

bool io_is_in_memory(int fd)
{
    struct statfs fs;

    return fstatfs(fd, &fs) == 0 && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

/* Whether a write should be tried on the loop itself.
 *
 * A buffered write is a copy into the page cache: one or two microseconds, less
 * than any way of handing it to another thread costs. But the kernel makes a
 * writer wait when there are too many dirty pages, when a page must be read
 * before a part of it is written, or when a journal is full, and on the loop all
 * its disks would wait with it. There is no asking beforehand (RWF_NOWAIT writes
 * are refused by ext4 and tmpfs). So each loop learns: after a write that took
 * longer than SLOW_WRITE_NS the next @backoff writes go to the engine, then one
 * is tried again; if that is slow too, @backoff doubles. As many quick ones in a
 * row as @backoff says, and all is forgotten. */
#define SLOW_WRITE_NS NSEC_PER_MSEC
#define BACKOFF_MIN 64U
#define BACKOFF_MAX 16384U

static bool may_write_inline(struct inline_writes *w)
{
    if (w->skip == 0)
        return true;
    w->skip--;
    return false;
}

static void learn_from_write(struct inline_writes *w, uint64_t ns)
{
    if (ns > SLOW_WRITE_NS) {
        w->backoff = MIN(MAX(w->backoff * 2, BACKOFF_MIN), BACKOFF_MAX);
        w->skip = w->backoff;
        w->quick = 0;
    } else if (w->backoff && ++w->quick >= w->backoff) {
        w->backoff = 0;
    }
}

/* -EAGAIN when it must go to the engine. */
static ssize_t read_inline(const struct engine_op *op, bool memory)
{
    int flags = memory ? 0 : RWF_NOWAIT;
    ssize_t r = preadv2(op->fd, op->rw.iov, op->rw.niov, (off_t)op->rw.off, flags);

    /* Everything that could be told better by the engine is told by the engine: not
     * cached, a file system that cannot do this, a signal, an error. */
    return r < 0 ? -EAGAIN : r;
}

static ssize_t write_inline(const struct engine_op *op, bool memory)
{
    struct inline_writes *w = &loop_current()->inline_writes;

    if (!memory && !may_write_inline(w))
        return -EAGAIN;

    uint64_t began = memory ? 0 : loop_now();
    ssize_t r = op->rw.niov == 1
        ? pwrite(op->fd, op->rw.iov->iov_base, op->rw.iov->iov_len, (off_t)op->rw.off)
        : pwritev(op->fd, op->rw.iov, op->rw.niov, (off_t)op->rw.off);
    int e = errno;

    if (!memory)
        learn_from_write(w, loop_now() - began);
    return r < 0 ? (e == EINTR ? -EAGAIN : -e) : r;
}

static ssize_t co_rw(struct engine_op *op, unsigned hints)
{
    ssize_t r;

    /* The kernel has signed offsets, and the highest unsigned one means "at the file's
     * position" to io_uring. */
    if (op->rw.off > INT64_MAX)
        return -EINVAL;
    /* A longer list gives a short result, which callers are used to. */
    op->rw.niov = MIN(op->rw.niov, IOV_MAX);
    if (hints & IO_DSYNC)
        op->rw.flags |= RWF_DSYNC;
    if ((hints & (IO_INLINE | IO_ASYNC | IO_DSYNC)) == IO_INLINE) {
        bool memory = hints & IO_MEMORY;

        r = op->kind == OP_PREADV ? read_inline(op, memory) : write_inline(op, memory);
        if (r != -EAGAIN)
            return r;
    }
    op->async = hints & IO_ASYNC;
    op->bulk = hints & IO_BULK;
    do {
        r = co_run_op(op);
    } while (r == -EINTR);
    return r;
}

ssize_t co_preadv(int fd, const struct iovec *iov, int niov, uint64_t off, unsigned hints)
{
    struct engine_op op = {
        .kind = OP_PREADV, .fd = fd, .rw = { .iov = iov, .niov = niov, .off = off },
    };

    return co_rw(&op, hints);
}

ssize_t co_pwritev(int fd, const struct iovec *iov, int niov, uint64_t off, unsigned hints)
{
    struct engine_op op = {
        .kind = OP_PWRITEV, .fd = fd, .rw = { .iov = iov, .niov = niov, .off = off },
    };

    return co_rw(&op, hints);
}

int co_fdatasync(int fd)
{
    struct engine_op op = { .kind = OP_FDATASYNC, .fd = fd };
    ssize_t r;

    do {
        r = co_run_op(&op);
    } while (r == -EINTR);
    return (int)r;
}

int co_fallocate(int fd, int mode, uint64_t off, uint64_t len, unsigned hints)
{
    struct engine_op op = {
        .kind = OP_FALLOCATE, .fd = fd, .fallocate = { .mode = mode, .off = off, .len = len },
        .bulk = hints & IO_BULK,
    };
    ssize_t r;

    if (off > INT64_MAX || len > INT64_MAX)
        return -EFBIG;
    do {
        r = co_run_op(&op);
    } while (r == -EINTR);
    return (int)r;
}

/* --- Sockets --- */

/* Wait until @fd has one of @events, POLLERR or POLLHUP, and give which. */
static int co_wait_fd(int fd, short events)
{
    struct co_poll p = { 0 };

    return co_poll(&p, fd, events, DEADLINE_NEVER);
}

/* Without waiting. */
static ssize_t try_msg(const struct engine_op *op)
{
    int flags = op->msg.flags | MSG_DONTWAIT;
    ssize_t r;

    do {
        r = op->kind == OP_RECVMSG ? recvmsg(op->fd, op->msg.hdr, flags)
                                   : sendmsg(op->fd, op->msg.hdr, flags);
    } while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : r;
}

/* Receive or send: at once if it can be, else by the engine, else by waiting.
 * With @later the first try is left out, as it would be in vain. */
static ssize_t co_run_msg(struct engine_op *op, bool later)
{
    bool engine_does = loop_current()->engine->ops->does_io;
    short events = op->kind == OP_RECVMSG ? POLLIN : POLLOUT;

    for (;; later = false) {
        ssize_t r = later ? -EAGAIN : try_msg(op);

        if (r != -EAGAIN || (op->msg.flags & MSG_DONTWAIT))
            return r;
        if (engine_does) {
            r = co_run_op(op);
            if (r != -EAGAIN && r != -EINTR)
                return r;
            /* Kernels differ in what a non-blocking socket means here. */
            engine_does = r == -EINTR;
        } else {
            r = co_wait_fd(op->fd, events);
            if (r < 0)
                return r;
        }
    }
}

ssize_t co_recvmsg(int fd, struct msghdr *msg, int flags, bool drained)
{
    struct engine_op op = {
        .kind = OP_RECVMSG, .fd = fd, .msg = { .hdr = msg, .flags = flags },
    };

    return co_run_msg(&op, drained && !(flags & MSG_DONTWAIT));
}

ssize_t co_recv(int fd, void *buf, size_t len, int flags)
{
    struct iovec iov = { .iov_base = buf, .iov_len = len };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    return co_recvmsg(fd, &msg, flags, false);
}

ssize_t co_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    struct engine_op op = {
        .kind = OP_SENDMSG,
        .fd = fd,
        /* Nothing writes to it, though io_uring's prototypes say so. */
        .msg = { .hdr = (struct msghdr *)msg, .flags = flags | MSG_NOSIGNAL },
    };

    return co_run_msg(&op, false);
}

static int make_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
        return -errno;
    return 0;
}

int co_accept(int fd)
{
    int r = make_nonblocking(fd);

    while (r >= 0) {
        int conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

        if (conn >= 0)
            return conn;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return -errno;
        /* A Unix listener that was shut down goes on saying EAGAIN. */
        if (r & POLLHUP)
            return -EINVAL;
        r = co_wait_fd(fd, POLLIN);
    }
    return r;
}

/* A Unix listener whose backlog is full says EAGAIN, and nothing tells when that
 * changes. */
#define CONNECT_TRIES 500
#define CONNECT_PAUSE_NS (10 * NSEC_PER_MSEC)

int co_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
    int r = make_nonblocking(fd), error = 0;
    socklen_t size = sizeof(error);
    struct sockaddr_storage peer;
    socklen_t peer_size = sizeof(peer);

    if (r < 0)
        return r;
    for (int tries = 0; connect(fd, addr, len) < 0; tries++) {
        if (errno == EINPROGRESS || errno == EINTR || errno == EALREADY) {
            /* Goes on by itself. */
            r = co_wait_fd(fd, POLLOUT);
            if (r < 0)
                return r;
            if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
                return -errno;
            if (error)
                return -error;
            /* No error and no peer: somebody shut it down meanwhile. */
            return getpeername(fd, (struct sockaddr *)&peer, &peer_size) < 0 ? -errno : 0;
        }
        if (errno != EAGAIN || tries == CONNECT_TRIES)
            return -errno;
        co_sleep(CONNECT_PAUSE_NS);
    }
    return 0;
}

/* --- Poll --- */

static void poll_timed_out(void *arg)
{
    co_poll_wake(arg);
}

int co_poll(struct co_poll *p, int fd, short events, uint64_t deadline)
{
    struct engine_op op = { .kind = OP_POLL, .fd = fd, .events = events };
    struct loop_timer timer;

    assert(!p->waiter);
    p->waiter = co_self();
    p->op = &op;
    loop_timer_init(&timer, poll_timed_out, p);
    if (deadline != DEADLINE_NEVER)
        loop_timer_arm(&timer, deadline);

    ssize_t r = co_run_op(&op);

    loop_timer_cancel(&timer);
    p->waiter = NULL;
    p->op = NULL;
    return r == -ECANCELED ? 0 : (int)r;
}

void co_poll_wake(struct co_poll *p)
{
    struct engine *e = loop_current()->engine;
    struct engine_op *op = p->op;

    if (!op || op->done || op->cancelled)
        return;
    op->cancelled = true;
    e->ops->cancel(e, op);
}
