/* SPDX-License-Identifier: Apache-2.0
 *
 * A cursor in each file; the topmost that has a leaf decides. What a disk had behind its end
 * when it was shorter is not seen through that image, as qcow2 has it: of each file the
 * leaves below the smallest size above it count.
 */
#include "set/digest_chain.h"
#include "base/mem.h"

struct layer {
    struct set_digest_file *file;
    struct set_digest_run run;       /* n 0: no more */
    uint64_t visible;                /* leaves below this */
};

struct set_digest_chain {
    struct layer *v;
    size_t n;
    uint64_t next;                   /* the lowest leaf that may be asked for */
};

struct set_digest_chain *set_digest_chain_open(const char *const *paths, size_t n,
                                               struct err *err)
{
    CLEANUP(set_digest_chain_free) struct set_digest_chain *c = xnew(struct set_digest_chain);
    uint64_t visible = UINT64_MAX;

    assert(n);
    c->v = xcalloc(n, sizeof(*c->v));
    for (; c->n < n; c->n++) {
        struct layer *l = &c->v[c->n];

        l->file = set_digest_file_open(paths[c->n], err);
        if (!l->file)
            return NULL;
        visible = MIN(visible, set_leaves(set_digest_file_size(l->file)));
        l->visible = visible;
        if (!set_digest_file_next(l->file, &l->run, err)) {
            c->n++;
            return NULL;
        }
    }
    return MOVE(c);
}

void set_digest_chain_free(struct set_digest_chain *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n; i++)
        set_digest_file_free(c->v[i].file);
    free(c->v);
    free(c);
}

uint64_t set_digest_chain_size(const struct set_digest_chain *c)
{
    return set_digest_file_size(c->v[0].file);
}

/* Past the runs that end before @leaf. */
static bool catch_up(struct layer *l, uint64_t leaf, struct err *err)
{
    while (l->run.n && l->run.first + l->run.n <= leaf) {
        if (!set_digest_file_next(l->file, &l->run, err))
            return false;
    }
    return true;
}

/* The first of [leaf, end) that the layer has. */
static uint64_t layer_first(const struct layer *l, uint64_t leaf, uint64_t end)
{
    uint64_t first = MAX(l->run.first, leaf);

    return l->run.n && first < l->visible ? MIN(first, end) : end;
}

/* What the layer has of [first, first+n), over what those below it have. */
static bool lay_over(struct layer *l, uint64_t first, size_t n, struct set_digest_value *ret,
                     struct err *err)
{
    uint64_t end = first + n;

    if (!catch_up(l, first, err))
        return false;
    for (uint64_t at = layer_first(l, first, end); at < end; at = layer_first(l, at, end)) {
        uint64_t to = MIN(MIN(l->run.first + l->run.n, l->visible), end);

        if (l->run.v)
            memcpy(ret + (at - first), l->run.v + (at - l->run.first),
                   (to - at) * sizeof(*ret));
        else
            memset(ret + (at - first), 0, (to - at) * sizeof(*ret));
        at = to;
        if (at == end || !catch_up(l, at, err))
            return at == end;
    }
    return true;
}

bool set_digest_chain_read(struct set_digest_chain *c, uint64_t first, size_t n,
                           struct set_digest_value *ret, struct err *err)
{
    assert(first >= c->next && n <= set_leaves(set_digest_chain_size(c)) - first);
    memset(ret, 0, n * sizeof(*ret));
    for (size_t i = c->n; i-- > 0;) {
        if (!lay_over(&c->v[i], first, n, ret, err))
            return false;
    }
    c->next = first + n;
    return true;
}

bool set_digest_chain_seek(struct set_digest_chain *c, uint64_t from, uint64_t *ret,
                           struct err *err)
{
    uint64_t found = UINT64_MAX;

    assert(from >= c->next);
    for (size_t i = 0; i < c->n; i++) {
        if (!catch_up(&c->v[i], from, err))
            return false;
        found = MIN(found, layer_first(&c->v[i], from, UINT64_MAX));
    }
    c->next = from;
    *ret = found;
    return true;
}

bool set_digest_chain_root(struct set_digest_chain *c, struct set_digest_value *ret,
                           struct err *err)
{
    uint64_t size = set_digest_chain_size(c), leaves = set_leaves(size), at = 0;
    struct set_digest_value v[256];
    struct set_root root;

    set_root_init(&root, size);
    for (;;) {
        size_t n;

        if (!set_digest_chain_seek(c, at, &at, err))
            return false;
        if (at >= leaves)
            break;
        n = MIN(leaves - at, ARRAY_SIZE(v));
        if (!set_digest_chain_read(c, at, n, v, err))
            return false;
        for (size_t i = 0; i < n; i++)
            set_root_add(&root, at + i, &v[i]);
        at += n;
    }
    set_root_end(&root, ret);
    return true;
}
