/* SPDX-License-Identifier: Apache-2.0
 *
 * Rubbish for the qcow2 parsers. A header that is accepted must keep its
 * promises (what every later use of it relies on), and one that is written from
 * it must read back the same. The tail of the input serves as table entries.
 */
#include "base/limits.h"
#include "drivers/qcow2/format.h"
#include "fuzz.h"

static void check_header(const struct qcow2_header *h)
{
    assert(h->version == 2 || h->version == 3);
    assert(h->cluster_bits >= 9 && h->cluster_bits <= 21);
    assert(h->refcount_order <= 6);
    assert(h->header_bytes <= 1U << h->cluster_bits);
    assert(h->l1_entries <= LIMIT_QCOW2_L1_BYTES / 8);
    bool extended = h->incompatible & QCOW2_INCOMPAT_EXTL2;

    assert(h->cluster_bits >= 14 || !extended);
    assert(h->l1_entries >= qcow2_l1_entries_for(h->size, h->cluster_bits, extended));
    assert(h->reftable_clusters > 0);
    assert((uint64_t)h->reftable_clusters << h->cluster_bits <= LIMIT_QCOW2_REFTABLE_BYTES);
    assert(is_aligned(h->l1_off | h->reftable_off, 1ULL << h->cluster_bits));
    assert(!(h->incompatible & ~QCOW2_INCOMPAT_KNOWN));
    assert(strlen(h->backing_file) <= LIMIT_QCOW2_BACKING_NAME);
    assert(h->has_backing == !!h->backing_file[0]);
}

static void check_round_trip(const struct qcow2_header *h)
{
    size_t cluster = (size_t)1 << h->cluster_bits;
    struct qcow2_header again;
    uint8_t *buf = malloc(2 * cluster);

    assert(buf);
    if (qcow2_header_write(h, buf, NULL)) {
        assert(qcow2_header_parse(buf, cluster, &again, NULL));
        assert(qcow2_header_write(&again, buf + cluster, NULL));
        assert(!memcmp(buf, buf + cluster, cluster));
    }
    free(buf);
}

static void check_bitmaps(const struct qcow2_geometry *g, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size / 16; i++) {
        struct qcow2_l2_entry e;

        if (!qcow2_l2_entry_get_extended(g, data, i, &e))
            continue;
        assert(!(e.alloc & e.zero) && (e.placed || !e.alloc));
        assert(e.kind != QCOW2_NORMAL || (e.placed && e.alloc == UINT32_MAX));
        assert(e.kind != QCOW2_UNALLOCATED || !(e.placed || e.alloc || e.zero));
        assert(e.placed || !e.host || e.kind == QCOW2_COMPRESSED_KIND);
        assert(e.kind != QCOW2_COMPRESSED_KIND || !(e.alloc | e.zero));
        assert((e.kind == QCOW2_ZERO_ALLOC || e.kind == QCOW2_ZERO_PLAIN) ==
               (e.zero == UINT32_MAX));
    }
}

static void check_entries(const struct qcow2_geometry *g, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size / 8; i++) {
        uint64_t v = qcow2_entry_get(data, i), off;
        struct qcow2_l2_entry e;
        bool copied;
        unsigned n;

        if (qcow2_l2_decode(g, v, &e)) {
            assert(e.host < QCOW2_MAX_HOST_OFFSET);
            if (e.kind == QCOW2_COMPRESSED_KIND) {
                assert(e.compressed_bytes > 0);
                assert(e.compressed_bytes <= 2 * qcow2_cluster_size(g));
                qcow2_compressed_clusters(g, &e, &n);
                assert(n >= 1 && n <= 3);
            } else {
                assert(is_aligned(e.host, qcow2_cluster_size(g)));
            }
        }
        if (qcow2_l1_decode(g, v, &off, &copied))
            assert(is_aligned(off, qcow2_cluster_size(g)) && off < QCOW2_MAX_HOST_OFFSET);
        if (qcow2_reftable_decode(g, v, &off))
            assert(is_aligned(off, qcow2_cluster_size(g)) && off < QCOW2_MAX_HOST_OFFSET);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qcow2_geometry g = { .cluster_bits = 16, .l2_bits = 13, .refcount_order = 4,
                                .version = 3 };
    struct qcow2_header h;
    uint32_t cluster = qcow2_peek_cluster_size(data, size);

    if (qcow2_header_parse(data, size, &h, NULL)) {
        assert(cluster == 1U << h.cluster_bits);
        check_header(&h);
        check_round_trip(&h);
        g = qcow2_geometry_of(&h);
    }
    check_entries(&g, data, size);
    if (g.cluster_bits >= QCOW2_EXTL2_MIN_CLUSTER_BITS && g.version >= 3) {
        g.extended = true;
        check_bitmaps(&g, data, size);
    }
    return 0;
}
