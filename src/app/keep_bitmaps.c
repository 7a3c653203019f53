/* SPDX-License-Identifier: Apache-2.0
 *
 * Stored dirty bitmaps across a command.
 */
#include "app/keep_bitmaps.h"
#include "base/limits.h"
#include "base/mem.h"

static bool co_keep_one(struct node *n, const struct qcow2_bitmap_info *info, uint64_t size,
                        struct kept_bitmaps *k, struct err *err)
{
    uint64_t memory, added = size > node_size(n) ? size - node_size(n) : 0;
    struct bitmap *bits;

    if (!co_qcow2_bitmap_memory(n, info->name, &memory, err))
        return false;
    k->memory += memory + added / info->granularity / 8;
    if (k->memory > LIMIT_KEPT_BITMAP_BYTES)
        return err_set(err, -EFBIG, "the image's dirty bitmaps need more than %llu MiB of memory "
                       "to be kept: remove some of them first ('qemu-img bitmap --remove')",
                       LIMIT_KEPT_BITMAP_BYTES / MiB);
    if (!co_qcow2_bitmap_load(n, info->name, &bits, err))
        return false;
    k->bits[k->n] = bits;
    k->v[k->n++] = (struct qcow2_bitmap_put){
        .name = xstrdup(info->name), .granularity = info->granularity, .enabled = info->enabled,
        .bits = bits,
    };
    return true;
}

bool co_bitmaps_keep(struct node *n, bool all, uint64_t size, struct kept_bitmaps *ret,
                     struct err *err)
{
    uint32_t count = strcmp(node_driver_name(n), "qcow2") == 0 ? qcow2_bitmaps_count(n) : 0;

    *ret = (struct kept_bitmaps){ 0 };
    if (!count)
        return true;
    ret->v = xcalloc(count, sizeof(*ret->v));
    ret->bits = xcalloc(count, sizeof(struct bitmap *));
    for (uint32_t i = 0; i < count; i++) {
        struct qcow2_bitmap_info info;

        qcow2_bitmaps_get(n, i, &info);
        if (!info.usable || info.in_use || (!all && !info.enabled))
            continue;
        if (!co_keep_one(n, &info, size, ret, err)) {
            bitmaps_done(ret);
            return false;
        }
    }
    return true;
}

void bitmaps_mark(struct kept_bitmaps *k, uint64_t off, uint64_t len)
{
    for (size_t i = 0; i < k->n; i++) {
        uint64_t granule = k->v[i].granularity, first = off / granule;
        uint64_t end = MIN(div_round_up(off + len, granule), bitmap_size(k->bits[i]));

        if (k->v[i].enabled && first < end)
            bitmap_set(k->bits[i], first, end - first);
    }
}

bool bitmaps_resize(struct kept_bitmaps *k, uint64_t old_size, uint64_t size, struct err *err)
{
    for (size_t i = 0; i < k->n; i++) {
        struct bitmap *old = k->bits[i], *new = bitmap_new(div_round_up(size,
                                                                        k->v[i].granularity));
        uint64_t from = 0, start, len;

        if (!new)
            return err_set(err, -ENOMEM, "No memory for bitmap '%s'", k->v[i].name);
        while (bitmap_next_range(old, from, UINT64_MAX, &start, &len)) {
            from = start + len;
            if (start < bitmap_size(new))
                bitmap_set(new, start, MIN(len, bitmap_size(new) - start));
        }
        bitmap_free(old);
        k->v[i].bits = k->bits[i] = new;
    }
    if (size > old_size)
        bitmaps_mark(k, old_size, size - old_size);
    return true;
}

bool co_bitmaps_put_back(struct node *n, const struct kept_bitmaps *k, struct err *err)
{
    return !k->n || co_qcow2_bitmaps_store(n, k->v, k->n, err);
}

void bitmaps_done(struct kept_bitmaps *k)
{
    for (size_t i = 0; i < k->n; i++) {
        free((char *)k->v[i].name);
        bitmap_free(k->bits[i]);
    }
    free(k->v);
    free(k->bits);
    *k = (struct kept_bitmaps){ 0 };
}
