/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: bitmaps that an image stores are dirty bitmaps of its node while it is open, and
 * QEMU goes on with them afterwards; what cannot be trusted never looks valid; hostile
 * images do not take memory by them.
 * Method: images of QEMU's, opened, written and closed here; QEMU says what they have then.
 */
#include "base/bytes.h"
#include "block/dirty.h"
#include "drivers/qcow2/bitmaps.h"
#include "drivers/qcow2/qcow2.h"
#include "drivers/qcow2/snapshot.h"
#include "drivers/fault.h"
#include "kept_bitmaps.h"

#define SIZE (8 * MiB + 512)

static void qemu_make(void)
{
    must_run("rm -f b.qcow2 b.qcow2.bitmaps && qemu-img create -q -f qcow2 b.qcow2 %llu && "
             "qemu-img bitmap --add -g 64k b.qcow2 b64 && "
             "qemu-img bitmap --add -g 512 b.qcow2 b512 && "
             "qemu-img bitmap --add -g 4k --disable b.qcow2 off && "
             "qemu-io -f qcow2 -c 'write 1M 64k' b.qcow2", SIZE);
}

static struct dirty_bitmap *find(struct node *n, const char *name)
{
    struct err err = ERR_INIT;
    struct dirty_bitmap *bm = dirty_bitmap_find(n, name, &err);

    if (!bm)
        fail_msg("%s", err.text);
    return bm;
}

static struct dirty_bitmap *add(struct node *n, const char *name, uint32_t granularity)
{
    struct err err = ERR_INIT;
    struct dirty_bitmap *bm = dirty_bitmap_add(n, &(struct dirty_bitmap_opts){
        .name = name, .granularity = granularity, .persistent = true }, &err);

    if (!bm)
        fail_msg("%s", err.text);
    return bm;
}

static void add_fails(struct node *n, const char *name, uint32_t granularity, const char *words)
{
    struct err err = ERR_INIT;

    const struct dirty_bitmap_opts o = { .name = name, .granularity = granularity,
                                         .persistent = true };

    assert_false(dirty_bitmap_can_keep(n, &o, &err));
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

/* What QEMU says of it: its flags and how many bits are set. */
static void expect_in(const char *image, const char *name, const char *flags, uint64_t granularity,
                      uint64_t count)
{
    must_run("qemu-img info -U --output=json %s | python3 -c 'import json, sys; "
             "print([\",\".join(b[\"flags\"]) for b in json.load(sys.stdin)[\"format-specific\"]"
             "[\"data\"].get(\"bitmaps\", []) if b[\"name\"] == \"%s\"])'", image, name);
    if (!strstr(run_output(), flags ? test_text("['%s']", flags) : "[]"))
        fail_msg("%s: %s", name, run_output());
    if (!flags || strstr(flags, "in-use"))
        return;

    struct node *n = co_open_image(image, ", 'read-only': true");
    CLEANUP(bitmap_free) struct bitmap *theirs = qemu_bits(image, name, granularity, node_size(n));

    assert_true(same_bits(theirs, dirty_bitmap_bits(find(n, name))));
    assert_int_equal(bitmap_count(theirs), count);
    co_node_unref(n);
}

static void expect(const char *name, const char *flags, uint64_t granularity, uint64_t count)
{
    expect_in("b.qcow2", name, flags, granularity, count);
}

/* The same of what a crash now would leave. */
static void expect_after_crash(const char *name, const char *flags, uint64_t granularity,
                               uint64_t count)
{
    must_run("cp b.qcow2 crashed.qcow2");
    expect_in("crashed.qcow2", name, flags, granularity, count);
}

CO_TEST(bitmaps_of_qemu_are_followed)
{
    struct node *n;
    struct dirty_bitmap *bm;

    qemu_make();
    n = co_open_image("b.qcow2", "");
    assert_int_equal(dirty_bitmap_count(find(n, "b64")), 64 * KiB);
    assert_int_equal(dirty_bitmap_granularity(find(n, "b512")), 512);
    assert_true(dirty_bitmap_enabled(find(n, "b512")));
    assert_true(dirty_bitmap_persistent(find(n, "b512")));
    assert_false(dirty_bitmap_enabled(find(n, "off")));
    co_fill(n, 3 * MiB, 1000, 1);
    co_fill(n, SIZE - 1, 1, 1);
    expect("b64", "in-use,auto", 0, 0);
    co_node_unref(n);
    expect_clean("b.qcow2", false);
    expect("b64", "auto", 65536, 3);
    expect("b512", "auto", 512, 128 + 2 + 1);
    expect("off", "", 4096, 0);

    /* QEMU goes on, and we again; one is cleared, one made, one removed. */
    must_run("qemu-io -f qcow2 -c 'write 4M 64k' b.qcow2");
    n = co_open_image("b.qcow2", "");
    bm = find(n, "b512");
    assert_int_equal(dirty_bitmap_count(bm), 128 * 512 + 131 * 512);
    bitmap_free(dirty_bitmap_clear(bm, dirty_bitmap_new_row(bm, NULL)));
    add(n, "new", 1u << 31);
    assert_true(co_dirty_bitmap_unkeep(n, "off", NULL));
    assert_true(co_dirty_bitmap_unkeep(n, "off", NULL));
    dirty_bitmap_remove(find(n, "off"));
    co_fill(n, 0, 1, 1);
    co_node_unref(n);
    expect_clean("b.qcow2", false);
    expect("b64", "auto", 65536, 5);
    expect("b512", "auto", 512, 1);
    expect("new", "auto", 1ULL << 31, 1);
    expect("off", NULL, 0, 0);
    must_run("qemu-img bitmap --add -g 512 b.qcow2 sum && qemu-img bitmap --merge new "
             "--merge b512 --disable b.qcow2 sum");
}

/* Nothing is written to an image for bitmaps that are in it as they are. */
CO_TEST(what_is_stored_is_not_stored_again)
{
    struct node *n;

    qemu_make();
    must_run("cp b.qcow2 as_it_was");
    n = co_open_image("b.qcow2", "");
    co_expect(n, 0, MiB, 0);
    co_node_unref(n);
    n = co_open_image("b.qcow2", ", 'read-only': true");
    assert_int_equal(dirty_bitmap_count(find(n, "b64")), 64 * KiB);
    add_fails(n, "x", 0, "read-only");
    assert_false(dirty_bitmap_check(find(n, "b64"), 0, NULL));
    co_node_unref(n);
    must_run("cmp b.qcow2 as_it_was");
}

/* I-B7 */
CO_TEST(the_file_of_an_image_keeps_none)
{
    struct err err = ERR_INIT;
    struct node *n, *file;

    qemu_make();
    n = co_open_image("b.qcow2", "");
    assert_null(dirty_bitmap_add(edge_node(n->file), &(struct dirty_bitmap_opts){ .name = "x" },
                                 &err));
    assert_non_null(strstr(err.text, "keep the bitmap at"));
    co_node_unref(n);
    file = co_test_open("{'driver':'file','node-name':'f','filename':'%s'}",
                        work_path("b.qcow2"));
    assert_non_null(dirty_bitmap_add(file, &(struct dirty_bitmap_opts){ .name = "x" }, &err));
    co_test_open_fails(&err, "{'driver':'qcow2','file':'f'}");
    assert_non_null(strstr(err.text, "has dirty bitmaps"));
    co_node_unref(file);
}

/* Changes by command are on the disk, or known to be missing there, after a crash. */
CO_TEST(a_crash_leaves_no_bitmap_that_lacks_something)
{
    struct node *n;
    struct dirty_bitmap *off;

    qemu_make();
    n = co_open_image("b.qcow2", "");
    off = find(n, "off");
    assert_true(co_dirty_bitmap_outdate(off, NULL));
    expect("off", "in-use", 0, 0);
    dirty_bitmap_merge(off, find(n, "b64"));
    dirty_bitmap_enable(off);
    co_fill(n, 0, 1, 1);
    co_node_unref(n);
    expect("off", "auto", 4096, 17);
    expect_clean("b.qcow2", false);

    /* One that missed something is not valid again. */
    n = co_open_image("b.qcow2", "");
    dirty_bitmap_spoil(find(n, "off"), "of a test");
    co_node_unref(n);
    expect("off", "in-use,auto", 0, 0);
    n = co_open_image("b.qcow2", "");
    /* The file beside the image remembers why. */
    assert_string_equal(dirty_bitmap_inconsistent(find(n, "off")), "of a test");
    assert_false(dirty_bitmap_check(find(n, "off"), 0, NULL));
    co_fill(n, 0, MiB, 1);
    assert_true(co_node_resize(n, SIZE + 512, NULL));
    co_node_unref(n);
    expect("off", "in-use,auto", 0, 0);
    expect("b64", "auto", 65536, 17 + 1);       /* 1M itself was dirty, the end is now */
    n = co_open_image("b.qcow2", "");
    assert_true(co_dirty_bitmap_unkeep(n, "off", NULL));
    dirty_bitmap_remove(find(n, "off"));
    co_node_unref(n);
    expect("off", NULL, 0, 0);
    expect_clean("b.qcow2", false);
}

CO_TEST(a_snapshot_that_is_gone_back_to_spoils_them)
{
    struct node *n;

    qemu_make();
    must_run("qemu-img snapshot -c s b.qcow2");
    n = co_open_image("b.qcow2", ", 'read-only': true, 'snapshot': 's'");
    assert_null(dirty_bitmap_next(n, NULL));
    co_node_unref(n);
    n = co_open_image("b.qcow2", "");
    co_fill(n, 0, MiB, 1);
    assert_true(co_qcow2_snapshot_apply(n, "s", NULL));
    co_fill(n, 0, 512, 1);
    co_node_unref(n);
    expect("b64", "in-use,auto", 0, 0);
    expect("off", "", 4096, 0);
    expect_clean("b.qcow2", false);
}

CO_TEST(what_cannot_be_kept_is_refused)
{
    static char name[QCOW2_BITMAP_NAME_MAX + 2];
    struct node *n;

    must_run("qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 1M && "
             "qemu-img create -q -f qcow2 -o cluster_size=2M large.qcow2 1P");
    n = co_open_image("v2.qcow2", "");
    add_fails(n, "x", 0, "in qcow2 v2 files");
    co_node_unref(n);
    n = co_open_image("large.qcow2", "");
    add_fails(n, "x", 64 * KiB, "larger granularity");
    memset(name, 'n', QCOW2_BITMAP_NAME_MAX + 1);
    add_fails(n, name, 1 * MiB, "name");
    name[QCOW2_BITMAP_NAME_MAX] = 0;
    add(n, name, 2 * MiB);
    add_fails(n, name, 2 * MiB, "already exists");
    co_fill(n, (1ULL << 50) - 1, 1, 1);
    co_node_unref(n);
    n = co_open_image("large.qcow2", "");
    assert_int_equal(dirty_bitmap_count(find(n, name)), 2 * MiB);
    co_node_unref(n);
    n = co_test_open("{'driver': 'file', 'filename': '%s'}", work_path("v2.qcow2"));
    add_fails(n, "x", 0, "Can't store persistent bitmaps");
    co_node_unref(n);
}

/* Full disks and broken ones: nothing valid that lacks something, and what is lost is said. */
CO_TEST(a_failing_store_is_told)
{
    struct node *fault, *n;
    struct err err = ERR_INIT;

    qemu_make();
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'file': {'driver': 'file', "
                         "'filename': '%s'}}", work_path("b.qcow2"));
    n = co_test_open("{'driver': 'qcow2', 'file': 'fault'}");
    co_fill(n, 0, 1, 1);
    assert_int_equal(co_node_flush(n), 0);
    fault_add_rule(fault, &(struct fault_rule){ .op = FAULT_WRITE, .error = -ENOSPC });
    assert_false(co_dirty_bitmaps_store(n, &err));
    assert_non_null(strstr(err.text, "No space left"));
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("b.qcow2", true);
    expect("b64", "in-use,auto", 0, 0);
    expect("off", "", 4096, 0);
}

/* ---- storing while something else goes on ------------------------------------------ */

static struct node *fault;

static struct node *co_open_over_fault(void)
{
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'file': {'driver': 'file', "
                         "'filename': '%s'}}", work_path("b.qcow2"));
    return co_test_open("{'driver': 'qcow2', 'file': 'fault'}");
}

static void hang_once(enum fault_op op)
{
    fault_add_rule(fault, &(struct fault_rule){ .op = op, .hang = true, .once = true });
}

static void co_until_hung(void)
{
    while (!fault_hung(fault))
        co_yield();
}

static void co_write_start(void *arg)
{
    co_fill(arg, 0, 512, 1);
}

static void co_write_more(void *arg)
{
    co_fill(arg, 4 * MiB, 512, 1);
}

static void co_store(void *arg)
{
    assert_true(co_dirty_bitmaps_store(arg, NULL));
}

/* I-B8: what is stored has the bits of writes that are on their way, and of one that comes
 * it is said before that the bitmaps lack it. */
CO_TEST(bitmaps_stored_beside_writes_lack_none)
{
    struct crew crew = { 0 }, late = { 0 };
    struct node *n;

    qemu_make();
    n = co_open_over_fault();
    co_fill(n, MiB, 512, 1);
    hang_once(FAULT_WRITE);
    crew_start(&crew, co_write_start, n);
    co_until_hung();
    assert_true(co_dirty_bitmaps_store(n, NULL));
    expect_after_crash("b64", "auto", 65536, 2);
    expect_after_crash("b512", "auto", 512, 128 + 1);
    fault_release(fault);
    co_crew_wait(&crew);

    /* Now one that comes while the bits are on their way. */
    co_fill(n, 0, 512, 2);
    expect_after_crash("b64", "in-use,auto", 0, 0);
    hang_once(FAULT_WRITE);
    crew_start(&crew, co_store, n);
    co_until_hung();
    crew_start(&late, co_write_more, n);
    for (int i = 0; i < 100; i++)
        co_yield();
    assert_false(dirty_bitmap_check(find(n, "b64"), 0, NULL));      /* in use */
    assert_false(co_node_resize(n, SIZE + 512, NULL));
    fault_release(fault);
    co_crew_wait(&crew);
    co_crew_wait(&late);
    assert_true(dirty_bitmap_check(find(n, "b64"), 0, NULL));
    expect_after_crash("b64", "in-use,auto", 0, 0);
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("b.qcow2", false);
    expect("b64", "auto", 65536, 3);
    expect("b512", "auto", 512, 128 + 2);
}

/* Of a backup's bitmap half the bits are set aside. */
CO_TEST(a_bitmap_in_use_is_not_stored)
{
    struct err err = ERR_INIT;
    struct node *n;

    qemu_make();
    n = co_open_over_fault();
    dirty_bitmap_freeze(find(n, "b64"), dirty_bitmap_new_row(find(n, "b64"), NULL));
    co_fill(n, 0, 512, 1);
    assert_false(co_dirty_bitmaps_store(n, &err));
    assert_non_null(strstr(err.text, "'b64' is currently in use"));
    expect_after_crash("b64", "in-use,auto", 0, 0);
    expect_after_crash("b512", "auto", 512, 128 + 1);
    dirty_bitmap_thaw(find(n, "b64"), dirty_bitmap_bits(find(n, "b64")));
    co_node_unref(n);
    co_node_unref(fault);
    expect("b64", "auto", 65536, 2);
}

/* One bit each, in a cluster of bits of its own: there is room for the directory, tables and
 * bits of some. */
CO_TEST(as_many_are_stored_as_there_is_room_for)
{
    unsigned valid;
    struct node *n;

    must_run("rm -f b.qcow2 && qemu-img create -q -f qcow2 -o preallocation=full b.qcow2 %llu && "
             "for i in 0 1 2 3 4 5; do qemu-img bitmap --add b.qcow2 m$i || exit 1; done", SIZE);
    n = co_open_over_fault();
    co_fill(n, MiB, 512, 1);
    assert_int_equal(co_node_flush(n), 0);
    /* Behind the end of the file there is nothing. */
    uint64_t end = align_up(node_size(fault), 65536) + 5 * 65536;

    fault_add_rule(fault, &(struct fault_rule){ .op = FAULT_RESIZE, .error = -ENOSPC });
    fault_add_rule(fault, &(struct fault_rule){ .op = FAULT_WRITE, .offset = end,
                                                .length = 1 * GiB, .error = -ENOSPC });
    assert_false(co_dirty_bitmaps_store(n, NULL));
    fault_clear_rules(fault);
    valid = 0;
    for (uint32_t i = 0; i < qcow2_bitmaps_count(n); i++) {
        struct qcow2_bitmap_info info;

        qcow2_bitmaps_get(n, i, &info);
        valid += !info.in_use;
    }
    assert_in_range(valid, 1, 5);
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("b.qcow2", false);
    for (unsigned i = 0; i < 6; i += 5)
        expect(test_text("m%u", i), "auto", 65536, 1);
}

/* Data beside an entry that says that it may be ignored. */
CO_TEST(what_is_not_known_of_a_bitmap_stays)
{
    uint8_t ext[24], dir[512], new[512], extra[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
    uint64_t at, bytes;
    struct node *n;

    qemu_make();
    file_read(work_path("b.qcow2"), 0x200, ext, sizeof(ext));
    at = load_be64(ext + 16);
    bytes = load_be64(ext + 8);
    assert_true(bytes < 256);
    file_read(work_path("b.qcow2"), at, dir, bytes);
    memcpy(new, dir, 24);
    store_be32(new + 12, load_be32(dir + 12) | QCOW2_BITMAP_EXTRA_COMPATIBLE);
    store_be32(new + 20, sizeof(extra));
    memcpy(new + 24, extra, sizeof(extra));
    memcpy(new + 32, dir + 24, bytes - 24);
    file_write(work_path("b.qcow2"), at, new, bytes + 8);
    store_be64(ext + 8, bytes + 8);
    file_write(work_path("b.qcow2"), 0x200, ext, sizeof(ext));
    for (int turn = 0; turn < 3; turn++) {
        const struct qcow2_bitmap_entry *e;

        n = co_open_image("b.qcow2", "");
        e = qcow2_bitmap_dir_find(&((struct qcow2 *)n->state)->bitmaps, "b64");
        assert_int_equal(e->flags, QCOW2_BITMAP_AUTO | QCOW2_BITMAP_EXTRA_COMPATIBLE);
        assert_int_equal(e->extra_bytes, sizeof(extra));
        assert_memory_equal(e->extra, extra, sizeof(extra));
        assert_int_equal(dirty_bitmap_count(find(n, "b64")), 64 * KiB * (1 + (unsigned)turn));
        co_fill(n, (uint64_t)turn * 64 * KiB, 512, 1);
        co_node_unref(n);
    }
}

/* ---- images from strangers -------------------------------------------------------- */

static uint64_t resident(void)
{
    unsigned long long total, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%llu %llu", &total, &pages), 2);
    fclose(f);
    return pages * 4096;
}

/* A directory of many bitmaps that share one table, whose bits are all ones. */
CO_TEST(bitmaps_of_a_stranger_take_no_memory)
{
    enum { MANY = 300 };
    CLEANUP(free) uint8_t *table = xzalloc(64 * KiB), *dir = xzalloc(64 * KiB);
    uint64_t size = 64 * TiB, before, at = 0, loaded = 0;
    uint8_t ext[8 + 24] = { 0 };
    struct node *n;

    must_run("qemu-img create -q -f qcow2 h.qcow2 64T && truncate -s 40M h.qcow2");
    for (unsigned i = 0; i < 2048; i++)
        store_be64(table + 8ULL * i, 1);
    file_write(work_path("h.qcow2"), 32 * MiB, table, 64 * KiB);
    for (unsigned i = 0; i < MANY; i++) {
        struct qcow2_bitmap_entry e = {
            .name = test_text("b%u", i), .table_off = 32 * MiB, .table_entries = 1024,
            .flags = QCOW2_BITMAP_AUTO, .granularity_bits = 17,
        };

        qcow2_bitmap_entry_encode(&e, dir + at);
        at += qcow2_bitmap_entry_bytes(e.name);
    }
    file_write(work_path("h.qcow2"), 33 * MiB, dir, at);
    store_be32(ext, QCOW2_EXT_BITMAPS);
    store_be32(ext + 4, 24);
    store_be32(ext + 8, MANY);
    store_be64(ext + 16, at);
    store_be64(ext + 24, 33 * MiB);
    file_write(work_path("h.qcow2"), 112, ext, sizeof(ext));
    file_write(work_path("h.qcow2"), 112 + sizeof(ext), "\0\0\0\0\0\0\0", 8);
    store_be64(ext, QCOW2_AUTOCLEAR_BITMAPS);
    file_write(work_path("h.qcow2"), 88, ext, 8);

    before = resident();
    n = co_open_image("h.qcow2", "");
    assert_int_equal(qcow2_bitmaps_count(n), MANY);
    for (struct dirty_bitmap *bm = NULL; (bm = dirty_bitmap_next(n, bm));) {
        if (dirty_bitmap_inconsistent(bm))
            assert_non_null(strstr(dirty_bitmap_inconsistent(bm), "memory"));
        else
            assert_int_equal(dirty_bitmap_count(bm), size);
        loaded += !dirty_bitmap_inconsistent(bm);
    }
    assert_int_equal(loaded, 1);
    assert_true(resident() - before < 512 * MiB);
    co_node_unref(n);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bitmaps_of_qemu_are_followed),
        cmocka_unit_test(what_is_stored_is_not_stored_again),
        cmocka_unit_test(the_file_of_an_image_keeps_none),
        cmocka_unit_test(a_crash_leaves_no_bitmap_that_lacks_something),
        cmocka_unit_test(a_snapshot_that_is_gone_back_to_spoils_them),
        cmocka_unit_test(what_cannot_be_kept_is_refused),
        cmocka_unit_test(a_failing_store_is_told),
        cmocka_unit_test(bitmaps_stored_beside_writes_lack_none),
        cmocka_unit_test(a_bitmap_in_use_is_not_stored),
        cmocka_unit_test(as_many_are_stored_as_there_is_room_for),
        cmocka_unit_test(what_is_not_known_of_a_bitmap_stays),
        cmocka_unit_test(bitmaps_of_a_stranger_take_no_memory),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 bitmaps followed", tests, ARRAY_SIZE(tests));
}
