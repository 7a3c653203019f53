/* SPDX-License-Identifier: Apache-2.0
 *
 * Remembering block status for a moment: see extent_cache.h for the rules.
 */
#include "drivers/extent_cache.h"
#include "block/node.h"

#define BELIEVED_FOR NSEC_PER_SEC

void extent_cache_init(struct extent_cache *c)
{
    c->n = 0;
    list_init(&c->fills);
}

/* The index of the extent that holds @off, or c->n. */
static unsigned extent_at(const struct extent_cache *c, uint64_t off)
{
    unsigned lo = 0, hi = c->n;

    if (!c->n || off < c->base)
        return c->n;
    while (lo < hi) {
        unsigned mid = (lo + hi) / 2;

        if (c->extents[mid].end <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

bool extent_cache_find(const struct extent_cache *c, uint64_t off, uint64_t *ret_len,
                       unsigned *ret_flags)
{
    unsigned i = extent_at(c, off);

    if (i == c->n || loop_now() > c->deadline)
        return false;
    *ret_len = c->extents[i].end - off;
    *ret_flags = c->extents[i].flags;
    return true;
}

/* Drop what lies at or after @limit. Returns how many extents are left. */
static unsigned cut(struct cached_extent *extents, unsigned n, uint64_t base, uint64_t limit)
{
    while (n && (n > 1 ? extents[n - 2].end : base) >= limit)
        n--;
    if (n)
        extents[n - 1].end = MIN(extents[n - 1].end, limit);
    return n;
}

void extent_cache_forget(struct extent_cache *c, uint64_t off, uint64_t len, unsigned flags)
{
    struct extent_fill *f;

    list_for_each(f, &c->fills, link) {
        if (off + len > f->base)
            f->limit = MIN(f->limit, off);
    }
    if (!c->n || off + len <= c->base || off >= c->extents[c->n - 1].end)
        return;

    unsigned i = extent_at(c, off);

    if (flags && i < c->n && c->extents[i].flags == flags && off + len <= c->extents[i].end)
        return;
    c->n = cut(c->extents, c->n, c->base, off);
}

void extent_fill_begin(struct extent_cache *c, struct extent_fill *f, uint64_t base,
                       uint64_t align, uint64_t size)
{
    assert(is_aligned(base, align) && base < size);
    f->base = base;
    f->align = align;
    f->size = size;
    f->limit = UINT64_MAX;
    list_push_tail(&c->fills, &f->link);
    extent_fill_restart(f);
}

void extent_fill_restart(struct extent_fill *f)
{
    f->pos = f->base;
    f->n = 0;
}

/* What follows what is kept, up to @end, is so. */
static bool keep(struct extent_fill *f, uint64_t end, unsigned flags)
{
    if (end <= (f->n ? f->extents[f->n - 1].end : f->base))
        return true;
    if (f->n && f->extents[f->n - 1].flags == flags) {
        f->extents[f->n - 1].end = end;
        return true;
    }
    if (f->n == EXTENT_CACHE_MAX)
        return false;
    f->extents[f->n++] = (struct cached_extent){ .end = end, .flags = flags };
    return true;
}

bool extent_fill_add(struct extent_fill *f, uint64_t len, unsigned flags)
{
    uint64_t end = f->pos + MIN(len, f->size - f->pos);
    uint64_t whole = end == f->size ? end : align_down(end, f->align);

    f->pos = end;
    return keep(f, whole, flags) &&
           (whole == end || keep(f, MIN(align_up(end, f->align), f->size), STATUS_DATA));
}

void extent_fill_end(struct extent_cache *c, struct extent_fill *f)
{
    list_del(&f->link);
    f->n = cut(f->extents, f->n, f->base, f->limit);
    if (!f->n)
        return;
    c->base = f->base;
    c->n = f->n;
    memcpy(c->extents, f->extents, f->n * sizeof(f->extents[0]));
    c->deadline = loop_now() + BELIEVED_FOR;
}
