/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint info: what an image is. The words and JSON members are those of
 * qemu-img info (QEMU qapi/block-core.json, ImageInfo).
 */
#include "app/cli.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "app/snapshot.h"
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

/* What an image names is looked into only where images may name files. */
static bool may_follow(struct info_command *c, const char *name, const struct node_info *ni)
{
    CLEANUP(free) char *path = NULL;

    if (image_name_is_uri(name) || image_name_is_uri(ni->backing_file))
        return err_set(&c->err, -EPERM, "'%s' names the backing file '%s', which is not followed: "
                       "leave out --chain", name, ni->backing_file);
    path = image_dirs_resolve(name, ni->backing_file, &c->err);
    if (!path)
        err_prefix(&c->err, "'%s': ", name);
    return path != NULL;
}

/* Describe one image, without those below it. *ret_next: the one below (NULL: none), to be
 * freed, and *ret_next_format. */
static bool co_add_image(struct info_command *c, const struct offline_open *o, char **ret_next,
                         char **ret_next_format)
{
    struct node *n = co_offline_open(o, &c->err);
    bool ok = true;

    if (!n)
        return false;

    CLEANUP(free) struct node_info *ni = xnew(struct node_info);
    json_t *info, *specific = node_format_info(n);

    node_get_info(n, ni);
    info = json_pack("{s:I, s:o, s:s, s:b}", "virtual-size", (json_int_t)ni->size,
                     "filename", schema_json_str(o->name), "format", node_driver_name(n),
                     "dirty-flag", ni->dirty);
    if (ni->cluster_size)
        json_object_set_new(info, "cluster-size", json_integer(ni->cluster_size));
    if (ni->allocated != UINT64_MAX)
        json_object_set_new(info, "actual-size", json_integer((json_int_t)ni->allocated));
    if (specific)
        json_object_set_new(info, "format-specific", specific);
    add_snapshots(info, n);
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

/* ---- for people --------------------------------------------------------------------- */

static json_int_t int_of(const json_t *info, const char *key)
{
    return json_integer_value(json_object_get(info, key));
}

static const char *text_of(const json_t *info, const char *key)
{
    return json_string_value(json_object_get(info, key));
}

static void print_specific(const json_t *specific)
{
    const char *key;
    json_t *value;

    if (!json_object_size(specific))
        return;
    puts("Format specific information:");
    json_object_foreach(json_object_get(specific, "data"), key, value) {
        CLEANUP(free) char *text = json_dumps(value, JSON_ENCODE_ANY);
        CLEANUP(free) char *words = xstrdup(key);

        for (char *p = words; *p; p++) {
            if (*p == '-')
                *p = ' ';
        }
        printf("    %s: %s\n", words, json_is_string(value) ? json_string_value(value) : text);
    }
}

static void print_image(const json_t *info)
{
    const char *backing = text_of(info, "backing-filename");
    const char *full = text_of(info, "full-backing-filename");
    uint64_t size = (uint64_t)int_of(info, "virtual-size");
    char buf[HUMAN_TEXT];

    printf("image: %s\nfile format: %s\n", text_of(info, "filename"), text_of(info, "format"));
    printf("virtual size: %s (%llu bytes)\n", human_size(size, buf), (unsigned long long)size);
    printf("disk size: %s\n", json_object_get(info, "actual-size")
           ? human_size((uint64_t)int_of(info, "actual-size"), buf) : "unavailable");
    if (int_of(info, "cluster-size"))
        printf("cluster_size: %lld\n", (long long)int_of(info, "cluster-size"));
    if (backing) {
        printf("backing file: %s", backing);
        if (strcmp(backing, full) != 0)
            printf(" (actual path: %s)", full);
        putchar('\n');
    }
    if (json_is_true(json_object_get(info, "dirty-flag")))
        printf("cleanly shut down: no\n");
    if (text_of(info, "backing-filename-format"))
        printf("backing file format: %s\n", text_of(info, "backing-filename-format"));
    print_snapshot_list(json_object_get(info, "snapshots"));
    print_specific(json_object_get(info, "format-specific"));
}

int cmd_info(int argc, char **argv)
{
    struct info_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
        { "format", 'f', CLI_TEXT, &c.open.format, "FORMAT",
          "raw or qcow2; by the name's ending unless given" },
        { "chain", 0, CLI_FLAG, &c.chain, NULL, "also the images that it stands on" },
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
        print_image(json_array_get(list, i));
    }
    return cli_end_output(command.name);
}
