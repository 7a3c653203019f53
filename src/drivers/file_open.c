/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening a file or block device: everything that may block (open on a network
 * file system, locks, probing O_DIRECT) is one piece of work for a worker.
 */
#include "drivers/file.h"
#include "base/mem.h"
#include "block/lock.h"
#include <fcntl.h>
#include <linux/stat.h>
#include <unistd.h>

enum { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };   /* auto is on: Linux has the locks */
enum { AIO_THREADS, AIO_NATIVE, AIO_IO_URING };

#define DIRECT_ALIGN_MAX 4096

/* What opening finds out, in a worker. */
struct opening {
    const char *filename;
    const char *driver;
    bool device, read_only, direct, lock;

    int fd, tail_fd;
    bool in_memory;
    struct stat st;
    uint64_t size;
    uint32_t request_align, mem_align;
    struct err err;
};

static bool check_type(struct opening *j)
{
    if (j->device && !S_ISBLK(j->st.st_mode))
        return err_set(&j->err, -EINVAL, "'host_device' driver requires '%s' to be a block device"
                       "%s", j->filename,
                       S_ISREG(j->st.st_mode) ? ": use driver 'file' for a regular file" : "");
    if (!j->device && !S_ISREG(j->st.st_mode))
        return err_set(&j->err, -EINVAL, "'file' driver requires '%s' to be a regular file%s",
                       j->filename,
                       S_ISBLK(j->st.st_mode) ? ": use driver 'host_device' for a block device"
                                              : "");
    return true;
}

static int open_buffered(const struct opening *j)
{
    int mode = j->read_only ? O_RDONLY : O_RDWR;

    /* Without O_NONBLOCK a FIFO would keep the worker until somebody writes to it. */
    return open(j->filename, mode | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
}

static bool open_descriptor(struct opening *j)
{
    j->fd = open_buffered(j);
    if (j->fd < 0)
        return err_errno(&j->err, -errno, "Could not open '%s'", j->filename);
    if (fstat(j->fd, &j->st) < 0)
        return err_errno(&j->err, -errno, "Could not stat '%s'", j->filename);
    if (!check_type(j))
        return false;

    /* With O_NONBLOCK io_uring would give -EAGAIN instead of waiting. */
    if (fcntl(j->fd, F_SETFL, j->direct ? O_DIRECT : 0) < 0) {
        int r = -errno;

        if (j->direct && r == -EINVAL)
            return err_set(&j->err, r, "Could not open '%s': filesystem does not support O_DIRECT",
                           j->filename);
        return err_errno(&j->err, r, "Could not open '%s'", j->filename);
    }
    return true;
}

/* What others may change is looked at only once the file is locked. */
static bool lock_and_measure(struct opening *j)
{
    if (j->lock && !image_lock_file(j->fd, j->filename, j->read_only, &j->err))
        return false;
    if (fstat(j->fd, &j->st) < 0)
        return err_errno(&j->err, -errno, "Could not stat '%s'", j->filename);
    if (!j->device) {
        j->size = (uint64_t)j->st.st_size;
        j->request_align = 1;
        return true;
    }

    if (!j->read_only && !host_device_writable(j->fd))
        return err_set(&j->err, -EACCES, "Could not open '%s': The device is not writable",
                       j->filename);

    int r = host_device_probe(j->fd, &j->size, &j->request_align);

    if (r < 0)
        return err_errno(&j->err, r, "Could not get the size of '%s'", j->filename);
    return true;
}

/* Try what the file system takes, for kernels before 6.1. */
static uint32_t try_direct_reads(int fd, uint32_t least)
{
    CLEANUP(free) char *buf = try_alloc_aligned(DIRECT_ALIGN_MAX);

    for (uint32_t align = MAX(least, 512U); buf && align < DIRECT_ALIGN_MAX; align *= 2) {
        if (pread(fd, buf, align, 0) > 0)
            return align;
    }
    return DIRECT_ALIGN_MAX;
}

static bool probe_direct(struct opening *j)
{
#ifdef STATX_DIOALIGN
    struct statx stx;

    if (statx(j->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 &&
        (stx.stx_mask & STATX_DIOALIGN)) {
        if (!is_power_of_2(stx.stx_dio_offset_align) || !is_power_of_2(stx.stx_dio_mem_align))
            return err_set(&j->err, -EINVAL, "'%s' does not support O_DIRECT (cache.direct=on)",
                           j->filename);
        j->request_align = MAX(j->request_align, stx.stx_dio_offset_align);
        j->mem_align = stx.stx_dio_mem_align;
        return true;
    }
#endif
    j->request_align = j->mem_align = try_direct_reads(j->fd, j->request_align);
    return true;
}

static bool open_tail(struct opening *j)
{
    j->tail_fd = open_buffered(j);
    if (j->tail_fd < 0 || fcntl(j->tail_fd, F_SETFL, 0) < 0)
        return err_errno(&j->err, -errno, "Could not open '%s'", j->filename);
    return true;
}

static int open_blocking(void *arg)
{
    struct opening *j = arg;
    bool ok = open_descriptor(j) && lock_and_measure(j);

    if (ok && j->direct)
        ok = probe_direct(j) && (j->device || j->read_only || open_tail(j));
    j->in_memory = ok && io_is_in_memory(j->fd);
    return ok ? 0 : -1;
}

static void close_opening(struct opening *j)
{
    if (j->fd >= 0)
        close(j->fd);
    if (j->tail_fd >= 0)
        close(j->tail_fd);
}

static bool check_options(const struct node *n, const struct file_options *o, struct err *err)
{
    if (!*o->filename)
        return err_set(err, -EINVAL, "The '%s' block driver requires a file name", n->drv->name);
    if (o->has_aio && o->aio == AIO_NATIVE && !n->no_cache)
        return err_set(err, -EINVAL, "aio=native was specified, but it requires cache.direct=on, "
                       "which was not specified");
    return true;
}

bool co_file_open(struct node *n, const void *opts, struct err *err)
{
    const struct file_options *o = opts;
    struct file_state *s = n->state;
    struct opening j = {
        .filename = o->filename,
        .device = n->drv == &host_device_driver,
        .read_only = n->read_only,
        .direct = n->no_cache,
        .lock = !n->force_share && o->locking != LOCKING_OFF,
        .fd = -1,
        .tail_fd = -1,
        .mem_align = 1,
    };

    if (!check_options(n, o, err))
        return false;
    if (co_offload(open_blocking, &j) < 0) {
        close_opening(&j);
        if (err)
            *err = j.err;
        return false;
    }
    s->fd = j.fd;
    s->tail_fd = j.tail_fd;
    waitq_init(&s->turns.wait);
    s->device = j.device;
    s->in_memory = j.in_memory;
    s->mem_align = j.mem_align;
    s->filename = xstrdup(o->filename);
    co_mutex_init(&s->resizing);
    extent_cache_init(&s->extents);

    n->size = j.size;
    n->limits.request_align = j.request_align;
    n->limits.write_flags = REQ_FUA;
    n->limits.zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    n->zero_init = !j.device;
    n->storage_id = storage_id_for_file(&j.st);
    return true;
}

/* Closing may write to a network file system, or free a file that has no name. */
static int close_blocking(void *arg)
{
    struct file_state *s = arg;

    image_unlock(s->fd);
    if (s->tail_fd >= 0)
        close(s->tail_fd);
    close(s->fd);
    return 0;
}

void co_file_close(struct node *n)
{
    struct file_state *s = n->state;

    (void)co_offload(close_blocking, s);
    free(s->filename);
}

static const char *const locking_names[] = { "auto", "on", "off", NULL };
static const struct schema_type locking_type = {
    .name = "OnOffAuto",
    .kind = SCHEMA_ENUM,
    .size = sizeof(int),
    .values = locking_names,
};

static const char *const aio_names[] = { "threads", "native", "io_uring", NULL };
static const struct schema_type aio_type = {
    .name = "BlockdevAioOptions",
    .kind = SCHEMA_ENUM,
    .size = sizeof(int),
    .values = aio_names,
};

static const struct schema_member file_members[] = {
    SCHEMA_REQUIRED(struct file_options, filename, "filename", &schema_str, "path"),
    SCHEMA_OPTIONAL(struct file_options, locking, "locking", &locking_type,
                    "keep other programs out; default auto, which is on"),
    SCHEMA_OPTIONAL(struct file_options, aio, "aio", &aio_type,
                    "without effect: option --engine of the program decides"),
    SCHEMA_OPTIONAL(struct file_options, aio_max_batch, "aio-max-batch", &schema_int,
                    "without effect"),
    SCHEMA_OPTIONAL(struct file_options, drop_cache, "drop-cache", &schema_bool,
                    "without effect: for migration"),
    SCHEMA_OPTIONAL(struct file_options, x_check_cache_dropped, "x-check-cache-dropped",
                    &schema_bool, "without effect: for migration"),
    SCHEMA_END,
};

const struct schema_type file_options_type = {
    .name = "BlockdevOptionsFile",
    .kind = SCHEMA_STRUCT,
    .doc = "a regular file",
    .size = sizeof(struct file_options),
    .members = file_members,
};

const struct schema_type host_device_options_type = {
    .name = "BlockdevOptionsHostDevice",
    .kind = SCHEMA_STRUCT,
    .doc = "a block device of this host",
    .size = sizeof(struct file_options),
    .members = file_members,
};
