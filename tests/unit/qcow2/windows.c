/* SPDX-License-Identifier: Apache-2.0
 *
 * What windows.h declares.
 */
#include "windows.h"

#define PART (WINDOW / WRITERS / 512 * 512)

static uint64_t window_at(unsigned i)
{
    return i ? i * SIDECAR_REGION_MIN - WINDOW / 2 : 0;
}

void co_windows_read(struct node *n, struct windows *ret)
{
    ret->size = node_size(n);
    for (unsigned i = 0; i < WINDOWS; i++) {
        uint64_t at = window_at(i), end = MIN(at + WINDOW, ret->size);

        if (at < end)
            assert_int_equal(co_node_pread(n, at, end - at, ret->bytes[i], 0), 0);
    }
}

void co_windows_write(struct node *n, unsigned writer, uint64_t *seed)
{
    CLEANUP(free) char *buf = xmalloc(PART);
    uint64_t at = window_at((unsigned)test_random(seed, WINDOWS)) + writer * PART;
    uint64_t end = MIN(at + PART, node_size(n));
    uint64_t len = 512 * (1 + test_random(seed, test_random(seed, 4) ? 8 : 300)), off = at;

    if (test_random(seed, 4))
        off += 512 * test_random(seed, PART / 512);
    if (off >= end)
        return;
    len = MIN(len, end - off);
    memset(buf, 1 + (int)test_random(seed, 255), len);
    switch (test_random(seed, 8)) {
    case 0:
        assert_int_equal(co_node_write_zeroes(n, off, len,
                                              test_random(seed, 2) ? REQ_MAY_UNMAP : 0), 0);
        break;
    case 1:
        assert_int_equal(co_node_discard(n, off, len), 0);
        break;
    default:
        assert_int_equal(co_node_pwrite(n, off, len, buf, test_random(seed, 16) ? 0 : REQ_FUA), 0);
    }
}

char *windows_untold(const struct dirty_bitmap *bm, const struct windows *was,
                     const struct windows *now)
{
    const struct bitmap *bits = dirty_bitmap_bits(bm);
    uint32_t granularity = dirty_bitmap_granularity(bm);

    for (unsigned w = 0; w < WINDOWS; w++) {
        for (uint64_t i = 0; i < WINDOW && window_at(w) + i < now->size; i += 512) {
            uint64_t at = window_at(w) + i;
            bool differs = at >= was->size ||
                           memcmp(was->bytes[w] + i, now->bytes[w] + i, 512) != 0;

            if (differs && !bitmap_test(bits, at / granularity))
                return xasprintf("bitmap '%s' does not tell that %" PRIu64 " is %d, was %d",
                                 dirty_bitmap_name(bm), at, now->bytes[w][i],
                                 at < was->size ? was->bytes[w][i] : -1);
        }
    }
    return NULL;
}
