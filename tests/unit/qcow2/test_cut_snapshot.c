/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: a power cut while snapshots are taken, deleted and gone back to leaves the state
 * before or after, whole: the list, each snapshot's content, the disk's, its size (I-Q11).
 * Method: driver `fault` records an image's life of writes, resizes and snapshots; the
 * record is cut anywhere (record.h), and what is left judged by this driver's check
 * and reads, a part of it by QEMU.
 */
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/snapshot.h"
#include "record.h"
#include <jansson.h>
#include <unistd.h>

#define ROOM (1 * MiB + 512)
#define STEPS 16
#define NAMES 3
#define CUTS 60
#define FOR_QEMU 8               /* judges one in so many */

/* The whole that is promised from a record on. */
struct state {
    size_t record;               /* it was reached after so many */
    uint64_t size;
    unsigned char *disk;
    unsigned char *snapshots[NAMES];     /* NULL: there is none */
    uint64_t sizes[NAMES];
    unsigned char *touched;      /* bytes that this step wrote; NULL: all of it or nothing */
};

struct life {
    const char *name;
    uint32_t cluster;
    const char *options;
    bool backing;
};

static uint64_t seed;

static struct state next_state(const struct state *from)
{
    struct state st = { .size = from->size, .disk = xmemdup(from->disk, ROOM) };

    for (int i = 0; i < NAMES; i++) {
        st.sizes[i] = from->sizes[i];
        st.snapshots[i] = from->snapshots[i] ? xmemdup(from->snapshots[i], ROOM) : NULL;
    }
    return st;
}

static void state_done(struct state *st)
{
    free(st->disk);
    free(st->touched);
    for (int i = 0; i < NAMES; i++)
        free(st->snapshots[i]);
}

static const char *name_of(int i)
{
    return (const char *[]){ "one", "two", "three" }[i];
}

/* ---- the life ------------------------------------------------------------- */

static void co_write_step(struct node *n, struct state *st)
{
    st->touched = xzalloc(ROOM);
    for (int i = 0; i < 5; i++) {
        uint64_t off = test_random(&seed, st->size);
        uint64_t len = 1 + test_random(&seed, MIN(st->size - off, 60000ULL));
        unsigned char byte = (unsigned char)(1 + test_random(&seed, 255));

        if (test_random(&seed, 4)) {
            co_fill(n, off, len, byte);
        } else {
            assert_int_equal(co_node_write_zeroes(n, off, len, REQ_MAY_UNMAP), 0);
            byte = 0;
        }
        memset(st->disk + off, byte, len);
        memset(st->touched + off, 1, len);
    }
    assert_int_equal(co_node_flush(n), 0);
}

static void co_snapshot_step(struct node *n, struct state *st)
{
    int i = (int)test_random(&seed, NAMES);
    struct err err = ERR_INIT;
    bool ok = true;

    if (!st->snapshots[i]) {
        ok = co_qcow2_snapshot_create(n, name_of(i), &err);
        st->snapshots[i] = xmemdup(st->disk, ROOM);
        st->sizes[i] = st->size;
    } else if (test_random(&seed, 2)) {
        ok = co_qcow2_snapshot_delete(n, name_of(i), &err);
        free(MOVE(st->snapshots[i]));
    } else {
        ok = co_qcow2_snapshot_apply(n, name_of(i), &err);
        memcpy(st->disk, st->snapshots[i], ROOM);
        st->size = st->sizes[i];
    }
    if (!ok)
        fail_msg("%s", err.text);
}

static void co_resize_step(struct node *n, struct state *st)
{
    uint64_t size = MAX(align_down(test_random(&seed, ROOM), 512), 4096ULL);

    assert_true(co_node_resize(n, size, NULL));
    if (size < st->size)
        memset(st->disk + size, 0, st->size - size);
    st->size = size;
}

static void co_live(const struct life *l, struct state *states)
{
    struct node *n = co_test_open("{'driver': 'qcow2', 'file': {'driver': 'fault', 'discard': "
                                  "'unmap', 'record': '%s', 'file': {'driver': 'file', "
                                  "'filename': '%s'}}, 'discard': 'unmap'%s}",
                                  work_path("record"), work_path("s.qcow2"), l->options);

    states[0].record = co_count_records();
    for (int i = 1; i <= STEPS; i++) {
        states[i] = next_state(&states[i - 1]);
        if (i % 2)
            co_write_step(n, &states[i]);
        else if (test_random(&seed, 5))
            co_snapshot_step(n, &states[i]);
        else
            co_resize_step(n, &states[i]);
        states[i].record = co_count_records();
    }
    co_node_unref(n);
}

/* ---- after a cut ---------------------------------------------------------- */

static void co_expect_sound(size_t cut)
{
    struct node *file = co_test_open("{'driver': 'file', 'read-only': true, 'filename': '%s'}",
                                     work_path("crashed.qcow2"));
    struct qcow2_check_result found;
    struct err err = ERR_INIT;

    if (!co_qcow2_check(file, &(struct qcow2_check_opts){ 0 }, &found, &err))
        fail_msg("cut %zu: %s", cut, err.text);
    if (found.corruptions || found.check_errors)
        fail_msg("cut %zu: %" PRIu64 " corruptions", cut, found.corruptions);
    co_node_unref(file);
}

static bool co_reads_as(const char *more, const unsigned char *want, uint64_t size,
                        const unsigned char *but)
{
    struct node *n = co_test_open("{'driver': 'qcow2', 'read-only': true, 'file': {'driver': "
                                  "'file', 'filename': '%s'}%s}", work_path("crashed.qcow2"),
                                  more);
    CLEANUP(free) unsigned char *data = xmalloc(ROOM);
    bool same = node_size(n) == size;

    if (same)
        assert_int_equal(co_node_pread(n, 0, size, data, 0), 0);
    for (uint64_t i = 0; same && i < size; i++)
        same = data[i] == want[i] || (but && but[i]);
    co_node_unref(n);
    return same;
}

/* The names of the image's snapshots, a bit each. */
static unsigned co_list(void)
{
    struct node *n = co_open_image("crashed.qcow2", ", 'read-only': true");
    json_t *list = qcow2_snapshot_list(n), *item;
    unsigned found = 0;
    size_t at;

    json_array_foreach(list, at, item) {
        for (int i = 0; i < NAMES; i++) {
            if (strcmp(json_string_value(json_object_get(item, "name")), name_of(i)) == 0)
                found |= 1U << i;
        }
    }
    json_decref(list);
    co_node_unref(n);
    return found;
}

static bool co_is_state(const struct state *st, unsigned list, const unsigned char *but)
{
    for (int i = 0; i < NAMES; i++) {
        if (!!st->snapshots[i] != (list >> i & 1))
            return false;
        if (st->snapshots[i] && !co_reads_as(test_text(", 'snapshot': '%s'", name_of(i)),
                                             st->snapshots[i], st->sizes[i], NULL))
            return false;
    }
    return co_reads_as("", st->disk, st->size, but);
}

static void co_cut(const struct life *l, const struct record *r, const struct state *states,
                   size_t cut)
{
    const struct state *last = states;
    unsigned list;

    replay("before.qcow2", "crashed.qcow2", r, cut, &seed);
    co_expect_sound(cut);
    if (!test_random(&seed, FOR_QEMU))
        expect_clean("crashed.qcow2", true);
    for (int i = 1; i <= STEPS; i++) {
        if (states[i].record <= cut)
            last = &states[i];
    }
    list = co_list();
    if (last == &states[STEPS] ? co_is_state(last, list, NULL)
                               : co_is_state(last, list, last[1].touched) ||
                                 (!last[1].touched && co_is_state(&last[1], list, NULL)))
        return;
    fail_msg("%s, cut %zu: neither the state after step %zd nor after the next", l->name, cut,
             last - states);
}

static void co_run_life(const struct life *l)
{
    struct state states[STEPS + 1] = { 0 };
    struct record r;

    must_run("rm -f record; yes | head -c 600000 >base.raw");
    states[0].size = ROOM - 100 * KiB;
    states[0].disk = xzalloc(ROOM);
    if (l->backing)
        file_read(work_path("base.raw"), 0, states[0].disk, 600000);
    co_make_image("s.qcow2", &(struct qcow2_create_opts){
        .size = states[0].size, .cluster_size = l->cluster,
        .backing_file = l->backing ? "base.raw" : NULL,
        .backing_format = l->backing ? "raw" : NULL });
    must_run("cp s.qcow2 before.qcow2");
    co_live(l, states);
    expect_clean("s.qcow2", false);
    r = load_record();
    for (int i = 0; i < CUTS; i++)
        co_cut(l, &r, states, i ? pick_cut(&r, &seed) : r.n);
    record_done(&r);
    for (int i = 0; i <= STEPS; i++)
        state_done(&states[i]);
    test_tally(CUTS, "power cuts while snapshots come and go");
}

CO_TEST(a_power_cut_leaves_the_state_before_or_after)
{
    static const struct life lives[] = {
        { "4k", 4096, "", false },
        { "512", 512, ", 'l2-cache-size': 4096, 'refcount-cache-size': 4096, "
          "'l2-cache-entry-size': 512", false },
        { "64k over a raw file", 65536, "", true },
    };
    const char *rounds = getenv("STILLPOINT_ROUNDS");

    seed = test_seed(20261202);
    for (long round = 0; round < (rounds ? atol(rounds) : 1); round++) {
        for (size_t i = 0; i < ARRAY_SIZE(lives); i++) {
            alarm(120);
            co_run_life(&lives[i]);
        }
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_power_cut_leaves_the_state_before_or_after),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "power cuts of snapshots", tests, ARRAY_SIZE(tests));
}
