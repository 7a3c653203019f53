/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: no configuration of an image, and no history of one, makes this driver and
 * QEMU disagree about it.
 * Method: a life of an image, made from a seed. Sessions of random operations by
 * several coroutines (model.h), each judged when the image is closed: sound, the
 * same content as the shadow, the same map as ours. In between something happens to
 * it: QEMU takes a turn of its own, snapshots are taken, gone back to and deleted, it
 * is resized, it becomes the backing file of a new image of quite another kind.
 *
 * Repeat one life with STILLPOINT_SEED; STILLPOINT_ROUNDS is how many there are.
 */
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
    unsigned layers;
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

/* ---- what happens between sessions ---------------------------------------- */

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

static void take_snapshot(struct life *l)
{
    if (l->n_snapshots == SNAPSHOTS || l->shape.shape.data_file || !can_refer(l))
        return;

    struct snapshot *s = &l->snapshots[l->n_snapshots++];

    snprintf(s->name, sizeof(s->name), "s%u", l->snapshots_ever++);
    s->layer = l->layers;
    s->size = l->m.size;
    s->shadow = xmemdup(l->m.shadow, l->m.size);
    tell("snapshot %s", s->name);
    must_run("qemu-img snapshot -c %s %s", s->name, l->m.image);
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
    CLEANUP(free) unsigned char *data = xmalloc(s->size);
    struct node *n = co_open_image(image_of(l, s), test_text(", 'read-only': true, 'snapshot': "
                                                             "'%s'", s->name));

    assert_int_equal(node_size(n), s->size);
    assert_int_equal(co_node_pread(n, 0, s->size, data, 0), 0);
    assert_memory_equal(data, s->shadow, s->size);
    co_node_unref(n);
    save_file("then.raw", s->shadow, s->size);
    /* QEMU reads a snapshot with the size that the disk has now. */
    must_run("qemu-img convert -f qcow2 -l snapshot.name=%s -O raw %s got.raw && "
             "cmp -n $(stat -c '%%s' got.raw then.raw | sort -n | head -n 1) got.raw then.raw",
             s->name, image_of(l, s));
}

static void co_delete_snapshot(struct life *l, struct snapshot *s)
{
    if (!s)
        return;
    tell("snapshot %s is deleted", s->name);
    co_judge_snapshot(l, s);
    must_run("qemu-img snapshot -d %s %s", s->name, image_of(l, s));
    expect_clean(image_of(l, s), false);
    free(s->shadow);
    *s = l->snapshots[--l->n_snapshots];
}

static void go_back(struct life *l, struct snapshot *s)
{
    /* QEMU refuses another size in version 2, and to shorten the L1 table. */
    if (!s || s->size != l->m.size || !can_refer(l))
        return;
    tell("back to snapshot %s", s->name);
    must_run("qemu-img snapshot -a %s %s", s->name, l->m.image);
    memcpy(l->m.shadow, s->shadow, s->size);
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

    if (!can_resize(l))
        return;
    tell("QEMU makes it %" PRIu64 " bytes long", size);
    must_run("qemu-img resize -q -f qcow2 %s %" PRIu64, l->m.image, size);
    l->m.size = size;
}

static void co_something_happens(struct life *l)
{
    switch (below(l, 9)) {
    case 0: case 1:
        take_snapshot(l);
        break;
    case 2:
        co_delete_snapshot(l, some_snapshot(l));
        break;
    case 3:
        go_back(l, some_snapshot(l));
        break;
    case 4: case 5:
        co_add_layer(l);
        break;
    case 6:
        peer_resizes(l);
        break;
    default:
        tell("QEMU's turn");
        l->packed = true;
        model_peer_turn(&l->m, 1 + (unsigned)below(l, 40));
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

static void co_session(struct life *l)
{
    struct model *m = &l->m;

    random_options(&l->shape, &l->seed);
    l->shape.shape.resize = below(l, 2) && can_resize(l);
    l->shape.shape.shrink = below(l, 2);
    l->shape.shape.compress = !below(l, 3) && !l->shape.shape.data_file;
    l->packed |= l->shape.shape.compress;
    m->lenient = m->shape->resize || l->packed;
    tell("opened with%s%s%s", m->shape->options, m->shape->resize ? ", to be resized" : "",
         m->shape->compress ? ", compressed writes too" : "");
    m->node = co_open_image(m->image, m->shape->options);
    co_model_compare(m, "after opening");
    co_model_work(m, 1 + (unsigned)below(l, m->shape->ops));
    co_model_compare(m, "before closing");
    co_node_unref(m->node);
    model_judge(m);
    co_model_judge_map(m);
}

static void co_live(uint64_t seed)
{
    struct life l = { .seed = seed, .first_seed = seed };

    co_first_image(&l);
    for (int session = 0; session < SESSIONS; session++) {
        if (session)
            co_something_happens(&l);
        co_session(&l);
    }
    while (l.n_snapshots)
        co_delete_snapshot(&l, &l.snapshots[0]);
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
