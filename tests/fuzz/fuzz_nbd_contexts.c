/* SPDX-License-Identifier: Apache-2.0
 *
 * What an export tells of its metadata contexts while its client writes: dirty bitmap, allocation
 * depth and allocation. The input chooses the bitmap's granularity, the contexts that the client
 * selects, and its requests, one after the other; a shadow knows which granules have to be dirty
 * and which may be. Every answer is taken apart and compared. What is not well-formed is
 * fuzz_nbd_serve.c's.
 *
 *   byte 0       granularity: 512 << (n & 7)
 *   byte 1       contexts: 1 allocation, 2 depth, 4 dirty bitmap, 8 one that is not there;
 *                16: no structured replies
 *   then 8 each  operation, flags, offset (3 bytes, in units of 64), length (3 bytes)
 */
#include "base/bytes.h"
#include "base/mem.h"
#include "block/dirty.h"
#include "block/disk.h"
#include "drivers/drivers.h"
#include "export/nbd/proto.h"
#include "export/nbd/server.h"
#include "fuzz.h"
#include "loop/co_io.h"
#include "loop/stream.h"
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SIZE (4 * MiB + 512u)
#define GRANULES_MAX (SIZE / 512)
#define OPS_MAX 64
#define WRITE_MAX (256 * KiB)
#define STRIPES 8            /* an operation beside the protocol's: every other granule is set */

enum { ALLOCATION, DEPTH, DIRTY, NOT_THERE, N_CONTEXTS };
static const char *const context_names[N_CONTEXTS] = {
    NBD_CONTEXT_ALLOCATION, NBD_CONTEXT_DEPTH, NBD_CONTEXT_BITMAP_PREFIX "b", "qemu:nothing",
};

static struct loop *loop;
static struct nbd_exports *exports;
static struct nbd_server *server;
static struct node *node;
static char path[64];
static uint8_t data[WRITE_MAX];

/* One client and its disk. */
struct run {
    const uint8_t *in;
    size_t n_in;
    struct stream *s;
    struct dirty_bitmap *bm;
    uint32_t granularity;
    bool structured;
    uint32_t ids[N_CONTEXTS];    /* as the server has numbered them */
    bool selected[N_CONTEXTS];
    unsigned n_selected;
    /* A granule is dirty if it must be, and only if it may be. */
    bool must[GRANULES_MAX], may[GRANULES_MAX];
};

/* ---- the server, made with the first input ---------------------------------------------- */

static void co_set_up(void *arg)
{
    struct err err = ERR_INIT;
    json_t *json = json_pack("{ss si ss}", "driver", "null-co", "size", (int)SIZE, "discard",
                             "unmap");
    struct nbd_server_opts s = { .address = { .kind = NBD_ADDRESS_UNIX, .path = path } };

    node = co_node_open(json, false, &err);
    assert(node);
    exports = s.exports = nbd_exports_new();
    server = co_nbd_server_start(&s, &err);
    assert(server);
    json_decref(json);
    loop_stop(loop);
}

static void co_tear_down(void *arg)
{
    co_nbd_server_stop(server, DEADLINE_NEVER);
    assert(co_nbd_exports_close(exports, DEADLINE_NEVER));
    nbd_exports_free(exports);
    co_node_unref(node);
    loop_stop(loop);
}

static void start(void *arg)
{
    co_start(arg, NULL);
}

static void tear_down(void)
{
    loop_post(loop, start, co_tear_down);
    loop_run(loop);
    loop_free(loop);
}

static void set_up(void)
{
    if (loop)
        return;
    drivers_register_all();
    snprintf(path, sizeof(path), "/tmp/stillpoint-fuzz-contexts-%d", (int)getpid());
    loop = loop_new(LOOP_ENGINE_POOL, "fuzz", NULL);
    assert(loop);
    loop_post(loop, start, co_set_up);
    loop_run(loop);
    atexit(tear_down);
}

/* ---- negotiation ---------------------------------------------------------------------- */

static void co_send(struct run *r, const void *buf, size_t len)
{
    struct iovec iov = { (void *)buf, len };

    assert(len == 0 || co_stream_writev(r->s, &iov, 1) == 0);
}

static void co_receive(struct run *r, void *buf, size_t len)
{
    assert(co_stream_read(r->s, buf, len) == 0);
}

static void co_option(struct run *r, uint32_t option, const void *payload, size_t len)
{
    uint8_t head[NBD_OPTION_BYTES];

    store_be64(head, NBD_OPTION_MAGIC);
    store_be32(head + 8, option);
    store_be32(head + 12, (uint32_t)len);
    co_send(r, head, sizeof(head));
    co_send(r, payload, len);
}

/* The reply's type; its data, of at most 255 bytes and a terminator, in @payload. */
static uint32_t co_option_reply(struct run *r, uint8_t *payload)
{
    uint8_t head[NBD_OPTION_REPLY_BYTES];
    uint32_t len;

    co_receive(r, head, sizeof(head));
    assert(load_be64(head) == NBD_OPTION_REPLY_MAGIC);
    len = load_be32(head + 16);
    assert(len < 256);
    co_receive(r, payload, len);
    payload[len] = 0;
    return load_be32(head + 12);
}

static void co_select(struct run *r, uint8_t wanted)
{
    uint8_t out[256] = { 0 }, in[256];
    size_t len = 8;              /* the export's name is empty */
    uint32_t n = 0, type;

    for (unsigned i = 0; i < N_CONTEXTS; i++) {
        if (!(wanted & (1 << i)))
            continue;
        store_be32(out + len, (uint32_t)strlen(context_names[i]));
        memcpy(out + len + 4, context_names[i], strlen(context_names[i]));
        len += 4 + strlen(context_names[i]);
        n++;
    }
    store_be32(out + 4, n);
    co_option(r, NBD_OPT_SET_META_CONTEXT, out, len);
    while ((type = co_option_reply(r, in)) == NBD_REP_META_CONTEXT) {
        unsigned i = 0;

        while (strcmp((const char *)in + 4, context_names[i]) != 0)
            assert(++i < N_CONTEXTS);
        assert((wanted & (1 << i)) && i != NOT_THERE && !r->selected[i]);
        r->selected[i] = true;
        r->ids[i] = load_be32(in);
        r->n_selected++;
    }
    assert(type == NBD_REP_ACK);
    assert(r->n_selected == (unsigned)__builtin_popcount(wanted & 7));
}

static void co_negotiate(struct run *r, uint8_t how)
{
    static const uint8_t go[6];
    uint8_t in[256], flags[] = { 0, 0, 0, 3 };
    uint32_t type;

    co_receive(r, in, NBD_GREETING_BYTES);
    co_send(r, flags, sizeof(flags));
    r->structured = !(how & 16);
    if (r->structured) {
        co_option(r, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        assert(co_option_reply(r, in) == NBD_REP_ACK);
        co_select(r, how & 15);
    }
    co_option(r, NBD_OPT_GO, go, sizeof(go));
    while ((type = co_option_reply(r, in)) == NBD_REP_INFO)
        ;
    assert(type == NBD_REP_ACK);
}

/* ---- answers -------------------------------------------------------------------------- */

struct request {
    uint16_t type, flags;
    uint64_t off;
    uint32_t len;
};

static bool inside(const struct request *q)
{
    return q->off <= SIZE && q->len <= SIZE - q->off;
}

/* One extent of one context, from @at on. */
static void check_extent(const struct run *r, unsigned context, uint64_t at, uint64_t len,
                         uint32_t flags)
{
    uint64_t end = MIN(at + len, (uint64_t)SIZE);

    assert(flags <= (context == ALLOCATION ? 3u : 1u));
    if (context != DIRTY)
        return;
    for (uint64_t g = at / r->granularity; g * r->granularity < end; g++)
        assert(flags ? r->may[g] : !r->must[g]);
}

static void co_check_status(struct run *r, const struct request *q, const uint8_t *chunk,
                            uint32_t len, bool *seen)
{
    uint32_t id = load_be32(chunk), n = (len - 4) / NBD_EXTENT_BYTES;
    uint64_t at = q->off;
    unsigned context = 0;

    while (!r->selected[context] || r->ids[context] != id)
        assert(++context < N_CONTEXTS);
    assert(!seen[context]);
    seen[context] = true;
    assert(n > 0 && len == 4 + n * NBD_EXTENT_BYTES);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *e = chunk + 4 + i * NBD_EXTENT_BYTES;
        uint32_t length = load_be32(e);

        /* Only the last may reach beyond what was asked for. */
        assert(length > 0 && at < q->off + q->len);
        check_extent(r, context, at, length, load_be32(e + 4));
        at += length;
    }
    assert(!(q->flags & NBD_CMD_FLAG_REQ_ONE) || (n == 1 && at <= q->off + q->len));
}

/* The whole answer. 0, or the error that it tells. */
static uint32_t co_reply(struct run *r, const struct request *q, uint64_t cookie)
{
    bool seen[N_CONTEXTS] = { 0 };
    uint8_t head[NBD_CHUNK_BYTES];
    uint32_t error = 0, len;
    unsigned n_seen = 0;

    do {
        co_receive(r, head, NBD_SIMPLE_REPLY_BYTES);
        if (load_be32(head) == NBD_SIMPLE_REPLY_MAGIC) {
            assert(load_be64(head + 8) == cookie);
            error = load_be32(head + 4);
            if (q->type == NBD_CMD_READ && !error)
                assert(!r->structured && co_stream_skip(r->s, q->len) == 0);
            return error;
        }
        assert(load_be32(head) == NBD_CHUNK_MAGIC && load_be64(head + 8) == cookie);
        co_receive(r, head + NBD_SIMPLE_REPLY_BYTES, NBD_CHUNK_BYTES - NBD_SIMPLE_REPLY_BYTES);
        len = load_be32(head + 16);

        CLEANUP(free) uint8_t *chunk = xmalloc(len + 1);

        co_receive(r, chunk, len);
        if (load_be16(head + 6) == NBD_CHUNK_BLOCK_STATUS) {
            assert(q->type == NBD_CMD_BLOCK_STATUS && len > 4);
            co_check_status(r, q, chunk, len, seen);
            n_seen++;
        } else if (load_be16(head + 6) & (1 << 15)) {
            error = load_be32(chunk);
            assert(error);
        }
    } while (!(load_be16(head + 4) & NBD_CHUNK_FLAG_DONE));
    assert(error || q->type != NBD_CMD_BLOCK_STATUS || n_seen == r->n_selected);
    return error;
}

/* ---- requests ------------------------------------------------------------------------- */

static void mark(struct run *r, bool *which, uint64_t off, uint64_t len)
{
    for (uint64_t g = off / r->granularity; len && g * r->granularity < off + len; g++)
        which[g] = true;
}

static void co_request(struct run *r, const struct request *q, uint64_t cookie)
{
    bool writes = q->type == NBD_CMD_WRITE || q->type == NBD_CMD_WRITE_ZEROES ||
                  q->type == NBD_CMD_TRIM;
    uint8_t head[NBD_REQUEST_BYTES];
    uint32_t error;

    store_be32(head, NBD_REQUEST_MAGIC);
    store_be16(head + 4, q->flags);
    store_be16(head + 6, q->type);
    store_be64(head + 8, cookie);
    store_be64(head + 16, q->off);
    store_be32(head + 24, q->len);
    co_send(r, head, sizeof(head));
    if (q->type == NBD_CMD_WRITE)
        co_send(r, data, q->len);
    if (writes && inside(q))
        mark(r, r->may, q->off, q->len);
    error = co_reply(r, q, cookie);
    if (!inside(q) && q->type != NBD_CMD_FLUSH)
        assert(error);
    if (!error && (q->type == NBD_CMD_WRITE || q->type == NBD_CMD_WRITE_ZEROES))
        mark(r, r->must, q->off, q->len);
    /* Whoever may ask is answered. */
    if (q->type == NBD_CMD_BLOCK_STATUS && inside(q) && q->len && r->n_selected &&
        !(q->flags & ~NBD_CMD_FLAG_REQ_ONE))
        assert(!error);
}

/* From inside the program: a pattern of many extents. */
static void set_stripes(struct run *r, const struct request *q)
{
    uint64_t end = MIN(q->off + q->len * 16ULL, (uint64_t)SIZE);

    for (uint64_t at = q->off; at < end; at += 2 * (uint64_t)r->granularity) {
        dirty_bitmap_set(r->bm, at, 1);
        mark(r, r->may, at, 1);
        mark(r, r->must, at, 1);
    }
}

static void co_operations(struct run *r)
{
    static const uint16_t flags[] = {
        0, NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_REQ_ONE,
        NBD_CMD_FLAG_FAST_ZERO,
    };

    for (size_t i = 0; i < OPS_MAX && r->n_in >= 8; i++, r->in += 8, r->n_in -= 8) {
        struct request q = {
            .type = r->in[0] % (STRIPES + 1),
            .off = (load_be32(r->in + 1) & 0xffffff) * 64ULL % (SIZE + 4096),
            .len = load_be32(r->in + 4) & 0xffffff,
        };

        for (unsigned k = 0; k < ARRAY_SIZE(flags); k++)
            q.flags |= r->in[1] & (1 << k) ? flags[k] : 0;
        if (q.type == NBD_CMD_DISC)
            continue;
        if (q.type == NBD_CMD_WRITE || q.type == NBD_CMD_READ)
            q.len %= WRITE_MAX;
        if (q.type == STRIPES)
            set_stripes(r, &q);
        else
            co_request(r, &q, i + 1);
    }
}

/* ---- one input ------------------------------------------------------------------------ */

static void co_open_export(struct run *r)
{
    struct dirty_bitmap_opts b = { .name = "b", .granularity = r->granularity };
    struct nbd_export_bitmap bitmap = { .name = "b" };
    struct nbd_export_opts e = {
        .id = "e", .node = node, .name = "", .writable = true, .allocation_depth = true,
        .bitmaps = &bitmap, .n_bitmaps = 1,
    };
    struct err err = ERR_INIT;

    /* Nothing uses the disk: no door is open. */
    r->bm = dirty_bitmap_add(node, &b, &err);
    assert(r->bm && co_nbd_export_add(exports, &e, &err));
}

static void co_client(void *arg)
{
    struct run *r = arg;
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    uint8_t how = r->in[1];

    r->granularity = 512u << (r->in[0] & 7);
    r->in += 2;
    r->n_in -= 2;
    co_open_export(r);
    memcpy(sun.sun_path, path, strlen(path));
    assert(fd >= 0 && co_connect(fd, (struct sockaddr *)&sun, sizeof(sun)) == 0);
    r->s = stream_new(fd, 64 * KiB);
    co_negotiate(r, how);
    co_operations(r);
    stream_free(r->s);
    while (nbd_server_connections(server))
        co_yield();
    assert(nbd_export_del(exports, "e", NBD_EXPORT_DEL_HARD, NULL));
    assert(co_nbd_export_wait_gone(exports, "e", DEADLINE_NEVER));
    dirty_bitmap_remove(r->bm);
    loop_stop(loop);
}

static void start_client(void *arg)
{
    co_start(co_client, arg);
}

int LLVMFuzzerTestOneInput(const uint8_t *in, size_t size)
{
    static struct run r;

    if (size < 2)
        return 0;
    r = (struct run){ .in = in, .n_in = size };
    set_up();
    loop_post(loop, start_client, &r);
    loop_run(loop);
    return 0;
}
