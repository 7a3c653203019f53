/* SPDX-License-Identifier: Apache-2.0
 *
 * Where the content of a node comes from: what one layer says, and what a whole
 * backing chain comes to.
 */
#include "block/core.h"

/* Ask about whole blocks, and cut the answer to what was asked. */
static int co_driver_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    uint64_t align = n->limits.request_align;
    uint64_t from = align_down(off, align), to = align_up(off + len, align);
    struct block_status st = { 0 };

    int r = n->drv->co_status(n, from, to - from, &st);

    if (r < 0)
        return r;
    /* Blocks of one kind; only the block at the end may be cut short. */
    assert(st.len > 0 && (is_aligned(st.len, align) || from + st.len >= n->size));
    assert(st.len > off - from);
    assert(!(st.flags & STATUS_OFFSET) || st.file);
    st.len = MIN(st.len - (off - from), len);
    st.host_off += off - from;
    *ret = st;
    return 0;
}

int co_node_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    if (len == 0 || !range_inside(n, off, len))
        return -EINVAL;
    /* A filter without an answer of its own has that of the node below. */
    while (!n->drv->co_status && n->drv->is_filter && n->file) {
        n = edge_node(n->file);
        if (!range_inside(n, off, len))
            return -EINVAL;
    }
    if (n->drv->co_status)
        return co_driver_status(n, off, len, ret);
    *ret = (struct block_status){ .flags = STATUS_DATA | STATUS_ALLOCATED, .len = len };
    return 0;
}

int co_node_status_above(struct node *n, struct node *base, uint64_t off, uint64_t len,
                         struct block_status *ret, unsigned *ret_depth)
{
    struct block_status st = { 0 };
    unsigned depth = 0;

    if (len == 0 || !range_inside(n, off, len))
        return -EINVAL;
    for (struct node *p = n; p && p != base; p = node_backing(node_skip_filters(p)), depth++) {
        if (off >= p->size) {
            /* The layers above leave it to this one, which has nothing there and
             * does not let anything below it show through. */
            st.flags = STATUS_ZERO | STATUS_ALLOCATED;
            break;
        }
        len = MIN(len, p->size - off);

        int r = co_node_status(p, off, len, &st);

        if (r < 0)
            return r;
        len = st.len;
        if (st.flags & STATUS_ALLOCATED)
            break;
        st = (struct block_status){ 0 };
    }
    if (!base && !(st.flags & STATUS_ALLOCATED))
        st.flags = STATUS_ZERO;
    st.len = len;
    *ret = st;
    if (ret_depth)
        *ret_depth = depth + st.depth;
    return 0;
}
