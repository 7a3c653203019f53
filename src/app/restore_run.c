/* SPDX-License-Identifier: Apache-2.0
 *
 * A sweep over the disk. A piece is read, hashed by a worker, and written if it is what
 * the digests say; the first that is not ends it.
 */
#include "app/restore_run.h"
#include "app/digest_work.h"
#include "app/offline.h"
#include "base/mem.h"

/* Half a buffer each for the two sides that are compared. */
#define PIECE (SWEEP_PIECE / 2)
#define LEAVES (PIECE / SET_LEAF)

/* In the second buffer of a piece. */
struct note {
    struct set_digest_value want[LEAVES], is[LEAVES];
    bool zero;                         /* the source reads as zero there */
};

struct restoring {
    struct restore *r;
    struct node *source;
    struct set_digest_chain *digests;  /* NULL: there are none */
    bool told;                         /* .err is set */
};

static int fail(struct restoring *w, int code, uint64_t off, uint64_t len, const char *what)
{
    const struct set_image *im = w->r->image;
    CLEANUP(free) char *extent =
        xasprintf("Bytes %llu to %llu of disk '%.100s' at point %s %s", (unsigned long long)off,
                  (unsigned long long)(off + len - 1), im->disk->name, im->point->m.id, what);

    if (!w->told && code == -EBADMSG)
        err_set(&w->r->err, code, "%s: '%s' or what it stands on is damaged; 'stillpoint verify' "
                "tells what is, and which points are good", extent, im->disk->file);
    else if (!w->told)
        err_errno(&w->r->err, code, "%s", extent);
    w->told = true;
    return code;
}

/* ---- what is to be done ----------------------------------------------------------------- */

/* How far the disk is known to be zero from @off on, whole leaves, so that nothing has to be
 * done for a new target; 0: it is not. */
static int co_zeros(struct restoring *w, uint64_t off, uint64_t *ret, bool *ret_zero)
{
    uint64_t size = node_size(w->source), leaf = UINT64_MAX;
    struct block_status st;
    int r = co_node_status_above(w->source, NULL, off, size - off, &st, NULL);

    *ret = 0;
    *ret_zero = false;
    if (r < 0)
        return fail(w, r, off, 1, "cannot be found");
    if (!(st.flags & STATUS_ZERO))
        return 0;
    *ret_zero = off + st.len == size || st.len >= PIECE;
    if (w->r->target.is_zero)
        *ret = off + st.len == size ? st.len : align_down(st.len, SET_LEAF);
    if (*ret && w->digests) {
        if (!set_digest_chain_seek(w->digests, off / SET_LEAF, &leaf, &w->r->err)) {
            w->told = true;
            return w->r->err.code;
        }
        if (leaf < div_round_up(off + *ret, SET_LEAF))
            *ret = leaf * SET_LEAF - off;
    }
    return 0;
}

static int co_find(void *arg, uint64_t off, struct sweep_piece *p)
{
    struct restoring *w = arg;
    struct note *note = (struct note *)p->buf[1];
    uint64_t size = node_size(w->source), zeros = 0;
    int r;

    note->zero = false;
    do {
        off += zeros;
        if (off == size)
            break;
        r = co_zeros(w, off, &zeros, &note->zero);
        if (r < 0)
            return r;
    } while (zeros);
    p->off = off;
    p->len = MIN(size - off, (uint64_t)PIECE);
    if (p->len && w->digests &&
        !set_digest_chain_read(w->digests, off / SET_LEAF, div_round_up(p->len, SET_LEAF),
                               note->want, &w->r->err)) {
        w->told = true;
        return w->r->err.code;
    }
    return 0;
}

/* ---- doing it --------------------------------------------------------------------------- */

static int co_write(struct restoring *w, uint64_t off, uint64_t len, const uint8_t *from)
{
    struct node *to = w->r->target.image;
    bool zero = mem_is_zero(from, len);
    int r = zero ? co_node_write_zeroes(to, off, len, REQ_MAY_UNMAP | REQ_BULK)
                 : co_node_pwrite(to, off, len, from, REQ_BULK);

    if (r < 0)
        return fail(w, r, off, len, "cannot be written to the target");
    w->r->written += len;
    return 0;
}

/* Whether a leaf need not be written. */
static bool is_there(const struct restoring *w, const uint8_t *from, const uint8_t *has,
                     uint64_t n)
{
    return w->r->compare ? memcmp(from, has, n) == 0
                         : w->r->target.is_zero && mem_is_zero(from, n);
}

/* Write what is not there yet, neighbouring leaves of a kind together. */
static int co_write_piece(struct restoring *w, const struct sweep_piece *p)
{
    const uint8_t *from = p->buf[0], *has = p->buf[0] + PIECE;

    for (uint64_t at = 0, end; at < p->len; at = end) {
        uint64_t n = MIN(SET_LEAF, p->len - at);
        bool zero = mem_is_zero(from + at, n);
        int r;

        end = at + n;
        if (is_there(w, from + at, has + at, n))
            continue;
        while (end < p->len && !is_there(w, from + end, has + end, MIN(SET_LEAF, p->len - end)) &&
               mem_is_zero(from + end, MIN(SET_LEAF, p->len - end)) == zero)
            end += MIN(SET_LEAF, p->len - end);
        r = co_write(w, p->off + at, end - at, from + at);
        if (r < 0)
            return r;
    }
    return 0;
}

static int co_read_piece(struct restoring *w, const struct sweep_piece *p)
{
    struct note *note = (struct note *)p->buf[1];
    int r = 0;

    if (note->zero)
        memset(p->buf[0], 0, p->len);
    else {
        r = co_node_pread(w->source, p->off, p->len, p->buf[0], REQ_BULK);
        w->r->read += p->len;
    }
    if (r < 0)
        return fail(w, r, p->off, p->len, "cannot be read");
    if (!w->digests)
        return 0;
    co_digest_leaves(p->buf[0], p->len, note->is);
    for (uint64_t i = 0; i < div_round_up(p->len, SET_LEAF); i++) {
        if (!set_digest_equal(&note->want[i], &note->is[i]))
            return fail(w, -EBADMSG, p->off + i * SET_LEAF,
                        MIN(SET_LEAF, p->len - i * SET_LEAF),
                        "are not what they were when the backup was made");
    }
    return 0;
}

/* Whether the target is known to read as zero there without reading it. */
static bool co_target_is_zero(struct restoring *w, const struct sweep_piece *p)
{
    struct block_status st;

    return co_node_status_above(w->r->target.image, NULL, p->off, p->len, &st, NULL) == 0 &&
           (st.flags & STATUS_ZERO) && st.len == p->len;
}

static int co_do(void *arg, const struct sweep_piece *p)
{
    struct restoring *w = arg;
    const struct note *note = (const struct note *)p->buf[1];
    int r = co_read_piece(w, p);

    if (r >= 0 && w->r->compare && note->zero && co_target_is_zero(w, p))
        return 0;
    if (r >= 0 && w->r->compare) {
        r = co_node_pread(w->r->target.image, p->off, p->len, p->buf[0] + PIECE, REQ_BULK);
        if (r < 0)
            return fail(w, r, p->off, p->len, "cannot be read from the target");
    }
    return r < 0 ? r : co_write_piece(w, p);
}

/* ---- both sides ------------------------------------------------------------------------- */

static bool open_digests(struct restoring *w)
{
    struct restore *r = w->r;

    w->digests = set_image_trusted_digests(r->catalog, r->image, &r->err);
    if (!w->digests && r->err.code == -ENODATA)
        r->unverified = true;
    return w->digests || r->unverified;
}

/* A target that is there has to be of the right size, and say itself what it reads as. */
static bool check_existing(struct restore *r)
{
    struct convert_target *t = &r->target;
    CLEANUP(free) struct node_info *info = xnew(struct node_info);

    if (node_size(t->image) != t->size)
        return err_set(&r->err, -EINVAL, "'%s' has %llu bytes, and the disk %llu: it has to have "
                       "as many", t->name->name, (unsigned long long)node_size(t->image),
                       (unsigned long long)t->size);
    node_get_info(t->image, info);
    return !info->backing_file[0] ||
           err_set(&r->err, -EINVAL, "'%s' stands on another image: what a restore into it would "
                   "leave of that cannot be told; restore to a new file", t->name->name);
}

static bool co_open_both(struct restoring *w)
{
    struct restore *r = w->r;

    if (!open_digests(w))
        return false;
    w->source = co_set_image_open(r->catalog, r->image, &r->err);
    if (!w->source)
        return false;
    r->target.size = node_size(w->source);
    if (node_uses_file(w->source, r->target.name->path))
        return err_set(&r->err, -EINVAL, "'%s' belongs to the backup: choose another target",
                       r->target.name->name);
    return co_convert_target_open(&r->target, &r->err) && check_existing(r);
}

static int co_restore(void *arg)
{
    struct restoring *w = arg;
    struct restore *r = w->r;
    struct sweep s = { .co_find = co_find, .co_do = co_do, .arg = w, .watch = r->target.watch };
    int result = -EINVAL;

    if (co_open_both(w)) {
        s.to = r->target.size;
        r->target.started = true;
        result = co_sweep(&s);
        if (result == 0)
            result = co_node_flush(r->target.image);
        if (result < 0 && !w->told)
            err_errno(&r->err, result, "'%s'", r->target.name->name);
    }
    co_convert_target_close(&r->target);
    co_node_unref(w->source);
    set_digest_chain_free(w->digests);
    return result;
}

bool restore_run(struct restore *r)
{
    struct restoring w = { .r = r };

    static_assert(sizeof(struct note) <= SWEEP_PIECE, "it fits into a buffer");
    return offline_run(co_restore, &w, &r->err) == 0;
}
