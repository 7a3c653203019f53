/* SPDX-License-Identifier: Apache-2.0
 *
 * The tables as the answer of query-qmp-schema: QEMU qapi/introspect.json for
 * the format, docs/devel/qapi-code-gen.rst ("Client JSON Protocol
 * introspection") for the rules. Commands and events come first; each type that
 * is met gets the next number for a name and a place in a queue, until the queue
 * is empty. Integers are all "int", as on the wire.
 */
#include "base/schema.h"
#include "base/mem.h"
#include "base/schema_int.h"

/* A union's tag is an enum for clients, even where the C struct has a string:
 * such an enum has no schema_type, and is queued as the union with is_tag. */
struct queued {
    const struct schema_type *type;
    bool is_tag;
};

struct introspection {
    json_t *out;                    /* the array of SchemaInfo */
    json_t *named;                  /* builtins and arrays that are in @out */
    struct queued *queue;           /* queue[i] is the type named "i" */
    size_t n, room;
};

static const struct schema_type empty_object = { "q_empty", SCHEMA_STRUCT };

static char *type_name(struct introspection *in, const struct schema_type *t);

/* A name for @t by its number, queueing it when it is new. */
static char *numbered_name(struct introspection *in, const struct schema_type *t, bool is_tag)
{
    size_t i;

    for (i = 0; i < in->n; i++) {
        if (in->queue[i].type == t && in->queue[i].is_tag == is_tag)
            return xasprintf("%zu", i);
    }
    if (in->n == in->room) {
        in->room = in->room ? 2 * in->room : 64;
        in->queue = xrealloc(in->queue, in->room * sizeof(*in->queue));
    }
    in->queue[in->n++] = (struct queued){ t, is_tag };
    return xasprintf("%zu", i);
}

/* Put {"name": ..., "meta-type": ...} into the answer and return it, borrowed. */
static json_t *add_info(struct introspection *in, const char *name, const char *meta_type)
{
    json_t *info = json_pack("{s:s, s:s}", "name", name, "meta-type", meta_type);

    json_array_append_new(in->out, info);
    return info;
}

static char *builtin_name(struct introspection *in, const char *name, const char *json_type)
{
    if (!json_object_get(in->named, name)) {
        json_object_set_new(in->named, name, json_true());
        json_object_set_new(add_info(in, name, "builtin"), "json-type", json_string(json_type));
    }
    return xstrdup(name);
}

static char *array_name(struct introspection *in, const struct schema_type *t)
{
    CLEANUP(free) char *element = type_name(in, t->element);
    char *name = xasprintf("[%s]", element);

    if (!json_object_get(in->named, name)) {
        json_object_set_new(in->named, name, json_true());
        json_object_set_new(add_info(in, name, "array"), "element-type", json_string(element));
    }
    return name;
}

/* The name by which the answer refers to @t; free() it. */
static char *type_name(struct introspection *in, const struct schema_type *t)
{
    switch (t->kind) {
    case SCHEMA_BOOL:
        return builtin_name(in, "bool", "boolean");
    case SCHEMA_INT:
    case SCHEMA_UINT32:
    case SCHEMA_SIZE:
        return builtin_name(in, "int", "int");
    case SCHEMA_NUMBER:
        return builtin_name(in, "number", "number");
    case SCHEMA_STR:
        return builtin_name(in, "str", "string");
    case SCHEMA_ANY:
        return builtin_name(in, "any", "value");
    case SCHEMA_ARRAY:
        return array_name(in, t);
    case SCHEMA_ENUM:
    case SCHEMA_STRUCT:
    case SCHEMA_UNION:
    case SCHEMA_ALTERNATE:
        return numbered_name(in, t, false);
    }
    abort();
}

/* {"type": NAME}, taking @name over. */
static json_t *type_reference(char *name)
{
    json_t *ref = json_pack("{s:s}", "type", name);

    free(name);
    return ref;
}

static void set_type(struct introspection *in, json_t *info, const char *key,
                     const struct schema_type *t)
{
    CLEANUP(free) char *name = type_name(in, t ? t : &empty_object);

    json_object_set_new(info, key, json_string(name));
}

static void add_enum_value(json_t *values, json_t *members, const char *value)
{
    json_array_append_new(values, json_string(value));
    json_array_append_new(members, json_pack("{s:s}", "name", value));
}

/* An enum's values, or those that a union's tag can have. "values" is the form
 * from before QEMU 6.2, and is still there in 10.0. */
static void add_enum(struct introspection *in, const char *name, const struct queued *q)
{
    json_t *info = add_info(in, name, "enum");
    json_t *values = json_array(), *members = json_array();

    if (q->is_tag) {
        for (unsigned i = 0; q->type->branch_name(i); i++)
            add_enum_value(values, members, q->type->branch_name(i));
    } else {
        for (unsigned i = 0; q->type->values[i]; i++)
            add_enum_value(values, members, q->type->values[i]);
    }
    json_object_set_new(info, "values", values);
    json_object_set_new(info, "members", members);
}

static void add_object(struct introspection *in, const char *name, const struct schema_type *t)
{
    json_t *info = add_info(in, name, "object");
    json_t *members = json_array();

    for (const struct schema_member *m = t->members; m && m->name; m++) {
        bool text_tag = t->kind == SCHEMA_UNION && m->type->kind == SCHEMA_STR
            && m == schema_tag_member(t);
        json_t *member = type_reference(text_tag ? numbered_name(in, t, true)
                                                 : type_name(in, m->type));

        json_object_set_new(member, "name", json_string(m->name));
        if (m->has >= 0)
            json_object_set_new(member, "default", json_null());
        json_array_append_new(members, member);
    }
    json_object_set_new(info, "members", members);
    if (t->kind != SCHEMA_UNION)
        return;

    json_t *variants = json_array();
    for (unsigned i = 0; t->branch_name(i); i++) {
        json_t *variant = type_reference(type_name(in, t->branch(t->branch_name(i))));

        json_object_set_new(variant, "case", json_string(t->branch_name(i)));
        json_array_append_new(variants, variant);
    }
    json_object_set_new(info, "tag", json_string(t->tag));
    json_object_set_new(info, "variants", variants);
}

static void add_alternate(struct introspection *in, const char *name, const struct schema_type *t)
{
    json_t *info = add_info(in, name, "alternate");
    json_t *members = json_array();

    json_array_append_new(members, type_reference(type_name(in, &schema_str)));
    if (t->element)
        json_array_append_new(members, type_reference(type_name(in, t->element)));
    if (t->nullable)
        json_array_append_new(members, type_reference(builtin_name(in, "null", "null")));
    json_object_set_new(info, "members", members);
}

static void add_type(struct introspection *in, size_t number)
{
    CLEANUP(free) char *name = xasprintf("%zu", number);
    struct queued q = in->queue[number];    /* adding types moves the queue */

    if (q.is_tag || q.type->kind == SCHEMA_ENUM)
        add_enum(in, name, &q);
    else if (q.type->kind == SCHEMA_ALTERNATE)
        add_alternate(in, name, q.type);
    else
        add_object(in, name, q.type);
}

static void add_entity(struct introspection *in, const struct schema_entity *e)
{
    json_t *info = add_info(in, e->name, e->is_event ? "event" : "command");

    set_type(in, info, "arg-type", e->arg);
    if (e->is_event)
        return;
    set_type(in, info, "ret-type", e->ret);
    if (e->allow_oob)
        json_object_set_new(info, "allow-oob", json_true());
}

json_t *schema_introspect(const struct schema_entity *entities, size_t n)
{
    struct introspection in = { .out = json_array(), .named = json_object() };

    for (size_t i = 0; i < n; i++)
        add_entity(&in, &entities[i]);
    for (size_t i = 0; i < in.n; i++)
        add_type(&in, i);
    json_decref(in.named);
    free(in.queue);
    return in.out;
}
