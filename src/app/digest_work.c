/* SPDX-License-Identifier: Apache-2.0
 *
 * The common part of working with digests.
 */
#include "app/digest_work.h"
#include "loop/co_io.h"
#include "set/digest_file.h"
#include <unistd.h>

/* ---- hashing ---------------------------------------------------------------------- */

struct hashing {
    const uint8_t *buf;
    uint64_t len;
    uint64_t unit;
    struct set_digest_value *ret;
};

static int hash(void *arg)
{
    const struct hashing *h = arg;

    for (uint64_t at = 0; at < h->len; at += h->unit)
        set_digest_of(h->buf + at, MIN(h->unit, h->len - at), &h->ret[at / h->unit]);
    return 0;
}

void co_digest_leaves(const uint8_t *buf, uint64_t len, struct set_digest_value *ret)
{
    struct hashing h = { buf, len, SET_LEAF, ret };

    (void)co_offload_bulk(hash, &h);         /* it has no way to fail */
}

struct reading {
    int fd;
    uint64_t off, len;
    uint8_t *buf;
    struct set_digest_value *ret;
};

static int read_and_hash(void *arg)
{
    const struct reading *r = arg;
    struct hashing h = { r->buf, r->len, SET_CHUNK, r->ret };

    for (uint64_t done = 0; done < r->len;) {
        ssize_t n = pread(r->fd, r->buf + done, r->len - done, (off_t)(r->off + done));

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;    /* it has become shorter */
        done += (uint64_t)n;
    }
    return hash(&h);
}

int co_digest_chunks(int fd, uint64_t off, uint64_t len, uint8_t *buf,
                     struct set_digest_value *ret)
{
    struct reading r = { fd, off, len, buf, ret };

    assert(len <= PIECE_CHUNKS * SET_CHUNK && is_aligned(off, SET_CHUNK));
    return co_offload_bulk(read_and_hash, &r);
}

/* ---- what an image holds -------------------------------------------------------------- */

static bool counts(const struct block_status *st, bool zeros)
{
    return (st->flags & STATUS_ALLOCATED) && (zeros || !(st->flags & STATUS_ZERO));
}

/* Whole leaves of zeros at the beginning of the extent; 0: it has none. */
static uint64_t whole_zeros(const struct block_status *st, uint64_t pos, uint64_t size)
{
    if (!(st->flags & STATUS_ZERO) || !is_aligned(pos, SET_LEAF))
        return 0;
    return pos + st->len == size ? st->len : align_down(st->len, SET_LEAF);
}

int co_find_held(struct node *n, uint64_t off, bool zeros, struct held *ret)
{
    uint64_t size = node_size(n), pos = off;
    struct held h = { .off = off };

    while (pos < size && (!h.len || pos < h.off + SWEEP_PIECE)) {
        struct block_status st;
        int r = co_node_status(n, pos, size - pos, &st);

        if (r < 0)
            return r;
        if (counts(&st, zeros)) {
            uint64_t whole = whole_zeros(&st, pos, size);

            if (whole && !h.len) {
                *ret = (struct held){ true, pos, MIN(whole, (uint64_t)SWEEP_PIECE) };
                return 0;
            }
            if (whole)
                break;
            if (!h.len)
                h.off = MAX(off, align_down(pos, SET_LEAF));
            h.len = MIN(align_up(pos + st.len, SET_LEAF), size) - h.off;
        } else if (h.len && pos + st.len >= MIN(h.off + h.len, size)) {
            break;                           /* a leaf at least is not held */
        }
        pos += st.len;
    }
    h.len = MIN(h.len, (uint64_t)SWEEP_PIECE);
    *ret = h;
    return 0;
}
