/* SPDX-License-Identifier: Apache-2.0
 *
 * Points go out of a backup set (docs/backup-sets.md, I-M3 and I-M10). For forget and prune.
 */
#ifndef APP_SET_REMOVE_H
#define APP_SET_REMOVE_H

#include "app/watch.h"
#include "set/catalog.h"

struct set_remove {
    const char *dir;                 /* absolute, as for set_lock */
    struct watch *watch;
    size_t removed;                  /* points that are listed no more */
    size_t merged;                   /* images that were merged into later ones */
    struct err err;
};

/* Remove the points with these @ids, and what earlier runs have left half done. The caller has
 * the set's lock. Once a process. False with .err; .removed says how far it came. */
MUST_CHECK bool set_remove_points(struct set_remove *r, const char *const *ids, size_t n);

#endif
