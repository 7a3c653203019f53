/* SPDX-License-Identifier: Apache-2.0
 *
 * What kept_bitmaps.h declares, but for QEMU's turns (peer_bitmaps.c).
 */
#include "kept_bitmaps.h"
#include "drivers/qcow2/bitmaps.h"
#include <stdio.h>

/* ---- bits ----------------------------------------------------------------- */

bool same_bits(const struct bitmap *a, const struct bitmap *b)
{
    uint64_t n = bitmap_size(a);

    if (n != bitmap_size(b) || bitmap_count(a) != bitmap_count(b))
        return false;
    for (uint64_t i = bitmap_next_set(a, 0); i < n; i = bitmap_next_set(a, i + 1)) {
        if (!bitmap_test(b, i))
            return false;
    }
    return true;
}

/* Whether all bits of @must are set in @have. */
static bool covers(const struct bitmap *have, const struct bitmap *must)
{
    uint64_t n = bitmap_size(must);

    if (n != bitmap_size(have))
        return false;
    for (uint64_t i = bitmap_next_set(must, 0); i < n; i = bitmap_next_set(must, i + 1)) {
        if (!bitmap_test(have, i))
            return false;
    }
    return true;
}

struct bitmap *qemu_bits(const char *image, const char *name, uint64_t granularity, uint64_t size)
{
    struct bitmap *bm = bitmap_new(div_round_up(size, granularity));
    const char *at;
    int used;

    must_run("nbdinfo --map=qemu:dirty-bitmap:%s -- [ qemu-nbd -r -f qcow2 -B %s %s ]", name, name,
             image);
    for (at = run_output(); *at; at += used) {
        unsigned long long off, len;
        unsigned dirty;

        used = 0;
        if (sscanf(at, " %llu %llu %u %*[^\n] %n", &off, &len, &dirty, &used) != 3 || !used)
            fail_msg("nbdinfo said '%s'", run_output());
        for (uint64_t i = off / granularity; dirty && i * granularity < off + len; i++)
            bitmap_set_bit(bm, i);
    }
    return bm;
}

/* ---- the shadow ----------------------------------------------------------- */

void kept_done(struct kept *k)
{
    for (unsigned i = 0; i < k->n; i++)
        bitmap_free(k->v[i].bits);
    k->n = 0;
}

bool kept_any_in_use(const struct kept *k)
{
    for (unsigned i = 0; i < k->n; i++) {
        if (k->v[i].in_use)
            return true;
    }
    return false;
}

void kept_follow(struct kept *k, const struct model *m, bool peer)
{
    for (unsigned i = 0; i < k->n; i++) {
        struct kept_bitmap *b = &k->v[i];

        if (!b->enabled || (peer ? b->in_use : !b->in_use && !b->followed))
            continue;
        b->loose |= peer;
        for (uint64_t at = 0; at < m->size; at += 512) {
            if (m->touched[at / 512])
                bitmap_set_bit(b->bits, at / b->granularity);
        }
    }
}

void kept_resize(struct kept *k, const struct model *m, bool peer)
{
    for (unsigned i = 0; i < k->n; i++) {
        struct kept_bitmap *b = &k->v[i];
        struct bitmap *old = b->bits;

        uint64_t least = div_round_up(peer ? m->size : MIN(m->smallest, m->size), b->granularity);

        b->loose |= peer;
        b->bits = bitmap_new(div_round_up(m->size, b->granularity));
        for (uint64_t j = 0; j < MIN(bitmap_size(old), least); j++) {
            if (bitmap_test(old, j))
                bitmap_set_bit(b->bits, j);
        }
        bitmap_free(old);
    }
}

void kept_begin(struct kept *k, bool followed)
{
    for (unsigned i = 0; i < k->n; i++)
        k->v[i].followed = followed && !k->v[i].in_use;
}

void kept_end(struct kept *k)
{
    for (unsigned i = 0; i < k->n; i++)
        k->v[i].in_use &= !k->v[i].followed;
}

/* ---- the open image ------------------------------------------------------- */

static struct qcow2_bitmap_info find(struct node *n, const char *name)
{
    struct qcow2_bitmap_info info;

    for (uint32_t i = 0; i < qcow2_bitmaps_count(n); i++) {
        qcow2_bitmaps_get(n, i, &info);
        if (strcmp(info.name, name) == 0)
            return info;
    }
    fail_msg("bitmap %s is gone", name);
    return (struct qcow2_bitmap_info){ 0 };
}

static struct bitmap *co_load(struct node *n, const struct kept_bitmap *b)
{
    struct bitmap *bm = NULL;
    struct err err = ERR_INIT;
    bool ok = co_qcow2_bitmap_load(n, b->name, &bm, &err);

    if (ok == b->in_use)
        fail_msg("%s: %s", b->name, ok ? "is valid" : err.text);
    return bm;
}

/* Bits as they are in an image. */
static void take_over(struct kept_bitmap *b, struct bitmap *have)
{
    if (b->loose ? !covers(have, b->bits) : !same_bits(have, b->bits))
        fail_msg("bitmap %s: %" PRIu64 " bits are set, and not all of these %" PRIu64, b->name,
                 bitmap_count(have), bitmap_count(b->bits));
    bitmap_free(b->bits);
    b->bits = have;
    b->loose = false;
}

void co_kept_expect(struct kept *k, struct node *n)
{
    assert_int_equal(qcow2_bitmaps_count(n), k->n);
    for (unsigned i = 0; i < k->n; i++) {
        struct kept_bitmap *b = &k->v[i];
        struct qcow2_bitmap_info info = find(n, b->name);
        struct bitmap *have = co_load(n, b);

        assert_int_equal(info.granularity, b->granularity);
        assert_int_equal(info.enabled, b->enabled);
        assert_int_equal(info.in_use, b->in_use);
        assert_true(info.usable);
        if (have)
            take_over(b, have);
    }
}

void co_kept_expect_marks(struct kept *k, struct node *n, bool changed, bool resized)
{
    for (unsigned i = 0; i < k->n; i++) {
        struct kept_bitmap *b = &k->v[i];
        bool in_use = find(n, b->name).in_use;
        bool must = b->in_use || resized || (changed && b->enabled), may = must || b->enabled;

        if (in_use ? !may : must)
            fail_msg("bitmap %s is marked %d", b->name, in_use);
        b->in_use = in_use;
    }
}

static struct kept_bitmap random_bitmap(struct kept *k, struct model *m)
{
    struct kept_bitmap b = { .granularity = 512ULL << test_random(&m->seed, 12),
                             .enabled = test_random(&m->seed, 3) };
    uint64_t n, at = 0;

    snprintf(b.name, sizeof(b.name), "b%u", k->ever++);
    n = div_round_up(m->size, b.granularity);
    b.bits = bitmap_new(n);
    while ((at += test_random(&m->seed, n + 1)) < n) {
        uint64_t len = MIN(n - at, 1 + test_random(&m->seed, test_random(&m->seed, 2) ? 3 : n));

        bitmap_set(b.bits, at, len);
        at += len;
    }
    return b;
}

static void co_remove(struct kept *k, struct node *n, unsigned i)
{
    struct err err = ERR_INIT;

    if (!co_qcow2_bitmap_remove(n, k->v[i].name, &err))
        fail_msg("%s: %s", k->v[i].name, err.text);
    bitmap_free(k->v[i].bits);
    k->v[i] = k->v[--k->n];
}

void co_kept_store(struct kept *k, struct model *m)
{
    struct qcow2_bitmap_put puts[KEPT_MAX];
    bool stored[KEPT_MAX] = { false };
    unsigned n = 0, before = k->n;
    struct err err = ERR_INIT;

    if (k->n && !test_random(&m->seed, 6)) {
        co_remove(k, m->node, (unsigned)test_random(&m->seed, k->n));
        before = k->n;
    }
    while (k->n < KEPT_MAX && !test_random(&m->seed, 3))
        k->v[k->n++] = random_bitmap(k, m);
    for (unsigned i = 0; i < k->n; i++) {
        const struct kept_bitmap *b = &k->v[i];

        stored[i] = i >= before || test_random(&m->seed, 4);
        if (stored[i])
            puts[n++] = (struct qcow2_bitmap_put){
                b->name, b->granularity, b->enabled, bitmap_count(b->bits) ? b->bits : NULL };
    }
    if (co_qcow2_bitmaps_store(m->node, puts, n, &err)) {
        for (unsigned i = 0; i < k->n; i++)
            k->v[i].in_use &= !stored[i];
        return;
    }
    /* A cluster of 512 bytes has no room for every header. */
    if (err.code != -ENOSPC || m->shape->cluster > 512)
        fail_msg("%s, seed %" PRIu64 ": %s", m->shape->name, m->first_seed, err.text);
    while (k->n > before)
        bitmap_free(k->v[--k->n].bits);
}

/* ---- the closed image ----------------------------------------------------- */

static bool has_flag(const json_t *bitmap, const char *flag)
{
    const json_t *flags = json_object_get(bitmap, "flags");
    const json_t *v;
    size_t i;

    json_array_foreach(flags, i, v) {
        if (strcmp(json_string_value(v), flag) == 0)
            return true;
    }
    return false;
}

static void judge_flags(const struct kept *k, const json_t *bitmaps)
{
    const json_t *v;
    size_t i;

    assert_int_equal(json_array_size(bitmaps), k->n);
    json_array_foreach(bitmaps, i, v) {
        const char *name = json_string_value(json_object_get(v, "name"));
        const struct kept_bitmap *b = k->v;

        while (b < k->v + k->n && strcmp(b->name, name) != 0)
            b++;
        if (b == k->v + k->n)
            fail_msg("QEMU sees a bitmap %s", name);
        if (has_flag(v, "in-use") != b->in_use || has_flag(v, "auto") != b->enabled ||
            json_integer_value(json_object_get(v, "granularity")) != (json_int_t)b->granularity)
            fail_msg("QEMU says of bitmap %s, which is in use: %d, enabled: %d, granularity: %"
                     PRIu64 ": %s", name, b->in_use, b->enabled, b->granularity, run_output());
    }
}

void co_kept_judge(struct kept *k, struct model *m, bool bits)
{
    json_t *info;
    struct node *n;

    must_run("qemu-img info -f qcow2 --output=json %s", m->image);
    info = json_loads(run_output(), 0, NULL);
    assert_non_null(info);
    judge_flags(k, json_object_get(json_object_get(json_object_get(info, "format-specific"),
                                                   "data"), "bitmaps"));
    json_decref(info);
    n = co_open_image(m->image, ", 'read-only': true");
    co_kept_expect(k, n);
    co_node_unref(n);
    if (!bits || !k->n)
        return;

    const struct kept_bitmap *b = &k->v[test_random(&m->seed, k->n)];

    if (b->in_use)
        return;

    CLEANUP(bitmap_free) struct bitmap *theirs = qemu_bits(m->image, b->name, b->granularity,
                                                           m->size);

    if (!same_bits(b->bits, theirs))
        fail_msg("bitmap %s: %" PRIu64 " bits are set here, QEMU sees %" PRIu64, b->name,
                 bitmap_count(b->bits), bitmap_count(theirs));
}
