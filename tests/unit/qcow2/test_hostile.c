/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: an image made to do harm gets errors for what is wrong with it and does
 * none: no crash, nothing written where metadata is.
 * Method: a sound image with bytes changed in its header, tables and clusters;
 * what is not changed must go on to work.
 */
#include "base/bytes.h"
#include "qcow2_test.h"

#define CLUSTER 65536ULL
#define HEADER 0
#define REFTABLE CLUSTER
#define REFBLOCK (2 * CLUSTER)
#define L1 (3 * CLUSTER)
#define L2 (4 * CLUSTER)        /* the first that is allocated */
#define DATA (5 * CLUSTER)

#define COPIED (1ULL << 63)

/* h.qcow2: 64 MiB, clusters 0 .. 3 written with 1, 2, 3, 4. */
static void co_make(void)
{
    struct node *n;

    co_make_image("h.qcow2", &(struct qcow2_create_opts){ .size = 64 * MiB });
    n = co_open_image("h.qcow2", "");
    for (uint64_t i = 0; i < 4; i++)
        co_fill(n, i * CLUSTER, CLUSTER, (unsigned char)(i + 1));
    co_node_unref(n);
}

static void set64(uint64_t at, uint64_t v)
{
    uint8_t buf[8];

    store_be64(buf, v);
    file_write(work_path("h.qcow2"), at, buf, sizeof(buf));
}

static uint64_t get64(uint64_t at)
{
    uint8_t buf[8];

    file_read(work_path("h.qcow2"), at, buf, sizeof(buf));
    return load_be64(buf);
}

static int co_try_write(struct node *n, uint64_t off, uint64_t len)
{
    CLEANUP(free) void *data = xzalloc(len);

    return co_node_pwrite(n, off, len, data, 0);
}

static int co_try_read(struct node *n, uint64_t off, uint64_t len)
{
    CLEANUP(free) void *data = xzalloc(len);

    return co_node_pread(n, off, len, data, 0);
}

static void co_refused(const char *words, bool read_only)
{
    co_open_refused(words, "{'driver': 'qcow2', 'read-only': %s, 'file': {'driver': 'file', "
                    "'filename': '%s'}}", read_only ? "true" : "false", work_path("h.qcow2"));
}

/* ---- entries ------------------------------------------------------------- */

CO_TEST(an_l2_entry_that_cannot_be_is_an_error_for_its_cluster_only)
{
    static const uint64_t entries[] = {
        COPIED | (DATA + 512),           /* not on a cluster */
        COPIED | DATA | 2,               /* reserved bits */
        COPIED | DATA | 1ULL << 61,
        COPIED,
    };

    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        struct node *n;

        co_make();
        set64(L2 + 8, entries[i]);
        n = co_open_image("h.qcow2", "");
        co_expect(n, 0, CLUSTER, 1);
        assert_int_equal(co_try_read(n, CLUSTER, 512), -EIO);
        assert_int_equal(co_try_read(n, 0, 3 * CLUSTER), -EIO);
        assert_int_equal(co_try_write(n, CLUSTER, 512), -EIO);
        assert_int_equal(co_node_write_zeroes(n, CLUSTER, CLUSTER, 0), -EIO);
        co_expect(n, 2 * CLUSTER, CLUSTER, 3);
        co_fill(n, 3 * CLUSTER, CLUSTER, 7);
        co_node_unref(n);
    }
}

/* Where metadata is, an L2 entry says that the guest's data were. */
CO_TEST(metadata_is_never_written_as_data)
{
    static const uint64_t places[] = { REFTABLE, REFBLOCK, L1, L2 };

    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        CLEANUP(free) unsigned char *before = xmalloc(CLUSTER);
        CLEANUP(free) unsigned char *after = xmalloc(CLUSTER);
        struct node *n;

        co_make();
        set64(L2 + 8, COPIED | places[i]);
        file_read(work_path("h.qcow2"), places[i], before, CLUSTER);
        n = co_open_image("h.qcow2", "");
        /* The guest can read what it could read anyway: the image is its own. */
        assert_int_equal(co_try_read(n, CLUSTER, CLUSTER), 0);
        assert_int_equal(co_try_write(n, CLUSTER + 4096, 512), -EIO);
        /* Nothing is written any more, and the image says why. */
        assert_int_equal(co_try_write(n, 0, 512), -EIO);
        assert_int_equal(co_node_discard(n, 0, CLUSTER), 0);
        co_expect(n, 0, CLUSTER, 1);
        co_node_unref(n);
        file_read(work_path("h.qcow2"), places[i], after, CLUSTER);
        assert_memory_equal(before, after, CLUSTER);
        co_refused("marked corrupt", false);
        n = co_open_image("h.qcow2", ", 'read-only': true");
        co_expect(n, 0, CLUSTER, 1);
        co_node_unref(n);
    }
}

CO_TEST(a_zero_cluster_kept_on_metadata_is_not_used)
{
    struct node *n;

    co_make();
    set64(L2 + 8, COPIED | L1 | 1);
    n = co_open_image("h.qcow2", "");
    co_expect(n, CLUSTER, CLUSTER, 0);
    assert_int_equal(co_try_write(n, CLUSTER, 512), -EIO);
    co_node_unref(n);
    assert_int_equal(get64(L1), COPIED | L2);
}

CO_TEST(refcounts_that_call_metadata_free_do_no_harm)
{
    struct node *n;
    uint8_t zero[2] = { 0 };

    co_make();
    /* The refcount of the L1 table's cluster. */
    file_write(work_path("h.qcow2"), REFBLOCK + 3 * 2, zero, 2);
    n = co_open_image("h.qcow2", "");
    assert_int_equal(co_try_write(n, 10 * CLUSTER, 512), -EIO);
    assert_int_equal(co_try_write(n, 11 * CLUSTER, 512), -EIO);
    co_expect(n, 0, CLUSTER, 1);
    co_node_unref(n);
    assert_int_equal(get64(L1), COPIED | L2);
    co_refused("marked corrupt", false);
}

CO_TEST(a_cluster_behind_the_end_of_the_file)
{
    struct node *n;

    co_make();
    set64(L2 + 8, COPIED | 1ULL << 50);
    n = co_open_image("h.qcow2", "");
    co_expect(n, CLUSTER, CLUSTER, 0);      /* as QEMU reads it */
    assert_int_equal(co_try_write(n, CLUSTER, 512), -EIO);
    co_node_unref(n);
}

CO_TEST(freeing_what_is_free_stops_writing)
{
    struct node *n;

    co_make();
    set64(L2 + 8, COPIED | 100 * CLUSTER);
    n = co_open_image("h.qcow2", ", 'discard': 'unmap'");
    assert_int_equal(co_node_discard(n, CLUSTER, CLUSTER), 0);
    assert_int_equal(co_node_flush(n), 0);
    for (int i = 0; i < 1000; i++)
        co_yield();
    co_sleep(10 * NSEC_PER_MSEC);
    assert_int_equal(co_try_write(n, 0, 512), -EIO);
    co_node_unref(n);
    co_refused("marked corrupt", false);
}

/* ---- tables -------------------------------------------------------------- */

CO_TEST(l1_entries_that_cannot_be)
{
    static const uint64_t entries[] = { COPIED | (L2 + 512), L2 | 1, L2 | 1ULL << 60, COPIED };

    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        struct node *n;

        co_make();
        set64(L1, entries[i]);
        co_refused("L1 entry 0 is invalid", false);
        n = co_open_image("h.qcow2", ", 'read-only': true");
        assert_int_equal(co_try_read(n, 0, 512), -EIO);
        co_node_unref(n);
    }
}

CO_TEST(an_l2_table_behind_the_end_of_the_file)
{
    struct node *n;

    co_make();
    set64(L1, COPIED | 1ULL << 40);
    n = co_open_image("h.qcow2", "");
    assert_int_equal(co_try_read(n, 0, 512), -EIO);
    assert_int_equal(co_try_write(n, 0, 512), -EIO);
    assert_int_equal(co_node_write_zeroes(n, 0, MiB, 0), -EIO);
    co_node_unref(n);
}

CO_TEST(two_tables_in_one_place)
{
    co_make();
    set64(L1, COPIED | REFBLOCK);
    co_refused("refcount block 0 lies at offset 131072", false);
    set64(L1, COPIED | L1);
    co_refused("L2 table 0 lies at offset 196608", false);
    set64(L1, COPIED | L2);
    set64(REFTABLE, L2);
    co_refused("refcount block 0 lies at offset 262144", false);
    set64(REFTABLE, REFBLOCK | 8);
    co_refused("refcount table entry 0 is invalid", false);
}

CO_TEST(a_refcount_block_behind_the_end_of_the_file)
{
    struct node *n;

    co_make();
    set64(REFTABLE, 1ULL << 40);
    n = co_open_image("h.qcow2", "");
    assert_int_equal(co_try_write(n, 10 * CLUSTER, 512), -EIO);
    co_fill(n, 0, 512, 1);       /* in place */
    co_node_unref(n);
}

/* ---- compressed clusters ------------------------------------------------- */

CO_TEST(rubbish_in_a_compressed_cluster)
{
    static const uint64_t entries[] = {
        1ULL << 62 | (DATA + 7),                     /* is not deflate */
        1ULL << 62 | 0xffULL << 54 | (DATA + 7),     /* as long as can be */
        1ULL << 62 | ((1ULL << 54) - 1),             /* behind the end */
        1ULL << 62 | HEADER,
    };

    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        struct node *n;

        co_make();
        set64(L2 + 8, entries[i]);
        n = co_open_image("h.qcow2", "");
        assert_int_equal(co_try_read(n, CLUSTER, 512), -EIO);
        assert_int_equal(co_try_read(n, 0, 4 * CLUSTER), -EIO);
        assert_int_equal(co_try_write(n, CLUSTER, 512), -EIO);
        co_expect(n, 0, CLUSTER, 1);
        co_node_unref(n);
    }
}

/* ---- the header ---------------------------------------------------------- */

CO_TEST(a_dirty_image_is_repaired_when_it_is_opened_for_writing)
{
    struct node *n;
    uint8_t bits[8];

    co_make();
    set64(72, 1);
    n = co_open_image("h.qcow2", ", 'read-only': true");
    co_expect(n, 0, CLUSTER, 1);
    co_node_unref(n);
    assert_int_equal(run("qemu-io -r -f qcow2 -c 'read 0 1' h.qcow2"), 0);

    n = co_open_image("h.qcow2", "");
    co_expect(n, 0, CLUSTER, 1);
    co_fill(n, 0, CLUSTER, 2);
    co_node_unref(n);
    expect_clean("h.qcow2", false);
    file_read(work_path("h.qcow2"), 72, bits, sizeof(bits));
    assert_int_equal(bits[7], 0);

    /* What cannot be repaired stays as it is. */
    co_make();
    set64(72, 1);
    set64(L2 + 8, 0x8000000000000000ULL | 0x7000000000000ULL | 512);
    co_refused("is corrupt: it can only be opened read-only", false);
}

CO_TEST(an_unknown_feature_is_refused_by_name)
{
    co_make();
    set64(72, 1ULL << 40);
    co_refused("image uses incompatible feature bit 40 which", true);
    co_make();
    set64(32, 2ULL << 32 | 1);       /* crypt_method LUKS, and the size of the L1 table again */
    co_refused("encrypted qcow2 images are not supported (this one: LUKS)", true);
}

CO_TEST(what_is_no_image)
{
    make_file(work_path("h.qcow2"), 0);
    co_refused("not in qcow2 format", true);
    make_file(work_path("h.qcow2"), 3);
    co_refused("not in qcow2 format", true);
    make_file(work_path("h.qcow2"), MiB);
    co_refused("not in qcow2 format", false);
    co_make();
    must_run("truncate -s 100 h.qcow2");
    co_refused("cut short", true);
    co_make();
    must_run("truncate -s 200000 h.qcow2 && truncate -s 196608 h.qcow2");
    co_refused("could not read the L1 table", true);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_l2_entry_that_cannot_be_is_an_error_for_its_cluster_only),
        cmocka_unit_test(metadata_is_never_written_as_data),
        cmocka_unit_test(a_zero_cluster_kept_on_metadata_is_not_used),
        cmocka_unit_test(refcounts_that_call_metadata_free_do_no_harm),
        cmocka_unit_test(a_cluster_behind_the_end_of_the_file),
        cmocka_unit_test(freeing_what_is_free_stops_writing),
        cmocka_unit_test(l1_entries_that_cannot_be),
        cmocka_unit_test(an_l2_table_behind_the_end_of_the_file),
        cmocka_unit_test(two_tables_in_one_place),
        cmocka_unit_test(a_refcount_block_behind_the_end_of_the_file),
        cmocka_unit_test(rubbish_in_a_compressed_cluster),
        cmocka_unit_test(a_dirty_image_is_repaired_when_it_is_opened_for_writing),
        cmocka_unit_test(an_unknown_feature_is_refused_by_name),
        cmocka_unit_test(what_is_no_image),
    };

    return drivers_test_main(argc, argv, "hostile qcow2", tests, ARRAY_SIZE(tests));
}
