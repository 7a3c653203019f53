/* SPDX-License-Identifier: Apache-2.0
 *
 * Slicing and copying of scatter-gather lists.
 */
#include "base/iov.h"
#include "base/mem.h"

uint64_t iov_length(const struct iovec *iov, int niov)
{
    uint64_t n = 0;

    for (int i = 0; i < niov; i++)
        n += iov[i].iov_len;
    return n;
}

int iov_slice(struct iovec *dst, const struct iovec *iov, int niov, uint64_t off, uint64_t len)
{
    int used = 0;

    for (int i = 0; i < niov && len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t n = MIN(len, iov[i].iov_len - off);

        dst[used].iov_base = (char *)iov[i].iov_base + off;
        dst[used++].iov_len = n;
        len -= n;
        off = 0;
    }
    assert(len == 0);
    return used;
}

enum walk { WALK_FILL, WALK_DRAIN, WALK_ZERO };

/* Visit [off, off+len) of the list piece by piece. */
static void walk(const struct iovec *iov, int niov, uint64_t off, uint64_t len, char *buf,
                 enum walk what)
{
    for (int i = 0; i < niov && len; i++) {
        if (off >= iov[i].iov_len) {
            off -= iov[i].iov_len;
            continue;
        }
        size_t n = MIN(len, iov[i].iov_len - off);
        char *at = (char *)iov[i].iov_base + off;

        if (what == WALK_FILL)
            memcpy(at, buf, n);
        else if (what == WALK_DRAIN)
            memcpy(buf, at, n);
        else
            memset(at, 0, n);
        if (buf)
            buf += n;
        len -= n;
        off = 0;
    }
    assert(len == 0);
}

void iov_from_buf(const struct iovec *iov, int niov, uint64_t off, const void *buf, uint64_t len)
{
    walk(iov, niov, off, len, (char *)buf, WALK_FILL);
}

void iov_to_buf(void *buf, const struct iovec *iov, int niov, uint64_t off, uint64_t len)
{
    walk(iov, niov, off, len, buf, WALK_DRAIN);
}

void iov_zero(const struct iovec *iov, int niov, uint64_t off, uint64_t len)
{
    walk(iov, niov, off, len, NULL, WALK_ZERO);
}

bool iov_is_zero(const struct iovec *iov, int niov)
{
    for (int i = 0; i < niov; i++) {
        if (!mem_is_zero(iov[i].iov_base, iov[i].iov_len))
            return false;
    }
    return true;
}
