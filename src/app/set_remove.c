/* SPDX-License-Identifier: Apache-2.0
 *
 * Removing points. First their manifests become pending: from then on nobody lists them. Then
 * each image of a point that stands on images of pending ones takes their place: what lies above
 * the lowest of these is written down into it, and it gets the name of the later image. At last
 * what nothing stands on goes.
 *
 * Whatever is interrupted where, the same command again goes on: what is to be done is read
 * from the directory each time.
 */
#include "app/set_remove.h"
#include "app/backup_set.h"
#include "app/commit.h"
#include "app/offline.h"
#include "app/set_digests.h"
#include "base/mem.h"
#include "set/digest_file.h"
#include "set/file.h"
#include "set/name.h"

struct removing {
    struct set_remove *r;
    struct set_catalog c;
};

static bool is_pending(const struct set_catalog *c, const struct set_image *im)
{
    for (size_t i = 0; im && i < c->n_pending; i++) {
        if (im->point == &c->pending[i])
            return true;
    }
    return false;
}

/* ---- one image ---------------------------------------------------------------------- */

static bool write_manifest(struct removing *w, const struct set_image *im)
{
    struct set_manifest *m = &((struct set_point *)im->point)->m;
    CLEANUP(free) char *name = set_manifest_name(m->id), *text = set_manifest_text(m);

    return set_file_write(w->c.dir, name, text, strlen(text), &w->r->err);
}

/* Make the digests anew, and write the manifest. @root: the digest of the disk before; NULL: it
 * is not known. */
static bool co_make_digests(struct removing *w, const struct set_image *im,
                            const struct set_image *below, const char *root)
{
    struct set_disk *d = (struct set_disk *)im->disk;
    struct err *err = &w->r->err;
    CLEANUP(free) char *digests = xasprintf("%s" SET_DIGEST_SUFFIX, d->file);

    set_digests_plan(d, below);
    if (!set_file_remove(w->c.dir, digests, err) ||
        !co_set_digests_make(w->c.dir, d->file, d, below, w->r->watch, err))
        return false;
    if (root && d->has_digest && strcmp(root, d->digest.root) != 0)
        return err_set(err, -EBADMSG, "Point %s does not read any more as it did: the digest of "
                       "'%s' was %s, and is %s. Was it damaged before?", im->point->m.id,
                       d->name, root, d->digest.root);
    return write_manifest(w, im);
}

/* The manifest says what the image stands on now, and has its digests again. */
static bool co_finish(struct removing *w, const struct set_image *im,
                      const struct set_image *below, const char *root)
{
    struct set_disk *d = (struct set_disk *)im->disk;

    free(d->parent);
    free(d->reason);
    d->has_parent = below != NULL;
    d->parent = below ? xstrdup(below->point->m.id) : NULL;
    d->kind = below ? SET_INCREMENTAL : SET_FULL;
    d->reason = below ? xasprintf("changes since %s, with those of points that were removed",
                                  d->parent)
                      : xstrdup("the points that it stood on were removed");
    return co_make_digests(w, im, below, root);
}

/* Of the pending images right below, the lowest. */
static const struct set_image *lowest_pending(const struct removing *w,
                                              const struct set_image *im)
{
    const struct set_image *base = im->below;

    while (is_pending(&w->c, base->below))
        base = base->below;
    return base;
}

static bool co_merge(struct removing *w, const struct set_image *im)
{
    const struct set_image *base = lowest_pending(w, im);
    struct set_disk *d = (struct set_disk *)im->disk;
    CLEANUP(free) char *top_path = xasprintf("%s/%s", w->c.dir, d->file);
    CLEANUP(free) char *base_path = xasprintf("%s/%s", w->c.dir, base->disk->file);
    CLEANUP(free) char *root = d->has_digest ? xstrdup(d->digest.root) : NULL;

    if (!co_commit_down(top_path, base_path, w->r->watch, &w->r->err))
        return false;
    /* Its digests will be others': it is without any until they are there. */
    if (d->has_digest) {
        d->has_digest = false;
        if (!write_manifest(w, im))
            return false;
    }
    /* What the later image reads as is all in the lower one (I-M10). */
    if (!set_file_rename(w->c.dir, base->disk->file, d->file, &w->r->err) ||
        !co_finish(w, im, base->below, root))
        return false;
    w->r->merged++;
    return true;
}

/* ---- all of them ------------------------------------------------------------------------ */

/* Whether another image stands on one of those between @im and what will be its base. */
static bool is_shared(const struct removing *w, const struct set_image *im)
{
    for (const struct set_image *at = im->below; is_pending(&w->c, at); at = at->below) {
        size_t users = 0;

        for (size_t i = 0; i < w->c.n_points + w->c.n_pending; i++) {
            const struct set_point *p = i < w->c.n_points ? &w->c.points[i]
                                                          : &w->c.pending[i - w->c.n_points];

            for (size_t k = 0; k < set_manifest_n_disks(&p->m); k++)
                users += p->images[k].below == at;
        }
        if (users > 1)
            return true;
    }
    return false;
}

/* A merge was cut short behind its renaming. */
static bool is_unfinished(const struct removing *w, const struct set_image *im)
{
    return !im->broken && im->disk->has_parent &&
           !set_catalog_point(&w->c, im->disk->parent) && !is_pending(&w->c, im->below);
}

static bool co_tidy_image(struct removing *w, const struct set_image *im)
{
    if (is_unfinished(w, im))
        return co_finish(w, im, im->below, NULL);
    if (im->broken)
        return true;
    if (!is_pending(&w->c, im->below))
        return im->disk->has_digest || co_make_digests(w, im, im->below, NULL);
    if (is_shared(w, im))
        return err_set(&w->r->err, -EMLINK, "Several images stand on '%s', which cannot go "
                       "therefore", im->backing);
    return co_merge(w, im);
}

static int co_tidy(void *arg)
{
    struct removing *w = arg;

    for (size_t i = 0; i < w->c.n_points; i++) {
        for (size_t k = 0; k < set_manifest_n_disks(&w->c.points[i].m); k++) {
            if (!co_tidy_image(w, &w->c.points[i].images[k]))
                return w->r->err.code;
        }
    }
    return 0;
}

static bool make_pending(struct set_remove *r, const char *id)
{
    CLEANUP(free) char *manifest = set_manifest_name(id), *pending = set_pending_name(id);

    if (!set_file_rename(r->dir, manifest, pending, &r->err))
        return false;
    r->removed++;
    return true;
}

bool set_remove_points(struct set_remove *r, const char *const *ids, size_t n)
{
    struct removing w = { .r = r };
    bool ok;

    for (size_t i = 0; i < n; i++) {
        if (!make_pending(r, ids[i]))
            return false;
    }
    if (!set_catalog_open(r->dir, &w.c, &r->err))
        return false;
    ok = offline_run(co_tidy, &w, &r->err) == 0;
    set_catalog_done(&w.c);
    if (!ok || !set_catalog_open(r->dir, &w.c, &r->err))
        return false;
    ok = backup_set_sweep(&w.c, &r->err);
    set_catalog_done(&w.c);
    return ok;
}
