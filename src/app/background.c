/* SPDX-License-Identifier: Apache-2.0
 *
 * As QEMU does it (os-posix.c, util/oslib-posix.c), so that scripts which wait
 * for the parent or look into the file find the same.
 */
#include "app/background.h"
#include "base/mem.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* The child's end of a pipe to the parent. Process-wide, as leaving the terminal
 * is. */
static int ready_fd = -1;

static _Noreturn void wait_for_child(int fd)
{
    char ready;
    ssize_t n;

    do
        n = read(fd, &ready, 1);
    while (n < 0 && errno == EINTR);
    _exit(n == 1 ? 0 : 1);
}

bool background_enter(struct err *err)
{
    int ends[2];
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_errno(err, -errno, "Cannot make a pipe");
    pid = fork();
    if (pid < 0)
        return err_errno(err, -errno, "Cannot fork");
    if (pid > 0) {
        close(ends[1]);
        wait_for_child(ends[0]);
    }
    close(ends[0]);
    ready_fd = ends[1];
    setsid();
    /* No session leader: no terminal that is opened later becomes ours. */
    pid = fork();
    if (pid < 0)
        return err_errno(err, -errno, "Cannot fork");
    if (pid > 0)
        _exit(0);
    umask(027);
    return true;
}

void background_ready(void)
{
    int null;

    if (ready_fd < 0)
        return;
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) {
        for (int fd = 0; fd <= 2; fd++)
            (void)dup2(null, fd);
        close(null);
    }
    /* Nobody may have to keep a file system mounted for us. "/" is always there. */
    if (chdir("/") == 0 && write(ready_fd, "", 1) == 1) {
        close(ready_fd);
        ready_fd = -1;
    }
}

struct pid_file {
    char *path;
    int fd;
};

static bool lock_and_write(int fd, const char *path, struct err *err)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    char text[32];
    int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());

    if (fcntl(fd, F_OFD_SETLK, &lock) < 0)
        return err_errno(err, -errno, "cannot create PID file: Cannot lock '%s'", path);
    if (ftruncate(fd, 0) < 0 || write(fd, text, (size_t)n) != n)
        return err_errno(err, -errno, "cannot create PID file: Cannot write to '%s'", path);
    return true;
}

struct pid_file *pid_file_new(const char *path, struct err *err)
{
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0644);

    if (fd < 0) {
        err_errno(err, -errno, "cannot create PID file: Could not create '%s'", path);
        return NULL;
    }
    if (!lock_and_write(fd, path, err)) {
        close(fd);
        return NULL;
    }

    struct pid_file *p = xnew(struct pid_file);

    /* The working directory may change before the file is removed. */
    p->path = realpath(path, NULL);
    p->fd = fd;
    return p;
}

void pid_file_free(struct pid_file *p)
{
    if (!p)
        return;
    if (p->path)
        unlink(p->path);
    close(p->fd);
    free(p->path);
    free(p);
}
