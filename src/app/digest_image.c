/* SPDX-License-Identifier: Apache-2.0
 *
 * Two sweeps: over what the image holds of the disk, then over its file. Pieces are hashed
 * side by side and put into the file of digests in order, each waiting for its turn.
 */
#include "app/digest_image.h"
#include "app/digest_work.h"
#include "app/offline.h"
#include "base/mem.h"
#include "loop/co_sync.h"
#include "set/digest_chain.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the second buffer of a piece. */
struct note {
    uint64_t turn;
    bool zero;                           /* not to be read */
    struct set_digest_value v[PIECE_LEAVES];
};

struct making {
    const struct digest_image *d;
    struct node *node;
    int fd;                              /* of the image file */
    uint64_t size;                       /* of what is swept */
    uint64_t changed_end;                /* the leaf with it has changed for the disk was resized;
                                          * UINT64_MAX: none */
    struct set_digest_writer *to;

    uint64_t taken, turn;                /* pieces found; the one that may be written */
    struct waitq turns;
    bool failed;
    struct err *err;
};

static int failed_at(struct making *m, int r, uint64_t off)
{
    if (!m->failed)
        err_errno(m->err, r, "'%s' cannot be read back at offset %llu of %s", m->d->image,
                  (unsigned long long)off, m->node ? "its disk" : "the file");
    m->failed = true;
    waitq_wake_all(&m->turns);
    return r;
}

/* Wait until all pieces before this one are written. */
static int co_await_turn(struct making *m, const struct note *note)
{
    while (!m->failed && m->turn != note->turn)
        co_waitq_wait(&m->turns);
    return m->failed ? -ECANCELED : 0;
}

static void end_turn(struct making *m)
{
    m->turn++;
    waitq_wake_all(&m->turns);
}

/* ---- the disk --------------------------------------------------------------------------- */

static int co_find_leaves(void *arg, uint64_t off, struct sweep_piece *p)
{
    struct making *m = arg;
    struct note *note = (struct note *)p->buf[1];
    struct held h;
    int r = co_find_held(m->node, off, m->d->n_parents > 0, &h);

    if (r < 0)
        return failed_at(m, r, off);
    if (off <= m->changed_end && (!h.len || h.off > m->changed_end) &&
        m->changed_end != UINT64_MAX)
        h = (struct held){ false, m->changed_end,
                           set_leaf_bytes(m->size, m->changed_end / SET_LEAF) };
    p->off = h.off;
    p->len = h.len;
    note->zero = h.zero;
    if (h.len)
        note->turn = m->taken++;
    return 0;
}

static int co_do_leaves(void *arg, const struct sweep_piece *p)
{
    struct making *m = arg;
    struct note *note = (struct note *)p->buf[1];
    uint64_t n = div_round_up(p->len, SET_LEAF);
    int r;

    if (note->zero)
        memset(note->v, 0, sizeof(note->v));
    else {
        r = co_node_pread(m->node, p->off, p->len, p->buf[0], REQ_BULK);
        if (r < 0)
            return failed_at(m, r, p->off);
        co_digest_leaves(p->buf[0], p->len, note->v);
    }
    r = co_await_turn(m, note);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < n; i++) {
        /* A full need not say what is zero. */
        if (m->d->n_parents || !set_digest_is_zero(&note->v[i]))
            set_digest_writer_leaf(m->to, p->off / SET_LEAF + i, &note->v[i]);
    }
    end_turn(m);
    return 0;
}

/* ---- the file ------------------------------------------------------------------------- */

static int co_find_chunks(void *arg, uint64_t off, struct sweep_piece *p)
{
    struct making *m = arg;
    struct note *note = (struct note *)p->buf[1];

    p->off = off;
    p->len = MIN(m->size - off, PIECE_CHUNKS * SET_CHUNK);
    if (p->len)
        note->turn = m->taken++;
    return 0;
}

static int co_do_chunks(void *arg, const struct sweep_piece *p)
{
    struct making *m = arg;
    struct note *note = (struct note *)p->buf[1];
    int r = co_digest_chunks(m->fd, p->off, p->len, p->buf[0], note->v);

    if (r < 0)
        return failed_at(m, r, p->off);
    r = co_await_turn(m, note);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < div_round_up(p->len, SET_CHUNK); i++)
        set_digest_writer_chunk(m->to, &note->v[i]);
    end_turn(m);
    return 0;
}

/* ---- both --------------------------------------------------------------------------------- */

static bool co_run_sweep(struct making *m, int (*co_find)(void *, uint64_t, struct sweep_piece *),
                         int (*co_do)(void *, const struct sweep_piece *))
{
    const struct sweep s = {
        .co_find = co_find, .co_do = co_do, .arg = m, .to = m->size, .watch = m->d->watch,
    };
    int r;

    m->taken = m->turn = 0;
    r = co_sweep(&s);
    if (r == -ECANCELED && !m->failed)
        return err_set(m->err, r, "cancelled");
    if (r < 0 && !m->failed)
        return err_errno(m->err, r, "'%s'", m->d->image);
    return r == 0;
}

/* Where the disk got another size in the middle of a leaf, that leaf has changed. */
static bool find_changed_end(struct making *m)
{
    struct set_digest_file *parent;
    uint64_t before, end;

    m->changed_end = UINT64_MAX;
    if (!m->d->n_parents)
        return true;
    parent = set_digest_file_open(m->d->parents[0], m->err);
    if (!parent)
        return false;
    before = set_digest_file_size(parent);
    end = MIN(before, m->size);
    if (before != m->size && !is_aligned(end, SET_LEAF))
        m->changed_end = align_down(end, SET_LEAF);
    set_digest_file_free(parent);
    return true;
}

static bool co_make_leaves(struct making *m)
{
    const struct offline_open o = { .name = m->d->image, .format = "qcow2" };
    bool ok;

    m->node = co_offline_open(&o, m->err);
    if (!m->node)
        return false;
    m->size = node_size(m->node);
    m->to = set_digest_writer_new(m->d->to, m->size, m->err);
    ok = m->to && find_changed_end(m) && co_run_sweep(m, co_find_leaves, co_do_leaves);
    co_node_unref(m->node);
    m->node = NULL;
    return ok;
}

static bool co_make_chunks(struct making *m)
{
    struct stat st;
    bool ok = false;

    m->fd = open(m->d->image, O_RDONLY | O_CLOEXEC);
    if (m->fd < 0 || fstat(m->fd, &st) < 0)
        err_errno(m->err, -errno, "'%s'", m->d->image);
    else {
        m->size = (uint64_t)st.st_size;
        ok = co_run_sweep(m, co_find_chunks, co_do_chunks) &&
             set_digest_writer_end(m->to, m->size, m->err);
    }
    if (m->fd >= 0)
        close(m->fd);
    return ok;
}

static bool make_root(const struct digest_image *d, struct set_digest_value *ret,
                      struct err *err)
{
    CLEANUP(free) const char **paths = xcalloc(d->n_parents + 1, sizeof(*paths));
    CLEANUP(set_digest_chain_free) struct set_digest_chain *chain = NULL;

    paths[0] = d->to;
    for (size_t i = 0; i < d->n_parents; i++)
        paths[i + 1] = d->parents[i];
    chain = set_digest_chain_open(paths, d->n_parents + 1, err);
    return chain && set_digest_chain_root(chain, ret, err);
}

bool co_digest_image(const struct digest_image *d, struct set_digest_value *ret_root,
                     struct err *err)
{
    struct making m = { .d = d, .err = err };
    bool ok;

    static_assert(sizeof(struct note) <= SWEEP_PIECE, "it fits into a buffer");
    waitq_init(&m.turns);
    ok = co_make_leaves(&m) && co_make_chunks(&m);
    set_digest_writer_free(m.to);
    if (ok && !make_root(d, ret_root, err)) {
        (void)unlink(d->to);
        ok = false;
    }
    return ok;
}
