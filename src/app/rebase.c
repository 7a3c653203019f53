/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint rebase: another backing file for an overlay. Where the old one and the new
 * one read differently and the overlay has nothing of its own, it gets what the old one
 * has, so that the disk reads the same as before.
 *
 * The order makes every moment a good one: what is copied is what the disk reads as
 * anyway, and the header names the new backing file only when all of it is on the disk
 * (docs/crash-safety.md, I-C1).
 */
#include "app/chain.h"
#include "app/cli.h"
#include "app/follow_bitmaps.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "app/sweep.h"
#include "base/mem.h"
#include "block/dirty.h"
#include "drivers/qcow2/rename.h"
#include <limits.h>
#include <stdio.h>

struct rebase_command {
    const char *name, *format;
    const char *backing;         /* as it is to stand in the header; "": none */
    const char *backing_format;  /* NULL: by the name */
    int style;
    bool unsafe, change_snapshots;
    struct cli_list image_dirs;
    struct err err;

    struct watch watch;
    char *path;                  /* of the new backing file; NULL: none */
    uint64_t unit;               /* bytes that the overlay has or has not: a (sub)cluster */
    struct node *overlay, *new;  /* references; new NULL: none */
    struct node *old;            /* borrowed from the overlay; NULL: none */
    struct node *old_common, *new_common;   /* the same image in both chains; NULL: none */
    uint64_t copied;             /* bytes */
};

/* ---- what both chains have in common --------------------------------------- */

/* What is under a node in the end: equal for two nodes over the same file. */
static const char *storage(struct node *n)
{
    while (n->file)
        n = edge_node(n->file);
    return n->storage_id;
}

static struct node *next_below(struct node *n)
{
    return node_backing(node_skip_filters(n));
}

/* What neither chain has above an image that both have need not be read. */
static void find_common(struct rebase_command *c)
{
    for (struct node *a = c->old; a; a = next_below(a)) {
        for (struct node *b = c->new; b; b = next_below(b)) {
            const char *sa = storage(a), *sb = storage(b);

            if (sa && sb && strcmp(sa, sb) == 0 &&
                strcmp(node_driver_name(a), node_driver_name(b)) == 0) {
                c->old_common = a;
                c->new_common = b;
                return;
            }
        }
    }
}

/* ---- copying --------------------------------------------------------------- */

static uint64_t size_of(struct node *n)
{
    return n ? node_size(n) : 0;
}

/* What a chain (down to but without @base) says of [off, off + *len), which is cut to
 * what it says it of. Behind its end, and where there is none, it is zero. */
static int co_look(struct node *n, struct node *base, uint64_t off, uint64_t *len,
                   unsigned *ret_flags)
{
    struct block_status st;
    int r;

    *ret_flags = STATUS_ALLOCATED | STATUS_ZERO;
    if (off >= size_of(n))
        return 0;
    r = co_node_status_above(n, base, off, MIN(*len, node_size(n) - off), &st, NULL);
    if (r < 0)
        return r;
    *len = st.len;
    *ret_flags = st.flags;
    return 0;
}

/* Whether [off, off + *len) reads the same in both chains, as far as can be told
 * without reading. */
static int co_is_same(struct rebase_command *c, uint64_t off, uint64_t *len, bool *ret)
{
    unsigned a, b;
    int r = 0;

    *ret = false;
    if (c->old_common) {
        r = co_look(c->old, c->old_common, off, len, &a);
        if (r == 0)
            r = co_look(c->new, c->new_common, off, len, &b);
        if (r < 0)
            return r;
        *ret = !((a | b) & STATUS_ALLOCATED);
        if (*ret)
            return 0;
    }
    r = co_look(c->old, NULL, off, len, &a);
    if (r == 0)
        r = co_look(c->new, NULL, off, len, &b);
    *ret = r == 0 && (a & b & STATUS_ZERO);
    return r;
}

/* The next range that the overlay leaves to its backing file, before @end: *ret_len,
 * 0: none. */
static int co_next_open(struct rebase_command *c, uint64_t *off, uint64_t end, uint64_t *ret_len)
{
    struct block_status st;

    for (*ret_len = 0; *off < end; *off += st.len) {
        int r = co_node_status(c->overlay, *off, end - *off, &st);

        if (r < 0)
            return r;
        if (!(st.flags & STATUS_ALLOCATED)) {
            *ret_len = st.len;
            return 0;
        }
    }
    return 0;
}

/* Where the old chain ends, in whole units of the overlay. */
static uint64_t end_of_old(const struct rebase_command *c)
{
    return MIN(align_up(size_of(c->old), c->unit), node_size(c->overlay));
}

static int co_find(void *arg, uint64_t off, struct sweep_piece *p)
{
    struct rebase_command *c = arg;
    uint64_t end = end_of_old(c), begin, len, step;
    bool same;

    p->len = 0;
    for (;; off += step) {
        int r = co_next_open(c, &off, end, &len);

        if (r < 0 || !len)
            return r;
        step = len;
        r = co_is_same(c, off, &step, &same);
        if (r < 0)
            return r;
        if (same)
            continue;
        /* Whole units, as far as the overlay has nothing of its own in it; also when
         * their first part is the same. */
        begin = align_down(off, c->unit);
        p->off = begin;
        p->len = MIN(MIN(align_up(off + step, c->unit), off + len) - begin,
                     (uint64_t)SWEEP_PIECE);
        return 0;
    }
}

static int co_read_padded(struct node *n, uint64_t off, uint64_t len, uint8_t *buf)
{
    uint64_t have = off < size_of(n) ? MIN(len, node_size(n) - off) : 0;

    memset(buf + have, 0, len - have);
    return have ? co_node_pread(n, off, have, buf, REQ_BULK) : 0;
}

enum content { SAME, ZERO, DATA };

static enum content judge(const uint8_t *old, const uint8_t *new, uint64_t len)
{
    if (memcmp(old, new, len) == 0)
        return SAME;
    return mem_is_zero(old, len) ? ZERO : DATA;
}

/* The disk reads as before: nothing is dirty by it. */
#define REBASE_FLAGS (REQ_BULK | REQ_WRITE_UNCHANGED)

static int co_write_run(struct rebase_command *c, enum content what, uint64_t off, uint64_t len,
                        const uint8_t *buf)
{
    if (what == SAME)
        return 0;
    c->copied += len;
    if (what == ZERO)
        return co_node_write_zeroes(c->overlay, off, len, REBASE_FLAGS | REQ_MAY_UNMAP);
    return co_node_pwrite(c->overlay, off, len, buf, REBASE_FLAGS);
}

static int co_do(void *arg, const struct sweep_piece *p)
{
    struct rebase_command *c = arg;
    uint8_t *old = p->buf[0], *new = p->buf[1];
    uint64_t at = 0, step;
    int r = co_read_padded(c->old, p->off, p->len, old);

    if (r == 0)
        r = co_read_padded(c->new, p->off, p->len, new);
    while (r == 0 && at < p->len) {
        uint64_t from = at;
        enum content what, next = SAME;

        /* Units of one kind together. */
        for (what = SAME; at < p->len; at += step) {
            step = MIN(c->unit - ((p->off + at) & (c->unit - 1)), p->len - at);
            next = judge(old + at, new + at, step);
            if (at == from)
                what = next;
            else if (next != what)
                break;
        }
        r = co_write_run(c, what, p->off + from, at - from, old + from);
    }
    return r;
}

/* ---- behind the end of the old chain --------------------------------------- */

static int co_find_zeros(void *arg, uint64_t off, struct sweep_piece *p)
{
    struct rebase_command *c = arg;
    uint64_t end = MIN(node_size(c->overlay), size_of(c->new)), len, step;
    unsigned flags;

    p->len = 0;
    for (;; off += step) {
        int r = co_next_open(c, &off, end, &len);

        if (r < 0 || !len)
            return r;
        step = len;
        r = co_look(c->new, NULL, off, &step, &flags);
        if (r < 0)
            return r;
        if (flags & STATUS_ZERO)
            continue;
        /* Whole units: what is written of one fills the rest of it from the new chain. One
         * that begins in a range which the overlay leaves open ends in it. */
        p->off = align_down(off, c->unit);
        p->len = MIN(align_up(off + step, c->unit), node_size(c->overlay)) - p->off;
        p->len = MIN(p->len, (uint64_t)SWEEP_PIECE);
        return 0;
    }
}

static int co_do_zeros(void *arg, const struct sweep_piece *p)
{
    struct rebase_command *c = arg;

    c->copied += p->len;
    return co_node_write_zeroes(c->overlay, p->off, p->len, REBASE_FLAGS | REQ_MAY_UNMAP);
}

/* ---- the images ------------------------------------------------------------ */

/* The overlay, over @backing if @over, else over what it names (or over nothing at all). */
static struct node *co_open_overlay(struct rebase_command *c, bool over, struct node *backing,
                                    bool no_backing)
{
    const struct open_file_opts o = {
        .filename = c->name, .format = c->format, .unmap = true, .no_backing = no_backing,
    };
    CLEANUP(json_decref) json_t *json = node_json_for_file(&o, &c->err);

    if (!json)
        return NULL;
    if (over)
        json_object_set_new(json, "backing", json_string(node_name(backing)));
    return co_open_json_to_change(json, c->name, &c->err);
}

static bool co_open_new(struct rebase_command *c)
{
    const struct open_file_opts o = {
        .filename = c->path, .format = c->backing_format, .read_only = true,
    };

    if (!c->path)
        return true;
    c->new = co_open_to_change(&o, &c->err);
    if (!c->new) {
        err_prefix(&c->err, "The new backing file: ");
        return false;
    }
    if (node_uses_file(c->new, c->name))
        return err_set(&c->err, -EINVAL, "'%s' stands on '%s': they cannot stand on each other",
                       c->path, c->name);
    return true;
}

/* A raw data file reads as the disk does, so nothing may show through. */
static bool may_stand(struct rebase_command *c)
{
    CLEANUP(json_decref) json_t *specific = node_format_info(c->overlay);
    bool raw = json_is_true(json_object_get(json_object_get(specific, "data"), "data-file-raw"));

    return !c->path || !raw ||
           err_set(&c->err, -ENOTSUP, "'%s' has a raw data file: such images stand on nothing",
                   c->name);
}

static bool hint_unsafe(struct rebase_command *c)
{
    CLEANUP(free) char *why = xstrdup(c->err.text);

    return err_set(&c->err, -ENOENT, "%s. If what it stood on was only moved or renamed, say "
                   "--unsafe", why);
}

static bool co_open_images(struct rebase_command *c)
{
    CLEANUP(free) struct node_info *ni = xnew(struct node_info);

    if (!co_open_new(c))
        return false;
    c->overlay = co_open_overlay(c, false, NULL, false);
    if (!c->overlay)
        return c->err.code == -ENOENT ? hint_unsafe(c) : false;
    if (!may_stand(c) ||
        !chain_spare_snapshots(c->overlay, c->name, c->change_snapshots, &c->err))
        return false;
    node_get_info(c->overlay, ni);
    c->unit = chain_has_subclusters(c->overlay) ? ni->cluster_size / 32 : ni->cluster_size;
    c->old = node_backing(c->overlay);
    find_common(c);
    return bitmaps_will_follow(c->overlay, node_size(c->overlay), &c->err);
}

/* ---- the command ----------------------------------------------------------- */

static bool told(struct rebase_command *c, int r)
{
    if (r == -ECANCELED)
        return err_set(&c->err, r, "cancelled");
    return r == 0 || err_errno(&c->err, r, "Cannot copy into '%s'", c->name);
}

static bool co_copy(struct rebase_command *c)
{
    struct sweep sweep = {
        .co_find = co_find, .co_do = co_do, .arg = c, .to = node_size(c->overlay),
        .watch = &c->watch,
    };
    uint64_t end = end_of_old(c);
    int r = co_sweep(&sweep);

    if (r == 0)
        r = co_node_flush(c->overlay);
    if (r < 0 || end >= MIN(node_size(c->overlay), size_of(c->new)))
        return told(c, r);

    /* Over the old chain the driver knows that nothing is needed there to read as zero.
     * Over the new one it is, and since the old one has ended nothing else can show. */
    if (!co_dirty_bitmaps_store(c->overlay, &c->err))
        return false;
    co_node_unref(MOVE(c->overlay));
    c->overlay = co_open_overlay(c, true, c->new, false);
    if (!c->overlay)
        return false;
    sweep.co_find = co_find_zeros;
    sweep.co_do = co_do_zeros;
    sweep.from = end;
    r = co_sweep(&sweep);
    if (r == 0)
        r = co_node_flush(c->overlay);
    return told(c, r);
}

/* Whatever came of it; what is to be told is told first. */
static bool co_store_bitmaps(struct rebase_command *c, bool ok)
{
    struct err err = ERR_INIT;
    bool stored = !c->overlay || co_dirty_bitmaps_store(c->overlay, &err);

    if (ok && !stored)
        c->err = err;
    return ok && stored;
}

static int co_rebase(void *arg)
{
    struct rebase_command *c = arg;
    bool ok;

    if (c->unsafe) {
        c->overlay = co_open_overlay(c, false, NULL, true);
        ok = c->overlay && may_stand(c);
    } else {
        ok = co_open_images(c) && co_copy(c);
        ok = co_store_bitmaps(c, ok);
    }
    ok = ok && co_qcow2_rename_backing(c->overlay, c->path ? c->backing : NULL,
                                       c->path ? c->backing_format : NULL, &c->err);
    co_node_unref(c->overlay);
    co_node_unref(c->new);
    return ok ? 0 : c->err.code;
}

/* What can be said before anything is opened. -1: go on. */
static int settle(struct rebase_command *c)
{
    c->format = image_format_to_read(c->name, c->format, &c->err);
    if (!c->format)
        return cli_fail("rebase", &c->err);
    if (strcmp(c->format, "qcow2") != 0)
        return cli_failf("rebase", "'%s' is a raw image, which stands on nothing", c->name);
    if (!c->backing)
        return cli_misuse("rebase", "on what? Say --backing FILE, or --backing '' for nothing");
    if (!*c->backing) {
        if (c->backing_format)
            return cli_misuse("rebase", "--backing-format without a backing file");
        return -1;
    }
    if (image_name_is_uri(c->backing))
        return cli_misuse("rebase", "'%s' is not a file", c->backing);
    c->path = image_path_beside(c->name, c->backing);
    c->backing_format = image_format_to_read(c->path, c->backing_format, &c->err);
    if (!c->backing_format)
        return cli_failf("rebase", "The backing file '%s' looks like a qcow2 image, but its name "
                         "does not say so: say --backing-format", c->path);
    return -1;
}

static int tell(struct rebase_command *c, int r)
{
    char buf[HUMAN_TEXT];

    watch_end(&c->watch);
    if (r == -ECANCELED && watch_cancelled(&c->watch)) {
        cli_failf("rebase", "Cancelled. '%s' reads as before and stands on what it stood on; the "
                  "same command goes on with it", c->name);
        return EXIT_CANCELLED;
    }
    if (r < 0)
        return cli_fail("rebase", &c->err);
    printf("%s: stands on %s now", c->name, c->path ? c->backing : "nothing");
    if (!c->unsafe)
        printf(", %s came from what it stood on", human_size(c->copied, buf));
    putchar('\n');
    return cli_end_output("rebase");
}

int cmd_rebase(int argc, char **argv)
{
    struct rebase_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
        { "backing", 'b', CLI_TEXT, &c.backing, "FILE",
          "the image to stand on, as IMAGE is to name it; '' for none: IMAGE gets all it needs" },
        { "backing-format", 'F', CLI_TEXT, &c.backing_format, "FORMAT",
          "of FILE: raw or qcow2; by the name's ending unless given" },
        { "format", 'f', CLI_TEXT, &c.format, "FORMAT", "of IMAGE: qcow2" },
        { "unsafe", 'u', CLI_FLAG, &c.unsafe, NULL,
          "only write the name into IMAGE: for a backing file that was moved or renamed" },
        CLI_CHANGE_SNAPSHOTS(&c.change_snapshots),
        CLI_PROGRESS(&c.style),
        CLI_IMAGE_DIR(&c.image_dirs),
        { 0 },
    };
    const struct cli_command command = {
        "rebase", "IMAGE --backing FILE", 1, 1,
        "Let an overlay stand on another image. It reads the same afterwards: where the two\n"
        "backing files differ, what the old one has is copied into it. Nobody may have it open.",
        options,
        "  stillpoint rebase top.qcow2 --backing base.qcow2\n"
        "  stillpoint rebase top.qcow2 --backing ''\n"
        "  stillpoint rebase top.qcow2 --unsafe --backing moved/base.qcow2",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.name = argv[first];
    status = settle(&c);
    if (status < 0 && (!cli_allow_image_dirs(&c.image_dirs, &c.err) ||
                       !watch_begin(&c.watch, c.style, c.name, &c.err)))
        status = cli_fail(command.name, &c.err);
    if (status < 0)
        status = tell(&c, offline_run(co_rebase, &c, &c.err));
    free(c.path);
    return status;
}
