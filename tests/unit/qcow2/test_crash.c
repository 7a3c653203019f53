/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a power cut at any moment leaves an image with leaked clusters at worst
 * (I-Q1 .. I-Q6), and all that was flushed before.
 * Method: driver `fault` under the image records what the file is asked. A replay
 * stops anywhere in the record, keeps what had to be on the disk there, and of the
 * rest a random part, some of it torn. qemu-img check must find no error, and what
 * qemu-img reads must agree with the shadow of the last flush wherever nothing was
 * written since.
 */
#include "base/bytes.h"
#include "drivers/fault.h"
#include "model.h"
#include <fcntl.h>
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
    { "4k-snapshot", 4096, 16, 3, 4 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 60,
      .snapshot = true },
};

/* ---- the record ---------------------------------------------------------- */

struct op {
    uint64_t id, off, len;
    enum fault_op what;
    const unsigned char *data;   /* of a write */
    size_t begin, end;           /* places in the record, by number; end 0: none */
    int result;
};

struct record {
    unsigned char *bytes;
    size_t n_bytes;
    struct op *ops;
    size_t n_ops;
    size_t n;                    /* begins and ends together, from 1 */
};

#define HEADER_BYTES 32
#define RECORD_BYTES 48

static struct op *find_op(struct record *r, uint64_t id)
{
    for (size_t i = r->n_ops; i-- > 0;) {
        if (r->ops[i].id == id)
            return &r->ops[i];
    }
    fail_msg("an end without a begin");
    return NULL;
}

static unsigned char *load_file(const char *name, size_t *ret_len)
{
    int fd = open(work_path(name), O_RDONLY | O_CLOEXEC);
    off_t len = lseek(fd, 0, SEEK_END);
    unsigned char *bytes = xmalloc((size_t)len + 1);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, bytes, (size_t)len, 0), len);
    close(fd);
    *ret_len = (size_t)len;
    return bytes;
}

static struct record load_record(void)
{
    struct record r = { 0 };

    r.bytes = load_file("record", &r.n_bytes);
    r.ops = xcalloc(r.n_bytes / RECORD_BYTES + 1, sizeof(*r.ops));
    for (size_t at = HEADER_BYTES; at + RECORD_BYTES <= r.n_bytes;) {
        const unsigned char *p = r.bytes + at;

        assert_int_equal(load_be32(p), 0x46524543);
        r.n++;
        if (p[4] == 1)
            r.ops[r.n_ops++] = (struct op){
                .what = p[5], .id = load_be64(p + 8), .off = load_be64(p + 16),
                .len = load_be64(p + 24), .data = p + RECORD_BYTES, .begin = r.n,
            };
        else {
            struct op *op = find_op(&r, load_be64(p + 8));

            if (op) {
                op->end = r.n;
                op->result = (int)load_be32(p + 36);
            }
        }
        at += RECORD_BYTES + load_be64(p + 40);
    }
    return r;
}

/* Records that are in the file by now. */
static size_t count_records(void)
{
    struct record r = load_record();
    size_t n = r.n;

    free(r.bytes);
    free(r.ops);
    return n;
}

/* ---- a replay ------------------------------------------------------------ */

/* Whether the disk must have it when the power goes after record @cut. */
static bool must_be_there(const struct record *r, const struct op *op, size_t cut)
{
    if (!op->end || op->end > cut || op->result < 0)
        return false;
    for (size_t i = 0; i < r->n_ops; i++) {
        const struct op *f = &r->ops[i];

        if (f->what == FAULT_FLUSH && f->begin > op->end && f->end && f->end <= cut &&
            f->result == 0)
            return true;
    }
    return false;
}

static void apply(int fd, const struct op *op, uint64_t off, uint64_t len)
{
    CLEANUP(free) unsigned char *zeros = NULL;

    switch (op->what) {
    case FAULT_WRITE:
        assert_int_equal(pwrite(fd, op->data + (off - op->off), len, (off_t)off), len);
        return;
    case FAULT_WRITE_ZEROES:
    case FAULT_DISCARD:
        zeros = xzalloc(len);
        assert_int_equal(pwrite(fd, zeros, len, (off_t)off), len);
        return;
    case FAULT_RESIZE:
        assert_int_equal(ftruncate(fd, (off_t)(op->off + op->len)), 0);
        return;
    default:
        return;
    }
}

/* Some of its sectors. */
static void apply_torn(int fd, const struct op *op, uint64_t *seed)
{
    for (uint64_t at = op->off, n; at < op->off + op->len; at += n) {
        n = MIN(align_down(at, 512) + 512 - at, op->off + op->len - at);
        if (test_random(seed, 2))
            apply(fd, op, at, n);
    }
}

/* Most interesting is the moment at which a flush is nearly done. */
static size_t pick_cut(const struct record *r, uint64_t *seed)
{
    size_t cut = test_random(seed, r->n + 1);

    if (test_random(seed, 2))
        return cut;
    for (size_t i = test_random(seed, r->n_ops); i < r->n_ops; i++) {
        if (r->ops[i].what == FAULT_FLUSH && r->ops[i].end)
            return r->ops[i].end - 1;
    }
    return cut;
}

static void replay(const struct record *r, size_t cut, uint64_t *seed)
{
    uint64_t kept = 1 + test_random(seed, 7);      /* eighths of what may be lost */
    int fd;

    must_run("cp before.qcow2 crashed.qcow2");
    fd = open(work_path("crashed.qcow2"), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t i = 0; i < r->n_ops && r->ops[i].begin <= cut; i++) {
        const struct op *op = &r->ops[i];
        bool torn = op->what != FAULT_RESIZE && !test_random(seed, 12);

        if (must_be_there(r, op, cut) || (!torn && test_random(seed, 8) < kept))
            apply(fd, op, op->off, op->len);
        else if (torn)
            apply_torn(fd, op, seed);
    }
    close(fd);
}

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

static void end_phase(struct model *m, struct phase *p)
{
    p->record = count_records();
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
    must_run("cp model.qcow2 before.qcow2");
    m.node = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'record': '%s', 'file': "
                          "{'driver': 'file', 'filename': '%s'}}%s}", work_path("record"),
                          work_path("model.qcow2"), shape->options);
    end_phase(&m, &phases[0]);
    for (int i = 1; i <= PHASES; i++) {
        free(MOVE(m.touched));
        m.touched = phases[i - 1].touched;
        co_model_work(&m, shape->ops);
        assert_int_equal(co_node_flush(m.node), 0);
        end_phase(&m, &phases[i]);
        m.touched = NULL;
    }
    co_node_unref(m.node);
    model_judge(&m);
    r = load_record();
    for (int trial = 0; trial < TRIALS; trial++) {
        size_t cut = trial ? pick_cut(&r, &seed) : r.n;

        replay(&r, cut, &seed);
        if (strstr(shape->options, LAZY))
            repair_if_dirty();
        expect_clean("crashed.qcow2", true);
        expect_content(&m, phases, cut);
    }
    for (int i = 0; i <= PHASES; i++) {
        free(phases[i].shadow);
        free(phases[i].touched);
    }
    free(r.bytes);
    free(r.ops);
    model_done(&m);
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
