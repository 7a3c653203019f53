/* SPDX-License-Identifier: Apache-2.0
 *
 * Digests for a manifest.
 */
#include "app/set_digests.h"
#include "app/digest_image.h"
#include "base/limits.h"
#include "base/mem.h"
#include "set/digest_file.h"

void set_digests_plan(struct set_disk *d, const struct set_image *below)
{
    free(d->digest.algorithm);
    free(d->digest.file);
    free(d->digest.root);
    d->digest = (struct set_digest){ 0 };
    d->has_digest = true;
    for (const struct set_image *im = below; im; im = im->below)
        d->has_digest &= im->disk->has_digest;
    if (!d->has_digest)
        return;
    d->digest.algorithm = xstrdup(SET_DIGEST_ALGORITHM);
    d->digest.file = xasprintf("%s" SET_DIGEST_SUFFIX, d->file);
    d->digest.leaf_size = SET_LEAF;
    d->digest.root = xstrdup("");
}

/* The paths of the digests' files from @below on. */
static char **list_parents(const char *dir, const struct set_image *below, size_t *ret_n)
{
    char **v = NULL;
    size_t n = 0;

    for (; below; below = below->below) {
        v = xrealloc(v, (n + 1) * sizeof(*v));
        v[n++] = xasprintf("%s/%s", dir, below->disk->digest.file);
    }
    *ret_n = n;
    return v;
}

bool co_set_digests_make(const char *dir, const char *image, struct set_disk *d,
                         const struct set_image *below, struct watch *watch, struct err *err)
{
    CLEANUP(free) char *path = xasprintf("%s/%s", dir, image);
    CLEANUP(free) char *to = d->has_digest ? xasprintf("%s/%s", dir, d->digest.file) : NULL;
    struct set_digest_value root;
    char hex[SET_DIGEST_HEX];
    size_t n;
    char **parents;
    bool ok;

    if (!to)
        return true;
    parents = list_parents(dir, below, &n);
    ok = co_digest_image(&(struct digest_image){ .image = path, .to = to,
                                                 .parents = (const char *const *)parents,
                                                 .n_parents = n, .watch = watch }, &root, err);
    for (size_t i = 0; i < n; i++)
        free(parents[i]);
    free(parents);
    if (!ok)
        return false;
    free(d->digest.root);
    d->digest.root = xstrdup(set_digest_hex(&root, hex));
    return true;
}
