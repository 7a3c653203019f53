/* SPDX-License-Identifier: Apache-2.0
 *
 * Space for images. In a raw one, a zero write that may not leave a hole is what reserves: the
 * file system is asked to (fallocate), and where it cannot, zeros are written.
 */
#include "app/preallocate.h"
#include "app/chain.h"
#include "base/mem.h"
#include "drivers/qcow2/create.h"

/* What is done between two looks at Ctrl-C. */
#define STEP (64 * MiB)
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

/* Both are QEMU's PreallocMode. */
static_assert((int)PREALLOC_METADATA == (int)QCOW2_PREALLOC_METADATA, "order of modes");
static_assert((int)PREALLOC_FULL == (int)QCOW2_PREALLOC_FULL, "order of modes");

static bool is_qcow2(struct node *n)
{
    return strcmp(node_driver_name(n), "qcow2") == 0;
}

bool preallocation_possible(struct node *n, enum image_prealloc how, struct err *err)
{
    CLEANUP(free) struct node_info *ni = xnew(struct node_info);

    node_get_info(n, ni);
    if (how == PREALLOC_METADATA && !is_qcow2(n))
        return err_set(err, -EINVAL, "A raw image has no metadata: preallocation is falloc or "
                       "full");
    if (how != PREALLOC_OFF && *ni->backing_file && !chain_has_subclusters(n))
        return err_set(err, -ENOTSUP, "Preallocation would hide the backing file: leave it out "
                       "(only images made with extended_l2=on can have both)");
    return true;
}

static bool co_step(struct node *n, uint64_t off, uint64_t len, enum image_prealloc how,
                    struct err *err)
{
    int r;

    if (is_qcow2(n))
        return co_qcow2_preallocate(n, off, len, (enum qcow2_prealloc)how, err);
    r = how == PREALLOC_FALLOC ? co_node_write_zeroes(n, off, len, REQ_BULK)
                               : co_write_zeros(n, off, len);
    return r == 0 || err_errno(err, r, "Cannot give the image its space");
}

bool co_preallocate(struct node *n, uint64_t off, uint64_t len, enum image_prealloc how,
                    struct watch *watch, struct err *err)
{
    if (how == PREALLOC_OFF)
        return true;
    if (!preallocation_possible(n, how, err))
        return false;
    for (uint64_t done = 0, step; done < len; done += step) {
        step = MIN(len - done, how == PREALLOC_FULL ? STEP : 16 * STEP);
        if (!watch_step(watch, done, len))
            return err_set(err, -ECANCELED, "cancelled");
        if (!co_step(n, off + done, step, how, err))
            return false;
    }
    return true;
}
