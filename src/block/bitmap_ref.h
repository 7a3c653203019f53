/* SPDX-License-Identifier: Apache-2.0
 *
 * How commands and options name dirty bitmaps: QEMU qapi/block-core.json, BlockDirtyBitmap and
 * BlockDirtyBitmapOrStr.
 */
#ifndef BLOCK_BITMAP_REF_H
#define BLOCK_BITMAP_REF_H

#include "base/schema.h"

/* A bitmap by its node and its name. */
struct bitmap_ref {
    char *node, *name;
};
extern const struct schema_type bitmap_ref_type;

/* A bitmap's name alone, or a struct bitmap_ref: struct schema_alt; and lists of it. */
extern const struct schema_type bitmap_or_str_type, bitmap_or_str_list_type;

#endif
