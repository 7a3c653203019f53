/* SPDX-License-Identifier: Apache-2.0
 *
 * Space for raw images. A zero write that may not leave a hole is what reserves: the
 * file system is asked to (fallocate), and where it cannot, zeros are written.
 */
#include "app/preallocate.h"
#include "base/mem.h"

#define STEP (1024 * MiB)
#define FULL_STEP (2 * MiB)

static int co_write_zeros(struct node *n, uint64_t off, uint64_t len)
{
    CLEANUP(free) void *zeros = try_alloc_aligned(FULL_STEP);
    int r = zeros ? 0 : -ENOMEM;

    if (zeros)
        memset(zeros, 0, FULL_STEP);
    for (uint64_t done = 0, step; r == 0 && done < len; done += step) {
        step = MIN(len - done, (uint64_t)FULL_STEP);
        r = co_node_pwrite(n, off + done, step, zeros, REQ_BULK);
    }
    return r;
}

static int co_reserve(struct node *n, uint64_t off, uint64_t len)
{
    int r = 0;

    for (uint64_t done = 0, step; r == 0 && done < len; done += step) {
        step = MIN(len - done, (uint64_t)STEP);
        r = co_node_write_zeroes(n, off + done, step, REQ_BULK);
    }
    return r;
}

bool co_preallocate(struct node *n, uint64_t off, uint64_t len, enum image_prealloc how,
                    struct err *err)
{
    int r = 0;

    if (how == PREALLOC_FALLOC)
        r = co_reserve(n, off, len);
    else if (how == PREALLOC_FULL)
        r = co_write_zeros(n, off, len);
    return r == 0 || err_errno(err, r, "Cannot give the image its space");
}
