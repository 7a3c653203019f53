/* SPDX-License-Identifier: Apache-2.0
 *
 * System calls as coroutine calls: same meaning, same arguments, but the
 * result is negative errno and the coroutine sleeps instead of the thread.
 * An operation that was started is always seen to its end: there is no cancel.
 * To end one early, make its descriptor end it (shutdown a socket).
 * EINTR never comes back. Short results do: callers that need all loop.
 */
#ifndef LOOP_CO_IO_H
#define LOOP_CO_IO_H

#include "base/base.h"
#include "loop/co_sync.h"
#include <sys/socket.h>
#include <sys/uio.h>

/* How an operation on a file should run. */
enum io_hint {
    IO_DEFAULT = 0,
    IO_INLINE = 1, /* buffered (not O_DIRECT) and small: try without leaving the thread first (a
                    * read with RWF_NOWAIT; a write as long as such writes have been quick) */
    IO_ASYNC = 2,  /* bulk or slow: straight to a worker (IOSQE_ASYNC), never on the loop */
    IO_DSYNC = 4,  /* write through (RWF_DSYNC); never inline */
    IO_MEMORY = 8, /* with IO_INLINE: the file is in memory (io_is_in_memory), so that there is
                    * no doubt: a plain call. tmpfs knows no RWF_NOWAIT, and asking costs */
    IO_BULK = 16,  /* background: where worker threads do it, others go first */
};

/* Whether @fd is a file that lives in memory: a tmpfs or a memfd. To be asked
 * once, when it is opened. Does not suspend. */
bool io_is_in_memory(int fd);

ssize_t co_preadv(int fd, const struct iovec *iov, int niov, uint64_t off, unsigned hints);
ssize_t co_pwritev(int fd, const struct iovec *iov, int niov, uint64_t off, unsigned hints);
int co_fdatasync(int fd);
int co_fallocate(int fd, int mode, uint64_t off, uint64_t len, unsigned hints);   /* IO_BULK */

/* Sockets, blocking or not: tried at once, then waited for. With MSG_DONTWAIT
 * they give -EAGAIN instead of waiting. Sending never raises SIGPIPE. @drained
 * says that nothing was left there a moment ago, so that a try would be in vain. */
ssize_t co_recv(int fd, void *buf, size_t len, int flags);
ssize_t co_recvmsg(int fd, struct msghdr *msg, int flags, bool drained);
ssize_t co_sendmsg(int fd, const struct msghdr *msg, int flags);

/* These make @fd non-blocking. co_accept gives the new descriptor, close-on-exec
 * and blocking; shutdown(fd) ends it with -EINVAL. co_connect gives -EAGAIN when
 * the backlog of a Unix listener has been full for five seconds. */
int co_accept(int fd);
int co_connect(int fd, const struct sockaddr *addr, socklen_t len);

/* Wait for poll(2) events with a deadline. Another coroutine may end the wait
 * early with co_poll_wake. Returns revents, 0 for deadline or wake, -EBADF for
 * what is no descriptor. One waiter at a time for one co_poll, which starts
 * zeroed. */
struct co_poll {
    struct co *waiter;
    void *op;   /* the engine's, while waiting */
};
int co_poll(struct co_poll *p, int fd, short events, uint64_t deadline);
void co_poll_wake(struct co_poll *p);   /* harmless when nobody waits; does not suspend */

/* Run fn(arg) in the worker pool: for work that blocks or burns CPU. fn must
 * not touch what belongs to a loop. Gives fn's result. */
int co_offload(int (*fn)(void *arg), void *arg);
/* The same for background work: it never has all threads, and others go first. */
int co_offload_bulk(int (*fn)(void *arg), void *arg);

#endif
