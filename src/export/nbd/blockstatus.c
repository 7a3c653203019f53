/* SPDX-License-Identifier: Apache-2.0
 *
 * NBD_CMD_BLOCK_STATUS: the allocation of a range as a list of extents, through
 * the whole backing chain. An answer has at most LIMIT_NBD_EXTENTS extents and
 * may cover less than was asked for; clients ask again from where it ends.
 */
#include "base/limits.h"
#include "export/nbd/serve.h"

/* What nobody allocated is a hole; what storage is known to read as zero is
 * said to be so; everything else is data. */
static uint32_t state_of(const struct block_status *st)
{
    uint32_t state = 0;

    if (!(st->flags & STATUS_DATA))
        state |= NBD_STATE_HOLE;
    if (st->flags & STATUS_ZERO)
        state |= NBD_STATE_ZERO;
    return state;
}

int co_nbd_block_status(struct nbd_slot *s)
{
    unsigned max = s->buf.cap / NBD_EXTENT_BYTES;
    uint64_t off = s->rq.offset, end = off + s->rq.length;
    uint32_t length = 0, state = 0;    /* the extent that grows */
    uint8_t *out = s->buf.p;

    if (s->rq.flags & NBD_CMD_FLAG_REQ_ONE)
        max = 1;
    max = MIN(max, (unsigned)LIMIT_NBD_EXTENTS);
    s->n_extents = 0;
    /* Questions are counted as well, for answers that are short and alike. */
    for (unsigned asked = 0; off < end && asked < LIMIT_NBD_EXTENTS; asked++) {
        struct block_status st;
        int r = co_disk_status(s->tx->disk, off, end - off, &st, NULL);

        if (r < 0)
            return r;
        st.len = MIN(st.len, end - off);
        if (length && state != state_of(&st)) {
            nbd_put_extent(out + s->n_extents++ * NBD_EXTENT_BYTES, length, state);
            length = 0;
            if (s->n_extents == max)
                return 0;
        }
        state = state_of(&st);
        length += st.len;
        off += st.len;
    }
    nbd_put_extent(out + s->n_extents++ * NBD_EXTENT_BYTES, length, state);
    return 0;
}
