/* SPDX-License-Identifier: Apache-2.0
 *
 * All of a list of buffers to or from a descriptor, where the system calls may
 * stop short.
 */
#ifndef DRIVERS_TRANSFER_H
#define DRIVERS_TRANSFER_H

#include "loop/co_io.h"

struct transfer {
    int fd;
    bool write;
    unsigned hints;          /* enum io_hint */
};

/* Read or write [off, off+len). Ends early, with success, where the file ends;
 * *ret_done tells. Suspends. */
MUST_CHECK int co_transfer(const struct transfer *t, uint64_t off, uint64_t len,
                           const struct iovec *iov, int niov, uint64_t *ret_done);

/* Write all of it: 0 or -errno. Suspends. */
MUST_CHECK int co_write_all(int fd, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                            unsigned hints);

#endif
