/* SPDX-License-Identifier: Apache-2.0
 *
 * Space of a file or block device: zeroing and freeing ranges by fallocate, and
 * changing the size. fallocate runs in the engine's workers, never on the loop.
 */
#include "drivers/file.h"
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

static bool not_supported(int r)
{
    return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENODEV || r == -ENOTTY;
}

/* fallocate with a memory of what the file system refused. */
static int co_try_fallocate(struct file_state *s, int mode, uint64_t off, uint64_t len,
                            unsigned hints, bool *never)
{
    if (*never)
        return -ENOTSUP;

    int r = co_fallocate(s->fd, mode | FALLOC_FL_KEEP_SIZE, off, len, hints);

    if (!not_supported(r))
        return r;
    *never = true;
    return -ENOTSUP;
}

/* A block device takes FALLOC_FL_PUNCH_HOLE as "zero quickly or refuse" and
 * FALLOC_FL_ZERO_RANGE as "zero, if need be by writing" (Linux block/fops.c,
 * blkdev_fallocate). */
int co_file_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct file_state *s = n->state;
    uint64_t exists = MIN(len, n->size - off);
    unsigned hints = flags & REQ_BULK ? IO_BULK : IO_DEFAULT;
    int r = -ENOTSUP;

    if (flags & REQ_MAY_UNMAP)
        r = co_try_fallocate(s, FALLOC_FL_PUNCH_HOLE, off, exists, hints, &s->no_punch);
    if (r == -ENOTSUP && !(s->device && (flags & REQ_NO_FALLBACK)))
        r = co_try_fallocate(s, FALLOC_FL_ZERO_RANGE, off, exists, hints, &s->no_zero_range);
    extent_cache_forget(&s->extents, off, len, r == 0 ? STATUS_ZERO : 0);
    return r;
}

int co_file_discard(struct node *n, uint64_t off, uint64_t len)
{
    struct file_state *s = n->state;
    int r = co_try_fallocate(s, FALLOC_FL_PUNCH_HOLE, off, MIN(len, n->size - off), IO_DEFAULT,
                             &s->no_punch);

    extent_cache_forget(&s->extents, off, len, r == 0 ? STATUS_ZERO : 0);
    return r;
}

struct resizing {
    int fd;
    uint64_t size;
};

static int set_length(void *arg)
{
    struct resizing *j = arg;

    return ftruncate(j->fd, (off_t)j->size) < 0 ? -errno : 0;
}

bool co_file_resize(struct node *n, uint64_t size, struct err *err)
{
    struct file_state *s = n->state;
    struct resizing j = { s->fd, size };

    if (size > INT64_MAX)
        return err_set(err, -EFBIG, "Disk size too large");

    co_mutex_lock(&s->resizing);

    int r = co_offload(set_length, &j);

    extent_cache_forget(&s->extents, MIN(size, n->size), INT64_MAX, 0);
    if (r == 0)
        n->size = size;
    co_mutex_unlock(&s->resizing);
    if (r < 0)
        return err_errno(err, r, "Failed to resize '%s' to %" PRIu64 " bytes", s->filename, size);
    return true;
}
