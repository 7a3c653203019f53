/* SPDX-License-Identifier: Apache-2.0
 *
 * Four looks at an image. Each goes on where another has found something: who has to choose
 * what to save wants to know all of it.
 */
#include "app/verify_image.h"
#include "app/digest_work.h"
#include "block/graph.h"
#include "base/mem.h"
#include "drivers/qcow2/check.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the second buffer of a piece: what the digests should be, and are. */
struct expected {
    struct set_digest_value want[PIECE_LEAVES], is[PIECE_LEAVES];
};

struct verifying {
    struct verify_image *v;
    char *path;
    struct set_digest_file *digests;     /* NULL: of no use */
    bool digests_sound;

    /* Of a sweep. */
    uint64_t base, size;
    int fd;
    struct node *node;
    struct set_digest_chain *chain;
    struct set_digest_run own;           /* of .digests, at or behind what was looked at */

    uint64_t bad_off, bad_len;           /* an extent that grows, and is told when it ends */
    const char *bad_of;
    struct err err;
};

/* ---- what is found ------------------------------------------------------------------- */

static void found(struct verifying *w, const char *file, const char *what)
{
    const struct verify_finding f = { .image = w->v->image, .file = file, .what = what };

    w->v->found(w->v->arg, &f);
}

static void end_extent(struct verifying *w)
{
    const bool disk = w->bad_of && strcmp(w->bad_of, "disk") == 0;
    const struct verify_finding f = {
        .image = w->v->image, .file = w->v->image->disk->file, .extent_of = w->bad_of,
        .off = w->bad_off, .len = w->bad_len,
        .what = disk ? "the disk does not read as it did when the backup was made"
                     : "the file is not what it was when the backup was made",
    };

    if (w->bad_len)
        w->v->found(w->v->arg, &f);
    w->bad_len = 0;
}

/* Pieces come side by side: neighbours are often told together, not always. */
static void found_extent(struct verifying *w, const char *of, uint64_t off, uint64_t len)
{
    if (w->bad_len && w->bad_of == of && w->bad_off + w->bad_len == off) {
        w->bad_len += len;
        return;
    }
    end_extent(w);
    w->bad_of = of;
    w->bad_off = off;
    w->bad_len = len;
}

/* ---- its structure --------------------------------------------------------------------- */

static void hear_check(void *ctx, const char *line)
{
    struct verifying *w = ctx;

    found(w, w->v->image->disk->file, line);
}

static bool check_cancelled(void *ctx)
{
    struct verifying *w = ctx;

    return !watch_step(w->v->watch, w->v->base, w->v->total);
}

static bool co_check_structure(struct verifying *w, struct err *err)
{
    const struct open_file_opts o = {
        .filename = w->path, .format = "file", .read_only = true,
    };
    const struct qcow2_check_opts check = {
        .tell = hear_check, .cancelled = check_cancelled, .ctx = w,
    };
    struct qcow2_check_result result = { 0 };
    struct err why = ERR_INIT;
    struct node *file = co_node_open_file(&o, &why);

    if (file && co_qcow2_check(file, &check, &result, &why)) {
        if ((result.corruptions || result.leaks || result.check_errors))
            found(w, w->v->image->disk->file, "its structure is not sound");
    } else if (why.code == -ECANCELED) {
        co_node_unref(file);
        return err_set(err, -ECANCELED, "cancelled");
    } else
        found(w, w->v->image->disk->file, why.text);
    co_node_unref(file);
    return true;
}

/* ---- its digests ------------------------------------------------------------------------- */

static void check_root(struct verifying *w)
{
    const struct set_image *im = w->v->image;
    CLEANUP(set_digest_chain_free) struct set_digest_chain *chain =
        set_image_digests(w->v->catalog, im, &w->err);
    struct set_digest_value root, want;

    if (!chain || !set_digest_chain_root(chain, &root, &w->err))
        found(w, im->disk->digest.file, w->err.text);
    else if (!set_digest_parse(im->disk->digest.root, &want) || !set_digest_equal(&root, &want))
        found(w, im->disk->digest.file, "it does not come to the root digest in the manifest");
}

static void check_digests(struct verifying *w)
{
    const struct set_disk *d = w->v->image->disk;
    CLEANUP(free) char *path = NULL;

    if (!d->has_digest) {
        found(w, d->file, "it has no digests: what it holds cannot be verified");
        return;
    }
    path = set_path(w->v->catalog, d->digest.file);
    w->digests = set_digest_file_open(path, &w->err);
    w->digests_sound = w->digests && set_digest_file_check(w->digests, &w->err);
    if (!w->digests_sound) {
        found(w, d->digest.file, w->err.text);
        return;
    }
    check_root(w);
}

/* ---- its file ----------------------------------------------------------------------------- */

static int co_find_chunks(void *arg, uint64_t at, struct sweep_piece *p)
{
    struct verifying *w = arg;
    struct expected *e = (struct expected *)p->buf[1];
    uint64_t off = at - w->base, n;

    p->off = at;
    p->len = MIN(w->size - off, PIECE_CHUNKS * SET_CHUNK);
    n = div_round_up(p->len, SET_CHUNK);
    return !n || set_digest_file_chunks(w->digests, off / SET_CHUNK, n, e->want, &w->err)
           ? 0 : w->err.code;
}

static int co_do_chunks(void *arg, const struct sweep_piece *p)
{
    struct verifying *w = arg;
    struct expected *e = (struct expected *)p->buf[1];
    uint64_t off = p->off - w->base;
    int r = co_digest_chunks(w->fd, off, p->len, p->buf[0], e->is);

    for (uint64_t i = 0, at = 0; at < p->len; i++, at += SET_CHUNK) {
        if (r < 0 || !set_digest_equal(&e->want[i], &e->is[i]))
            found_extent(w, "file", off + at, MIN(SET_CHUNK, p->len - at));
    }
    w->v->bytes += p->len;
    return 0;
}

/* Run a sweep; false: it was cancelled, or there is no memory. */
static bool co_run(struct verifying *w, const struct sweep *s, struct err *err)
{
    int r = co_sweep(s);

    end_extent(w);
    if (r == -ECANCELED || r == -ENOMEM)
        return err_errno(err, r, "'%s'", w->path);
    if (r < 0)
        found(w, w->v->image->disk->file, w->err.text[0] ? w->err.text : strerror(-r));
    return true;
}

static bool co_check_file(struct verifying *w, struct err *err)
{
    const struct sweep s = {
        .co_find = co_find_chunks, .co_do = co_do_chunks, .arg = w, .from = w->v->base,
        .to = w->v->total, .watch = w->v->watch,
    };
    struct stat st;
    bool ok = true;

    w->fd = open(w->path, O_RDONLY | O_CLOEXEC);
    if (w->fd < 0 || fstat(w->fd, &st) < 0)
        found(w, w->v->image->disk->file, strerror(errno));
    else {
        w->base = w->v->base;
        w->size = MIN((uint64_t)st.st_size, set_digest_file_image_bytes(w->digests));
        if ((uint64_t)st.st_size != set_digest_file_image_bytes(w->digests))
            found(w, w->v->image->disk->file, "the file is not as long as it was");
        ok = co_run(w, &s, err);
    }
    if (w->fd >= 0)
        close(w->fd);
    return ok;
}

/* ---- its disk ---------------------------------------------------------------------------- */

/* The leaf at or behind @leaf that the digests of this image say something about. */
static bool own_leaf(struct verifying *w, uint64_t leaf, uint64_t *ret)
{
    while (w->own.n && w->own.first + w->own.n <= leaf) {
        if (!set_digest_file_next(w->digests, &w->own, &w->err))
            return false;
    }
    *ret = w->own.n ? MAX(w->own.first, leaf) : UINT64_MAX;
    return true;
}

/* The next leaves that the image holds, or has digests of. */
static int co_find_leaves(void *arg, uint64_t at, struct sweep_piece *p)
{
    struct verifying *w = arg;
    struct expected *e = (struct expected *)p->buf[1];
    uint64_t off = at - w->base, own;
    struct held h;
    int r = co_find_held(w->node, off, true, &h);

    if (r < 0)
        return r;
    if (!own_leaf(w, div_round_up(off, SET_LEAF), &own))
        return w->err.code;
    if (own != UINT64_MAX && (!h.len || own * SET_LEAF < h.off)) {
        uint64_t end = h.len ? h.off : w->size;

        h.off = own * SET_LEAF;
        h.len = MIN(MIN(end, (w->own.first + w->own.n) * SET_LEAF) - h.off,
                    (uint64_t)SWEEP_PIECE);
    }
    p->off = w->base + h.off;
    p->len = h.len;
    return !h.len || set_digest_chain_read(w->chain, h.off / SET_LEAF,
                                           div_round_up(h.len, SET_LEAF), e->want, &w->err)
           ? 0 : w->err.code;
}

static int co_do_leaves(void *arg, const struct sweep_piece *p)
{
    struct verifying *w = arg;
    struct expected *e = (struct expected *)p->buf[1];
    uint64_t off = p->off - w->base;
    int r = co_node_pread(w->node, off, p->len, p->buf[0], REQ_BULK);

    if (r >= 0)
        co_digest_leaves(p->buf[0], p->len, e->is);
    for (uint64_t i = 0, at = 0; at < p->len; i++, at += SET_LEAF) {
        if (r < 0 || !set_digest_equal(&e->want[i], &e->is[i]))
            found_extent(w, "disk", off + at, MIN(SET_LEAF, p->len - at));
    }
    w->v->bytes += p->len;
    return 0;
}

static bool co_check_disk(struct verifying *w, struct err *err)
{
    const struct set_image *im = w->v->image;
    const struct sweep s = {
        .co_find = co_find_leaves, .co_do = co_do_leaves, .arg = w,
        .from = w->v->base + set_digest_file_image_bytes(w->digests), .to = w->v->total,
        .watch = w->v->watch,
    };
    bool ok = true;

    w->base = s.from;
    w->err = (struct err)ERR_INIT;
    w->chain = set_image_digests(w->v->catalog, im, &w->err);
    w->node = w->chain ? co_set_image_open(w->v->catalog, im, &w->err) : NULL;
    if (w->node) {
        w->size = node_size(w->node);
        ok = !set_digest_file_next(w->digests, &w->own, &w->err) || co_run(w, &s, err);
    } else
        found(w, im->disk->file, w->err.text);
    co_node_unref(w->node);
    set_digest_chain_free(w->chain);
    return ok;
}

/* ---- all ----------------------------------------------------------------------------------- */

uint64_t verify_image_work(const struct set_catalog *c, const struct set_image *im)
{
    CLEANUP(free) char *path = set_path(c, im->disk->file);
    struct stat st;

    return im->disk->size + (stat(path, &st) == 0 ? (uint64_t)st.st_size : 0);
}

bool co_verify_image(struct verify_image *v, struct err *err)
{
    struct verifying w = { .v = v, .path = set_path(v->catalog, v->image->disk->file),
                           .err = ERR_INIT };
    bool ok;

    static_assert(sizeof(struct expected) <= SWEEP_PIECE, "it fits into a buffer");
    if (v->image->broken)
        found(&w, v->image->disk->file, v->image->broken);
    check_digests(&w);
    ok = co_check_structure(&w, err);
    if (ok && w.digests_sound)
        ok = co_check_file(&w, err) && co_check_disk(&w, err);
    set_digest_file_free(w.digests);
    free(w.path);
    return ok;
}
