/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: no configuration of an image, and no history of one, makes this driver and
 * QEMU disagree about it.
 * Method: a life of an image, made from a seed. Sessions of random operations by
 * several coroutines (model.h), each judged when the image is closed: sound, the
 * same content as the shadow, the same map as ours, the same bitmaps (kept_bitmaps.h).
 * Every second time this driver judges alone, which is much faster, but never the last.
 * In between something happens to it: QEMU takes a turn of its own, snapshots are taken,
 * gone back to and deleted, here or there, it is resized, it becomes the backing file of a
 * new image of quite another kind.
 *
 * Repeat one life with STILLPOINT_SEED; STILLPOINT_ROUNDS is how many there are.
 */
#include "drivers/qcow2/snapshot.h"
#include "kept_bitmaps.h"
#include "record.h"
#include "shapes.h"
#include <stdio.h>
#include <unistd.h>

#define SESSIONS 5
#define LAYERS 5
#define SNAPSHOTS 4

struct snapshot {
    char name[16];
    unsigned layer;
    uint64_t size;
    unsigned char *shadow;
};

struct life {
    struct model m;
    struct random_shape shape;
    uint64_t seed, first_seed;
    char images[LAYERS][32];
    struct kept kept[LAYERS];    /* what each stores */
    unsigned layers;
    bool followed;               /* the open node follows the bitmaps */
    bool packed;                 /* the newest layer may have compressed clusters */
    struct snapshot snapshots[SNAPSHOTS];
    unsigned n_snapshots, snapshots_ever;
};

static uint64_t below(struct life *l, uint64_t n)
{
    return test_random(&l->seed, n);
}

/* The story of a life that is repeated. */
static void PRINTF_LIKE(1, 2) tell(const char *fmt, ...)
{
    va_list ap;

    if (!getenv("STILLPOINT_SEED"))
        return;
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
    fflush(stdout);
}

static struct kept *kept_now(struct life *l)
{
    return &l->kept[l->layers - 1];
}

/* ---- what happens between sessions ---------------------------------------- */

enum snapshot_change { TAKE, GO_BACK, DELETE };

/* Done to @image, by QEMU or here. */
static void co_change_snapshots(struct life *l, enum snapshot_change what, const char *name,
                                const char *image, bool ours)
{
    static const char options[] = { 'c', 'a', 'd' };
    struct err err = ERR_INIT;
    struct node *n;
    bool ok;

    if (!ours) {
        must_run("qemu-img snapshot -%c %s %s", options[what], name, image);
        return;
    }
    n = co_open_image(image, ", 'discard': 'unmap'");
    ok = what == TAKE ? co_qcow2_snapshot_create(n, name, &err)
         : what == DELETE ? co_qcow2_snapshot_delete(n, name, &err)
                          : co_qcow2_snapshot_apply(n, name, &err);
    if (!ok)
        fail_msg("%s, seed %" PRIu64 ": %s", l->shape.name, l->first_seed, err.text);
    co_node_unref(n);
}

/* Of the newest layer. */
static unsigned own_snapshots(const struct life *l)
{
    unsigned n = 0;

    for (unsigned i = 0; i < l->n_snapshots; i++)
        n += l->snapshots[i].layer == l->layers;
    return n;
}

/* Whether clusters can have one reference more than they may have now. Those in which
 * compressed ones are packed have many already. */
static bool can_refer(const struct life *l)
{
    unsigned bits = l->shape.shape.refcount_bits;

    return bits >= 8 || (!l->packed && own_snapshots(l) + 2 < 1U << bits);
}

static void co_take_snapshot(struct life *l)
{
    if (l->n_snapshots == SNAPSHOTS || l->shape.shape.data_file || !can_refer(l))
        return;

    struct snapshot *s = &l->snapshots[l->n_snapshots++];

    snprintf(s->name, sizeof(s->name), "s%u", l->snapshots_ever++);
    s->layer = l->layers;
    s->size = l->m.size;
    s->shadow = xmemdup(l->m.shadow, l->m.size);
    tell("snapshot %s", s->name);
    co_change_snapshots(l, TAKE, s->name, l->m.image, below(l, 2));
}

/* One of the newest layer, or NULL. */
static struct snapshot *some_snapshot(struct life *l)
{
    if (!own_snapshots(l))
        return NULL;
    for (;;) {
        struct snapshot *s = &l->snapshots[below(l, l->n_snapshots)];

        if (s->layer == l->layers)
            return s;
    }
}

/* Version 2 has no sizes of snapshots, and no zero clusters to hide what a longer
 * backing file has. */
static bool can_resize(const struct life *l)
{
    return l->shape.shape.version == 3 || (!own_snapshots(l) && !l->shape.shape.backing);
}

static const char *image_of(struct life *l, const struct snapshot *s)
{
    return l->images[s->layer - 1];
}

static void co_judge_snapshot(struct life *l, const struct snapshot *s)
{
    CLEANUP(free) unsigned char *data = xmalloc(s->size), *got = NULL;
    size_t len;
    struct node *n = co_open_image(image_of(l, s), test_text(", 'read-only': true, 'snapshot': "
                                                             "'%s'", s->name));

    assert_int_equal(node_size(n), s->size);
    assert_int_equal(co_node_pread(n, 0, s->size, data, 0), 0);
    assert_memory_equal(data, s->shadow, s->size);
    co_node_unref(n);
    must_run("qemu-img convert -f qcow2 -l snapshot.name=%s -O raw %s got.raw", s->name,
             image_of(l, s));
    got = load_file("got.raw", &len);
    /* QEMU reads a snapshot with the size that the disk has now. */
    assert_memory_equal(got, s->shadow, MIN(len, s->size));
}

static void co_delete_snapshot(struct life *l, struct snapshot *s)
{
    if (!s)
        return;
    tell("snapshot %s is deleted", s->name);
    co_judge_snapshot(l, s);
    co_change_snapshots(l, DELETE, s->name, image_of(l, s), below(l, 2));
    co_expect_clean_here(image_of(l, s));
    free(s->shadow);
    *s = l->snapshots[--l->n_snapshots];
}

static void co_go_back(struct life *l, struct snapshot *s)
{
    struct kept *k = kept_now(l);
    bool ours = k->n || below(l, 2), same;

    if (!s || !can_refer(l))
        return;
    same = s->size == l->m.size;
    /* QEMU refuses to shorten the L1 table, and if there are bitmaps. Version 2 has no
     * sizes of snapshots. */
    if (!same && (!ours || l->shape.shape.version == 2))
        return;
    tell("back to snapshot %s", s->name);
    co_change_snapshots(l, GO_BACK, s->name, l->m.image, ours);
    for (unsigned i = 0; i < k->n; i++)
        k->v[i].in_use |= k->v[i].enabled || !same;
    memset(l->m.shadow, 0, l->shape.shape.room);
    memcpy(l->m.shadow, s->shadow, s->size);
    l->m.size = s->size;
    l->m.smallest = l->m.size;
    kept_resize(k, &l->m, false);
}

static void set_image(struct life *l, uint64_t size)
{
    l->m.shape = &l->shape.shape;
    l->m.image = l->images[l->layers - 1];
    l->m.size = size;
    l->m.first_seed = l->first_seed;
}

static void set_shape(struct life *l, uint64_t size)
{
    random_shape(&l->shape, size, &l->seed);
    l->shape.shape.room = l->shape.shape.size + 2 * MiB;
}

static void free_shadows(struct life *l)
{
    for (unsigned i = 0; i < l->layers; i++)
        kept_done(&l->kept[i]);
    free(l->m.shadow);
    free(l->m.touched);
}

/* The next image over what there is; it may be shorter or longer. */
static void co_add_layer(struct life *l)
{
    const char *below_it = l->m.image;
    uint64_t old = l->m.size, size = old;
    unsigned char *shadow = l->m.shadow;

    if (l->layers == LAYERS)
        return;
    if (!below(l, 3))
        size = align_up(1 + below(l, 2 * old), 512);
    set_shape(l, size);
    l->shape.shape.backing = QCOW2_BACKING;
    l->shape.shape.backing_size = old;
    if (l->shape.shape.create && strstr(l->shape.shape.create, "preallocation"))
        *strstr(l->shape.create, ",preallocation") = 0;
    tell("over it a new image: %s", l->shape.name);
    free(l->m.touched);
    model_init(&l->m, &l->shape.shape, l->m.seed);
    memcpy(l->m.shadow, shadow, MIN(size, old));
    free(shadow);
    snprintf(l->images[l->layers], sizeof(l->images[0]), "l%u.qcow2", l->layers);
    co_model_make(&l->shape.shape, l->images[l->layers], below_it, "qcow2");
    l->layers++;
    l->packed = false;
    set_image(l, size);
}

static void peer_resizes(struct life *l)
{
    uint64_t size = l->m.size + align_down(below(l, l->shape.shape.room - l->m.size + 1), 512);

    if (!can_resize(l) || kept_any_in_use(kept_now(l)))
        return;
    /* QEMU cannot make a part of a compressed cluster zero when it has subclusters. */
    if (l->shape.shape.extended && l->packed && !is_aligned(l->m.size, l->shape.shape.cluster))
        return;
    tell("QEMU makes it %" PRIu64 " bytes long", size);
    must_run("qemu-img resize -q -f qcow2 %s %" PRIu64, l->m.image, size);
    l->m.size = size;
    kept_resize(kept_now(l), &l->m, true);
}

static void peer_turn(struct life *l)
{
    bool daemon = !below(l, 3);

    tell("QEMU's turn%s", daemon ? ", the daemon's" : "");
    l->packed |= !daemon;
    kept_peer_turn(kept_now(l), &l->m, daemon, 1 + (unsigned)below(l, 40));
}

static void co_something_happens(struct life *l)
{
    switch (below(l, 9)) {
    case 0: case 1:
        co_take_snapshot(l);
        break;
    case 2:
        co_delete_snapshot(l, some_snapshot(l));
        break;
    case 3:
        co_go_back(l, some_snapshot(l));
        break;
    case 4: case 5:
        co_add_layer(l);
        break;
    case 6:
        peer_resizes(l);
        break;
    default:
        peer_turn(l);
    }
}

/* ---- a life --------------------------------------------------------------- */

static void co_first_image(struct life *l)
{
    static const char *const names[] = { NULL, "base.raw", "base.qcow2" };
    static const char *const formats[] = { NULL, "raw", "qcow2" };
    struct shape *s = &l->shape.shape;

    set_shape(l, 0);
    if (!below(l, 3)) {
        s->backing = 1 + (unsigned)below(l, 2);
        s->backing_size = align_up(1 + below(l, 2 * s->size), 512);
        if (strstr(l->shape.create, ",preallocation"))
            *strstr(l->shape.create, ",preallocation") = 0;
    }
    s->raw_data = s->data_file && !s->backing && below(l, 2);
    tell("an image: %s; backing file of kind %d, %" PRIu64 " bytes", l->shape.name, s->backing,
         s->backing_size);
    model_init(&l->m, s, l->seed);
    if (s->backing)
        model_make_backing(&l->m);
    snprintf(l->images[0], sizeof(l->images[0]), "l0.qcow2");
    l->layers = 1;
    co_model_make(s, l->images[0], names[s->backing], formats[s->backing]);
    set_image(l, s->size);
}

/* Random operations on the open disk, and what its bitmaps say then. */
static void co_work(struct life *l)
{
    struct model *m = &l->m;
    uint64_t room = m->shape->room;
    CLEANUP(free) unsigned char *before = xmemdup(m->shadow, room);

    memset(m->touched, 0, div_round_up(room, 512));
    m->resized = false;
    m->smallest = m->size;
    co_model_work(m, 1 + (unsigned)below(l, m->shape->ops));
    co_model_compare(m, "before closing");
    kept_resize(kept_now(l), m, false);
    co_kept_expect_marks(kept_now(l), m->node, memcmp(before, m->shadow, room) != 0, m->resized);
    kept_follow(kept_now(l), m, false);
    if (m->shape->version == 3 && !l->followed && below(l, 2)) {
        tell("bitmaps are stored");
        co_kept_store(kept_now(l), m);
    }
}

static void co_judge(struct life *l, bool peer)
{
    struct model *m = &l->m;

    if (peer) {
        model_judge(m);
        co_model_judge_map(m);
        co_kept_judge(kept_now(l), m, !below(l, 3));
        return;
    }
    co_expect_clean_here(m->image);
    m->node = co_open_image(m->image, ", 'read-only': true");
    co_model_compare(m, "after closing");
    co_kept_expect(kept_now(l), m->node);
    co_node_unref(m->node);
}

static void co_session(struct life *l, bool last)
{
    struct model *m = &l->m;

    random_options(&l->shape, &l->seed);
    l->shape.shape.resize = below(l, 2) && can_resize(l);
    l->shape.shape.shrink = below(l, 2);
    l->shape.shape.compress = !below(l, 3) && !l->shape.shape.data_file;
    l->packed |= l->shape.shape.compress;
    m->lenient = m->shape->resize || l->packed;
    l->followed = below(l, 2);
    tell("opened with%s%s%s%s", m->shape->options, l->followed ? ", bitmaps followed" : "",
         m->shape->resize ? ", to be resized" : "",
         m->shape->compress ? ", compressed writes too" : "");
    m->node = co_open_image(m->image, m->shape->options);
    if (!l->followed)
        forget_bitmaps(m->node);
    kept_begin(kept_now(l), l->followed);
    co_model_compare(m, "after opening");
    co_kept_expect(kept_now(l), m->node);
    for (unsigned n = 1 + !below(l, 3); n; n--)
        co_work(l);
    co_node_unref(m->node);
    kept_end(kept_now(l));
    co_judge(l, last || below(l, 2));
}

static void co_live(uint64_t seed)
{
    struct life l = { .seed = seed, .first_seed = seed };

    co_first_image(&l);
    for (int session = 0; session < SESSIONS; session++) {
        if (session)
            co_something_happens(&l);
        co_session(&l, session == SESSIONS - 1);
    }
    while (l.n_snapshots)
        co_delete_snapshot(&l, &l.snapshots[0]);
    for (unsigned i = 0; i < l.layers; i++) {
        struct node *n = co_open_image(l.images[i], ", 'read-only': true");

        co_kept_expect(&l.kept[i], n);
        co_node_unref(n);
    }
    free_shadows(&l);
}

CO_TEST(no_life_of_an_image_surprises_qemu)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS");
    uint64_t seed = test_seed(20261130);

    for (long round = 0; round < (rounds ? atol(rounds) : 4); round++) {
        alarm(120);
        printf("seed %" PRIu64 "\n", seed + (uint64_t)round);
        fflush(stdout);
        co_live(seed + (uint64_t)round);
        test_tally(1, "lives");
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_life_of_an_image_surprises_qemu),
    };

    work_in_memory(true);
    return drivers_test_main(argc, argv, "lives of qcow2 images", tests, ARRAY_SIZE(tests));
}
