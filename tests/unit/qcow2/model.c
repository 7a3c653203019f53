/* SPDX-License-Identifier: Apache-2.0
 *
 * What model.h declares.
 */
#include "model.h"
#include "base/range.h"

static struct model *m;          /* the one that is on */

struct busy {
    struct list link;
    uint64_t off, len;
};

#define WORKERS 12

static uint64_t below(uint64_t n)
{
    return test_random(&m->seed, n);
}

/* ---- operations ---------------------------------------------------------- */

static void check(int r)
{
    if (r < 0 && !m->may_fail)
        fail_msg("%s, seed %" PRIu64 ": %s", m->shape->name, m->first_seed, strerror(-r));
    if (r < 0 && !m->failure)
        m->failure = r;
}

static void touch(uint64_t off, uint64_t len)
{
    memset(m->touched + off / 512, 1, div_round_up(off + len, 512) - off / 512);
}

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

    for (uint64_t i = 0; i < len; i += 512)
        memset(data + i, (unsigned char)(m->next_byte + i / 512), MIN(512ULL, len - i));
    m->next_byte++;
    for (int i = 0; i < niov; i++)
        iov[i] = (struct iovec){ data + (uint64_t)i * cut,
                                 i == niov - 1 ? len - (uint64_t)i * cut : cut };
    check(co_node_pwritev(m->node, off, len, iov, niov, 0));
    memcpy(m->shadow + off, data, len);
    touch(off, len);
}

/* Whole clusters, each of zeros, of what does not become smaller, or of what does. */
static void co_write_compressed(uint64_t off, uint64_t len)
{
    CLEANUP(free) unsigned char *data = xmalloc(len);
    uint64_t cluster = m->shape->cluster, cut = align_down(below(len), 512);
    struct iovec iov[2] = { { data, cut }, { data + cut, len - cut } };

    for (uint64_t at = 0; at < len; at += cluster) {
        uint64_t kind = below(6), keep = 1 + below(cluster);

        for (uint64_t i = at; i < MIN(len, at + cluster); i++)
            data[i] = kind == 0 ? 0 : i - at < keep ? (unsigned char)below(256)
                                                    : (unsigned char)(m->next_byte + i / 512);
    }
    m->next_byte++;
    check(co_node_pwritev(m->node, off, len, iov, 2, REQ_COMPRESSED));
    memcpy(m->shadow + off, data, len);
    touch(off, len);
}

static void compare(const unsigned char *got, uint64_t off, uint64_t len, const char *when)
{
    if (memcmp(got, m->shadow + off, len) == 0)
        return;
    for (uint64_t i = 0; i < len; i++) {
        if (got[i] != m->shadow[off + i])
            fail_msg("%s: byte %" PRIu64 " is %d, not %d (%s)", m->shape->name, off + i, got[i],
                     m->shadow[off + i], when);
    }
}

static void co_read(uint64_t off, uint64_t len)
{
    CLEANUP(free) unsigned char *data = memset(xmalloc(len), 0x5a, len);

    check(co_node_pread(m->node, off, len, data, 0));
    if (!m->may_fail)
        compare(data, off, len, "read");
}

/* Nobody else is at work behind the new end. */
static void co_resize(void)
{
    struct err err = ERR_INIT;
    uint64_t old = m->size, size = old + align_down(below(m->shape->room - old + 1), 512);
    struct busy b;

    if (m->shape->shrink && below(2))
        size = align_down(old / 2 + below(old / 2), 512);
    if (m->resizing || size == old || !size)
        return;
    m->resizing = true;
    b.off = MIN(size, old);
    b.len = m->shape->room;
    co_lock(&b);
    if (!co_node_resize(m->node, size, &err) && !m->may_fail)
        fail_msg("%s: resizing to %" PRIu64 ": %s", m->shape->name, size, err.text);
    m->size = m->node->size;
    if (size < old)
        memset(m->shadow + size, 0, old - size);
    touch(MIN(size, old), MAX(size, old) - MIN(size, old));
    m->smallest = MIN(m->smallest, m->size);
    m->resized = true;
    m->resizing = false;
    unlock(&b);
}

/* A part that a discard may have left: what reads as zero now is so. */
static void co_settle(uint64_t off, uint64_t end)
{
    CLEANUP(free) unsigned char *data = xmalloc(end - off + 1);

    if (off >= end)
        return;
    check(co_node_pread(m->node, off, end - off, data, 0));
    for (uint64_t at = off, n; at < end; at += n) {
        n = MIN((uint64_t)512, end - at);
        if (m->may_fail || memcmp(data + (at - off), m->shadow + at, n) != 0)
            memset(m->shadow + at, 0, n);
    }
    if (!m->may_fail)
        compare(data, off, end - off, "after a discard");
}

/* Discards of whole clusters read as zero, but in version 2 over a backing file. So do
 * those of subclusters, unless the cluster is compressed, and that of the last cluster,
 * unless the disk grows meanwhile. */
static void co_discard(uint64_t off, uint64_t len)
{
    uint64_t end = off + len, cluster = m->shape->cluster;
    uint64_t unit = cluster / (m->shape->extended ? 32 : 1), from = align_up(off, unit);
    uint64_t to = end == m->node->size ? end : align_down(end, unit);
    bool unmap = strstr(m->shape->options, "unmap") != NULL;
    uint64_t first, last;

    if (m->shape->version == 2)
        from = MAX(from, align_up(m->shape->backing_size, cluster));
    check(co_node_discard(m->node, off, len));
    if (m->node->discard_unmap)
        touch(off, len);
    if (!unmap || from >= to)
        return;
    first = from;
    last = to;
    if (m->lenient) {
        first = MIN(align_up(from, cluster), to);
        last = MAX(align_down(to, cluster), first);
        co_settle(from, first);
        co_settle(last, to);
    }
    memset(m->shadow + first, 0, last - first);
}

static void co_zero(uint64_t off, uint64_t len)
{
    unsigned flags = below(2) ? REQ_MAY_UNMAP : 0;

    check(co_node_write_zeroes(m->node, off, len, flags));
    memset(m->shadow + off, 0, len);
    touch(off, len);
}

static void co_look(uint64_t off, uint64_t len)
{
    struct block_status st;

    check(co_node_status(m->node, off, len, &st));
    if (m->may_fail)
        return;
    assert_true(st.len > 0 && st.len <= len);
    for (uint64_t i = 0; (st.flags & STATUS_ZERO) && i < st.len; i++)
        assert_int_equal(m->shadow[off + i], 0);
    assert_true(!(st.flags & STATUS_DATA) || (st.flags & STATUS_ALLOCATED));
}

static void co_one_operation(void)
{
    struct busy b;
    uint64_t what = below(100);

    if (what < 4) {
        check(co_node_flush(m->node));
        return;
    }
    if (m->shape->resize && what > 97) {
        co_resize();
        return;
    }
    pick_range(&b.off, &b.len);
    if (what < 25 && m->shape->compress) {
        b.len = MIN(align_up(b.len, m->shape->cluster), 8 * m->shape->cluster);
        b.off = align_down(b.off, m->shape->cluster);
        b.len = MIN(b.len, m->node->size - b.off);
    }
    co_lock(&b);
    if (b.off + b.len > m->node->size)
        ;                        /* the disk became shorter meanwhile */
    else if (what < 25 && m->shape->compress && !is_aligned(b.len, m->shape->cluster) &&
             b.off + b.len != m->node->size)
        ;                        /* or longer: this is no end of it any more */
    else if (what < 25 && m->shape->compress)
        co_write_compressed(b.off, b.len);
    else if (what < 50)
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

/* ---- runs ---------------------------------------------------------------- */

void save_file(const char *name, const unsigned char *data, uint64_t len)
{
    make_file(work_path(name), 0);
    file_write(work_path(name), 0, data, len);
}

/* The backing file, and what of it the disk shows. */
void model_make_backing(struct model *model)
{
    const struct shape *s = model->shape;
    CLEANUP(free) unsigned char *data = xmalloc(s->backing_size);

    for (uint64_t i = 0; i < s->backing_size; i++)
        data[i] = i / 100000 % 4 ? (unsigned char)(i * 7 / 512) : 0;
    save_file("base.raw", data, s->backing_size);
    if (s->backing == QCOW2_BACKING)
        must_run("qemu-img convert -f raw -O qcow2 base.raw base.qcow2");
    memcpy(model->shadow, data, MIN(s->backing_size, s->size));
}

/* What is in a data file that need not read as the disk does not matter. */
static void fill_with_rubbish(const char *name, uint64_t size)
{
    CLEANUP(free) unsigned char *data = xmalloc(size);

    for (uint64_t i = 0; i < size; i++)
        data[i] = (unsigned char)(i / 512 * 7);
    save_file(name, data, size);
}

void co_model_make(const struct shape *s, const char *name, const char *backing,
                   const char *format)
{
    struct qcow2_create_opts o = {
        .size = s->size, .cluster_size = s->cluster, .version = s->version,
        .refcount_bits = s->refcount_bits, .extended_l2 = s->extended,
        .compression = s->compression, .backing_file = backing, .backing_format = format,
    };

    if (s->data_file) {
        o.data_file = test_text("%s.data", name);
        o.data_file_raw = s->raw_data;
        must_run("rm -f %s", o.data_file);
        make_file(work_path(o.data_file), s->size);
    }
    if (!s->create)
        co_make_image(name, &o);
    else
        must_run("qemu-img create -q -f qcow2 -o %s%s %s%s %s%s %s %" PRIu64, s->create,
                 !s->data_file ? "" : test_text(",data_file=%s.data,data_file_raw=%s", name,
                                                s->raw_data ? "on" : "off"),
                 backing ? "-b " : "", backing ? backing : "", backing ? "-F " : "",
                 backing ? format : "", name, s->size);
    if (s->data_file && !s->raw_data)
        fill_with_rubbish(test_text("%s.data", name), s->size);
    expect_clean(name, false);
}

void model_init(struct model *model, const struct shape *shape, uint64_t seed)
{
    uint64_t room = MAX(shape->room, shape->size);

    *model = (struct model){
        .shape = shape, .seed = seed, .first_seed = seed, .image = "model.qcow2",
        .size = shape->size,
        .lenient = (shape->extended && shape->compress) || shape->resize,
    };
    m = model;
    list_init(&model->busy);
    waitq_init(&model->freed);
    model->shadow = xzalloc(room);
    model->touched = xzalloc(div_round_up(room, 512) + 1);
}

void co_model_init(struct model *model, const struct shape *shape, uint64_t seed)
{
    static const char *const names[] = { NULL, "base.raw", "base.qcow2" };
    static const char *const formats[] = { NULL, "raw", "qcow2" };

    model_init(model, shape, seed);
    if (shape->backing)
        model_make_backing(model);
    co_model_make(shape, model->image, names[shape->backing], formats[shape->backing]);
}

void model_done(struct model *model)
{
    free(model->shadow);
    free(model->touched);
}

void co_model_work(struct model *model, unsigned ops)
{
    struct crew crew = { 0 };

    m = model;
    model->left = ops;
    for (unsigned i = 0; i < WORKERS; i++)
        crew_start(&crew, co_worker, NULL);
    co_crew_wait(&crew);
}

void co_model_compare(struct model *model, const char *when)
{
    CLEANUP(free) unsigned char *data = xmalloc(model->node->size);

    assert_int_equal(model->node->size, model->size);
    assert_int_equal(co_node_pread(model->node, 0, model->node->size, data, 0), 0);
    compare(data, 0, model->node->size, when);
}

void model_judge(struct model *model)
{
    expect_clean(model->image, false);
    save_file("shadow.raw", model->shadow, model->size);
    expect_same(model->image, "shadow.raw");
    if (model->shape->raw_data)      /* QEMU makes it end with a cluster */
        must_run("cmp -n %" PRIu64 " %s.data shadow.raw", model->size, model->image);
}
