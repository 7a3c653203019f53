/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: what format.c accepts is what the qcow2 document allows, and everything
 * else is refused with a sentence that says what is wrong.
 * Method: a good header, spoilt one field at a time; entries bit by bit; refcounts
 * of every width against a plain array.
 */
#include "drivers/qcow2/format.h"
#include "base/limits.h"
#include "co_test.h"

#define CLUSTER 65536

static struct qcow2_header good_header(void)
{
    return (struct qcow2_header){
        .version = 3, .cluster_bits = 16, .size = 10 * GiB, .l1_entries = 20, .l1_off = 3 * CLUSTER,
        .reftable_off = CLUSTER, .reftable_clusters = 1, .refcount_order = 4, .header_bytes = 104,
    };
}

static void write_good(uint8_t *buf, struct qcow2_header h)
{
    struct err err = ERR_INIT;

    if (!qcow2_header_write(&h, buf, &err))
        fail_msg("%s", err.text);
}

static void expect_refused(const uint8_t *buf, size_t len, const char *words)
{
    struct qcow2_header h;
    struct err err = ERR_INIT;

    assert_false(qcow2_header_parse(buf, len, &h, &err));
    assert_true(err.code < 0);
    if (!strstr(err.text, words))
        fail_msg("expected '%s' in '%s'", words, err.text);
}

static void a_written_header_reads_back(void **state)
{
    static uint8_t buf[CLUSTER];
    struct qcow2_header in = good_header(), out;
    struct err err = ERR_INIT;

    in.has_backing = true;
    strcpy(in.backing_file, "base image.qcow2");
    strcpy(in.backing_format, "qcow2");
    in.compatible = QCOW2_COMPAT_LAZY_REFCOUNTS;
    in.autoclear = 1;
    write_good(buf, in);
    assert_true(qcow2_header_parse(buf, sizeof(buf), &out, &err));
    assert_memory_equal(&in, &out, sizeof(in));

    /* Version 2 has no feature fields, and 16-bit refcounts. */
    in.version = 2;
    in.header_bytes = QCOW2_V2_HEADER_BYTES;
    in.compatible = in.autoclear = 0;
    write_good(buf, in);
    assert_true(qcow2_header_parse(buf, sizeof(buf), &out, &err));
    assert_memory_equal(&in, &out, sizeof(in));
}

static void the_end_of_a_short_file_may_cut_the_first_cluster(void **state)
{
    static uint8_t buf[CLUSTER];
    struct qcow2_header in = good_header(), out;
    struct err err = ERR_INIT;

    write_good(buf, in);
    assert_true(qcow2_header_parse(buf, 112, &out, &err));
    for (size_t len = 0; len < 104; len++)
        expect_refused(buf, len, len < 4 ? "not in qcow2 format" : "cut short");
}

struct spoil {
    unsigned at, bytes;
    uint64_t value;
    const char *words;
};

static void every_field_is_checked(void **state)
{
    static const struct spoil spoils[] = {
        { 0, 4, 0x514649fa, "not in qcow2 format" },
        { 4, 4, 1, "version 1" },
        { 4, 4, 4, "version 4" },
        { 8, 8, 40, "backing file lies outside" },
        { 8, 8, CLUSTER + 1, "backing file lies outside" },
        { 8, 8, UINT64_MAX, "backing file lies outside" },
        { 20, 4, 8, "cluster size 2^8" },
        { 20, 4, 22, "cluster size 2^22" },
        { 20, 4, UINT32_MAX, "cluster size" },
        { 24, 8, UINT64_MAX, "virtual size" },
        { 24, 8, 11 * GiB, "L1 table is too small" },
        { 32, 4, 1, "encrypted" },
        { 36, 4, 19, "L1 table is too small" },
        { 36, 4, 4194305, "L1 table has 4194305 entries" },
        { 40, 8, 0, "no place" },
        { 40, 8, 3 * CLUSTER + 512, "L1 table at offset 197120 is not aligned" },
        { 40, 8, 1ULL << 56, "outside what the format" },
        { 40, 8, CLUSTER, "over each other" },
        { 48, 8, 0, "no place" },
        { 48, 8, CLUSTER + 8, "refcount table at offset 65544 is not aligned" },
        { 48, 8, UINT64_MAX << 16, "outside what the format" },
        { 56, 4, 0, "no refcount table" },
        { 56, 4, 129, "refcount table has 8454144 bytes" },
        { 56, 4, UINT32_MAX, "refcount table has" },
        { 60, 4, 65537, "65537 snapshots" },
        { 72, 8, 1ULL << 5, "feature bit 5" },
        { 72, 8, 1ULL << 4, "L1 table is too small: 20 entries where the virtual size needs 40" },
        { 72, 8, 1ULL << 60, "feature bit 60" },
        { 72, 8, 1ULL << 3, "compression type 0 and its feature bit" },
        { 96, 4, 7, "refcount width" },
        { 100, 4, 96, "header length 96" },
        { 100, 4, 108, "header length 108" },
        { 100, 4, CLUSTER + 8, "header length 65544" },
    };
    static uint8_t buf[CLUSTER];

    for (size_t i = 0; i < ARRAY_SIZE(spoils); i++) {
        const struct spoil *s = &spoils[i];

        write_good(buf, good_header());
        if (s->bytes == 4)
            store_be32(buf + s->at, (uint32_t)s->value);
        else
            store_be64(buf + s->at, s->value);
        expect_refused(buf, sizeof(buf), s->words);
    }
}

static void snapshots_must_lie_on_a_cluster(void **state)
{
    static uint8_t buf[CLUSTER];
    struct qcow2_header h = good_header();

    h.n_snapshots = 1;
    h.snapshots_off = 5 * CLUSTER + 8;
    write_good(buf, h);
    expect_refused(buf, sizeof(buf), "snapshot table");
}

static void a_feature_is_refused_by_the_name_that_the_image_gives(void **state)
{
    static uint8_t buf[CLUSTER];

    write_good(buf, good_header());
    store_be64(buf + 72, 1ULL << 5 | 1ULL << 40);
    store_be32(buf + 104, 0x6803f857);
    store_be32(buf + 108, 2 * 48);
    buf[112] = 1;              /* a compatible feature of the same bit */
    buf[113] = 5;
    memcpy(buf + 114, "not this one", 12);
    buf[160] = 0;
    buf[161] = 5;
    memset(buf + 162, 'x', 46);           /* full length, no terminator */
    buf[163] = '\n';
    expect_refused(buf, sizeof(buf),
                   "'x?xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' which");
}

static void extensions_stay_inside_the_header(void **state)
{
    static uint8_t buf[CLUSTER];
    struct qcow2_header h;
    struct err err = ERR_INIT;

    write_good(buf, good_header());
    store_be32(buf + 104, 0x12345678);
    store_be32(buf + 108, UINT32_MAX);
    expect_refused(buf, sizeof(buf), "header extension 0x12345678");

    /* One that fills the cluster to its last byte needs no end mark. */
    store_be32(buf + 108, CLUSTER - 112);
    assert_true(qcow2_header_parse(buf, sizeof(buf), &h, &err));
    store_be32(buf + 108, CLUSTER - 111);
    expect_refused(buf, sizeof(buf), "does not fit");

    write_good(buf, good_header());
    store_be32(buf + 104, 0xe2792aca);
    store_be32(buf + 108, 16);
    memset(buf + 112, 'q', 16);
    expect_refused(buf, sizeof(buf), "format has 16 bytes");
    store_be32(buf + 108, 3);
    buf[113] = 0;
    expect_refused(buf, sizeof(buf), "is not text");

    write_good(buf, good_header());
    store_be32(buf + 104, 0x0537be77);
    store_be32(buf + 108, 16);
    expect_refused(buf, sizeof(buf), "encrypted");
}

static void the_backing_name_is_bounded(void **state)
{
    static uint8_t buf[CLUSTER];
    struct qcow2_header h = good_header();

    h.has_backing = true;
    memset(h.backing_file, 'b', QCOW2_BACKING_FILE_MAX);
    write_good(buf, h);
    store_be32(buf + 16, 1024);
    expect_refused(buf, sizeof(buf), "backing file has 1024 bytes");
    store_be32(buf + 16, 5);
    buf[load_be64(buf + 8) + 2] = 0;
    expect_refused(buf, sizeof(buf), "zero byte");
    expect_refused(buf, load_be64(buf + 8) + 4, "outside the header");
}

static void a_header_that_does_not_fit_its_cluster_is_not_written(void **state)
{
    uint8_t buf[512];
    struct qcow2_header h = good_header();
    struct err err = ERR_INIT;

    h.cluster_bits = 9;
    h.has_backing = true;
    memset(h.backing_file, 'b', 400);
    assert_true(qcow2_header_write(&h, buf, &err));
    h.backing_file[400] = 'b';
    assert_false(qcow2_header_write(&h, buf, &err));
    assert_non_null(strstr(err.text, "does not fit"));
}

static void l2_entries_decode_as_documented(void **state)
{
    struct qcow2_geometry g = { .cluster_bits = 16, .l2_bits = 13, .version = 3 };
    struct qcow2_l2_entry e;
    unsigned n;

    assert_true(qcow2_l2_decode(&g, 0, &e));
    assert_int_equal(e.kind, QCOW2_UNALLOCATED);
    assert_true(qcow2_l2_decode(&g, 1, &e));
    assert_int_equal(e.kind, QCOW2_ZERO_PLAIN);
    assert_true(qcow2_l2_decode(&g, 0x50001, &e));
    assert_int_equal(e.kind, QCOW2_ZERO_ALLOC);
    assert_true(qcow2_l2_decode(&g, QCOW2_COPIED | 0x50000, &e));
    assert_int_equal(e.kind, QCOW2_NORMAL);
    assert_int_equal(e.host, 0x50000);
    assert_true(e.copied);
    assert_false(qcow2_l2_decode(&g, QCOW2_COPIED, &e));
    assert_false(qcow2_l2_decode(&g, QCOW2_COPIED | 0x50200, &e));
    for (unsigned bit = 1; bit <= 61; bit++) {
        if (bit <= 8 || bit >= 56)
            assert_false(qcow2_l2_decode(&g, 1ULL << bit | 0x50000, &e));
    }

    /* x = 62 - 8 = 54: eight bits of sectors above the offset. */
    assert_true(qcow2_l2_decode(&g, QCOW2_COMPRESSED | 3ULL << 54 | 0x5fe10, &e));
    assert_int_equal(e.kind, QCOW2_COMPRESSED_KIND);
    assert_int_equal(e.host, 0x5fe10);
    assert_int_equal(e.compressed_bytes, 4 * 512 - 0x10);
    assert_int_equal(qcow2_compressed_clusters(&g, &e, &n), 5);
    assert_int_equal(n, 2);

    /* 512-byte clusters leave offset bits beyond 55, which must be clear. */
    g.cluster_bits = 9;
    assert_true(qcow2_l2_decode(&g, QCOW2_COMPRESSED | 1ULL << 61 | 0x3ff, &e));
    assert_int_equal(e.compressed_bytes, 1024 - 511);
    assert_false(qcow2_l2_decode(&g, QCOW2_COMPRESSED | 1ULL << 56, &e));

    /* Version 2 has no zero flag. */
    g.version = 2;
    assert_false(qcow2_l2_decode(&g, 1, &e));
}

/* An entry of descriptor @v and bitmap @bitmap, in the third place of a table. */
static bool decode_extended(uint64_t v, uint64_t bitmap, struct qcow2_l2_entry *ret)
{
    struct qcow2_geometry g = { .cluster_bits = 16, .l2_bits = 12, .version = 3,
                                .extended = true };
    uint8_t table[4 * 16] = { 0 };
    bool ok;

    qcow2_l2_entry_set(&g, table, 2, v, (uint32_t)bitmap, (uint32_t)(bitmap >> 32));
    assert_int_equal(load_be64(table + 32), v);
    assert_int_equal(load_be64(table + 40), bitmap);
    assert_int_equal(qcow2_l2_descriptor(&g, table, 2), v);
    ok = qcow2_l2_entry_get(&g, table, 2, ret);
    qcow2_l2_set_descriptor(&g, table, 2, 0);
    assert_int_equal(load_be64(table + 32), 0);
    assert_int_equal(load_be64(table + 40), bitmap);
    return ok;
}

static void extended_l2_entries_decode_as_documented(void **state)
{
    const uint64_t all = UINT32_MAX, own = QCOW2_COPIED | 0x50000;
    static const struct { uint64_t v, bitmap; enum qcow2_kind kind; } good[] = {
        { 0, 0, QCOW2_UNALLOCATED },
        { 0, 0xffffffffULL << 32, QCOW2_ZERO_PLAIN },
        { 0, 1ULL << 32, QCOW2_MIXED },
        { 0x50000, 0, QCOW2_MIXED },
        { 0x50000, 0xffffffffULL << 32, QCOW2_ZERO_ALLOC },
        { QCOW2_COPIED | 0x50000, 0xffffffffULL, QCOW2_NORMAL },
        { QCOW2_COPIED | 0x50000, 0x7fffffffULL, QCOW2_MIXED },
        { QCOW2_COPIED | 0x50000, 0x80000000ULL << 32 | 0x7fffffffULL, QCOW2_MIXED },
        { QCOW2_COMPRESSED | 0x50200, UINT64_MAX, QCOW2_COMPRESSED_KIND },
    };
    struct qcow2_geometry plain = { .cluster_bits = 16, .l2_bits = 13, .version = 3 };
    struct qcow2_l2_entry e;
    uint8_t table[32] = { 0 };

    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        assert_true(decode_extended(good[i].v, good[i].bitmap, &e));
        assert_int_equal(e.kind, good[i].kind);
        if (e.kind != QCOW2_COMPRESSED_KIND)
            assert_int_equal((uint64_t)e.zero << 32 | e.alloc, good[i].bitmap);
    }
    for (unsigned bit = 0; bit < 32; bit++) {
        assert_false(decode_extended(own, (1ULL << 32 | 1) << bit, &e));
        assert_false(decode_extended(own, all | 1ULL << (32 + bit), &e));
        assert_false(decode_extended(0, 1ULL << bit, &e));
        assert_true(decode_extended(own, (all & ~(1ULL << bit)) | 1ULL << (32 + bit), &e));
    }
    /* The zero flag is the bitmap's. */
    assert_false(decode_extended(own | QCOW2_ZERO, 0, &e));
    assert_false(decode_extended(QCOW2_ZERO, all << 32, &e));
    assert_false(decode_extended(own | 0x200, 1, &e));

    qcow2_l2_entry_set(&plain, table, 1, own, 0, 0);
    assert_int_equal(load_be64(table), 0);
    assert_int_equal(load_be64(table + 8), own);
    assert_true(qcow2_l2_entry_get(&plain, table, 1, &e));
    assert_int_equal(e.kind, QCOW2_NORMAL);
}

static void subclusters_need_clusters_that_are_large_enough(void **state)
{
    static uint8_t buf[CLUSTER];
    struct qcow2_header in = good_header(), out;
    struct err err = ERR_INIT;

    in.incompatible = QCOW2_INCOMPAT_EXTL2;
    in.cluster_bits = 14;
    in.size = 256 * MiB;
    write_good(buf, in);
    assert_true(qcow2_header_parse(buf, sizeof(buf), &out, &err));
    assert_true(qcow2_geometry_of(&out).extended);
    assert_int_equal(qcow2_geometry_of(&out).l2_bits, 10);
    in.cluster_bits = 13;
    write_good(buf, in);
    expect_refused(buf, sizeof(buf), "extended L2 entries need clusters of 16 KiB at least");
}

static void table_entries_decode_as_documented(void **state)
{
    struct qcow2_geometry g = { .cluster_bits = 16, .l2_bits = 13, .version = 3 };
    uint64_t off;
    bool copied;

    assert_true(qcow2_l1_decode(&g, 0, &off, &copied));
    assert_true(qcow2_l1_decode(&g, QCOW2_COPIED | 0x70000, &off, &copied));
    assert_true(copied);
    assert_int_equal(off, 0x70000);
    assert_false(qcow2_l1_decode(&g, QCOW2_COPIED, &off, &copied));
    assert_false(qcow2_l1_decode(&g, 0x70200, &off, &copied));
    assert_false(qcow2_l1_decode(&g, 0x70001, &off, &copied));
    assert_false(qcow2_l1_decode(&g, 1ULL << 56, &off, &copied));

    assert_true(qcow2_reftable_decode(&g, 0x20000, &off));
    assert_int_equal(off, 0x20000);
    assert_false(qcow2_reftable_decode(&g, 0x20008, &off));
    assert_false(qcow2_reftable_decode(&g, 0x20200, &off));
    assert_false(qcow2_reftable_decode(&g, 1ULL << 56, &off));
}

static void l1_sizes_are_those_of_the_document(void **state)
{
    assert_int_equal(qcow2_l1_entries_for(0, 16, false), 0);
    assert_int_equal(qcow2_l1_entries_for(1, 16, false), 1);
    assert_int_equal(qcow2_l1_entries_for(512 * MiB, 16, false), 1);
    assert_int_equal(qcow2_l1_entries_for(512 * MiB + 1, 16, false), 2);
    assert_int_equal(qcow2_l1_entries_for(128 * GiB, 9, false), LIMIT_QCOW2_L1_BYTES / 8);
    assert_int_equal(qcow2_l1_entries_for(2048 * 1024 * TiB, 21, false), LIMIT_QCOW2_L1_BYTES / 8);
    assert_int_equal(qcow2_l1_entries_for(512 * MiB, 16, true), 2);
    assert_int_equal(qcow2_l1_entries_for(1024 * 1024 * TiB, 21, true), LIMIT_QCOW2_L1_BYTES / 8);
}

static void refcounts_of_every_width(void **state)
{
    uint64_t seed = 7;

    for (unsigned order = 0; order <= 6; order++) {
        uint8_t block[512] = { 0 };
        size_t n = 512 * 8 >> order, run;
        uint64_t *shadow = calloc(n, sizeof(*shadow));

        for (int round = 0; round < 4000; round++) {
            size_t i = test_random(&seed, n);
            uint64_t any = test_random(&seed, UINT64_MAX) & qcow2_refcount_max(order);
            uint64_t v = test_random(&seed, 2) ? any : 0;

            qcow2_refcount_set(block, order, i, v);
            shadow[i] = v;
        }
        for (size_t i = 0; i < n; i++)
            assert_int_equal(qcow2_refcount_get(block, order, i), shadow[i]);
        for (size_t from = 0; from <= n; from++) {
            size_t first = from, end;

            while (first < n && shadow[first])
                first++;
            for (end = first; end < n && !shadow[end] && end - first < 5; end++)
                ;
            assert_int_equal(qcow2_refcount_find_free(block, order, from, n, 5, &run), first);
            assert_int_equal(run, end - first);
        }
        free(shadow);
    }
    /* The document's words: bit 0 is the least significant bit. */
    uint8_t byte = 0;

    qcow2_refcount_set(&byte, 0, 3, 1);
    assert_int_equal(byte, 8);
    qcow2_refcount_set(&byte, 1, 3, 2);
    assert_int_equal(byte, 0x88);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_written_header_reads_back),
        cmocka_unit_test(the_end_of_a_short_file_may_cut_the_first_cluster),
        cmocka_unit_test(every_field_is_checked),
        cmocka_unit_test(snapshots_must_lie_on_a_cluster),
        cmocka_unit_test(a_feature_is_refused_by_the_name_that_the_image_gives),
        cmocka_unit_test(extensions_stay_inside_the_header),
        cmocka_unit_test(the_backing_name_is_bounded),
        cmocka_unit_test(a_header_that_does_not_fit_its_cluster_is_not_written),
        cmocka_unit_test(l2_entries_decode_as_documented),
        cmocka_unit_test(extended_l2_entries_decode_as_documented),
        cmocka_unit_test(subclusters_need_clusters_that_are_large_enough),
        cmocka_unit_test(table_entries_decode_as_documented),
        cmocka_unit_test(l1_sizes_are_those_of_the_document),
        cmocka_unit_test(refcounts_of_every_width),
    };

    return cmocka_run_group_tests_name("qcow2 format", tests, NULL, NULL);
}
