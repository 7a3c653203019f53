/* SPDX-License-Identifier: Apache-2.0
 *
 * Rubbish for the parsers of a sidecar file: a header's block, then a directory, which
 * get the checksums that they should have, so that it is looked at what they say. What is
 * accepted must keep its promises, and be written back as it was.
 */
#include "base/bytes.h"
#include "base/limits.h"
#include "base/mem.h"
#include "fuzz.h"
#include "sidecar/format.h"
#include <zlib.h>

static void check_header(const struct sidecar_header *h)
{
    uint8_t buf[SIDECAR_BLOCK];
    struct sidecar_header again;

    assert(h->dir_bytes <= SIDECAR_DIR_BYTES && h->n_storages <= NODE_STORAGES_MAX);
    assert(div_round_up(h->disk_size, h->region_size) <= SIDECAR_REGIONS_MAX);
    assert(strlen(h->kind) < SIDECAR_KIND_MAX && strlen(h->reason) < SIDECAR_REASON_MAX);
    sidecar_header_encode(h, buf);
    assert(sidecar_header_decode(buf, &again, NULL));
    assert(again.seq == h->seq && again.dir_crc == h->dir_crc && again.state == h->state);
}

static void check_directory(struct sidecar_header *h, const uint8_t *dir)
{
    struct sidecar_entry *v, *again;
    struct sidecar_header copy = *h;

    if (!sidecar_dir_decode(h, dir, &v, NULL))
        return;

    size_t bytes = sidecar_dir_bytes(v, h->n_bitmaps);
    uint8_t *buf = xzalloc(bytes + 1);

    for (uint32_t i = 0; i < h->n_bitmaps; i++) {
        assert(*v[i].name && sidecar_area_bytes(v[i].nbits) <= LIMIT_SIDECAR_AREA_BYTES);
        assert(v[i].area >= SIDECAR_AREAS_AT);
    }
    sidecar_dir_encode(v, h->n_bitmaps, buf, &copy);
    assert(copy.dir_bytes == bytes && sidecar_dir_decode(&copy, buf, &again, NULL));
    assert(memcmp(v, again, h->n_bitmaps * sizeof(*v)) == 0);
    free(again);
    free(v);
    free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t block[SIDECAR_BLOCK] = { 0 };
    size_t dir_len = size > SIDECAR_BLOCK ? size - SIDECAR_BLOCK : 0;
    uint8_t *dir = xzalloc(SIDECAR_DIR_BYTES);
    struct bitmap *regions = bitmap_new(SIDECAR_REGIONS_MAX - 5);
    struct sidecar_header h;
    struct sidecar_beat beat;

    memcpy(block, data, MIN(size, sizeof(block)));
    memcpy(dir, data + size - dir_len, MIN(dir_len, SIDECAR_DIR_BYTES));
    memcpy(block, "STLPBITS", 8);
    store_be32(block + 8, 1);
    store_be32(block + 12, 0);
    store_be32(block + 12, (uint32_t)crc32_z(0, block, sizeof(block)));
    if (sidecar_header_decode(block, &h, NULL)) {
        check_header(&h);
        h.dir_crc = (uint32_t)crc32_z(0, dir, h.dir_bytes);
        check_directory(&h, dir);
    }
    for (unsigned i = 0; i < SIDECAR_LOG_SECTORS; i++)
        sidecar_log_decode(block + i * SIDECAR_SECTOR, i, regions);
    (void)sidecar_beat_decode(block, &beat);
    bitmap_free(regions);
    free(dir);
    return 0;
}
