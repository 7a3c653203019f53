/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's body in a child process.
 */
#include "app/local_daemon.h"
#include "app/daemon.h"
#include "base/log.h"
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What the daemon itself takes for an orderly end with a target that hangs, and
 * some more. */
#define END_MSEC 60000

static bool co_setup(struct daemon *d, void *arg, struct err *err)
{
    daemon_monitor_fd(d, *(int *)arg, true);
    return true;
}

static _Noreturn void run(int fd)
{
    const struct daemon_opts o = {
        .ignore_signals = true, .co_setup = co_setup, .setup_arg = &fd,
    };
    struct err err = ERR_INIT;

    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (!daemon_run(&o, &err)) {
        log_error("%s", err.text);
        _exit(1);
    }
    _exit(0);
}

int local_daemon_start(struct local_daemon *ld, struct err *err)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
        err_errno(err, -errno, "Cannot make a socket pair");
        return -1;
    }
    fflush(stdout);
    ld->pid = fork();
    if (ld->pid == 0) {
        close(fds[0]);
        run(fds[1]);
    }
    close(fds[1]);
    if (ld->pid < 0) {
        err_errno(err, -errno, "Cannot start a process");
        close(fds[0]);
        return -1;
    }
    return fds[0];
}

void local_daemon_wait(struct local_daemon *ld, bool patient)
{
    int pidfd = (int)syscall(SYS_pidfd_open, ld->pid, 0);
    struct pollfd p = { .fd = pidfd, .events = POLLIN };

    if (!patient)
        kill(ld->pid, SIGKILL);
    /* Without pidfd (Linux before 5.3) it is waited for without a limit. */
    if (pidfd >= 0) {
        int r;

        while ((r = poll(&p, 1, END_MSEC)) < 0 && errno == EINTR)
            ;
        if (r == 0)
            kill(ld->pid, SIGKILL);
        close(pidfd);
    }
    while (waitpid(ld->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}
