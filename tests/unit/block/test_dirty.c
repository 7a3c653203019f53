/* SPDX-License-Identifier: Apache-2.0
 *
 * Dirty bitmaps: what sets a bit and when (I-B1), freezing and thawing around a
 * backup, merging, sizes, and what a keeper is told.
 */
#include "block/keeper.h"
#include "co_test.h"
#include "memdrv.h"

#define SIZE (1u << 20)
#define GRAIN 4096u

static char buf[16384];

static struct node *co_open_disk(void)
{
    return co_test_open("{'driver':'test-mem','size':%u,'discard':'unmap'}", SIZE);
}

static struct dirty_bitmap *add(struct node *n, const char *name, uint32_t granularity)
{
    struct err err = ERR_INIT;
    struct dirty_bitmap *bm = dirty_bitmap_add(n, &(struct dirty_bitmap_opts){
        .name = name, .granularity = granularity }, &err);

    assert_non_null(bm);
    return bm;
}

static void add_fails(struct node *n, const char *name, uint32_t granularity, const char *words)
{
    struct err err = ERR_INIT;

    assert_null(dirty_bitmap_add(n, &(struct dirty_bitmap_opts){
        .name = name, .granularity = granularity }, &err));
    assert_non_null(strstr(err.text, words));
}

static struct bitmap *row_for(const struct dirty_bitmap *bm)
{
    struct err err = ERR_INIT;
    struct bitmap *row = dirty_bitmap_new_row(bm, &err);

    assert_non_null(row);
    return row;
}

static void freeze(struct dirty_bitmap *bm)
{
    dirty_bitmap_freeze(bm, row_for(bm));
}

static void added_body(void)
{
    CLEANUP(node_unref) struct node *n = co_open_disk();
    static char long_name[DIRTY_NAME_MAX + 2];
    struct err err = ERR_INIT;

    memset(long_name, 'x', DIRTY_NAME_MAX + 1);
    struct dirty_bitmap *a = add(n, "a", 0), *b = add(n, "b", 512);

    assert_int_equal(dirty_bitmap_granularity(a), 64 * KiB);
    add_fails(n, "a", 0, "already exists: a");
    add_fails(n, "", 0, "empty");
    add_fails(n, long_name, 0, "too long");
    add_fails(n, "c", 256, "power of 2");
    add_fails(n, "c", 3 * 512, "power of 2");
    assert_ptr_equal(dirty_bitmap_find(n, "b", &err), b);
    assert_ptr_equal(dirty_bitmap_next(n, a), b);
    dirty_bitmap_remove(a);
    assert_null(dirty_bitmap_find(n, "a", &err));
    assert_string_equal(err.text, "Dirty bitmap 'a' not found");
    assert_ptr_equal(dirty_bitmap_next(n, NULL), b);
}

static void added(void **state)
{
    in_loop(added_body);
}

static void recorded_body(void)
{
    CLEANUP(node_unref) struct node *n = co_open_disk();
    struct dirty_bitmap *bm = add(n, "b", GRAIN), *off = add(n, "off", GRAIN);

    dirty_bitmap_disable(off);
    assert_int_equal(co_node_pwrite(n, 4095, 2, buf, 0), 0);
    assert_int_equal(dirty_bitmap_count(bm), 2 * GRAIN);
    assert_int_equal(co_node_write_zeroes(n, 10 * GRAIN, GRAIN, 0), 0);
    assert_int_equal(co_node_discard(n, 20 * GRAIN, 3 * GRAIN), 0);
    assert_int_equal(co_node_pwrite(n, 40 * GRAIN, GRAIN, buf, REQ_WRITE_UNCHANGED), 0);
    assert_int_equal(co_node_pwrite(n, SIZE - 1, 1, buf, 0), 0);
    assert_int_equal(dirty_bitmap_count(bm), 7 * GRAIN);
    assert_true(bitmap_all_set(dirty_bitmap_bits(bm), 20, 3));
    assert_true(bitmap_test(dirty_bitmap_bits(bm), SIZE / GRAIN - 1));
    assert_int_equal(dirty_bitmap_count(off), 0);

    /* A write that failed may have changed something. */
    mem_of(n)->fails[MEM_WRITE] = -EIO;
    assert_int_equal(co_node_pwrite(n, 30 * GRAIN, 1, buf, 0), -EIO);
    assert_true(bitmap_test(dirty_bitmap_bits(bm), 30));
}

static void recorded(void **state)
{
    in_loop(recorded_body);
}

static void frozen_body(void)
{
    CLEANUP(node_unref) struct node *n = co_open_disk();
    struct dirty_bitmap *bm = add(n, "b", GRAIN);
    CLEANUP(bitmap_free) struct bitmap *still = bitmap_new(SIZE / GRAIN);
    struct err err = ERR_INIT;

    dirty_bitmap_set(bm, 0, 3 * GRAIN);
    freeze(bm);
    assert_false(dirty_bitmap_check(bm, 0, &err));
    assert_non_null(strstr(err.text, "in use by another operation"));
    assert_false(co_node_resize(n, SIZE / 2, &err));
    assert_int_equal(co_node_pwrite(n, 2 * GRAIN, 1, buf, 0), 0);
    assert_int_equal(co_node_pwrite(n, 7 * GRAIN, 1, buf, 0), 0);
    assert_int_equal(dirty_bitmap_count(bm), 3 * GRAIN);
    assert_true(dirty_bitmap_must_keep(bm, 0));
    assert_true(dirty_bitmap_must_keep(bm, 7));

    /* 0 is copied, 1 is not; 2 is, but was written since. */
    bitmap_set_bit(still, 1);
    dirty_bitmap_thaw(bm, still);
    assert_int_equal(dirty_bitmap_count(bm), 3 * GRAIN);
    assert_false(bitmap_test(dirty_bitmap_bits(bm), 0));
    assert_true(bitmap_all_set(dirty_bitmap_bits(bm), 1, 2));
    assert_true(dirty_bitmap_check(bm, 0, &err));

    freeze(bm);
    dirty_bitmap_thaw(bm, dirty_bitmap_bits(bm));
    assert_int_equal(dirty_bitmap_count(bm), 3 * GRAIN);
    freeze(bm);
    dirty_bitmap_thaw(bm, NULL);
    assert_int_equal(dirty_bitmap_count(bm), 0);
}

static void frozen(void **state)
{
    in_loop(frozen_body);
}

static void merged_body(void)
{
    CLEANUP(node_unref) struct node *n = co_open_disk();
    struct dirty_bitmap *fine = add(n, "fine", GRAIN), *coarse = add(n, "coarse", 4 * GRAIN);

    dirty_bitmap_set(fine, 5 * GRAIN, 1);
    dirty_bitmap_merge(coarse, fine);
    assert_int_equal(dirty_bitmap_count(coarse), 4 * GRAIN);
    dirty_bitmap_set(coarse, SIZE - 1, 1);
    dirty_bitmap_merge(fine, coarse);
    assert_int_equal(dirty_bitmap_count(fine), 8 * GRAIN);
    assert_true(bitmap_all_set(dirty_bitmap_bits(fine), 4, 4));

    CLEANUP(bitmap_free) struct bitmap *were = dirty_bitmap_clear(fine, row_for(fine));

    assert_int_equal(dirty_bitmap_count(fine), 0);
    dirty_bitmap_add_bits(fine, were);
    assert_int_equal(dirty_bitmap_count(fine), 8 * GRAIN);
}

static void merged(void **state)
{
    in_loop(merged_body);
}

static void resized_body(void)
{
    CLEANUP(node_unref) struct node *n = co_open_disk();
    struct dirty_bitmap *bm = add(n, "b", GRAIN);
    struct err err = ERR_INIT;

    dirty_bitmap_set(bm, 3 * GRAIN, 1);
    dirty_bitmap_set(bm, SIZE - 2 * GRAIN, 2 * GRAIN);
    assert_true(co_node_resize(n, SIZE - GRAIN, &err));
    assert_int_equal(dirty_bitmap_count(bm), 2 * GRAIN);

    /* What is added is written, from the middle of a granule, unless nothing is recorded. */
    struct dirty_bitmap *off = add(n, "off", 8 * GRAIN);

    dirty_bitmap_disable(off);
    dirty_bitmap_set(off, SIZE - 2 * GRAIN, 1);
    assert_true(co_node_resize(n, SIZE, &err));
    assert_int_equal(dirty_bitmap_count(bm), 3 * GRAIN);
    assert_true(bitmap_test(dirty_bitmap_bits(bm), SIZE / GRAIN - 1));
    assert_int_equal(dirty_bitmap_count(off), 8 * GRAIN);
    assert_true(co_node_resize(n, SIZE - 1, &err));
    assert_int_equal(dirty_bitmap_count(bm), 3 * GRAIN);
    assert_true(co_node_resize(n, 1, &err));
    assert_int_equal(dirty_bitmap_count(bm), 0);
    assert_true(co_node_resize(n, 0, &err));
    assert_true(co_node_resize(n, 3 * GRAIN, &err));
    assert_int_equal(dirty_bitmap_count(bm), 3 * GRAIN);
    assert_int_equal(dirty_bitmap_count(off), 0);
}

static void resized(void **state)
{
    in_loop(resized_body);
}

/* ---- keepers --------------------------------------------------------------------- */

struct notes {
    struct dirty_keeper k;
    struct node *n;
    unsigned before, set, cleared, changed, removed, settled, moved, flushed, closed;
    uint64_t first, count;
};

static void co_note_before(struct dirty_keeper *k, uint64_t off, uint64_t len)
{
    struct notes *notes = container_of(k, struct notes, k);

    co_yield_times(3);
    assert_int_equal(mem_count(mem_of(notes->n), MEM_WRITE), 0);
    notes->before++;
}

static void note_set(struct dirty_keeper *k, struct dirty_bitmap *bm, uint64_t first,
                     uint64_t count)
{
    struct notes *notes = container_of(k, struct notes, k);

    assert_int_equal(mem_count(mem_of(notes->n), MEM_WRITE), 0);
    assert_true(dirty_bitmap_must_keep(bm, first));
    notes->set++;
    notes->first = first;
    notes->count = count;
}

static void note_cleared(struct dirty_keeper *k, struct dirty_bitmap *bm)
{
    struct notes *notes = container_of(k, struct notes, k);

    assert_false(dirty_bitmap_must_keep(bm, notes->first));
    notes->cleared++;
}

static void co_note_flush(struct dirty_keeper *k)
{
    container_of(k, struct notes, k)->flushed++;
}

static void note_changed(struct dirty_keeper *k, struct dirty_bitmap *bm)
{
    assert_true(dirty_bitmap_persistent(bm));
    container_of(k, struct notes, k)->changed++;
}

static void note_removed(struct dirty_keeper *k, struct dirty_bitmap *bm)
{
    container_of(k, struct notes, k)->removed++;
}

static bool co_note_settle(struct dirty_keeper *k, struct err *err)
{
    container_of(k, struct notes, k)->settled++;
    return err_set(err, -EIO, "not kept");
}

static void co_note_moved(struct dirty_keeper *k)
{
    container_of(k, struct notes, k)->moved++;
}

static void co_note_close(struct dirty_keeper *k)
{
    container_of(k, struct notes, k)->closed++;
}

static const struct dirty_keeper_ops note_ops = {
    .co_before_write = co_note_before,
    .co_before_flush = co_note_flush,
    .bits_set = note_set,
    .bits_cleared = note_cleared,
    .changed = note_changed,
    .removed = note_removed,
    .co_settle = co_note_settle,
    .co_detach = co_note_moved,
    .co_attach = co_note_moved,
    .co_close = co_note_close,
};

static void kept_body(void)
{
    struct node *n = co_open_disk();
    struct notes notes = { .k.ops = &note_ops, .n = n };
    struct err err = ERR_INIT;

    add(n, "volatile", GRAIN);
    struct dirty_bitmap *bm = dirty_bitmap_add(n, &(struct dirty_bitmap_opts){
        .name = "b", .granularity = GRAIN, .persistent = true }, &err);

    assert_non_null(bm);
    node_set_dirty_keeper(n, &notes.k);
    assert_int_equal(co_node_pwrite(n, 5 * GRAIN, 2 * GRAIN, buf, 0), 0);
    assert_int_equal(notes.before, 1);
    assert_int_equal(notes.set, 1);
    assert_int_equal(notes.first, 5);
    assert_int_equal(notes.count, 2);
    mem_clear_log(mem_of(n));
    assert_int_equal(co_node_pwrite(n, 5 * GRAIN, 1, buf, 0), 0);
    assert_int_equal(notes.before, 2);
    assert_int_equal(notes.set, 1);      /* nothing new */
    freeze(bm);
    assert_int_equal(notes.cleared, 0);
    dirty_bitmap_thaw(bm, NULL);
    assert_int_equal(notes.cleared, 1);

    assert_int_equal(notes.changed, 0);
    dirty_bitmap_disable(bm);
    dirty_bitmap_enable(bm);
    dirty_bitmap_spoil(bm, "for a test");
    struct bitmap *bits = bitmap_new(SIZE / GRAIN);

    bitmap_set(bits, 5, 2);
    dirty_bitmap_mend(bm, bits);
    assert_int_equal(dirty_bitmap_next_kept(bm, 0), 5);
    assert_int_equal(dirty_bitmap_next_kept(bm, 7), SIZE / GRAIN);
    assert_int_equal(notes.changed, 4);
    assert_null(dirty_bitmap_inconsistent(bm));
    assert_int_equal(dirty_bitmap_count(bm), 2 * GRAIN);
    assert_true(co_node_resize(n, SIZE - 1, &err));
    assert_int_equal(notes.changed, 5);
    assert_int_equal(co_node_flush(n), 0);
    assert_int_equal(notes.flushed, 1);
    assert_true(co_dirty_keep(n, &err));
    assert_false(co_dirty_settle(n, &err));
    assert_int_equal(notes.settled, 1);
    dirty_bitmap_remove(bm);
    assert_int_equal(notes.removed, 1);
    dirty_bitmap_remove(dirty_bitmap_find(n, "volatile", NULL));
    assert_int_equal(notes.removed, 1);
    co_node_unref(n);
    assert_int_equal(notes.closed, 1);
}

static void kept(void **state)
{
    in_loop(kept_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(added),
        cmocka_unit_test(recorded),
        cmocka_unit_test(frozen),
        cmocka_unit_test(merged),
        cmocka_unit_test(resized),
        cmocka_unit_test(kept),
    };

    memdrv_register();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
