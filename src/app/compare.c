/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint compare: whether two images read the same. Words and exit status
 * are those of qemu-img compare (QEMU docs/tools/qemu-img.rst, "compare"):
 * 0 equal, 1 different, above that it could not be told: 2 for opening, 3 for what is
 * allocated, 4 for reading.
 */
#include "app/cli.h"
#include "app/offline.h"
#include "base/mem.h"
#include <stdio.h>

#define COMPARE_STEP (2 * MiB)
enum { CANNOT_OPEN = 2, CANNOT_TELL_STATUS = 3, CANNOT_READ = 4 };

struct compare_side {
    struct offline_open open;
    struct node *node;
    uint8_t *buf;
    struct block_status status;
};

struct compare_command {
    struct compare_side a, b;
    bool strict;
    bool differ;
    int trouble;                 /* exit status for when it could not be told */
    struct err err;
};

static bool side_failed(struct compare_command *c, const struct compare_side *s, int r,
                        uint64_t off, int trouble)
{
    c->trouble = trouble;
    return err_errno(&c->err, r, trouble == CANNOT_READ
                     ? "'%s': cannot read at offset %llu"
                     : "'%s': cannot tell what is at offset %llu", s->open.name,
                     (unsigned long long)off);
}

static int differ_at(struct compare_command *c, uint64_t off)
{
    printf("Content mismatch at offset %llu!\n", (unsigned long long)off);
    c->differ = true;
    return 0;
}

static bool co_read_side(struct compare_command *c, struct compare_side *s, uint64_t off,
                         uint64_t len)
{
    int r = 0;

    if (s->status.flags & STATUS_ZERO)
        memset(s->buf, 0, len);
    else
        r = co_node_pread(s->node, off, len, s->buf, REQ_BULK);
    return r < 0 ? side_failed(c, s, r, off, CANNOT_READ) : true;
}

static bool co_status_side(struct compare_command *c, struct compare_side *s, uint64_t off,
                           uint64_t len)
{
    int r = co_node_status_above(s->node, NULL, off, len, &s->status, NULL);

    return r < 0 ? side_failed(c, s, r, off, CANNOT_TELL_STATUS) : true;
}

static uint64_t first_difference(const uint8_t *a, const uint8_t *b)
{
    uint64_t i = 0;

    while (a[i] == b[i])
        i++;
    return i;
}

static uint64_t first_nonzero(const uint8_t *p)
{
    uint64_t i = 0;

    while (!p[i])
        i++;
    return i;
}

/* Compare the part that both have. */
static int co_compare_common(struct compare_command *c, uint64_t size)
{
    const unsigned layout = STATUS_DATA | STATUS_ZERO | STATUS_ALLOCATED;
    struct compare_side *a = &c->a, *b = &c->b;

    for (uint64_t off = 0, len; off < size; off += len) {
        if (!co_status_side(c, a, off, size - off) || !co_status_side(c, b, off, size - off))
            return c->err.code;
        len = MIN(a->status.len, b->status.len);
        if (c->strict && (a->status.flags ^ b->status.flags) & layout) {
            printf("Strict mode: Offset %llu block status mismatch!\n", (unsigned long long)off);
            c->differ = true;
            return 0;
        }
        if (a->status.flags & b->status.flags & STATUS_ZERO)
            continue;
        len = MIN(len, COMPARE_STEP);
        if (!co_read_side(c, a, off, len) || !co_read_side(c, b, off, len))
            return c->err.code;
        if (memcmp(a->buf, b->buf, len) != 0)
            return differ_at(c, off + first_difference(a->buf, b->buf));
    }
    return 0;
}

/* What only the longer one has must read as zero. */
static int co_compare_rest(struct compare_command *c, struct compare_side *s, uint64_t off)
{
    for (uint64_t size = node_size(s->node), len; off < size; off += len) {
        if (!co_status_side(c, s, off, size - off))
            return c->err.code;
        len = s->status.len;
        if (s->status.flags & STATUS_ZERO)
            continue;
        len = MIN(len, COMPARE_STEP);
        if (!co_read_side(c, s, off, len))
            return c->err.code;
        if (!mem_is_zero(s->buf, len))
            return differ_at(c, off + first_nonzero(s->buf));
    }
    return 0;
}

static int co_compare_nodes(struct compare_command *c)
{
    uint64_t a = node_size(c->a.node), b = node_size(c->b.node);
    int r;

    if (a != b) {
        printf(c->strict ? "Strict mode: Image size mismatch!\n"
                         : "Warning: Image size mismatch!\n");
        if (c->strict) {
            c->differ = true;
            return 0;
        }
    }
    r = co_compare_common(c, MIN(a, b));
    if (r < 0 || c->differ || a == b)
        return r;
    return co_compare_rest(c, a > b ? &c->a : &c->b, MIN(a, b));
}

static int co_compare(void *arg)
{
    struct compare_command *c = arg;
    int r = -ENOMEM;

    c->a.node = co_offline_open(&c->a.open, &c->err);
    if (!c->a.node)
        return c->err.code;
    c->b.node = co_offline_open(&c->b.open, &c->err);
    c->a.buf = try_alloc_aligned(COMPARE_STEP);
    c->b.buf = try_alloc_aligned(COMPARE_STEP);
    if (!c->b.node)
        r = c->err.code;
    else if (!c->a.buf || !c->b.buf)
        err_set(&c->err, r, "out of memory");
    else
        r = co_compare_nodes(c);
    free(c->a.buf);
    free(c->b.buf);
    co_node_unref(c->b.node);
    co_node_unref(c->a.node);
    return r;
}

int cmd_compare(int argc, char **argv)
{
    struct compare_command c = { .trouble = CANNOT_OPEN, .err = ERR_INIT };
    struct cli_list image_dirs = { 0 };
    bool force_share = false;
    const struct cli_option options[] = {
        { "format-a", 'f', CLI_TEXT, &c.a.open.format, "FORMAT",
          "of A: raw or qcow2; by the name's ending unless given" },
        { "format-b", 'F', CLI_TEXT, &c.b.open.format, "FORMAT", "of B" },
        { "snapshot-a", 'l', CLI_TEXT, &c.a.open.snapshot, "NAME",
          "A as it was at this snapshot inside it (name or id)" },
        { "snapshot-b", 'L', CLI_TEXT, &c.b.open.snapshot, "NAME", "the same for B" },
        { "strict", 's', CLI_FLAG, &c.strict, NULL,
          "sizes and what is allocated must be equal too" },
        { "force-share", 'U', CLI_FLAG, &force_share, NULL,
          "although another process may be writing them" },
        CLI_IMAGE_DIR(&image_dirs),
        { 0 },
    };
    const struct cli_command command = {
        "compare", "A B", 2, 2,
        "Compare what two images, of any formats, read as. The exit status is 0 if they are\n"
        "equal, 1 if they differ, 2 to 4 if that could not be told. A longer one is equal if what\n"
        "it has more is zero.",
        options, "  stillpoint compare disk.qcow2 monday.qcow2",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.a.open.name = argv[first];
    c.b.open.name = argv[first + 1];
    c.a.open.force_share = c.b.open.force_share = force_share;
    if (!cli_allow_image_dirs(&image_dirs, &c.err) || offline_run(co_compare, &c, &c.err) < 0) {
        cli_fail(command.name, &c.err);
        return c.trouble;
    }
    if (!c.differ)
        puts("Images are identical.");
    if (cli_end_output(command.name) != EXIT_OK)
        return CANNOT_OPEN;
    return c.differ;
}
