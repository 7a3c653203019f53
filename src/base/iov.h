/* SPDX-License-Identifier: Apache-2.0
 *
 * Scatter-gather lists. Every request in the program is an (iov, niov) pair
 * whose total length is exactly the request's length. Pure; any thread.
 */
#ifndef BASE_IOV_H
#define BASE_IOV_H

#include "base/base.h"
#include <sys/uio.h>

uint64_t iov_length(const struct iovec *iov, int niov);

/* Write to @dst (room for @niov entries) the part [off, off+len) of @iov, which
 * must lie inside it. Returns the number of entries used. Bytes are shared, not
 * copied. */
int iov_slice(struct iovec *dst, const struct iovec *iov, int niov, uint64_t off, uint64_t len);

/* Copy between a flat buffer and [off, off+len) of the list. */
void iov_from_buf(const struct iovec *iov, int niov, uint64_t off, const void *buf, uint64_t len);
void iov_to_buf(void *buf, const struct iovec *iov, int niov, uint64_t off, uint64_t len);
void iov_zero(const struct iovec *iov, int niov, uint64_t off, uint64_t len);

/* Whether every byte of the list is zero. */
bool iov_is_zero(const struct iovec *iov, int niov);

#endif
