/* SPDX-License-Identifier: Apache-2.0
 *
 * Signals that ask for an end, by signalfd.
 */
#include "app/interrupt.h"
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

bool interrupt_init(struct interrupt *i, struct err *err)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    i->count = 0;
    i->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (i->fd < 0)
        return err_errno(err, -errno, "Cannot watch for signals");
    sigprocmask(SIG_BLOCK, &set, NULL);
    return true;
}

void interrupt_take(struct interrupt *i)
{
    struct signalfd_siginfo si;

    while (read(i->fd, &si, sizeof(si)) == sizeof(si))
        i->count++;
}

void interrupt_done(struct interrupt *i)
{
    close(i->fd);
    i->fd = -1;
}
