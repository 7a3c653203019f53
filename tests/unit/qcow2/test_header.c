/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: rewriting the header changes what was asked and nothing else: fields that
 * are not known, however long the header is, and unknown extensions stay byte for
 * byte; and a cut at any of its writes leaves the old header or the new one (I-Q14).
 * Method: random headers against a list of what is in them; QEMU reads the result.
 */
#include "drivers/qcow2/qcow2.h"
#include "drivers/qcow2/rename.h"
#include "qcow2_test.h"

#define CLUSTER 4096
#define EXTENSIONS_MAX 8

/* ---- random headers ------------------------------------------------------- */

static struct qcow2_header plain_header(void)
{
    return (struct qcow2_header){
        .version = 3, .cluster_bits = 12, .size = MiB, .l1_entries = 1, .l1_off = 3 * CLUSTER,
        .reftable_off = CLUSTER, .reftable_clusters = 1, .refcount_order = 4, .header_bytes = 104,
        .compatible = 1ULL << 50, .autoclear = 1ULL << 51,
    };
}

static void fill_random(uint64_t *seed, uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)test_random(seed, 256);
}

static size_t put_ext(uint8_t *buf, size_t at, uint32_t type, const void *data, uint32_t bytes)
{
    store_be32(buf + at, type);
    store_be32(buf + at + 4, bytes);
    memcpy(buf + at + 8, data, bytes);
    return at + 8 + align_up((uint64_t)bytes, 8);
}

/* A header of random length with random extensions, one of them of a known type
 * sometimes, and a random backing name. */
static void make_random(uint64_t *seed, uint8_t *buf)
{
    struct qcow2_header h = plain_header();
    struct err err = ERR_INIT;
    unsigned n = (unsigned)test_random(seed, EXTENSIONS_MAX);
    uint8_t data[120];           /* so that the cluster has room for all of it twice */
    size_t at = 104 + 8 * test_random(seed, 20);

    assert_true(qcow2_header_write(&h, buf, &err));
    fill_random(seed, buf + 104, at - 104);
    store_be32(buf + 100, (uint32_t)at);
    if (at > 104)
        buf[104] = 0;           /* compression type */
    for (unsigned i = 0; i < n; i++) {
        fill_random(seed, data, sizeof(data));
        at = put_ext(buf, at, 0x70000000 + i, data, (uint32_t)test_random(seed, sizeof(data)));
    }
    if (test_random(seed, 2))
        at = put_ext(buf, at, QCOW2_EXT_BACKING_FORMAT, "raw", 3);
    memset(buf + at, 0, CLUSTER - at);
    at += 8 + 8 * test_random(seed, 30);
    if (test_random(seed, 2)) {
        uint32_t bytes = (uint32_t)(1 + test_random(seed, 300));

        store_be64(buf + 8, at);
        store_be32(buf + 16, bytes);
        memset(buf + at, 'a' + (int)test_random(seed, 26), bytes);
    }
}

static size_t extensions_end(const uint8_t *buf)
{
    return load_be64(buf + 8) ? load_be64(buf + 8) : CLUSTER;
}

/* The extension of the type in @buf: false if there is none. */
static bool find_ext(const uint8_t *buf, uint32_t type, struct qcow2_extension *ret)
{
    size_t at = load_be32(buf + 100);

    while (qcow2_next_extension(buf, extensions_end(buf), &at, ret)) {
        if (ret->type == type)
            return true;
    }
    return false;
}

/* Both have the same extensions but those of the types @but and @but2. */
static void expect_same_extensions(const uint8_t *a, const uint8_t *b, uint32_t but,
                                   uint32_t but2)
{
    size_t at = load_be32(a + 100), n_a = 0, n_b = 0;
    struct qcow2_extension e, f;

    while (qcow2_next_extension(a, extensions_end(a), &at, &e)) {
        if (e.type == but || e.type == but2)
            continue;
        n_a++;
        assert_true(find_ext(b, e.type, &f));
        assert_int_equal(e.bytes, f.bytes);
        assert_memory_equal(e.data, f.data, e.bytes);
    }
    at = load_be32(b + 100);
    while (qcow2_next_extension(b, extensions_end(b), &at, &f))
        n_b += f.type != but && f.type != but2;
    assert_int_equal(n_a, n_b);
}

/* What a power cut leaves while @new is written over @old: the first sector comes last,
 * of the others some are there, in part. It says what one of the two says. */
static void expect_cut_is_whole(uint64_t *seed, const uint8_t *old, const uint8_t *new)
{
    static uint8_t mix[CLUSTER];
    struct qcow2_header was, is;
    struct err err = ERR_INIT;

    assert_true(qcow2_header_parse(old, CLUSTER, &was, &err));
    for (int trial = 0; trial < 4; trial++) {
        memcpy(mix, old, 512);
        for (size_t at = 512; at < CLUSTER; at += 512)
            memcpy(mix + at, (!trial || test_random(seed, 2) ? new : old) + at, 512);
        if (!qcow2_header_parse(mix, CLUSTER, &is, &err))
            fail_msg("%s", err.text);
        assert_memory_equal(&was, &is, sizeof(was));
        expect_same_extensions(old, mix, QCOW2_EXT_PADDING, 0);
    }
}

/* The same of both steps; the one between says what the old one does. */
static void expect_cuts_are_whole(uint64_t *seed, const uint8_t *old,
                                  const struct qcow2_header_steps *steps)
{
    static struct qcow2_header was, is;
    struct err err = ERR_INIT;

    if (!steps->between_bytes) {
        expect_cut_is_whole(seed, old, steps->buf);
        return;
    }
    expect_cut_is_whole(seed, old, steps->between);
    expect_cut_is_whole(seed, steps->between, steps->buf);
    assert_true(qcow2_header_parse(old, CLUSTER, &was, &err));
    assert_true(qcow2_header_parse(steps->between, CLUSTER, &is, &err));
    was.bitmaps.at = is.bitmaps.at = 0;
    assert_memory_equal(&was, &is, sizeof(was));
    expect_same_extensions(old, steps->between, QCOW2_EXT_PADDING, 0);
}

static void a_rebuilt_header_keeps_what_it_does_not_know(void **state)
{
    static uint8_t old[CLUSTER], between[CLUSTER], new[CLUSTER];
    struct qcow2_header_steps steps = { .between = between, .buf = new };
    unsigned in_two_steps = 0;

    for (uint64_t round = 1; round <= 3000; round++) {
        uint64_t seed = round;
        struct qcow2_extension bitmaps = { QCOW2_EXT_BITMAPS, 24, "twenty-four bytes of it." };
        struct qcow2_header_change c = { .extensions = &bitmaps, .autoclear_set = 1,
                                         .autoclear_clear = 1ULL << 51 };
        struct qcow2_header was, is;
        struct err err = ERR_INIT;
        struct qcow2_extension e;
        char name[200] = { 0 };

        make_random(&seed, old);
        assert_true(qcow2_header_parse(old, CLUSTER, &was, &err));
        c.n_extensions = test_random(&seed, 2);
        c.backing = test_random(&seed, 2);
        memset(name, 'n', test_random(&seed, sizeof(name)));
        c.backing_file = test_random(&seed, 3) ? name : NULL;
        c.backing_format = "qcow2";
        if (!qcow2_header_rebuild(old, CLUSTER, &c, &steps, &err))
            fail_msg("seed %ju: %s", (uintmax_t)round, err.text);
        assert_true(qcow2_header_parse(new, CLUSTER, &is, &err));
        assert_true(steps.bytes % 512 == 0 && steps.bytes <= CLUSTER);

        /* Magic to the header's end, without the place of the name and autoclear. */
        assert_memory_equal(old, new, 8);
        assert_memory_equal(old + 20, new + 20, 88 - 20);
        assert_memory_equal(old + 96, new + 96, was.header_bytes - 96);
        assert_int_equal(is.autoclear, 1);
        expect_same_extensions(old, new, c.backing ? QCOW2_EXT_BACKING_FORMAT : 0,
                               c.n_extensions ? QCOW2_EXT_BITMAPS : 0);
        assert_int_equal(find_ext(new, QCOW2_EXT_BITMAPS, &e), c.n_extensions);
        if (c.backing) {
            assert_string_equal(is.backing_file, c.backing_file ? name : "");
            assert_string_equal(is.backing_format, c.backing_file ? "qcow2" : "");
        } else {
            assert_string_equal(is.backing_file, was.backing_file);
            assert_string_equal(is.backing_format, was.backing_format);
        }
        for (size_t i = steps.bytes; i < CLUSTER; i++)
            assert_int_equal(new[i], 0);
        expect_cuts_are_whole(&seed, old, &steps);
        in_two_steps += !!steps.between_bytes;
    }
    assert_in_range(in_two_steps, 100, 2900);
}

static void what_does_not_fit_is_refused_and_feature_names_give_way(void **state)
{
    uint8_t old[512], between[512], new[512], table[5 * 48] = { 0 };
    struct qcow2_header_steps steps = { .between = between, .buf = new };
    struct qcow2_header h = plain_header();
    char name[400] = { 0 };
    struct qcow2_header_change c = { .backing = true, .backing_file = name,
                                     .backing_format = "raw" };
    struct err err = ERR_INIT;
    size_t at = 104;
    struct qcow2_extension e;

    h.cluster_bits = 9;
    h.l1_entries = 32;
    assert_true(qcow2_header_write(&h, old, &err));
    at = put_ext(old, at, QCOW2_EXT_FEATURE_NAMES, table, sizeof(table));
    put_ext(old, at, 0x71717171, "kept", 4);
    memset(name, 'x', 100);
    assert_true(qcow2_header_rebuild(old, 512, &c, &steps, &err));
    at = 104;
    assert_true(qcow2_next_extension(new, 512, &at, &e));
    assert_int_equal(e.type, QCOW2_EXT_FEATURE_NAMES);
    memset(name, 'x', 250);
    assert_true(qcow2_header_rebuild(old, 512, &c, &steps, &err));
    at = 104;
    assert_true(qcow2_next_extension(new, 512, &at, &e));
    assert_int_equal(e.type, 0x71717171);
    memset(name, 'x', 399);
    assert_false(qcow2_header_rebuild(old, 512, &c, &steps, &err));
    assert_non_null(strstr(err.text, "does not fit into a cluster of 512"));
}

/* In clusters of 1 KiB there is not always room for the step between; without the names of
 * features there mostly is. */
static void a_small_cluster_is_changed_safely_or_not_at_all(void **state)
{
    static uint8_t old[1024], between[1024], new[1024];
    struct qcow2_header_steps steps = { .between = between, .buf = new };
    uint8_t names[QCOW2_FEATURE_NAMES_BYTES], data[400] = { 0 };
    struct qcow2_header h = plain_header();
    struct qcow2_header_change c = { .backing = true, .backing_format = "qcow2" };
    struct err err = ERR_INIT;
    char name[500] = { 0 };

    h.cluster_bits = 10;
    h.l1_entries = 16;
    qcow2_feature_names(names);
    for (int kept = 0; kept < 2; kept++) {
        size_t at = 104;

        memset(old, 0, sizeof(old));
        assert_true(qcow2_header_write(&h, old, &err));
        at = put_ext(old, at, QCOW2_EXT_BACKING_FORMAT, "raw", 3);
        at = put_ext(old, at, QCOW2_EXT_FEATURE_NAMES, names, sizeof(names));
        if (kept)
            at = put_ext(old, at, 0x71717171, data, sizeof(data));
        store_be64(old + 8, at + 8);
        store_be32(old + 16, 20);
        memset(old + at + 8, 'o', 20);
        memset(name, 'n', 490);
        name[kept ? 90 : 490] = 0;
        c.backing_file = name;
        assert_int_equal(qcow2_header_rebuild(old, sizeof(old), &c, &steps, &err), !kept);
        assert_true(kept || steps.between_bytes);
    }
    assert_non_null(strstr(err.text, "no room to change the header"));
}

/* ---- in an open image ------------------------------------------------------- */

CO_TEST(qemu_reads_a_header_that_was_rewritten)
{
    struct err err = ERR_INIT;
    struct node *n;

    must_run("qemu-img create -q -f raw a.raw 1M && qemu-img create -q -f raw b.raw 1M && "
             "qemu-io -f raw -c 'write -P 7 0 1M' b.raw && "
             "qemu-img create -q -f qcow2 -b a.raw -F raw h.qcow2 && "
             "qemu-io -f qcow2 -c 'write -P 1 64k 64k' h.qcow2");
    n = co_open_image("h.qcow2", "");
    co_fill(n, 0, 4096, 2);
    if (!co_qcow2_rename_backing(n, "b.raw", "raw", &err))
        fail_msg("%s", err.text);
    co_fill(n, 512 * KiB, 65536, 3);          /* goes on, with the child that it had */
    co_node_unref(n);
    expect_clean("h.qcow2", false);
    must_run("qemu-img info h.qcow2 | grep 'backing file: b.raw'");
    must_run("qemu-io -r -f qcow2 -c 'read -P 2 0 4k' -c 'read -P 0 4k 60k' -c 'read -P 1 64k 64k' "
             "-c 'read -P 7 128k 384k' -c 'read -P 3 512k 64k' h.qcow2 | tee o; ! grep -i fail o");

    n = co_open_image("h.qcow2", "");
    co_expect(n, 600 * KiB, 4096, 7);
    assert_true(co_qcow2_rename_backing(n, NULL, NULL, &err));
    co_node_unref(n);
    expect_clean("h.qcow2", false);
    must_run("! qemu-img info h.qcow2 | grep -q backing");
    n = co_open_image("h.qcow2", "");
    assert_null(node_backing(n));
    co_expect(n, 600 * KiB, 4096, 0);
    co_expect(n, 512 * KiB, 65536, 3);
    co_node_unref(n);
}

/* Bits and fields of a later time: those that may stay do, through a session that
 * writes, moves tables and rewrites the header. */
CO_TEST(what_is_not_known_stays_in_an_image_that_is_used)
{
    static uint8_t before[CLUSTER], after[CLUSTER];
    const uint64_t compatible = 1ULL << 40 | 1ULL << 5, raw_and_later = 3ULL << 1 | 1ULL << 60;
    struct err err = ERR_INIT;
    struct node *n;
    size_t at = 160;

    make_file(work_path("u.data"), MiB);
    co_make_image("u.qcow2", &(struct qcow2_create_opts){ .size = MiB, .cluster_size = 4096,
                                                         .data_file = "u.data",
                                                         .data_file_raw = true });
    file_read(work_path("u.qcow2"), 0, before, CLUSTER);
    store_be32(before + 100, (uint32_t)at);
    store_be64(before + QCOW2_FIELD_AUTOCLEAR, raw_and_later);
    store_be64(before + 80, compatible);
    memset(before + 112, 0, CLUSTER - 112);
    memset(before + 120, 0xab, at - 120);
    at = put_ext(before, at, 0x12345678, "of a later time", 15);
    at = put_ext(before, at, QCOW2_EXT_DATA_FILE, "u.data", 6);
    at = put_ext(before, at, 0x87654321, "x", 1);
    file_write(work_path("u.qcow2"), 0, before, CLUSTER);
    must_run("qemu-img info -f qcow2 u.qcow2");

    n = co_open_image("u.qcow2", "");
    co_fill(n, 0, MiB, 1);
    if (!co_node_resize(n, 64 * MiB, &err) || !co_qcow2_rename_backing(n, NULL, NULL, &err))
        fail_msg("%s", err.text);
    co_fill(n, 60 * MiB, MiB, 1);
    assert_false(co_qcow2_rename_backing(n, "a.raw", "raw", &err));
    assert_non_null(strstr(err.text, "cannot have a backing file"));
    co_node_unref(n);
    file_read(work_path("u.qcow2"), 0, after, CLUSTER);
    assert_int_equal(load_be64(after + 80), compatible);
    assert_int_equal(load_be64(after + QCOW2_FIELD_AUTOCLEAR), 2);      /* raw data only */
    assert_memory_equal(before + 96, after + 96, CLUSTER - 96);
    expect_clean("u.qcow2", false);
}

/* Renaming and growing tables at the same time lose nothing of each other. */
CO_TEST(fields_and_the_whole_header_are_written_side_by_side)
{
    struct err err = ERR_INIT;
    struct node *n;

    must_run("qemu-img create -q -f raw a.raw 1M");
    co_make_image("s.qcow2", &(struct qcow2_create_opts){ .size = MiB, .cluster_size = 512 });
    n = co_open_image("s.qcow2", "");
    for (unsigned i = 1; i <= 20; i++) {
        assert_true(co_qcow2_rename_backing(n, i % 2 ? "a.raw" : NULL, "raw", &err));
        co_fill(n, (i % 8) * 100 * KiB, 64 * KiB, (unsigned char)i);
        if (!co_node_resize(n, (1 + i) * MiB, &err))
            fail_msg("%s", err.text);
    }
    co_node_unref(n);
    expect_clean("s.qcow2", false);
    must_run("qemu-img info s.qcow2 | grep 'virtual size: 21 MiB'");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rebuilt_header_keeps_what_it_does_not_know),
        cmocka_unit_test(what_does_not_fit_is_refused_and_feature_names_give_way),
        cmocka_unit_test(a_small_cluster_is_changed_safely_or_not_at_all),
        cmocka_unit_test(qemu_reads_a_header_that_was_rewritten),
        cmocka_unit_test(what_is_not_known_stays_in_an_image_that_is_used),
        cmocka_unit_test(fields_and_the_whole_header_are_written_side_by_side),
    };

    return drivers_test_main(argc, argv, __FILE__, tests, ARRAY_SIZE(tests));
}
