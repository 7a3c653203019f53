/* SPDX-License-Identifier: Apache-2.0
 *
 * flock on a file that says by whom.
 */
#include "set/lock.h"
#include "base/mem.h"
#include "set/name.h"
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS (20 * NSEC_PER_MSEC)
#define LOOKS 500

/* Who has it: the number in the file; 0: not told (yet). */
static pid_t holder(int fd)
{
    char text[32];
    ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

    text[MAX(n, (ssize_t)0)] = '\0';
    return (pid_t)strtol(text, NULL, 10);
}

/* Whether it has gone, and what it has left behind is likely to. */
static bool is_dead(pid_t pid)
{
    return pid > 0 && kill(pid, 0) < 0 && errno == ESRCH;
}

static bool take(int fd, const char *dir, struct err *err)
{
    const struct timespec pause = { .tv_nsec = LOOK_NS };
    char text[32];
    int n;

    for (unsigned i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
        int r = errno;
        pid_t pid = holder(fd);

        if (r != EWOULDBLOCK && r != EINTR)
            return err_errno(err, -r, "The set '%s' cannot be locked", dir);
        if (i >= LOOKS || !is_dead(pid))
            return err_set(err, -EBUSY, "The set '%s' is being changed by another stillpoint "
                           "(process %ld): wait for its end", dir, (long)pid);
        nanosleep(&pause, NULL);
    }
    n = snprintf(text, sizeof(text), "%ld\n", (long)getpid());
    /* Only for the words above. */
    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) < 0)
        errno = 0;
    return true;
}

int set_lock(const char *dir, struct err *err)
{
    CLEANUP(free) char *path = xasprintf("%s/" SET_LOCK, dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);

    if (fd < 0) {
        err_errno(err, -errno, "The set '%s' cannot be locked", dir);
        return -1;
    }
    if (take(fd, dir, err))
        return fd;
    close(fd);
    return -1;
}
