/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading. A read that one extent answers, which is nearly every one, goes
 * straight to the file, the backing file or memset; one that is scattered goes out
 * in pieces that are under way together.
 */
#include "base/iov.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/qcow2.h"

/* ---- pieces -------------------------------------------------------------- */

struct piece {
    struct qcow2_pieces *p;
    struct qcow2_extent e;
    uint64_t off, len;
    int niov;
    struct iovec iov[];
};

void qcow2_pieces_init(struct qcow2_pieces *p)
{
    p->running = 0;
    p->result = 0;
    waitq_init(&p->changed);
}

static void co_run_piece(void *arg)
{
    struct piece *piece = arg;
    struct qcow2_pieces *p = piece->p;
    int r = p->co_run(p->s, &piece->e, piece->off, piece->len, piece->iov, piece->niov, p->flags);

    if (r < 0 && p->result == 0)
        p->result = r;
    p->running--;
    waitq_wake_all(&p->changed);
    free(piece);
}

void co_qcow2_piece(struct qcow2_pieces *p, const struct qcow2_extent *e, uint64_t off,
                    const struct iovec *iov, int niov, uint64_t at)
{
    struct piece *piece;

    while (p->running >= LIMIT_QCOW2_PIECES)
        co_waitq_wait(&p->changed);
    piece = xmalloc(sizeof(*piece) + (size_t)niov * sizeof(piece->iov[0]));
    piece->p = p;
    piece->e = *e;
    piece->off = off;
    piece->len = e->len;
    piece->niov = iov_slice(piece->iov, iov, niov, at, e->len);
    p->running++;
    co_start(co_run_piece, piece);
}

int co_qcow2_pieces_wait(struct qcow2_pieces *p)
{
    while (p->running)
        co_waitq_wait(&p->changed);
    return p->result;
}

/* ---- reading an extent --------------------------------------------------- */

/* What the backing file has of the range; zeros behind its end. */
static int co_read_backing(struct qcow2 *s, uint64_t off, uint64_t len, const struct iovec *iov,
                           int niov, unsigned flags)
{
    struct node *b = qcow2_backing(s);
    uint64_t size = b ? node_size(b) : 0, have = off < size ? MIN(len, size - off) : 0;
    int r = 0;

    flags &= REQ_BULK;
    if (LIKELY(have == len))
        return co_node_preadv(b, off, len, iov, niov, flags);
    if (have) {
        CLEANUP(free) struct iovec *part = calloc((size_t)niov, sizeof(*part));

        if (!part)
            return -ENOMEM;
        r = co_node_preadv(b, off, have, part, iov_slice(part, iov, niov, 0, have), flags);
    }
    iov_zero(iov, niov, have, len - have);
    return r;
}

static int co_read_extent(struct qcow2 *s, const struct qcow2_extent *e, uint64_t off,
                          uint64_t len, const struct iovec *iov, int niov, unsigned flags)
{
    switch (e->kind) {
    case QCOW2_NORMAL:
        return co_qcow2_data_read(s, e->host, len, iov, niov, flags);
    case QCOW2_UNALLOCATED:
        return co_read_backing(s, off, len, iov, niov, flags);
    case QCOW2_ZERO_PLAIN:
    case QCOW2_ZERO_ALLOC:
        iov_zero(iov, niov, 0, len);
        return 0;
    case QCOW2_COMPRESSED_KIND:
        return co_qcow2_read_compressed(s, &e->entry, off & (s->cluster_size - 1), len, iov, niov,
                                        flags);
    case QCOW2_MIXED:       /* not of an extent for reading */
        break;
    }
    return -EIO;
}

/* Whether it takes no I/O. */
static bool is_zero_extent(const struct qcow2 *s, const struct qcow2_extent *e, uint64_t off)
{
    if (e->kind == QCOW2_UNALLOCATED)
        return !qcow2_backing(s) || off >= node_size(qcow2_backing(s));
    return e->kind == QCOW2_ZERO_PLAIN || e->kind == QCOW2_ZERO_ALLOC;
}

static int co_read_scattered(struct qcow2 *s, struct qcow2_extent *e, uint64_t off, uint64_t len,
                             const struct iovec *iov, int niov, unsigned flags)
{
    struct qcow2_pieces p = { .s = s, .flags = flags, .co_run = co_read_extent };
    uint64_t done = 0;
    int r = 0;

    qcow2_pieces_init(&p);
    for (;;) {
        if (is_zero_extent(s, e, off + done))
            iov_zero(iov, niov, done, e->len);
        else
            co_qcow2_piece(&p, e, off + done, iov, niov, done);
        done += e->len;
        if (done == len || p.result < 0)
            break;
        r = co_qcow2_map(s, off + done, len - done, e);
        if (r < 0)
            break;
    }

    int waited = co_qcow2_pieces_wait(&p);

    return r < 0 ? r : waited;
}

int co_qcow2_read(struct qcow2 *s, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                  unsigned flags)
{
    struct qcow2_extent e;
    int r = co_qcow2_map(s, off, len, &e);

    if (UNLIKELY(r < 0))
        return r;
    if (LIKELY(e.len == len))
        return co_read_extent(s, &e, off, len, iov, niov, flags);
    return co_read_scattered(s, &e, off, len, iov, niov, flags);
}

int co_qcow2_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                    unsigned flags)
{
    struct qcow2 *s = n->state;
    unsigned entered = qcow2_enter(s);
    int r = co_qcow2_read(s, off, len, iov, niov, flags);

    qcow2_leave(s, entered);
    return r;
}
