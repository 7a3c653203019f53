/* SPDX-License-Identifier: Apache-2.0
 *
 * Space of a file or block device: zeroing and freeing ranges by fallocate, sharing
 * it with another file (reflink), and changing the size. All of it runs in the engine's
 * workers, never on the loop.
 */
#include "drivers/file.h"
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool not_supported(int r)
{
    return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENODEV || r == -ENOTTY;
}

/* ---- turns ---------------------------------------------------------------------- */

void co_file_turn_begin(struct file_state *s, bool cached)
{
    struct file_turns *t = &s->turns;

    if (!cached) {
        while (t->cached)
            co_waitq_wait(&t->wait);
        t->direct++;
        return;
    }
    t->cached++;
    while (t->busy || t->direct)
        co_waitq_wait(&t->wait);
    t->busy = true;
}

bool co_file_turn_begin_write(struct node *n, uint64_t end)
{
    struct file_state *s = n->state;

    for (;;) {
        bool cached = end > n->size;

        co_file_turn_begin(s, cached);
        /* The turn before may have been a change of the size. */
        if (cached == (end > n->size))
            return cached;
        file_turn_end(s, cached);
    }
}

void file_turn_end(struct file_state *s, bool cached)
{
    struct file_turns *t = &s->turns;

    if (cached) {
        t->busy = false;
        t->cached--;
    } else {
        t->direct--;
    }
    if (cached || (t->cached && !t->direct))
        waitq_wake_all(&t->wait);
}

/* ---- zeroing and freeing --------------------------------------------------------- */

/* What is not whole pages the file system makes zero in the page cache. */
#define PAGE 4096u

/* fallocate with a memory of what the file system refused. */
static int co_try_fallocate(struct file_state *s, int mode, uint64_t off, uint64_t len,
                            unsigned hints, bool *never)
{
    bool cached = s->tail_fd >= 0 && (off | len) % PAGE;
    int r;

    if (*never)
        return -ENOTSUP;
    if (cached)
        co_file_turn_begin(s, true);
    r = co_fallocate(s->fd, mode | FALLOC_FL_KEEP_SIZE, off, len, hints);
    if (cached)
        file_turn_end(s, true);
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

/* ---- cloning ------------------------------------------------------------------- */

struct cloning {
    int fd;
    struct file_clone_range range;
};

/* What is dirty is written back first if it is much: ioctl_ficlonerange does it too, but
 * with the file locked, and its writers, guests perhaps, wait meanwhile. */
#define FLUSH_FIRST (1 * MiB)
static int clone_range(void *arg)
{
    const unsigned write_back = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                SYNC_FILE_RANGE_WAIT_AFTER;
    struct cloning *j = arg;

    if (j->range.src_length > FLUSH_FIRST &&
        sync_file_range((int)j->range.src_fd, (off_t)j->range.src_offset,
                        (off_t)j->range.src_length, write_back) < 0)
        return -errno;
    return ioctl(j->fd, FICLONERANGE, &j->range) < 0 ? -errno : 0;
}

/* Not these files, or not this range: ioctl_ficlonerange(2). */
static bool cannot_clone(int r)
{
    return not_supported(r) || r == -EXDEV || r == -EINVAL || r == -EPERM || r == -ETXTBSY ||
           r == -EISDIR || r == -EBADF;
}

int co_file_clone(struct node *n, uint64_t off, struct node *src, uint64_t src_off, uint64_t len)
{
    struct file_state *s = n->state, *from = src->state;
    struct cloning j = {
        .fd = s->fd,
        .range = { .src_fd = from->fd, .src_offset = src_off, .src_length = len,
                   .dest_offset = off },
    };
    int r;

    if (s->device || from->device || s->in_memory)
        return -ENOTSUP;
    r = co_offload_bulk(clone_range, &j);
    extent_cache_forget(&s->extents, off, len, 0);
    return cannot_clone(r) ? -ENOTSUP : r;
}

/* ---- size ---------------------------------------------------------------------- */

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
    int r;

    if (size > INT64_MAX)
        return err_set(err, -EFBIG, "Disk size too large");

    co_mutex_lock(&s->resizing);
    /* What lies behind the old or the new end in its page is made zero there. */
    if (s->tail_fd >= 0)
        co_file_turn_begin(s, true);
    r = co_offload(set_length, &j);
    if (s->tail_fd >= 0)
        file_turn_end(s, true);
    extent_cache_forget(&s->extents, MIN(size, n->size), INT64_MAX, 0);
    if (r == 0)
        n->size = size;
    co_mutex_unlock(&s->resizing);
    if (r < 0)
        return err_errno(err, r, "Failed to resize '%s' to %" PRIu64 " bytes", s->filename, size);
    return true;
}
