/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a power cut at any moment of any work on any kind of image leaves leaked
 * clusters at worst, and all that was flushed (docs/crash-safety.md); and an image that
 * went through it goes on to work.
 * Method: random shapes (shapes.h) and random work with resizes and compressed writes,
 * flushed now and then, with snapshots taken and deleted and a bitmap stored between, over
 * driver `fault`, which records it. The record is cut at many places or at each in turn
 * (record.h); what is left of the image is judged by this driver's own check and reads,
 * which is fast, and a part of it by QEMU, which is fair. A snapshot that is there has the
 * content that it was taken of, and a bitmap that is valid tells of every change.
 *
 * STILLPOINT_SEED repeats a run; STILLPOINT_ROUNDS is how many there are, and with it
 * set each is cut in more places, one in eight everywhere.
 */
#include "base/bytes.h"
#include "drivers/qcow2/bitmaps.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/snapshot.h"
#include "kept_bitmaps.h"
#include "record.h"
#include "shapes.h"
#include <stdio.h>
#include <unistd.h>

#define PHASES 5
#define CUTS 30                  /* of a run that is not cut everywhere */
#define CUTS_MORE 100
#define CUTS_MOST 1200
#define FOR_QEMU 10              /* judges one in so many */

/* What is known from a flush on. */
struct phase {
    size_t record;               /* it was answered after so many records */
    uint64_t size;               /* of the disk then */
    unsigned char *shadow;
    unsigned char *touched;      /* between this flush and the next */
};

/* A disk as it was. */
struct state {
    uint64_t size;
    unsigned char *bytes;
};

#define SNAPSHOTS (2 * PHASES)

struct run {
    struct model m;
    struct random_shape shape;
    uint64_t seed;
    struct phase phases[PHASES + 1];
    struct state snapshots[SNAPSHOTS];   /* "s0" and so on */
    int n_snapshots;
    uint64_t granularity;        /* of bitmap "since", which is of phase 0; 0: there is none */
    struct record record;
    size_t cut, n_cuts;
};

static uint64_t below(struct run *r, uint64_t n)
{
    return test_random(&r->seed, n);
}

/* ---- the work ------------------------------------------------------------- */

static void co_end_phase(struct run *r, int i)
{
    r->phases[i] = (struct phase){
        .record = co_count_records(), .size = r->m.size,
        .shadow = xmemdup(r->m.shadow, r->m.size),
        .touched = xzalloc(div_round_up(r->shape.shape.room, 512) + 1),
    };
}

static void co_take_snapshot(struct run *r)
{
    struct state *s = &r->snapshots[r->n_snapshots];
    struct err err = ERR_INIT;

    if (!co_qcow2_snapshot_create(r->m.node, test_text("s%d", r->n_snapshots), &err))
        fail_msg("%s, seed %" PRIu64 ": %s", r->shape.name, r->m.first_seed, err.text);
    *s = (struct state){ r->m.size, xmemdup(r->m.shadow, r->m.size) };
    r->n_snapshots++;
}

static void co_change_snapshots(struct run *r)
{
    json_t *list = qcow2_snapshot_list(r->m.node);
    size_t n = json_array_size(list);
    const char *id;

    /* Compressed clusters have many references already; version 2 does not tell the
     * sizes of snapshots. */
    if (r->shape.shape.refcount_bits < 16 || r->shape.shape.data_file ||
        (r->shape.shape.version == 2 && r->shape.shape.resize))
        ;
    else if (!n || below(r, 2))
        co_take_snapshot(r);
    else {
        id = json_string_value(json_object_get(json_array_get(list, below(r, n)), "id"));
        assert_true(co_qcow2_snapshot_delete(r->m.node, test_text("snapshot.id=%s", id), NULL));
    }
    json_decref(list);
}

/* What was written since phase 0, as its owner knows; false: there is no room for it. */
static bool co_store_since(struct run *r)
{
    struct model *m = &r->m;
    CLEANUP(bitmap_free) struct bitmap *bits = bitmap_new(div_round_up(m->size, r->granularity));
    struct qcow2_bitmap_put put = { "since", r->granularity, true, bits };
    struct err err = ERR_INIT;

    for (uint64_t at = 0; at < m->size; at += 512) {
        for (const struct phase *p = r->phases; p->touched; p++) {
            if (p->touched[at / 512])
                bitmap_set_bit(bits, at / r->granularity);
        }
    }
    if (co_qcow2_bitmaps_store(m->node, &put, 1, &err))
        return true;
    if (err.code != -ENOSPC || m->shape->cluster > 512)
        fail_msg("%s, seed %" PRIu64 ": %s", r->shape.name, m->first_seed, err.text);
    return false;
}

static void co_work(struct run *r)
{
    struct model *m = &r->m;

    copy_file("model.qcow2", "before.qcow2");
    m->node = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', "
                           "'file': {'driver': 'file', 'filename': '%s'}}%s}", work_path("record"),
                           work_path("model.qcow2"), m->shape->options);
    co_end_phase(r, 0);
    for (int i = 1; i <= PHASES; i++) {
        free(MOVE(m->touched));
        m->touched = r->phases[i - 1].touched;
        co_model_work(m, 10 + (unsigned)below(r, m->shape->ops / 4));
        if (!below(r, 3))
            co_change_snapshots(r);
        if (r->granularity && !below(r, 3) && !co_store_since(r))
            r->granularity = 0;
        assert_int_equal(co_node_flush(m->node), 0);
        co_end_phase(r, i);
        m->touched = NULL;
    }
    co_node_unref(m->node);
    model_judge(m);
    if (m->shape->data_file)
        copy_file("model.qcow2.data", "end.data");
    r->record = load_record();
}

/* ---- after a cut ---------------------------------------------------------- */

static void keep_line(void *ctx, const char *line)
{
    char *first = ctx;

    if (!*first)
        snprintf(first, 200, "%s", line);
}

/* Or, with a repair, has become so. */
static void co_expect_sound(struct run *r, const char *when, enum qcow2_repair repair)
{
    struct node *file = co_test_open("{'driver': 'file', 'read-only': %s, 'filename': '%s'}",
                                     repair ? "false" : "true", work_path("crashed.qcow2"));
    char line[200] = "";
    struct qcow2_check_opts o = { .repair = repair, .tell = keep_line, .ctx = line };
    struct qcow2_check_result found;
    struct err err = ERR_INIT;

    if (!co_qcow2_check(file, &o, &found, &err))
        fail_msg("%s, seed %" PRIu64 ", cut %zu: %s", r->shape.name, r->m.first_seed, r->cut,
                 err.text);
    if (found.corruptions || found.check_errors)
        fail_msg("%s, seed %" PRIu64 ", cut %zu %s: %" PRIu64 " corruptions, %s", r->shape.name,
                 r->m.first_seed, r->cut, when, found.corruptions, line);
    co_node_unref(file);
}

static void expect_content(const struct run *r, const unsigned char *data, uint64_t len)
{
    const struct phase *last = r->phases;

    for (const struct phase *p = r->phases; p <= r->phases + PHASES; p++) {
        if (p->record <= r->cut)
            last = p;
    }
    assert_true(len >= last->size && len <= r->m.size);
    for (uint64_t at = 0; at < last->size; at += 512) {
        bool changed = false;

        for (const struct phase *p = last; p <= r->phases + PHASES; p++)
            changed |= p->touched[at / 512];
        if (!changed && memcmp(data + at, last->shadow + at, MIN(512ULL, last->size - at)) != 0)
            fail_msg("%s, seed %" PRIu64 ", cut %zu: at %" PRIu64 " is %d, not %d", r->shape.name,
                     r->m.first_seed, r->cut, at, data[at], last->shadow[at]);
    }
}

/* Bitmap "since" of the crashed image, or NULL if it is not there or not valid. */
static struct bitmap *co_load_since(struct node *n)
{
    struct bitmap *bits = NULL;
    struct qcow2_bitmap_info info;
    struct err err = ERR_INIT;

    if (!qcow2_bitmaps_count(n))
        return NULL;
    assert_int_equal(qcow2_bitmaps_count(n), 1);
    qcow2_bitmaps_get(n, 0, &info);
    if (!info.in_use && !co_qcow2_bitmap_load(n, "since", &bits, &err))
        fail_msg("%s", err.text);
    return bits;
}

/* Each sector that is not as it was in phase 0 has its bit set, or the bitmap is not valid. */
static void co_expect_since(struct run *r, struct node *n, const unsigned char *data, uint64_t len)
{
    CLEANUP(bitmap_free) struct bitmap *bits = co_load_since(n);
    const struct phase *then = r->phases;

    for (uint64_t at = 0; bits && at < len; at += 512) {
        uint64_t part = MIN(512ULL, len - at);

        if (!bitmap_test(bits, at / r->granularity) &&
            (at < then->size ? memcmp(data + at, then->shadow + at, MIN(part, then->size - at)) != 0
                             : !mem_is_zero(data + at, part)))
            fail_msg("%s, seed %" PRIu64 ", cut %zu: the bitmap does not tell that %" PRIu64
                     " changed", r->shape.name, r->m.first_seed, r->cut, at);
    }
}

/* Those that are there are whole. */
static void co_expect_snapshots(struct run *r, struct node *n)
{
    json_t *list = qcow2_snapshot_list(n);
    json_t *v;
    size_t i;

    json_array_foreach(list, i, v) {
        const char *name = json_string_value(json_object_get(v, "name"));
        const struct state *s = &r->snapshots[strtoul(name + 1, NULL, 10)];
        CLEANUP(free) unsigned char *data = xmalloc(s->size);
        struct node *then = co_open_image("crashed.qcow2", test_text(", 'read-only': true, "
                                                                     "'snapshot': '%s'", name));

        assert_int_equal(node_size(then), s->size);
        assert_int_equal(co_node_pread(then, 0, s->size, data, 0), 0);
        if (memcmp(data, s->bytes, s->size) != 0)
            fail_msg("%s, seed %" PRIu64 ", cut %zu: snapshot %s is not what it was",
                     r->shape.name, r->m.first_seed, r->cut, name);
        co_node_unref(then);
    }
    json_decref(list);
}

/* As after a real crash. */
static void co_go_on(struct run *r)
{
    struct node *n = co_open_image("crashed.qcow2", ", 'read-only': true");
    uint64_t len = node_size(n), at = below(r, len);
    CLEANUP(free) unsigned char *data = xmalloc(len);

    assert_int_equal(co_node_pread(n, 0, len, data, 0), 0);
    expect_content(r, data, len);
    co_expect_since(r, n, data, len);
    if (!below(r, 4))
        co_expect_snapshots(r, n);
    co_node_unref(n);
    n = co_open_image("crashed.qcow2", r->shape.options);
    co_fill(n, at, MIN(len - at, 3 * (uint64_t)r->shape.shape.cluster), 0xee);
    co_node_unref(n);
    co_expect_sound(r, "and more work", QCOW2_REPAIR_NONE);
}

/* QEMU sees the bitmap as we do. */
static void co_judge_since(struct run *r, uint64_t len)
{
    struct node *n = co_open_image("crashed.qcow2", ", 'read-only': true");
    CLEANUP(bitmap_free) struct bitmap *bits = co_load_since(n), *theirs = NULL;

    co_node_unref(n);
    if (!bits)
        return;
    theirs = qemu_bits("crashed.qcow2", "since", r->granularity, len);
    assert_true(same_bits(bits, theirs));
}

static void co_judge_by_qemu(struct run *r)
{
    CLEANUP(free) unsigned char *data = NULL;
    size_t len;

    expect_clean("crashed.qcow2", true);
    must_run("qemu-img convert -f qcow2 -O raw crashed.qcow2 crashed.raw");
    data = load_file("crashed.raw", &len);
    expect_content(r, data, len);
    co_judge_since(r, len);
}

static bool is_dirty(void)
{
    uint8_t features[8];

    file_read(work_path("crashed.qcow2"), 72, features, sizeof(features));
    return load_be64(features) & QCOW2_INCOMPAT_DIRTY;
}

static void co_cut(struct run *r, size_t cut)
{
    alarm(120);
    r->cut = cut;
    r->n_cuts++;
    /* The data file keeps all of it. */
    if (r->shape.shape.data_file)
        copy_file("end.data", "model.qcow2.data");
    replay("before.qcow2", "crashed.qcow2", &r->record, cut, &r->seed);
    /* With lazy refcounts the image is sound, or says that it needs this (I-Q10). */
    if (r->shape.shape.version == 3 && is_dirty())
        co_expect_sound(r, "repaired", QCOW2_REPAIR_ALL);
    co_expect_sound(r, "", QCOW2_REPAIR_NONE);
    if (!below(r, FOR_QEMU))
        co_judge_by_qemu(r);
    co_go_on(r);
}

/* ---- a run ---------------------------------------------------------------- */

static void co_make(struct run *r)
{
    static const char *const names[] = { NULL, "base.raw", "base.qcow2" };
    static const char *const formats[] = { NULL, "raw", "qcow2" };
    struct shape *s = &r->shape.shape;

    /* So that a cut is judged in some milliseconds. */
    do
        random_shape(&r->shape, 0, &r->seed);
    while (s->size > 3 * MiB);
    s->backing = (unsigned)below(r, 3);
    if (s->backing) {
        s->backing_size = align_up(1 + below(r, 2 * s->size), 512);
        if (strstr(r->shape.create, ",preallocation"))
            *strstr(r->shape.create, ",preallocation") = 0;
    }
    s->resize = below(r, 2) && (s->version == 3 || !s->backing);
    s->compress = !s->data_file && !below(r, 3);
    s->room = s->size + MiB;
    model_init(&r->m, s, r->seed);
    if (s->backing)
        model_make_backing(&r->m);
    co_model_make(s, "model.qcow2", names[s->backing], formats[s->backing]);
    r->m.lenient = s->resize || (s->extended && s->compress);
}

/* So that work begins with clusters and tables that are shared. */
static void co_fill_and_snapshot(struct run *r)
{
    struct shape *s = &r->shape.shape;

    r->m.node = co_open_image("model.qcow2", s->options);
    co_model_work(&r->m, s->ops / 4);
    if (below(r, 2))
        co_change_snapshots(r);
    co_node_unref(r->m.node);
}

/* The bitmap is of what comes now: it is empty. */
static void co_add_bitmap(struct run *r)
{
    r->granularity = 512ULL << below(r, 9);
    r->m.node = co_open_image("model.qcow2", "");
    if (!co_store_since(r))
        r->granularity = 0;
    co_node_unref(r->m.node);
}

/* @more: cuts than a test has time for. */
static void co_run(uint64_t seed, bool more)
{
    struct run r = { .seed = seed };
    size_t cuts, step;

    co_make(&r);
    r.m.first_seed = seed;
    printf("seed %" PRIu64 ": %s%s%s\n", seed, r.shape.name, r.shape.options,
           r.shape.shape.compress ? ", compressed writes too" : "");
    fflush(stdout);
    if (below(&r, 2))
        co_fill_and_snapshot(&r);
    /* What is in a data file is newer than what a bitmap tells of the record. */
    if (r.shape.shape.version == 3 && !r.shape.shape.data_file && below(&r, 2))
        co_add_bitmap(&r);
    co_work(&r);
    cuts = !more ? CUTS : below(&r, 8) ? CUTS_MORE : CUTS_MOST;
    step = MAX(r.record.n / cuts, (size_t)1);
    for (size_t cut = below(&r, step); cut <= r.record.n; cut += step)
        co_cut(&r, cut);
    for (size_t i = 0; i < CUTS / 4; i++)
        co_cut(&r, pick_cut(&r.record, &r.seed));
    for (int i = 0; i <= PHASES; i++) {
        free(r.phases[i].shadow);
        free(r.phases[i].touched);
    }
    for (int i = 0; i < r.n_snapshots; i++)
        free(r.snapshots[i].bytes);
    record_done(&r.record);
    model_done(&r.m);
    test_tally(r.n_cuts, "power cuts");
    test_tally(1, "images that were cut");
}

CO_TEST(nothing_flushed_is_lost_wherever_the_power_goes)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    uint64_t seed = test_seed(20261201);

    for (long round = 0; round < (rounds ? atol(rounds) : 2); round++) {
        alarm(120);
        co_run(seed + (uint64_t)round, rounds != NULL);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_flushed_is_lost_wherever_the_power_goes),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "power cuts of qcow2", tests, ARRAY_SIZE(tests));
}
