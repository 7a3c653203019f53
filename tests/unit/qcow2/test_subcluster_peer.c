/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: an image with extended L2 entries goes back and forth between QEMU and this
 * driver, and both say the same of every byte and every subcluster.
 * Method: seeded random operations, of qemu-io and here in turns, on one image with
 * a shadow; after each turn it is checked, compared and its map held against ours.
 * Repeat with STILLPOINT_SEED, longer with STILLPOINT_ROUNDS.
 */
#include "base/strbuf.h"
#include "model.h"
#include <unistd.h>

#define TURNS 3
#define QEMU_OPS 40

static const struct shape shapes[] = {
    { "16k", 16384, 16, 3, 3 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'", 60,
      .extended = true, .compress = true },
    { "16k-over-qcow2", 16384, 1, 3, 3 * MiB + 1536, QCOW2_BACKING, 4 * MiB,
      ", 'discard': 'unmap'", 60, .extended = true },
    { "64k-over-shorter-raw", 65536, 16, 3, 6 * MiB, RAW_BACKING, 4 * MiB + 2560,
      ", 'discard': 'unmap'", 60, .extended = true, .compress = true, .snapshot = true },
    { "64k-snapshot", 65536, 64, 3, 6 * MiB, NO_BACKING, 0, "", 60, .extended = true,
      .snapshot = true },
    { "2M-over-raw", 2 * MiB, 16, 3, 12 * MiB, RAW_BACKING, 9 * MiB, ", 'discard': 'unmap'", 30,
      .extended = true },
};

/* ---- QEMU's turn --------------------------------------------------------- */

/* QEMU discards whole clusters, and what of the last one the disk has. */
static void shadow_discard(struct model *m, uint64_t off, uint64_t end)
{
    uint64_t from = align_up(off, m->shape->cluster);
    uint64_t to = end == m->shape->size ? end : align_down(end, m->shape->cluster);

    if (from < to)
        memset(m->shadow + from, 0, to - from);
}

static void add_command(struct model *m, struct strbuf *all)
{
    uint64_t size = m->shape->size, most = 3 * m->shape->cluster, len, off;
    unsigned char byte = (unsigned char)(1 + test_random(&m->seed, 255));

    off = align_down(test_random(&m->seed, size), 512);
    len = MIN(align_up(1 + test_random(&m->seed, most), 512), size - off);
    if (!test_random(&m->seed, 3))
        len = MIN(len, m->shape->cluster / 16);
    switch (test_random(&m->seed, 6)) {
    case 0:
        strbuf_addf(all, " -c 'write -z %" PRIu64 " %" PRIu64 "'", off, len);
        memset(m->shadow + off, 0, len);
        return;
    case 1:
        strbuf_addf(all, " -c 'write -z -u %" PRIu64 " %" PRIu64 "'", off, len);
        memset(m->shadow + off, 0, len);
        return;
    case 2:
        strbuf_addf(all, " -c 'discard %" PRIu64 " %" PRIu64 "'", off, len);
        shadow_discard(m, off, off + len);
        return;
    default:
        strbuf_addf(all, " -c 'write -P %d %" PRIu64 " %" PRIu64 "'", byte, off, len);
        memset(m->shadow + off, byte, len);
    }
}

/* Compressed clusters: only where nothing is yet. */
static void add_compressed(struct model *m, struct strbuf *all)
{
    uint64_t cluster = m->shape->cluster, n = m->shape->size / cluster;

    for (uint64_t i = test_random(&m->seed, 4); i < n; i += 1 + test_random(&m->seed, n / 4)) {
        strbuf_addf(all, " -c 'write -c -P 77 %" PRIu64 " %" PRIu64 "'", i * cluster, cluster);
        memset(m->shadow + i * cluster, 77, cluster);
    }
}

static void qemu_turn(struct model *m, bool first)
{
    CLEANUP_STRBUF struct strbuf all = STRBUF_INIT;

    if (first && m->shape->compress)
        add_compressed(m, &all);
    for (int i = 0; i < QEMU_OPS; i++)
        add_command(m, &all);
    must_run("qemu-io -f qcow2 -d unmap%s model.qcow2", strbuf_text(&all));
    assert_null(strstr(run_output(), "failed"));
}

/* ---- maps ---------------------------------------------------------------- */

static bool flag(const json_t *entry, const char *name)
{
    return json_is_true(json_object_get(entry, name));
}

/* QEMU looks for holes in the file below data, if it takes the image for one that
 * was preallocated, and calls them zero. */
static bool is_hole(const struct model *m, const struct block_status *st, const json_t *entry,
                    uint64_t off)
{
    if (!(st->flags & STATUS_DATA) || !flag(entry, "zero") || !json_object_get(entry, "offset"))
        return false;
    for (uint64_t i = off; i < off + st->len; i++) {
        if (m->shadow[i])
            return false;
    }
    return true;
}

/* One entry of QEMU's map says of the top layer what block status says here. */
static void co_compare_entry(const struct model *m, struct node *n, const json_t *entry,
                             uint64_t from, uint64_t end)
{
    bool top = json_integer_value(json_object_get(entry, "depth")) == 0;
    bool present = top && flag(entry, "present");
    struct block_status st;

    for (uint64_t off = from; off < end; off += st.len) {
        const char *what = NULL;

        st = co_status(n, off, end - off);
        if (!!(st.flags & STATUS_ALLOCATED) != present)
            what = "allocated";
        else if (present && is_hole(m, &st, entry, off))
            continue;
        else if (present && !!(st.flags & STATUS_ZERO) != flag(entry, "zero"))
            what = "zero";
        else if (present && !!(st.flags & STATUS_DATA) != flag(entry, "data"))
            what = "data";
        else if ((st.flags & STATUS_OFFSET) &&
                 st.host_off != (uint64_t)json_integer_value(json_object_get(entry, "offset")) +
                                (off - from))
            what = "where";
        if (what)
            fail_msg("at %" PRIu64 ": not the same: %s", off, what);
    }
}

static void co_compare_maps(struct model *m)
{
    struct node *n = co_open_image("model.qcow2", ", 'read-only': true");
    CLEANUP(json_decref) json_t *map = NULL;
    uint64_t end = 0;
    json_t *entry;
    size_t i;

    must_run("qemu-img map --output=json -f qcow2 model.qcow2 >map.json");
    map = json_load_file(work_path("map.json"), 0, NULL);
    assert_non_null(map);
    json_array_foreach(map, i, entry) {
        uint64_t from = (uint64_t)json_integer_value(json_object_get(entry, "start"));

        assert_int_equal(from, end);
        end += (uint64_t)json_integer_value(json_object_get(entry, "length"));
        co_compare_entry(m, n, entry, from, end);
    }
    assert_int_equal(end, m->shape->size);
    co_model_compare(&(struct model){ .shape = m->shape, .node = n, .shadow = m->shadow,
                                      .size = m->size }, "turn");
    co_node_unref(n);
}

/* ---- a run --------------------------------------------------------------- */

static void co_run_shape(const struct shape *shape, uint64_t seed)
{
    struct model m;

    co_model_init(&m, shape, seed);
    for (int turn = 0; turn < TURNS; turn++) {
        qemu_turn(&m, turn == 0);
        co_compare_maps(&m);
        if (shape->snapshot && turn == 1) {
            must_run("qemu-img snapshot -c then model.qcow2");
            save_file("then.raw", m.shadow, shape->size);
        }
        m.node = co_open_image("model.qcow2", shape->options);
        co_model_work(&m, shape->ops);
        co_model_compare(&m, "our turn");
        co_node_unref(m.node);
        model_judge(&m);
        co_compare_maps(&m);
    }
    if (shape->snapshot)
        must_run("qemu-img convert -f qcow2 -l snapshot.name=then -O raw model.qcow2 got.raw && "
                 "cmp got.raw then.raw");
    model_done(&m);
}

CO_TEST(an_image_that_qemu_and_we_write_in_turns)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS"), *only = getenv("STILLPOINT_SHAPE");
    uint64_t seed = test_seed(20261128);

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
        cmocka_unit_test(an_image_that_qemu_and_we_write_in_turns),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "qcow2 subclusters and QEMU", tests, ARRAY_SIZE(tests));
}
