/* SPDX-License-Identifier: Apache-2.0
 *
 * The types of bitmap_ref.h.
 */
#include "block/bitmap_ref.h"

const struct schema_type bitmap_ref_type = {
    .name = "BlockDirtyBitmap", .kind = SCHEMA_STRUCT, .size = sizeof(struct bitmap_ref),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct bitmap_ref, node, "node", &schema_str, "the node that has it"),
        SCHEMA_REQUIRED(struct bitmap_ref, name, "name", &schema_str, "its name"),
        SCHEMA_END,
    },
};

const struct schema_type bitmap_or_str_type = {
    .name = "BlockDirtyBitmapOrStr", .kind = SCHEMA_ALTERNATE, .size = sizeof(struct schema_alt),
    .element = &bitmap_ref_type,
};

const struct schema_type bitmap_or_str_list_type = {
    .name = "BlockDirtyBitmapOrStrList", .kind = SCHEMA_ARRAY,
    .size = sizeof(struct schema_array), .element = &bitmap_or_str_type,
};
