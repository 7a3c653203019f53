/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: snapshots taken, deleted and gone back to, here and by QEMU in turn, keep
 * what they hold; and whatever fails or wherever the power goes, the image is as
 * before or as after, with leaked clusters at worst (I-Q11).
 * Method: a disk and shadows of it and of each snapshot, random changes, qemu-img
 * check after each; the N-th failure loop; replays of a record (record.h).
 */
#include "base/bytes.h"
#include "drivers/qcow2/format.h"
#include "drivers/qcow2/snapshot.h"
#include "nth_failure.h"
#include "record.h"
#include <unistd.h>

#define SIZE (3 * MiB)
#define SNAPSHOTS 6

struct state {
    unsigned char *disk;
    char names[SNAPSHOTS][8];        /* "": none */
    unsigned char *snapshots[SNAPSHOTS];
};

static const struct qcow2_create_opts shapes[] = {
    { .size = SIZE },
    { .size = SIZE, .cluster_size = 512, .refcount_bits = 64 },
    { .size = SIZE, .cluster_size = 4096, .refcount_bits = 8 },
    { .size = SIZE, .cluster_size = 4096, .version = 2 },
    { .size = SIZE, .cluster_size = 16384, .extended_l2 = true },
    { .size = SIZE, .cluster_size = 4096, .lazy_refcounts = true },
};

static uint64_t seed;
static unsigned next_name;

/* More of them in long runs. */
static size_t rounds(void)
{
    const char *text = getenv("STILLPOINT_ROUNDS");

    return text ? (size_t)atol(text) : 1;
}

/* ---- shadows ------------------------------------------------------------- */

static struct state state_new(void)
{
    return (struct state){ .disk = xzalloc(SIZE) };
}

static struct state state_copy(const struct state *st)
{
    struct state copy = *st;

    copy.disk = xmemdup(st->disk, SIZE);
    for (int i = 0; i < SNAPSHOTS; i++) {
        if (*st->names[i])
            copy.snapshots[i] = xmemdup(st->snapshots[i], SIZE);
    }
    return copy;
}

static void state_done(struct state *st)
{
    free(st->disk);
    for (int i = 0; i < SNAPSHOTS; i++)
        free(*st->names[i] ? st->snapshots[i] : NULL);
}

static int pick_snapshot(const struct state *st, bool there)
{
    int first = (int)test_random(&seed, SNAPSHOTS);

    for (int i = 0; i < SNAPSHOTS; i++) {
        int at = (first + i) % SNAPSHOTS;

        if (!!*st->names[at] == there)
            return at;
    }
    return -1;
}

static unsigned count_snapshots(const struct state *st)
{
    unsigned n = 0;

    for (int i = 0; i < SNAPSHOTS; i++)
        n += !!*st->names[i];
    return n;
}

/* ---- changes ------------------------------------------------------------- */

/* Each byte changes once at most. */
static void co_scribble(struct node *n, struct state *st)
{
    uint64_t at = 0;

    while (at < SIZE) {
        uint64_t off = at + test_random(&seed, SIZE / 2);
        uint64_t len = 1 + test_random(&seed, test_random(&seed, 3) ? 20000 : 700000);
        unsigned char byte = (unsigned char)(1 + test_random(&seed, 255));

        off = test_random(&seed, 2) ? align_down(off, 4096) : off;
        if (off >= SIZE)
            break;
        len = MIN(len, SIZE - off);
        if (test_random(&seed, 4)) {
            co_fill(n, off, len, byte);
        } else {
            byte = 0;
            assert_int_equal(co_node_write_zeroes(n, off, len, REQ_MAY_UNMAP), 0);
        }
        memset(st->disk + off, byte, len);
        at = off + len;
    }
}

/* Some whole clusters, compressed; several share a host cluster. */
static void co_compress(struct node *n, struct state *st, uint64_t cluster)
{
    CLEANUP(free) unsigned char *data = xmalloc(cluster);

    for (int i = 0; i < 6; i++) {
        uint64_t off = align_down(test_random(&seed, SIZE - cluster), cluster);

        memset(data, (int)test_random(&seed, 256), cluster);
        assert_int_equal(co_node_pwrite(n, off, cluster, data, REQ_COMPRESSED), 0);
        memcpy(st->disk + off, data, cluster);
    }
}

enum change { CREATE, DELETE, APPLY };

/* What is done to which snapshot. */
static enum change pick_change(const struct state *st, int *ret_which)
{
    enum change change = count_snapshots(st) < 2 ? CREATE
                         : count_snapshots(st) == SNAPSHOTS ? DELETE
                                                            : (enum change)test_random(&seed, 3);

    *ret_which = pick_snapshot(st, change != CREATE);
    return change;
}

static void change_state(struct state *st, enum change change, int which)
{
    switch (change) {
    case CREATE:
        snprintf(st->names[which], sizeof(st->names[which]), "s%u", ++next_name);
        st->snapshots[which] = xmemdup(st->disk, SIZE);
        return;
    case DELETE:
        free(st->snapshots[which]);
        *st->names[which] = 0;
        return;
    case APPLY:
        memcpy(st->disk, st->snapshots[which], SIZE);
        return;
    }
}

static bool co_change(struct node *n, enum change change, const char *name, struct err *err)
{
    switch (change) {
    case CREATE:
        return co_qcow2_snapshot_create(n, name, err);
    case DELETE:
        return co_qcow2_snapshot_delete(n, name, err);
    case APPLY:
        return co_qcow2_snapshot_apply(n, name, err);
    }
    return false;
}

static void co_must_change(struct node *n, enum change change, const char *name)
{
    struct err err = ERR_INIT;

    if (!co_change(n, change, name, &err))
        fail_msg("%s: %s", name, err.text);
}

/* ---- judging ------------------------------------------------------------- */

static bool co_reads_as(struct node *n, const unsigned char *shadow)
{
    CLEANUP(free) unsigned char *data = xmalloc(SIZE);

    assert_int_equal(node_size(n), SIZE);
    assert_int_equal(co_node_pread(n, 0, SIZE, data, 0), 0);
    return memcmp(data, shadow, SIZE) == 0;
}

static struct node *co_open_at(const char *image, const char *snapshot)
{
    return co_test_open("{'driver': 'qcow2', 'read-only': true, 'snapshot': '%s', 'file': "
                        "{'driver': 'file', 'filename': '%s'}}", snapshot, work_path(image));
}

static bool has_snapshot(struct node *n, const char *name)
{
    json_t *list = qcow2_snapshot_list(n), *sn;
    bool found = false;
    size_t i;

    json_array_foreach(list, i, sn)
        found |= strcmp(json_string_value(json_object_get(sn, "name")), name) == 0;
    json_decref(list);
    return found;
}

/* The image has just the snapshots of @st, and they what they should. */
static bool co_has_snapshots(const char *image, const struct state *st)
{
    struct node *n = co_test_open("{'driver': 'qcow2', 'read-only': true, 'file': {'driver': "
                                  "'file', 'filename': '%s'}}", work_path(image));
    json_t *list = qcow2_snapshot_list(n);
    bool same = json_array_size(list) == count_snapshots(st);

    json_decref(list);
    for (int i = 0; same && i < SNAPSHOTS; i++)
        same = !*st->names[i] || has_snapshot(n, st->names[i]);
    co_node_unref(n);
    for (int i = 0; same && i < SNAPSHOTS; i++) {
        if (!*st->names[i])
            continue;
        n = co_open_at(image, st->names[i]);
        assert_true(co_reads_as(n, st->snapshots[i]));
        co_node_unref(n);
    }
    return same;
}

static bool co_has_disk(const char *image, const unsigned char *shadow)
{
    struct node *n = co_open_image(image, ", 'read-only': true");
    bool same = co_reads_as(n, shadow);

    co_node_unref(n);
    return same;
}

static void save_shadow(const unsigned char *shadow)
{
    make_file(work_path("shadow.raw"), 0);
    file_write(work_path("shadow.raw"), 0, shadow, SIZE);
}

static void qemu_agrees(const struct state *st)
{
    save_shadow(st->disk);
    expect_same("s.qcow2", "shadow.raw");
    for (int i = 0; i < SNAPSHOTS; i++) {
        if (!*st->names[i])
            continue;
        save_shadow(st->snapshots[i]);
        must_run("qemu-img convert -f qcow2 -O raw -l snapshot.name=%s s.qcow2 at.raw && "
                 "cmp at.raw shadow.raw", st->names[i]);
    }
}

/* ---- in turn with QEMU --------------------------------------------------- */

#define STEPS 5

static void co_run_shape(const struct qcow2_create_opts *shape)
{
    struct state st = state_new();

    co_make_image("s.qcow2", shape);
    for (int step = 0; step < STEPS; step++) {
        struct node *n = co_open_image("s.qcow2", ", 'discard': 'unmap'");
        int which;
        enum change change = pick_change(&st, &which);
        bool ours = test_random(&seed, 3);
        char name[8];

        co_scribble(n, &st);
        co_compress(n, &st, shape->cluster_size ? shape->cluster_size : 65536);
        snprintf(name, sizeof(name), "%s", st.names[which]);
        change_state(&st, change, which);
        if (change == CREATE)
            snprintf(name, sizeof(name), "%s", st.names[which]);
        if (ours) {
            co_must_change(n, change, name);
            assert_true(co_reads_as(n, st.disk));
            if (test_random(&seed, 2)) {  /* the node goes on */
                co_compress(n, &st, shape->cluster_size ? shape->cluster_size : 65536);
                co_scribble(n, &st);
            }
        }
        co_node_unref(n);
        if (!ours)
            must_run("qemu-img snapshot -%c %s s.qcow2", "cda"[change], name);
        expect_clean("s.qcow2", false);
        assert_true(co_has_disk("s.qcow2", st.disk));
        assert_true(co_has_snapshots("s.qcow2", &st));
    }
    qemu_agrees(&st);
    state_done(&st);
}

CO_TEST(snapshots_by_us_and_by_qemu_in_turn)
{
    seed = test_seed(20261124);
    for (size_t i = 0; i < ARRAY_SIZE(shapes) * rounds(); i++) {
        alarm(120);
        co_run_shape(&shapes[i % ARRAY_SIZE(shapes)]);
    }
}

/* ---- failures ------------------------------------------------------------ */

/* s.qcow2 with two snapshots, and the shadows. */
static struct state co_prepare(const struct qcow2_create_opts *shape)
{
    struct state st = state_new();
    struct node *n;

    next_name = 0;
    co_make_image("s.qcow2", shape);
    n = co_open_image("s.qcow2", "");
    for (int i = 0; i < 2; i++) {
        co_scribble(n, &st);
        change_state(&st, CREATE, i);
        co_must_change(n, CREATE, st.names[i]);
    }
    co_scribble(n, &st);
    co_node_unref(n);
    must_run("cp s.qcow2 before.qcow2");
    return st;
}

struct failing {
    struct state before, after;
    enum change change;
    const char *name;
};

static int co_failing(struct nth_failure *nf, void *arg)
{
    const struct failing *f = arg;
    struct err err = ERR_INIT;
    struct node *fault, *n;
    bool ok, before, after;

    must_run("cp before.qcow2 s.qcow2");
    fault = co_test_open("{'driver': 'fault', 'discard': 'unmap', 'node-name': 'fault', 'file': "
                         "{'driver': 'file', 'filename': '%s'}}", work_path("s.qcow2"));
    n = co_test_open("{'driver': 'qcow2', 'file': 'fault'}");
    nth_failure_arm(nf, fault);
    ok = co_change(n, f->change, f->name, &err);
    if (!nf->cut)
        nth_failure_disarm(nf, fault);
    if (!nf->cut && !ok && test_random(&seed, 2)) {
        /* It goes on as it was, or says that it cannot. */
        int r = co_node_flush(n);

        (void)r;
        assert_true(co_reads_as(n, f->before.disk) || co_reads_as(n, f->after.disk));
    }
    co_node_unref(n);
    if (nf->cut)
        nth_failure_disarm(nf, fault);
    co_node_unref(fault);
    expect_clean("s.qcow2", true);
    after = co_has_snapshots("s.qcow2", &f->after) && co_has_disk("s.qcow2", f->after.disk);
    before = co_has_snapshots("s.qcow2", &f->before) && co_has_disk("s.qcow2", f->before.disk);
    assert_true(after || (before && !ok));
    return ok ? 0 : err.code;
}

static void co_run_failing(enum change change, enum fault_op op, bool cut)
{
    struct nth_failure nf = { .co_scenario = co_failing, .op = op, .cut = cut, .tolerates = true };
    struct failing f = { .before = co_prepare(&shapes[0]), .change = change };

    f.after = state_copy(&f.before);
    f.name = change == CREATE ? "s3" : "s1";
    change_state(&f.after, change, change == CREATE ? 2 : 0);
    nf.arg = &f;
    alarm(200);
    assert_true(co_nth_failure_run(&nf) > 3);
    state_done(&f.before);
    state_done(&f.after);
}

CO_TEST(whatever_fails_it_is_as_before_or_as_after)
{
    seed = test_seed(4711);
    for (enum change change = CREATE; change <= APPLY; change++) {
        co_run_failing(change, FAULT_WRITE, false);
        co_run_failing(change, FAULT_FLUSH, change == DELETE);
    }
    co_run_failing(APPLY, FAULT_READ, false);
}

/* ---- power cuts ---------------------------------------------------------- */

#define PHASES 9
#define TRIALS 6

/* Every other phase changes the snapshots, the others the disk. */
static void co_do_phase(struct node *n, struct state *st, int phase)
{
    int which;
    enum change change = pick_change(st, &which);
    char name[8];

    if (phase % 2 == 0) {
        co_scribble(n, st);
        assert_int_equal(co_node_flush(n), 0);
        return;
    }
    snprintf(name, sizeof(name), "%s", st->names[which]);
    change_state(st, change, which);
    co_must_change(n, change, change == CREATE ? st->names[which] : name);
}

/* Every byte of the disk is one of @a or one of @b. */
static void co_expect_between(const unsigned char *a, const unsigned char *b)
{
    CLEANUP(free) unsigned char *data = xmalloc(SIZE);
    struct node *n = co_open_image("crashed.qcow2", ", 'read-only': true");

    assert_int_equal(co_node_pread(n, 0, SIZE, data, 0), 0);
    co_node_unref(n);
    for (uint64_t i = 0; i < SIZE; i++) {
        if (data[i] != a[i] && data[i] != b[i])
            fail_msg("byte %" PRIu64 " is %d, neither %d nor %d", i, data[i], a[i], b[i]);
    }
}

static void co_judge_cut(const struct state *a, const struct state *b, bool snapshots_changed)
{
    bool old = co_has_snapshots("crashed.qcow2", a);

    expect_clean("crashed.qcow2", true);
    assert_true(old || co_has_snapshots("crashed.qcow2", b));
    co_expect_between(a->disk, b->disk);
    if (snapshots_changed)
        assert_true(co_has_disk("crashed.qcow2", a->disk) ||
                    co_has_disk("crashed.qcow2", b->disk));
}

/* It says that its refcounts may be wrong (I-Q10). */
static bool is_dirty(const char *image)
{
    uint8_t bits[8];

    file_read(work_path(image), 72, bits, sizeof(bits));
    return bits[7] & 1;
}

static void co_run_cuts(const struct qcow2_create_opts *shape)
{
    struct state states[PHASES + 1];
    size_t done[PHASES + 1];
    struct record r;
    struct node *n;

    states[0] = co_prepare(shape);
    n = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', 'discard': "
                     "'unmap', 'file': {'driver': 'file', 'filename': '%s'}}, 'discard': 'unmap'}",
                     work_path("record"), work_path("s.qcow2"));
    done[0] = 0;
    for (int i = 1; i <= PHASES; i++) {
        states[i] = state_copy(&states[i - 1]);
        co_do_phase(n, &states[i], i);
        done[i] = co_count_records();
    }
    co_node_unref(n);
    expect_clean("s.qcow2", false);
    r = load_record();
    for (int trial = 0; trial < TRIALS; trial++) {
        size_t cut = trial ? pick_cut(&r, &seed) : r.n;
        int last = 0;

        while (last < PHASES && done[last + 1] <= cut)
            last++;
        replay("before.qcow2", "crashed.qcow2", &r, cut, &seed);
        if (shape->lazy_refcounts && is_dirty("crashed.qcow2"))
            must_run("qemu-img check -r all -f qcow2 crashed.qcow2");
        co_judge_cut(&states[last], &states[MIN(last + 1, PHASES)], (last + 1) % 2);
    }
    record_done(&r);
    for (int i = 0; i <= PHASES; i++)
        state_done(&states[i]);
}

CO_TEST(a_power_cut_leaves_it_as_before_or_as_after)
{
    seed = test_seed(1848);
    for (size_t i = 0; i < ARRAY_SIZE(shapes) * rounds(); i++) {
        alarm(120);
        co_run_cuts(&shapes[i % ARRAY_SIZE(shapes)]);
    }
}

/* ---- the rest ------------------------------------------------------------ */

static void co_expect_refusal(struct node *n, enum change change, const char *name,
                              const char *words)
{
    struct err err = ERR_INIT;

    assert_false(co_change(n, change, name, &err));
    if (!strstr(err.text, words))
        fail_msg("'%s' does not say '%s'", err.text, words);
}

CO_TEST(what_cannot_be_is_refused)
{
    struct node *n;

    co_make_image("s.qcow2", &(struct qcow2_create_opts){ .size = SIZE, .refcount_bits = 1 });
    n = co_open_image("s.qcow2", "");
    co_fill(n, 0, MiB, 1);
    co_expect_refusal(n, CREATE, "a", "too narrow");
    co_expect(n, 0, MiB, 1);
    co_fill(n, MiB, MiB, 2);
    co_node_unref(n);
    expect_clean("s.qcow2", false);

    co_make_image("s.qcow2", &(struct qcow2_create_opts){ .size = SIZE });
    n = co_open_image("s.qcow2", "");
    co_expect_refusal(n, CREATE, "", "needs a name");
    co_must_change(n, CREATE, "2");
    co_must_change(n, CREATE, "other");
    co_expect_refusal(n, CREATE, "2", "already");
    co_expect_refusal(n, DELETE, "2", "is the id of one snapshot and the name of another");
    co_expect_refusal(n, DELETE, "nothing", "has no snapshot 'nothing'");
    co_must_change(n, DELETE, "snapshot.id=2");
    assert_true(has_snapshot(n, "2"));
    co_must_change(n, DELETE, "snapshot.id=1,snapshot.name=2");
    assert_false(has_snapshot(n, "2"));
    co_node_unref(n);
    expect_clean("s.qcow2", false);
    must_run("rm -f s.qcow2 && qemu-img create -q -f qcow2 -o data_file=d.raw s.qcow2 3M");
    n = co_open_image("s.qcow2", "");
    co_expect_refusal(n, CREATE, "a", "external data file");
    co_node_unref(n);
    co_open_refused("a snapshot can only be opened read-only", "{'driver': 'qcow2', 'snapshot': "
                    "'a', 'file': {'driver': 'file', 'filename': '%s'}}", work_path("s.qcow2"));
    co_open_refused("has no snapshot 'a'", "{'driver': 'qcow2', 'snapshot': 'a', 'read-only': "
                    "true, 'file': {'driver': 'file', 'filename': '%s'}}", work_path("s.qcow2"));
}

CO_TEST(going_back_to_a_snapshot_of_another_size)
{
    struct node *n;

    must_run("qemu-img create -q -f qcow2 s.qcow2 3M && qemu-io -f qcow2 -c 'write -P 5 0 3M' "
             "s.qcow2 && qemu-img snapshot -c small s.qcow2 && qemu-img resize -q s.qcow2 5M && "
             "qemu-io -f qcow2 -c 'write -P 6 0 5M' s.qcow2 && qemu-img snapshot -c large s.qcow2");
    n = co_open_image("s.qcow2", "");
    co_must_change(n, APPLY, "small");
    assert_int_equal(node_size(n), 3 * MiB);
    co_expect(n, 0, 3 * MiB, 5);
    co_must_change(n, APPLY, "large");
    assert_int_equal(node_size(n), 5 * MiB);
    co_expect(n, 0, 5 * MiB, 6);
    co_must_change(n, APPLY, "small");
    co_node_unref(n);
    expect_clean("s.qcow2", false);
    n = co_open_at("s.qcow2", "large");
    assert_int_equal(node_size(n), 5 * MiB);
    co_expect(n, 0, 5 * MiB, 6);
    co_node_unref(n);
    must_run("qemu-img info s.qcow2 | grep -q 'virtual size: 3 MiB'");
}

/* Opened for writing it is refused; reading the disk goes on. */
static void co_expect_bad_table(const char *words)
{
    struct node *n;

    co_open_refused(words, "{'driver': 'qcow2', 'file': {'driver': 'file', 'filename': '%s'}}",
                    work_path("s.qcow2"));
    n = co_open_image("s.qcow2", ", 'read-only': true");
    co_expect(n, 0, 512, 7);
    co_node_unref(n);
    must_run("cp before.qcow2 s.qcow2");
}

static uint64_t get64_of(const char *image, uint64_t at)
{
    uint8_t buf[8];

    file_read(work_path(image), at, buf, sizeof(buf));
    return load_be64(buf);
}

static uint64_t get64(uint64_t at)
{
    return get64_of("s.qcow2", at);
}

static void set64(uint64_t at, uint64_t v)
{
    uint8_t buf[8];

    store_be64(buf, v);
    file_write(work_path("s.qcow2"), at, buf, sizeof(buf));
}

/* QEMU's image with one snapshot; where its table is. */
static uint64_t make_one(void)
{
    must_run("rm -f s.qcow2 && qemu-img create -q -f qcow2 s.qcow2 3M && "
             "qemu-io -f qcow2 -c 'write -P 7 0 1M' s.qcow2 && "
             "qemu-img snapshot -c a s.qcow2 && cp s.qcow2 before.qcow2");
    return get64(64);
}

CO_TEST(a_snapshot_table_that_cannot_be)
{
    uint64_t table = make_one();

    set64(64, 1ULL << 40);
    co_expect_bad_table("where none can be");
    set64(table, 1ULL << 40);
    co_expect_bad_table("the L1 table of snapshot 'a' reaches past the end of the file");
    set64(table + 32, 0x7fffffff);
    co_expect_bad_table("bytes of extra data");
    set64(table + 8, 1ULL << 32 | 0xffffffff);
    co_expect_bad_table("reaches past the end");
    set64(56, 1ULL << 32 | 30000);
    co_expect_bad_table("reaches past the end");
}

/* 'a' cannot be used, and 'b' is as if nothing were; by us and by QEMU. */
static void co_expect_one_lost(const char *words)
{
    uint8_t before[64], after[64];
    uint64_t moved;
    struct node *n;

    file_read(work_path("s.qcow2"), get64(64), before, sizeof(before));
    co_open_refused(words, "{'driver': 'qcow2', 'snapshot': 'a', 'read-only': true, 'file': "
                    "{'driver': 'file', 'filename': '%s'}}", work_path("s.qcow2"));
    n = co_open_image("s.qcow2", "");
    assert_true(has_snapshot(n, "a") && has_snapshot(n, "b"));
    assert_non_null(qcow2_snapshot_flaw(n, 0));
    assert_null(qcow2_snapshot_flaw(n, 1));
    co_expect_refusal(n, APPLY, "a", words);
    co_expect_refusal(n, DELETE, "a", words);
    co_fill(n, 0, 2 * MiB, 9);
    co_must_change(n, CREATE, "c");
    co_must_change(n, APPLY, "b");
    co_expect(n, 0, MiB, 8);
    co_must_change(n, DELETE, "b");
    co_expect(n, 0, MiB, 8);
    co_node_unref(n);
    n = co_open_at("s.qcow2", "c");
    co_expect(n, 0, 2 * MiB, 9);
    co_node_unref(n);
    moved = get64(64);
    file_read(work_path("s.qcow2"), moved, after, sizeof(after));
    assert_memory_equal(before, after, sizeof(before));
    must_run("qemu-io -f qcow2 -r -c 'read -P 8 0 1M' s.qcow2 && qemu-img snapshot -l s.qcow2");
    /* What 'a' has was never given away: made right again it is what it was. */
    {
        uint8_t good[64];

        file_read(work_path("before.qcow2"), get64_of("before.qcow2", 64), good, sizeof(good));
        file_write(work_path("s.qcow2"), moved, good, sizeof(good));
    }
    n = co_open_at("s.qcow2", "a");
    co_expect(n, 0, MiB, 7);
    co_node_unref(n);
    expect_clean("s.qcow2", false);
    must_run("cp before.qcow2 s.qcow2");
}

CO_TEST(a_bad_snapshot_costs_only_itself)
{
    uint64_t table;

    (void)make_one();
    must_run("qemu-io -f qcow2 -c 'write -P 8 0 1M' s.qcow2 && qemu-img snapshot -c b s.qcow2 && "
             "cp s.qcow2 before.qcow2");
    table = get64(64);
    set64(table, get64(table) + 512);
    co_expect_one_lost("its L1 table has no place in the image");
    set64(table + 8, 0xffffffffULL << 32 | 0x10001);
    co_expect_one_lost("its L1 table is larger than any");
    set64(table + 48, UINT64_MAX);
    co_expect_one_lost("its disk is larger than any");
}

/* An L2 entry of the disk that says that a snapshot's tables were its data. */
CO_TEST(tables_of_snapshots_are_never_written_as_data)
{
    for (int i = 0; i < 3; i++) {
        uint64_t table = make_one(), l1 = get64(table), l2 = get64(l1) & QCOW2_OFFSET_MASK;
        const uint64_t places[] = { table, l1, l2 };
        CLEANUP(free) void *data = xzalloc(65536);
        uint64_t was, active;
        struct node *n;

        n = co_open_image("s.qcow2", "");
        co_fill(n, 0, 65536, 8);             /* a table of its own */
        co_node_unref(n);
        active = get64(get64(40)) & QCOW2_OFFSET_MASK;
        assert_int_not_equal(active, l2);
        set64(active + 8, places[i] | QCOW2_COPIED);
        was = get64(places[i]);
        n = co_open_image("s.qcow2", "");
        assert_int_equal(co_node_pwrite(n, 65536, 65536, data, 0), -EIO);
        assert_int_equal(co_node_pwrite(n, 0, 512, data, 0), -EIO);      /* marked corrupt */
        co_node_unref(n);
        assert_int_equal(get64(places[i]), was);
    }
}

/* Else a small image could name one table a million times. */
CO_TEST(an_l2_table_that_is_named_twice_is_refused)
{
    struct node *n;
    uint64_t l1;

    must_run("rm -f s.qcow2 && qemu-img create -q -f qcow2 -o cluster_size=4k s.qcow2 8M && "
             "qemu-io -f qcow2 -c 'write -P 7 0 1M' s.qcow2 && qemu-img snapshot -c a s.qcow2");
    l1 = get64(get64(64));
    assert_true(get64(l1) && !get64(l1 + 8));
    set64(l1 + 8, get64(l1));
    n = co_open_image("s.qcow2", "");
    co_expect_refusal(n, APPLY, "a", "the image is corrupt");
    co_expect_refusal(n, DELETE, "a", "the image is corrupt");
    co_expect(n, 0, MiB, 7);
    co_fill(n, 4 * MiB, MiB, 8);             /* nothing has happened */
    co_expect(n, 4 * MiB, MiB, 8);
    co_node_unref(n);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(snapshots_by_us_and_by_qemu_in_turn),
        cmocka_unit_test(whatever_fails_it_is_as_before_or_as_after),
        cmocka_unit_test(a_power_cut_leaves_it_as_before_or_as_after),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(going_back_to_a_snapshot_of_another_size),
        cmocka_unit_test(a_snapshot_table_that_cannot_be),
        cmocka_unit_test(a_bad_snapshot_costs_only_itself),
        cmocka_unit_test(tables_of_snapshots_are_never_written_as_data),
        cmocka_unit_test(an_l2_table_that_is_named_twice_is_refused),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 snapshots", tests, ARRAY_SIZE(tests));
}
