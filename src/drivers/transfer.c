/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole transfers: see transfer.h.
 */
#include "drivers/transfer.h"
#include <limits.h>

int co_transfer(const struct transfer *t, uint64_t off, uint64_t len,
                const struct iovec *iov, int niov, uint64_t *ret_done)
{
    uint64_t done = 0, skip = 0;

    while (done < len) {
        int n = MIN(niov, IOV_MAX);
        const struct iovec *v = iov;
        struct iovec rest;

        if (skip) {
            rest = (struct iovec){ (char *)iov->iov_base + skip, iov->iov_len - skip };
            v = &rest;
            n = 1;
        }
        ssize_t r = t->write ? co_pwritev(t->fd, v, n, off + done, t->hints)
                             : co_preadv(t->fd, v, n, off + done, t->hints);

        if (r < 0)
            return r;
        if (r == 0)
            break;
        done += r;
        if (done == len)
            break;
        for (skip += r; skip >= iov->iov_len; iov++, niov--)
            skip -= iov->iov_len;
    }
    *ret_done = done;
    return 0;
}

int co_write_all(int fd, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                 unsigned hints)
{
    struct transfer t = { .fd = fd, .write = true, .hints = hints };
    uint64_t done;
    int r = co_transfer(&t, off, len, iov, niov, &done);

    if (r < 0)
        return r;
    return done == len ? 0 : -EIO;
}
