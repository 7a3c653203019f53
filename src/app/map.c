/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint map: where the bytes of an image are. JSON as qemu-img map
 * --output=json has it (QEMU docs/tools/qemu-img.rst, "map").
 */
#include "app/cli.h"
#include "app/offline.h"
#include "base/mem.h"
#include <stdio.h>

struct map_entry {
    uint64_t start;
    struct block_status status;
    unsigned depth;
    char *file;                /* with STATUS_OFFSET: where the bytes are */
};

struct map_command {
    struct offline_open open;
    struct cli_list image_dirs;
    bool json;
    uint64_t from, most;       /* bytes: where to begin, and how many; 0: all */
    bool first;                /* nothing was printed yet */
    struct err err;
};

static void print_json(struct map_command *c, const struct map_entry *e)
{
    unsigned flags = e->status.flags;

    printf("%s{ \"start\": %llu, \"length\": %llu, \"depth\": %u, \"present\": %s, \"zero\": %s, "
           "\"data\": %s, \"compressed\": %s", c->first ? "[" : ",\n",
           (unsigned long long)e->start, (unsigned long long)e->status.len, e->depth,
           flags & STATUS_ALLOCATED ? "true" : "false", flags & STATUS_ZERO ? "true" : "false",
           flags & STATUS_DATA ? "true" : "false", flags & STATUS_COMPRESSED ? "true" : "false");
    if (flags & STATUS_OFFSET)
        printf(", \"offset\": %llu", (unsigned long long)e->status.host_off);
    putchar('}');
}

/* Only what has data, as qemu-img does. */
static void print_row(struct map_command *c, const struct map_entry *e)
{
    char mapped[32] = "compressed";

    if (c->first)
        printf("%-15s %-15s %-15s %s\n", "Offset", "Length", "Mapped to", "File");
    if (!(e->status.flags & STATUS_DATA) || (e->status.flags & STATUS_ZERO))
        return;
    if (e->status.flags & STATUS_OFFSET)
        snprintf(mapped, sizeof(mapped), "%#llx", (unsigned long long)e->status.host_off);
    else if (!(e->status.flags & STATUS_COMPRESSED))
        strcpy(mapped, "-");
    printf("%#-15llx %#-15llx %-15s %s\n", (unsigned long long)e->start,
           (unsigned long long)e->status.len, mapped, e->file ? e->file : "-");
}

static void print_entry(struct map_command *c, struct map_entry *e)
{
    if (!e->status.len)
        return;
    (c->json ? print_json : print_row)(c, e);
    c->first = false;
    free(e->file);
    e->file = NULL;
}

/* Whether @b goes on where @a ends, in every sense. */
static bool continues(const struct map_entry *a, const struct map_entry *b)
{
    return a->status.len && a->status.flags == b->status.flags && a->depth == b->depth &&
           a->status.file == b->status.file &&
           (!(a->status.flags & STATUS_OFFSET) ||
            a->status.host_off + a->status.len == b->status.host_off);
}

static char *name_of(struct node *file)
{
    CLEANUP(free) struct node_info *ni = xnew(struct node_info);

    node_get_info(file, ni);
    return xstrdup(ni->filename);
}

static int co_map_node(struct map_command *c, struct node *n)
{
    uint64_t size = node_size(n);
    struct map_entry whole = { 0 };

    if (c->from > size) {
        err_set(&c->err, -EINVAL, "'%s' has %llu bytes: --start-offset lies behind its end",
                c->open.name, (unsigned long long)size);
        return -EINVAL;
    }
    size = c->most ? MIN(size - c->from, c->most) + c->from : size;
    for (uint64_t off = c->from; off < size;) {
        struct map_entry e = { .start = off };
        int r = co_node_status_above(n, NULL, off, size - off, &e.status, &e.depth);

        if (r < 0) {
            free(whole.file);
            err_errno(&c->err, r, "'%s': cannot tell what is at offset %llu", c->open.name,
                      (unsigned long long)off);
            return r;
        }
        if (!(e.status.flags & STATUS_OFFSET))
            e.status.file = NULL;
        /* What no image holds is said of the last one. */
        if (!(e.status.flags & STATUS_ALLOCATED) && e.depth)
            e.depth--;
        off += e.status.len;
        if (continues(&whole, &e)) {
            whole.status.len += e.status.len;
            continue;
        }
        print_entry(c, &whole);
        whole = e;
        if (e.status.file)
            whole.file = name_of(e.status.file);
    }
    print_entry(c, &whole);
    if (c->json)
        printf("%s]\n", c->first ? "[" : "");
    return 0;
}

static int co_map(void *arg)
{
    struct map_command *c = arg;
    struct node *n = co_offline_open(&c->open, &c->err);

    if (!n)
        return c->err.code;

    int r = co_map_node(c, n);

    co_node_unref(n);
    return r;
}

int cmd_map(int argc, char **argv)
{
    struct map_command c = { .first = true, .err = ERR_INIT };
    const struct cli_option options[] = {
        { "format", 'f', CLI_TEXT, &c.open.format, "FORMAT",
          "raw or qcow2; by the name's ending unless given" },
        { "snapshot", 0, CLI_TEXT, &c.open.snapshot, "NAME",
          "as it was at this snapshot inside it (name or id)" },
        { "json", 0, CLI_FLAG, &c.json, NULL, "for programs, as qemu-img map --output=json" },
        { "start-offset", 's', CLI_SIZE, &c.from, "OFFSET", "begin here" },
        { "max-length", 'l', CLI_SIZE, &c.most, "SIZE", "tell of so many bytes only" },
        { "force-share", 'U', CLI_FLAG, &c.open.force_share, NULL,
          "although another process may be writing it" },
        CLI_IMAGE_DIR(&c.image_dirs),
        { 0 },
    };
    const struct cli_command command = {
        "map", "IMAGE", 1, 1,
        "Show which ranges of an image hold data, and where in which file. With --json also\n"
        "the others: zeros, holes, and how many images down the content comes from.",
        options, "  stillpoint map --json disk.qcow2",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.open.name = argv[first];
    if (!cli_allow_image_dirs(&c.image_dirs, &c.err) || offline_run(co_map, &c, &c.err) < 0)
        return cli_fail(command.name, &c.err);
    return cli_end_output(command.name);
}
