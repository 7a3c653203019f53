/* SPDX-License-Identifier: Apache-2.0
 *
 * The side of whoever cuts the disks: starts the keeper, and hears from it.
 */
#include "quiesce/quiesce.h"
#include "quiesce/keeper.h"
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* The next message. False with @ret: the keeper has gone. */
static bool hear(struct quiesce *q, struct keeper_message *ret)
{
    ssize_t n;

    while ((n = recv(q->fd, ret, sizeof(*ret), 0)) < 0 && errno == EINTR)
        ;
    if (n == sizeof(*ret))
        return true;
    memset(ret, 0, sizeof(*ret));
    return err_set(&ret->result.err, -ECHILD, "The process that holds the guest still has died; "
                   "the guest may be frozen");
}

static void end(struct quiesce *q)
{
    close(q->fd);
    while (waitpid(q->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    q->pid = 0;
}

static bool start(struct quiesce *q, const struct quiesce_opts *o, struct err *err)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return err_errno(err, -errno, "Cannot make a socket pair");
    fflush(stdout);
    q->pid = fork();
    if (q->pid == 0) {
        close(fds[0]);
        keeper_run(fds[1], o);
    }
    close(fds[1]);
    q->fd = fds[0];
    if (q->pid > 0)
        return true;
    q->pid = 0;
    close(q->fd);
    return err_errno(err, -errno, "Cannot start a process");
}

bool quiesce_begin(struct quiesce *q, const struct quiesce_opts *o, struct quiesce_result *ret)
{
    struct keeper_message m;

    *ret = (struct quiesce_result){ 0 };
    *q = (struct quiesce){ 0 };
    if (!start(q, o, &ret->err))
        return false;
    if (hear(q, &m) && !m.over)
        return true;
    *ret = m.result;
    end(q);
    return false;
}

void quiesce_end(struct quiesce *q, struct quiesce_result *ret)
{
    struct keeper_message m;

    /* No byte: one that the keeper did not read would cost us its last message. */
    shutdown(q->fd, SHUT_WR);
    (void)hear(q, &m);
    *ret = m.result;
    end(q);
}
