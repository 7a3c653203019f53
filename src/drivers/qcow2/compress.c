/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading compressed clusters. Unpacking runs in the workers; the last clusters
 * that were unpacked are kept, so that small sequential reads unpack each once.
 * Readers that come while a cluster is being unpacked wait for it.
 *
 * A slot is known by its host offset and length. Its host clusters cannot come to
 * hold something else while an entry names them or a request may use it; when they
 * are freed the slot is forgotten (qcow2_unpacker_drop).
 */
#include "base/iov.h"
#include "base/mem.h"
#include "base/range.h"
#include "drivers/qcow2/codec.h"
#include "drivers/qcow2/qcow2.h"
#include "loop/co_io.h"

#define SLOTS 8

struct slot {
    uint64_t host;
    uint32_t bytes;              /* 0: empty */
    bool busy;                   /* being filled */
    uint64_t used;               /* when last, by unpacker->clock */
    void *data;                  /* a cluster, once the slot was used */
    struct qcow2_codec *codec;   /* the same */
};

struct qcow2_unpacker {
    struct slot slots[SLOTS];
    uint64_t clock;
    struct waitq changed;
};

void qcow2_unpacker_free(struct qcow2_unpacker *u)
{
    if (!u)
        return;
    for (int i = 0; i < SLOTS; i++) {
        qcow2_codec_free(u->slots[i].codec);
        free(u->slots[i].data);
    }
    free(u);
}

void qcow2_unpacker_drop(struct qcow2 *s, uint64_t first, uint32_t n)
{
    for (int i = 0; s->unpacker && i < SLOTS; i++) {
        struct slot *slot = &s->unpacker->slots[i];

        if (!slot->busy && ranges_overlap(slot->host, slot->bytes, first * s->cluster_size,
                                          n * s->cluster_size))
            slot->bytes = 0;
    }
}

/* ---- unpacking: in a worker ---------------------------------------------- */

struct job {
    struct qcow2_codec *codec;
    const void *packed;
    size_t packed_bytes;
    void *out;
    size_t out_bytes;
    enum qcow2_compression type;
};

static int unpack(void *arg)
{
    struct job *job = arg;

    return qcow2_codec_unpack(job->codec, job->type, job->packed, job->packed_bytes, job->out,
                              job->out_bytes);
}

/* ---- slots --------------------------------------------------------------- */

static struct slot *find_slot(struct qcow2_unpacker *u, const struct qcow2_l2_entry *e)
{
    for (int i = 0; i < SLOTS; i++) {
        if (u->slots[i].bytes == e->compressed_bytes && u->slots[i].host == e->host)
            return &u->slots[i];
    }
    return NULL;
}

/* The one that was not used for longest; NULL when all are busy. */
static struct slot *oldest_slot(struct qcow2_unpacker *u)
{
    struct slot *oldest = NULL;

    for (int i = 0; i < SLOTS; i++) {
        if (!u->slots[i].busy && (!oldest || u->slots[i].used < oldest->used))
            oldest = &u->slots[i];
    }
    return oldest;
}

static int co_fill_slot(struct qcow2 *s, struct slot *slot, unsigned flags)
{
    uint64_t size = node_size(s->file);
    uint64_t have = slot->host < size ? MIN(size - slot->host, (uint64_t)slot->bytes) : 0;
    CLEANUP(free) void *packed = have ? try_alloc_aligned(have) : NULL;
    struct job job = { slot->codec, packed, have, slot->data, s->cluster_size,
                       (enum qcow2_compression)s->header.compression };
    int r;

    if (!have)
        return -EIO;
    if (!packed)
        return -ENOMEM;
    /* Its last sector may be cut short by the end of the file. */
    r = co_node_pread(s->file, slot->host, have, packed, flags & REQ_BULK);
    if (r < 0)
        return r;
    return flags & REQ_BULK ? co_offload_bulk(unpack, &job) : co_offload(unpack, &job);
}

static int co_load_slot(struct qcow2 *s, struct slot *slot, const struct qcow2_l2_entry *e,
                        unsigned flags)
{
    int r;

    if (!slot->data)
        slot->data = try_alloc_aligned(s->cluster_size);
    if (!slot->data)
        return -ENOMEM;
    if (!slot->codec)
        slot->codec = qcow2_codec_new();
    slot->host = e->host;
    slot->bytes = e->compressed_bytes;
    slot->busy = true;
    r = co_fill_slot(s, slot, flags);
    slot->busy = false;
    if (r < 0)
        slot->bytes = 0;
    waitq_wake_all(&s->unpacker->changed);
    return r;
}

int co_qcow2_read_compressed(struct qcow2 *s, const struct qcow2_l2_entry *e, uint64_t at,
                             uint64_t len, const struct iovec *iov, int niov, unsigned flags)
{
    struct qcow2_unpacker *u = s->unpacker;
    struct slot *slot;

    if (!u) {
        u = s->unpacker = xnew(struct qcow2_unpacker);
        waitq_init(&u->changed);
    }
    for (;;) {
        slot = find_slot(u, e);
        if (slot && !slot->busy)
            break;
        if (!slot)
            slot = oldest_slot(u);
        if (!slot || slot->busy) {
            co_waitq_wait(&u->changed);
            continue;
        }

        int r = co_load_slot(s, slot, e, flags);

        if (r < 0)
            return r;
        break;
    }
    slot->used = ++u->clock;
    iov_from_buf(iov, niov, 0, (char *)slot->data + at, len);
    return 0;
}
