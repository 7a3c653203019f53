/* SPDX-License-Identifier: Apache-2.0
 *
 * JSON to C structs, one function a kind of type. The C stack holds the path to
 * the value at hand, from which the names in errors are made. On any error the
 * walk just returns: schema_clear frees what was made so far.
 */
#include "base/schema.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/schema_int.h"
#include <stdio.h>

/* Where in the input a value stands: a chain on the stack, up to the root. */
struct where {
    const struct where *up;
    const char *name;               /* NULL: an array's element */
    size_t index;
};

struct reader {
    bool keyval;
    unsigned depth;
    struct err *err;
    char name[512];                 /* of full_name */
};

/* "a.b[1].c", or "a.b.1.c" for keyval; cut if it is longer than anybody reads. */
static const char *full_name(struct reader *r, const struct where *at)
{
    const struct where *chain[2 * LIMIT_JSON_DEPTH + 2];
    unsigned n = 0;
    size_t len = 0;

    for (; at && n < ARRAY_SIZE(chain); at = at->up)
        chain[n++] = at;
    if (n == 0)
        return "<anonymous>";
    while (n-- > 0) {
        char *to = r->name + len;
        size_t room = sizeof(r->name) - len;
        int k;

        if (chain[n]->name)
            k = snprintf(to, room, "%s%s", len ? "." : "", chain[n]->name);
        else
            k = snprintf(to, room, r->keyval ? ".%zu" : "[%zu]", chain[n]->index);
        if (k < 0 || (size_t)k >= room)
            break;
        len += k;
    }
    return r->name;
}

static bool wrong_type(struct reader *r, const struct where *at, const char *expected)
{
    return err_set(r->err, -EINVAL, "Invalid parameter type for '%s', expected: %s",
                   full_name(r, at), expected);
}

static bool wrong_value(struct reader *r, const struct where *at, const char *expected)
{
    return err_set(r->err, -EINVAL, "Parameter '%s' expects %s", full_name(r, at), expected);
}

static bool not_accepted(struct reader *r, const struct where *at, const char *value)
{
    return err_set(r->err, -EINVAL, "Parameter '%s' does not accept value '%s'",
                   full_name(r, at), value);
}

/* The text of a scalar on the command line; NULL with the error set. */
static const char *keyval_text(struct reader *r, const json_t *in, const struct where *at)
{
    if (json_is_object(in) || json_is_array(in)) {
        err_set(r->err, -EINVAL, "Parameters '%s.*' are unexpected", full_name(r, at));
        return NULL;
    }
    if (!json_is_string(in))
        wrong_type(r, at, "string");
    return json_string_value(in);
}

typedef bool decode_fn(struct reader *r, const struct schema_type *t, const json_t *in,
                       const struct where *at, void *out);
static decode_fn decode;

static bool decode_bool(struct reader *r, const struct schema_type *t, const json_t *in,
                        const struct where *at, void *out)
{
    static const char *const words[][2] = {
        { "off", "on" }, { "no", "yes" }, { "false", "true" }, { "n", "y" },
    };

    if (!r->keyval) {
        *(bool *)out = json_is_true(in);
        return json_is_boolean(in) || wrong_type(r, at, "boolean");
    }
    const char *text = keyval_text(r, in, at);
    if (!text)
        return false;
    for (unsigned i = 0; i < 2 * ARRAY_SIZE(words); i++) {
        if (strcmp(text, words[i / 2][i % 2]) == 0) {
            *(bool *)out = i % 2;
            return true;
        }
    }
    return wrong_value(r, at, "'on' or 'off'");
}

static bool get_int(struct reader *r, const json_t *in, const struct where *at, int64_t *ret)
{
    char *end;

    if (!r->keyval) {
        *ret = json_integer_value(in);
        return json_is_integer(in) || wrong_type(r, at, "integer");
    }
    const char *text = keyval_text(r, in, at);
    if (!text)
        return false;
    errno = 0;
    *ret = strtoll(text, &end, 0);
    if (end == text || *end || errno)
        return wrong_value(r, at, "integer");
    return true;
}

static bool decode_int(struct reader *r, const struct schema_type *t, const json_t *in,
                       const struct where *at, void *out)
{
    return get_int(r, in, at, out);
}

static bool decode_uint32(struct reader *r, const struct schema_type *t, const json_t *in,
                          const struct where *at, void *out)
{
    int64_t v;

    if (!get_int(r, in, at, &v))
        return false;
    if (v < 0 || v > UINT32_MAX)
        return wrong_value(r, at, "uint32_t");
    *(uint32_t *)out = v;
    return true;
}

static bool decode_size(struct reader *r, const struct schema_type *t, const json_t *in,
                        const struct where *at, void *out)
{
    int64_t v;

    if (r->keyval) {
        const char *text = keyval_text(r, in, at);

        if (!text)
            return false;
        return schema_parse_size(text, out, NULL) || wrong_value(r, at, "size");
    }
    if (!get_int(r, in, at, &v))
        return false;
    if (v < 0)
        return wrong_value(r, at, "uint64");
    *(uint64_t *)out = v;
    return true;
}

static bool decode_number(struct reader *r, const struct schema_type *t, const json_t *in,
                          const struct where *at, void *out)
{
    double *v = out;
    const char *text;
    char *end;

    if (!r->keyval) {
        *v = json_number_value(in);
        return json_is_number(in) || wrong_type(r, at, "number");
    }
    text = keyval_text(r, in, at);
    if (!text)
        return false;
    *v = strtod(text, &end);
    /* Neither "inf" nor "nan" nor "1e999" is a number that anybody means. */
    return (end != text && !*end && *v - *v == 0) || wrong_value(r, at, "number");
}

static bool decode_str(struct reader *r, const struct schema_type *t, const json_t *in,
                       const struct where *at, void *out)
{
    const char *text = r->keyval ? keyval_text(r, in, at) : json_string_value(in);

    if (!text)
        return r->keyval ? false : wrong_type(r, at, "string");
    *(char **)out = xstrdup(text);
    return true;
}

static bool decode_enum(struct reader *r, const struct schema_type *t, const json_t *in,
                        const struct where *at, void *out)
{
    CLEANUP(free) char *text = NULL;

    if (!decode_str(r, &schema_str, in, at, &text))
        return false;
    int i = schema_enum_index(t, text);
    if (i < 0)
        return not_accepted(r, at, text);
    *(int *)out = i;
    return true;
}

static bool decode_any(struct reader *r, const struct schema_type *t, const json_t *in,
                       const struct where *at, void *out)
{
    *(json_t **)out = json_incref((json_t *)in);
    return true;
}

/* The members of @t, and of the branch it selects, from the one object. */
static bool decode_fields(struct reader *r, const struct schema_type *t, const json_t *in,
                          const struct where *at, void *out)
{
    for (const struct schema_member *m = t->members; m && m->name; m++) {
        struct where here = { at, m->name, 0 };
        const json_t *v = json_object_get(in, m->name);

        if (!v && m->has < 0)
            return err_set(r->err, -EINVAL, "Parameter '%s' is missing", full_name(r, &here));
        if (!v)
            continue;
        if (!decode(r, m->type, v, &here, (char *)out + m->offset))
            return false;
        if (m->has >= 0)
            *(bool *)((char *)out + m->has) = true;
    }
    if (t->kind != SCHEMA_UNION)
        return true;

    const struct schema_type *branch = schema_branch(t, out);
    if (!branch) {
        struct where tag = { at, t->tag, 0 };

        return not_accepted(r, &tag, schema_tag_value(t, out));
    }
    *schema_branch_slot(t, out) = xzalloc(branch->size);
    return decode_fields(r, branch, in, at, *schema_branch_slot(t, out));
}

static bool has_member(const struct schema_type *t, const void *out, const char *key)
{
    for (const struct schema_member *m = t->members; m && m->name; m++) {
        if (strcmp(m->name, key) == 0)
            return true;
    }
    return t->kind == SCHEMA_UNION
        && has_member(schema_branch(t, out), *schema_branch_slot(t, out), key);
}

static bool decode_object(struct reader *r, const struct schema_type *t, const json_t *in,
                          const struct where *at, void *out)
{
    const char *key;
    json_t *v;

    if (!json_is_object(in))
        return wrong_type(r, at, "object");
    if (!decode_fields(r, t, in, at, out))
        return false;
    json_object_foreach((json_t *)in, key, v) {
        struct where here = { at, key, 0 };

        if (!has_member(t, out, key))
            return err_set(r->err, -EINVAL, "Parameter '%s' is unexpected",
                           full_name(r, &here));
    }
    return true;
}

static bool decode_array(struct reader *r, const struct schema_type *t, const json_t *in,
                         const struct where *at, void *out)
{
    struct schema_array *a = out;
    size_t size = t->element->size, room = 0;

    if (!json_is_array(in))
        return wrong_type(r, at, "array");
    if (json_array_size(in) > LIMIT_SCHEMA_ARRAY)
        return err_set(r->err, -EINVAL, "Parameter '%s' has more than %d elements",
                       full_name(r, at), LIMIT_SCHEMA_ARRAY);
    for (size_t i = 0; i < json_array_size(in); i++) {
        struct where here = { at, NULL, i };

        if (a->n == room) {         /* no more memory than what decoded so far asks for */
            room = room ? 2 * room : 8;
            a->items = xrealloc(a->items, room * size);
        }
        void *item = (char *)a->items + a->n++ * size;

        memset(item, 0, size);
        if (!decode(r, t->element, json_array_get(in, i), &here, item))
            return false;
    }
    return true;
}

static bool decode_alternate(struct reader *r, const struct schema_type *t, const json_t *in,
                             const struct where *at, void *out)
{
    struct schema_alt *alt = out;

    if (json_is_string(in)) {
        alt->kind = SCHEMA_ALT_STR;
        alt->str = xstrdup(json_string_value(in));
        return true;
    }
    if (json_is_object(in) && t->element) {
        alt->kind = SCHEMA_ALT_OBJECT;
        alt->object = xzalloc(t->element->size);
        return decode(r, t->element, in, at, alt->object);
    }
    alt->kind = SCHEMA_ALT_NULL;
    return (json_is_null(in) && t->nullable) || wrong_type(r, at, t->name);
}

static bool decode(struct reader *r, const struct schema_type *t, const json_t *in,
                   const struct where *at, void *out)
{
    static decode_fn *const by_kind[] = {
        [SCHEMA_BOOL] = decode_bool,     [SCHEMA_INT] = decode_int,
        [SCHEMA_UINT32] = decode_uint32, [SCHEMA_SIZE] = decode_size,
        [SCHEMA_NUMBER] = decode_number,
        [SCHEMA_STR] = decode_str,       [SCHEMA_ENUM] = decode_enum,
        [SCHEMA_STRUCT] = decode_object, [SCHEMA_UNION] = decode_object,
        [SCHEMA_ARRAY] = decode_array,   [SCHEMA_ALTERNATE] = decode_alternate,
        [SCHEMA_ANY] = decode_any,
    };

    /* An alternate's object is a level of its own: hence twice the limit. */
    if (r->depth >= 2 * LIMIT_JSON_DEPTH)
        return err_set(r->err, -EINVAL, "Parameter '%s' is nested too deeply",
                       full_name(r, at));
    r->depth++;
    bool ok = by_kind[t->kind](r, t, in, at, out);
    r->depth--;
    return ok;
}

bool schema_decode(const struct schema_type *type, const json_t *in, bool keyval, void *out,
                   struct err *err)
{
    struct reader r = { .keyval = keyval, .err = err };

    memset(out, 0, type->size);
    if (!decode(&r, type, in, NULL, out)) {
        schema_clear(type, out);
        return false;
    }
    return true;
}

void *schema_decode_new(const struct schema_type *type, const json_t *in, bool keyval,
                        struct err *err)
{
    void *out = xzalloc(type->size);

    if (!schema_decode(type, in, keyval, out, err)) {
        free(out);
        return NULL;
    }
    return out;
}
