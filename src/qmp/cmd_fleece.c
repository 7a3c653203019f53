/* SPDX-License-Identifier: Apache-2.0
 *
 * blockdev-fleece: a disk as it is now, exported over NBD until the export is taken
 * away. A command of our own, for what QEMU needs a copy-before-write node, a
 * snapshot-access node, a target and an export for: it makes just those nodes, which
 * live and end with the export. It is an action too (transaction.h), so that several disks
 * and their bitmaps have one instant.
 */
#include "base/mem.h"
#include "cbw/view.h"
#include "drivers/snapshot_access.h"
#include "qmp/transaction.h"

#define CBW_TIMEOUT_SECONDS 45      /* VIEW_OPTS_DEFAULT's */

struct fleece_args {
    char *device;
    bool has_id, has_name, has_description;
    char *id, *name, *description;
    bool has_bitmaps;
    struct schema_array bitmaps;     /* char * */
    bool has_discard, discard;
    bool has_on_cbw_error;
    int on_cbw_error;
    bool has_cbw_timeout;
    uint32_t cbw_timeout;
    bool has_scratch_dir;
    char *scratch_dir;
    bool has_scratch_memory, has_scratch_limit;
    uint64_t scratch_memory, scratch_limit;
};

static const struct schema_type name_list = {
    .name = "strList", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &schema_str,
};

#define FA_OPT(field, json, type, doc) SCHEMA_OPTIONAL(struct fleece_args, field, json, type, doc)
static const struct schema_type fleece_args_type = {
    .name = "q_obj_blockdev-fleece-arg", .kind = SCHEMA_STRUCT, .size = sizeof(struct fleece_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct fleece_args, device, "device", &schema_str,
                        "the disk: a node's name or an export's id"),
        FA_OPT(id, "id", &schema_str, "of the export; DEVICE-fleece unless given"),
        FA_OPT(name, "name", &schema_str, "as clients ask for it; the id unless given"),
        FA_OPT(description, "description", &schema_str, "shown to clients"),
        FA_OPT(bitmaps, "bitmaps", &name_list, "dirty bitmaps of the disk to show as they are now"),
        FA_OPT(discard, "discard", &schema_bool,
               "clients may give ranges up by TRIM; the export is not called read-only then"),
        FA_OPT(on_cbw_error, "on-cbw-error", &on_cbw_error_type,
               "when old data cannot be kept; break-snapshot unless given"),
        FA_OPT(cbw_timeout, "cbw-timeout", &schema_uint32,
               "seconds that a guest's write may wait for that (45; 0: no limit)"),
        FA_OPT(scratch_dir, "scratch-dir", &schema_str, "where old data is kept"),
        FA_OPT(scratch_memory, "scratch-memory", &schema_size, "of it so much in memory, bytes"),
        FA_OPT(scratch_limit, "scratch-limit", &schema_size, "of it at most, bytes; 0: no limit"),
        SCHEMA_END,
    },
};

struct fleece_info {
    char *id, *name, *node_name;
    bool has_uri;
    char *uri;
};
static const struct schema_type fleece_info_type = {
    .name = "BlockdevFleeceInfo", .kind = SCHEMA_STRUCT, .size = sizeof(struct fleece_info),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct fleece_info, id, "id", &schema_str, NULL),
        SCHEMA_REQUIRED(struct fleece_info, name, "name", &schema_str, NULL),
        SCHEMA_REQUIRED(struct fleece_info, node_name, "node-name", &schema_str, NULL),
        SCHEMA_OPTIONAL(struct fleece_info, uri, "uri", &schema_str, NULL),
        SCHEMA_END,
    },
};

/* ---- the nodes ----------------------------------------------------------------------- */

/* What blockdev-add would take for them. */
static json_t *node_options_for(const struct qmp *q, const struct fleece_args *a,
                                const struct node *source)
{
    char *const *names = a->bitmaps.items;
    const char *dir = a->has_scratch_dir ? a->scratch_dir : q->scratch_dir;
    uint32_t timeout = a->has_cbw_timeout ? a->cbw_timeout : CBW_TIMEOUT_SECONDS;
    json_t *bitmaps = json_array();
    json_t *cbw;

    for (size_t i = 0; i < a->bitmaps.n; i++)
        json_array_append_new(bitmaps, schema_json_str(names[i]));
    cbw = json_pack("{s:s, s:o, s:b, s:o, s:s, s:I}", "driver", "copy-before-write", "file",
                    schema_json_str(node_name(source)), "read-only", 1, "bitmaps", bitmaps,
                    "on-cbw-error", on_cbw_error_type.values[a->has_on_cbw_error
                                                             ? a->on_cbw_error
                                                             : VIEW_BREAK_SNAPSHOT],
                    "cbw-timeout", (json_int_t)timeout);
    if (dir)
        json_object_set_new(cbw, "scratch-dir", schema_json_str(dir));
    if (a->has_scratch_memory)
        json_object_set_new(cbw, "scratch-memory", json_integer((json_int_t)a->scratch_memory));
    if (a->has_scratch_limit)
        json_object_set_new(cbw, "scratch-limit", json_integer((json_int_t)a->scratch_limit));
    return json_pack("{s:s, s:s, s:b, s:o}", "driver", "snapshot-access", "discard", "unmap",
                     "read-only", !a->discard, "file", cbw);
}

/* ---- the action ---------------------------------------------------------------------- */

struct fleece_state {
    char *id;
    struct node *node;           /* a reference; from then on it goes with its export */
    struct nbd_export *export;

    /* For co_prepare. */
    const json_t *json;
    struct err *err;
};

/* On the disk's loop. The bitmaps are held until the instant; a job that comes later in the same
 * transaction may have them, as their bits are copied first. */
static int co_open_there(void *arg)
{
    struct action *a = arg;
    const struct fleece_args *args = a->args;
    struct fleece_state *s = a->state;
    char *const *names = args->bitmaps.items;

    for (size_t i = 0; i < args->bitmaps.n; i++) {
        struct dirty_bitmap *bm = dirty_bitmap_find(a->disk, names[i], s->err);

        if (!bm || !action_hold_bitmap(a, bm, 0, s->err))
            return -EINVAL;
    }
    s->node = co_snapshot_access_open_later(s->json, s->err);
    return s->node ? 0 : -EINVAL;
}

static bool co_export(struct action *a, struct err *err)
{
    const struct fleece_args *args = a->args;
    struct fleece_state *s = a->state;
    CLEANUP(free) struct nbd_export_bitmap *bitmaps =
        xcalloc(args->bitmaps.n + 1, sizeof(*bitmaps));
    char *const *names = args->bitmaps.items;
    struct nbd_export_opts o = {
        .id = s->id,
        .node = s->node,
        .name = args->has_name ? args->name : s->id,
        .description = args->description,
        .writable = args->discard,
        .allocation_depth = true,
        .bitmaps = bitmaps,
        .n_bitmaps = args->bitmaps.n,
    };

    for (size_t i = 0; i < args->bitmaps.n; i++)
        bitmaps[i].name = names[i];
    s->export = co_nbd_export_prepare(qmp_nbd_exports(a->call->qmp), &o, err);
    return s->export != NULL;
}

static bool co_prepare_fleece(struct action *a, struct err *err)
{
    const struct fleece_args *args = a->args;
    struct fleece_state *s = a->state;
    struct qmp *q = a->call->qmp;

    if (!job_id_wellformed(s->id))
        return err_set(err, -EINVAL, args->has_id ? "Invalid block export id"
                                                  : "An explicit 'id' is required for this disk");
    if (!qmp_nbd_server(q))
        return err_set(err, -ENOENT, "NBD server not running");
    a->disk = qmp_find_device(q, args->device, err);
    if (!a->disk)
        return false;

    CLEANUP(json_decref) json_t *json = node_options_for(q, args, a->disk);

    s->json = json;
    s->err = err;
    return co_node_call(a->disk, co_open_there, a) == 0 && co_export(a, err);
}

static void co_done(struct action *a)
{
    struct fleece_state *s = a->state;

    co_node_unref(MOVE(s->node));
    free(MOVE(s->id));
}

static bool co_fleece_prepare(struct action *a, struct err *err)
{
    const struct fleece_args *args = a->args;
    struct fleece_state *s = a->state;

    s->id = args->has_id ? xstrdup(args->id) : xasprintf("%s-fleece", args->device);
    if (co_prepare_fleece(a, err))
        return true;
    co_done(a);
    node_unref(MOVE(a->disk));
    return false;
}

static void fleece_cut(struct action *a)
{
    const struct fleece_state *s = a->state;

    snapshot_access_begin(s->node);
}

static void co_fleece_abort(struct action *a)
{
    struct fleece_state *s = a->state;

    co_nbd_export_drop(MOVE(s->export));
}

static void fill_info(const struct action *a)
{
    const struct fleece_args *args = a->args;
    const struct fleece_state *s = a->state;
    struct nbd_server *server = qmp_nbd_server(a->call->qmp);
    struct fleece_info *info = a->ret;

    *info = (struct fleece_info){
        .id = xstrdup(s->id),
        .name = xstrdup(args->has_name ? args->name : s->id),
        .node_name = xstrdup(node_name(s->node)),
    };
    if (server)
        info->uri = nbd_server_uri(server, info->name);
    info->has_uri = info->uri != NULL;
}

/* Clients see it when it shows the instant. A server that was stopped meanwhile takes it away as
 * if that had come afterwards. */
static void co_fleece_clean(struct action *a)
{
    struct fleece_state *s = a->state;
    struct err ignored;

    if (a->committed) {
        nbd_export_publish(s->export);
        (void)!qmp_export_stays(a->call->qmp, s->id, &ignored);
        if (a->ret)
            fill_info(a);
    }
    co_done(a);
}

static const struct schema_type fleece_wrapper =
    ACTION_WRAPPER("BlockdevFleeceWrapper", &fleece_args_type, sizeof(struct fleece_args));

/* It may be grouped with jobs: it has none, and stays whatever becomes of them. */
const struct action_ops qmp_fleece_actions[] = {
    { .name = "blockdev-fleece", .args = &fleece_args_type, .wrapper = &fleece_wrapper,
      .state_size = sizeof(struct fleece_state), .may_group = true,
      .co_prepare = co_fleece_prepare, .cut = fleece_cut, .co_abort = co_fleece_abort,
      .co_clean = co_fleece_clean },
    { 0 },
};

static bool co_fleece(const struct qmp_call *call, const void *args, void *ret, struct err *err)
{
    return co_transaction_single(call, &qmp_fleece_actions[0], args, ret, err);
}

const struct qmp_command qmp_fleece_commands[] = {
    { .name = "blockdev-fleece", .doc = "export a disk as it is now", .args = &fleece_args_type,
      .ret = &fleece_info_type, .co_run = co_fleece },
    { 0 },
};
