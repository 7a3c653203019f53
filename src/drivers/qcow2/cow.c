/* SPDX-License-Identifier: Apache-2.0
 *
 * Filling new host clusters, or subclusters: the guest's data and around it, up to
 * their borders, what the guest reads there now. It goes out as one write wherever
 * that is possible.
 *
 *     | head |        data         | tail |
 *
 * No claim is released in between, so what is read for head and tail stays true.
 */
#include "base/iov.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"

/* Zeros beyond this are better made by the file than written. */
#define ZEROS_WRITTEN_MAX (256 * KiB)
/* Head and tail are read together when no more than this lies between them. */
#define READ_TOGETHER_MAX (64 * KiB)

const uint8_t qcow2_zeros[QCOW2_ZEROS_BYTES] __attribute__((aligned(4096)));

static uint64_t all_bytes(const struct qcow2_fill *f)
{
    return f->head + f->len + f->tail;
}

bool qcow2_fill_is_plain(const struct qcow2_fill *f)
{
    return (f->source_zero && f->host_zero) || !(f->head | f->tail);
}

static int co_write_data(struct qcow2 *s, const struct qcow2_fill *f)
{
    return co_node_pwritev(s->data, f->host, f->len, f->iov, f->niov, f->flags);
}

/* Head, data and tail in one. */
static int co_write_all(struct qcow2 *s, const struct qcow2_fill *f, const struct iovec *iov,
                        int niov)
{
    return co_node_pwritev(s->data, f->host - f->head, all_bytes(f), iov, niov, f->flags);
}

/* ---- zeros around it ----------------------------------------------------- */

/* Entries for @len bytes of zeros; with @v NULL only their number. */
static int add_zeros(struct iovec *v, uint64_t len)
{
    int n = 0;

    for (uint64_t part; len; len -= part, n++) {
        part = MIN(len, (uint64_t)QCOW2_ZEROS_BYTES);
        if (v)
            v[n] = (struct iovec){ (void *)qcow2_zeros, part };
    }
    return n;
}

static int co_fill_zeros(struct qcow2 *s, const struct qcow2_fill *f)
{
    uint64_t head = f->head, tail = f->tail;

    if (head + tail > ZEROS_WRITTEN_MAX) {
        int r = co_node_write_zeroes(s->data, f->host - head, all_bytes(f), REQ_NO_FALLBACK);

        if (r == 0)
            return co_write_data(s, f);
        if (r != -ENOTSUP)
            return r;
    }

    CLEANUP(free) struct iovec *v = calloc((size_t)(add_zeros(NULL, head) + f->niov +
                                                    add_zeros(NULL, tail)), sizeof(*v));
    int n;

    if (!v)
        return -ENOMEM;
    n = add_zeros(v, head);
    memcpy(v + n, f->iov, (size_t)f->niov * sizeof(*v));
    n += f->niov;
    n += add_zeros(v + n, tail);
    return co_write_all(s, f, v, n);
}

/* ---- what the guest reads around it -------------------------------------- */

/* Into @buf; zeros for what lies beyond the end of the disk. */
static int co_read_around(struct qcow2 *s, uint64_t off, uint64_t len, void *buf, unsigned flags)
{
    uint64_t size = s->node->size, have = off < size ? MIN(len, size - off) : 0;
    struct iovec iov = { buf, have };

    memset((char *)buf + have, 0, len - have);
    return have ? co_qcow2_read(s, off, have, &iov, 1, flags) : 0;
}

/* Little data with something on both sides: read it whole, lay the data over it. */
static int co_fill_together(struct qcow2 *s, const struct qcow2_fill *f)
{
    CLEANUP(free) char *buf = try_alloc_aligned(all_bytes(f));
    struct iovec iov = { buf, all_bytes(f) };
    int r;

    if (!buf)
        return -ENOMEM;
    r = co_read_around(s, f->off - f->head, all_bytes(f), buf, f->flags);
    if (r < 0)
        return r;
    iov_to_buf(buf + f->head, f->iov, f->niov, 0, f->len);
    return co_write_all(s, f, &iov, 1);
}

static int co_fill_apart(struct qcow2 *s, const struct qcow2_fill *f)
{
    uint64_t head = f->head, tail = f->tail;
    CLEANUP(free) char *buf = try_alloc_aligned(head + tail);
    CLEANUP(free) struct iovec *v = calloc((size_t)f->niov + 2, sizeof(*v));
    int n = 0, r = 0;

    if (!buf || !v)
        return -ENOMEM;
    if (head) {
        r = co_read_around(s, f->off - head, head, buf, f->flags);
        v[n++] = (struct iovec){ buf, head };
    }
    if (r == 0 && tail)
        r = co_read_around(s, f->off + f->len, tail, buf + head, f->flags);
    if (r < 0)
        return r;
    memcpy(v + n, f->iov, (size_t)f->niov * sizeof(*v));
    n += f->niov;
    if (tail)
        v[n++] = (struct iovec){ buf + head, tail };
    return co_write_all(s, f, v, n);
}

int co_qcow2_fill(struct qcow2 *s, const struct qcow2_fill *f)
{
    if (qcow2_fill_is_plain(f))
        return co_write_data(s, f);
    if (f->source_zero)
        return co_fill_zeros(s, f);
    if (all_bytes(f) <= s->cluster_size && f->len <= READ_TOGETHER_MAX)
        return co_fill_together(s, f);
    return co_fill_apart(s, f);
}
