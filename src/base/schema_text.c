/* SPDX-License-Identifier: Apache-2.0
 *
 * Text from people and peers to JSON trees: JSON itself, bounded before the
 * recursive parser sees it, "key.sub=value,..." and sizes. The grammar and the
 * words of errors are those of QEMU's util/keyval.c and util/cutils.c.
 *
 * A keyval text is first read into nested objects, array indexes being keys of
 * digits; then every object that has only such keys becomes an array. Leaves
 * keep bytes that are not UTF-8, as file names may hold them.
 */
#include "base/schema.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include <ctype.h>

/* --- JSON --- */

/* The deepest nesting in the text, without caring whether the text is right. */
static unsigned json_depth(const char *text, size_t len)
{
    unsigned depth = 0, deepest = 0;
    bool in_string = false;

    for (size_t i = 0; i < len; i++) {
        if (in_string) {
            if (text[i] == '\\')
                i++;
            else if (text[i] == '"')
                in_string = false;
        } else if (text[i] == '"') {
            in_string = true;
        } else if (text[i] == '{' || text[i] == '[') {
            deepest = MAX(deepest, ++depth);
        } else if ((text[i] == '}' || text[i] == ']') && depth) {
            depth--;
        }
    }
    return deepest;
}

json_t *schema_parse_json(const char *text, size_t len, struct err *err)
{
    json_error_t why;

    if (json_depth(text, len) > LIMIT_JSON_DEPTH) {
        err_set(err, -EINVAL, "JSON parse error, nesting is deeper than %d levels",
                LIMIT_JSON_DEPTH);
        return NULL;
    }
    json_t *v = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (!v)
        err_set(err, -EINVAL, "JSON parse error, %s (line %d, column %d)", why.text, why.line,
                why.column);
    return v;
}

/* --- keyval --- */

struct keyval {
    const char *at;                 /* the text not yet read */
    struct err *err;
};

/* The length of the array index or name that @s begins with; 0: neither. An
 * index may not come first in a key. */
static size_t fragment_length(const char *s, bool first)
{
    size_t n = 0;

    if (!first && isdigit((unsigned char)*s))
        return strspn(s, "0123456789");
    if (!isalpha((unsigned char)*s))
        return 0;
    while (isalnum((unsigned char)s[n]) || s[n] == '-' || s[n] == '_')
        n++;
    return n;
}

/* "007" and "7" are the same element: keep one spelling. */
static size_t canonical_fragment(char *to, const char *s, size_t n)
{
    if (isdigit((unsigned char)*s)) {
        for (; n > 1 && *s == '0'; n--)
            s++;
    }
    memcpy(to, s, n);
    to[n] = '\0';
    return n;
}

/* The object under @name in @cur, made if absent. @key..@end spells the path for
 * the error. NULL with the error set if a string stands there. */
static json_t *descend(struct keyval *kv, json_t *cur, const char *name, const char *key,
                       const char *end)
{
    json_t *next = json_object_get(cur, name);

    if (!next) {
        next = json_object();
        json_object_set_new(cur, name, next);
    }
    if (!json_is_object(next)) {
        err_set(kv->err, -EINVAL, "Parameters '%.*s.*' used inconsistently", (int)(end - key),
                key);
        return NULL;
    }
    return next;
}

/* Walk the key that [key, end) spells down from @root, making objects on the
 * way. Returns the object that gets the leaf, whose name is left in @name. */
static json_t *walk_key(struct keyval *kv, json_t *root, const char *key, const char *end,
                        char name[LIMIT_KEY_FRAGMENT + 1])
{
    json_t *cur = root;
    unsigned depth = 0;

    for (const char *s = key;; s++) {
        size_t n = fragment_length(s, s == key);

        if (!n || s + n > end || (s + n < end && s[n] != '.')) {
            err_set(kv->err, -EINVAL, "Invalid parameter '%.*s'", (int)(end - key), key);
            return NULL;
        }
        if (n > LIMIT_KEY_FRAGMENT) {
            err_set(kv->err, -EINVAL, "Parameter%s '%.*s' is too long",
                    s != key || s + n != end ? " fragment" : "", (int)n, s);
            return NULL;
        }
        if (++depth > LIMIT_JSON_DEPTH) {
            err_set(kv->err, -EINVAL, "Parameter '%.*s' is nested too deeply",
                    (int)(end - key), key);
            return NULL;
        }
        if (s != key) {
            cur = descend(kv, cur, name, key, s - 1);
            if (!cur)
                return NULL;
        }
        canonical_fragment(name, s, n);
        s += n;
        if (s == end)
            return cur;
    }
}

/* The value up to the next single comma; kv->at moves behind that comma. */
static json_t *read_value(struct keyval *kv)
{
    CLEANUP_STRBUF struct strbuf value = STRBUF_INIT;
    const char *s = kv->at;

    for (;;) {
        size_t n = strcspn(s, ",");

        strbuf_addn(&value, s, n);
        s += n;
        if (s[0] != ',' || s[1] != ',')
            break;
        strbuf_addc(&value, ',');
        s += 2;
    }
    kv->at = *s ? s + 1 : s;
    return json_string_nocheck(strbuf_text(&value));
}

/* One "key=value" into @root. */
static bool read_pair(struct keyval *kv, json_t *root, const char *implied_key)
{
    const char *key = kv->at;
    const char *end = key + strcspn(key, "=,");
    char name[LIMIT_KEY_FRAGMENT + 1];

    if (implied_key && end > key && *end != '=') {
        key = implied_key;
        end = key + strlen(key);
    } else {
        kv->at = end + 1;           /* where the value is, if the '=' is there */
    }
    json_t *owner = walk_key(kv, root, key, end, name);
    if (!owner)
        return false;
    if (key != implied_key && *end != '=')
        return err_set(kv->err, -EINVAL, "Expected '=' after parameter '%.*s'",
                       (int)(end - key), key);

    json_t *old = json_object_get(owner, name);
    if (old && !json_is_string(old))
        return err_set(kv->err, -EINVAL, "Parameters '%.*s.*' used inconsistently",
                       (int)(end - key), key);
    json_object_set_new(owner, name, read_value(kv));
    return true;
}

static json_t *listify(struct keyval *kv, json_t *obj, struct strbuf *path);

/* Listify what lies below @obj, and tell what keys it has. @path spells the keys
 * down to @obj, each with a dot behind it. */
static bool listify_members(struct keyval *kv, json_t *obj, struct strbuf *path,
                            bool *ret_indexes, bool *ret_names)
{
    size_t len = path->len;

    *ret_indexes = *ret_names = false;
    for (void *it = json_object_iter(obj); it; it = json_object_iter_next(obj, it)) {
        const char *key = json_object_iter_key(it);
        json_t *v = json_object_iter_value(it);

        *(isdigit((unsigned char)*key) ? ret_indexes : ret_names) = true;
        if (!json_is_object(v))
            continue;
        strbuf_addf(path, "%s.", key);
        json_t *with_lists = listify(kv, v, path);
        if (!with_lists)
            return false;
        json_object_iter_set_new(obj, it, with_lists);
        strbuf_cut(path, len);
    }
    return true;
}

/* @obj itself, or the array it stands for: a new reference. */
static json_t *listify(struct keyval *kv, json_t *obj, struct strbuf *path)
{
    CLEANUP(json_decref) json_t *list = NULL;
    bool indexes, names;

    if (!listify_members(kv, obj, path, &indexes, &names))
        return NULL;
    if (!indexes)
        return json_incref(obj);
    if (names) {
        err_set(kv->err, -EINVAL, "Parameters '%s*' used inconsistently", strbuf_text(path));
        return NULL;
    }
    list = json_array();
    for (size_t i = 0; i < json_object_size(obj); i++) {
        CLEANUP(free) char *key = xasprintf("%zu", i);
        json_t *v = json_object_get(obj, key);

        if (!v) {
            err_set(kv->err, -EINVAL, "Parameter '%s%zu' missing", strbuf_text(path), i);
            return NULL;
        }
        json_array_append(list, v);
    }
    return MOVE(list);
}

json_t *schema_parse_text(const char *text, const char *implied_key, bool *ret_keyval,
                          struct err *err)
{
    CLEANUP(json_decref) json_t *root = NULL;
    CLEANUP_STRBUF struct strbuf path = STRBUF_INIT;
    struct keyval kv = { .at = text, .err = err };

    *ret_keyval = *text != '{';
    if (!*ret_keyval)
        return schema_parse_json(text, strlen(text), err);
    root = json_object();
    while (*kv.at) {
        if (!read_pair(&kv, root, implied_key))
            return NULL;
        implied_key = NULL;         /* only the first value may lack its key */
    }
    return listify(&kv, root, &path);
}

/* --- sizes --- */

static bool bad_size(struct err *err, const char *text, const char *why)
{
    return err_set(err, -EINVAL,
                   "'%s' is not a size: %s (a number, with k, M, G, T, P or E for powers of 1024)",
                   text, why);
}

/* ".5" as a number of bytes of @unit, rounded down. *@s moves behind it. */
static uint64_t parse_fraction(const char **s, uint64_t unit)
{
    unsigned __int128 num = 0, den = 1;

    for ((*s)++; isdigit((unsigned char)**s); (*s)++) {
        if (den < 1000000000000000000ULL) {     /* more digits than that change nothing */
            num = num * 10 + (**s - '0');
            den *= 10;
        }
    }
    return num * unit / den;
}

/* The unit that a suffix letter names; 0: none. */
static uint64_t suffix_unit(char c)
{
    static const char letters[] = "BKMGTPE";
    const char *at = c ? strchr(letters, toupper((unsigned char)c)) : letters;

    return at ? 1ULL << (10 * (at - letters)) : 0;
}

bool schema_parse_size(const char *text, uint64_t *ret, struct err *err)
{
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    uint64_t bytes, fraction = 0;
    char *end;

    if (!isdigit((unsigned char)*text))
        return bad_size(err, text, *text == '-' ? "it is negative" : "it is not a number");
    errno = 0;
    uint64_t whole = strtoull(text, &end, hex ? 16 : 10);
    if (errno)
        return bad_size(err, text, "it is too large");

    const char *s = end;
    const char *unit_at = s + (*s == '.' && !hex ? 1 + strspn(s + 1, "0123456789") : 0);
    uint64_t unit = suffix_unit(*unit_at);
    if (!unit || (*unit_at && unit_at[1]))
        return bad_size(err, text, "it has an unknown suffix");
    if (unit_at != s) {
        if (unit == 1)
            return bad_size(err, text, "there are no fractions of a byte");
        fraction = parse_fraction(&s, unit);
    }
    if (__builtin_mul_overflow(whole, unit, &bytes)
        || __builtin_add_overflow(bytes, fraction, &bytes))
        return bad_size(err, text, "it is too large");
    *ret = bytes;
    return true;
}
