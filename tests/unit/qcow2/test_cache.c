/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: the parts that keep metadata in memory keep it: the cache of slices with
 * its freeze, write, thaw; the tables; the set of metadata clusters.
 * Method: a store in memory under the cache, whose loads and stores can be held
 * and made to fail; random work against a plain array.
 */
#include "drivers/qcow2/cache.h"
#include "drivers/qcow2/metaset.h"
#include "drivers/qcow2/table.h"
#include "qcow2_test.h"

#define SLICE 512U
#define SLICES 64U

static struct {
    unsigned char data[SLICES * SLICE];
    unsigned loads, stores;
    int fail_load, fail_store;
    bool hold;
    struct waitq gate;
    struct qcow2_cache *cache;
} file;

static int co_load(void *ctx, uint64_t off, void *buf)
{
    file.loads++;
    while (file.hold)
        co_waitq_wait(&file.gate);
    if (file.fail_load)
        return file.fail_load;
    memcpy(buf, file.data + off, SLICE);
    return 0;
}

static int co_store(void *ctx, uint64_t off, const void *buf)
{
    file.stores++;
    while (file.hold)
        co_waitq_wait(&file.gate);
    if (file.fail_store)
        return file.fail_store;
    memcpy(file.data + off, buf, SLICE);
    return 0;
}

static int co_write_back(void)
{
    int r;

    qcow2_cache_freeze(file.cache);
    r = co_qcow2_cache_write_frozen(file.cache);
    qcow2_cache_thaw(file.cache, r == 0);
    return r;
}

static int co_make_room(void *ctx)
{
    return co_write_back();
}

static const struct qcow2_cache_ops ops = { co_load, co_store, co_make_room };

static void new_cache(unsigned entries)
{
    memset(&file, 0, sizeof(file));
    waitq_init(&file.gate);
    file.cache = qcow2_cache_new(&ops, NULL, SLICE, entries);
}

static void let_go(void)
{
    file.hold = false;
    waitq_wake_all(&file.gate);
}

static void co_set(uint64_t slice, unsigned char byte)
{
    const void *have;
    void *data;

    assert_int_equal(co_qcow2_cache_get(file.cache, slice * SLICE, &have), 0);
    assert_int_equal(qcow2_cache_modify(file.cache, slice * SLICE, &data), 0);
    memset(data, byte, SLICE);
}

static unsigned char co_get(uint64_t slice)
{
    const unsigned char *have;

    assert_int_equal(co_qcow2_cache_get(file.cache, slice * SLICE, (const void **)&have), 0);
    return have[SLICE - 1];
}

struct getter {
    uint64_t slice;
    int result;
    unsigned char byte;
};

static void co_getter(void *arg)
{
    struct getter *g = arg;
    const unsigned char *have;

    g->result = co_qcow2_cache_get(file.cache, g->slice * SLICE, (const void **)&have);
    if (g->result == 0)
        g->byte = have[0];
}

CO_TEST(a_slice_is_loaded_once_whoever_asks)
{
    struct getter getters[8] = { 0 };
    struct crew crew = { 0 };

    new_cache(16);
    memset(file.data + 3 * SLICE, 7, SLICE);
    file.hold = true;
    for (int i = 0; i < 8; i++) {
        getters[i].slice = 3;
        crew_start(&crew, co_getter, &getters[i]);
    }
    co_yield_times(3);
    assert_null(qcow2_cache_find(file.cache, 3 * SLICE));
    let_go();
    co_crew_wait(&crew);
    for (int i = 0; i < 8; i++)
        assert_int_equal(getters[i].byte, 7);
    assert_int_equal(file.loads, 1);
    assert_non_null(qcow2_cache_find(file.cache, 3 * SLICE));
    qcow2_cache_free(file.cache);
}

CO_TEST(a_load_that_fails_is_tried_again_by_who_wants_it)
{
    struct getter getters[3] = { { .slice = 1 }, { .slice = 1 }, { .slice = 1 } };
    struct crew crew = { 0 };

    new_cache(16);
    file.fail_load = -EIO;
    for (int i = 0; i < 3; i++)
        crew_start(&crew, co_getter, &getters[i]);
    co_crew_wait(&crew);
    for (int i = 0; i < 3; i++)
        assert_int_equal(getters[i].result, -EIO);
    file.fail_load = 0;
    assert_int_equal(co_get(1), 0);
    qcow2_cache_free(file.cache);
}

CO_TEST(the_least_recently_used_goes_first)
{
    new_cache(8);
    for (uint64_t i = 0; i < 8; i++)
        co_get(i);
    co_get(0);
    co_get(8);                           /* pushes 1 out */
    assert_non_null(qcow2_cache_find(file.cache, 0));
    assert_null(qcow2_cache_find(file.cache, SLICE));
    assert_int_equal(file.loads, 9);
    qcow2_cache_free(file.cache);
}

CO_TEST(dirty_slices_are_written_before_they_go)
{
    new_cache(8);
    for (uint64_t i = 0; i < 40; i++)
        co_set(i, (unsigned char)(i + 1));
    for (uint64_t i = 0; i < 40; i++)
        assert_int_equal(co_get(i), i + 1);
    assert_int_equal(co_write_back(), 0);
    for (uint64_t i = 0; i < 40; i++)
        assert_int_equal(file.data[i * SLICE], i + 1);
    assert_false(qcow2_cache_is_dirty(file.cache));
    qcow2_cache_free(file.cache);
}

static void co_background_write_back(void *arg)
{
    *(int *)arg = co_write_back();
}

/* A write-back has the content of the moment at which it began. */
CO_TEST(what_changes_while_it_is_written_is_written_as_it_was)
{
    struct crew crew = { 0 };
    int r = -1;

    new_cache(16);
    co_set(2, 10);
    file.hold = true;
    crew_start(&crew, co_background_write_back, &r);
    co_yield_times(3);
    assert_true(qcow2_cache_has_frozen(file.cache));
    co_set(2, 11);
    co_set(2, 12);
    assert_int_equal(co_get(2), 12);
    let_go();
    co_crew_wait(&crew);
    assert_int_equal(r, 0);
    assert_int_equal(file.data[2 * SLICE], 10);
    assert_true(qcow2_cache_is_dirty(file.cache));
    assert_int_equal(co_write_back(), 0);
    assert_int_equal(file.data[2 * SLICE], 12);
    qcow2_cache_free(file.cache);
}

CO_TEST(after_a_failed_write_back_all_of_it_is_dirty)
{
    new_cache(16);
    for (uint64_t i = 0; i < 12; i++)
        co_set(i, 5);
    file.fail_store = -ENOSPC;
    assert_int_equal(co_write_back(), -ENOSPC);
    file.fail_store = 0;
    file.stores = 0;
    assert_int_equal(co_write_back(), 0);
    assert_int_equal(file.stores, 12);
    for (uint64_t i = 0; i < 12; i++)
        assert_int_equal(file.data[i * SLICE], 5);
    qcow2_cache_free(file.cache);
}

CO_TEST(dropped_slices_are_not_written_and_not_found)
{
    struct crew crew = { 0 };
    struct getter g = { .slice = 9 };
    const void *have;

    new_cache(16);
    co_set(1, 5);
    co_get(2);
    qcow2_cache_drop(file.cache, 0, 4 * SLICE);
    assert_null(qcow2_cache_find(file.cache, SLICE));
    assert_false(qcow2_cache_is_dirty(file.cache));

    /* Zeros are put in without a load. */
    file.loads = 0;
    assert_int_equal(co_qcow2_cache_put_zero(file.cache, SLICE), 0);
    assert_int_equal(co_qcow2_cache_get(file.cache, SLICE, &have), 0);
    assert_int_equal(file.loads, 0);

    /* Whatever the cache has of another time. */
    co_set(1, 5);
    assert_int_equal(co_qcow2_cache_put_zero(file.cache, SLICE), 0);
    assert_int_equal(*(const uint8_t *)qcow2_cache_find(file.cache, SLICE), 0);
    assert_false(qcow2_cache_has_dirty(file.cache, 0, 4 * SLICE));

    /* One that is dropped while it is loaded is loaded afresh. */
    file.hold = true;
    crew_start(&crew, co_getter, &g);
    co_yield_times(3);
    qcow2_cache_drop(file.cache, 9 * SLICE, SLICE);
    file.data[9 * SLICE] = 77;
    let_go();
    co_crew_wait(&crew);
    assert_int_equal(g.byte, 77);
    assert_int_equal(file.loads, 2);
    qcow2_cache_free(file.cache);
}

static uint64_t seed;

static void co_random_user(void *arg)
{
    unsigned char *shadow = arg;

    for (int i = 0; i < 300; i++) {
        uint64_t slice = test_random(&seed, SLICES);

        if (test_random(&seed, 3) == 0) {
            unsigned char byte = (unsigned char)test_random(&seed, 256);

            co_set(slice, byte);
            shadow[slice] = byte;
        } else {
            unsigned char got = co_get(slice);

            assert_int_equal(got, shadow[slice]);
        }
        if (test_random(&seed, 10) == 0)
            co_yield();
    }
}

CO_TEST(many_users_of_a_small_cache_see_what_was_written)
{
    static unsigned char shadow[SLICES];
    struct crew crew = { 0 };

    seed = test_seed(3);
    memset(shadow, 0, sizeof(shadow));
    new_cache(8);
    for (int i = 0; i < 6; i++)
        crew_start(&crew, co_random_user, shadow);
    co_crew_wait(&crew);
    assert_int_equal(co_write_back(), 0);
    for (unsigned i = 0; i < SLICES; i++)
        assert_int_equal(file.data[i * SLICE], shadow[i]);
    qcow2_cache_free(file.cache);
}

/* ---- tables ---------------------------------------------------------------- */

static unsigned char disk[1200 * 8];
static int table_error;

static int co_write_disk(void *ctx, uint64_t off, const void *buf, uint32_t bytes)
{
    if (table_error)
        return table_error;
    assert_true(off >= 4096 && off - 4096 + bytes <= sizeof(disk));
    memcpy(disk + (off - 4096), buf, bytes);
    return 0;
}

static int co_store_table(struct qcow2_table *t)
{
    int r;

    assert_int_equal(qcow2_table_freeze(t), 0);
    r = co_qcow2_table_write_frozen(t, co_write_disk, NULL);
    qcow2_table_thaw(t, r == 0);
    return r;
}

CO_TEST(a_table_writes_what_changed)
{
    struct qcow2_table t, again;

    assert_int_equal(qcow2_table_init(&t, 4096, 1100), 0);
    qcow2_table_set(&t, 3, 30);
    qcow2_table_set(&t, 1099, 40);
    assert_int_equal(qcow2_table_freeze(&t), 0);
    qcow2_table_set(&t, 3, 31);            /* after the freeze */
    assert_int_equal(co_qcow2_table_write_frozen(&t, co_write_disk, NULL), 0);
    qcow2_table_thaw(&t, true);
    assert_int_equal(qcow2_table_init(&again, 4096, 1100), 0);
    qcow2_table_decode(&again, disk);
    assert_int_equal(again.v[3], 30);
    assert_int_equal(again.v[1099], 40);
    table_error = -EIO;
    assert_int_equal(co_store_table(&t), -EIO);
    assert_true(qcow2_table_is_dirty(&t));
    table_error = 0;
    assert_int_equal(qcow2_table_lengthen(&t, 1200), 0);
    qcow2_table_set(&t, 1150, 50);
    assert_int_equal(co_store_table(&t), 0);
    assert_false(qcow2_table_is_dirty(&t));
    qcow2_table_decode(&again, disk);
    assert_int_equal(again.v[3], 31);
    qcow2_table_done(&again);
    qcow2_table_done(&t);
}

/* ---- the set --------------------------------------------------------------- */

CO_TEST(a_set_of_clusters_against_an_array)
{
    enum { CLUSTERS = 3000 };
    static bool shadow[CLUSTERS];
    struct qcow2_metaset m;
    size_t n = 0;

    seed = test_seed(4);
    assert_int_equal(qcow2_metaset_init(&m, 0), 0);
    for (int i = 0; i < 60000; i++) {
        uint64_t c = 1 + test_random(&seed, CLUSTERS - 1);

        if (test_random(&seed, 5) < 2) {
            assert_int_equal(qcow2_metaset_add(&m, c << 20), 0);
            shadow[c] = true;
        } else {
            qcow2_metaset_remove(&m, c << 20);
            shadow[c] = false;
        }
    }
    for (uint64_t c = 1; c < CLUSTERS; c++) {
        assert_int_equal(qcow2_metaset_has(&m, c << 20), shadow[c]);
        n += shadow[c];
    }
    assert_int_equal(m.n, n);
    qcow2_metaset_done(&m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slice_is_loaded_once_whoever_asks),
        cmocka_unit_test(a_load_that_fails_is_tried_again_by_who_wants_it),
        cmocka_unit_test(the_least_recently_used_goes_first),
        cmocka_unit_test(dirty_slices_are_written_before_they_go),
        cmocka_unit_test(what_changes_while_it_is_written_is_written_as_it_was),
        cmocka_unit_test(after_a_failed_write_back_all_of_it_is_dirty),
        cmocka_unit_test(dropped_slices_are_not_written_and_not_found),
        cmocka_unit_test(many_users_of_a_small_cache_see_what_was_written),
        cmocka_unit_test(a_table_writes_what_changed),
        cmocka_unit_test(a_set_of_clusters_against_an_array),
    };

    return drivers_test_main(argc, argv, "qcow2 metadata in memory", tests, ARRAY_SIZE(tests));
}
