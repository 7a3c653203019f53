/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading, writing and flushing a file or block device. What is small, buffered
 * and wanted at once is tried without leaving the loop; background work never is.
 */
#include "drivers/file.h"
#include "base/iov.h"
#include "base/mem.h"
#include "drivers/transfer.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* Larger transfers cost the loop more than a change of threads does: copying on
 * another CPU gave 1.4 to 2 times the throughput at 128 KiB and 1 MiB, 8 at once. */
#define INLINE_MAX (64 * KiB)

static unsigned io_hints(const struct file_state *s, uint64_t len, unsigned flags)
{
    unsigned bulk = flags & REQ_BULK ? IO_BULK : 0;

    if (s->mem_align > 1)
        return IO_DEFAULT | bulk;
    if (len > INLINE_MAX || bulk)
        return IO_ASYNC | bulk;
    return IO_INLINE | (s->in_memory ? IO_MEMORY : 0);
}

static int co_read(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                   unsigned flags)
{
    struct file_state *s = n->state;
    struct transfer t = { .fd = s->fd, .hints = io_hints(s, len, flags) };
    uint64_t done;
    int r = co_transfer(&t, off, len, iov, niov, &done);

    if (r < 0 || LIKELY(done == len))
        return r;
    /* The last block may reach beyond the end; a file that ends earlier was made
     * shorter behind our back. */
    if (off + done < n->size)
        return -EIO;
    iov_zero(iov, niov, done, len - done);
    return 0;
}

/* Write [off, off+len), whose last block reaches beyond the end of the file, and
 * leave the file as long as it is: the bytes of that block that exist go through
 * the page cache. */
static int co_write_to_end(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov,
                           int niov, unsigned hints)
{
    struct file_state *s = n->state;
    uint64_t head = align_down(n->size, n->limits.request_align) - off;
    struct iovec *part = xcalloc(niov, sizeof(*part));
    int r = 0;

    if (head) {
        int used = iov_slice(part, iov, niov, 0, head);

        r = co_write_all(s->fd, off, head, part, used, hints);
    }
    if (r == 0) {
        int used = iov_slice(part, iov, niov, head, n->size - off - head);

        r = co_write_all(s->tail_fd, off + head, n->size - off - head, part, used, hints);
    }
    free(part);
    return r;
}

static int co_write(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                    unsigned flags)
{
    struct file_state *s = n->state;
    unsigned hints = io_hints(s, len, flags);
    bool tail = off + len > n->size;
    int r;

    if (flags & REQ_FUA)
        hints = (hints & ~IO_INLINE) | IO_DSYNC;
    if (UNLIKELY(s->tail_fd >= 0))
        tail = co_file_turn_begin_write(n, off + len);
    if (UNLIKELY(tail))
        r = co_write_to_end(n, off, len, iov, niov, hints);
    else
        r = co_write_all(s->fd, off, len, iov, niov, hints);
    if (UNLIKELY(s->tail_fd >= 0))
        file_turn_end(s, tail);
    /* A write through that fails has taken the news of pages lost before it. */
    if (r == -EIO && (hints & IO_DSYNC) && !n->no_cache)
        s->flush_error = r;
    extent_cache_forget(&s->extents, off, len, STATUS_DATA);
    return r;
}

static bool buffers_aligned(const struct iovec *iov, int niov, uint32_t align)
{
    for (int i = 0; i < niov; i++) {
        if (((uintptr_t)iov[i].iov_base | iov[i].iov_len) & (align - 1))
            return false;
    }
    return true;
}

/* O_DIRECT with buffers that the device cannot use: through one that it can. */
static int co_bounce(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                     unsigned flags, bool write)
{
    CLEANUP(free) void *buf = try_alloc_aligned(len);
    struct iovec one = { buf, len };

    if (!buf)
        return -ENOMEM;
    if (write) {
        iov_to_buf(buf, iov, niov, 0, len);
        return co_write(n, off, len, &one, 1, flags);
    }

    int r = co_read(n, off, len, &one, 1, flags);

    if (r == 0)
        iov_from_buf(iov, niov, 0, buf, len);
    return r;
}

int co_file_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                   unsigned flags)
{
    struct file_state *s = n->state;

    if (s->mem_align > 1 && !buffers_aligned(iov, niov, s->mem_align))
        return co_bounce(n, off, len, iov, niov, flags, false);
    return co_read(n, off, len, iov, niov, flags);
}

int co_file_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                    unsigned flags)
{
    struct file_state *s = n->state;

    if (s->mem_align > 1 && !buffers_aligned(iov, niov, s->mem_align))
        return co_bounce(n, off, len, iov, niov, flags, true);
    return co_write(n, off, len, iov, niov, flags);
}

int co_file_flush(struct node *n)
{
    struct file_state *s = n->state;

    if (s->flush_error)
        return s->flush_error;

    int r = co_fdatasync(s->fd);

    if (r < 0 && !n->no_cache)
        s->flush_error = r;
    return r;
}

/* Looks at the file without leaving the loop: fstat answers from the inode that
 * an open descriptor holds. */
void file_get_info(struct node *n, struct node_info *ret)
{
    struct file_state *s = n->state;
    /* What this host knows will do: a file server that hangs may not hang the loop. */
    const int flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC;
    struct statx st;

    if (!s->device && statx(s->fd, "", flags, STATX_BLOCKS, &st) == 0 &&
        (st.stx_mask & STATX_BLOCKS))
        ret->allocated = st.stx_blocks * 512;
    ret->can_unmap = !s->no_punch;
    ret->can_write_zeroes_fast = !(s->no_punch && s->no_zero_range);
    snprintf(ret->filename, sizeof(ret->filename), "%s", s->filename);
}

struct identifying {
    int fd;
    bool device;
    struct storage_identity ret;
};

static int64_t nanoseconds(const struct timespec *ts)
{
    return ts->tv_sec * (int64_t)NSEC_PER_SEC + ts->tv_nsec;
}

static int identify(void *arg)
{
    struct identifying *j = arg;
    struct storage_identity *id = &j->ret;
    struct stat st;

    if (j->device) {
        host_device_identify(j->fd, id);
        return 0;
    }
    if (fstat(j->fd, &st) < 0)
        return -errno;
    id->kind = STORAGE_FILE;
    id->dev = st.st_dev;
    id->ino = st.st_ino;
    id->size = (uint64_t)st.st_size;
    id->mtime_ns = nanoseconds(&st.st_mtim);
    id->ctime_ns = nanoseconds(&st.st_ctim);
    return 0;
}

void co_file_identify(struct node *n, struct storage_identity *ret)
{
    struct file_state *s = n->state;
    struct identifying j = { .fd = s->fd, .device = s->device };

    if (co_offload(identify, &j) == 0)
        *ret = j.ret;
}

const struct driver file_driver = {
    .name = "file",
    .doc = "a regular file",
    .state_size = sizeof(struct file_state),
    .options = &file_options_type,
    .is_protocol = true,
    .co_open = co_file_open,
    .co_close = co_file_close,
    .co_preadv = co_file_preadv,
    .co_pwritev = co_file_pwritev,
    .co_write_zeroes = co_file_write_zeroes,
    .co_discard = co_file_discard,
    .co_flush = co_file_flush,
    .co_clone = co_file_clone,
    .co_status = co_file_status,
    .co_resize = co_file_resize,
    .get_info = file_get_info,
    .co_identify = co_file_identify,
};
