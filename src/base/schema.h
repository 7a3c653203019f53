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
 *   "Parameter 'x' does not accept value 'y'" (enums),
 *   "Parameter 'x' expects uint32_t" (out of range).
 * Nested names are written 'file.filename', 'list[1]' ('list.1' for keyval).
 *
 * Everything here is pure; any thread. Depth and array sizes are bounded by
 * LIMIT_JSON_DEPTH and LIMIT_SCHEMA_ARRAY.
 */
#ifndef BASE_SCHEMA_H
#define BASE_SCHEMA_H

#include "base/err.h"
#include <jansson.h>

DEFINE_CLEANUP(json_t *, json_decref);  /* for CLEANUP(json_decref) anywhere */

enum schema_kind {
    SCHEMA_BOOL,      /* bool */
    SCHEMA_INT,       /* int64_t */
    SCHEMA_UINT32,    /* uint32_t */
    SCHEMA_SIZE,      /* uint64_t; text form takes suffixes k M G T P E (1024).
                       * JSON (Jansson) carries at most INT64_MAX */
    SCHEMA_NUMBER,    /* double, finite */
    SCHEMA_STR,       /* char *, owned by the decoded struct */
    SCHEMA_ENUM,      /* int: index into .values */
    SCHEMA_STRUCT,    /* the struct itself, embedded */
    SCHEMA_ARRAY,     /* struct schema_array */
    SCHEMA_UNION,     /* struct with common members and a tagged branch */
    SCHEMA_ALTERNATE, /* struct schema_alt: a string, an object (if .element), or
                       * null (if .nullable) */
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
    bool nullable;                         /* ALTERNATE: JSON null is allowed */

    /* UNION: the member (a required SCHEMA_STR or SCHEMA_ENUM of .members) that
     * selects, how to find the branch for a value (NULL: no such value), how to
     * enumerate branches (NULL ends), and where in the C struct the `void *` to
     * the decoded branch lies. A branch is a STRUCT or a UNION whose members
     * stand in the same JSON object; one without members may have size 0, and
     * its pointer is set all the same. */
    const char *tag;
    const struct schema_type *(*branch)(const char *tag_value);
    const char *(*branch_name)(unsigned index);
    size_t branch_offset;
};

struct schema_array {
    size_t n;
    void *items;                    /* n times element->size bytes */
};

extern const struct schema_type schema_bool, schema_int, schema_uint32, schema_size, schema_number,
    schema_str, schema_any;

enum schema_alt_kind { SCHEMA_ALT_STR, SCHEMA_ALT_OBJECT, SCHEMA_ALT_NULL };

struct schema_alt {
    enum schema_alt_kind kind;
    char *str;                      /* SCHEMA_ALT_STR */
    void *object;                   /* SCHEMA_ALT_OBJECT: element->size bytes */
};

#define SCHEMA_REQUIRED(struct_t, field, json, type, doc) \
    { json, type, offsetof(struct_t, field), -1, doc }
#define SCHEMA_OPTIONAL(struct_t, field, json, type, doc) \
    { json, type, offsetof(struct_t, field), offsetof(struct_t, has_##field), doc }
#define SCHEMA_END { 0 }

/* Decode @in into @out, which has type->size bytes and is zeroed first. Absent
 * optional members stay zero. @keyval: scalars are strings, as from the command
 * line ("on"/"off", "64k"). On failure @out holds nothing that needs freeing. */
MUST_CHECK bool schema_decode(const struct schema_type *type, const json_t *in, bool keyval,
                              void *out, struct err *err);

/* Free what a decoded struct owns (not the struct). Zeroes it. */
void schema_clear(const struct schema_type *type, void *out);

/* Decode into fresh memory; schema_free undoes it and takes NULL. */
void *schema_decode_new(const struct schema_type *type, const json_t *in, bool keyval,
                        struct err *err);
void schema_free(const struct schema_type *type, void *out);

/* The reverse of decode: a new reference, optional members only where has_ is
 * set. A NULL string is "". */
json_t *schema_encode(const struct schema_type *type, const void *in);

/* A JSON string of any bytes: what is not UTF-8 (file names need not be) becomes
 * U+FFFD. Never NULL. */
json_t *schema_json_str(const char *text);

/* The index of @text in type->values of an enum, or -1. */
int schema_enum_index(const struct schema_type *type, const char *text);

/* Parse exactly one JSON value, refusing depth beyond LIMIT_JSON_DEPTH before
 * any recursion, duplicate keys and "\u0000". Errors begin "JSON parse error, ". */
json_t *schema_parse_json(const char *text, size_t len, struct err *err);

/* "driver=raw,file.driver=file,file.filename=a,,b" to nested JSON objects
 * whose leaves are strings; ",," is a comma inside a value; "a.0=x,a.1=y" is an
 * array; of the same key the last one counts. @implied_key names a first value
 * that stands without a key ("qcow2,file=..."; NULL: none may). Text that starts
 * with '{' is parsed as JSON instead and *ret_keyval is false then. Returns NULL
 * with @err set on bad text. Syntax and words: QEMU util/keyval.c. */
json_t *schema_parse_text(const char *text, const char *implied_key, bool *ret_keyval,
                          struct err *err);

/* "64k", "1.5G", "0x1000", "1024" to bytes; the whole string must be consumed.
 * A fraction of a byte is cut off. */
MUST_CHECK bool schema_parse_size(const char *text, uint64_t *ret, struct err *err);

/* Lines "  name=<type>   doc" for every member, nested ones indented, branches
 * of a union under "  tag=value:". free() it. */
char *schema_help(const struct schema_type *type);

/* One command or event, for schema_introspect. */
struct schema_entity {
    const char *name;
    bool is_event;
    bool allow_oob;
    const struct schema_type *arg;  /* STRUCT or UNION; NULL: no arguments */
    const struct schema_type *ret;  /* commands; NULL: an empty object */
};

/* The answer of query-qmp-schema (QEMU qapi/introspect.json): an array of
 * SchemaInfo for these commands and events and every type they reach, types
 * named by number as QEMU does it. A new reference. */
json_t *schema_introspect(const struct schema_entity *entities, size_t n);

#endif
