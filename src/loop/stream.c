/* SPDX-License-Identifier: Apache-2.0
 *
 * A socket with a read buffer. The buffer is flat, so that a header that lies in
 * it can be looked at in place; bytes move to its front only when a caller wants
 * more than fits behind them.
 */
#include "loop/stream.h"
#include "base/mem.h"
#include "loop/co_io.h"
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

struct stream {
    int fd;
    bool shut;
    bool drained;     /* the last receive left nothing in the socket */
    char *buf;
    size_t size;      /* of @buf */
    size_t off, len;  /* what is buffered */
};

struct stream *stream_new(int fd, size_t read_buffer_bytes)
{
    struct stream *s = xnew(struct stream);

    assert(read_buffer_bytes);
    s->fd = fd;
    s->size = read_buffer_bytes;
    s->buf = xmalloc(s->size);
    /* A descriptor that refuses this refuses every read and write too, and says why. */
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return s;
}

void stream_free(struct stream *s)
{
    if (!s)
        return;
    close(s->fd);
    free(s->buf);
    free(s);
}

int stream_fd(const struct stream *s)
{
    return s->fd;
}

const void *stream_peek(const struct stream *s, size_t *ret_len)
{
    *ret_len = s->len;
    return s->buf + s->off;
}

void stream_consume(struct stream *s, size_t len)
{
    assert(len <= s->len);
    s->len -= len;
    s->off = s->len ? s->off + len : 0;
}

/* Receive into @iov: the number of bytes, more than 0, or -errno. */
static ssize_t co_receive(struct stream *s, struct iovec *iov, int niov, int flags)
{
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)niov };
    size_t room = 0;

    for (int i = 0; i < niov; i++)
        room += iov[i].iov_len;
    if (s->shut)
        return -ESHUTDOWN;

    ssize_t r = co_recvmsg(s->fd, &msg, flags, s->drained);

    if (r <= 0)
        return r == 0 ? -ECONNRESET : r;
    s->drained = (size_t)r < room;
    return r;
}

int co_stream_fill(struct stream *s, size_t want)
{
    assert(want <= s->size);
    while (s->len < want) {
        if (s->off && s->off + want > s->size) {
            memmove(s->buf, s->buf + s->off, s->len);
            s->off = 0;
        }

        size_t end = s->off + s->len;
        struct iovec iov = { .iov_base = s->buf + end, .iov_len = s->size - end };
        ssize_t r = co_receive(s, &iov, 1, 0);

        if (r < 0)
            return r == -ECONNRESET && s->len == 0 ? -ENODATA : (int)r;
        s->len += (size_t)r;
    }
    return 0;
}

/* Take up to @len buffered bytes; gives how many. */
static size_t take(struct stream *s, void *buf, size_t len)
{
    size_t n = MIN(len, s->len);

    memcpy(buf, s->buf + s->off, n);
    stream_consume(s, n);
    return n;
}

int co_stream_read(struct stream *s, void *buf, size_t len)
{
    size_t done = take(s, buf, len);

    while (done < len) {
        /* The buffer is empty. A long rest goes straight to its place, all of it in as
         * few wake-ups as the kernel can make it; a short one together with what
         * follows it. */
        bool lone = len - done >= s->size;
        struct iovec iov[2] = {
            { .iov_base = (char *)buf + done, .iov_len = len - done },
            { .iov_base = s->buf, .iov_len = s->size },
        };
        ssize_t r = co_receive(s, iov, lone ? 1 : 2, lone ? MSG_WAITALL : 0);

        if (r < 0)
            return (int)r;

        size_t mine = MIN((size_t)r, len - done);

        done += mine;
        s->len = (size_t)r - mine;
    }
    return 0;
}

int co_stream_skip(struct stream *s, uint64_t len)
{
    for (;;) {
        size_t n = (size_t)MIN(len, (uint64_t)s->len);

        stream_consume(s, n);
        len -= n;
        if (len == 0)
            return 0;

        int r = co_stream_fill(s, 1);

        if (r < 0)
            return r == -ENODATA ? -ECONNRESET : r;
    }
}

int co_stream_writev(struct stream *s, struct iovec *iov, int niov)
{
    while (niov) {
        struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)MIN(niov, IOV_MAX) };

        if (s->shut)
            return -ESHUTDOWN;

        /* MSG_WAITALL: if the engine has to wait for room, then for all of it. */
        ssize_t n = co_sendmsg(s->fd, &msg, MSG_WAITALL);

        if (n < 0)
            return (int)n;
        while (niov && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            niov--;
        }
        if (n) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

void stream_shutdown(struct stream *s)
{
    s->shut = true;
    /* Fails when the peer is gone already: as good. */
    (void)shutdown(s->fd, SHUT_RDWR);
}
