/* SPDX-License-Identifier: Apache-2.0
 *
 * A connected socket with a read buffer and gathered writes: the transport of
 * NBD and QMP connections. One coroutine may read while another writes.
 */
#ifndef LOOP_STREAM_H
#define LOOP_STREAM_H

#include "base/base.h"
#include <sys/uio.h>

struct stream;

/* Takes over @fd (a connected stream socket; made non-blocking). */
struct stream *stream_new(int fd, size_t read_buffer_bytes);
/* When no coroutine is inside a co_stream_ call. Closes the descriptor. */
void stream_free(struct stream *s);
int stream_fd(const struct stream *s);

/* Bytes that are buffered and not consumed yet. */
const void *stream_peek(const struct stream *s, size_t *ret_len);
void stream_consume(struct stream *s, size_t len);

/* Wait until at least @want bytes (at most the buffer's size) are buffered; one
 * receive takes as much as there is room for. 0; -ECONNRESET when the peer ends
 * in the middle; -ENODATA when it ends with nothing buffered; or -errno. */
MUST_CHECK int co_stream_fill(struct stream *s, size_t want);

/* Exactly @len bytes into @buf, past the buffer when it is empty. */
MUST_CHECK int co_stream_read(struct stream *s, void *buf, size_t len);
/* Read and drop @len bytes. */
MUST_CHECK int co_stream_skip(struct stream *s, uint64_t len);

/* All of @iov, in one sendmsg where the kernel takes it. 0 or -errno. Changes
 * the entries of @iov. Any number of entries. */
MUST_CHECK int co_stream_writev(struct stream *s, struct iovec *iov, int niov);

/* Make every pending and later read and write fail soon. Idempotent, does not
 * suspend. */
void stream_shutdown(struct stream *s);

#endif
