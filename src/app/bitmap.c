/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint bitmap: the dirty bitmaps inside a qcow2 image that no other process has
 * open, with the options of qemu-img bitmap; or with a control socket those of a disk
 * that a daemon serves (bitmap_live.c).
 */
#include "app/bitmap_command.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "block/dirty.h"
#include "block/graph.h"
#include <stdio.h>

/* ---- the steps --------------------------------------------------------------- */

static bool co_add(struct bitmap_command *c, struct node *n)
{
    const struct dirty_bitmap_opts o = {
        .name = c->name, .granularity = (uint32_t)c->granularity, .persistent = true,
        .disabled = c->disable,
    };

    return dirty_bitmap_can_keep(n, &o, &c->err) && dirty_bitmap_add(n, &o, &c->err);
}

static bool clear(struct bitmap_command *c, struct dirty_bitmap *bm)
{
    struct bitmap *row = dirty_bitmap_new_row(bm, &c->err);

    if (!row)
        return false;
    bitmap_free(dirty_bitmap_clear(bm, row));
    return true;
}

static bool merge(struct bitmap_command *c, struct dirty_bitmap *bm, struct node *from)
{
    for (size_t i = 0; i < c->merge.n; i++) {
        struct dirty_bitmap *src = dirty_bitmap_find(from, c->merge.items[i], &c->err);

        if (!src || !dirty_bitmap_check(src, DIRTY_READ_ONLY_OK, &c->err))
            return false;
        if (node_size(from) != node_size(dirty_bitmap_node(bm)))
            return err_set(&c->err, -EINVAL, "Bitmaps are of different sizes (destination size is "
                           "%llu, source size is %llu) and can't be merged",
                           (unsigned long long)node_size(dirty_bitmap_node(bm)),
                           (unsigned long long)node_size(from));
        if (src != bm)
            dirty_bitmap_merge(bm, src);
    }
    return true;
}

static bool co_merge(struct bitmap_command *c, struct dirty_bitmap *bm)
{
    const struct open_file_opts o = {
        .filename = c->source, .format = "qcow2", .read_only = true, .no_backing = true,
    };
    struct node *from = c->source ? co_node_open_file(&o, &c->err)
                                  : node_ref(dirty_bitmap_node(bm));
    bool ok = from && merge(c, bm, from);

    co_node_unref(from);
    return ok;
}

static bool co_remove(struct bitmap_command *c, struct node *n, struct dirty_bitmap *bm)
{
    if (!co_dirty_bitmap_unkeep(n, c->name, &c->err))
        return false;
    dirty_bitmap_remove(bm);
    return true;
}

static bool co_change(struct bitmap_command *c, struct node *n)
{
    struct dirty_bitmap *bm;

    if (c->add && !co_add(c, n))
        return false;
    bm = dirty_bitmap_find(n, c->name, &c->err);
    if (!bm || !dirty_bitmap_check(bm, c->remove ? DIRTY_INCONSISTENT_OK : 0, &c->err))
        return false;
    if (c->remove)
        return co_remove(c, n, bm);
    if ((c->merge.n || c->enable) && !co_dirty_bitmap_outdate(bm, &c->err))
        return false;
    if ((c->clear && !clear(c, bm)) || (c->merge.n && !co_merge(c, bm)))
        return false;
    if (c->enable)
        dirty_bitmap_enable(bm);
    if (c->disable)
        dirty_bitmap_disable(bm);
    return true;
}

/* As query-named-block-nodes tells them. */
static json_t *list(struct node *n)
{
    struct dirty_bitmap *bm = NULL;
    json_t *all = json_array();

    while ((bm = dirty_bitmap_next(n, bm))) {
        json_t *one = json_pack("{s:o, s:I, s:I, s:b, s:b, s:b}", "name",
                                schema_json_str(dirty_bitmap_name(bm)),
                                "count", (json_int_t)dirty_bitmap_count(bm),
                                "granularity", (json_int_t)dirty_bitmap_granularity(bm),
                                "recording", dirty_bitmap_enabled(bm), "busy", 0,
                                "persistent", 1);

        if (dirty_bitmap_inconsistent(bm)) {
            json_object_set_new(one, "inconsistent", json_true());
            json_object_set_new(one, "inconsistent-reason",
                                schema_json_str(dirty_bitmap_inconsistent(bm)));
        }
        json_array_append_new(all, one);
    }
    return all;
}

static int co_bitmap(void *arg)
{
    struct bitmap_command *c = arg;
    const struct open_file_opts o = {
        .filename = c->disk, .format = "qcow2", .no_backing = true, .read_only = c->list,
    };
    struct node *n = co_node_open_file(&o, &c->err);

    if (!n && image_is_locked_by_others(&c->err))
        err_set(&c->err, c->err.code, "'%s' is open in another process: end that first, or have "
                "its daemon do it (--control)", c->disk);
    if (!n)
        return c->err.code;
    if (c->list)
        c->found = list(n);
    else if (!co_change(c, n) || !co_dirty_bitmaps_store(n, &c->err))
        err_prefix(&c->err, "'%s': ", c->disk);
    co_node_unref(n);
    return c->err.code;
}

static bool is_qcow2(struct bitmap_command *c, const char *path, const char *given)
{
    const char *format = image_format_to_read(path, given, &c->err);

    return format && (strcmp(format, "qcow2") == 0 ||
                      err_set(&c->err, -EINVAL, "'%s' is a %s image: only qcow2 images have dirty "
                              "bitmaps inside", path, format));
}

static bool do_to_image(struct bitmap_command *c)
{
    return is_qcow2(c, c->disk, c->format) &&
           (!c->source || is_qcow2(c, c->source, c->source_format)) &&
           offline_run(co_bitmap, c, &c->err) == 0;
}

/* ---- the list ----------------------------------------------------------------------- */

static bool is_true(const json_t *bitmap, const char *key)
{
    return json_is_true(json_object_get(bitmap, key));
}

static void print_state(const json_t *bitmap)
{
    const char *reason = json_string_value(json_object_get(bitmap, "inconsistent-reason"));
    json_int_t over = json_integer_value(json_object_get(bitmap, "over-reported"));
    char too_much[HUMAN_TEXT];

    if (is_true(bitmap, "inconsistent"))
        printf("inconsistent: %s", reason ? reason : "of no use any more");
    else
        printf("%s", is_true(bitmap, "recording") ? "recording" : "disabled");
    printf("%s%s", is_true(bitmap, "persistent") ? "" : ", volatile",
           is_true(bitmap, "busy") ? ", in use" : "");
    human_size((uint64_t)over, too_much);
    if (over)
        printf(", up to %s too much after a power cut", too_much);
    putchar('\n');
}

static void print_bitmap(const json_t *bitmap)
{
    char granule[HUMAN_TEXT], dirty[HUMAN_TEXT];
    json_int_t count = json_integer_value(json_object_get(bitmap, "count"));
    json_int_t granularity = json_integer_value(json_object_get(bitmap, "granularity"));

    human_size((uint64_t)granularity, granule);
    if (is_true(bitmap, "inconsistent"))
        snprintf(dirty, sizeof(dirty), "?");
    else
        human_size((uint64_t)count, dirty);
    printf("%-24s %-12s %-12s ", json_string_value(json_object_get(bitmap, "name")), granule,
           dirty);
    print_state(bitmap);
}

static int put_list(const struct bitmap_command *c)
{
    const json_t *bitmap;
    size_t i;

    if (c->json)
        return cli_put_json("bitmap", json_incref(c->found));
    if (json_array_size(c->found))
        printf("%-24s %-12s %-12s %s\n", "NAME", "GRANULARITY", "DIRTY", "STATE");
    else
        puts("no dirty bitmaps");
    json_array_foreach(c->found, i, bitmap)
        print_bitmap(bitmap);
    return cli_end_output("bitmap");
}

/* ---- the command --------------------------------------------------------------- */

/* What is wrong with what was asked for; NULL: nothing. */
static const char *misuse(const struct bitmap_command *c)
{
    bool merges = c->merge.n, changes = c->clear || c->enable || c->disable || merges;

    if (!c->list && !c->add && !c->remove && !changes)
        return "say what to do: --list, --add, --remove, --clear, --enable, --disable or --merge";
    if (c->list && (c->add || c->remove || changes))
        return "--list goes with nothing else";
    if (c->list ? c->name != NULL : c->name == NULL)
        return c->list ? "--list is for all bitmaps: it takes no NAME" : "which bitmap? Say NAME";
    if (c->json && !c->list)
        return "--json is for --list";
    if (c->remove && (c->add || changes))
        return "--remove goes with nothing else";
    if (c->enable && c->disable)
        return "--enable and --disable are opposites";
    if (c->source && !merges)
        return "--source-file is for --merge";
    if (c->control ? c->format || c->source_format : c->is_volatile)
        return c->control ? "--format and --source-format are for images"
                          : "--volatile is for a disk of a daemon: say --control";
    return (c->granularity || c->is_volatile) && !c->add ? "--granularity and --volatile are for "
                                                           "--add" : NULL;
}

int cmd_bitmap(int argc, char **argv)
{
    struct bitmap_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
        { "list", 0, CLI_FLAG, &c.list, NULL, "tell which there are, and how much is dirty" },
        { "json", 0, CLI_FLAG, &c.json, NULL, "with --list: for programs, as QMP tells them" },
        { "add", 0, CLI_FLAG, &c.add, NULL, "make a new one, which records unless --disable" },
        { "remove", 0, CLI_FLAG, &c.remove, NULL, "remove it, also one that is inconsistent" },
        { "clear", 0, CLI_FLAG, &c.clear, NULL, "nothing is dirty any more" },
        { "merge", 0, CLI_LIST, &c.merge, "SOURCE",
          "what is dirty in bitmap SOURCE is dirty in it too; several times" },
        { "enable", 0, CLI_FLAG, &c.enable, NULL, "record what is written from now on" },
        { "disable", 0, CLI_FLAG, &c.disable, NULL, "do not record" },
        { "granularity", 'g', CLI_SIZE, &c.granularity, "SIZE",
          "with --add: bytes that a bit stands for, a power of 2 from 512 to 2G",
          NULL, DIRTY_GRANULARITY_MAX },
        { "volatile", 0, CLI_FLAG, &c.is_volatile, NULL,
          "with --add: it ends with the daemon, and is kept nowhere" },
        { "source-file", 'b', CLI_TEXT, &c.source, "IMAGE",
          "with --merge: the image, or other disk of the daemon, that has the SOURCE bitmaps" },
        { "source-format", 'F', CLI_TEXT, &c.source_format, "FORMAT", "its format: qcow2" },
        { "format", 'f', CLI_TEXT, &c.format, "FORMAT",
          "qcow2, for a file whose name does not say so" },
        { "control", 0, CLI_TEXT, &c.control, "PATH",
          "the daemon's control socket; $STILLPOINT_CONTROL unless given; '' for none" },
        { 0 },
    };
    const struct cli_command command = {
        "bitmap", "DISK NAME | --list DISK", 1, 2,
        "Change a dirty bitmap. With a control socket DISK is a disk that the daemon there\n"
        "serves, and may be written meanwhile; all that is asked for happens at one instant.\n"
        "Without, it is a qcow2 image that no process has open. With several options, first\n"
        "it is added, then cleared, then merged into, then enabled or disabled.",
        options,
        "  stillpoint bitmap --add -g 64k disk.qcow2 monday\n"
        "  stillpoint bitmap --merge monday --clear disk.qcow2 week\n"
        "  stillpoint bitmap --list disk --control control.sock",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.disk = argv[first];
    c.name = argc - first > 1 ? argv[first + 1] : NULL;
    c.control = cli_control(c.control);
    if (misuse(&c))
        return cli_misuse(command.name, "%s", misuse(&c));
    if (!(c.control ? bitmap_live(&c) : do_to_image(&c)))
        return cli_fail(command.name, &c.err);

    CLEANUP(json_decref) json_t *found = c.found;

    return c.list ? put_list(&c) : EXIT_OK;
}
