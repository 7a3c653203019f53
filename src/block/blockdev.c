/* SPDX-License-Identifier: Apache-2.0
 *
 * Opening nodes from what users write: QAPI's BlockdevOptions, with a branch for
 * each registered driver, and what a child inherits of its parent's. What is
 * inherited is QEMU's rule (block.c, bdrv_inherited_options).
 */
#include "block/core.h"
#include "base/limits.h"
#include "base/mem.h"
#include <inttypes.h>
#include <sys/stat.h>

/* ---- types --------------------------------------------------------------------- */

static const struct schema_type discard_type = {
    "BlockdevDiscardOptions", SCHEMA_ENUM, "what becomes of discard requests", sizeof(int),
    .values = (const char *const[]){ "ignore", "unmap", NULL },
};

static const struct schema_type detect_zeroes_type = {
    "BlockdevDetectZeroesOptions", SCHEMA_ENUM, "what becomes of writes of zeros", sizeof(int),
    .values = (const char *const[]){ "off", "on", "unmap", NULL },
};

static const struct schema_member cache_members[] = {
    SCHEMA_OPTIONAL(struct cache_options, direct, "direct", &schema_bool,
                    "go past the page cache (O_DIRECT)"),
    SCHEMA_OPTIONAL(struct cache_options, no_flush, "no-flush", &schema_bool,
                    "ignore flushes: fast, and unsafe"),
    SCHEMA_END,
};

static const struct schema_type cache_type = {
    "BlockdevCacheOptions", SCHEMA_STRUCT, "caching", sizeof(struct cache_options),
    .members = cache_members,
};

static const struct schema_member common_members[] = {
    SCHEMA_REQUIRED(struct blockdev_options, driver, "driver", &schema_str,
                    "the kind of node"),
    SCHEMA_OPTIONAL(struct blockdev_options, node_name, "node-name", &schema_str,
                    "name to refer to it by"),
    SCHEMA_OPTIONAL(struct blockdev_options, discard, "discard", &discard_type,
                    "ignore discard requests or pass them on (default: ignore)"),
    SCHEMA_OPTIONAL(struct blockdev_options, cache, "cache", &cache_type, "caching"),
    SCHEMA_OPTIONAL(struct blockdev_options, read_only, "read-only", &schema_bool,
                    "refuse writes (default: off)"),
    SCHEMA_OPTIONAL(struct blockdev_options, auto_read_only, "auto-read-only", &schema_bool,
                    "become read-only where writing is not permitted"),
    SCHEMA_OPTIONAL(struct blockdev_options, force_share, "force-share", &schema_bool,
                    "do not mind who else has the image open; needs read-only"),
    SCHEMA_OPTIONAL(struct blockdev_options, detect_zeroes, "detect-zeroes", &detect_zeroes_type,
                    "turn writes of zeros into zero writes (default: off)"),
    SCHEMA_END,
};

static const struct schema_type *branch(const char *driver)
{
    const struct driver *drv = driver_find(driver);

    return drv ? drv->options : NULL;
}

static const char *branch_name(unsigned i)
{
    const struct driver *drv = driver_nth(i);

    return drv ? drv->name : NULL;
}

const struct schema_type blockdev_options_type = {
    "BlockdevOptions", SCHEMA_UNION, "a node of a disk's graph", sizeof(struct blockdev_options),
    .members = common_members,
    .tag = "driver",
    .branch = branch,
    .branch_name = branch_name,
    .branch_offset = offsetof(struct blockdev_options, own),
};

const struct schema_type blockdev_ref_type = {
    "BlockdevRef", SCHEMA_ALTERNATE, "a node's name, or its options",
    sizeof(struct schema_alt),
    .element = &blockdev_options_type,
};

const struct schema_type blockdev_ref_or_null_type = {
    "BlockdevRefOrNull", SCHEMA_ALTERNATE, "a node's name, its options, or null for none",
    sizeof(struct schema_alt),
    .element = &blockdev_options_type,
    .nullable = true,
};

/* ---- opening --------------------------------------------------------------------- */

/* What is said of the node, and else what follows from its place: @parent is
 * NULL at the root. */
static bool settle(struct node *n, const struct blockdev_options *o, const struct node *parent,
                   bool is_backing, struct err *err)
{
    bool direct = parent && parent->no_cache, no_flush = parent && parent->no_flush;
    bool share = parent && parent->force_share;
    bool read_only = parent && (is_backing || parent->read_only);
    bool auto_ro = parent && !is_backing && parent->core->auto_read_only;

    n->no_cache = o->cache.has_direct ? o->cache.direct : direct;
    n->no_flush = o->cache.has_no_flush ? o->cache.no_flush : no_flush;
    n->read_only = o->has_read_only ? o->read_only : read_only;
    n->core->auto_read_only = o->has_auto_read_only ? o->auto_read_only : auto_ro;
    n->force_share = o->has_force_share ? o->force_share : share;
    /* A node below others does what it is asked: whoever is above has decided. */
    n->discard_unmap = o->has_discard ? o->discard == 1 : parent != NULL;
    n->core->detect_zeroes = o->has_detect_zeroes ? o->detect_zeroes : DETECT_ZEROES_OFF;
    if (!n->drv->co_pwritev)
        n->read_only = true;

    if (n->force_share && !n->read_only)
        return err_set(err, -EINVAL, "force-share=on can only be used with read-only images");
    if (n->core->detect_zeroes == DETECT_ZEROES_UNMAP && !n->discard_unmap)
        return err_set(err, -EINVAL, "setting detect-zeroes to unmap is not allowed without "
                       "setting discard operation to unmap");
    return true;
}

static bool co_driver_open(struct node *n, const void *own, struct err *err)
{
    struct err why = ERR_INIT;
    bool ok = n->drv->co_open(n, own, &why);
    bool forbidden = why.code == -EACCES || why.code == -EPERM || why.code == -EROFS;

    if (!ok && forbidden && n->drv->is_protocol && n->core->auto_read_only && !n->read_only) {
        co_node_reset(n);
        n->read_only = true;
        why = (struct err)ERR_INIT;
        ok = n->drv->co_open(n, own, &why);
    }
    if (!ok) {
        assert(why.code < 0);
        if (err)
            *err = why;
    }
    return ok;
}

/* A driver may have these numbers from an image or a server. */
static bool settle_limits(struct node *n, struct err *err)
{
    struct node_limits *l = &n->limits;

    l->request_align = MAX(l->request_align, 1U);
    l->zero_align = MAX(l->zero_align, l->request_align);
    if (n->size > INT64_MAX)
        return err_set(err, -EFBIG, "Node '%s' is too large: %" PRIu64 " bytes", n->name, n->size);
    if (!is_power_of_2(l->request_align) || l->request_align > LIMIT_BOUNCE_BYTES ||
        !is_power_of_2(l->zero_align))
        return err_set(err, -ENOTSUP, "Node '%s' asks for requests in units of %u and zeros in "
                       "units of %u bytes, which cannot be done", n->name, l->request_align,
                       l->zero_align);
    if ((l->max_transfer && l->max_transfer < l->request_align) ||
        (l->max_zeroes && l->max_zeroes < l->request_align))
        return err_set(err, -ENOTSUP, "Node '%s' takes no more than %u bytes at a time in units "
                       "of %u", n->name, l->max_transfer, l->request_align);
    l->max_transfer = align_down(l->max_transfer, l->request_align);
    l->max_zeroes = align_down(l->max_zeroes, l->request_align);
    /* Nothing is forced to stable storage where flushes are not wanted: the funnel
     * then makes a flush of it, which does nothing. */
    if (n->no_flush && n->drv->is_protocol) {
        l->write_flags &= ~REQ_FUA;
        l->zero_flags &= ~REQ_FUA;
    }
    return true;
}

/* @parent and @role are NULL at the root. */
static struct node *co_open(const struct blockdev_options *o, struct node *parent,
                            const char *role, struct err *err)
{
    struct node *n = node_new(driver_find(o->driver), loop_current());
    bool is_backing = role && strcmp(role, "backing") == 0;

    n->core->opener = parent;
    n->core->depth = parent ? parent->core->depth + 1 : 0;
    if (!settle(n, o, parent, is_backing, err) ||
        !graph_register(n, o->has_node_name ? o->node_name : NULL, err) ||
        !co_driver_open(n, o->own, err)) {
        co_node_unref(n);
        return NULL;
    }
    n->core->opened = true;
    if (!settle_limits(n, err)) {
        co_node_unref(n);
        return NULL;
    }
    n->core->new_stack = n->backing && n->core->chain % LIMIT_CHAIN_PER_STACK == 0;
    node_update_care(n);
    n->core->opener = NULL;
    n->core->options = schema_encode(&blockdev_options_type, o);
    if (!is_backing && !co_keepers_opened(n, err)) {
        co_node_unref(n);
        return NULL;
    }
    graph_publish(n);
    return n;
}

struct node *co_node_open_decoded(const struct blockdev_options *o, struct err *err)
{
    return co_open(o, NULL, NULL, err);
}

struct node *co_node_open(const json_t *json, bool keyval, struct err *err)
{
    struct blockdev_options *o = schema_decode_new(&blockdev_options_type, json, keyval, err);

    if (!o)
        return NULL;

    struct node *n = co_node_open_decoded(o, err);

    schema_free(&blockdev_options_type, o);
    return n;
}

/* ---- children ----------------------------------------------------------------------- */

struct open_job {
    const struct blockdev_options *options;
    struct node *parent;
    const char *role;
    struct err *err;
    struct node *ret;
    struct co *caller;
};

static void co_open_job(void *arg)
{
    struct open_job *job = arg;

    job->ret = co_open(job->options, job->parent, job->role, job->err);
    co_wake(job->caller);
}

/* With a stack of its own: what an image names is opened while the image is, and
 * so on down a chain of any length. */
static struct node *co_open_inline(struct node *parent, const char *role,
                                   const struct blockdev_options *o, struct err *err)
{
    struct open_job job = {
        .options = o, .parent = parent, .role = role, .err = err, .caller = co_self(),
    };

    if (parent->core->depth >= LIMIT_CHAIN_DEPTH + LIMIT_NODE_HEIGHT) {
        err_set(err, -E2BIG, "The backing chain has more than %u images", LIMIT_CHAIN_DEPTH);
        return NULL;
    }
    co_start(co_open_job, &job);
    co_suspend();
    return job.ret;
}

static struct node *find_child(const struct node *parent, const char *name, struct err *err)
{
    struct node *child = node_find(name, err);

    if (!child) {
        err_prefix(err, "Node '%s': ", parent->name);
        return NULL;
    }
    if (node_loop(child) != parent->loop) {
        err_set(err, -EXDEV, "Node '%s' lives on another thread than node '%s', which shall "
                "stand on it", name, parent->name);
        node_unref(child);
        return NULL;
    }
    return child;
}

bool co_node_open_child(struct node *parent, const char *role, const struct schema_alt *ref,
                        unsigned perms, unsigned shared, struct err *err)
{
    struct node *child = NULL;

    assert(!parent->core->opened && parent->loop == loop_current());
    switch (ref->kind) {
    case SCHEMA_ALT_NULL:
        return true;
    case SCHEMA_ALT_STR:
        child = find_child(parent, ref->str, err);
        break;
    case SCHEMA_ALT_OBJECT:
        child = co_open_inline(parent, role, ref->object, err);
        break;
    }
    if (!child)
        return false;
    if ((perms & EDGE_WRITE) && child->read_only && parent->core->auto_read_only &&
        (strcmp(role, "file") == 0 || strcmp(role, "data-file") == 0)) {
        parent->read_only = true;
        perms &= ~(EDGE_WRITE | EDGE_RESIZE);
    }
    if (!edge_attach_child(parent, role, child, perms, shared, err)) {
        co_node_unref(child);
        return false;
    }
    /* Before the parent changes anything. */
    if (perms & EDGE_WRITE)
        co_edge_note_storage(list_entry(parent->core->children.prev, struct edge, in_parent));
    return true;
}

bool node_check_no_loop(const struct node *n, const char *path, struct err *err)
{
    for (const struct node *p = n; p; p = p->core->opener) {
        if (node_uses_file((struct node *)p, path))
            return err_set(err, -ELOOP, "'%s' is its own backing file, directly or through "
                           "others", path);
    }
    return true;
}

/* ---- storage ------------------------------------------------------------------------- */

bool node_shares_storage(struct node *a, struct node *b)
{
    CLEANUP_NODE_SET struct node_set below_a = { 0 };
    CLEANUP_NODE_SET struct node_set below_b = { 0 };

    node_set_walk(&below_a, a, WALK_DOWN);
    node_set_walk(&below_b, b, WALK_DOWN);
    for (size_t i = 0; i < below_a.n; i++) {
        const struct node *na = below_a.nodes[i];

        for (size_t j = 0; j < below_b.n; j++) {
            const struct node *nb = below_b.nodes[j];

            if (na == nb ||
                (na->storage_id && nb->storage_id && strcmp(na->storage_id, nb->storage_id) == 0))
                return true;
        }
    }
    return false;
}

bool node_uses_file(struct node *n, const char *path)
{
    CLEANUP_NODE_SET struct node_set below = { 0 };
    struct stat st;

    if (stat(path, &st) < 0)
        return false;
    CLEANUP(free) char *id = storage_id_for_file(&st);

    node_set_walk(&below, n, WALK_DOWN);
    for (size_t i = 0; i < below.n; i++) {
        if (below.nodes[i]->storage_id && strcmp(below.nodes[i]->storage_id, id) == 0)
            return true;
    }
    return false;
}
