/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint resize: another size for an image.
 */
#include "app/chain.h"
#include "app/cli.h"
#include "app/follow_bitmaps.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "app/preallocate.h"
#include "base/mem.h"
#include "block/dirty.h"
#include <ctype.h>
#include <stdio.h>

struct resize_command {
    const char *name, *format;
    bool shrink;
    int preallocation;
    char sign;                   /* '+', '-', or 0: the size itself */
    uint64_t amount;             /* bytes */
    uint64_t before, after;
    bool left_larger;            /* it did not get its space, and is larger all the same */
    int style;                   /* of progress */
    struct watch watch;
    struct cli_list image_dirs;
    struct err err;
};

/* ---- how large ------------------------------------------------------------- */

static bool parse_size(struct resize_command *c, const char *text)
{
    c->sign = *text == '+' || *text == '-' ? *text++ : 0;
    return schema_parse_size(text, &c->amount, &c->err);
}

static bool settle_size(struct resize_command *c, bool qcow2)
{
    uint64_t size = c->amount;

    if (c->sign == '+' && __builtin_add_overflow(c->before, c->amount, &size))
        size = UINT64_MAX;
    if (c->sign == '-' && c->amount > c->before)
        return err_set(&c->err, -EINVAL, "'%s' has %llu bytes: it cannot be %llu smaller", c->name,
                       (unsigned long long)c->before, (unsigned long long)c->amount);
    if (c->sign == '-')
        size = c->before - c->amount;
    /* Disks in qcow2 images are of whole sectors; as qemu-img, not less than was asked. */
    if (size <= INT64_MAX - 511 && qcow2)
        size = align_up(size, 512);
    if (size > INT64_MAX)
        return err_set(&c->err, -EFBIG, "'%s': more than an image can have", c->name);
    if (size < c->before && !c->shrink)
        return err_set(&c->err, -EINVAL, "'%s' has %llu bytes, and what lies behind the new end of "
                       "%llu would be lost: if that is meant, say --shrink", c->name,
                       (unsigned long long)c->before, (unsigned long long)size);
    if (size < c->before && c->preallocation)
        return err_set(&c->err, -EINVAL, "--preallocation is for images that grow");
    c->after = size;
    return true;
}

static bool may_have_size(struct resize_command *c, struct node *n)
{
    if (!bitmaps_will_follow(n, c->after, &c->err))
        return false;
    return c->after || !dirty_bitmap_next(n, NULL) ||
           err_set(&c->err, -EINVAL, "'%s' has dirty bitmaps, and a disk without bytes cannot: "
                   "remove them first", c->name);
}

/* ---- doing it -------------------------------------------------------------- */

static bool co_change(struct resize_command *c, struct node *n)
{
    enum image_prealloc how = (enum image_prealloc)c->preallocation;

    if (!preallocation_possible(n, how, &c->err) || !co_node_resize(n, c->after, &c->err))
        return false;
    if (co_preallocate(n, c->before, c->after > c->before ? c->after - c->before : 0, how,
                       &c->watch, &c->err))
        return true;
    /* Not what was asked for: as it was before. */
    c->left_larger = !co_node_resize(n, c->before, NULL);
    return false;
}

static bool co_store(struct resize_command *c, struct node *n, struct err *err)
{
    int r = co_node_flush(n);

    if (r < 0)
        return err_errno(err, r, "Cannot flush '%s'", c->name);
    return co_dirty_bitmaps_store(n, err);
}

static int co_resize(void *arg)
{
    struct resize_command *c = arg;
    const char *format = image_format_to_read(c->name, c->format, &c->err);

    if (!format)
        return c->err.code;

    const struct open_file_opts o = { .filename = c->name, .format = format, .unmap = true };
    bool qcow2 = strcmp(format, "qcow2") == 0;
    struct node *n = co_open_to_change(&o, &c->err);

    if (!n)
        return c->err.code;
    c->before = node_size(n);

    bool begun = settle_size(c, qcow2) && may_have_size(c, n);
    bool ok = begun && co_change(c, n);
    struct err ignored = ERR_INIT;

    /* Whatever size the disk has now: bitmaps of it are as good as they were. */
    if (begun && !co_store(c, n, ok ? &c->err : &ignored))
        ok = false;
    co_node_unref(n);
    return ok ? 0 : c->err.code;
}

static const char *what_is_left(const struct resize_command *c)
{
    return c->left_larger ? "is larger, but not all that was added has its space"
                          : "is as large as it was";
}

/* "-5G" is a size and no option: take it out of @argv. NULL: there is none. */
static const char *take_negative_size(int *argc, char **argv)
{
    for (int i = 1; i < *argc && strcmp(argv[i], "--") != 0; i++) {
        char *word = argv[i];

        if (word[0] == '-' && isdigit((unsigned char)word[1])) {
            memmove(argv + i, argv + i + 1, (size_t)(*argc - i) * sizeof(*argv));
            --*argc;
            return word;
        }
    }
    return NULL;
}

int cmd_resize(int argc, char **argv)
{
    struct resize_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
        { "format", 'f', CLI_TEXT, &c.format, "FORMAT",
          "raw or qcow2; by the name's ending unless given" },
        { "shrink", 0, CLI_FLAG, &c.shrink, NULL,
          "make it smaller, though what lies behind the new end is lost" },
        { "preallocation", 0, CLI_CHOICE, &c.preallocation, NULL,
          "what is added gets its space now", image_preallocs },
        CLI_PROGRESS(&c.style),
        CLI_IMAGE_DIR(&c.image_dirs),
        { 0 },
    };
    const struct cli_command command = {
        "resize", "IMAGE [+|-]SIZE", 1, 2,
        "Give an image, which nobody may have open, another size. What is added reads as\n"
        "zero. A guest has to be told too: partitions and file systems stay as they are, so\n"
        "make those smaller first.",
        options,
        "  stillpoint resize disk.qcow2 +10G\n"
        "  stillpoint resize --shrink disk.raw 5G",
    };
    const char *size = take_negative_size(&argc, argv);
    char before[HUMAN_TEXT], after[HUMAN_TEXT];
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    if (argc - first + !!size != 2)
        return cli_misuse(command.name, "it takes %s", command.operands);
    c.name = argv[first];
    if (!parse_size(&c, size ? size : argv[first + 1]))
        return cli_misuse(command.name, "SIZE: %s", c.err.text);
    if (!cli_allow_image_dirs(&c.image_dirs, &c.err) ||
        !watch_begin(&c.watch, c.style, c.name, &c.err))
        return cli_fail(command.name, &c.err);
    status = offline_run(co_resize, &c, &c.err);
    watch_end(&c.watch);
    if (status == -ECANCELED && watch_cancelled(&c.watch)) {
        cli_failf(command.name, "Cancelled. '%s' %s", c.name, what_is_left(&c));
        return EXIT_CANCELLED;
    }
    if (status < 0 && c.left_larger)
        return cli_failf(command.name, "%s. '%s' %s", c.err.text, c.name, what_is_left(&c));
    if (status < 0)
        return cli_fail(command.name, &c.err);
    printf("%s: %s, it was %s\n", c.name, human_size(c.after, after),
           human_size(c.before, before));
    return cli_end_output(command.name);
}
