/* SPDX-License-Identifier: Apache-2.0
 *
 * Compressed writes: whole guest clusters, packed by the workers and laid back to
 * back into host clusters.
 *
 *     pack it                       in a worker; several at a time
 *     take room for the result      where the last one ended, or in a new cluster
 *     write it                      I-Q1: data is written before
 *     link it                       its L2 entry changes, in memory
 *
 * A host cluster has one reference for each compressed cluster that has a part of
 * it. The cluster that is being filled is *open*: room at its end can be taken. It
 * is closed for good before its last reference can go, so that nothing is laid into
 * a cluster that is on its way to another owner.
 *
 * The guest cluster is not claimed meanwhile: all of it is overwritten, and until
 * the entry changes nobody sees anything of it. Whoever writes to it at the same
 * time comes before or after as a whole.
 */
#include "base/iov.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/range.h"
#include "drivers/qcow2/codec.h"
#include "drivers/qcow2/qcow2.h"
#include "loop/co_io.h"

/* What one packing needs; idle ones are kept for the next. */
struct packer {
    struct list link;
    struct qcow2_codec *codec;
    void *in;                    /* a cluster, for data that is in pieces; NULL until needed */
    uint8_t *out;                /* a cluster */
};

static void packer_free(struct packer *p)
{
    qcow2_codec_free(p->codec);
    free(p->in);
    free(p->out);
    free(p);
}

void qcow2_packers_free(struct qcow2 *s)
{
    struct packer *p;

    while ((p = list_pop_head(&s->packers, struct packer, link)))
        packer_free(p);
}

/* ---- packing: in a worker ------------------------------------------------ */

struct packing {
    struct packer *packer;
    const struct iovec *iov;
    int niov;
    uint64_t len;                /* less than a cluster at the end of the disk */
    size_t cluster;
    enum qcow2_compression type;
    bool zero;                   /* out: there is nothing but zeros */
    uint32_t packed;             /* out: bytes; 0: it does not become smaller */
};

/* The cluster in one piece; what lies behind the end of the disk is zero. */
static const void *flatten(struct packing *p)
{
    if (p->niov == 1 && p->len == p->cluster)
        return p->iov[0].iov_base;
    if (!p->packer->in)
        p->packer->in = try_alloc_aligned(p->cluster);
    if (!p->packer->in)
        return NULL;
    iov_to_buf(p->packer->in, p->iov, p->niov, 0, p->len);
    memset((char *)p->packer->in + p->len, 0, p->cluster - p->len);
    return p->packer->in;
}

static int pack(void *arg)
{
    struct packing *p = arg;
    const void *data = flatten(p);
    int64_t n;

    if (!data)
        return -ENOMEM;
    p->zero = mem_is_zero(data, p->cluster);
    if (p->zero)
        return 0;
    n = qcow2_codec_pack(p->packer->codec, p->type, data, p->cluster, p->packer->out,
                         p->cluster - 1);
    if (n < 0)
        return (int)n;
    p->packed = (uint32_t)n;
    return 0;
}

static struct packer *take_packer(struct qcow2 *s)
{
    struct packer *p = list_pop_head(&s->packers, struct packer, link);

    if (p)
        return p;
    p = xnew(struct packer);
    p->codec = qcow2_codec_new();
    p->out = try_alloc_aligned(s->cluster_size);
    if (p->out)
        return p;
    packer_free(p);
    return NULL;
}

/* ---- room ---------------------------------------------------------------- */

void qcow2_pack_close(struct qcow2 *s, uint64_t first, uint64_t n)
{
    uint64_t open = s->pack_next >> s->geo.cluster_bits;

    if (s->pack_next && open >= first && open - first < n)
        s->pack_next = 0;
}

/* From here on the open cluster is filled up to @end. */
static void fill_up_to(struct qcow2 *s, uint64_t end)
{
    s->pack_next = is_aligned(end, s->cluster_size) ? 0 : end;
}

/* Begin in the open cluster, whose room is enough together with the new cluster
 * @next, if there is one. -ENOSPC: not there. */
static int co_begin_in_open(struct qcow2 *s, uint32_t bytes, const struct qcow2_space *next,
                            uint64_t *ret_host)
{
    for (;;) {
        uint64_t at = s->pack_next, border = align_up(at, s->cluster_size), count;
        int r;

        if (!at || (at + bytes > border && next->host != border))
            return -ENOSPC;
        r = qcow2_ref_more(s, at >> s->geo.cluster_bits);
        if (r == 0) {
            *ret_host = at;
            fill_up_to(s, at + bytes);
            return 0;
        }
        if (r == -ERANGE)        /* others share it, as many as can be counted */
            return -ENOSPC;
        if (r != -EAGAIN)
            return r;
        r = co_qcow2_refcount(s, at >> s->geo.cluster_bits, &count);
        if (r < 0)
            return r;
    }
}

static int co_take_room_locked(struct qcow2 *s, uint32_t bytes, uint64_t *ret_host)
{
    uint64_t at = s->pack_next;
    struct qcow2_space space = { 0 };
    int r = -ENOSPC;

    if (at && at + bytes <= align_up(at, s->cluster_size))
        r = co_begin_in_open(s, bytes, &space, ret_host);
    if (r != -ENOSPC)
        return r;
    r = co_qcow2_alloc(s, 1, &space);
    if (r < 0)
        return r;
    r = co_begin_in_open(s, bytes, &space, ret_host);
    if (r == 0 && align_down(*ret_host + bytes - 1, s->cluster_size) == space.host)
        return 0;
    if (r == -ENOSPC) {
        *ret_host = space.host;
        fill_up_to(s, space.host + bytes);
        return 0;
    }

    /* It fitted after all, because a reference was given up meanwhile; or it failed. */
    int ignored = co_qcow2_unref(s, space.host >> s->geo.cluster_bits, 1);

    (void)ignored;      /* a leak */
    return r;
}

/* Room for @bytes, less than a cluster, with a reference to what it touches. */
static int co_take_room(struct qcow2 *s, uint32_t bytes, uint64_t *ret_host)
{
    int r;

    co_mutex_lock(&s->pack_lock);
    r = co_take_room_locked(s, bytes, ret_host);
    co_mutex_unlock(&s->pack_lock);
    return r;
}

static void co_give_back_room(struct qcow2 *s, uint64_t host, uint32_t bytes)
{
    uint64_t first = host >> s->geo.cluster_bits;
    uint64_t last = (host + bytes - 1) >> s->geo.cluster_bits;

    if (s->write_ready) {
        int ignored = co_qcow2_unref(s, first, (uint32_t)(last - first + 1));

        (void)ignored;      /* a leak; the first error is the one to tell */
    }
}

/* ---- linking ------------------------------------------------------------- */

static int co_link(struct qcow2 *s, uint64_t off, uint64_t entry)
{
    struct qcow2_l2_place place;
    struct qcow2_l2_entry old;
    uint32_t n = 1;
    void *slice;
    int r;

    do {
        r = s->write_ready ? co_qcow2_l2_get_writable(s, off, &place) : -EIO;
    } while (r == 0 && co_qcow2_wait_claim(s, off >> s->geo.cluster_bits, &n));
    if (r == 0)
        r = qcow2_cache_modify(s->l2, place.slice, &slice);
    if (r < 0)
        return r;
    if (qcow2_l2_entry_get(&s->geo, slice, place.index, &old))
        qcow2_drop_entry(s, &old, s->pass_discard_other);
    qcow2_l2_entry_set(&s->geo, slice, place.index, entry, 0, 0);
    return 0;
}

/* ---- a cluster ----------------------------------------------------------- */

static int co_write_packed(struct qcow2 *s, uint64_t off, const void *data, uint32_t bytes,
                           unsigned flags)
{
    uint64_t host, entry;
    int r = co_take_room(s, bytes, &host);

    if (r < 0)
        return r;
    if (qcow2_compressed_encode(&s->geo, host, bytes, &entry))
        r = co_node_pwrite(s->file, host, bytes, data, flags & REQ_BULK);
    else
        r = -EFBIG;
    if (r == 0) {
        unsigned entered = qcow2_enter(s);

        r = co_link(s, off, entry);
        qcow2_leave(s, entered);
    }
    if (r < 0)
        co_give_back_room(s, host, bytes);
    else
        qcow2_sync_soon(s);
    return r;
}

static int co_write_plain(struct qcow2 *s, uint64_t off, uint64_t len, const struct iovec *iov,
                          int niov, unsigned flags)
{
    unsigned entered = qcow2_enter(s);
    int r = co_qcow2_write_run(s, off, len, iov, niov, flags);

    qcow2_leave(s, entered);
    return r;
}

static int co_pack_with(struct qcow2 *s, struct packing *p, uint64_t off, unsigned flags)
{
    int r = flags & REQ_BULK ? co_offload_bulk(pack, p) : co_offload(pack, p);

    if (r < 0)
        return r;
    if (p->zero) {
        r = co_qcow2_zero_range(s, off, p->len);
        if (r != -ENOTSUP)
            return r;
    }
    r = p->packed ? co_write_packed(s, off, p->packer->out, p->packed, flags) : -EFBIG;
    /* Behind what the entry of a compressed cluster can address others still can be. */
    return r == -EFBIG ? co_write_plain(s, off, p->len, p->iov, p->niov, flags) : r;
}

/* One cluster of a request. */
static int co_pack_cluster(struct qcow2 *s, const struct qcow2_extent *e, uint64_t off,
                           uint64_t len, const struct iovec *iov, int niov, unsigned flags)
{
    struct packing p = {
        .iov = iov, .niov = niov, .len = len, .cluster = s->cluster_size,
        .type = (enum qcow2_compression)s->header.compression,
    };
    int r = -ENOMEM;

    co_sem_acquire(&s->pack_slots, 1);
    p.packer = take_packer(s);
    if (p.packer) {
        r = co_pack_with(s, &p, off, flags & ~REQ_COMPRESSED);
        list_push_head(&s->packers, &p.packer->link);
    }
    co_sem_release(&s->pack_slots, 1);
    return r;
}

int co_qcow2_write_compressed(struct qcow2 *s, uint64_t off, uint64_t len, const struct iovec *iov,
                              int niov, unsigned flags)
{
    struct qcow2_pieces p = { .s = s, .flags = flags, .co_run = co_pack_cluster };

    if (!is_aligned(off, s->cluster_size) ||
        (!is_aligned(len, s->cluster_size) && off + len != s->node->size))
        return -EINVAL;
    if (len <= s->cluster_size)
        return co_pack_cluster(s, NULL, off, len, iov, niov, flags);
    qcow2_pieces_init(&p);
    for (uint64_t done = 0; done < len && p.result == 0; done += s->cluster_size) {
        struct qcow2_extent e = { .len = MIN(len - done, s->cluster_size) };

        co_qcow2_piece(&p, &e, off + done, iov, niov, done);
    }
    return co_qcow2_pieces_wait(&p);
}
