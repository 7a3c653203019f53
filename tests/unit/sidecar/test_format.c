/* SPDX-License-Identifier: Apache-2.0
 *
 * What is written reads back the same; what is damaged is refused, or where refusing is no
 * way, says more than it should and never less.
 */
#include "sidecar_test.h"
#include "sidecar/format.h"

static struct sidecar_header whole_header(void)
{
    struct sidecar_header h = {
        .seq = 77, .state = SIDECAR_OPEN, .boot_id = "a boot", .disk_size = 10 * TiB + 512,
        .region_size = sidecar_region_size(10 * TiB + 512), .dir_slot = 1, .written_ns = -5,
        .n_storages = 2, .kind = "qcow2", .image = "/a/disk", .reason = "none",
    };

    h.storages[0] = (struct storage_identity){ STORAGE_FILE, 1, 2, 3, -4, 5, 6, UINT64_MAX };
    h.storages[1] = (struct storage_identity){ STORAGE_DEVICE, 8, 7, 6, 5, 4, 3, 2 };
    return h;
}

static void header(void **state)
{
    struct sidecar_header h = whole_header(), back;
    uint8_t buf[SIDECAR_BLOCK], bad[SIDECAR_BLOCK];
    struct err err;

    sidecar_header_encode(&h, buf);
    assert_true(sidecar_header_decode(buf, &back, &err));
    assert_int_equal(back.seq, 77);
    assert_int_equal(back.state, SIDECAR_OPEN);
    assert_int_equal(back.disk_size, h.disk_size);
    assert_int_equal(back.written_ns, -5);
    assert_memory_equal(back.storages, h.storages, sizeof(h.storages));
    assert_string_equal(back.kind, "qcow2");
    assert_string_equal(back.image, "/a/disk");
    assert_memory_equal(back.boot_id, h.boot_id, 16);
    for (unsigned bit = 0; bit < 8 * SIDECAR_BLOCK; bit += 7) {
        memcpy(bad, buf, sizeof(bad));
        bad[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(sidecar_header_decode(bad, &back, &err));
    }
    assert_true(div_round_up(h.disk_size, h.region_size) <= SIDECAR_REGIONS_AIM);
    assert_int_equal(sidecar_region_size(1), SIDECAR_REGION_MIN);
}

static void header_refused(struct sidecar_header h)
{
    struct sidecar_header back;
    uint8_t buf[SIDECAR_BLOCK];
    struct err err;

    sidecar_header_encode(&h, buf);
    assert_false(sidecar_header_decode(buf, &back, &err));
    assert_non_null(strstr(err.text, "contradicts itself"));
}

static void bad_headers(void **state)
{
    struct sidecar_header h = whole_header();

#define REFUSED(change) \
    h = whole_header(); \
    h.change; \
    header_refused(h)
    REFUSED(state = 3);
    REFUSED(region_size = SIDECAR_REGION_MIN / 2);
    REFUSED(region_size = 3 * SIDECAR_REGION_MIN);
    REFUSED(disk_size = 1ULL << 63);
    REFUSED(disk_size = INT64_MAX);                  /* too many regions */
    REFUSED(dir_slot = 2);
    REFUSED(dir_bytes = SIDECAR_DIR_BYTES + 1);
    REFUSED(n_bitmaps = UINT32_MAX);
    h = whole_header();
    memset(h.kind, 'x', sizeof(h.kind));
    header_refused(h);
#undef REFUSED
}

static void directory(void **state)
{
    static struct sidecar_entry v[2], *back;
    struct sidecar_header h = whole_header();
    static uint8_t buf[4096];
    struct err err;

    v[0] = (struct sidecar_entry){
        .name = "a", .granularity = 65536, .enabled = true, .area = SIDECAR_AREAS_AT, .crc = 7,
    };
    memset(v[1].name, 'n', DIRTY_NAME_MAX);
    v[1].granularity = 1u << 31;
    v[1].area = v[0].area + sidecar_area_bytes(div_round_up(h.disk_size, 65536));
    strcpy(v[1].reason, "lost");
    for (int i = 0; i < 2; i++)
        v[i].nbits = div_round_up(h.disk_size, v[i].granularity);
    assert_true(sidecar_dir_bytes(v, 2) < sizeof(buf));
    sidecar_dir_encode(v, 2, buf, &h);
    assert_true(sidecar_dir_decode(&h, buf, &back, &err));
    assert_memory_equal(back, v, sizeof(v));
    free(back);
    buf[3] ^= 1;
    assert_false(sidecar_dir_decode(&h, buf, &back, &err));

    static const char *const why = "contradicts itself";

    for (int i = 0; i < 6; i++) {
        struct sidecar_entry bad[2] = { v[0], v[1] };

        switch (i) {
        case 0: bad[1].area -= SIDECAR_BLOCK; break;         /* one over the other */
        case 1: bad[1].nbits++; break;
        case 2: bad[0].granularity = 256; break;
        case 3: bad[0].area = 4096; break;
        case 4: strcpy(bad[1].name, "a"); break;
        case 5: bad[0].granularity = 512; bad[0].nbits = div_round_up(h.disk_size, 512); break;
        }
        sidecar_dir_encode(bad, 2, buf, &h);
        assert_false(sidecar_dir_decode(&h, buf, &back, &err));
        assert_non_null(strstr(err.text, why));
    }
}

static void log_and_beat(void **state)
{
    struct bitmap *marked = bitmap_new(9000), *back = bitmap_new(9000);
    struct sidecar_beat b = { .boot_id = "boot", .time_ns = 123456789 }, c;
    uint8_t buf[SIDECAR_SECTOR];

    bitmap_set(marked, 4000, 100);
    for (unsigned i = 0; i < SIDECAR_LOG_SECTORS; i++) {
        sidecar_log_encode(marked, i, buf);
        sidecar_log_decode(buf, i, back);
    }
    assert_int_equal(bitmap_count(back), 100);
    assert_true(bitmap_all_set(back, 4000, 100));
    sidecar_log_encode(marked, 0, buf);
    buf[200] ^= 1;                       /* torn: all that it is of */
    sidecar_log_decode(buf, 0, back);
    assert_int_equal(bitmap_count(back), SIDECAR_SECTOR_REGIONS + 100 - 32);
    sidecar_beat_encode(&b, buf);
    assert_true(sidecar_beat_decode(buf, &c));
    b.time_ns = INT64_MAX - 1;           /* nothing could be added to it */
    sidecar_beat_encode(&b, buf);
    assert_false(sidecar_beat_decode(buf, &c));
    b.time_ns = 123456789;
    sidecar_beat_encode(&b, buf);
    assert_true(sidecar_beat_decode(buf, &c));
    assert_int_equal(c.time_ns, b.time_ns);
    buf[8] ^= 1;
    assert_false(sidecar_beat_decode(buf, &c));
    bitmap_free(marked);
    bitmap_free(back);
}

static void bits(void **state)
{
    uint64_t n = SIDECAR_BLOCK_BITS + 100, words[SIDECAR_BLOCK_WORDS];
    struct bitmap *bm = bitmap_new(n), *back = bitmap_new(n);
    uint8_t buf[SIDECAR_BLOCK];

    bitmap_set(bm, SIDECAR_BLOCK_BITS - 3, 50);
    for (uint64_t block = 0; block < 2; block++) {
        bitmap_get_words(bm, block * SIDECAR_BLOCK_WORDS, SIDECAR_BLOCK_WORDS, words);
        sidecar_block_encode(words, buf);
        sidecar_block_decode(buf, back, block);
    }
    assert_int_equal(bitmap_count(back), 50);
    assert_true(bitmap_all_set(back, SIDECAR_BLOCK_BITS - 3, 50));
    assert_int_equal(sidecar_bits_crc(bm), sidecar_bits_crc(back));
    bitmap_clear_bit(back, SIDECAR_BLOCK_BITS);
    assert_int_not_equal(sidecar_bits_crc(bm), sidecar_bits_crc(back));
    memset(buf, 0xff, sizeof(buf));      /* behind the end there is nothing */
    sidecar_block_decode(buf, back, 1);
    assert_int_equal(bitmap_count(back), 3 + 100);
    bitmap_free(bm);
    bitmap_free(back);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(header),
        cmocka_unit_test(bad_headers),
        cmocka_unit_test(directory),
        cmocka_unit_test(log_and_beat),
        cmocka_unit_test(bits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
