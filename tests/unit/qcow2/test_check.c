/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a check finds what qemu-img check finds on the same image, number for
 * number; a repair leaves nothing that qemu-img still finds, repairs whatever
 * qemu-img can repair, and changes nothing that the guest reads; a power cut in a
 * repair leaves an image that is no worse, and that the next repair makes sound.
 * Method: sound images of many kinds, hurt at random in their tables; replays of a
 * record (record.h). Repeat with
 * STILLPOINT_SEED, longer with STILLPOINT_ROUNDS.
 */
#include "base/bytes.h"
#include "drivers/qcow2/check.h"
#include "record.h"
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define OFFSET_MASK 0x00fffffffffffe00ULL

static const char *const kinds[] = {
    "qemu-img create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw i.qcow2 2M && "
        "qemu-io -f qcow2 -c 'write -P 3 0 600k' -c 'write -z 700k 100k' i.qcow2",
    "qemu-img convert -c -f raw -O qcow2 -o cluster_size=4k more.raw i.qcow2",
    "qemu-img convert -f raw -O qcow2 -o cluster_size=512,refcount_bits=1 more.raw i.qcow2",
    "qemu-img convert -f raw -O qcow2 -o cluster_size=1k,refcount_bits=64 more.raw i.qcow2 && "
        "qemu-img snapshot -c s i.qcow2 && "
        "qemu-io -f qcow2 -c 'write -P 8 200k 100k' i.qcow2 && qemu-img snapshot -c t i.qcow2",
    "qemu-img convert -f raw -O qcow2 -o compat=0.10,cluster_size=2k more.raw i.qcow2",
    "qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=2 i.qcow2 2M && "
        "qemu-io -f qcow2 -c 'write -P 3 0 600k' -c 'write -z 100k 100k' i.qcow2 && "
        "qemu-img snapshot -c s i.qcow2 && qemu-img snapshot -c t i.qcow2 && "
        "qemu-io -f qcow2 -c 'write -P 4 0 50k' -c 'discard 300k 64k' i.qcow2",
    "qemu-img convert -f raw -O qcow2 -o cluster_size=64k,refcount_bits=32 more.raw i.qcow2 && "
        "qemu-img bitmap --add i.qcow2 a && qemu-img bitmap --add -g 512 i.qcow2 b",
    "qemu-img create -q -f qcow2 -o cluster_size=16k,extended_l2=on -b base.raw -F raw i.qcow2 2M "
        "&& qemu-io -f qcow2 -c 'write -P 3 1k 600k' -c 'write -z 16k 3k' -c 'write -P 7 801k 1k' "
        "-c 'discard 64k 32k' i.qcow2 && qemu-img snapshot -c s i.qcow2 && "
        "qemu-io -f qcow2 -c 'write -P 4 0 1k' i.qcow2",
    "qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=d.raw i.qcow2 2M && "
        "qemu-io -f qcow2 -c 'write -P 3 0 600k' -c 'write -z 100k 100k' i.qcow2",
};

/* Things that are wrong which QEMU does not mind: the header, or the active L1
 * table, is somebody's cluster too. */
static unsigned unshared;
static unsigned incomplete;      /* entries of snapshots */
/* Clusters that are used twice, so that a repair of a table may be seen by the guest. */
static unsigned doubled;
/* Entries that are wrong: where they are somebody's data too, we leave them alone. */
static unsigned entries;

static void tell_unshared(void *ctx, const char *line)
{
    (void)ctx;
    if (strstr(line, " references"))
        unshared++;
    if (strstr(line, "not properly aligned") || strstr(line, "OFLAG_COPIED"))
        entries++;
    if (strstr(line, "is incomplete"))
        incomplete++;
    if (strstr(line, " refcount=1 reference=") || strstr(line, "overflow") ||
        strstr(line, " refcount=2") || strstr(line, " refcount=3"))
        doubled++;
    if (getenv("STILLPOINT_TELL"))
        fprintf(stderr, "%s\n", line);
}

/* Whether it could be checked. */
static bool co_check_it(const char *name, enum qcow2_repair repair,
                        struct qcow2_check_result *ret, struct err *err)
{
    struct node *file = co_test_open("{'driver': 'file', 'filename': '%s', 'read-only': %s}",
                                     work_path(name),
                                     repair == QCOW2_REPAIR_NONE ? "true" : "false");
    const struct qcow2_check_opts o = { .repair = repair, .tell = tell_unshared };
    bool ok;

    unshared = doubled = entries = incomplete = 0;
    ok = co_qcow2_check(file, &o, ret, err);

    if (repair == QCOW2_REPAIR_NONE)
        ret->corruptions -= unshared;
    co_node_unref(file);
    return ok;
}

static uint64_t int_of(const json_t *json, const char *key)
{
    return (uint64_t)json_integer_value(json_object_get(json, key));
}

/* What qemu-img says; false if it could not check. */
static bool peer_check(const char *name, struct qcow2_check_result *ret)
{
    int status = run("qemu-img check -f qcow2 --output=json %s >peer.json 2>peer.err", name);
    json_t *json;

    if (status != 0 && status != 2 && status != 3)
        return false;
    json = json_load_file(work_path("peer.json"), 0, NULL);
    assert_non_null(json);
    *ret = (struct qcow2_check_result){
        .check_errors = int_of(json, "check-errors"), .corruptions = int_of(json, "corruptions"),
        .leaks = int_of(json, "leaks"), .image_end = int_of(json, "image-end-offset"),
        .total = int_of(json, "total-clusters"), .allocated = int_of(json, "allocated-clusters"),
        .fragmented = int_of(json, "fragmented-clusters"),
        .compressed = int_of(json, "compressed-clusters"),
    };
    json_decref(json);
    return true;
}

/* With STILLPOINT_KEEP=1 the image stays for a look. */
static void keep(void)
{
    if (getenv("STILLPOINT_KEEP"))
        must_run("cp m.qcow2 /tmp/disagree.qcow2");
}

static void expect_same_verdict(const struct qcow2_check_result *ours,
                                const struct qcow2_check_result *theirs, const char *what)
{
    if (!memcmp(ours, theirs, offsetof(struct qcow2_check_result, checked)))
        return;
    keep();
    fail_msg("%s: ours / theirs: corruptions %" PRIu64 "/%" PRIu64 ", leaks %" PRIu64 "/%" PRIu64
             ", check errors %" PRIu64 "/%" PRIu64 ", end %" PRIu64 "/%" PRIu64 ", total %" PRIu64
             "/%" PRIu64 ", allocated %" PRIu64 "/%" PRIu64 ", fragmented %" PRIu64 "/%" PRIu64
             ", compressed %" PRIu64 "/%" PRIu64, what, ours->corruptions, theirs->corruptions,
             ours->leaks, theirs->leaks, ours->check_errors, theirs->check_errors,
             ours->image_end, theirs->image_end, ours->total, theirs->total, ours->allocated,
             theirs->allocated, ours->fragmented, theirs->fragmented, ours->compressed,
             theirs->compressed);
}

/* ---- hurting ------------------------------------------------------------- */

static uint64_t hurt_size;

static uint64_t get64(uint64_t at)
{
    uint8_t buf[8] = { 0 };

    if (at <= hurt_size - sizeof(buf))
        file_read(work_path("m.qcow2"), at, buf, sizeof(buf));
    return load_be64(buf);
}

/* Where an entry of a table is: of the L1 table, of L2 tables, of the refcount table
 * and blocks, of a snapshot's table. */
static uint64_t pick_place(uint64_t *seed, uint64_t size)
{
    uint64_t l1 = get64(40), reftable = get64(48), snapshots = get64(64), cluster;
    uint64_t l1_entries = get64(32) & UINT32_MAX;

    cluster = 1ULL << ((get64(16) & UINT32_MAX) & 31);
    switch (test_random(seed, 10)) {
    case 0:
        return l1 + 8 * test_random(seed, MAX(l1_entries, 1ULL));
    case 1:
        return reftable + 8 * test_random(seed, 3);
    case 2:
    case 3:
        return get64(reftable) + test_random(seed, 128) * 8;
    case 4:
        return snapshots && snapshots < size ? snapshots + test_random(seed, 40)
                                             : test_random(seed, size);
    case 5:
        return align_down(test_random(seed, size), 8);
    default:
        l1 += 8 * test_random(seed, MAX(l1_entries, 1ULL));
        return (get64(l1) & OFFSET_MASK) + 8 * test_random(seed, MIN(cluster / 8, 200ULL));
    }
}

static uint64_t pick_value(uint64_t *seed, uint64_t old, uint64_t size)
{
    switch (test_random(seed, 12)) {
    case 0:
        return 0;
    case 1:
        return UINT64_MAX;
    case 2:
        return old ^ 1ULL << test_random(seed, 64);
    case 3:
        return 1ULL << 63 | align_down(test_random(seed, size), 512);
    case 4:
        return 1ULL << 62 | test_random(seed, size) | test_random(seed, 256) << 54;
    case 5:
        return align_down(test_random(seed, size), 4096);
    case 6:
        return old + 4096;
    case 7:
        return old ^ 1ULL << 63;
    case 8:
        return 1ULL << 63 | align_down(test_random(seed, size), 4096);
    case 9:
        return old + 512 + 1;
    case 10:
        return align_down(test_random(seed, size), 512) | 1;
    default:
        return test_random(seed, UINT64_MAX);
    }
}

static void hurt(uint64_t *seed, uint64_t size)
{
    hurt_size = size;
    for (uint64_t n = 1 + test_random(seed, 4); n; n--) {
        uint64_t at = pick_place(seed, size);
        uint8_t buf[8];

        if (at > size - 8 || at < 16)
            continue;
        store_be64(buf, pick_value(seed, get64(at), size));
        file_write(work_path("m.qcow2"), at, buf, test_random(seed, 4) ? 8 : 2);
    }
}

/* ---- the comparison ------------------------------------------------------ */

static void prepare(void)
{
    must_run("truncate -s 1M base.raw more.raw && truncate -s 2M more.raw && "
             "qemu-io -f raw -c 'write -P 6 0 1M' base.raw && "
             "qemu-io -f raw -c 'write -P 5 100k 700k' more.raw");
}

static long rounds(long usual)
{
    const char *given = getenv("STILLPOINT_ROUNDS");

    return given ? atol(given) : usual;
}

static unsigned compared, checked_dirty;

static void co_compare_check(const char *what)
{
    struct qcow2_check_result ours, theirs;
    struct err err = ERR_INIT;
    bool can = co_check_it("m.qcow2", QCOW2_REPAIR_NONE, &ours, &err);

    if (!peer_check("m.qcow2", &theirs))
        return;
    /* Nothing could be done about it. */
    if (!can && strstr(err.text, "the L1 table has no place"))
        return;
    if (!can) {
        keep();
        fail_msg("%s: could not be checked: %s", what, err.text);
    }
    expect_same_verdict(&ours, &theirs, what);
    compared++;
    checked_dirty += ours.corruptions || ours.leaks;
}

/* After our repair nothing may be left that qemu-img's repair would not have left. */
static void co_compare_repair(const char *what)
{
    struct qcow2_check_result ours;
    struct err err = ERR_INIT;
    bool clean, theirs_clean, hurt_doubled = doubled || unshared;
    int r;

    must_run("cp m.qcow2 a.qcow2 && cp m.qcow2 b.qcow2");
    theirs_clean = run("qemu-img check -q -f qcow2 -r all b.qcow2 >peer.out 2>&1") == 0;
    clean = co_check_it("a.qcow2", QCOW2_REPAIR_ALL, &ours, &err) && !ours.corruptions &&
            !ours.leaks && !ours.check_errors;
    r = run("qemu-img check -f qcow2 a.qcow2");
    /* Repairs of theirs that write into the guest's data do not count. */
    if (theirs_clean)
        theirs_clean = run("qemu-img compare -q -f qcow2 -F qcow2 m.qcow2 b.qcow2") != 1;
    /* Nor those that throw snapshots away. */
    if (strstr(err.text, "snapshot table") || (hurt_doubled && entries))
        theirs_clean = false;
    if (clean ? r != 0 : theirs_clean && !unshared && !incomplete) {
        keep();
        fail_msg("%s: repaired: %d, corruptions %" PRIu64 ", leaks %" PRIu64 ", %s; qemu-img "
                 "repairs: %d; qemu-img check then ends with %d", what, clean, ours.corruptions,
                 ours.leaks, err.text, theirs_clean, r);
    }
    /* Neither is changed what the guest reads, where that can be read. */
    if (!hurt_doubled && run("qemu-img compare -q -f qcow2 -F qcow2 m.qcow2 a.qcow2") == 1) {
        keep();
        fail_msg("%s: the guest reads something else after the repair", what);
    }
}

CO_TEST(random_damage_is_judged_and_repaired_as_by_qemu_img)
{
    uint64_t seed = test_seed(20261124);

    prepare();
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        must_run("%s", kinds[i]);
        uint64_t size = work_size("i.qcow2");

        for (long round = rounds(8); round; round--) {
            char what[64];

            alarm(60);
            snprintf(what, sizeof(what), "kind %zu, seed %" PRIu64, i, seed);
            must_run("cp i.qcow2 m.qcow2");
            hurt(&seed, size);
            co_compare_check(what);
            co_compare_repair(what);
        }
    }
    assert_true(compared > 25 || rounds(8) < 8);
    assert_true(checked_dirty * 2 > compared);
}

/* ---- power cuts ---------------------------------------------------------- */

/* Repair m.qcow2 as r.qcow2 under a record; whether it is sound then. */
static bool co_repair_recorded(void)
{
    struct qcow2_check_result left;
    const struct qcow2_check_opts o = { .repair = QCOW2_REPAIR_ALL };
    struct node *file;
    bool ok;

    must_run("cp m.qcow2 r.qcow2; rm -f record");
    file = co_test_open("{'driver': 'fault', 'record': '%s', 'file': {'driver': 'file', "
                        "'filename': '%s'}}", work_path("record"), work_path("r.qcow2"));
    ok = co_qcow2_check(file, &o, &left, NULL) && !left.corruptions && !left.leaks;
    co_node_unref(file);
    return ok;
}

static void co_cut_repair(uint64_t *seed, const char *what)
{
    struct record r = load_record();

    for (int trial = 0; trial < 4 && r.n; trial++) {
        struct qcow2_check_result left;

        replay("m.qcow2", "crashed.qcow2", &r, pick_cut(&r, seed), seed);
        if (run("qemu-img compare -q -f qcow2 -F qcow2 m.qcow2 crashed.qcow2") == 1)
            fail_msg("%s: a cut repair changed what the guest reads", what);
        if (!co_check_it("crashed.qcow2", QCOW2_REPAIR_ALL, &left, NULL) || left.corruptions ||
            left.leaks)
            fail_msg("%s: after a cut repair there are %" PRIu64 " corruptions and %" PRIu64
                     " leaks that the next does not repair", what, left.corruptions, left.leaks);
        expect_clean("crashed.qcow2", false);
    }
    record_done(&r);
}

CO_TEST(a_power_cut_in_a_repair_does_no_harm)
{
    uint64_t seed = test_seed(777);
    unsigned cut = 0;

    prepare();
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        must_run("%s", kinds[i]);
        uint64_t size = work_size("i.qcow2");

        for (long round = rounds(8); round; round--) {
            struct qcow2_check_result before, theirs;
            char what[64];

            alarm(60);
            snprintf(what, sizeof(what), "kind %zu, seed %" PRIu64, i, seed);
            must_run("cp i.qcow2 m.qcow2");
            hurt(&seed, size);
            if (!co_check_it("m.qcow2", QCOW2_REPAIR_NONE, &before, NULL) || doubled ||
                unshared || !(before.corruptions || before.leaks) ||
                !peer_check("m.qcow2", &theirs) || !co_repair_recorded())
                continue;
            co_cut_repair(&seed, what);
            cut++;
        }
    }
    assert_true(cut > 4 || rounds(8) < 8);
}

CO_TEST(sound_images_are_sound)
{
    prepare();
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        struct qcow2_check_result ours, theirs;

        must_run("%s && cp i.qcow2 m.qcow2", kinds[i]);
        assert_true(co_check_it("m.qcow2", QCOW2_REPAIR_NONE, &ours, NULL));
        assert_true(peer_check("m.qcow2", &theirs));
        expect_same_verdict(&ours, &theirs, kinds[i]);
        assert_int_equal(ours.corruptions + ours.leaks, 0);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_images_are_sound),
        cmocka_unit_test(a_power_cut_in_a_repair_does_no_harm),
        cmocka_unit_test(random_damage_is_judged_and_repaired_as_by_qemu_img),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 check and repair", tests, ARRAY_SIZE(tests));
}
