/* SPDX-License-Identifier: Apache-2.0
 *
 * nbd-server-add and nbd-server-remove: the older forms of block-export-add and
 * block-export-del (QEMU qapi/block-export.json). An export's id is its name there.
 */
#include "qmp/impl.h"

struct nbd_add_args {
    char *device;
    bool has_name, has_description, has_writable, writable, has_bitmap;
    char *name, *description, *bitmap;
};

#define NA_OPT(field, type, doc) SCHEMA_OPTIONAL(struct nbd_add_args, field, #field, type, doc)
static const struct schema_type nbd_add_args_type = {
    .name = "NbdServerAddOptions", .kind = SCHEMA_STRUCT, .size = sizeof(struct nbd_add_args),
    .members = (const struct schema_member[]){
        NA_OPT(name, &schema_str, "as clients ask for it; DEVICE unless given"),
        NA_OPT(description, &schema_str, "shown to clients"),
        SCHEMA_REQUIRED(struct nbd_add_args, device, "device", &schema_str,
                        "what to export: a node's name or an export's id"),
        NA_OPT(writable, &schema_bool, "clients may write, unless the node is read-only"),
        NA_OPT(bitmap, &schema_str, "offer qemu:dirty-bitmap:BITMAP"),
        SCHEMA_END,
    },
};

static bool co_nbd_add(const struct qmp_call *call, const void *args, void *ret,
                       struct err *err)
{
    const struct nbd_add_args *a = args;
    struct qmp *q = call->qmp;
    CLEANUP(node_unref) struct node *node = qmp_find_device(q, a->device, err);
    const struct nbd_export_bitmap bitmap = { .name = a->bitmap };
    const char *name = a->has_name ? a->name : a->device;

    if (!node)
        return false;

    const struct nbd_export_opts o = {
        .id = name,
        .node = node,
        .name = name,
        .description = a->description,
        .writable = a->writable && !node_read_only(node),
        .bitmaps = &bitmap,
        .n_bitmaps = a->has_bitmap,
    };

    return qmp_export_check(q, name, err) && co_qmp_export_add(q, &o, err);
}

struct nbd_remove_args {
    char *name;
    bool has_mode;
    int mode;
};
static const struct schema_type nbd_remove_args_type = {
    .name = "q_obj_nbd-server-remove-arg", .kind = SCHEMA_STRUCT,
    .size = sizeof(struct nbd_remove_args),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct nbd_remove_args, name, "name", &schema_str, "the export's"),
        SCHEMA_OPTIONAL(struct nbd_remove_args, mode, "mode", &export_remove_mode_enum,
                        "safe (the default): refused while clients are connected"),
        SCHEMA_END,
    },
};

static bool co_nbd_remove(const struct qmp_call *call, const void *args, void *ret,
                          struct err *err)
{
    const struct nbd_remove_args *a = args;

    return co_qmp_export_del(call->qmp, a->name, a->mode, err);
}

const struct qmp_command qmp_nbd_add_commands[] = {
    { .name = "nbd-server-add", .doc = "export a node: an older form of block-export-add",
      .args = &nbd_add_args_type, .co_run = co_nbd_add },
    { .name = "nbd-server-remove", .doc = "take an export away: an older form of block-export-del",
      .args = &nbd_remove_args_type, .co_run = co_nbd_remove },
    { 0 },
};
