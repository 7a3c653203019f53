/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a power cut that stops the image file and its data file at one moment leaves
 * an image without errors that has all that was flushed (I-Q1 over two files).
 * Method: driver `fault` records both files. Beside the work somebody notes, again and
 * again, how long both records are: the moments at which both are cut. (What is in one
 * of them by then was begun after all that it waited for had ended in the other.)
 */
#include "model.h"
#include "record.h"
#include <sys/stat.h>
#include <unistd.h>

#define PHASES 10
#define MOMENTS 4000
#define CUTS 24
#define FOR_QEMU 8               /* judges one in so many */

struct moment {
    uint64_t image, data;        /* bytes of the records */
};

struct phase {
    struct moment end;           /* of the flush */
    unsigned char *shadow, *touched;
};

struct run {
    struct model m;
    struct phase phases[PHASES + 1];
    struct moment moments[MOMENTS];
    size_t n_moments;
    bool working;
};

static uint64_t length_of(const char *name)
{
    struct stat st;

    assert_int_equal(stat(work_path(name), &st), 0);
    return (uint64_t)st.st_size;
}

static struct moment now(void)
{
    return (struct moment){ length_of("record"), length_of("record.data") };
}

static void co_watch(void *arg)
{
    struct run *r = arg;

    while (r->working && r->n_moments < MOMENTS) {
        struct moment m = now(), *last = r->n_moments ? &r->moments[r->n_moments - 1] : NULL;

        if (!last || m.image != last->image || m.data != last->data)
            r->moments[r->n_moments++] = m;
        co_yield();
    }
}

static void end_phase(struct run *r, int i)
{
    r->phases[i] = (struct phase){
        .end = now(), .shadow = xmemdup(r->m.shadow, r->m.size),
        .touched = xzalloc(r->m.size / 512 + 1),
    };
}

static void co_work(struct run *r)
{
    struct model *m = &r->m;
    struct crew crew = { 0 };

    m->node = co_test_open(
        "{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', 'file': {'driver': "
        "'file', 'filename': '%s'}}, 'data-file': {'driver': 'fault', 'record': '%s', 'discard': "
        "'unmap', 'file': {'driver': 'file', 'filename': '%s'}}%s}", work_path("record"),
        work_path("model.qcow2"), work_path("record.data"), work_path("model.qcow2.data"),
        m->shape->options);
    end_phase(r, 0);
    r->working = true;
    crew_start(&crew, co_watch, r);
    for (int i = 1; i <= PHASES; i++) {
        free(MOVE(m->touched));
        m->touched = r->phases[i - 1].touched;
        co_model_work(m, m->shape->ops);
        assert_int_equal(co_node_flush(m->node), 0);
        end_phase(r, i);
        m->touched = NULL;
    }
    r->working = false;
    co_crew_wait(&crew);
    co_node_unref(m->node);
}

/* The image as the cut left it, which names its data file by model.qcow2.data. */
static void co_judge(const struct run *r, const struct moment *cut)
{
    CLEANUP(free) unsigned char *data = xmalloc(r->m.size);
    struct node *n = co_open_image("crashed.qcow2", ", 'read-only': true");
    int last = 0;

    for (int i = 1; i <= PHASES; i++) {
        if (r->phases[i].end.image <= cut->image && r->phases[i].end.data <= cut->data)
            last = i;
    }
    assert_int_equal(co_node_pread(n, 0, r->m.size, data, 0), 0);
    co_node_unref(n);
    for (uint64_t at = 0; at < r->m.size; at++) {
        /* What came later had not begun. */
        bool changed = r->phases[last].touched[at / 512];

        if (!changed && data[at] != r->phases[last].shadow[at])
            fail_msg("%s: after phase %d byte %ju is %d, not %d", r->m.shape->name, last,
                     (uintmax_t)at, data[at], r->phases[last].shadow[at]);
    }
}

static bool is_flushing(const struct record *r, size_t cut)
{
    for (size_t i = 0; i < r->n_ops; i++) {
        if (r->ops[i].what == FAULT_FLUSH && r->ops[i].begin <= cut && r->ops[i].end > cut)
            return true;
    }
    return false;
}

/* Any; often one at which the data file is being flushed, which is the most interesting. */
static const struct moment *pick_moment(const struct run *r, const struct record *data,
                                        uint64_t *seed)
{
    const struct moment *m = &r->moments[test_random(seed, r->n_moments)];

    if (test_random(seed, 4) == 0)
        return m;
    for (int i = 0; i < 200 && !is_flushing(data, record_at(data, m->data)); i++)
        m = &r->moments[test_random(seed, r->n_moments)];
    return m;
}

static void co_run_shape(const struct shape *shape, uint64_t seed)
{
    struct run *r = xnew(struct run);
    struct record image, data;

    co_model_init(&r->m, shape, seed);
    must_run("rm -f record record.data; cp model.qcow2 before.qcow2; "
             "cp model.qcow2.data before.data");
    co_work(r);
    image = load_record_of("record");
    data = load_record_of("record.data");
    assert_true(r->n_moments > CUTS);
    for (int i = 0; i < CUTS; i++) {
        const struct moment *cut = pick_moment(r, &data, &seed);

        replay("before.qcow2", "crashed.qcow2", &image, record_at(&image, cut->image), &seed);
        replay("before.data", "model.qcow2.data", &data, record_at(&data, cut->data), &seed);
        if (!test_random(&seed, FOR_QEMU))
            expect_clean("crashed.qcow2", true);
        co_judge(r, cut);
    }
    record_done(&image);
    record_done(&data);
    for (int i = 0; i <= PHASES; i++) {
        free(r->phases[i].shadow);
        free(r->phases[i].touched);
    }
    model_done(&r->m);
    free(r);
    test_tally(CUTS, "power cuts of an image and its data file");
}

CO_TEST(both_files_stop_at_one_moment)
{
    static const struct shape shapes[] = {
        { "64k-over-raw", 65536, 16, 3, 2 * MiB, RAW_BACKING, 2 * MiB, ", 'discard': 'unmap'", 6,
          .data_file = true },
        { "4k", 4096, 16, 3, MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 12,
          .data_file = true },
        { "4k-raw", 4096, 16, 3, MiB, NO_BACKING, 0, ", 'discard': 'unmap'", 12,
          .data_file = true, .raw_data = true },
    };
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    uint64_t seed = test_seed(20261203);

    for (long round = 0; round < (rounds ? atol(rounds) : 1); round++) {
        for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
            alarm(120);
            co_run_shape(&shapes[i], seed + (uint64_t)round);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_files_stop_at_one_moment),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "power cuts of two files", tests, ARRAY_SIZE(tests));
}
