/* SPDX-License-Identifier: Apache-2.0
 *
 * Giving an image its space before it is used.
 */
#ifndef APP_PREALLOCATE_H
#define APP_PREALLOCATE_H

#include "app/image_options.h"
#include "block/node.h"

/* Give [off, off+len) of a raw image, which reads as zero, its space: FALLOC reserves
 * it, FULL writes it. Not METADATA. Coroutine. */
MUST_CHECK bool co_preallocate(struct node *n, uint64_t off, uint64_t len,
                               enum image_prealloc how, struct err *err);

#endif
