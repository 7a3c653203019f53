/* SPDX-License-Identifier: Apache-2.0
 *
 * Giving an image its space before it is used.
 */
#ifndef APP_PREALLOCATE_H
#define APP_PREALLOCATE_H

#include "app/image_options.h"
#include "app/watch.h"
#include "block/node.h"

/* Whether it can be; to be asked before anything is changed. */
MUST_CHECK bool preallocation_possible(struct node *n, enum image_prealloc how, struct err *err);

/* Give [off, off+len) of an image, which reads as zero there, its space: FALLOC reserves
 * it, FULL writes it; METADATA is for qcow2 only. -ECANCELED in @err after Ctrl-C.
 * Coroutine. */
MUST_CHECK bool co_preallocate(struct node *n, uint64_t off, uint64_t len,
                               enum image_prealloc how, struct watch *watch, struct err *err);

#endif
