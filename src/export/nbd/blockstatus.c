/* SPDX-License-Identifier: Apache-2.0
 *
 * NBD_CMD_BLOCK_STATUS: a chunk for each context that the client selected, with
 * what the context says of the range as a list of extents, through the whole
 * backing chain. A list has at most LIMIT_NBD_EXTENTS extents and may cover less
 * than was asked for; clients ask again from where it ends.
 */
#include "base/limits.h"
#include "export/nbd/serve.h"

/* What nobody allocated is a hole; what storage is known to read as zero is
 * said to be so; everything else is data. */
static uint32_t allocation_of(const struct block_status *st)
{
    uint32_t state = 0;

    if (!(st->flags & STATUS_DATA))
        state |= NBD_STATE_HOLE;
    if (st->flags & STATUS_ZERO)
        state |= NBD_STATE_ZERO;
    return state;
}

/* Extents being put into @out one after the other, those that say the same as one. */
struct extents {
    uint8_t *out;
    uint32_t n, max;
    uint32_t length, state;    /* the one that grows */
};

/* False when there is no room for more. */
static bool add_extent(struct extents *x, uint32_t length, uint32_t state)
{
    if (x->length && x->state != state) {
        nbd_put_extent(x->out + x->n++ * NBD_EXTENT_BYTES, x->length, x->state);
        x->length = 0;
        if (x->n == x->max)
            return false;
    }
    x->state = state;
    x->length += length;
    return true;
}

static void end_extents(struct extents *x)
{
    if (x->length)
        nbd_put_extent(x->out + x->n++ * NBD_EXTENT_BYTES, x->length, x->state);
}

static int co_add_status(struct nbd_slot *s, const struct nbd_context *c, struct extents *x)
{
    uint64_t off = s->rq.offset, end = off + s->rq.length;

    /* Questions are counted as well, for answers that are short and alike. */
    for (unsigned asked = 0; off < end && asked < LIMIT_NBD_EXTENTS; asked++) {
        struct block_status st;
        unsigned depth;
        int r = co_disk_status(s->tx->disk, off, end - off, &st, &depth);

        if (r < 0)
            return r;
        st.len = MIN(st.len, end - off);
        /* QEMU docs/interop/nbd.rst: 0: in no layer; 1: in the topmost ... */
        depth = st.flags & STATUS_ALLOCATED ? depth + 1 : 0;
        if (!add_extent(x, (uint32_t)st.len,
                        c->kind == NBD_STATUS_DEPTH ? depth : allocation_of(&st)))
            return 0;
        off += st.len;
    }
    return 0;
}

/* I-B3: one that missed something does not say that anything is clean. */
static int add_dirty(struct nbd_slot *s, const struct nbd_context *c, struct extents *x)
{
    const struct bitmap *bits = dirty_bitmap_bits(c->bitmap);
    uint64_t granularity = dirty_bitmap_granularity(c->bitmap);
    uint64_t off = s->rq.offset, end = off + s->rq.length;

    if (dirty_bitmap_inconsistent(c->bitmap))
        return -EIO;
    while (off < end) {
        uint64_t bit = off / granularity;
        bool dirty = bitmap_test(bits, bit);
        uint64_t next = dirty ? bitmap_next_clear(bits, bit) : bitmap_next_set(bits, bit);
        uint64_t to = MIN(end, next * granularity);

        if (!add_extent(x, (uint32_t)(to - off), dirty ? NBD_STATE_DIRTY : 0))
            return 0;
        off = to;
    }
    return 0;
}

int co_nbd_block_status(struct nbd_slot *s)
{
    uint64_t left = s->tx->session.contexts;
    uint8_t *out = s->buf.p;

    while (left) {
        unsigned i = (unsigned)__builtin_ctzll(left);
        struct extents x = {
            .out = out + NBD_STATUS_CHUNK_BYTES,
            .max = nbd_request_extents(&s->rq),
        };
        const struct nbd_context *c = &s->tx->contexts[i];
        int r = 0;

        if (c->kind == NBD_STATUS_DIRTY)
            r = add_dirty(s, c, &x);
        else
            r = co_add_status(s, c, &x);
        if (r < 0)
            return r;
        end_extents(&x);
        left &= left - 1;
        out += nbd_put_status_chunk(out, s->rq.cookie, i + 1, x.n, !left);
        out += x.n * NBD_EXTENT_BYTES;
    }
    s->status_len = (uint32_t)(out - (uint8_t *)s->buf.p);
    return 0;
}
