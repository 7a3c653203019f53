/* SPDX-License-Identifier: Apache-2.0
 *
 * Dirty bitmaps over QMP: QEMU qapi/block-core.json, block-dirty-bitmap-*. Each is an
 * action too (transaction.h): what can fail is done before the doors are shut, bits
 * are cleared and recording begins and ends behind them (docs/dirty-bitmaps.md, I-B1).
 */
#include "base/log.h"
#include "base/mem.h"
#include "block/bitmap_ref.h"
#include "block/keeper.h"
#include "qmp/transaction.h"

/* ---- arguments ------------------------------------------------------------------------------ */

struct add_args {
    char *node, *name;
    bool has_granularity, has_persistent, persistent, has_disabled, disabled;
    uint32_t granularity;
};
static const struct schema_type add_args_type = {
    .name = "BlockDirtyBitmapAdd", .kind = SCHEMA_STRUCT, .size = sizeof(struct add_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct add_args, node, "node", &schema_str, "the node to record"),
        SCHEMA_REQUIRED(struct add_args, name, "name", &schema_str, "a name for the bitmap"),
        SCHEMA_OPTIONAL(struct add_args, granularity, "granularity", &schema_uint32,
                        "bytes a bit; the cluster size unless given"),
        SCHEMA_OPTIONAL(struct add_args, persistent, "persistent", &schema_bool,
                        "stays when the node is closed"),
        SCHEMA_OPTIONAL(struct add_args, disabled, "disabled", &schema_bool,
                        "does not record for now"),
        SCHEMA_END,
    },
};

struct merge_args {
    char *node, *target;
    struct schema_array bitmaps;     /* struct schema_alt */
};
static const struct schema_type merge_args_type = {
    .name = "BlockDirtyBitmapMerge", .kind = SCHEMA_STRUCT, .size = sizeof(struct merge_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct merge_args, node, "node", &schema_str, "the node of the target"),
        SCHEMA_REQUIRED(struct merge_args, target, "target", &schema_str,
                        "the bitmap that gets all bits"),
        SCHEMA_REQUIRED(struct merge_args, bitmaps, "bitmaps", &bitmap_or_str_list_type,
                        "those whose bits it gets; of its node unless said"),
        SCHEMA_END,
    },
};

/* ---- one bitmap ----------------------------------------------------------------------------- */

struct bitmap_state {
    struct dirty_bitmap *bm;       /* held by the transaction, or by a later action of it */
    bool in_image;                 /* remove: the image may have it */
    struct bitmap *row;            /* clear: empty, then what was set */
    struct dirty_bitmap **sources; /* merge */
    struct node **nodes;           /* of them, references */
    size_t n_sources;

    /* For co_prepare. */
    const char *name;
    unsigned allow;                /* for dirty_bitmap_check */
    struct err *err;
};

static struct node *find_node(struct action *a, const char *name, struct err *err)
{
    struct node *n = qmp_find_device(a->call->qmp, name, NULL);

    if (!n)
        err_set(err, -ENODEV, "Node '%s' not found", name);
    return n;
}

/* Run @there on @disk, a reference that is taken over; NULL: @err says why. */
static bool co_prepare_on(struct action *a, struct node *disk, int (*there)(void *arg),
                          struct err *err)
{
    struct bitmap_state *s = a->state;

    s->err = err;
    a->disk = disk;
    if (a->disk && co_node_call(a->disk, there, a) == 0)
        return true;
    node_unref(MOVE(a->disk));
    return false;
}

static int find_there(void *arg)
{
    struct action *a = arg;
    struct bitmap_state *s = a->state;

    s->bm = dirty_bitmap_find(a->disk, s->name, s->err);
    return s->bm && action_hold_bitmap(a, s->bm, s->allow, s->err) ? 0 : -EINVAL;
}

static bool co_find(struct action *a, int (*there)(void *arg), unsigned allow, struct err *err)
{
    const struct bitmap_ref *args = a->args;
    struct bitmap_state *s = a->state;

    s->name = args->name;
    s->allow = allow;
    return co_prepare_on(a, find_node(a, args->node, err), there, err);
}

static bool co_find_prepare(struct action *a, struct err *err)
{
    return co_find(a, find_there, 0, err);
}

/* I-B6: it will say more than what the image has of it. */
static int co_outdate_there(void *arg)
{
    struct action *a = arg;
    struct bitmap_state *s = a->state;

    if (find_there(a) < 0)
        return -EINVAL;
    if (co_dirty_bitmap_outdate(s->bm, s->err))
        return 0;
    action_yield_bitmap(a, s->bm);
    return -EIO;
}

static bool co_enable_prepare(struct action *a, struct err *err)
{
    return co_find(a, co_outdate_there, 0, err);
}

static void enable_cut(struct action *a)
{
    dirty_bitmap_enable(((struct bitmap_state *)a->state)->bm);
}

static void disable_cut(struct action *a)
{
    dirty_bitmap_disable(((struct bitmap_state *)a->state)->bm);
}

/* Changes of persistent bitmaps are answered when a crash cannot undo them. What cannot be
 * kept is inconsistent then, and was logged. */
static int co_settle_there(void *arg)
{
    struct err ignored;

    (void)!co_dirty_settle(arg, &ignored);
    return 0;
}

static void co_settle(struct action *a)
{
    if (a->committed)
        (void)co_node_call(a->disk, co_settle_there, a->disk);
}

/* ---- add, remove ---------------------------------------------------------------------------- */

/* I-B1: what is not behind shut doors does not begin to record. */
static int co_add_there(void *arg)
{
    struct action *a = arg;
    const struct add_args *args = a->args;
    struct bitmap_state *s = a->state;
    const struct dirty_bitmap_opts o = {
        .name = args->name,
        .granularity = args->granularity,
        .disabled = true,
        .persistent = args->persistent,
    };

    /* 0 is not "unless given". */
    if (args->has_granularity && args->granularity == 0) {
        err_set(s->err, -EINVAL, "Granularity must be power of 2 and at least 512");
        return -EINVAL;
    }
    if (args->persistent && (!co_dirty_keep(a->disk, s->err) ||
                             !dirty_bitmap_can_keep(a->disk, &o, s->err)))
        return -EINVAL;
    s->bm = dirty_bitmap_add(a->disk, &o, s->err);
    if (!s->bm || !action_hold_bitmap(a, s->bm, 0, s->err))
        return -EINVAL;
    if (!args->persistent || co_dirty_settle(a->disk, s->err))
        return 0;
    action_yield_bitmap(a, s->bm);
    dirty_bitmap_remove(s->bm);
    return -EINVAL;
}

static bool co_add_prepare(struct action *a, struct err *err)
{
    const struct add_args *args = a->args;

    return co_prepare_on(a, qmp_find_device(a->call->qmp, args->node, err), co_add_there, err);
}

static void add_cut(struct action *a)
{
    const struct add_args *args = a->args;

    if (!args->disabled)
        enable_cut(a);
}

/* A job of this transaction that used it has let go of it, and somebody else may have
 * been quicker than we: then it stays his. */
static int unadd_there(void *arg)
{
    struct action *a = arg;
    struct bitmap_state *s = a->state;
    const struct add_args *args = a->args;

    if (dirty_bitmap_find(a->disk, args->name, NULL) != s->bm)
        return 0;
    action_yield_bitmap(a, s->bm);
    if (!dirty_bitmap_busy(s->bm))
        dirty_bitmap_remove(s->bm);
    return 0;
}

static void co_add_abort(struct action *a)
{
    (void)co_node_call(a->disk, unadd_there, a);
}

static int co_remove_there(void *arg)
{
    struct action *a = arg;

    struct bitmap_state *s = a->state;

    if (co_outdate_there(a) < 0)
        return -EINVAL;
    s->in_image = dirty_bitmap_persistent(s->bm);
    action_reserve_bitmap(a, s->bm);
    return 0;
}

static bool co_remove_prepare(struct action *a, struct err *err)
{
    return co_find(a, co_remove_there, DIRTY_INCONSISTENT_OK, err);
}

/* For the action that added it in the same transaction, which is undone after this one. */
static void co_remove_abort(struct action *a)
{
    action_unreserve_bitmap(a, ((struct bitmap_state *)a->state)->bm);
}

static void remove_commit(struct action *a)
{
    struct bitmap_state *s = a->state;

    bool ours = action_yield_bitmap(a, s->bm);

    assert(ours);
    dirty_bitmap_remove(s->bm);
}

static int co_unkeep_there(void *arg)
{
    struct action *a = arg;
    const struct bitmap_ref *args = a->args;
    struct err err;

    /* It is marked as not to be trusted: so it would come back. */
    if (!co_dirty_bitmap_unkeep(a->disk, args->name, &err))
        log_warn("dirty bitmap '%s' of node '%s' is gone, but not from the image: %s", args->name,
                 node_name(a->disk), err.text);
    return 0;
}

static void co_remove_clean(struct action *a)
{
    const struct bitmap_state *s = a->state;

    if (a->committed && s->in_image)
        (void)co_node_call(a->disk, co_unkeep_there, a);
    co_settle(a);
}

/* ---- clear ---------------------------------------------------------------------------------- */

static int clear_there(void *arg)
{
    struct action *a = arg;
    struct bitmap_state *s = a->state;

    if (find_there(a) < 0)
        return -EINVAL;
    s->row = dirty_bitmap_new_row(s->bm, s->err);
    return s->row ? 0 : -ENOMEM;
}

static bool co_clear_prepare(struct action *a, struct err *err)
{
    return co_find(a, clear_there, 0, err);
}

static void clear_cut(struct action *a)
{
    struct bitmap_state *s = a->state;

    s->row = dirty_bitmap_clear(s->bm, s->row);
}

static void co_clear_clean(struct action *a)
{
    co_settle(a);
    bitmap_free(((struct bitmap_state *)a->state)->row);
}

/* ---- merge ---------------------------------------------------------------------------------- */

struct source {
    struct action *a;
    struct node *node;             /* that has it */
    const char *name;
};

static int source_there(void *arg)
{
    struct source *src = arg;
    struct bitmap_state *s = src->a->state;
    struct dirty_bitmap *bm = dirty_bitmap_find(src->node, src->name, s->err);
    uint64_t to = node_size(src->a->disk), from = node_size(src->node);

    if (!bm)
        return -ENOENT;
    if (from != to) {
        err_set(s->err, -EINVAL, "Bitmaps are of different sizes (destination size is %llu, "
                "source size is %llu) and can't be merged", (unsigned long long)to,
                (unsigned long long)from);
        return -EINVAL;
    }
    if (!action_hold_bitmap(src->a, bm, DIRTY_READ_ONLY_OK, s->err))
        return -EBUSY;
    s->sources[s->n_sources] = bm;
    s->nodes[s->n_sources++] = node_ref(src->node);
    return 0;
}

static bool co_add_source(struct action *a, const struct schema_alt *alt, struct err *err)
{
    const struct bitmap_ref *ref = alt->kind == SCHEMA_ALT_OBJECT ? alt->object : NULL;
    CLEANUP(node_unref) struct node *node =
        ref ? find_node(a, ref->node, err) : node_ref(a->disk);
    struct source src = { a, node, ref ? ref->name : alt->str };

    return node && co_node_call(node, source_there, &src) == 0;
}

static void merge_done(struct action *a)
{
    struct bitmap_state *s = a->state;

    while (s->n_sources)
        node_unref(s->nodes[--s->n_sources]);
    free(MOVE(s->nodes));
    free(MOVE(s->sources));
}

static void co_merge_clean(struct action *a)
{
    co_settle(a);
    merge_done(a);
}

static bool co_merge_prepare(struct action *a, struct err *err)
{
    const struct merge_args *args = a->args;
    const struct schema_alt *alts = args->bitmaps.items;
    struct bitmap_state *s = a->state;

    s->name = args->target;
    if (!co_prepare_on(a, find_node(a, args->node, err), co_outdate_there, err))
        return false;
    s->nodes = xcalloc(args->bitmaps.n + 1, sizeof(*s->nodes));
    s->sources = xcalloc(args->bitmaps.n + 1, sizeof(struct dirty_bitmap *));
    for (size_t i = 0; i < args->bitmaps.n; i++) {
        if (co_add_source(a, &alts[i], err))
            continue;
        merge_done(a);
        node_unref(MOVE(a->disk));
        return false;
    }
    a->others = s->nodes;
    a->n_others = s->n_sources;
    return true;
}

/* Bits of a node on another loop are read here: its doors are shut, so that nobody
 * sets any, and the bitmap is held, so that nobody takes it away. */
static void merge_cut(struct action *a)
{
    struct bitmap_state *s = a->state;

    for (size_t i = 0; i < s->n_sources; i++) {
        const struct dirty_bitmap *src = s->sources[i];
        const char *why = dirty_bitmap_inconsistent(src);

        if (src == s->bm)
            continue;
        /* It was sound when the action was prepared. */
        if (why)
            dirty_bitmap_spoil(s->bm, "bitmap '%.200s', which was merged into it, is "
                               "inconsistent: %s", dirty_bitmap_name(src), why);
        else
            dirty_bitmap_merge(s->bm, src);
    }
}

/* ---- actions and commands ------------------------------------------------------------------- */

static const struct schema_type add_wrapper =
    ACTION_WRAPPER("BlockDirtyBitmapAddWrapper", &add_args_type, sizeof(struct add_args));
static const struct schema_type merge_wrapper =
    ACTION_WRAPPER("BlockDirtyBitmapMergeWrapper", &merge_args_type, sizeof(struct merge_args));
static const struct schema_type ref_wrapper =
    ACTION_WRAPPER("BlockDirtyBitmapWrapper", &bitmap_ref_type, sizeof(struct bitmap_ref));

enum { ADD, REMOVE, CLEAR, ENABLE, DISABLE, MERGE };
#define BITMAP_ACTION(action_name, args_t, wrapper_t) \
    .name = "block-dirty-bitmap-" action_name, .args = &args_t, .wrapper = &wrapper_t, \
    .state_size = sizeof(struct bitmap_state)
const struct action_ops qmp_bitmap_actions[] = {
    [ADD] = { BITMAP_ACTION("add", add_args_type, add_wrapper), .co_prepare = co_add_prepare,
              .cut = add_cut, .co_abort = co_add_abort, .co_clean = co_settle },
    [REMOVE] = { BITMAP_ACTION("remove", bitmap_ref_type, ref_wrapper),
                 .co_prepare = co_remove_prepare, .commit = remove_commit,
                 .co_abort = co_remove_abort, .co_clean = co_remove_clean },
    [CLEAR] = { BITMAP_ACTION("clear", bitmap_ref_type, ref_wrapper),
                .co_prepare = co_clear_prepare, .cut = clear_cut, .co_clean = co_clear_clean },
    [ENABLE] = { BITMAP_ACTION("enable", bitmap_ref_type, ref_wrapper),
                 .co_prepare = co_enable_prepare, .cut = enable_cut, .co_clean = co_settle },
    [DISABLE] = { BITMAP_ACTION("disable", bitmap_ref_type, ref_wrapper),
                  .co_prepare = co_find_prepare, .cut = disable_cut, .co_clean = co_settle },
    [MERGE] = { BITMAP_ACTION("merge", merge_args_type, merge_wrapper),
                .co_prepare = co_merge_prepare, .cut = merge_cut, .co_clean = co_merge_clean },
    { 0 },
};

#define ACTION_COMMAND(fn, index) \
    static bool fn(const struct qmp_call *call, const void *args, void *ret, struct err *err) \
    { \
        return co_transaction_single(call, &qmp_bitmap_actions[index], args, ret, err); \
    }
ACTION_COMMAND(co_add, ADD)
ACTION_COMMAND(co_remove, REMOVE)
ACTION_COMMAND(co_clear, CLEAR)
ACTION_COMMAND(co_enable, ENABLE)
ACTION_COMMAND(co_disable, DISABLE)
ACTION_COMMAND(co_merge, MERGE)

const struct qmp_command qmp_bitmap_commands[] = {
    { .name = "block-dirty-bitmap-add", .doc = "record from now on what is written to a node",
      .args = &add_args_type, .co_run = co_add },
    { .name = "block-dirty-bitmap-remove", .doc = "forget a bitmap",
      .args = &bitmap_ref_type, .co_run = co_remove },
    { .name = "block-dirty-bitmap-clear", .doc = "nothing is dirty any more",
      .args = &bitmap_ref_type, .co_run = co_clear },
    { .name = "block-dirty-bitmap-enable", .doc = "go on recording",
      .args = &bitmap_ref_type, .co_run = co_enable },
    { .name = "block-dirty-bitmap-disable", .doc = "do not record for now",
      .args = &bitmap_ref_type, .co_run = co_disable },
    { .name = "block-dirty-bitmap-merge", .doc = "make dirty what is in other bitmaps",
      .args = &merge_args_type, .co_run = co_merge },
    { 0 },
};
