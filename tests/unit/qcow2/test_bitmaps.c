/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: bitmaps stored by QEMU are read here bit by bit, and ours by QEMU; a bitmap
 * that is not kept up to date never looks valid; whatever fails or wherever the power
 * goes, there are the old bitmaps or the new ones (I-Q12, I-Q14).
 * Method: qemu-img bitmap, qemu-io, and nbdinfo --map on qemu-nbd as peers; the N-th
 * failure loop; replays of a record (record.h).
 */
#include "base/bytes.h"
#include "drivers/qcow2/bitmaps.h"
#include "drivers/qcow2/qcow2.h"
#include "kept_bitmaps.h"
#include "nth_failure.h"
#include "record.h"
#include <unistd.h>

#define SIZE (8 * MiB + 512)

static uint64_t seed;

/* ---- bits ---------------------------------------------------------------- */

static struct bitmap *random_bits(uint64_t granularity)
{
    uint64_t n = div_round_up(SIZE, granularity);
    struct bitmap *bm = bitmap_new(n);

    for (uint64_t at = test_random(&seed, n / 4 + 1), len; at < n;
         at += len + test_random(&seed, n / 4 + 1)) {
        len = MIN(n - at, 1 + test_random(&seed, test_random(&seed, 2) ? 3 : n));
        bitmap_set(bm, at, len);
    }
    return bm;
}

static struct bitmap *co_load(struct node *n, const char *name)
{
    struct bitmap *bm = NULL;
    struct err err = ERR_INIT;

    if (!co_qcow2_bitmap_load(n, name, &bm, &err))
        fail_msg("%s: %s", name, err.text);
    return bm;
}

static void co_load_refused(struct node *n, const char *name, const char *words)
{
    struct bitmap *bm;
    struct err err = ERR_INIT;

    assert_false(co_qcow2_bitmap_load(n, name, &bm, &err));
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

static void co_store(struct node *n, const struct qcow2_bitmap_put *v, size_t count)
{
    struct err err = ERR_INIT;

    if (!co_qcow2_bitmaps_store(n, v, count, &err))
        fail_msg("%s", err.text);
}

static void co_expect_as_qemu(const char *image, const char *name, uint64_t granularity)
{
    struct node *n = co_open_image(image, ", 'read-only': true");
    CLEANUP(bitmap_free) struct bitmap *ours = co_load(n, name);

    co_node_unref(n);

    CLEANUP(bitmap_free) struct bitmap *theirs = qemu_bits(image, name, granularity, SIZE);

    if (!same_bits(ours, theirs))
        fail_msg("%s: %" PRIu64 " bits are set here, %" PRIu64 " there", name, bitmap_count(ours),
                 bitmap_count(theirs));
}

/* ---- with QEMU ----------------------------------------------------------- */

static void qemu_make(const char *options)
{
    must_run("rm -f b.qcow2 && qemu-img create -q -f qcow2 -o %s b.qcow2 %llu && "
             "qemu-img bitmap --add -g 64k b.qcow2 b64 && "
             "qemu-img bitmap --add -g 512 b.qcow2 b512 && "
             "qemu-img bitmap --add -g 4k --disable b.qcow2 off", options, SIZE);
}

CO_TEST(what_qemu_stored_is_read)
{
    static const char *const options[] = { "cluster_size=64k", "cluster_size=512",
                                           "cluster_size=4k,refcount_bits=64" };

    seed = test_seed(99);
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        alarm(60);
        qemu_make(options[i]);
        for (int k = 0; k < 3; k++)
            must_run("qemu-io -f qcow2 -c 'write -z %" PRIu64 "k 20k' -c 'write %" PRIu64 "k 3k' "
                     "b.qcow2", test_random(&seed, 8000), test_random(&seed, 8000));
        must_run("qemu-img bitmap --add -g 4k b.qcow2 sum && "
                 "qemu-img bitmap --merge b512 b.qcow2 sum && "
                 "qemu-io -f qcow2 -c 'write 0 5M' b.qcow2 && "
                 "qemu-img bitmap --disable b.qcow2 sum");
        co_expect_as_qemu("b.qcow2", "b64", 65536);
        co_expect_as_qemu("b.qcow2", "b512", 512);
        co_expect_as_qemu("b.qcow2", "off", 4096);
        co_expect_as_qemu("b.qcow2", "sum", 4096);
    }
}

CO_TEST(what_we_store_is_read_by_qemu)
{
    static const struct qcow2_create_opts shapes[] = {
        { .size = SIZE }, { .size = SIZE, .cluster_size = 512, .refcount_bits = 64 },
        { .size = SIZE, .cluster_size = 4096, .refcount_bits = 1 },
    };

    seed = test_seed(5);
    for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
        CLEANUP(bitmap_free) struct bitmap *a = random_bits(512), *b = random_bits(65536);
        CLEANUP(bitmap_free) struct bitmap *full = bitmap_new(div_round_up(SIZE, 512));
        struct node *n;

        alarm(60);
        bitmap_set(full, 0, bitmap_size(full));
        co_make_image("b.qcow2", &shapes[i]);
        n = co_open_unfollowed("b.qcow2", "");
        co_fill(n, 0, MiB, 1);
        co_store(n, (struct qcow2_bitmap_put[]){
            { "a", 512, true, a }, { "b", 65536, false, b }, { "full", 512, true, full },
            { "empty", 1ULL << 31, true, NULL } }, 4);
        co_node_unref(n);
        expect_clean("b.qcow2", false);
        co_expect_as_qemu("b.qcow2", "a", 512);
        co_expect_as_qemu("b.qcow2", "b", 65536);
        co_expect_as_qemu("b.qcow2", "full", 512);
        /* QEMU goes on with them, and we with what it made of them. */
        must_run("qemu-img bitmap --clear b.qcow2 a && "
                 "qemu-io -f qcow2 -c 'write 3M 100k' b.qcow2");
        co_expect_as_qemu("b.qcow2", "a", 512);
        n = co_open_unfollowed("b.qcow2", "");
        co_store(n, (struct qcow2_bitmap_put[]){ { "b", 512, true, a } }, 1);
        assert_true(co_qcow2_bitmap_remove(n, "full", NULL));
        assert_true(co_qcow2_bitmap_remove(n, "a", NULL));
        assert_false(co_qcow2_bitmap_remove(n, "a", NULL));
        co_node_unref(n);
        expect_clean("b.qcow2", false);
        co_expect_as_qemu("b.qcow2", "b", 512);
        n = co_open_unfollowed("b.qcow2", "");
        assert_int_equal(qcow2_bitmaps_count(n), 2);
        assert_true(co_qcow2_bitmap_remove(n, "b", NULL));
        assert_true(co_qcow2_bitmap_remove(n, "empty", NULL));
        co_node_unref(n);
        expect_clean("b.qcow2", false);
        must_run("! qemu-img info b.qcow2 | grep -q bitmaps");
    }
}

/* "name flags" of all of them, as QEMU tells. */
static void expect_flags(const char *name, const char *flags)
{
    must_run("qemu-img info -U --output=json b.qcow2 | python3 -c 'import json, sys; "
             "print([\",\".join(b[\"flags\"]) for b in json.load(sys.stdin)[\"format-specific\"]"
             "[\"data\"][\"bitmaps\"] if b[\"name\"] == \"%s\"])'", name);
    if (!strstr(run_output(), test_text("['%s']", flags)))
        fail_msg("%s: %s", name, run_output());
}

CO_TEST(a_bitmap_that_missed_a_write_is_in_use)
{
    struct node *n;

    qemu_make("cluster_size=64k");
    n = co_open_unfollowed("b.qcow2", "");
    assert_int_equal(qcow2_bitmaps_count(n), 3);
    co_node_unref(n);                    /* nothing was written */
    expect_flags("b64", "auto");
    n = co_open_unfollowed("b.qcow2", "");
    assert_true(co_qcow2_bitmap_remove(n, "b512", NULL));
    co_node_unref(n);                    /* nor was the disk now */
    expect_flags("b64", "auto");
    n = co_open_unfollowed("b.qcow2", "");
    co_fill(n, 0, 512, 1);
    expect_flags("b64", "in-use,auto");  /* at once */
    expect_flags("off", "");
    co_load_refused(n, "b64", "is inconsistent");
    co_node_unref(n);
    expect_clean("b.qcow2", false);
    must_run("! qemu-img bitmap --enable b.qcow2 b64");
    n = co_open_unfollowed("b.qcow2", "");
    co_store(n, (struct qcow2_bitmap_put[]){ { "b64", 65536, true, NULL } }, 1);
    expect_flags("b64", "auto");
    co_fill(n, MiB, 512, 1);             /* the node goes on: so does the mark */
    expect_flags("b64", "in-use,auto");
    co_node_unref(n);
    n = co_open_unfollowed("b.qcow2", "");
    assert_true(co_node_resize(n, SIZE + MiB, NULL));
    co_node_unref(n);
    expect_flags("off", "in-use");       /* not of the disk's size any more */
    must_run("qemu-io -f qcow2 -c 'write 0 1M' b.qcow2");
    expect_clean("b.qcow2", false);
}

CO_TEST(snapshots_leave_bitmaps_alone_unless_the_disk_changes)
{
    struct node *n;

    qemu_make("cluster_size=64k");
    must_run("qemu-img snapshot -c s b.qcow2");
    n = co_open_image("b.qcow2", ", 'read-only': true, 'snapshot': 's'");
    co_node_unref(n);
    expect_flags("b64", "auto");
    n = co_open_unfollowed("b.qcow2", "");
    co_fill(n, 0, MiB, 1);
    co_node_unref(n);
    expect_flags("b64", "in-use,auto");
}

CO_TEST(what_another_program_left_behind_is_dropped)
{
    const uint8_t zero[8] = { 0 };
    struct node *n;

    qemu_make("cluster_size=64k");
    file_write(work_path("b.qcow2"), 88, zero, 8);
    n = co_open_image("b.qcow2", "");
    assert_int_equal(qcow2_bitmaps_count(n), 0);
    co_fill(n, 0, 512, 1);
    co_node_unref(n);
    must_run("test $(qemu-img info b.qcow2 2>&1 | grep -c -i bitmap) = 0");
    expect_clean("b.qcow2", true);
}

CO_TEST(directories_that_cannot_be)
{
    static const struct {
        unsigned at;
        uint8_t byte;
    } changes[] = {
        { 0, 0x80 }, { 7, 1 }, { 8, 0x7f }, { 17, 64 }, { 18, 0xff }, { 19, 0 }, { 20, 1 },
        { 24, 0 }, { 23, 200 },
    };
    uint8_t offset[8];

    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        struct node *n;

        qemu_make("cluster_size=64k");
        file_read(work_path("b.qcow2"), 0x200 + 16, offset, 8);
        file_write(work_path("b.qcow2"), load_be64(offset) + changes[i].at, &changes[i].byte, 1);
        n = co_open_image("b.qcow2", ", 'read-only': true");
        assert_int_equal(qcow2_bitmaps_count(n), 0);
        co_node_unref(n);
        n = co_open_image("b.qcow2", "");
        co_fill(n, 0, MiB, 1);
        co_expect(n, 0, MiB, 1);
        co_node_unref(n);
        expect_clean("b.qcow2", true);       /* they are gone, and leaked */
    }
}

/* QEMU would not open the image any more, whatever table it had. */
CO_TEST(a_disk_without_bytes_has_no_bitmaps)
{
    struct err err = ERR_INIT;
    struct node *n;

    co_make_image("b.qcow2", &(struct qcow2_create_opts){ .size = 0 });
    n = co_open_image("b.qcow2", "");
    assert_false(co_qcow2_bitmaps_store(n, &(struct qcow2_bitmap_put){ "a", 512, true, NULL }, 1,
                                        &err));
    assert_non_null(strstr(err.text, "without bytes"));
    co_node_unref(n);
    must_run("qemu-img info b.qcow2");
}

/* What is refused has changed nothing. */
CO_TEST(two_of_one_name_are_refused)
{
    struct err err = ERR_INIT;
    struct node *n;

    qemu_make("cluster_size=64k");
    n = co_open_image("b.qcow2", "");
    assert_false(co_qcow2_bitmaps_store(n, (struct qcow2_bitmap_put[]){
        { "x", 65536, true, NULL }, { "x", 512, true, NULL } }, 2, &err));
    assert_non_null(strstr(err.text, "two bitmaps are called 'x'"));
    assert_int_equal(qcow2_bitmaps_count(n), 3);
    co_node_unref(n);
    expect_clean("b.qcow2", false);
    expect_flags("b64", "auto");
}

struct changing {
    struct node *n;
    unsigned next;
};

/* Store one, read it back and take it out again, beside others who do. */
static void co_change_bitmaps(void *arg)
{
    struct changing *c = arg;
    CLEANUP(bitmap_free) struct bitmap *bits = bitmap_new(div_round_up(SIZE, 65536));
    char name[2] = { (char)('a' + c->next++), 0 };
    struct err err = ERR_INIT;

    bitmap_set(bits, 7, 20);
    for (int round = 0; round < 5; round++) {
        co_store(c->n, (struct qcow2_bitmap_put[]){ { name, 65536, true, bits } }, 1);

        CLEANUP(bitmap_free) struct bitmap *back = co_load(c->n, name);

        assert_true(same_bits(bits, back));
        if (round < 4 && !co_qcow2_bitmap_remove(c->n, name, &err))
            fail_msg("%s", err.text);
    }
}

CO_TEST(changes_at_the_same_time_come_one_after_the_other)
{
    struct changing c = { 0 };

    co_make_image("b.qcow2", &(struct qcow2_create_opts){ .size = SIZE, .cluster_size = 4096 });
    c.n = co_open_image("b.qcow2", "");
    co_together(4, co_change_bitmaps, &c);
    assert_int_equal(qcow2_bitmaps_count(c.n), 4);
    co_node_unref(c.n);
    expect_clean("b.qcow2", false);
    for (char name[2] = "a"; *name < 'e'; ++*name)
        expect_flags(name, "auto");
}

/* ---- failures and power cuts --------------------------------------------- */

#define STATES 5

struct state {
    struct bitmap *bits[2];              /* of "a" and "b"; NULL: there is none */
};

enum layout {
    PLAIN,
    SHIFTED,                     /* an unknown extension moves ours over a sector's border */
    OVERLAY,                     /* the list of extensions and the name lie on it */
};

static void co_prepare(enum layout layout)
{
    static const uint8_t unknown[496] = "unknown";
    struct qcow2_extension x = { .type = 0x12345678, .bytes = sizeof(unknown), .data = unknown };
    struct qcow2_header_change c = { .extensions = &x, .n_extensions = 1 };
    struct node *n;

    make_file(work_path("a-base-with-a-name.raw"), SIZE);
    if (layout == OVERLAY)
        must_run("qemu-img create -q -f qcow2 -o cluster_size=4k -b a-base-with-a-name.raw -F raw "
                 "b.qcow2");
    else
        co_make_image("b.qcow2", &(struct qcow2_create_opts){ .size = SIZE,
                                                             .cluster_size = 4096 });
    n = co_open_image("b.qcow2", "");
    co_fill(n, 0, 100000, 1);
    if (layout == SHIFTED)
        assert_true(co_qcow2_rewrite_header(n->state, &c, NULL));
    co_node_unref(n);
}

static void co_enter_state(struct node *n, const struct state *st, struct err *err, bool *ret_ok)
{
    struct qcow2_bitmap_put v[2];
    size_t count = 0;

    for (int i = 0; i < 2; i++) {
        if (st->bits[i])
            v[count++] = (struct qcow2_bitmap_put){ i ? "b" : "a", 512, true, st->bits[i] };
    }
    *ret_ok = true;
    if (!st->bits[1] && qcow2_bitmaps_count(n) == 2)
        *ret_ok = co_qcow2_bitmap_remove(n, "b", err);
    *ret_ok = *ret_ok && co_qcow2_bitmaps_store(n, v, count, err);
}

static void make_states(struct state st[STATES])
{
    for (int k = 0; k < STATES; k++) {
        st[k].bits[0] = random_bits(512);
        st[k].bits[1] = k % 2 ? random_bits(512) : NULL;
    }
}

static void free_states(struct state st[STATES])
{
    for (int k = 0; k < STATES; k++) {
        bitmap_free(st[k].bits[0]);
        bitmap_free(st[k].bits[1]);
    }
}

/* Every bitmap in the image is that of a state in [from, to], or in_use; and if any was
 * @stored, "a" is there. */
static void co_expect_states(const char *image, const struct state *st, int from, int to,
                             bool stored)
{
    struct node *n = co_open_image(image, ", 'read-only': true");

    assert_true(!stored || qcow2_bitmaps_count(n) > 0);
    for (uint32_t i = 0; i < qcow2_bitmaps_count(n); i++) {
        struct qcow2_bitmap_info info;
        CLEANUP(bitmap_free) struct bitmap *bm = NULL;
        bool known = false;

        qcow2_bitmaps_get(n, i, &info);
        if (info.in_use)
            continue;
        bm = co_load(n, info.name);
        for (int k = from; k <= to; k++) {
            const struct bitmap *bits = st[k].bits[info.name[0] == 'b'];

            known |= bits && same_bits(bits, bm);
        }
        if (!known)
            fail_msg("bitmap %s is none that was stored", info.name);
    }
    co_node_unref(n);
}

#define PHASE_STEP 300000
#define PHASE_BYTES 200000

/* Whether anything of what phase @k wrote to the disk is there: none of the older
 * bitmaps may look valid then. */
static bool co_shows_phase(const char *image, int k)
{
    CLEANUP(free) unsigned char *data = xmalloc(PHASE_BYTES);
    struct node *n = co_open_image(image, ", 'read-only': true");

    assert_int_equal(co_node_pread(n, (uint64_t)k * PHASE_STEP, PHASE_BYTES, data, 0), 0);
    co_node_unref(n);
    return memchr(data, k + 2, PHASE_BYTES) != NULL;
}

static void co_run_cuts(enum layout layout)
{
    struct state st[STATES];
    size_t stored[STATES + 1], written[STATES + 1];
    struct record r;
    struct node *n;
    uint32_t at;
    bool ok;

    make_states(st);
    co_prepare(layout);
    must_run("cp b.qcow2 before.qcow2");
    n = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', 'file': "
                     "{'driver': 'file', 'filename': '%s'}}}", work_path("record"),
                     work_path("b.qcow2"));
    forget_bitmaps(n);
    for (int k = 0; k < STATES; k++) {
        written[k] = co_count_records();
        co_fill(n, (uint64_t)k * PHASE_STEP, PHASE_BYTES, (unsigned char)(k + 2));
        assert_int_equal(co_node_flush(n), 0);
        co_enter_state(n, &st[k], NULL, &ok);
        assert_true(ok);
        stored[k] = co_count_records();
    }
    at = ((struct qcow2 *)n->state)->header.bitmaps.at;
    assert_int_equal(at / 512 != (at + QCOW2_BITMAP_EXT_BYTES - 1) / 512, layout == SHIFTED);
    co_node_unref(n);
    expect_clean("b.qcow2", false);
    r = load_record();
    for (int trial = 0; trial < 20; trial++) {
        size_t cut = trial ? pick_cut(&r, &seed) : r.n;
        int begun = 0, done = 0;

        for (int k = 0; k < STATES; k++) {
            begun = written[k] <= cut ? k : begun;
            done = stored[k] <= cut ? k : done;
        }
        replay("before.qcow2", "crashed.qcow2", &r, cut, &seed);
        expect_clean("crashed.qcow2", true);
        if (layout == OVERLAY)
            must_run("qemu-img info crashed.qcow2 | grep 'backing file: a-base-with-a-name.raw'");
        co_expect_states("crashed.qcow2", st,
                         co_shows_phase("crashed.qcow2", begun) ? begun : done, begun,
                         stored[0] <= cut);
        if (!trial)
            co_expect_states("crashed.qcow2", st, STATES - 1, STATES - 1, true);
    }
    record_done(&r);
    free_states(st);
}

CO_TEST(a_power_cut_leaves_old_bitmaps_or_new_ones)
{
    seed = test_seed(2024);
    for (int layout = PLAIN; layout <= OVERLAY; layout++) {
        alarm(120);
        co_run_cuts((enum layout)layout);
    }
}

struct failing {
    struct state st[STATES];
};

static int co_failing(struct nth_failure *nf, void *arg)
{
    const struct failing *f = arg;
    struct err err = ERR_INIT;
    struct node *fault, *n;
    bool ok;

    must_run("cp before.qcow2 b.qcow2");
    fault = co_test_open("{'driver': 'fault', 'node-name': 'fault', 'file': {'driver': 'file', "
                         "'filename': '%s'}}", work_path("b.qcow2"));
    n = co_test_open("{'driver': 'qcow2', 'file': 'fault'}");
    forget_bitmaps(n);
    nth_failure_arm(nf, fault);
    co_enter_state(n, &f->st[2], &err, &ok);
    nth_failure_disarm(nf, fault);
    co_node_unref(n);
    co_node_unref(fault);
    expect_clean("b.qcow2", true);
    co_expect_states("b.qcow2", f->st, ok ? 2 : 1, 2, true);
    return ok ? 0 : err.code;
}

CO_TEST(a_failing_write_leaves_old_bitmaps_or_new_ones)
{
    static const enum fault_op ops[] = { FAULT_WRITE, FAULT_FLUSH, FAULT_READ };

    seed = test_seed(77);
    for (int layout = PLAIN; layout <= OVERLAY; layout++) {
        struct failing f;
        struct node *n;
        bool ok;

        make_states(f.st);
        co_prepare((enum layout)layout);
        n = co_open_unfollowed("b.qcow2", "");
        co_enter_state(n, &f.st[1], NULL, &ok);
        assert_true(ok);
        co_node_unref(n);
        must_run("cp b.qcow2 before.qcow2");
        for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
            struct nth_failure nf = { .co_scenario = co_failing, .arg = &f, .op = ops[i],
                                      .tolerates = true };

            alarm(120);
            co_nth_failure_run(&nf);
        }
        free_states(f.st);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_qemu_stored_is_read),
        cmocka_unit_test(what_we_store_is_read_by_qemu),
        cmocka_unit_test(a_bitmap_that_missed_a_write_is_in_use),
        cmocka_unit_test(snapshots_leave_bitmaps_alone_unless_the_disk_changes),
        cmocka_unit_test(what_another_program_left_behind_is_dropped),
        cmocka_unit_test(directories_that_cannot_be),
        cmocka_unit_test(a_disk_without_bytes_has_no_bitmaps),
        cmocka_unit_test(two_of_one_name_are_refused),
        cmocka_unit_test(changes_at_the_same_time_come_one_after_the_other),
        cmocka_unit_test(a_power_cut_leaves_old_bitmaps_or_new_ones),
        cmocka_unit_test(a_failing_write_leaves_old_bitmaps_or_new_ones),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 bitmaps", tests, ARRAY_SIZE(tests));
}
