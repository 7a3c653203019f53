/* SPDX-License-Identifier: Apache-2.0
 *
 * Goal: whatever guests do at the same time, an image reads as a plain array of
 * bytes would, and QEMU finds it sound and with the same content.
 * Method: seeded random operations by several coroutines against a shadow in
 * memory, over a table of shapes of images. Operations in flight do not overlap
 * (the test orders those that would), but meet inside clusters, tables and caches.
 * Repeat one run with STILLPOINT_SEED; STILLPOINT_ROUNDS makes it longer.
 */
#include "base/range.h"
#include "qcow2_test.h"
#include <unistd.h>

enum backing { NO_BACKING, RAW_BACKING, QCOW2_BACKING };

struct shape {
    const char *name;
    uint32_t cluster, refcount_bits, version;
    uint64_t size;
    enum backing backing;
    uint64_t backing_size;
    const char *options;         /* of the node */
    unsigned ops;
};

#define TINY_CACHES ", 'l2-cache-size': 4096, 'refcount-cache-size': 4096, " \
                    "'l2-cache-entry-size': 512"

static const struct shape shapes[] = {
    { "64k", 65536, 16, 3, 8 * MiB, NO_BACKING, 0, "", 400 },
    { "64k-unmap", 65536, 16, 3, 8 * MiB, NO_BACKING, 0, ", 'discard': 'unmap'", 400 },
    { "64k-v2", 65536, 16, 2, 8 * MiB, NO_BACKING, 0, ", 'discard': 'unmap'", 400 },
    { "64k-over-raw", 65536, 16, 3, 8 * MiB, RAW_BACKING, 8 * MiB, ", 'discard': 'unmap'", 400 },
    { "64k-over-shorter-raw", 65536, 16, 3, 8 * MiB, RAW_BACKING, 3 * MiB + 1536, "", 400 },
    { "64k-over-longer-qcow2", 65536, 16, 3, 4 * MiB + 512, QCOW2_BACKING, 8 * MiB,
      ", 'discard': 'unmap'", 400 },
    { "64k-v2-over-shorter-qcow2", 65536, 16, 2, 8 * MiB, QCOW2_BACKING, 5 * MiB,
      ", 'discard': 'unmap'", 400 },
    { "512-refcount1", 512, 1, 3, 2 * MiB + 512, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'",
      600 },
    { "512-refcount64", 512, 64, 3, 2 * MiB, NO_BACKING, 0, TINY_CACHES ", 'discard': 'unmap'",
      600 },
    { "512-refcount64-over-raw", 512, 64, 3, 1 * MiB, RAW_BACKING, 600 * KiB, TINY_CACHES, 600 },
    { "1k-refcount2", 1024, 2, 3, 3 * MiB, NO_BACKING, 0, TINY_CACHES, 500 },
    { "2k-refcount4-over-qcow2", 2048, 4, 3, 3 * MiB, QCOW2_BACKING, 3 * MiB,
      TINY_CACHES ", 'discard': 'unmap'", 500 },
    { "4k-refcount8", 4096, 8, 3, 6 * MiB, NO_BACKING, 0,
      TINY_CACHES ", 'discard': 'unmap', 'pass-discard-other': true", 500 },
    { "4k-refcount32-no-unref", 4096, 32, 3, 6 * MiB, NO_BACKING, 0,
      ", 'discard': 'unmap', 'discard-no-unref': true", 500 },
    { "2M", 2 * MiB, 16, 3, 24 * MiB, NO_BACKING, 0, ", 'discard': 'unmap'", 150 },
    { "2M-over-raw", 2 * MiB, 16, 3, 20 * MiB + 4096, RAW_BACKING, 13 * MiB, "", 150 },
    { "64k-direct", 65536, 16, 3, 8 * MiB, NO_BACKING, 0,
      ", 'discard': 'unmap', 'cache': {'direct': true}", 200 },
    { "64k-over-raw-direct", 65536, 16, 3, 8 * MiB, RAW_BACKING, 5 * MiB + 512,
      ", 'discard': 'unmap', 'cache': {'direct': true}", 200 },
};

#define WORKERS 12

struct model {
    const struct shape *shape;
    uint64_t seed;
    struct node *node;
    unsigned char *shadow;
    unsigned left;               /* operations to do */
    unsigned char next_byte;
    struct list busy;            /* ranges of operations in flight */
    struct waitq freed;
};

struct busy {
    struct list link;
    uint64_t off, len;
};

static struct model *m;          /* of the run that is on */

static uint64_t below(uint64_t n)
{
    return test_random(&m->seed, n);
}

/* ---- operations ----------------------------------------------------------------------------- */

static bool is_free(uint64_t off, uint64_t len)
{
    struct busy *b;

    list_for_each(b, &m->busy, link) {
        if (ranges_overlap(off, len, b->off, b->len))
            return false;
    }
    return true;
}

static void co_lock(struct busy *b)
{
    while (!is_free(b->off, b->len))
        co_waitq_wait(&m->freed);
    list_push_tail(&m->busy, &b->link);
}

static void unlock(struct busy *b)
{
    list_del(&b->link);
    waitq_wake_all(&m->freed);
}

/* Small ones and large ones, aligned and not, and often close to each other. */
static void pick_range(uint64_t *off, uint64_t *len)
{
    uint64_t size = m->node->size, most = below(8) ? 4 * m->shape->cluster : size / 2;
    uint64_t unit = below(3) ? 512 : 1;

    *len = 1 + below(MIN(most, size));
    *off = below(2) ? below(size) : below(size / 8);
    if (!below(3))
        *off = align_down(*off, m->shape->cluster);
    if (!below(3))
        *len = align_up(*len, m->shape->cluster);
    *off = MIN(align_down(*off, unit), size - 1);
    *len = MIN(align_up(*len, unit), size - *off);
}

static void co_write(uint64_t off, uint64_t len)
{
    CLEANUP(free) unsigned char *data = xmalloc(len);
    int niov = 1 + (int)below(3);
    struct iovec iov[3];
    uint64_t cut = len / (uint64_t)niov;

    for (uint64_t i = 0; i < len; i++)
        data[i] = (unsigned char)(m->next_byte + i / 512);
    m->next_byte++;
    for (int i = 0; i < niov; i++)
        iov[i] = (struct iovec){ data + (uint64_t)i * cut,
                                 i == niov - 1 ? len - (uint64_t)i * cut : cut };
    assert_int_equal(co_node_pwritev(m->node, off, len, iov, niov, 0), 0);
    memcpy(m->shadow + off, data, len);
}

static void compare(const unsigned char *got, uint64_t off, uint64_t len, const char *when)
{
    for (uint64_t i = 0; i < len; i++) {
        if (got[i] != m->shadow[off + i])
            fail_msg("%s: byte %" PRIu64 " is %d, not %d (%s)", m->shape->name, off + i, got[i],
                     m->shadow[off + i], when);
    }
}

static void co_read(uint64_t off, uint64_t len)
{
    CLEANUP(free) unsigned char *data = memset(xmalloc(len), 0x5a, len);

    assert_int_equal(co_node_pread(m->node, off, len, data, 0), 0);
    compare(data, off, len, "read");
}

/* Discards of whole clusters read as zero, but in version 2 over a backing file. */
static void co_discard(uint64_t off, uint64_t len)
{
    uint64_t end = off + len, from = align_up(off, m->shape->cluster);
    uint64_t to = end == m->node->size ? end : align_down(end, m->shape->cluster);
    bool unmap = strstr(m->shape->options, "unmap") != NULL;
    bool keeps = m->shape->version == 2 && m->shape->backing && off < m->shape->backing_size;

    assert_int_equal(co_node_discard(m->node, off, len), 0);
    if (unmap && !keeps && from < to)
        memset(m->shadow + from, 0, to - from);
}

static void co_zero(uint64_t off, uint64_t len)
{
    unsigned flags = below(2) ? REQ_MAY_UNMAP : 0;

    assert_int_equal(co_node_write_zeroes(m->node, off, len, flags), 0);
    memset(m->shadow + off, 0, len);
}

static void co_look(uint64_t off, uint64_t len)
{
    struct block_status st = co_status(m->node, off, len);

    for (uint64_t i = 0; (st.flags & STATUS_ZERO) && i < st.len; i++)
        assert_int_equal(m->shadow[off + i], 0);
    assert_true(!(st.flags & STATUS_DATA) || (st.flags & STATUS_ALLOCATED));
}

static void co_one_operation(void)
{
    struct busy b;
    uint64_t what = below(100);

    if (what < 4) {
        assert_int_equal(co_node_flush(m->node), 0);
        return;
    }
    pick_range(&b.off, &b.len);
    co_lock(&b);
    if (what < 50)
        co_write(b.off, b.len);
    else if (what < 75)
        co_read(b.off, b.len);
    else if (what < 85)
        co_discard(b.off, b.len);
    else if (what < 95)
        co_zero(b.off, b.len);
    else
        co_look(b.off, b.len);
    unlock(&b);
}

static void co_worker(void *arg)
{
    while (m->left) {
        m->left--;
        co_one_operation();
    }
}

/* ---- runs -------------------------------------------------------------------------------------- */

static void save(const char *name, const unsigned char *data, uint64_t len)
{
    make_file(test_path(name), 0);
    file_write(test_path(name), 0, data, len);
}

/* The backing file, and what of it the disk shows. */
static void make_backing(void)
{
    const struct shape *s = m->shape;
    CLEANUP(free) unsigned char *data = xmalloc(s->backing_size);

    for (uint64_t i = 0; i < s->backing_size; i++)
        data[i] = i / 100000 % 4 ? (unsigned char)(i * 7 / 512) : 0;
    save("base.raw", data, s->backing_size);
    if (s->backing == QCOW2_BACKING)
        must_run("qemu-img convert -f raw -O qcow2 base.raw base.qcow2");
    memcpy(m->shadow, data, MIN(s->backing_size, s->size));
}

static void co_make(void)
{
    static const char *const names[] = { NULL, "base.raw", "base.qcow2" };
    static const char *const formats[] = { NULL, "raw", "qcow2" };
    const struct shape *s = m->shape;
    struct qcow2_create_opts o = {
        .size = s->size, .cluster_size = s->cluster, .version = s->version,
        .refcount_bits = s->refcount_bits, .backing_file = names[s->backing],
        .backing_format = formats[s->backing],
    };

    if (s->backing)
        make_backing();
    co_make_image("model.qcow2", &o);
    expect_clean("model.qcow2", false);
}

static void co_work(unsigned ops)
{
    struct crew crew = { 0 };

    m->left = ops;
    for (unsigned i = 0; i < WORKERS; i++)
        crew_start(&crew, co_worker, NULL);
    co_crew_wait(&crew);
}

static void co_read_all(const char *when)
{
    CLEANUP(free) unsigned char *data = xmalloc(m->node->size);

    assert_int_equal(co_node_pread(m->node, 0, m->node->size, data, 0), 0);
    compare(data, 0, m->node->size, when);
}

static void co_run_shape(const struct shape *shape, uint64_t seed)
{
    struct model model = { .shape = shape, .seed = seed };

    m = &model;
    list_init(&model.busy);
    waitq_init(&model.freed);
    model.shadow = xzalloc(shape->size);
    co_make();
    for (int session = 0; session < 2; session++) {
        model.node = co_open_image("model.qcow2", shape->options);
        assert_int_equal(model.node->size, shape->size);
        co_read_all("after opening");
        co_work(shape->ops);
        co_read_all("before closing");
        co_node_unref(model.node);
        expect_clean("model.qcow2", false);
    }
    save("shadow.raw", model.shadow, shape->size);
    expect_same("model.qcow2", "shadow.raw");
    free(model.shadow);
}

CO_TEST(images_of_every_shape_behave_like_arrays_of_bytes)
{
    const char *rounds = getenv("STILLPOINT_ROUNDS"), *only = getenv("STILLPOINT_SHAPE");
    uint64_t seed = test_seed(20261124);

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
        cmocka_unit_test(images_of_every_shape_behave_like_arrays_of_bytes),
    };

    return drivers_test_main(argc, argv, "qcow2 model", tests, ARRAY_SIZE(tests));
}
