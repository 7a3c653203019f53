/* SPDX-License-Identifier: Apache-2.0
 *
 * The digests of an image that becomes part of a backup set, for whoever makes such images.
 */
#ifndef APP_SET_DIGESTS_H
#define APP_SET_DIGESTS_H

#include "app/watch.h"
#include "set/catalog.h"

/* Say in @d's manifest that there will be digests beside its image, unless an image that it
 * stands on (@below and so on; NULL: none) has none. */
void set_digests_plan(struct set_disk *d, const struct set_image *below);

/* Make them, as planned, of the image @dir/@image, by reading it back, and note the root. False
 * with @err; -ECANCELED: Ctrl-C. Coroutine, for offline_run. */
MUST_CHECK bool co_set_digests_make(const char *dir, const char *image, struct set_disk *d,
                                    const struct set_image *below, struct watch *watch,
                                    struct err *err);

#endif
