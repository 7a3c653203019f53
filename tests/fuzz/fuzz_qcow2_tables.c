/* SPDX-License-Identifier: Apache-2.0
 *
 * Rubbish for the parsers of the snapshot table and of the bitmap directory. The
 * first byte says which, and the clusters' size; four more the number of entries.
 * What is accepted must keep its promises, and be written back as it was.
 */
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/qcow2/bitmaps_format.h"
#include "drivers/qcow2/snapshot_format.h"
#include "fuzz.h"

static void check_snapshots(const struct qcow2_geometry *g, const uint8_t *p, size_t len,
                            uint32_t n)
{
    struct qcow2_snapshots t, again;
    uint32_t at;

    if (!qcow2_snapshots_parse(g, p, len, MIN(n, LIMIT_QCOW2_SNAPSHOTS + 0U), &t, NULL))
        return;
    assert(t.bytes <= len && memcmp(t.raw, p, t.bytes) == 0);
    for (uint32_t i = 0; i < t.n; i++) {
        const struct qcow2_snapshot *s = &t.v[i];
        uint32_t bytes = qcow2_snapshot_entry_bytes(s);
        uint8_t *entry = xmalloc(bytes);

        assert(s->flaw || s->l1_entries <= LIMIT_QCOW2_L1_BYTES / 8);
        assert(s->flaw || is_aligned(s->l1_off, qcow2_cluster_size(g)));
        assert(strlen(s->id) + strlen(s->name) < s->raw_bytes);
        qcow2_snapshot_encode(s, entry);
        assert(qcow2_snapshots_parse(g, entry, bytes, 1, &again, NULL));
        assert(again.v[0].disk_size == s->disk_size && again.v[0].icount == s->icount);
        assert(strcmp(again.v[0].name, s->name) == 0 && strcmp(again.v[0].id, s->id) == 0);
        qcow2_snapshots_done(&again);
        free(entry);
        if (i < 64 && qcow2_snapshots_find(&t, s->name, &at, NULL))
            assert(at < t.n);
    }
    qcow2_snapshots_done(&t);
}

static void check_bitmaps(const struct qcow2_geometry *g, const uint8_t *p, size_t len, uint32_t n)
{
    struct qcow2_bitmap_dir d, again;

    if (n > LIMIT_QCOW2_BITMAPS || !qcow2_bitmap_dir_parse(g, p, len, n, &d, NULL))
        return;
    assert(memcmp(d.raw, p, len) == 0);
    for (uint32_t i = 0; i < d.n; i++) {
        struct qcow2_bitmap_entry *e = &d.v[i];
        uint8_t *entry = xmalloc(e->bytes);

        assert(e->at + (uint64_t)e->bytes <= len);
        assert(e->table_entries <= LIMIT_QCOW2_BITMAP_TABLE_ENTRIES);
        assert(qcow2_bitmap_dir_find(&d, e->name) == e);
        assert(qcow2_bitmap_entry_encode(e, entry) == e->bytes);
        assert(qcow2_bitmap_dir_parse(g, entry, e->bytes, 1, &again, NULL));
        assert(again.v[0].table_off == e->table_off && again.v[0].flags == e->flags);
        assert(again.v[0].extra_bytes == e->extra_bytes &&
               memcmp(again.v[0].extra, e->extra, e->extra_bytes) == 0);
        qcow2_bitmap_dir_done(&again);
        qcow2_bitmap_set_flag(&d, e, QCOW2_BITMAP_IN_USE);
        free(entry);
    }
    qcow2_bitmap_dir_done(&d);
}

/* Bits there and back. */
static void check_bits(const uint8_t *p, size_t len)
{
    uint64_t n = MIN(len, (size_t)4096) * 8, bits = n ? n - p[0] % 8 : 0;
    CLEANUP(bitmap_free) struct bitmap *bm = bitmap_new(bits);
    uint8_t *back = xzalloc(n / 8 + 1);

    assert(bm);
    qcow2_bits_decode(bm, 0, n, p);
    qcow2_bits_encode(bm, 0, n, back);
    for (uint64_t i = 0; i < n; i++)
        assert((back[i / 8] >> (i % 8) & 1) == (i < bits && (p[i / 8] >> (i % 8) & 1)));
    free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qcow2_geometry g = { .version = 3, .refcount_order = 4 };
    uint32_t n;

    if (size < 5)
        return 0;
    g.cluster_bits = (uint8_t)(9 + data[0] % 13);
    g.l2_bits = (uint8_t)(g.cluster_bits - 3);
    n = load_be32(data + 1);
    if (data[0] & 0x80)
        check_bitmaps(&g, data + 5, size - 5, n);
    else
        check_snapshots(&g, data + 5, size - 5, n);
    check_bits(data + 5, size - 5);
    return 0;
}
