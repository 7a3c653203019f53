/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a power cut at any moment of any work on any kind of image leaves leaked
 * clusters at worst, and all that was flushed (docs/crash-safety.md); and an image that
 * went through it goes on to work.
 * Method: random shapes (shapes.h) and random work with resizes and compressed writes,
 * flushed now and then, over driver `fault`, which records it. The record is cut at
 * each place in turn (record.h); what is left of the image is judged by this driver's
 * own check and reads, which is fast, and a part of it by QEMU, which is fair.
 *
 * STILLPOINT_SEED repeats a run; STILLPOINT_ROUNDS is how many there are, and with it
 * set each is cut everywhere instead of at some places.
 */
#include "base/bytes.h"
#include "drivers/qcow2/check.h"
#include "record.h"
#include "shapes.h"
#include <stdio.h>
#include <unistd.h>

#define PHASES 5
#define CUTS 30                  /* of a run that is not cut everywhere */
#define CUTS_MOST 1200
#define FOR_QEMU 10              /* judges one in so many */

/* What is known from a flush on. */
struct phase {
    size_t record;               /* it was answered after so many records */
    uint64_t size;               /* of the disk then */
    unsigned char *shadow;
    unsigned char *touched;      /* between this flush and the next */
};

struct run {
    struct model m;
    struct random_shape shape;
    uint64_t seed;
    struct phase phases[PHASES + 1];
    struct record record;
    size_t cut;
};

/* ---- the work ------------------------------------------------------------- */

static void co_end_phase(struct run *r, int i)
{
    r->phases[i] = (struct phase){
        .record = co_count_records(), .size = r->m.size,
        .shadow = xmemdup(r->m.shadow, r->m.size),
        .touched = xzalloc(div_round_up(r->shape.shape.room, 512) + 1),
    };
}

static void co_work(struct run *r)
{
    struct model *m = &r->m;

    must_run("cp model.qcow2 before.qcow2");
    m->node = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', "
                           "'file': {'driver': 'file', 'filename': '%s'}}%s}", work_path("record"),
                           work_path("model.qcow2"), m->shape->options);
    co_end_phase(r, 0);
    for (int i = 1; i <= PHASES; i++) {
        free(MOVE(m->touched));
        m->touched = r->phases[i - 1].touched;
        co_model_work(m, 10 + (unsigned)test_random(&r->seed, m->shape->ops / 4));
        assert_int_equal(co_node_flush(m->node), 0);
        co_end_phase(r, i);
        m->touched = NULL;
    }
    co_node_unref(m->node);
    model_judge(m);
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
    for (uint64_t at = 0; at < last->size; at++) {
        bool changed = false;

        for (const struct phase *p = last; p <= r->phases + PHASES; p++)
            changed |= p->touched[at / 512];
        if (!changed && data[at] != last->shadow[at])
            fail_msg("%s, seed %" PRIu64 ", cut %zu: byte %" PRIu64 " is %d, not %d",
                     r->shape.name, r->m.first_seed, r->cut, at, data[at], last->shadow[at]);
    }
}

/* As after a real crash. */
static void co_go_on(struct run *r)
{
    struct node *n = co_open_image("crashed.qcow2", r->shape.options);
    uint64_t len = node_size(n), at = test_random(&r->seed, len);
    CLEANUP(free) unsigned char *data = xmalloc(len);

    assert_int_equal(co_node_pread(n, 0, len, data, 0), 0);
    expect_content(r, data, len);
    co_fill(n, at, MIN(len - at, 3 * (uint64_t)r->shape.shape.cluster), 0xee);
    co_node_unref(n);
    co_expect_sound(r, "and more work", QCOW2_REPAIR_NONE);
}

static void judge_by_qemu(struct run *r)
{
    CLEANUP(free) unsigned char *data = NULL;
    size_t len;

    expect_clean("crashed.qcow2", true);
    must_run("qemu-img convert -f qcow2 -O raw crashed.qcow2 crashed.raw");
    data = load_file("crashed.raw", &len);
    expect_content(r, data, len);
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
    replay("before.qcow2", "crashed.qcow2", &r->record, cut, &r->seed);
    /* With lazy refcounts the image is sound, or says that it needs this (I-Q10). */
    if (r->shape.shape.version == 3 && is_dirty())
        co_expect_sound(r, "repaired", QCOW2_REPAIR_ALL);
    co_expect_sound(r, "", QCOW2_REPAIR_NONE);
    if (!test_random(&r->seed, FOR_QEMU))
        judge_by_qemu(r);
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
    s->backing = (unsigned)test_random(&r->seed, 3);
    if (s->backing) {
        s->backing_size = align_up(1 + test_random(&r->seed, 2 * s->size), 512);
        if (strstr(r->shape.create, ",preallocation"))
            *strstr(r->shape.create, ",preallocation") = 0;
    }
    s->resize = test_random(&r->seed, 2) && (s->version == 3 || !s->backing);
    s->compress = !test_random(&r->seed, 3);
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
    co_node_unref(r->m.node);
    if (s->version == 3 && s->refcount_bits >= 16 && test_random(&r->seed, 2))
        must_run("qemu-img snapshot -c then model.qcow2");
}

static void co_run(uint64_t seed, bool everywhere)
{
    struct run r = { .seed = seed };
    size_t cuts, step;

    co_make(&r);
    r.m.first_seed = seed;
    printf("seed %" PRIu64 ": %s%s%s\n", seed, r.shape.name, r.shape.options,
           r.shape.shape.compress ? ", compressed writes too" : "");
    fflush(stdout);
    if (test_random(&r.seed, 2))
        co_fill_and_snapshot(&r);
    co_work(&r);
    cuts = everywhere ? CUTS_MOST : CUTS;
    step = MAX(r.record.n / cuts, (size_t)1);
    for (size_t cut = test_random(&r.seed, step); cut <= r.record.n; cut += step)
        co_cut(&r, cut);
    for (size_t i = 0; i < CUTS / 4; i++)
        co_cut(&r, pick_cut(&r.record, &r.seed));
    for (int i = 0; i <= PHASES; i++) {
        free(r.phases[i].shadow);
        free(r.phases[i].touched);
    }
    record_done(&r.record);
    model_done(&r.m);
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
