/* SPDX-License-Identifier: Apache-2.0
 *
 * A chain of backups by one bitmap: a full one, and then whatever became dirty, again and
 * again, with jobs in between that fail, are cancelled, or leave the bitmap alone. Every
 * point has to be the disk as it was at its instant, when it is made and at the end.
 *
 * Either each point is an image over the one before, and what a job that failed has
 * written is thrown away; or there is one image that is brought up to date in place, and a
 * job that failed leaves it half done for the next.
 */
#include "model_run.h"
#include "base/mem.h"
#include <stdio.h>

struct point {
    struct image im;
    struct shadow frozen;
};

struct chain {
    struct model *m;
    unsigned index, n_jobs;
    char bitmap[16];
    uint32_t granularity;
    bool in_place;

    struct point *points;        /* overlays */
    unsigned n_points;

    struct image place;          /* in place */
    bool made;                   /* there is the image */
    bool begun;                  /* the bitmap says what it lacks */
    bool calm;                   /* no trouble any more */
};

static uint32_t pick_granularity(struct model *m)
{
    return one_in(m, 20) ? DIRTY_GRANULARITY_MAX : 512U << model_random(m, 12);
}

static struct dirty_bitmap *find(struct chain *c)
{
    return dirty_bitmap_find(c->m->source, c->bitmap, NULL);
}

static void co_add_bitmap(struct chain *c)
{
    const struct dirty_bitmap_opts o = { .name = c->bitmap, .granularity = c->granularity };
    struct err err = ERR_INIT;
    int r = co_shut_doors(c->m->source, DEADLINE_NEVER);

    if (r < 0 || !dirty_bitmap_add(c->m->source, &o, &err))
        model_fail(c->m, "no bitmap: %s", err.text);
    open_doors(c->m->source);
}

/* ---- what the next job is ---------------------------------------------------------------- */

static void pick_begin(struct chain *c, struct run *r)
{
    struct model *m = c->m;

    r->o.sync = !c->in_place && m->backing[0] && one_in(m, 3) ? BACKUP_TOP : BACKUP_FULL;
    if (!find(c)) {
        r->o.new_bitmap = (struct dirty_bitmap_opts){ .name = c->bitmap,
                                                      .granularity = c->granularity };
        return;
    }
    r->o.bitmap = c->bitmap;
    r->o.has_bitmap_mode = true;
    if (c->in_place && one_in(m, 2))
        r->o.bitmap_mode = BACKUP_BITMAP_ALWAYS;
}

static void pick_next(struct chain *c, struct run *r)
{
    struct model *m = c->m;

    r->o.bitmap = c->bitmap;
    r->o.sync = one_in(m, 2) ? BACKUP_INCREMENTAL : BACKUP_BITMAP;
    if (r->o.sync == BACKUP_INCREMENTAL)
        return;
    r->o.has_bitmap_mode = true;
    if (one_in(m, 4))
        r->o.bitmap_mode = BACKUP_BITMAP_NEVER;
    else if (c->in_place && !one_in(m, 3))
        r->o.bitmap_mode = BACKUP_BITMAP_ALWAYS;
}

static struct image_opts pick_image(struct model *m, bool qcow2)
{
    return (struct image_opts){
        .format = qcow2 ? MODEL_QCOW2 : MODEL_RAW,
        .cluster_size = (4 * KiB) << model_random(m, 8),
    };
}

/* ---- an image over the one before ------------------------------------------------------------ */

static void co_make_overlay(struct chain *c, struct run *r)
{
    struct model *m = c->m;
    bool beginning = r->o.sync == BACKUP_FULL || r->o.sync == BACKUP_TOP;
    struct image_opts o = pick_image(m, !beginning || r->o.sync == BACKUP_TOP || one_in(m, 2));
    const struct image *last = c->n_points ? &c->points[c->n_points - 1].im : NULL;

    if (r->o.sync == BACKUP_TOP) {
        o.backing = m->backing;
        o.backing_format = m->backing_format;
    } else if (!beginning) {
        o.backing = last->path;
        o.backing_format = last->format == MODEL_RAW ? "raw" : "qcow2";
    }
    r->o.target_is_zero = !o.backing;
    co_image_create(m, &r->target, &o);
    co_image_open(m, &r->target, false, false);
}

static void co_overlay(struct chain *c, struct run *r)
{
    struct model *m = c->m;

    if (!c->n_points || (!c->calm && one_in(m, 15)))
        pick_begin(c, r);
    else
        pick_next(c, r);
    co_make_overlay(c, r);
    co_run_job(r);
    if (!run_is_well(r)) {
        image_delete(&r->target);
        return;
    }
    co_run_compare(r, true);
    if (r->o.bitmap_mode == BACKUP_BITMAP_NEVER) {
        image_delete(&r->target);
        return;
    }
    c->points = xrealloc(c->points, (c->n_points + 1) * sizeof(*c->points));
    c->points[c->n_points++] = (struct point){ .im = r->target, .frozen = r->frozen };
    r->frozen = (struct shadow){ 0 };
}

/* ---- one image, brought up to date -------------------------------------------------------- */

/* A job before may have left something behind that hangs, and still has it open. */
static void co_open_place(struct chain *c)
{
    while (image_is_open(&c->place))
        co_sleep(NSEC_PER_MSEC);
    co_image_open(c->m, &c->place, false, false);
}

static void co_update(struct chain *c, struct run *r)
{
    struct model *m = c->m;
    struct image_opts o = pick_image(m, m->size % 512 == 0 && one_in(m, 2));

    if (c->begun)
        pick_next(c, r);
    else
        pick_begin(c, r);
    if (!c->made)
        co_image_create(m, &c->place, &o);
    r->o.target_is_zero = !c->made;
    c->made = true;
    co_open_place(c);
    r->target = c->place;
    co_run_job(r);
    bool well = run_is_well(r);

    /* A full one that fails can be completed if the bitmap is always brought up to date. */
    c->begun |= well || r->o.bitmap_mode == BACKUP_BITMAP_ALWAYS;
    c->place.node = c->place.fault = NULL;
    if (well)
        co_run_compare(r, false);
}

/* ---- all of it ----------------------------------------------------------------------------- */

static void co_step(struct chain *c)
{
    struct run *r = run_new(c->m, c->bitmap, c->n_jobs++);

    run_pick(r, c->calm ? 1 : TROUBLES_OF_CHAINS);
    if (c->in_place)
        co_update(c, r);
    else
        co_overlay(c, r);

    const struct dirty_bitmap *bm = find(c);

    if (bm && (dirty_bitmap_busy(bm) || dirty_bitmap_inconsistent(bm)))
        model_fail(c->m, "%s: the bitmap is of no use any more", r->id);
    run_free(r);
}

/* As they are found long after. */
static void co_check_points(struct chain *c)
{
    CLEANUP(free) uint8_t *got = xmalloc(c->m->size);

    for (unsigned i = model_random(c->m, 4); i < c->n_points; i += 1 + model_random(c->m, 8)) {
        struct point *p = &c->points[i];
        char what[64];

        co_image_open(c->m, &p->im, true, true);
        int ret = co_node_pread(p->im.node, 0, c->m->size, got, 0);

        snprintf(what, sizeof(what), "point %u of chain %u, at the end", i, c->index);
        if (ret < 0)
            model_fail(c->m, "%s: %s", what, strerror(-ret));
        shadow_expect(c->m, &p->frozen, got, what);
        co_image_close(&p->im);
    }
}

void co_model_chain(struct model *m, unsigned index)
{
    struct chain c = { .m = m, .index = index, .granularity = pick_granularity(m) };
    unsigned jobs = one_in(m, 10) ? 20 + model_random(m, 20) : 2 + model_random(m, 8);

    snprintf(c.bitmap, sizeof(c.bitmap), "chain%u-", index);
    c.in_place = m->size % 512 || one_in(m, 2);
    if (one_in(m, 2))
        co_add_bitmap(&c);
    while (jobs--) {
        co_step(&c);
        if (one_in(m, 2))
            co_sleep(model_random(m, 10 * NSEC_PER_MSEC));
    }
    c.calm = true;
    co_step(&c);
    co_step(&c);
    co_check_points(&c);
    if (find(&c))
        dirty_bitmap_remove(find(&c));
    while (c.n_points) {
        image_delete(&c.points[--c.n_points].im);
        shadow_free(&c.points[c.n_points].frozen);
    }
    free(c.points);
    if (c.made)
        image_delete(&c.place);
}
