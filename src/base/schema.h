/* SPDX-License-Identifier: Apache-2.0
 *
 * Types described by tables. One description of a structure serves to decode
 * it from JSON (QMP), to decode it from "key=value,a.b=c" (command line), to
 * encode it, to print help, and to answer query-qmp-schema. A driver describes
 * its own options beside its code; nothing else has to know them.
 *
 * Wording of decode errors is QEMU's (qapi/qobject-input-visitor.c):
 *   "Parameter 'x' is missing", "Parameter 'x' is unexpected",
 *   "Invalid parameter type for 'x', expected: string",
 *   "Parameter 'x' does not accept value 'y'" (enums).
 * Nested names are written 'file.filename'.
 */
#ifndef BASE_SCHEMA_H
#define BASE_SCHEMA_H

#include "base/err.h"
#include <jansson.h>

enum schema_kind {
    SCHEMA_BOOL,      /* bool */
    SCHEMA_INT,       /* int64_t */
    SCHEMA_UINT32,    /* uint32_t */
    SCHEMA_SIZE,      /* uint64_t; text form takes suffixes k M G T P E (1024) */
    SCHEMA_STR,       /* char *, owned by the decoded struct */
    SCHEMA_ENUM,      /* int: index into .values */
    SCHEMA_STRUCT,    /* the struct itself, embedded */
    SCHEMA_ARRAY,     /* struct schema_array */
    SCHEMA_UNION,     /* struct with common members and a tagged branch */
    SCHEMA_ALTERNATE, /* struct schema_alt: a string, an object or null */
    SCHEMA_ANY,       /* json_t *, a reference owned by the decoded struct */
};

struct schema_type;

struct schema_member {
    const char *name;               /* JSON name; NULL ends the table */
    const struct schema_type *type;
    size_t offset;                  /* of the field in the C struct */
    ptrdiff_t has;                  /* offset of `bool has_field`; -1: required */
    const char *doc;                /* one line for --help */
};

struct schema_type {
    const char *name;               /* QAPI's name of the type */
    enum schema_kind kind;
    const char *doc;
    size_t size;                    /* sizeof the C representation */
    const struct schema_member *members;   /* STRUCT, UNION (common members) */
    const char *const *values;             /* ENUM, NULL-terminated */
    const struct schema_type *element;     /* ARRAY, ALTERNATE (the object) */

    /* UNION: the member (a SCHEMA_STR or SCHEMA_ENUM of .members) that selects,
     * how to find the branch for a value (NULL: no such value; a branch type
     * with no members is allowed), how to enumerate branches (NULL ends), and
     * where in the C struct the `void *` to the decoded branch lies. */
    const char *tag;
    const struct schema_type *(*branch)(const char *tag_value);
    const char *(*branch_name)(unsigned index);
    size_t branch_offset;
};

struct schema_array {
    size_t n;
    void *items;                    /* n times element->size bytes */
};

enum schema_alt_kind { SCHEMA_ALT_STR, SCHEMA_ALT_OBJECT, SCHEMA_ALT_NULL };

struct schema_alt {
    enum schema_alt_kind kind;
    char *str;                      /* SCHEMA_ALT_STR */
    void *object;                   /* SCHEMA_ALT_OBJECT: element->size bytes */
};

extern const struct schema_type schema_bool, schema_int, schema_uint32, schema_size, schema_str,
    schema_any;

#define SCHEMA_REQUIRED(struct_t, field, json, type, doc) \
    { json, type, offsetof(struct_t, field), -1, doc }
#define SCHEMA_OPTIONAL(struct_t, field, json, type, doc) \
    { json, type, offsetof(struct_t, field), offsetof(struct_t, has_##field), doc }
#define SCHEMA_END { 0 }

/* Decode @in (a JSON object) into @out, which has type->size bytes and is
 * zeroed first. @keyval: scalars are strings, as from the command line
 * ("on"/"off", "64k"). On failure @out holds nothing that needs freeing. */
MUST_CHECK bool schema_decode(const struct schema_type *type, const json_t *in, bool keyval,
                              void *out, struct err *err);

/* Free what a decoded struct owns (not the struct). Zeroes it. */
void schema_clear(const struct schema_type *type, void *out);

/* Decode into fresh memory; schema_free undoes it and takes NULL. */
void *schema_decode_new(const struct schema_type *type, const json_t *in, bool keyval,
                        struct err *err);
void schema_free(const struct schema_type *type, void *out);

/* The reverse of decode: a new reference, optional members only where has_ is
 * set. */
json_t *schema_encode(const struct schema_type *type, const void *in);

/* "driver=raw,file.driver=file,file.filename=a,,b" to nested JSON objects
 * whose leaves are strings; ",," is a comma inside a value. @implied_key names
 * a first value that stands without a key ("raw,file=..." as --blockdev has
 * none: NULL). Text that starts with '{' is parsed as JSON instead and
 * *ret_keyval is false then. Returns NULL with @err set on bad text. */
json_t *schema_parse_text(const char *text, const char *implied_key, bool *ret_keyval,
                          struct err *err);

/* "64k", "1.5G", "1024" to bytes; the whole string must be consumed. */
MUST_CHECK bool schema_parse_size(const char *text, uint64_t *ret, struct err *err);

/* Lines "  name=<type>   doc" for every member, nested ones indented. */
char *schema_help(const struct schema_type *type);

#endif
