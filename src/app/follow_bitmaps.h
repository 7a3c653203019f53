/* SPDX-License-Identifier: Apache-2.0
 *
 * Dirty bitmaps that an image stores, and commands that change the image: they follow what
 * is written by themselves (block/dirty.h), if they could be loaded.
 */
#ifndef APP_FOLLOW_BITMAPS_H
#define APP_FOLLOW_BITMAPS_H

#include "block/node.h"

/* Whether none is lost when @n is written to and gets @size bytes: before the first write. */
MUST_CHECK bool bitmaps_will_follow(struct node *n, uint64_t size, struct err *err);

#endif
