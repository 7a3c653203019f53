/* SPDX-License-Identifier: Apache-2.0
 *
 * Described types for the tests of the schema: a small copy of what a block
 * driver's options are made of (a union selected by a string, a reference to
 * itself by an alternate) and one structure with a member of every kind.
 */
#ifndef TESTS_UNIT_BASE_SCHEMA_TYPES_H
#define TESTS_UNIT_BASE_SCHEMA_TYPES_H

#include "base/schema.h"

struct node_options {
    char *driver;
    char *node_name;
    bool has_node_name;
    bool read_only, has_read_only;
    void *branch;                   /* one of the three below */
};

struct file_options {
    char *filename;
    int aio;
    bool has_aio;
};

struct raw_options {
    struct schema_alt file;
    uint64_t offset;
    bool has_offset;
};

struct everything {
    bool flag, has_flag;
    int64_t number;
    bool has_number;
    uint32_t count;
    bool has_count;
    uint64_t size;
    bool has_size;
    double ratio;
    bool has_ratio;
    char *name;
    bool has_name;
    int aio;
    bool has_aio;
    struct file_options nested;
    bool has_nested;
    struct schema_array names, nodes;
    bool has_names, has_nodes;
    struct schema_alt ref;
    bool has_ref;
    json_t *any;
    bool has_any;
};

/* A union whose tag is an enum; the branch "none" has no members. */
struct shape {
    int kind;
    void *branch;
};

struct circle {
    uint32_t radius;
};

extern const struct schema_type aio_type, file_options_type, node_options_type, everything_type,
    shape_type, shape_kind_type;

#endif
