/* SPDX-License-Identifier: Apache-2.0
 *
 * What follow_bitmaps.h declares.
 */
#include "app/follow_bitmaps.h"
#include "base/limits.h"
#include "block/dirty.h"
#include "drivers/qcow2/bitmaps.h"

bool bitmaps_will_follow(struct node *n, uint64_t size, struct err *err)
{
    uint32_t count = strcmp(node_driver_name(n), "qcow2") == 0 ? qcow2_bitmaps_count(n) : 0;
    uint64_t added = size - MIN(size, node_size(n)), memory = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct dirty_bitmap *bm;
        struct qcow2_bitmap_info info;
        const char *why;

        qcow2_bitmaps_get(n, i, &info);
        if (!info.usable || info.in_use)
            continue;
        bm = dirty_bitmap_find(n, info.name, NULL);
        why = bm ? dirty_bitmap_inconsistent(bm) : "no memory";
        if (why)
            return err_set(err, -EFBIG, "dirty bitmap '%s' would be lost: %s. Remove it first "
                           "('stillpoint bitmap --remove')", info.name, why);
        memory += added / info.granularity / 8;
        if (memory > LIMIT_QCOW2_LOADED_BITMAP_BYTES)
            return err_set(err, -EFBIG, "the image's bitmaps need more than %llu MiB of memory to "
                           "be kept: remove some of them first ('stillpoint bitmap --remove')",
                           LIMIT_QCOW2_LOADED_BITMAP_BYTES / MiB);
    }
    return true;
}
