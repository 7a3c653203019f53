/* SPDX-License-Identifier: Apache-2.0
 *
 * Files of a backup set by what they belong to.
 */
#include "app/set_image.h"
#include "app/offline.h"
#include "base/mem.h"
#include "base/strbuf.h"

char *set_path(const struct set_catalog *c, const char *file)
{
    return xasprintf("%s/%s", c->dir, file);
}

static const struct set_image *no_such_disk(const struct set_point *p, const char *name,
                                            struct err *err)
{
    CLEANUP_STRBUF struct strbuf sb = STRBUF_INIT;

    for (size_t i = 0; i < p->m.disks.n && i < 8; i++)
        strbuf_addf(&sb, "%s%s", i ? ", " : "", p->images[i].disk->name);
    if (name)
        err_set(err, -ENOENT, "Point %s has no disk '%s': it has %s", p->m.id, name,
                strbuf_text(&sb));
    else
        err_set(err, -EINVAL, "Point %s has several disks: say one with --disk: %s", p->m.id,
                strbuf_text(&sb));
    return NULL;
}

const struct set_image *set_image_choose(const struct set_catalog *c, const struct set_point *p,
                                         const char *name, struct err *err)
{
    if (!name)
        return p->m.disks.n == 1 ? &p->images[0] : no_such_disk(p, NULL, err);
    for (size_t i = 0; i < p->m.disks.n; i++) {
        if (strcmp(p->images[i].disk->name, name) == 0)
            return &p->images[i];
    }
    return no_such_disk(p, name, err);
}

/* ---- digests ------------------------------------------------------------------------ */

struct paths {
    char **v;
    size_t n;
};

static void paths_done(struct paths *p)
{
    for (size_t i = 0; i < p->n; i++)
        free(p->v[i]);
    free(p->v);
}

/* Of the image's digests and those below. That chains end the catalogue has seen to. */
static bool find_paths(const struct set_catalog *c, const struct set_image *im,
                       struct paths *ret, struct err *err)
{
    for (; im; im = im->below) {
        const struct set_disk *d = im->disk;

        if (im->broken)
            return err_set(err, -EBADMSG, "%s", im->broken);
        if (!d->has_digest)
            return err_set(err, -ENODATA, "'%s' has no digests", d->file);
        if (strcmp(d->digest.algorithm, SET_DIGEST_ALGORITHM) != 0 ||
            d->digest.leaf_size != SET_LEAF)
            return err_set(err, -ENOTSUP, "'%s' has digests of a kind that this program does "
                           "not know (%.40s)", d->file, d->digest.algorithm);
        ret->v = xrealloc(ret->v, (ret->n + 1) * sizeof(*ret->v));
        ret->v[ret->n++] = set_path(c, d->digest.file);
    }
    return true;
}

struct set_digest_chain *set_image_digests(const struct set_catalog *c,
                                           const struct set_image *im, struct err *err)
{
    struct paths p = { 0 };
    struct set_digest_chain *chain = NULL;

    if (find_paths(c, im, &p, err))
        chain = set_digest_chain_open((const char *const *)p.v, p.n, err);
    paths_done(&p);
    if (chain && set_digest_chain_size(chain) != im->disk->size) {
        err_set(err, -EBADMSG, "'%s' is about a disk of another size than the manifest",
                im->disk->digest.file);
        set_digest_chain_free(chain);
        chain = NULL;
    }
    return chain;
}

static bool check_files(const struct set_catalog *c, const struct set_image *im, struct err *err)
{
    struct paths p = { 0 };
    bool ok = find_paths(c, im, &p, err);

    for (size_t i = 0; ok && i < p.n; i++) {
        struct set_digest_file *f = set_digest_file_open(p.v[i], err);

        ok = f && set_digest_file_check(f, err);
        set_digest_file_free(f);
    }
    paths_done(&p);
    return ok;
}

static bool check_root(const struct set_catalog *c, const struct set_image *im, struct err *err)
{
    CLEANUP(set_digest_chain_free) struct set_digest_chain *chain = set_image_digests(c, im, err);
    struct set_digest_value root, want;

    if (!chain || !set_digest_chain_root(chain, &root, err))
        return false;
    return (set_digest_parse(im->disk->digest.root, &want) && set_digest_equal(&root, &want)) ||
           err_set(err, -EBADMSG, "'%s' does not belong to the manifest of point %s: the root "
                   "digest is another", im->disk->digest.file, im->point->m.id);
}

struct set_digest_chain *set_image_trusted_digests(const struct set_catalog *c,
                                                   const struct set_image *im, struct err *err)
{
    return check_files(c, im, err) && check_root(c, im, err) ? set_image_digests(c, im, err)
                                                             : NULL;
}

/* ---- images -------------------------------------------------------------------------- */

struct node *co_set_image_open(const struct set_catalog *c, const struct set_image *im,
                               struct err *err)
{
    CLEANUP(free) char *path = set_path(c, im->disk->file);
    const struct offline_open o = { .name = path, .format = "qcow2" };
    struct node *n;

    if (im->broken) {
        err_set(err, -EBADMSG, "%s", im->broken);
        return NULL;
    }
    n = co_offline_open(&o, err);
    if (n && node_size(n) != im->disk->size) {
        err_set(err, -EBADMSG, "'%s' has another size than the manifest says", path);
        co_node_unref(n);
        return NULL;
    }
    return n;
}
