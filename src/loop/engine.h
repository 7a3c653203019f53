/* SPDX-License-Identifier: Apache-2.0
 *
 * The interface between a loop and what does its I/O. Two implementations:
 * engine_uring.c (io_uring: everything) and engine_pool.c (epoll: waiting for
 * descriptors only; co_io.c runs the rest in the worker pool). Private to this
 * room; everything is for the loop's own thread.
 */
#ifndef LOOP_ENGINE_H
#define LOOP_ENGINE_H

#include "loop/loop_impl.h"
#include <sys/socket.h>
#include <sys/uio.h>

enum engine_op_kind {
    OP_PREADV,
    OP_PWRITEV,
    OP_FDATASYNC,
    OP_FALLOCATE,
    OP_RECVMSG,
    OP_SENDMSG,
    OP_POLL,     /* the only one that can be cancelled */
};

/* One operation. It lies on the stack of the coroutine that waits for it, which
 * does not go on before it is done. */
struct engine_op {
    enum engine_op_kind kind;
    int fd;
    struct co *co;        /* woken when done */
    ssize_t result;       /* or -errno; for OP_POLL the events */
    bool done, async;     /* @async: IOSQE_ASYNC */
    bool bulk;            /* in a worker: after others */
    bool cancelled;       /* somebody asked to end it */
    bool queued;          /* the engine's: not given to the kernel yet */
    struct list link;     /* the engine's, until it is done */
    union {
        struct {
            const struct iovec *iov;
            int niov;
            int flags;    /* RWF_* */
            uint64_t off;
        } rw;
        struct {
            int mode;
            uint64_t off, len;
        } fallocate;
        struct {
            struct msghdr *hdr;
            int flags;    /* MSG_* */
        } msg;
        short events;     /* OP_POLL */
    };
};

struct engine_ops {
    const char *name;

    /* Whether submit takes every kind; if not, OP_POLL only. */
    bool does_io;

    /* From the thread that will run the loop, each time before it does. */
    void (*start)(struct engine *e);

    /* Begin @op; engine_op_done may come in here already. */
    void (*submit)(struct engine *e, struct engine_op *op);

    /* End an OP_POLL early: it will be done with -ECANCELED, or with what came
     * before that. */
    void (*cancel)(struct engine *e, struct engine_op *op);

    /* Hand what was submitted to the kernel and complete what is done. Sleeps
     * until @deadline (loop_now time; 0: not at all) while nothing is. */
    void (*turn)(struct engine *e, uint64_t deadline);

    /* Whether turn would find something done; cheap, as it is asked many times a
     * microsecond or two. */
    bool (*has_work)(struct engine *e);

    /* Cancel everything and see it to its end, until @deadline. False when the
     * kernel still holds memory of ours then. */
    bool (*quiesce)(struct engine *e, uint64_t deadline);

    void (*free)(struct engine *e);
};

/* The first member of each engine. */
struct engine {
    const struct engine_ops *ops;
    struct loop *loop;
};

struct engine *engine_uring_new(struct loop *loop, struct err *err);
struct engine *engine_pool_new(struct loop *loop, struct err *err);

/* For engines: @op is off every list and has its result. */
static inline void engine_op_done(struct engine_op *op, ssize_t result)
{
    op->result = result;
    op->done = true;
    co_wake(op->co);
}

#endif
