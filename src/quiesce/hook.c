/* SPDX-License-Identifier: Apache-2.0
 *
 * Running a hook: its output goes where ours goes, standard input is empty.
 */
#include "quiesce/hook.h"
#include "loop/loop.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static _Noreturn void run(const char *command)
{
    int null = open("/dev/null", O_RDONLY);
    sigset_t none;

    setpgid(0, 0);
    /* Ours are blocked and ignored; a shell expects the usual. */
    for (int s = 1; s < SIGRTMIN; s++)
        signal(s, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (null >= 0)
        dup2(null, STDIN_FILENO);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
}

static bool has_ended(pid_t pid)
{
    siginfo_t si = { 0 };

    return waitid(P_PID, (id_t)pid, &si, WEXITED | WNOWAIT | WNOHANG) == 0 && si.si_pid != 0;
}

/* False: it is too late. */
static bool wait_for_end(pid_t pid, uint64_t deadline)
{
    CLEANUP(close) int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    uint64_t now;

    while (!has_ended(pid)) {
        struct pollfd p = { .fd = fd, .events = POLLIN };

        now = loop_now();
        if (now >= deadline)
            return false;
        /* Without pidfd (Linux before 5.3) it is looked at now and then. */
        poll(&p, fd >= 0, (int)MIN(div_round_up(deadline - now, NSEC_PER_MSEC),
                                   fd >= 0 ? 60000ULL : 20ULL));
    }
    return true;
}

bool hook_run(const char *what, const char *command, uint64_t deadline, struct err *err)
{
    pid_t pid = fork();
    bool in_time;
    int status;

    if (pid == 0)
        run(command);
    if (pid < 0)
        return err_errno(err, -errno, "Cannot start the %s command", what);
    /* By whichever of the two comes first. */
    setpgid(pid, pid);
    in_time = wait_for_end(pid, deadline);
    if (!in_time)
        kill(-pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!in_time)
        return err_set(err, -ETIMEDOUT, "The %s command took too long, and was killed: %s", what,
                       command);
    if (WIFSIGNALED(status))
        return err_set(err, -EIO, "The %s command was killed by signal %d: %s", what,
                       WTERMSIG(status), command);
    if (WEXITSTATUS(status) != 0)
        return err_set(err, -EIO, "The %s command ended with status %d: %s", what,
                       WEXITSTATUS(status), command);
    return true;
}
