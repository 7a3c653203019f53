/* SPDX-License-Identifier: Apache-2.0
 *
 * The tables for schema_types.h, written as drivers write theirs.
 */
#include "schema_types.h"

static const char *const aio_values[] = { "threads", "native", "io_uring", NULL };
const struct schema_type aio_type = {
    "AioOptions", SCHEMA_ENUM, .size = sizeof(int), .values = aio_values,
};

static const struct schema_member file_members[] = {
    SCHEMA_REQUIRED(struct file_options, filename, "filename", &schema_str, "path of the file"),
    SCHEMA_OPTIONAL(struct file_options, aio, "aio", &aio_type, "how to do I/O"),
    SCHEMA_END,
};
const struct schema_type file_options_type = {
    "FileOptions", SCHEMA_STRUCT, .doc = "a file", .size = sizeof(struct file_options),
    .members = file_members,
};

static const struct schema_type node_ref_type = {
    "NodeRef", SCHEMA_ALTERNATE, .size = sizeof(struct schema_alt), .element = &node_options_type,
};
static const struct schema_type node_ref_or_null_type = {
    "NodeRefOrNull", SCHEMA_ALTERNATE, .size = sizeof(struct schema_alt),
    .element = &node_options_type, .nullable = true,
};

static const struct schema_member raw_members[] = {
    SCHEMA_REQUIRED(struct raw_options, file, "file", &node_ref_type, NULL),
    SCHEMA_OPTIONAL(struct raw_options, offset, "offset", &schema_size, "where the disk starts"),
    SCHEMA_END,
};
static const struct schema_type raw_options_type = {
    "RawOptions", SCHEMA_STRUCT, .size = sizeof(struct raw_options), .members = raw_members,
};

static const struct schema_type null_options_type = { "NullOptions", SCHEMA_STRUCT };

static const char *const branch_names[] = { "file", "raw", "null" };
static const struct schema_type *const branch_types[] = {
    &file_options_type, &raw_options_type, &null_options_type,
};

static const char *node_branch_name(unsigned i)
{
    return i < ARRAY_SIZE(branch_names) ? branch_names[i] : NULL;
}

static const struct schema_type *node_branch(const char *driver)
{
    for (unsigned i = 0; i < ARRAY_SIZE(branch_names); i++) {
        if (strcmp(branch_names[i], driver) == 0)
            return branch_types[i];
    }
    return NULL;
}

static const struct schema_member node_members[] = {
    SCHEMA_REQUIRED(struct node_options, driver, "driver", &schema_str, "the kind of node"),
    SCHEMA_OPTIONAL(struct node_options, node_name, "node-name", &schema_str, NULL),
    SCHEMA_OPTIONAL(struct node_options, read_only, "read-only", &schema_bool, NULL),
    SCHEMA_END,
};
const struct schema_type node_options_type = {
    "NodeOptions", SCHEMA_UNION, .size = sizeof(struct node_options), .members = node_members,
    .tag = "driver", .branch = node_branch, .branch_name = node_branch_name,
    .branch_offset = offsetof(struct node_options, branch),
};

static const struct schema_type names_type = {
    "strList", SCHEMA_ARRAY, .size = sizeof(struct schema_array), .element = &schema_str,
};
static const struct schema_type nodes_type = {
    "NodeOptionsList", SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &node_options_type,
};

static const struct schema_member everything_members[] = {
    SCHEMA_OPTIONAL(struct everything, flag, "flag", &schema_bool, NULL),
    SCHEMA_OPTIONAL(struct everything, number, "number", &schema_int, NULL),
    SCHEMA_OPTIONAL(struct everything, count, "count", &schema_uint32, NULL),
    SCHEMA_OPTIONAL(struct everything, size, "size", &schema_size, NULL),
    SCHEMA_OPTIONAL(struct everything, ratio, "ratio", &schema_number, NULL),
    SCHEMA_OPTIONAL(struct everything, name, "name", &schema_str, NULL),
    SCHEMA_OPTIONAL(struct everything, aio, "aio", &aio_type, NULL),
    SCHEMA_OPTIONAL(struct everything, nested, "nested", &file_options_type, NULL),
    SCHEMA_OPTIONAL(struct everything, names, "names", &names_type, NULL),
    SCHEMA_OPTIONAL(struct everything, nodes, "nodes", &nodes_type, NULL),
    SCHEMA_OPTIONAL(struct everything, ref, "ref", &node_ref_or_null_type, NULL),
    SCHEMA_OPTIONAL(struct everything, any, "any", &schema_any, NULL),
    SCHEMA_END,
};
const struct schema_type everything_type = {
    "Everything", SCHEMA_STRUCT, .size = sizeof(struct everything), .members = everything_members,
};

static const char *const shape_values[] = { "none", "circle", NULL };
const struct schema_type shape_kind_type = {
    "ShapeKind", SCHEMA_ENUM, .size = sizeof(int), .values = shape_values,
};

static const struct schema_member circle_members[] = {
    SCHEMA_REQUIRED(struct circle, radius, "radius", &schema_uint32, NULL),
    SCHEMA_END,
};
static const struct schema_type circle_type = {
    "Circle", SCHEMA_STRUCT, .size = sizeof(struct circle), .members = circle_members,
};

static const struct schema_type *shape_branch(const char *kind)
{
    return strcmp(kind, "circle") == 0 ? &circle_type : &null_options_type;
}

static const char *shape_branch_name(unsigned i)
{
    return shape_values[i];
}

static const struct schema_member shape_members[] = {
    SCHEMA_REQUIRED(struct shape, kind, "kind", &shape_kind_type, NULL),
    SCHEMA_END,
};
const struct schema_type shape_type = {
    "Shape", SCHEMA_UNION, .size = sizeof(struct shape), .members = shape_members, .tag = "kind",
    .branch = shape_branch, .branch_name = shape_branch_name,
    .branch_offset = offsetof(struct shape, branch),
};
