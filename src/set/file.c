/* SPDX-License-Identifier: Apache-2.0
 *
 * Small files of a backup set.
 */
#include "set/file.h"
#include "base/mem.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define AUTO_CLOSE __attribute__((cleanup(cleanup_close)))

/* Read until the end or @max; the bytes, or -errno. */
static ssize_t read_all(int fd, char *buf, size_t max)
{
    size_t done = 0;

    while (done < max) {
        ssize_t r = read(fd, buf + done, max - done);

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return -errno;
        if (r == 0)
            break;
        done += (size_t)r;
    }
    return (ssize_t)done;
}

char *set_file_read(const char *dir, const char *name, size_t max, size_t *ret_len,
                    struct err *err)
{
    CLEANUP(free) char *path = xasprintf("%s/%s", dir, name);
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    CLEANUP(free) char *text = NULL;
    struct stat st;
    ssize_t n;

    if (fd < 0 || fstat(fd, &st) < 0) {
        err_errno(err, -errno, "'%s'", path);
        return NULL;
    }
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > max) {
        err_set(err, -EFBIG, "'%s' is no file of at most %zu bytes", path, max);
        return NULL;
    }
    /* One byte more than it has: whether it grows meanwhile. */
    text = xmalloc((size_t)st.st_size + 1);
    n = read_all(fd, text, (size_t)st.st_size);
    if (n < 0) {
        err_errno(err, (int)n, "'%s'", path);
        return NULL;
    }
    text[n] = '\0';
    *ret_len = (size_t)n;
    return MOVE(text);
}

static int write_all(int fd, const char *text, size_t len)
{
    while (len) {
        ssize_t r = write(fd, text, len);

        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return -errno;
        text += r;
        len -= (size_t)r;
    }
    return fsync(fd) < 0 ? -errno : 0;
}

bool set_dir_sync(const char *dir, struct err *err)
{
    AUTO_CLOSE int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return (fd >= 0 && fsync(fd) == 0) ||
           err_errno(err, -errno, "'%s' cannot be seen onto stable storage", dir);
}

bool set_file_write(const char *dir, const char *name, const char *text, size_t len,
                    struct err *err)
{
    CLEANUP(free) char *path = xasprintf("%s/%s", dir, name);
    CLEANUP(free) char *temporary = xasprintf("%s/.%s.new", dir, name + (*name == '.'));
    AUTO_CLOSE int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                             0666);
    int r = fd < 0 ? -errno : write_all(fd, text, len);

    if (r == 0 && rename(temporary, path) < 0)
        r = -errno;
    if (r < 0) {
        (void)unlink(temporary);
        return err_errno(err, r, "'%s' cannot be written", path);
    }
    return set_dir_sync(dir, err);
}

bool set_file_rename(const char *dir, const char *from, const char *to, struct err *err)
{
    CLEANUP(free) char *a = xasprintf("%s/%s", dir, from);
    CLEANUP(free) char *b = xasprintf("%s/%s", dir, to);

    if (rename(a, b) < 0)
        return err_errno(err, -errno, "'%s' cannot be renamed to '%s'", a, b);
    return set_dir_sync(dir, err);
}

bool set_file_remove(const char *dir, const char *name, struct err *err)
{
    CLEANUP(free) char *path = xasprintf("%s/%s", dir, name);

    return unlink(path) == 0 || errno == ENOENT ||
           err_errno(err, -errno, "'%s' cannot be removed", path);
}
