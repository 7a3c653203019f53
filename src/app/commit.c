/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint commit: what an overlay has goes down into an image that it stands on.
 *
 * The order makes every moment a good one: while content goes down, the overlay hides
 * what it overwrites, so the disk that the overlay is reads the same all the time; and
 * the overlay is emptied only when all of it is on the disk below (docs/crash-safety.md,
 * I-C2). With --base it is not, as with qemu-img (docs/tools/qemu-img.rst, "commit").
 */
#include "app/commit.h"
#include "app/chain.h"
#include "app/cli.h"
#include "app/follow_bitmaps.h"
#include "app/human.h"
#include "app/sweep.h"
#include "app/offline.h"
#include "base/mem.h"
#include "block/dirty.h"
#include "drivers/qcow2/empty.h"
#include <stdio.h>

struct commit_command {
    const char *name, *format, *base_name;
    int style;
    bool keep, change_snapshots;
    struct cli_list image_dirs;
    struct err err;

    struct watch watch;
    struct chain chain;
    unsigned base_index;
    struct node *top, *base;
    uint64_t copied;             /* bytes */
    bool begun;                  /* the base may have changed */
};

/* ---- the images ------------------------------------------------------------ */

static bool find_base(struct commit_command *c)
{
    const struct chain *chain = &c->chain;

    if (chain->n < 2)
        return err_set(&c->err, -EINVAL, "'%s' stands on no other image: there is nowhere to "
                       "commit to", c->name);
    c->base_index = 1;
    if (!c->base_name)
        return true;
    for (unsigned i = 1; i < chain->n; i++) {
        if (strcmp(chain->v[i - 1].backing_name, c->base_name) == 0 ||
            chain_same_file(chain->v[i].name, c->base_name)) {
            c->base_index = i;
            return true;
        }
    }
    return err_set(&c->err, -EINVAL, "'%s' does not stand on '%s': 'stillpoint info --chain' "
                   "shows what it stands on", c->name, c->base_name);
}

static bool spare_snapshots(struct commit_command *c)
{
    struct node *n = c->top;

    for (unsigned i = 0; i < c->base_index; i++, n = node_backing(n)) {
        if (!chain_spare_snapshots(n, c->chain.v[i].name, c->change_snapshots, &c->err))
            return false;
    }
    return true;
}

/* The base for writing, what lies between as it is, the overlay for emptying. The ones
 * between are held by those above them. */
static bool co_open_images(struct commit_command *c)
{
    struct node *below = NULL;

    for (unsigned i = c->base_index + 1; i-- > 0;) {
        bool end = i == 0 || i == c->base_index;
        struct node *n = co_chain_open(&c->chain, i, end, below, &c->err);

        if (i + 1 < c->base_index)
            node_unref(below);
        if (!n)
            return false;
        if (i == c->base_index)
            c->base = n;
        below = n;
    }
    c->top = below;
    return spare_snapshots(c) && bitmaps_will_follow(c->top, node_size(c->top), &c->err) &&
           bitmaps_will_follow(c->base, node_size(c->top), &c->err);
}

/* ---- copying --------------------------------------------------------------- */

static int co_find(void *arg, uint64_t off, struct sweep_piece *p)
{
    struct commit_command *c = arg;
    uint64_t size = node_size(c->top);
    struct block_status st;

    for (p->len = 0; off < size; off += st.len) {
        int r = co_node_status_above(c->top, c->base, off, size - off, &st, NULL);

        if (r < 0)
            return r;
        if (!(st.flags & STATUS_ALLOCATED))
            continue;
        p->off = off;
        p->len = MIN(st.len, (uint64_t)SWEEP_PIECE);
        return 0;
    }
    return 0;
}

static int co_do(void *arg, const struct sweep_piece *p)
{
    struct commit_command *c = arg;
    struct block_status st;
    int r = 0;

    for (uint64_t off = p->off, end = p->off + p->len; r == 0 && off < end; off += st.len) {
        r = co_node_status_above(c->top, c->base, off, end - off, &st, NULL);
        if (r < 0)
            return r;
        if (st.flags & STATUS_ZERO) {
            r = co_node_write_zeroes(c->base, off, st.len, REQ_MAY_UNMAP | REQ_BULK);
        } else {
            r = co_node_pread(c->top, off, st.len, p->buf[0], REQ_BULK);
            if (r == 0)
                r = co_node_pwrite(c->base, off, st.len, p->buf[0], REQ_BULK);
        }
        c->copied += st.len;
    }
    return r;
}

static bool co_copy_down(struct commit_command *c)
{
    const struct sweep sweep = {
        .co_find = co_find, .co_do = co_do, .arg = c, .to = node_size(c->top),
        .watch = &c->watch,
    };
    const char *base = c->chain.v[c->base_index].name;
    uint64_t before = node_size(c->base), size = node_size(c->top);
    int r;

    if (before < size && !co_node_resize(c->base, size, &c->err)) {
        err_prefix(&c->err, "'%s' is larger than '%s', which cannot grow: ", c->name, base);
        return false;
    }
    c->begun = true;
    r = co_sweep(&sweep);
    if (r == 0)
        r = co_node_flush(c->base);
    if (r == -ECANCELED)
        return err_set(&c->err, r, "cancelled");
    return r == 0 || err_errno(&c->err, r, "Cannot copy from '%s' to '%s'", c->name, base);
}

/* ---- the end --------------------------------------------------------------- */

static bool co_finish(struct commit_command *c)
{
    /* Over images between, which the base does not match any more, it must not be empty. */
    if (c->keep || c->base_name)
        return true;
    if (strcmp(node_driver_name(c->top), "qcow2") != 0)
        return err_set(&c->err, -ENOTSUP, "'%s' cannot be emptied", c->name);
    return co_qcow2_make_empty(c->top, &c->err);
}

/* What is to be told of the rest is told first. */
static bool co_store_bitmaps(struct commit_command *c, struct node *n, bool ok)
{
    struct err err = ERR_INIT;
    int r = co_node_flush(n);
    bool stored = r < 0 ? err_errno(&err, r, "Cannot flush '%s'", c->name)
                        : co_dirty_bitmaps_store(n, &err);

    if (ok && !stored)
        c->err = err;
    return ok && stored;
}

static int co_commit(void *arg)
{
    struct commit_command *c = arg;
    bool ok = co_chain_list(c->name, c->format, &c->chain, &c->err) && find_base(c) &&
              co_open_images(c) && co_copy_down(c);

    /* Whatever came of it. */
    if (c->begun)
        ok = co_store_bitmaps(c, c->base, ok);
    ok = ok && co_finish(c) && co_store_bitmaps(c, c->top, true);
    co_node_unref(c->top);
    co_node_unref(c->base);
    return ok ? 0 : c->err.code;
}

bool co_commit_down(const char *top, const char *base, struct watch *watch, struct err *err)
{
    CLEANUP(free) struct commit_command *c = xnew(struct commit_command);
    int r;

    *c = (struct commit_command){
        .name = top, .format = "qcow2", .base_name = base, .keep = true, .watch = *watch,
    };
    r = co_commit(c);
    *watch = c->watch;
    chain_done(&c->chain);
    if (r < 0)
        *err = c->err;
    return r == 0;
}

static int tell(struct commit_command *c, int r)
{
    const char *base = c->base_index ? c->chain.v[c->base_index].name : "";
    char buf[HUMAN_TEXT];

    watch_end(&c->watch);
    if (r == -ECANCELED && watch_cancelled(&c->watch)) {
        cli_failf("commit", "Cancelled. '%s' reads as before, and part of it is in '%s' already; "
                  "the same command goes on with it", c->name, base);
        return EXIT_CANCELLED;
    }
    if (r < 0 && c->begun)
        return cli_failf("commit", "%s. '%s' reads as before; part of it may be in '%s' already",
                         c->err.text, c->name, base);
    if (r < 0)
        return cli_fail("commit", &c->err);
    printf("%s: %s went into %s%s\n", c->name, human_size(c->copied, buf), base,
           c->keep || c->base_name ? ", and it stays as it was" : ", and it is empty now");
    return cli_end_output("commit");
}

int cmd_commit(int argc, char **argv)
{
    struct commit_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
        { "format", 'f', CLI_TEXT, &c.format, "FORMAT",
          "raw or qcow2; by the name's ending unless given" },
        { "base", 0, CLI_TEXT, &c.base_name, "BASE",
          "commit into this one of the images that it stands on, and all between too; IMAGE stays "
          "as it is (--keep). The one right below unless given" },
        { "keep", 'd', CLI_FLAG, &c.keep, NULL, "leave IMAGE as it is, do not empty it" },
        CLI_CHANGE_SNAPSHOTS(&c.change_snapshots),
        CLI_PROGRESS(&c.style),
        CLI_IMAGE_DIR(&c.image_dirs),
        { 0 },
    };
    const struct cli_command command = {
        "commit", "IMAGE", 1, 1,
        "Write what an overlay has down into the image that it stands on, which grows if it\n"
        "is shorter, and empty the overlay. Nobody may have them open. What other images\n"
        "stand on the changed one, or on those between, is of no use afterwards.",
        options,
        "  stillpoint commit overlay.qcow2\n"
        "  stillpoint commit --base disk.raw top.qcow2",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.name = argv[first];
    if (!cli_allow_image_dirs(&c.image_dirs, &c.err) ||
        !watch_begin(&c.watch, c.style, c.name, &c.err))
        return cli_fail(command.name, &c.err);
    status = tell(&c, offline_run(co_commit, &c, &c.err));
    chain_done(&c.chain);
    return status;
}
