/* SPDX-License-Identifier: Apache-2.0
 *
 * Leftovers in a backup set (docs/backup-sets.md, I-M2).
 */
#include "app/backup_set.h"
#include "app/target_name.h"
#include "base/mem.h"
#include "set/digest_file.h"
#include "set/file.h"
#include "set/name.h"

/* Whether a point's manifest names this file, too, or its image stands on it. */
static bool is_needed(const struct set_catalog *c, const char *file)
{
    for (size_t i = 0; i < c->n_points; i++) {
        for (size_t k = 0; k < set_manifest_n_disks(&c->points[i].m); k++) {
            const struct set_image *im = &c->points[i].images[k];

            if (strcmp(im->disk->file, file) == 0 ||
                (im->backing && strcmp(im->backing, file) == 0))
                return true;
        }
    }
    return false;
}

/* Whether a chain of a point leads to @im. */
static bool is_stood_on(const struct set_catalog *c, const struct set_image *im)
{
    for (size_t i = 0; i < c->n_points; i++) {
        for (size_t k = 0; k < set_manifest_n_disks(&c->points[i].m); k++) {
            const struct set_image *at = c->points[i].images[k].below;

            for (size_t depth = 0; at && depth <= c->n_points + c->n_pending; depth++) {
                if (at == im)
                    return true;
                at = at->below;
            }
        }
    }
    return false;
}

/* *ret_all false: something has to stay. */
static bool sweep_image(const struct set_catalog *c, const struct set_image *im, bool *ret_all,
                        struct err *err)
{
    const struct set_disk *d = im->disk;
    CLEANUP(free) char *digests = xasprintf("%s" SET_DIGEST_SUFFIX, d->file);

    if (is_stood_on(c, im)) {
        *ret_all = false;
        return true;
    }
    if (is_needed(c, d->file))
        return true;
    /* The digests may be there though the manifest does not name them yet, or any more. */
    return set_file_remove(c->dir, d->file, err) && set_file_remove(c->dir, digests, err);
}

bool backup_set_sweep(const struct set_catalog *c, struct err *err)
{
    for (size_t i = 0; i < c->n_temporary; i++) {
        CLEANUP(free) char *path = xasprintf("%s/%s", c->dir, c->temporary[i]);

        /* A daemon may go on with the job of a command that was killed. */
        (void)target_name_remove_unused(path);
    }
    for (size_t i = 0; i < c->n_pending; i++) {
        const struct set_point *p = &c->pending[i];
        CLEANUP(free) char *pending = set_pending_name(p->m.id);
        bool all = true;

        for (size_t k = 0; k < set_manifest_n_disks(&p->m); k++) {
            if (!sweep_image(c, &p->images[k], &all, err))
                return false;
        }
        /* The images' end is on stable storage before that of what names them. */
        if (all && (!set_dir_sync(c->dir, err) || !set_file_remove(c->dir, pending, err)))
            return false;
    }
    return true;
}
