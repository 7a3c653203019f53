/* SPDX-License-Identifier: Apache-2.0
 *
 * What nbd_servers.h declares.
 */
#include "nbd_servers.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGS_MAX 40

static struct server start(const char *socket, const char *const *first, const char *const *args)
{
    const char *argv[ARGS_MAX] = { NULL };
    size_t n = 0;

    for (; *first; first++)
        argv[n++] = *first;
    for (; *args && n < ARGS_MAX - 1; args++)
        argv[n++] = *args;
    if (socket)
        unlink(socket);

    pid_t parent = getpid(), pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        execvp(argv[0], (char **)argv);
        _exit(127);
    }
    return (struct server){ .pid = pid, .socket = socket };
}

struct server start_nbdkit(const char *socket, const char *const *args)
{
    return start(socket, ARGS("nbdkit", "-f", "-U", socket), args);
}

struct server start_nbdkit_tcp(uint16_t port, const char *const *args)
{
    return start(NULL, ARGS("nbdkit", "-f", "-i", "127.0.0.1", "-p", test_text("%u", port)), args);
}

struct server start_qemu_nbd(const char *socket, const char *const *args)
{
    return start(socket, ARGS("qemu-nbd", "-t", "-e", "0", "-k", socket), args);
}

void kill_server(struct server *s)
{
    int status;

    kill(s->pid, SIGKILL);
    assert_int_equal(waitpid(s->pid, &status, 0), s->pid);
}

void hang_server(struct server *s)
{
    int status;

    kill(s->pid, SIGSTOP);
    assert_int_equal(waitpid(s->pid, &status, WUNTRACED), s->pid);
    assert_true(WIFSTOPPED(status));
}

struct node *co_open_nbd(const struct server *s, const char *more)
{
    return co_test_open("{'driver': 'nbd', 'open-timeout': 20, 'discard': 'unmap',"
                        " 'server': {'type': 'unix', 'path': '%s'}%s}", s->socket, more);
}
