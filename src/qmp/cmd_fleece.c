/* SPDX-License-Identifier: Apache-2.0
 *
 * blockdev-fleece: a disk as it is now, exported over NBD until the export is taken
 * away. A command of our own, for what QEMU needs a copy-before-write node, a
 * snapshot-access node, a target and an export for: it makes just those nodes, which
 * live and end with the export.
 */
#include "base/mem.h"
#include "cbw/view.h"
#include "qmp/impl.h"

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

/* What blockdev-add would take for the two nodes. */
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

struct opening {
    const json_t *json;
    struct node *ret;
    struct err *err;
};

/* On the disk's loop. */
static int co_open_there(void *arg)
{
    struct opening *o = arg;

    o->ret = co_node_open(o->json, false, o->err);
    return o->ret ? 0 : -EINVAL;
}

static struct node *co_open_fleece(struct qmp *q, const struct fleece_args *a,
                                   struct err *err)
{
    CLEANUP(node_unref) struct node *source = qmp_find_device(q, a->device, err);

    if (!source)
        return NULL;

    CLEANUP(json_decref) json_t *json = node_options_for(q, a, source);
    struct opening o = { .json = json, .err = err };

    return co_node_call(source, co_open_there, &o) == 0 ? o.ret : NULL;
}

static bool co_export(struct qmp *q, const struct fleece_args *a, const char *id, struct node *n,
                      struct err *err)
{
    CLEANUP(free) struct nbd_export_bitmap *bitmaps = xcalloc(a->bitmaps.n + 1, sizeof(*bitmaps));
    char *const *names = a->bitmaps.items;
    struct nbd_export_opts o = {
        .id = id,
        .node = n,
        .name = a->has_name ? a->name : id,
        .description = a->description,
        .writable = a->discard,
        .allocation_depth = true,
        .bitmaps = bitmaps,
        .n_bitmaps = a->bitmaps.n,
    };

    for (size_t i = 0; i < a->bitmaps.n; i++)
        bitmaps[i].name = names[i];
    return co_qmp_export_add(q, &o, err);
}

static bool co_fleece(const struct qmp_call *call, const void *args, void *ret, struct err *err)
{
    const struct fleece_args *a = args;
    struct fleece_info *info = ret;
    struct qmp *q = call->qmp;
    CLEANUP(free) char *id = a->has_id ? xstrdup(a->id) : xasprintf("%s-fleece", a->device);

    if (!job_id_wellformed(id))
        return err_set(err, -EINVAL, a->has_id ? "Invalid block export id"
                                               : "An explicit 'id' is required for this disk");
    if (!qmp_nbd_server(q))
        return err_set(err, -ENOENT, "NBD server not running");

    struct node *n = co_open_fleece(q, a, err);

    if (!n)
        return false;
    if (!co_export(q, a, id, n, err)) {
        co_node_unref(n);
        return false;
    }
    *info = (struct fleece_info){
        .id = xstrdup(id),
        .name = xstrdup(a->has_name ? a->name : id),
        .node_name = xstrdup(node_name(n)),
    };
    if (qmp_nbd_server(q))
        info->uri = nbd_server_uri(qmp_nbd_server(q), info->name);
    info->has_uri = info->uri != NULL;
    /* From here on it goes with its export. */
    co_node_unref(n);
    return true;
}

const struct qmp_command qmp_fleece_commands[] = {
    { .name = "blockdev-fleece", .doc = "export a disk as it is now", .args = &fleece_args_type,
      .ret = &fleece_info_type, .co_run = co_fleece },
    { 0 },
};
