/* SPDX-License-Identifier: Apache-2.0
 *
 * Help from the tables: keys as they are typed on a command line, so a nested
 * member has its dotted name and is indented below its parent. A type is not
 * opened inside itself; there its name stands alone.
 */
#include "base/schema.h"
#include "base/schema_int.h"
#include "base/strbuf.h"
#include <stdio.h>

enum { DOC_COLUMN = 36, ENUM_WIDTH = 60 };

/* The types that are open around the present line. */
struct open_type {
    const struct open_type *up;
    const struct schema_type *type;
};

struct helper {
    struct strbuf out;
    struct strbuf key;              /* "file." inside the member file */
};

static void add_members(struct helper *h, const struct schema_type *t, int indent,
                        const struct open_type *open);

static bool is_open(const struct open_type *open, const struct schema_type *t)
{
    for (; open; open = open->up) {
        if (open->type == t)
            return true;
    }
    return false;
}

/* "a|b|c", or the type's name when that gets too long for a line. */
static void add_enum(struct strbuf *sb, const struct schema_type *t)
{
    CLEANUP_STRBUF struct strbuf all = STRBUF_INIT;

    for (int i = 0; t->values[i]; i++)
        strbuf_addf(&all, "%s%s", i ? "|" : "", t->values[i]);
    strbuf_add(sb, all.len <= ENUM_WIDTH ? strbuf_text(&all) : t->name);
}

static void add_type(struct strbuf *sb, const struct schema_type *t)
{
    if (t->kind == SCHEMA_BOOL)
        strbuf_add(sb, "on|off");
    else if (t->kind == SCHEMA_ENUM)
        add_enum(sb, t);
    else
        strbuf_add(sb, t->name);
}

/* What stands below a member in lines of its own; NULL: nothing. */
static const struct schema_type *inner_type(const struct schema_type *t)
{
    while (t && (t->kind == SCHEMA_ARRAY || t->kind == SCHEMA_ALTERNATE))
        t = t->element;
    return t && (t->kind == SCHEMA_STRUCT || t->kind == SCHEMA_UNION) ? t : NULL;
}

static void add_member(struct helper *h, const struct schema_member *m, int indent,
                       const struct open_type *open)
{
    size_t line = h->out.len, key = h->key.len;
    const struct schema_type *t = m->type, *inner = inner_type(t);

    strbuf_addf(&h->key, "%s", m->name);
    while (t->kind == SCHEMA_ARRAY) {
        strbuf_add(&h->key, ".0");
        t = t->element;
    }
    strbuf_addf(&h->out, "%*s%s", indent, "", strbuf_text(&h->key));
    if (t->kind == SCHEMA_STRUCT || t->kind == SCHEMA_UNION) {
        strbuf_addf(&h->out, ".<%s>", t->name);
    } else {
        strbuf_add(&h->out, "=<");
        add_type(&h->out, t);
        strbuf_add(&h->out, ">");
    }
    if (m->doc || m->has < 0) {
        int pad = DOC_COLUMN - (int)(h->out.len - line);

        strbuf_addf(&h->out, "%*s%s%s", MAX(pad, 2), "", m->doc ? m->doc : "",
                    m->has >= 0 ? "" : m->doc ? " (required)" : "(required)");
    }
    strbuf_addc(&h->out, '\n');
    if (inner && !is_open(open, inner)) {
        strbuf_addc(&h->key, '.');
        add_members(h, inner, indent + 2, open);
    }
    strbuf_cut(&h->key, key);
}

static void add_members(struct helper *h, const struct schema_type *t, int indent,
                        const struct open_type *open)
{
    struct open_type here = { open, t };

    for (const struct schema_member *m = t->members; m && m->name; m++)
        add_member(h, m, indent, &here);
    if (t->kind != SCHEMA_UNION)
        return;
    for (unsigned i = 0; t->branch_name(i); i++) {
        const struct schema_type *branch = t->branch(t->branch_name(i));

        strbuf_addf(&h->out, "%*s%s%s=%s%s%s\n", indent, "", strbuf_text(&h->key), t->tag,
                    t->branch_name(i), branch->doc ? ": " : "", branch->doc ? branch->doc : "");
        add_members(h, branch, indent + 2, &here);
    }
}

char *schema_help(const struct schema_type *type)
{
    struct helper h = { 0 };

    add_members(&h, type, 2, NULL);
    strbuf_done(&h.key);
    return strbuf_steal(&h.out);
}
