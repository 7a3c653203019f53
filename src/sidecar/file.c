/* SPDX-License-Identifier: Apache-2.0
 *
 * The sidecar file as the system has it: see file.h. It is written by pwrite and not
 * through a mapping: a full disk or a file that somebody cuts short is an error here, and
 * would be a SIGBUS there; and the page cache keeps both alike when the process is killed.
 */
#include "sidecar/file.h"
#include "base/mem.h"
#include "loop/co_io.h"
#include "sidecar/sidecar.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* For tests, set while no loop runs. */
static const struct sidecar_observer *observer;

void sidecar_observe(const struct sidecar_observer *o)
{
    observer = o;
}

static void tell(bool end, enum sidecar_op op, uint64_t off, uint64_t len, const void *data)
{
    if (UNLIKELY(observer))
        observer->saw(observer->arg, end, op, off, len, data);
}

/* ---- names ------------------------------------------------------------------------ */

struct job {
    struct sidecar_file *f;
    const char *path;
    bool read_only;
    struct err err;
};

static int sync_dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? MAX((size_t)(slash - path), (size_t)1) : 0;
    CLEANUP(free) char *dir = len ? xstrndup(path, len) : xstrdup(".");
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = fd < 0 || fsync(fd) < 0 ? -errno : 0;

    if (fd >= 0)
        close(fd);
    return r;
}

static int take_lock(struct job *j, bool read_only)
{
    struct flock lock = { .l_type = read_only ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET };

    if (fcntl(j->f->fd, F_OFD_SETLK, &lock) == 0)
        return 0;

    int r = -errno;

    err_set(&j->err, r, "'%s' is in use: another node or process keeps the bitmaps of this image",
            j->path);
    return r;
}

static int measure(struct job *j)
{
    struct stat st;

    if (fstat(j->f->fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    j->f->size = (uint64_t)st.st_size;
    j->f->in_memory = io_is_in_memory(j->f->fd);
    return 0;
}

static int open_blocking(void *arg)
{
    struct job *j = arg;
    int r;

    j->f->fd = open(j->path, (j->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY |
                    O_NONBLOCK | O_NOFOLLOW);
    if (j->f->fd < 0) {
        r = -errno;
        if (r != -ENOENT)
            err_errno(&j->err, r, "Could not open '%s'", j->path);
        return r;
    }
    r = take_lock(j, j->read_only);
    if (r == 0) {
        r = measure(j);
        if (r < 0)
            err_errno(&j->err, r, "Could not open '%s'", j->path);
    }
    return r;
}

static int close_blocking(void *arg)
{
    struct sidecar_file *f = arg;

    close(f->fd);
    return 0;
}

void co_sidecar_file_close(struct sidecar_file *f)
{
    if (f->fd >= 0)
        (void)co_offload(close_blocking, f);
    f->fd = -1;
    free(MOVE(f->path));
}

static int co_do(struct sidecar_file *f, int (*fn)(void *arg), const char *path, bool read_only,
                 struct err *err)
{
    struct job j = { .f = f, .path = path, .read_only = read_only };
    int r = co_offload(fn, &j);

    if (r < 0 && err)
        *err = j.err;
    return r;
}

int co_sidecar_file_open(struct sidecar_file *f, const char *path, bool read_only, struct err *err)
{
    *f = (struct sidecar_file){ .fd = -1, .path = xstrdup(path) };

    int r = co_do(f, open_blocking, path, read_only, err);

    if (r < 0)
        co_sidecar_file_close(f);
    return r;
}

/* With a name of its own until it is complete: file systems differ in what they make of
 * files without one. */
static char *new_name(const char *path)
{
    return xasprintf("%s.new", path);
}

static int create_blocking(void *arg)
{
    struct job *j = arg;
    CLEANUP(free) char *temporary = new_name(j->path);
    int r;

    (void)unlink(temporary);             /* of a process that crashed meanwhile */
    j->f->fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (j->f->fd < 0)
        return err_errno(&j->err, -errno, "Could not create '%s'", temporary), j->err.code;
    r = take_lock(j, false);
    if (r == 0)
        r = measure(j);
    if (r < 0)
        (void)unlink(temporary);
    return r;
}

int co_sidecar_file_create(struct sidecar_file *f, const char *path, struct err *err)
{
    *f = (struct sidecar_file){ .fd = -1, .path = xstrdup(path) };

    tell(false, SIDECAR_OP_CREATE, 0, 0, NULL);

    int r = co_do(f, create_blocking, path, false, err);

    if (r < 0)
        co_sidecar_file_close(f);
    else
        tell(true, SIDECAR_OP_CREATE, 0, 0, NULL);
    return r;
}

static int publish_blocking(void *arg)
{
    struct job *j = arg;
    CLEANUP(free) char *temporary = new_name(j->path);
    int r = 0;

    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, j->path, RENAME_NOREPLACE) < 0 &&
        (errno != EINVAL || rename(temporary, j->path) < 0))
        r = -errno;
    if (r == 0)
        r = sync_dir_of(j->path);
    return r < 0 ? err_errno(&j->err, r, "Could not create '%s'", j->path), r : 0;
}

int co_sidecar_file_publish(struct sidecar_file *f, struct err *err)
{
    tell(false, SIDECAR_OP_PUBLISH, 0, 0, NULL);

    int r = co_do(f, publish_blocking, f->path, false, err);

    if (r == 0)
        tell(true, SIDECAR_OP_PUBLISH, 0, 0, NULL);
    return r;
}

static int discard_blocking(void *arg)
{
    struct job *j = arg;
    CLEANUP(free) char *temporary = new_name(j->path);

    return unlink(temporary);
}

void co_sidecar_file_discard(struct sidecar_file *f)
{
    (void)co_do(f, discard_blocking, f->path, false, NULL);
    co_sidecar_file_close(f);
}

static int unlink_blocking(void *arg)
{
    struct job *j = arg;
    struct stat named, open;

    /* Somebody may have put another one there. */
    if (stat(j->path, &named) < 0 || fstat(j->f->fd, &open) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (named.st_ino != open.st_ino || named.st_dev != open.st_dev)
        return 0;
    return unlink(j->path) < 0 ? -errno : sync_dir_of(j->path);
}

int co_sidecar_file_unlink(struct sidecar_file *f)
{
    tell(false, SIDECAR_OP_UNLINK, 0, 0, NULL);

    int r = co_do(f, unlink_blocking, f->path, false, NULL);

    if (r == 0)
        tell(true, SIDECAR_OP_UNLINK, 0, 0, NULL);
    return r;
}

/* ---- bytes -------------------------------------------------------------------------- */

static unsigned hints(const struct sidecar_file *f)
{
    return IO_INLINE | (f->in_memory ? IO_MEMORY : 0);
}

int co_sidecar_write(struct sidecar_file *f, uint64_t off, const void *buf, size_t len)
{
    ssize_t r = 0;

    tell(false, SIDECAR_OP_WRITE, off, len, buf);
    for (size_t done = 0; done < len; done += (size_t)r) {
        struct iovec iov = { (char *)buf + done, len - done };

        r = co_pwritev(f->fd, &iov, 1, off + done, hints(f));
        if (r == 0)
            r = -EIO;
        if (r < 0)
            return (int)r;
    }
    tell(true, SIDECAR_OP_WRITE, off, len, buf);
    return 0;
}

int co_sidecar_read(struct sidecar_file *f, uint64_t off, void *buf, size_t len)
{
    ssize_t r = 0;

    for (size_t done = 0; done < len; done += (size_t)r) {
        struct iovec iov = { (char *)buf + done, len - done };

        r = co_preadv(f->fd, &iov, 1, off + done, hints(f));
        if (r == 0)
            r = -EIO;                    /* it is shorter than it should be */
        if (r < 0)
            return (int)r;
    }
    return 0;
}

struct resizing {
    int fd;
    uint64_t size;
};

static int resize(void *arg)
{
    struct resizing *j = arg;

    return ftruncate(j->fd, (off_t)j->size) < 0 ? -errno : 0;
}

int co_sidecar_resize(struct sidecar_file *f, uint64_t size)
{
    struct resizing j = { f->fd, size };

    tell(false, SIDECAR_OP_RESIZE, 0, size, NULL);

    int r = co_offload(resize, &j);

    if (r == 0) {
        f->size = size;
        tell(true, SIDECAR_OP_RESIZE, 0, size, NULL);
    }
    return r;
}

/* Where a file system has no holes to make, zeros are written. */
int co_sidecar_punch(struct sidecar_file *f, uint64_t off, uint64_t len)
{
    static const uint8_t zeros[64 * KiB];
    int r;

    tell(false, SIDECAR_OP_PUNCH, off, len, NULL);
    r = co_fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, len, 0);
    if (r == -EOPNOTSUPP || r == -ENOSYS) {
        r = 0;
        for (uint64_t done = 0; done < len && r == 0; done += sizeof(zeros))
            r = co_sidecar_write(f, off + done, zeros, MIN(len - done, sizeof(zeros)));
    }
    if (r == 0)
        tell(true, SIDECAR_OP_PUNCH, off, len, NULL);
    return r;
}

int co_sidecar_sync(struct sidecar_file *f)
{
    tell(false, SIDECAR_OP_SYNC, 0, 0, NULL);

    int r = co_fdatasync(f->fd);

    if (r == 0)
        tell(true, SIDECAR_OP_SYNC, 0, 0, NULL);
    return r;
}
