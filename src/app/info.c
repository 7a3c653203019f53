/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint info: what an image is. The words and JSON members are those of
 * qemu-img info (QEMU qapi/block-core.json, ImageInfo).
 */
#include "app/cli.h"
#include "app/image_name.h"
#include "app/info.h"
#include "app/offline.h"
#include "base/limits.h"
#include "base/mem.h"
#include "drivers/image_dirs.h"
#include "drivers/qcow2/snapshot.h"
#include <stdio.h>

struct info_command {
    struct offline_open open;
    struct cli_list image_dirs;
    bool json, chain;
    json_t *list;              /* of ImageInfo */
    struct err err;
};

static void add_backing(json_t *info, const char *name, const struct node_info *ni)
{
    CLEANUP(free) char *full = image_path_beside(name, ni->backing_file);

    json_object_set_new(info, "backing-filename", schema_json_str(ni->backing_file));
    json_object_set_new(info, "full-backing-filename", schema_json_str(full));
    if (*ni->backing_format)
        json_object_set_new(info, "backing-filename-format", schema_json_str(ni->backing_format));
}

/* ---- what it consists of ---------------------------------------------------------- */

static json_t *describe(struct node *n, const char *filename);

static void add_child(json_t *children, const char *role, struct node *n)
{
    CLEANUP(free) struct node_info *ni = NULL;

    if (!n)
        return;
    ni = xnew(struct node_info);
    node_get_info(n, ni);
    json_array_append_new(children, json_pack("{s:s, s:o}", "name", role, "info",
                                              describe(n, ni->filename)));
}

/* The files below, as QEMU 8 and later tell of them; backing files are images by
 * themselves. */
static json_t *children_of(struct node *n)
{
    json_t *children = json_array();

    add_child(children, "file", edge_node(n->file));
    add_child(children, "data-file", edge_node(n->data_file));
    return children;
}

static json_t *format_info(struct node *n)
{
    json_t *specific = node_format_info(n);

    if (!specific && strcmp(node_driver_name(n), "file") == 0)
        specific = json_pack("{s:s, s:{}}", "type", "file", "data");
    return specific;
}

/* One node and what is below it: BlockNodeInfo. */
static json_t *describe(struct node *n, const char *filename)
{
    CLEANUP(free) struct node_info *ni = xnew(struct node_info);
    json_t *info, *specific = format_info(n);

    node_get_info(n, ni);
    info = json_pack("{s:o, s:I, s:o, s:s, s:b}", "children", children_of(n), "virtual-size",
                     (json_int_t)ni->size, "filename", schema_json_str(filename), "format",
                     node_driver_name(n), "dirty-flag", ni->dirty);
    if (ni->cluster_size)
        json_object_set_new(info, "cluster-size", json_integer(ni->cluster_size));
    if (ni->allocated != UINT64_MAX)
        json_object_set_new(info, "actual-size", json_integer((json_int_t)ni->allocated));
    if (specific)
        json_object_set_new(info, "format-specific", specific);
    return info;
}

static void add_snapshots(json_t *info, struct node *n)
{
    json_t *list;

    if (strcmp(node_driver_name(n), "qcow2") != 0)
        return;
    list = qcow2_snapshot_list(n);
    if (json_array_size(list))
        json_object_set(info, "snapshots", list);
    json_decref(list);
}

/* ---- chains ------------------------------------------------------------------------ */

/* What an image names is looked into only where images may name files. */
static bool may_follow(struct info_command *c, const char *name, const struct node_info *ni)
{
    CLEANUP(free) char *path = NULL;

    if (image_name_is_uri(name) || image_name_is_uri(ni->backing_file))
        return err_set(&c->err, -EPERM, "'%s' names the backing file '%s', which is not followed: "
                       "leave out --chain", name, ni->backing_file);
    path = image_dirs_resolve(name, ni->backing_file, "backing file", &c->err);
    if (!path)
        err_prefix(&c->err, "'%s': ", name);
    return path != NULL;
}

/* What of an image can be said without the file that has its data. */
static void leave_out_data_file(json_t *info, const struct err *why)
{
    json_t *children = json_object_get(info, "children"), *child;
    size_t i;

    json_array_foreach(children, i, child) {
        if (strcmp(json_string_value(json_object_get(child, "name")), "data-file") == 0) {
            json_array_remove(children, i);
            break;
        }
    }
    json_object_set_new(info, "data-file-error", schema_json_str(why->text));
}

/* Open an image; without its data file if that is what cannot be opened: then *ret_why says
 * why not, else its code is 0. */
static struct node *co_open(struct info_command *c, const struct offline_open *o,
                            struct err *ret_why)
{
    struct node *n = co_offline_open(o, &c->err);
    struct offline_open without = *o;
    struct err err = ERR_INIT;

    *ret_why = (struct err)ERR_INIT;
    if (n || image_is_locked_by_others(&c->err))
        return n;
    without.no_data_file = true;
    n = co_offline_open(&without, &err);
    if (n) {
        *ret_why = c->err;
        c->err = (struct err)ERR_INIT;
    }
    return n;
}

/* Describe one image, without those below it. *ret_next: the one below (NULL: none), to be
 * freed, and *ret_next_format. */
static bool co_add_image(struct info_command *c, const struct offline_open *o, char **ret_next,
                         char **ret_next_format)
{
    struct err no_data_file;
    struct node *n = co_open(c, o, &no_data_file);
    bool ok = true;

    if (!n)
        return false;

    CLEANUP(free) struct node_info *ni = xnew(struct node_info);
    json_t *info = describe(n, o->name);

    node_get_info(n, ni);
    add_snapshots(info, n);
    if (no_data_file.code)
        leave_out_data_file(info, &no_data_file);
    if (*ni->backing_file) {
        add_backing(info, o->name, ni);
        *ret_next = image_path_beside(o->name, ni->backing_file);
        *ret_next_format = *ni->backing_format ? xstrdup(ni->backing_format) : NULL;
        ok = !c->chain || may_follow(c, o->name, ni);
    }
    json_array_append_new(c->list, info);
    co_node_unref(n);
    return ok;
}

static int co_info(void *arg)
{
    struct info_command *c = arg;
    struct offline_open o = c->open;
    CLEANUP(free) char *name = NULL, *format = NULL;

    o.no_backing = true;
    for (unsigned depth = 0;; depth++) {
        char *next = NULL, *next_format = NULL;

        if (depth > LIMIT_CHAIN_DEPTH) {
            err_set(&c->err, -ELOOP, "'%s': more than %u images stand on each other, or one on "
                    "itself", c->open.name, LIMIT_CHAIN_DEPTH);
            return -ELOOP;
        }
        bool ok = co_add_image(c, &o, &next, &next_format);

        free(name);
        free(format);
        name = next;
        format = next_format;
        if (!ok)
            return c->err.code;
        if (!c->chain || !name)
            return 0;
        o.name = name;
        o.format = format;
    }
}

/* ---- the command ------------------------------------------------------------------- */

int cmd_info(int argc, char **argv)
{
    struct info_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
        { "format", 'f', CLI_TEXT, &c.open.format, "FORMAT",
          "raw or qcow2; by the name's ending unless given" },
        { "chain", 0, CLI_FLAG, &c.chain, NULL, "also the images that it stands on" },
        { "backing-chain", 0, CLI_FLAG, &c.chain, NULL, "the same, as qemu-img calls it" },
        { "json", 0, CLI_FLAG, &c.json, NULL, "for programs, as qemu-img info --output=json" },
        { "force-share", 'U', CLI_FLAG, &c.open.force_share, NULL,
          "although another process may be writing it" },
        CLI_IMAGE_DIR(&c.image_dirs),
        { 0 },
    };
    const struct cli_command command = {
        "info", "IMAGE", 1, 1, "Say what an image is: its format, its size, what it stands on.",
        options, "  stillpoint info --chain disk.qcow2",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.open.name = argv[first];
    c.list = json_array();

    CLEANUP(json_decref) json_t *list = c.list;

    if (!cli_allow_image_dirs(&c.image_dirs, &c.err) || offline_run(co_info, &c, &c.err) < 0)
        return cli_fail(command.name, &c.err);
    if (c.json)
        return cli_put_json(command.name, json_incref(c.chain ? list : json_array_get(list, 0)));
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (i)
            putchar('\n');
        info_print(json_array_get(list, i));
    }
    return cli_end_output(command.name);
}
