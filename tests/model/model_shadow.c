/* SPDX-License-Identifier: Apache-2.0
 *
 * The shadow of the disk, frozen shadows, and the writes that were under way while
 * one was taken without shutting the doors first.
 */
#include "model_shadow.h"
#include "base/mem.h"
#include "base/range.h"

struct seen {
    struct list link;            /* watch->seen */
    uint64_t off, len;
    uint8_t *old, *new;          /* NULL: only unknown */
};

void shadow_copy(struct model *m, struct shadow *to, const struct shadow *from)
{
    to->bytes = xmemdup(from->bytes, m->size);
    to->known = xmemdup(from->known, m->size);
}

void shadow_free(struct shadow *s)
{
    free(MOVE(s->bytes));
    free(MOVE(s->known));
}

void shadow_expect(struct model *m, const struct shadow *s, const uint8_t *got, const char *what)
{
    for (uint64_t i = 0; i < m->size; i++) {
        if (s->known[i] && got[i] != s->bytes[i])
            model_fail(m, "%s: byte %ju (granule %ju) is %02x instead of %02x", what,
                       (uintmax_t)i, (uintmax_t)i / VIEW_GRANULE, got[i], s->bytes[i]);
    }
}

/* ---- watching ------------------------------------------------------------------ */

static void see(struct model *m, struct watch *w, const struct claim *c)
{
    bool known = c->new && !memchr(m->now.known + c->off, 0, c->len);
    struct seen *s = xnew(struct seen), *other;

    *s = (struct seen){ .off = c->off, .len = c->len };
    list_for_each(other, &w->seen, link) {
        if (!ranges_overlap(other->off, other->len, s->off, s->len))
            continue;
        /* Of two writes one after the other there are too many ways. */
        known = false;
        free(MOVE(other->old));
        free(MOVE(other->new));
    }
    if (known) {
        s->old = xmemdup(m->now.bytes + c->off, c->len);
        s->new = xmemdup(c->new, c->len);
    }
    list_push_tail(&w->seen, &s->link);
}

void claim_shows(struct model *m, struct claim *c, const uint8_t *bytes)
{
    struct watch *w;

    c->new = bytes;
    list_for_each(w, &m->watches, link)
        see(m, w, c);
}

void watch_begin(struct model *m, struct watch *w)
{
    struct claim *c;

    list_init(&w->seen);
    list_for_each(c, &m->writing, link)
        see(m, w, c);
    list_push_tail(&m->watches, &w->link);
}

void watch_end(struct model *m, struct watch *w, struct shadow *frozen)
{
    struct seen *s;

    list_del(&w->link);
    list_for_each(s, &w->seen, link)
        memset(frozen->known + s->off, 0, s->len);
}

void watch_expect(struct model *m, const struct watch *w, const uint8_t *got, const char *what)
{
    struct seen *s;

    list_for_each(s, &w->seen, link) {
        if (s->old && memcmp(got + s->off, s->old, s->len) != 0 &&
            memcmp(got + s->off, s->new, s->len) != 0)
            model_fail(m, "%s: a write of %ju bytes at %ju is in by half", what,
                       (uintmax_t)s->len, (uintmax_t)s->off);
    }
}

void watch_free(struct watch *w)
{
    struct seen *s;

    while ((s = list_pop_head(&w->seen, struct seen, link))) {
        free(s->old);
        free(s->new);
        free(s);
    }
}
