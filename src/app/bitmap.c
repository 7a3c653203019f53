/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint bitmap: the dirty bitmaps inside a qcow2 image that no other process has
 * open, with the options of qemu-img bitmap.
 */
#include "app/cli.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "block/dirty.h"
#include "block/graph.h"
#include <stdio.h>

struct bitmap_command {
    const char *path, *format, *name;
    bool add, remove, clear, enable, disable;
    struct cli_list merge;
    const char *source, *source_format;
    uint64_t granularity;        /* bytes; 0: the default */
    struct err err;
};

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

static int co_bitmap(void *arg)
{
    struct bitmap_command *c = arg;
    const struct open_file_opts o = { .filename = c->path, .format = "qcow2", .no_backing = true };
    struct node *n = co_node_open_file(&o, &c->err);

    if (!n && image_is_locked_by_others(&c->err))
        err_set(&c->err, c->err.code, "'%s' is open in another process: end that first, or ask "
                "its daemon by QMP (block-dirty-bitmap-...)", c->path);
    if (!n)
        return c->err.code;
    if (!co_change(c, n) || !co_dirty_bitmaps_store(n, &c->err))
        err_prefix(&c->err, "'%s': ", c->path);
    co_node_unref(n);
    return c->err.code;
}

/* ---- the command --------------------------------------------------------------- */

static bool is_qcow2(struct bitmap_command *c, const char *path, const char *given)
{
    const char *format = image_format_to_read(path, given, &c->err);

    return format && (strcmp(format, "qcow2") == 0 ||
                      err_set(&c->err, -EINVAL, "'%s' is a %s image: only qcow2 images have dirty "
                              "bitmaps inside", path, format));
}

/* What is wrong with what was asked for; NULL: nothing. */
static const char *misuse(const struct bitmap_command *c)
{
    bool changes = c->clear || c->enable || c->disable || c->merge.n;

    if (!c->add && !c->remove && !changes)
        return "say what to do: --add, --remove, --clear, --enable, --disable or --merge";
    if (c->remove && (c->add || changes))
        return "--remove goes with nothing else";
    if (c->enable && c->disable)
        return "--enable and --disable are opposites";
    if (c->source && !c->merge.n)
        return "--source-file is for --merge";
    return c->granularity && !c->add ? "--granularity is for --add" : NULL;
}

int cmd_bitmap(int argc, char **argv)
{
    struct bitmap_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
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
        { "source-file", 'b', CLI_TEXT, &c.source, "IMAGE",
          "with --merge: the image that has the SOURCE bitmaps" },
        { "source-format", 'F', CLI_TEXT, &c.source_format, "FORMAT", "its format: qcow2" },
        { "format", 'f', CLI_TEXT, &c.format, "FORMAT",
          "qcow2, for a file whose name does not say so" },
        { 0 },
    };
    const struct cli_command command = {
        "bitmap", "IMAGE NAME", 2, 2,
        "Change a dirty bitmap inside a qcow2 image, which must not be in use. With several\n"
        "options, first it is added, then cleared, then merged into, then enabled or disabled.\n"
        "'stillpoint info' lists the bitmaps of an image.",
        options,
        "  stillpoint bitmap --add -g 64k disk.qcow2 monday\n"
        "  stillpoint bitmap --merge monday --clear disk.qcow2 week",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    if (misuse(&c))
        return cli_misuse(command.name, "%s", misuse(&c));
    c.path = argv[first];
    c.name = argv[first + 1];
    if (!is_qcow2(&c, c.path, c.format) ||
        (c.source && !is_qcow2(&c, c.source, c.source_format)) ||
        offline_run(co_bitmap, &c, &c.err) < 0)
        return cli_fail(command.name, &c.err);
    return EXIT_OK;
}
