/* SPDX-License-Identifier: Apache-2.0
 *
 * Described types in memory: the builtin ones, freeing and encoding. A decode
 * that fails half-way leaves a struct whose untouched parts are zero, and
 * schema_clear understands that; so no walk has a clean-up path of its own.
 * Read next: schema_decode.c, schema_text.c (text to JSON), schema_help.c,
 * schema_introspect.c.
 */
#include "base/schema.h"
#include "base/mem.h"
#include "base/schema_int.h"

const struct schema_type schema_bool = { "bool", SCHEMA_BOOL, .size = sizeof(bool) };
const struct schema_type schema_int = { "int", SCHEMA_INT, .size = sizeof(int64_t) };
const struct schema_type schema_uint32 = { "uint32", SCHEMA_UINT32, .size = sizeof(uint32_t) };
const struct schema_type schema_size = { "size", SCHEMA_SIZE, .size = sizeof(uint64_t) };
const struct schema_type schema_number = { "number", SCHEMA_NUMBER, .size = sizeof(double) };
const struct schema_type schema_str = { "str", SCHEMA_STR, .size = sizeof(char *) };
const struct schema_type schema_any = { "any", SCHEMA_ANY, .size = sizeof(json_t *) };

const struct schema_member *schema_tag_member(const struct schema_type *t)
{
    for (const struct schema_member *m = t->members; m->name; m++) {
        if (strcmp(m->name, t->tag) == 0)
            return m;
    }
    abort();                        /* the table names a tag that it does not have */
}

const char *schema_tag_value(const struct schema_type *t, const void *p)
{
    const struct schema_member *m = schema_tag_member(t);
    const void *field = (const char *)p + m->offset;

    if (m->type->kind == SCHEMA_STR)
        return *(char *const *)field;
    assert(m->type->kind == SCHEMA_ENUM);
    return m->type->values[*(const int *)field];
}

const struct schema_type *schema_branch(const struct schema_type *t, const void *p)
{
    const char *value = schema_tag_value(t, p);

    return value ? t->branch(value) : NULL;
}

void **schema_branch_slot(const struct schema_type *t, const void *p)
{
    return (void **)((char *)p + t->branch_offset);
}

int schema_enum_index(const struct schema_type *type, const char *text)
{
    assert(type->kind == SCHEMA_ENUM);
    for (int i = 0; type->values[i]; i++) {
        if (strcmp(type->values[i], text) == 0)
            return i;
    }
    return -1;
}

/* --- freeing --- */

static void release(const struct schema_type *t, void *p);

static void release_fields(const struct schema_type *t, void *p)
{
    if (t->kind == SCHEMA_UNION && *schema_branch_slot(t, p))
        schema_free(schema_branch(t, p), *schema_branch_slot(t, p));
    for (const struct schema_member *m = t->members; m && m->name; m++)
        release(m->type, (char *)p + m->offset);
}

static void release(const struct schema_type *t, void *p)
{
    struct schema_array *a = p;
    struct schema_alt *alt = p;

    switch (t->kind) {
    case SCHEMA_STR:
        free(*(char **)p);
        break;
    case SCHEMA_ANY:
        json_decref(*(json_t **)p);
        break;
    case SCHEMA_STRUCT:
    case SCHEMA_UNION:
        release_fields(t, p);
        break;
    case SCHEMA_ARRAY:
        for (size_t i = 0; i < a->n; i++)
            release(t->element, (char *)a->items + i * t->element->size);
        free(a->items);
        break;
    case SCHEMA_ALTERNATE:
        free(alt->str);
        if (alt->object)
            schema_free(t->element, alt->object);
        break;
    case SCHEMA_BOOL:
    case SCHEMA_INT:
    case SCHEMA_UINT32:
    case SCHEMA_SIZE:
    case SCHEMA_NUMBER:
    case SCHEMA_ENUM:
        break;
    }
}

void schema_clear(const struct schema_type *type, void *out)
{
    release(type, out);
    memset(out, 0, type->size);
}

void schema_free(const struct schema_type *type, void *out)
{
    if (out)
        schema_clear(type, out);
    free(out);
}

/* --- encoding --- */

json_t *schema_json_str(const char *text)
{
    json_t *s = json_string(text);

    if (s)
        return s;
    /* Byte by byte: each that does not begin a whole character is replaced. */
    CLEANUP(free) char *clean = xmalloc(strlen(text) * 3 + 1);
    char *to = clean;

    while (*text) {
        size_t n = 0;

        for (size_t k = 1; k <= 4 && !n; k++) {
            json_t *c = strnlen(text, k) == k ? json_stringn(text, k) : NULL;

            if (c)
                n = k;
            json_decref(c);
        }
        to = n ? mempcpy(to, text, n) : mempcpy(to, "\xef\xbf\xbd", 3);
        text += n ? n : 1;
    }
    *to = '\0';
    return json_string(clean);
}

static json_t *encode(const struct schema_type *t, const void *p);

static void encode_fields(const struct schema_type *t, const void *p, json_t *obj)
{
    for (const struct schema_member *m = t->members; m && m->name; m++) {
        if (m->has < 0 || *(const bool *)((const char *)p + m->has))
            json_object_set_new(obj, m->name, encode(m->type, (const char *)p + m->offset));
    }
    if (t->kind == SCHEMA_UNION && *schema_branch_slot(t, p))
        encode_fields(schema_branch(t, p), *schema_branch_slot(t, p), obj);
}

static json_t *encode_array(const struct schema_type *t, const struct schema_array *a)
{
    json_t *array = json_array();

    for (size_t i = 0; i < a->n; i++)
        json_array_append_new(array, encode(t->element,
                                            (char *)a->items + i * t->element->size));
    return array;
}

static json_t *encode_alternate(const struct schema_type *t, const struct schema_alt *alt)
{
    switch (alt->kind) {
    case SCHEMA_ALT_STR:
        return schema_json_str(alt->str ? alt->str : "");
    case SCHEMA_ALT_OBJECT:
        return encode(t->element, alt->object);
    case SCHEMA_ALT_NULL:
        break;
    }
    return json_null();
}

static json_t *encode(const struct schema_type *t, const void *p)
{
    json_t *obj;

    switch (t->kind) {
    case SCHEMA_BOOL:
        return json_boolean(*(const bool *)p);
    case SCHEMA_INT:
        return json_integer(*(const int64_t *)p);
    case SCHEMA_UINT32:
        return json_integer(*(const uint32_t *)p);
    case SCHEMA_SIZE:
        return json_integer(MIN(*(const uint64_t *)p, (uint64_t)INT64_MAX));
    case SCHEMA_NUMBER:
        return json_real(*(const double *)p);
    case SCHEMA_STR:
        return schema_json_str(*(char *const *)p ? *(char *const *)p : "");
    case SCHEMA_ENUM:
        return json_string(t->values[*(const int *)p]);
    case SCHEMA_ANY:
        return *(json_t *const *)p ? json_incref(*(json_t *const *)p) : json_null();
    case SCHEMA_ARRAY:
        return encode_array(t, p);
    case SCHEMA_ALTERNATE:
        return encode_alternate(t, p);
    case SCHEMA_STRUCT:
    case SCHEMA_UNION:
        obj = json_object();
        encode_fields(t, p, obj);
        return obj;
    }
    abort();
}

json_t *schema_encode(const struct schema_type *type, const void *in)
{
    return encode(type, in);
}
