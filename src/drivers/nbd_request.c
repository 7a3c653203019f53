/* SPDX-License-Identifier: Apache-2.0
 *
 * Requests to an NBD server. A request is sent by its own coroutine, which sleeps
 * until the keeper has read the reply; it is sent again when the connection was
 * lost and another came in time.
 */
#include "drivers/nbd.h"
#include "base/iov.h"
#include "base/mem.h"

/* How much one look-up of status asks for: bounded, because a server may answer
 * with an extent for each block, of which only EXTENT_CACHE_MAX are kept. */
#define LOOK_AHEAD_MIN MiB
#define LOOK_AHEAD_MAX GiB

enum command_type { CMD_READ, CMD_WRITE, CMD_ZERO, CMD_TRIM, CMD_FLUSH, CMD_STATUS };

struct command {
    enum command_type type;
    void *buf;
    uint64_t off, len;
    uint32_t flags;          /* LIBNBD_CMD_FLAG_ */
    struct looking *look;    /* CMD_STATUS */
};

/* What a look-up of status has brought. */
struct looking {
    const struct nbd_state *s;
    struct extent_fill fill;
    bool more;               /* than there was room for */
};

void nbd_request_done(struct nbd_request *rq, int error)
{
    list_del(&rq->link);
    rq->s->n_in_flight--;
    rq->done = true;
    rq->error = error;
    co_wake(rq->co);
}

static int on_done(void *arg, int *error)
{
    nbd_request_done(arg, *error);
    return 1;                /* libnbd may forget it */
}

static int on_extents(void *arg, const char *context, uint64_t off, uint32_t *entries, size_t n,
                      int *error)
{
    struct looking *l = arg;

    if (strcmp(context, l->s->context) != 0)
        return 0;
    for (size_t i = 0; i + 1 < n && !l->more; i += 2) {
        bool hole = entries[i + 1] & LIBNBD_STATE_HOLE;
        bool zero = entries[i + 1] & LIBNBD_STATE_ZERO;
        /* Another context's bits stand for themselves, as in QEMU: dirty is "no data". */
        bool nothing = hole && (zero || l->s->context_chosen);

        l->more = !extent_fill_add(&l->fill, entries[i], (zero ? STATUS_ZERO : 0) |
                                                         (nothing ? 0 : STATUS_DATA));
    }
    return 0;
}

/* Hand a command to libnbd. It may have ended with the connection already, and then
 * what the call gives is read from freed memory (libnbd 1.14): rq->done tells. */
static int64_t try_issue(struct nbd_handle *h, const struct command *c, struct nbd_request *rq)
{
    nbd_completion_callback done = { .callback = on_done, .user_data = rq };
    nbd_extent_callback extents = { .callback = on_extents, .user_data = c->look };

    switch (c->type) {
    case CMD_READ:
        return nbd_aio_pread(h, c->buf, c->len, c->off, done, c->flags);
    case CMD_WRITE:
        return nbd_aio_pwrite(h, c->buf, c->len, c->off, done, c->flags);
    case CMD_ZERO:
        return nbd_aio_zero(h, c->len, c->off, done, c->flags);
    case CMD_TRIM:
        return nbd_aio_trim(h, c->len, c->off, done, c->flags);
    case CMD_FLUSH:
        return nbd_aio_flush(h, done, c->flags);
    case CMD_STATUS:
        extent_fill_restart(&c->look->fill);
        c->look->more = false;
        return nbd_aio_block_status(h, c->len, c->off, extents, done, c->flags);
    }
    return -1;
}

static bool issue(struct nbd_state *s, const struct command *c, struct nbd_request *rq)
{
    rq->done = false;
    list_push_tail(&s->in_flight, &rq->link);
    s->n_in_flight++;
    if (LIKELY(try_issue(s->h, c, rq) >= 0) || rq->done)
        return true;
    list_del(&rq->link);
    s->n_in_flight--;
    return false;
}

static int co_command(struct nbd_state *s, const struct command *c)
{
    struct nbd_request rq = { .s = s, .co = co_self() };
    uint64_t cancels = s->cancels;

    for (;;) {
        if (UNLIKELY(s->link != NBD_UP)) {
            int r = co_nbd_link_wait(s, cancels);

            if (r < 0)
                return r;
        }
        if (UNLIKELY(!issue(s, c, &rq))) {
            int error = nbd_get_errno();

            nbd_link_check(s);
            if (s->link == NBD_UP)
                return error ? -error : -EIO;
            continue;
        }
        nbd_link_check(s);
        co_suspend();
        if (LIKELY(rq.error != ENOTCONN))
            return -rq.error;
        if (s->cancels != cancels)
            return -ECANCELED;
    }
}

/* Of an export whose size is no multiple of its block size: what of the last block
 * exists. */
static uint64_t existing(const struct node *n, uint64_t off, uint64_t len)
{
    return MIN(len, n->size - off);
}

/* ---- the driver's operations --------------------------------------------------- */

int co_nbd_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                  unsigned flags)
{
    CLEANUP(free) void *bounce = NULL;
    struct command c = { .type = CMD_READ, .off = off, .len = existing(n, off, len) };

    c.buf = iov[0].iov_base;
    if (niov > 1 || c.len < len) {
        c.buf = bounce = try_alloc_aligned(len);
        if (!bounce)
            return -ENOMEM;
    }

    int r = co_command(n->state, &c);

    if (r == 0 && bounce) {
        iov_from_buf(iov, niov, 0, bounce, c.len);
        iov_zero(iov, niov, c.len, len - c.len);
    }
    return r;
}

int co_nbd_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                   unsigned flags)
{
    struct nbd_state *s = n->state;
    CLEANUP(free) void *bounce = NULL;
    struct command c = {
        .type = CMD_WRITE,
        .buf = iov[0].iov_base,
        .off = off,
        .len = existing(n, off, len),
        .flags = flags & REQ_FUA ? LIBNBD_CMD_FLAG_FUA : 0,
    };

    if (niov > 1) {
        c.buf = bounce = try_alloc_aligned(len);
        if (!bounce)
            return -ENOMEM;
        iov_to_buf(bounce, iov, niov, 0, len);
    }

    int r = co_command(s, &c);

    if (r == 0 && !(flags & REQ_FUA))
        s->writes++;
    extent_cache_forget(&s->extents, off, len, STATUS_DATA);
    return r;
}

int co_nbd_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags)
{
    struct nbd_state *s = n->state;
    struct command c = {
        .type = CMD_ZERO,
        .off = off,
        .len = existing(n, off, len),
        .flags = (flags & REQ_FUA ? LIBNBD_CMD_FLAG_FUA : 0) |
                 (flags & REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
                 (flags & REQ_NO_FALLBACK ? LIBNBD_CMD_FLAG_FAST_ZERO : 0),
    };

    if (!s->facts.can_zero || ((flags & REQ_NO_FALLBACK) && !s->facts.can_fast_zero))
        return -ENOTSUP;

    int r = co_command(s, &c);

    if (r == 0 && !(flags & REQ_FUA))
        s->writes++;
    extent_cache_forget(&s->extents, off, len, 0);
    return r;
}

int co_nbd_discard(struct node *n, uint64_t off, uint64_t len)
{
    struct nbd_state *s = n->state;
    struct command c = { .type = CMD_TRIM, .off = off, .len = existing(n, off, len) };

    if (!s->facts.can_trim)
        return -ENOTSUP;

    int r = co_command(s, &c);

    extent_cache_forget(&s->extents, off, len, 0);
    return r;
}

/* A server without the command keeps nothing back (as every client assumes). */
int co_nbd_flush(struct node *n)
{
    struct nbd_state *s = n->state;
    struct command c = { .type = CMD_FLUSH };
    uint64_t writes = s->writes;

    if (s->facts.can_flush) {
        int r = co_command(s, &c);

        if (r < 0)
            return r;
    }
    if (s->writes_lost)
        return -EIO;
    s->flushed = MAX(s->flushed, writes);
    return 0;
}

static int co_look_up(struct node *n, uint64_t off, uint64_t len, uint64_t *ret_len,
                      unsigned *ret_flags)
{
    struct nbd_state *s = n->state;
    struct looking l = { .s = s };
    struct command c = {
        .type = CMD_STATUS,
        .off = off,
        .len = existing(n, off, align_up(s->look_ahead, n->limits.request_align)),
        .look = &l,
    };

    extent_fill_begin(&s->extents, &l.fill, off, n->limits.request_align, n->size);

    int r = co_command(s, &c);

    if (r < 0) {
        l.fill.n = 0;
    } else if (l.fill.n) {
        uint64_t covered = l.fill.extents[l.fill.n - 1].end - off;

        *ret_len = l.fill.extents[0].end - off;
        *ret_flags = l.fill.extents[0].flags;
        if (l.more)
            s->look_ahead = MAX(covered, LOOK_AHEAD_MIN);
        else if (l.fill.n < EXTENT_CACHE_MAX / 4)
            s->look_ahead = MIN(2 * s->look_ahead, LOOK_AHEAD_MAX);
    } else {
        *ret_len = len;      /* the server said nothing: that counts as data */
        *ret_flags = STATUS_DATA;
    }
    extent_fill_end(&s->extents, &l.fill);
    return r;
}

int co_nbd_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret)
{
    struct nbd_state *s = n->state;
    uint64_t known = len;
    unsigned flags = STATUS_DATA;

    if (s->facts.has_status && !extent_cache_find(&s->extents, off, &known, &flags)) {
        int r = co_look_up(n, off, len, &known, &flags);

        if (r < 0)
            return r;
    }
    if (off + known >= n->size)
        known = len;
    *ret = (struct block_status){
        .flags = flags | STATUS_ALLOCATED | STATUS_OFFSET,
        .len = MIN(known, len),
        .host_off = off,
        .file = n,
    };
    return 0;
}
