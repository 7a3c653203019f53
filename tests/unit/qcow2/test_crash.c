/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a power cut at any moment leaves an image with leaked clusters at worst
 * (I-Q1 .. I-Q6), and all that was flushed before.
 * Method: driver `fault` under the image records what the file is asked, and that
 * is replayed up to any moment (record.h). qemu-img check must find no error, and what
 * qemu-img reads must agree with the shadow of the last flush wherever nothing was
 * written since.
 */
#include "base/bytes.h"
#include "model.h"
#include "record.h"
#include <unistd.h>

#define PHASES 5
#define TRIALS 30

static const struct shape shapes[] = {
    { "64k-over-raw", 65536, 16, 3, 4 * MiB, RAW_BACKING, 3 * MiB,
      TINY_CACHES ", 'discard': 'unmap'", 60 },
    { "64k", 65536, 16, 3, 4 * MiB, NO_BACKING, 0,
      ", 'discard': 'unmap', 'pass-discard-other': true", 60 },
    { "512-refcount64", 512, 64, 3, 3 * MiB, NO_BACKING, 0,
      TINY_CACHES ", 'discard': 'unmap'", 50 },
    { "1k-over-qcow2", 1024, 16, 3, 512 * KiB, QCOW2_BACKING, 512 * KiB,
      TINY_CACHES ", 'discard': 'unmap'", 100 },
    { "4k-v2", 4096, 16, 2, 1 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 100 },
    { "16k-extended-over-raw", 16384, 16, 3, 4 * MiB, RAW_BACKING, 3 * MiB,
      TINY_CACHES ", 'discard': 'unmap'", 60, .extended = true },
    { "64k-extended-snapshot", 65536, 16, 3, 4 * MiB, NO_BACKING, 0,
      ", 'discard': 'unmap', 'pass-discard-other': true", 60, .extended = true, .snapshot = true },
    { "64k-lazy", 65536, 16, 3, 4 * MiB, RAW_BACKING, 3 * MiB,
      LAZY TINY_CACHES ", 'discard': 'unmap'", 60 },
    { "512-lazy", 512, 16, 3, 3 * MiB, NO_BACKING, 0, LAZY TINY_CACHES ", 'discard': 'unmap'", 50 },
    { "4k-compressed", 4096, 16, 3, 2 * MiB, RAW_BACKING, 1 * MiB,
      TINY_CACHES ", 'discard': 'unmap', 'pass-discard-other': true", 80, .compress = true },
    /* The data file keeps all of it: what lies between its flush and the entries is
     * test_datafile.c's. */
    { "64k-data-over-raw", 65536, 16, 3, 3 * MiB, RAW_BACKING, 2 * MiB,
      TINY_CACHES ", 'discard': 'unmap'", 40, .data_file = true },
    { "4k-data-raw", 4096, 16, 3, 1 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 40,
      .data_file = true, .raw_data = true },
    { "4k-snapshot", 4096, 16, 3, 4 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 60,
      .snapshot = true },
};

/* ---- a run --------------------------------------------------------------- */

/* What is known from a flush on. */
struct phase {
    size_t record;               /* it was answered after so many records */
    unsigned char *shadow;
    unsigned char *touched;      /* between this flush and the next */
};

static void expect_content(const struct model *m, const struct phase *phases, size_t cut)
{
    CLEANUP(free) unsigned char *data = NULL;
    size_t len;
    int last = -1;

    for (int i = 0; i <= PHASES; i++) {
        if (phases[i].record <= cut)
            last = i;
    }
    must_run("qemu-img convert -f qcow2 -O raw crashed.qcow2 crashed.raw");
    data = load_file("crashed.raw", &len);
    assert_int_equal(len, m->shape->size);
    for (uint64_t at = 0; at < len; at++) {
        bool changed = false;

        for (int i = last; i <= PHASES; i++)
            changed |= phases[i].touched[at / 512];
        if (!changed && data[at] != phases[last].shadow[at])
            fail_msg("%s: after a cut at record %zu byte %" PRIu64 " is %d, not %d",
                     m->shape->name, cut, at, data[at], phases[last].shadow[at]);
    }
}

static void co_end_phase(struct model *m, struct phase *p)
{
    p->record = co_count_records();
    p->shadow = xmemdup(m->shadow, m->shape->size);
    p->touched = xzalloc(div_round_up(m->shape->size, 512) + 1);
}

/* So that the run starts with clusters and tables that are shared. */
static void co_fill_and_snapshot(struct model *m)
{
    m->node = co_open_image("model.qcow2", m->shape->options);
    co_model_work(m, 50);
    co_node_unref(m->node);
    must_run("qemu-img snapshot -c then model.qcow2");
}

/* With lazy refcounts the image is sound, or says that it needs this (I-Q10). */
static void repair_if_dirty(void)
{
    size_t len;
    CLEANUP(free) unsigned char *bytes = load_file("crashed.qcow2", &len);

    if (load_be64(bytes + 72) & 1)
        must_run("qemu-img check -r all -f qcow2 crashed.qcow2");
}

static void co_run_shape(const struct shape *shape, uint64_t seed)
{
    struct phase phases[PHASES + 1];
    struct model m;
    struct record r;

    co_model_init(&m, shape, seed);
    if (shape->snapshot)
        co_fill_and_snapshot(&m);
    copy_file("model.qcow2", "before.qcow2");
    m.node = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', 'file': "
                          "{'driver': 'file', 'filename': '%s'}}%s}", work_path("record"),
                          work_path("model.qcow2"), shape->options);
    co_end_phase(&m, &phases[0]);
    for (int i = 1; i <= PHASES; i++) {
        free(MOVE(m.touched));
        m.touched = phases[i - 1].touched;
        co_model_work(&m, shape->ops);
        assert_int_equal(co_node_flush(m.node), 0);
        co_end_phase(&m, &phases[i]);
        m.touched = NULL;
    }
    co_node_unref(m.node);
    model_judge(&m);
    r = load_record();
    for (int trial = 0; trial < TRIALS; trial++) {
        size_t cut = trial ? pick_cut(&r, &seed) : r.n;

        replay("before.qcow2", "crashed.qcow2", &r, cut, &seed);
        if (strstr(shape->options, LAZY))
            repair_if_dirty();
        expect_clean("crashed.qcow2", true);
        expect_content(&m, phases, cut);
    }
    for (int i = 0; i <= PHASES; i++) {
        free(phases[i].shadow);
        free(phases[i].touched);
    }
    record_done(&r);
    model_done(&m);
    test_tally(TRIALS, "power cuts");
    test_tally(1, "images that were cut");
}

CO_TEST(a_power_cut_leaks_clusters_at_worst)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS"), *only = getenv("STILLPOINT_SHAPE");
    uint64_t seed = test_seed(20261125);

    for (long round = 0; round < (rounds ? atol(rounds) : 1); round++) {
        for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
            if (only && strcmp(only, shapes[i].name) != 0)
                continue;
            alarm(120);
            co_run_shape(&shapes[i], seed + (uint64_t)round);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_power_cut_leaks_clusters_at_worst),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 crash", tests, ARRAY_SIZE(tests));
}
