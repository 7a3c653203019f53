/* SPDX-License-Identifier: Apache-2.0
 *
 * The io_uring engine. One ring a loop, entered by one thread, once a turn:
 * that one system call submits what the coroutines asked for, runs the kernel's
 * deferred work for this ring, and sleeps.
 *
 * An operation is on @backlog while the submission queue has no room for it, and
 * on @inflight from then until its completion, with a detour over @cancels when
 * it is to end early. The lists are as long as there are coroutines, so nothing
 * is refused. More completions at once than the completion queue holds are kept
 * by the kernel (IORING_FEAT_NODROP) and come with the next enter.
 *
 * Needs Linux 5.11 (a timeout with the wait, IORING_FEAT_EXT_ARG). What is newer
 * is asked for and done without.
 */
#include "base/mem.h"
#include "loop/engine.h"
#include <liburing.h>
#include <stdio.h>
#include <unistd.h>

#define SQ_ENTRIES 256
#define CQ_ENTRIES 4096

/* Threads of the kernel for IOSQE_ASYNC and what cannot be done without blocking:
 * as many as the worker pool may have, and for the same reason. */
#define IOWQ_THREADS 64

struct uring {
    struct engine base;
    struct io_uring ring;
    struct list backlog, inflight, cancels;   /* of struct engine_op */
    bool started;
    bool ending;
    bool waking;          /* a read of the loop's wake_fd is in the ring */
    uint64_t wakes;       /* its buffer */
};

/* What completions say besides an operation's address. */
#define TAG_IGNORE 0
#define TAG_WAKE 1

static struct uring *to_uring(struct engine *e)
{
    return container_of(e, struct uring, base);
}

static void prep_rw(struct io_uring_sqe *sqe, const struct engine_op *op)
{
    bool write = op->kind == OP_PWRITEV;
    const struct iovec *iov = op->rw.iov;

    /* One buffer, the common case, spares the kernel the copy of the list. */
    if (op->rw.niov == 1 && iov->iov_len <= UINT32_MAX && write)
        io_uring_prep_write(sqe, op->fd, iov->iov_base, (unsigned)iov->iov_len, op->rw.off);
    else if (op->rw.niov == 1 && iov->iov_len <= UINT32_MAX)
        io_uring_prep_read(sqe, op->fd, iov->iov_base, (unsigned)iov->iov_len, op->rw.off);
    else if (write)
        io_uring_prep_writev(sqe, op->fd, iov, (unsigned)op->rw.niov, op->rw.off);
    else
        io_uring_prep_readv(sqe, op->fd, iov, (unsigned)op->rw.niov, op->rw.off);
    sqe->rw_flags = op->rw.flags;
}

/* The plain receive has no list and no address to copy. */
static void prep_recv(struct io_uring_sqe *sqe, const struct engine_op *op)
{
    const struct msghdr *m = op->msg.hdr;

    if (m->msg_iovlen == 1 && !m->msg_name && !m->msg_control)
        io_uring_prep_recv(sqe, op->fd, m->msg_iov->iov_base, m->msg_iov->iov_len, op->msg.flags);
    else
        io_uring_prep_recvmsg(sqe, op->fd, op->msg.hdr, (unsigned)op->msg.flags);
}

static void prep(struct io_uring_sqe *sqe, struct engine_op *op)
{
    switch (op->kind) {
    case OP_PREADV:
    case OP_PWRITEV:
        prep_rw(sqe, op);
        break;
    case OP_FDATASYNC:
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
        break;
    case OP_FALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, op->fallocate.mode, (off_t)op->fallocate.off,
                                (off_t)op->fallocate.len);
        break;
    case OP_RECVMSG:
        prep_recv(sqe, op);
        break;
    case OP_SENDMSG:
        io_uring_prep_sendmsg(sqe, op->fd, op->msg.hdr, (unsigned)op->msg.flags);
        break;
    case OP_POLL:
        io_uring_prep_poll_add(sqe, op->fd, (unsigned short)op->events);
        break;
    }
    if (op->async)
        sqe->flags |= IOSQE_ASYNC;
    io_uring_sqe_set_data(sqe, op);
}

static bool to_kernel(struct uring *u, struct engine_op *op)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (!sqe)
        return false;
    prep(sqe, op);
    op->queued = false;
    list_push_tail(&u->inflight, &op->link);
    return true;
}

static void uring_submit(struct engine *e, struct engine_op *op)
{
    struct uring *u = to_uring(e);

    /* Behind those that wait already, so that nobody is overtaken for ever. */
    if (list_empty(&u->backlog) && to_kernel(u, op))
        return;
    op->queued = true;
    list_push_tail(&u->backlog, &op->link);
}

static void uring_cancel(struct engine *e, struct engine_op *op)
{
    struct uring *u = to_uring(e);

    list_del(&op->link);
    if (op->queued)
        engine_op_done(op, -ECANCELED);
    else
        list_push_tail(&u->cancels, &op->link);
}

static bool cancel_in_kernel(struct uring *u, struct engine_op *op)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (!sqe)
        return false;
    io_uring_prep_cancel64(sqe, (uintptr_t)op, 0);
    io_uring_sqe_set_data64(sqe, TAG_IGNORE);
    list_del(&op->link);
    list_push_tail(&u->inflight, &op->link);
    return true;
}

/* Other threads end our sleep by writing to the loop's eventfd, which a read in
 * the ring waits for. */
static bool arm_wake(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

    if (!sqe)
        return false;
    io_uring_prep_read(sqe, u->base.loop->wake_fd, &u->wakes, sizeof(u->wakes), 0);
    io_uring_sqe_set_data64(sqe, TAG_WAKE);
    u->waking = true;
    return true;
}

/* Move what waits into the submission queue. False when it is full before that. */
static bool fill_queue(struct uring *u)
{
    struct engine_op *op;

    if (!u->waking && !u->ending && !arm_wake(u))
        return false;
    while ((op = list_first(&u->cancels, struct engine_op, link))) {
        if (!cancel_in_kernel(u, op))
            return false;
    }
    while ((op = list_pop_head(&u->backlog, struct engine_op, link))) {
        if (!to_kernel(u, op)) {
            list_push_head(&u->backlog, &op->link);
            return false;
        }
    }
    return true;
}

/* Whether the kernel has completions for us that only an enter brings. */
static bool kernel_has_work(struct uring *u)
{
    unsigned flags = IO_URING_READ_ONCE(*u->ring.sq.kflags);

    return flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static bool uring_has_work(struct engine *e)
{
    struct uring *u = to_uring(e);

    return io_uring_cq_ready(&u->ring) || kernel_has_work(u);
}

static void enter(struct uring *u, uint64_t deadline)
{
    uint64_t now = deadline && deadline != UINT64_MAX ? loop_now() : 0;
    struct io_uring_cqe *cqe;
    int r = 0;

    if (deadline == UINT64_MAX) {
        r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, NULL, NULL);
    } else if (deadline > now) {
        struct __kernel_timespec ts = {
            .tv_sec = (int64_t)((deadline - now) / NSEC_PER_SEC),
            .tv_nsec = (int64_t)((deadline - now) % NSEC_PER_SEC),
        };

        r = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
    } else if (io_uring_sq_ready(&u->ring) || kernel_has_work(u)) {
        r = io_uring_submit_and_get_events(&u->ring);
    }
    /* Time is over; a signal came; the kernel wants its completions fetched first, or
     * is short of memory: all are put right by the next turn. */
    if (r < 0 && r != -ETIME && r != -EINTR && r != -EBUSY && r != -EAGAIN) {
        fprintf(stderr, "stillpoint: io_uring_enter: %s\n", strerror(-r));
        abort();
    }
}

static void reap(struct uring *u)
{
    struct io_uring_cqe *cqe;
    unsigned head, n = 0;

    io_uring_for_each_cqe(&u->ring, head, cqe) {
        n++;
        if (cqe->user_data == TAG_IGNORE)
            continue;
        if (cqe->user_data == TAG_WAKE) {
            u->waking = false;
            continue;
        }

        struct engine_op *op = io_uring_cqe_get_data(cqe);

        list_del(&op->link);
        engine_op_done(op, cqe->res);
    }
    io_uring_cq_advance(&u->ring, n);
}

static void uring_turn(struct engine *e, uint64_t deadline)
{
    struct uring *u = to_uring(e);
    bool all;

    do {
        all = fill_queue(u);
        enter(u, all ? deadline : 0);
        reap(u);
        /* What was reaped is to be looked after before anybody sleeps. */
        deadline = 0;
    } while (!all);
}

static void uring_start(struct engine *e)
{
    struct uring *u = to_uring(e);
    unsigned iowq[2] = { IOWQ_THREADS, 0 };   /* 0: leave those for sockets as they are */

    if (u->started)
        return;
    u->started = true;
    if (u->ring.flags & IORING_SETUP_R_DISABLED) {
        /* The library's io_uring_enable_rings is not exported by version 2.3. */
        int r = io_uring_register((unsigned)u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
                                  NULL, 0);

        assert(r == 0);
    }
    /* Both only make it better. */
    (void)io_uring_register_ring_fd(&u->ring);
    (void)io_uring_register_iowq_max_workers(&u->ring, iowq);
}

static bool uring_quiesce(struct engine *e, uint64_t deadline)
{
    struct uring *u = to_uring(e);
    struct engine_op *op;
    uint64_t one = 1;

    u->ending = true;
    if (u->waking && write(u->base.loop->wake_fd, &one, sizeof(one)) < 0)
        return false;
    list_splice_tail(&u->cancels, &u->inflight);
    while ((op = list_pop_head(&u->backlog, struct engine_op, link)))
        engine_op_done(op, -ECANCELED);
    while (u->waking || !list_empty(&u->inflight) || !list_empty(&u->cancels)) {
        if (loop_now() >= deadline)
            return false;
        uring_turn(e, deadline);
    }
    return true;
}

static void uring_free(struct engine *e)
{
    struct uring *u = to_uring(e);

    io_uring_queue_exit(&u->ring);
    free(u);
}

static const struct engine_ops uring_ops = {
    .name = "uring",
    .does_io = true,
    .start = uring_start,
    .submit = uring_submit,
    .cancel = uring_cancel,
    .turn = uring_turn,
    .has_work = uring_has_work,
    .quiesce = uring_quiesce,
    .free = uring_free,
};

/* Make the ring with the best flags that this kernel knows. */
static int ring_init(struct io_uring *ring)
{
    static const unsigned flags[] = {
        /* 6.1: completions are worked on in our enter and nowhere else. The ring belongs
         * to the thread that enables it, which is the one that will run the loop. */
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SUBMIT_ALL | IORING_SETUP_R_DISABLED,
        /* 5.19: at least they do not interrupt us. */
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int r = -EINVAL;

    for (size_t i = 0; i < ARRAY_SIZE(flags) && r == -EINVAL; i++) {
        struct io_uring_params p = {
            .flags = flags[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
            .cq_entries = CQ_ENTRIES,
        };

        r = io_uring_queue_init_params(SQ_ENTRIES, ring, &p);
    }
    return r;
}

struct engine *engine_uring_new(struct loop *loop, struct err *err)
{
    const unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_FAST_POLL;
    CLEANUP(free) struct uring *u = xnew(struct uring);
    int r = ring_init(&u->ring);

    if (r < 0) {
        err_errno(err, r, "Cannot set up io_uring (is it switched off by the sysctl "
                  "kernel.io_uring_disabled or by a seccomp filter?)");
        return NULL;
    }
    if ((u->ring.features & needed) != needed) {
        io_uring_queue_exit(&u->ring);
        err_set(err, -EOPNOTSUPP, "The io_uring of this kernel is too old: Linux 5.11 is needed");
        return NULL;
    }
    u->base = (struct engine){ .ops = &uring_ops, .loop = loop };
    list_init(&u->backlog);
    list_init(&u->inflight);
    list_init(&u->cancels);
    return &MOVE(u)->base;
}
