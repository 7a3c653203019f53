/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint diff: which extents of a disk changed between two points of a backup set. Only
 * digests are read, no images, so it takes seconds.
 */
#include "app/cli.h"
#include "app/human.h"
#include "app/set_image.h"
#include "base/mem.h"
#include <inttypes.h>
#include <stdio.h>

#define STEP 256U                      /* leaves compared at a time */

struct side {
    const struct set_image *image;
    struct set_digest_chain *digests;
    uint64_t leaves;
    struct set_digest_value v[STEP];
};

struct diff_command {
    const char *dir, *disk;
    bool json;
    struct set_catalog catalog;
    struct side a, b;
    uint64_t size;                     /* of the longer disk */
    uint64_t from, to;                 /* a changed extent that grows: leaves */
    uint64_t changed;                  /* bytes */
    json_t *extents;
    struct err err;
};

static void end_extent(struct diff_command *c)
{
    uint64_t start = c->from * SET_LEAF, len = MIN(c->to * SET_LEAF, c->size) - start;

    if (c->from == c->to)
        return;
    c->changed += len;
    if (c->json)
        json_array_append_new(c->extents, json_pack("{s:I, s:I}", "start", (json_int_t)start,
                                                    "length", (json_int_t)len));
    else
        printf("%-16" PRIu64 " %" PRIu64 "\n", start, len);
    c->from = c->to = 0;
}

static void differs(struct diff_command *c, uint64_t leaf)
{
    if (c->from != c->to && leaf == c->to) {
        c->to++;
        return;
    }
    end_extent(c);
    c->from = leaf;
    c->to = leaf + 1;
}

static bool open_side(struct diff_command *c, struct side *s, const char *at)
{
    const struct set_point *p = set_catalog_find(&c->catalog, at, &c->err);

    s->image = p ? set_image_choose(&c->catalog, p, c->disk, &c->err) : NULL;
    s->digests = s->image ? set_image_trusted_digests(&c->catalog, s->image, &c->err) : NULL;
    if (s->digests)
        s->leaves = set_leaves(set_digest_chain_size(s->digests));
    return s->digests;
}

/* Leaves [leaf, leaf+STEP), zero behind the end. */
static bool read_side(struct side *s, uint64_t leaf, struct err *err)
{
    memset(s->v, 0, sizeof(s->v));
    return leaf >= s->leaves ||
           set_digest_chain_read(s->digests, leaf, MIN(s->leaves - leaf, (uint64_t)STEP), s->v,
                                 err);
}

static bool compare(struct diff_command *c)
{
    uint64_t at = 0, a, b;

    for (;; at += STEP) {
        if (!set_digest_chain_seek(c->a.digests, at, &a, &c->err) ||
            !set_digest_chain_seek(c->b.digests, at, &b, &c->err))
            return false;
        at = MIN(a, b);
        if (at >= MAX(c->a.leaves, c->b.leaves))
            break;
        if (!read_side(&c->a, at, &c->err) || !read_side(&c->b, at, &c->err))
            return false;
        for (unsigned i = 0; i < STEP; i++) {
            if (!set_digest_equal(&c->a.v[i], &c->b.v[i]))
                differs(c, at + i);
        }
    }
    end_extent(c);
    return true;
}

static int finish(struct diff_command *c)
{
    char changed[HUMAN_TEXT], size[HUMAN_TEXT];

    if (c->json)
        return cli_put_json("diff", json_pack(
            "{s:s, s:s, s:s, s:I, s:I, s:I, s:O}", "disk", c->b.image->disk->name, "from",
            c->a.image->point->m.id, "to", c->b.image->point->m.id, "size-from",
            (json_int_t)c->a.image->disk->size, "size-to", (json_int_t)c->b.image->disk->size,
            "changed", (json_int_t)c->changed, "extents", c->extents));
    printf("%s of %s changed\n", human_size(c->changed, changed), human_size(c->size, size));
    return cli_end_output("diff");
}

static int run(struct diff_command *c, char **at)
{
    if (!open_side(c, &c->a, at[0]) || !open_side(c, &c->b, at[1]))
        return cli_fail("diff", &c->err);
    c->size = MAX(c->a.image->disk->size, c->b.image->disk->size);
    c->extents = json_array();
    if (!c->json)
        printf("%-16s %s\n", "Offset", "Length");
    return compare(c) ? finish(c) : cli_fail("diff", &c->err);
}

int cmd_diff(int argc, char **argv)
{
    CLEANUP(free) struct diff_command *c = xnew(struct diff_command);
    const struct cli_option options[] = {
        { "disk", 0, CLI_TEXT, &c->disk, "NAME", "which one, if the points have several" },
        { "json", 0, CLI_FLAG, &c->json, NULL, "for programs" },
        { 0 },
    };
    const struct cli_command command = {
        "diff", "DIR POINT POINT", 3, 3,
        "Show which extents of a disk are not the same at two points of a backup set, in pieces\n"
        "of 64 KiB, by the digests. A point is said by its id or a time.",
        options, "  stillpoint diff /backups/vm 20261201T030000Z 20261202T030000Z",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c->dir = argv[first];
    if (!set_catalog_open(c->dir, &c->catalog, &c->err))
        return cli_fail("diff", &c->err);
    status = run(c, argv + first + 1);
    json_decref(c->extents);
    set_digest_chain_free(c->a.digests);
    set_digest_chain_free(c->b.digests);
    set_catalog_done(&c->catalog);
    return status;
}
