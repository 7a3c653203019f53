/* SPDX-License-Identifier: Apache-2.0
 *
 * The image file below: reads that may reach past its end, and its length, which
 * is kept ahead of what is allocated (a node takes no writes past its end), in
 * steps so that growing costs nothing per cluster. And the file that has the guest's
 * data, when that is another: it has the length of the disk.
 */
#include "base/iov.h"
#include "drivers/qcow2/qcow2.h"

#define GROW_MIN (1 * MiB)
#define GROW_MAX (64 * MiB)
#define TRIM_MAX (256 * MiB)

static int co_read_over_end(struct node *file, uint64_t host, uint64_t len,
                            const struct iovec *iov, int niov, unsigned flags)
{
    uint64_t size = node_size(file), have = host < size ? size - host : 0;
    int r = 0;

    if (have) {
        CLEANUP(free) struct iovec *part = calloc((size_t)niov, sizeof(*part));

        if (!part)
            return -ENOMEM;
        r = co_node_preadv(file, host, have, part, iov_slice(part, iov, niov, 0, have), flags);
    }
    iov_zero(iov, niov, have, len - have);
    return r;
}

int co_qcow2_host_read(struct qcow2 *s, uint64_t host, uint64_t len, const struct iovec *iov,
                       int niov, unsigned flags)
{
    if (LIKELY(host + len <= node_size(s->file)))
        return co_node_preadv(s->file, host, len, iov, niov, flags & REQ_BULK);
    return co_read_over_end(s->file, host, len, iov, niov, flags & REQ_BULK);
}

int co_qcow2_data_read(struct qcow2 *s, uint64_t host, uint64_t len, const struct iovec *iov,
                       int niov, unsigned flags)
{
    if (LIKELY(host + len <= node_size(s->data)))
        return co_node_preadv(s->data, host, len, iov, niov, flags & REQ_BULK);
    return co_read_over_end(s->data, host, len, iov, niov, flags & REQ_BULK);
}

int co_qcow2_meta_read(struct qcow2 *s, uint64_t host, uint64_t len, void *buf)
{
    struct iovec iov = { buf, len };

    if (host >= node_size(s->file))
        return -EIO;
    return co_qcow2_host_read(s, host, len, &iov, 1, 0);
}

int co_qcow2_meta_write(struct qcow2 *s, uint64_t host, uint64_t len, const void *buf)
{
    int r = co_qcow2_host_grow(s, host + len);

    if (r < 0)
        return r;
    return s->stopped ? -EIO : co_node_pwrite(s->file, host, len, buf, 0);      /* I-Q15 */
}

/* What a guest hears when the file cannot become longer. */
static int grow_error(const struct err *err)
{
    switch (err->code) {
    case -EIO:
    case -EFBIG:
    case -EDQUOT:
    case -EBUSY:
        return err->code;
    default:
        return -ENOSPC;
    }
}

int co_qcow2_host_grow(struct qcow2 *s, uint64_t end)
{
    struct err err = ERR_INIT;
    int r = 0;

    if (LIKELY(end <= node_size(s->file)))
        return 0;
    co_mutex_lock(&s->grow_lock);
    if (end > node_size(s->file)) {
        uint64_t step = MIN(MAX(node_size(s->file) / 8, GROW_MIN), GROW_MAX);

        if (!co_node_resize(s->file, align_up(end + step, s->cluster_size), &err) &&
            !co_node_resize(s->file, end, &err))
            r = grow_error(&err);
    }
    co_mutex_unlock(&s->grow_lock);
    return r;
}

int co_qcow2_data_grow(struct qcow2 *s, uint64_t end)
{
    struct err err = ERR_INIT;
    int r = 0;

    if (LIKELY(!s->geo.data_file))
        return co_qcow2_host_grow(s, end);
    if (LIKELY(end <= node_size(s->data)))
        return 0;
    co_mutex_lock(&s->grow_lock);
    end = MAX(end, s->node->size);
    if (end > node_size(s->data) && !co_node_resize(s->data, end, &err))
        r = grow_error(&err);
    co_mutex_unlock(&s->grow_lock);
    return r;
}

/* The end of the last cluster that is in use, searched for from the end of the file;
 * no further than the file is ever kept ahead and some more. */
static int co_find_end(struct qcow2 *s, uint64_t *ret)
{
    uint64_t cluster = div_round_up(node_size(s->file), s->cluster_size), count = 0;
    uint64_t most = TRIM_MAX >> s->geo.cluster_bits, least = cluster > most ? cluster - most : 0;

    for (; cluster > least; cluster--) {
        int r = co_qcow2_refcount(s, cluster - 1, &count);

        if (r < 0)
            return r;
        if (count)
            break;
    }
    *ret = cluster * s->cluster_size;
    return 0;
}

void co_qcow2_host_trim(struct qcow2 *s)
{
    uint64_t end;

    if ((!s->wrote && s->host_bytes) || co_find_end(s, &end) < 0)
        return;
    end = MAX(end, s->host_bytes);
    if (end >= node_size(s->file))
        return;
    if (!co_node_resize(s->file, end, NULL))
        return;       /* no harm: the file is longer than it need be */
}
