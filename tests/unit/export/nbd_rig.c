/* SPDX-License-Identifier: Apache-2.0
 *
 * What nbd_rig.h declares.
 */
#include "nbd_rig.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "block/dirty.h"
#include "loop/co_io.h"
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SKIP 77            /* Meson's code for a skipped test */
#define TEST_SECONDS 120   /* a test that hangs says so by itself */

static bool disk_elsewhere;

/* ---- the disk ----------------------------------------------------------- */

struct disk_call {
    struct rig *rig;
    const struct rig_opts *opts;
    enum mem_op op;
    enum mem_kind kind;
    uint64_t off, len;
    int value;
};

static int co_open_disk(void *arg)
{
    struct disk_call *d = arg;

    d->rig->node = co_test_open("{'driver':'test-mem','node-name':'mem0','size':%ju,'fua':true,"
                                "'read-only':%s,'discard':'unmap'}", (uintmax_t)DISK_BYTES,
                                d->opts->read_only ? "true" : "false");
    return 0;
}

static int do_hold(void *arg)
{
    struct disk_call *d = arg;

    mem_of(d->rig->node)->held[d->op] = true;
    return 0;
}

static int do_release(void *arg)
{
    struct disk_call *d = arg;

    mem_release(mem_of(d->rig->node), d->op);
    return 0;
}

static int do_fail(void *arg)
{
    struct disk_call *d = arg;

    mem_of(d->rig->node)->fails[d->op] = d->value;
    return 0;
}

static int do_fill(void *arg)
{
    struct disk_call *d = arg;

    mem_fill(mem_of(d->rig->node), d->off, d->len, d->kind, d->value);
    return 0;
}

static int do_count(void *arg)
{
    struct disk_call *d = arg;

    return (int)mem_count(mem_of(d->rig->node), d->op);
}

static int do_flags(void *arg)
{
    struct disk_call *d = arg;
    struct mem *m = mem_of(d->rig->node);

    return (int)mem_nth(m, d->op, mem_count(m, d->op) - 1)->flags;
}

static int do_add_bitmap(void *arg)
{
    struct disk_call *d = arg;
    struct err err = ERR_INIT;
    struct dirty_bitmap_opts o = { .name = d->opts->bitmap, .granularity = 64 * KiB };

    assert_non_null(dirty_bitmap_add(d->rig->node, &o, &err));
    return 0;
}

static int co_on_disk(struct rig *r, int (*fn)(void *arg), struct disk_call *d)
{
    d->rig = r;
    return co_loop_call(r->disk_loop, fn, d);
}

void co_rig_hold(struct rig *r, enum mem_op op)
{
    co_on_disk(r, do_hold, &(struct disk_call){ .op = op });
}

void co_rig_release(struct rig *r, enum mem_op op)
{
    co_on_disk(r, do_release, &(struct disk_call){ .op = op });
}

void co_rig_fail(struct rig *r, enum mem_op op, int error)
{
    co_on_disk(r, do_fail, &(struct disk_call){ .op = op, .value = error });
}

void co_rig_fill(struct rig *r, uint64_t off, uint64_t len, enum mem_kind kind, int byte)
{
    co_on_disk(r, do_fill,
               &(struct disk_call){ .off = off, .len = len, .kind = kind, .value = byte });
}

unsigned co_rig_count(struct rig *r, enum mem_op op)
{
    return (unsigned)co_on_disk(r, do_count, &(struct disk_call){ .op = op });
}

unsigned co_rig_flags(struct rig *r, enum mem_op op)
{
    return (unsigned)co_on_disk(r, do_flags, &(struct disk_call){ .op = op });
}

void co_rig_wait_count(struct rig *r, enum mem_op op, unsigned n)
{
    while (co_rig_count(r, op) < n)
        co_yield();
}

void co_rig_wait_connections(struct rig *r, unsigned n)
{
    while (nbd_server_connections(r->server) != n)
        co_yield();
}

/* ---- the server --------------------------------------------------------- */

void co_rig_open(struct rig *r, const struct rig_opts *o)
{
    static unsigned serial;
    struct err err = ERR_INIT;

    *r = (struct rig){ .exports = nbd_exports_new() };
    r->disk_loop = disk_elsewhere ? test_loop_spawn("disk") : loop_current();
    co_on_disk(r, co_open_disk, &(struct disk_call){ .opts = o });
    snprintf(r->path, sizeof(r->path), "/tmp/stillpoint-nbd-%d-%u", (int)getpid(), serial++);

    struct nbd_export_opts e = {
        .id = "e0", .node = r->node, .name = "disk", .description = "a disk in memory",
        .writable = !o->read_only, .allocation_depth = o->allocation_depth,
        .bitmaps = &(struct nbd_export_bitmap){ .name = o->bitmap }, .n_bitmaps = o->bitmap != NULL,
    };
    struct nbd_server_opts s = {
        .address = { .kind = NBD_ADDRESS_UNIX, .path = r->path },
        .exports = r->exports,
        .max_connections = o->max_connections ? o->max_connections : 100,
        .handshake_seconds_max = o->handshake_seconds_max,
    };

    if (o->bitmap)
        co_on_disk(r, do_add_bitmap, &(struct disk_call){ .opts = o });
    if (!co_nbd_export_add(r->exports, &e, &err))
        fail_msg("%s", err.text);
    r->server = co_nbd_server_start(&s, &err);
    if (!r->server)
        fail_msg("%s", err.text);
}

void co_rig_close(struct rig *r)
{
    co_nbd_server_stop(r->server, DEADLINE_NEVER);
    assert_true(co_nbd_exports_close(r->exports, DEADLINE_NEVER));
    nbd_exports_free(r->exports);
    assert_int_not_equal(access(r->path, F_OK), 0);
    co_node_unref(r->node);
    if (r->disk_loop != loop_current())
        test_loop_end(r->disk_loop);
}

/* ---- the client: handshake ---------------------------------------------- */

struct client co_client_connect(struct rig *r)
{
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    memcpy(sun.sun_path, r->path, strlen(r->path));
    assert_true(fd >= 0);
    assert_int_equal(co_connect(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
    return (struct client){ stream_new(fd, 64 * KiB) };
}

void client_close(struct client *c)
{
    stream_free(MOVE(c->stream));
}

void co_put(struct client *c, const void *data, size_t len)
{
    struct iovec iov = { (void *)data, len };

    assert_int_equal(co_stream_writev(c->stream, &iov, 1), 0);
}

void co_get(struct client *c, void *data, size_t len)
{
    assert_int_equal(co_stream_read(c->stream, data, len), 0);
}

void co_expect_end(struct client *c)
{
    int r;

    while ((r = co_stream_fill(c->stream, 1)) == 0) {
        size_t len;

        (void)stream_peek(c->stream, &len);
        stream_consume(c->stream, len);
    }
    assert_true(r == -ENODATA || r == -ECONNRESET || r == -EPIPE);
}

void expect_silence(struct client *c)
{
    char byte;
    size_t len;

    (void)stream_peek(c->stream, &len);
    assert_int_equal(len, 0);
    assert_int_equal(recv(stream_fd(c->stream), &byte, 1, MSG_DONTWAIT | MSG_PEEK), -1);
    assert_int_equal(errno, EAGAIN);
}

void co_greet_with(struct client *c, uint32_t flags)
{
    uint8_t greeting[NBD_GREETING_BYTES], raw[4];

    co_get(c, greeting, sizeof(greeting));
    assert_memory_equal(greeting, "NBDMAGICIHAVEOPT\0\3", sizeof(greeting));
    store_be32(raw, flags);
    co_put(c, raw, sizeof(raw));
}

void co_greet(struct client *c)
{
    co_greet_with(c, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

void co_option(struct client *c, uint32_t option, const void *data, uint32_t len)
{
    uint8_t head[NBD_OPTION_BYTES];

    store_be64(head, NBD_OPTION_MAGIC);
    store_be32(head + 8, option);
    store_be32(head + 12, len);
    co_put(c, head, sizeof(head));
    if (len)
        co_put(c, data, len);
}

void co_option_reply(struct client *c, uint32_t option, struct option_reply *ret)
{
    uint8_t head[NBD_OPTION_REPLY_BYTES];

    co_get(c, head, sizeof(head));
    assert_int_equal(load_be64(head), NBD_OPTION_REPLY_MAGIC);
    assert_int_equal(load_be32(head + 8), option);
    ret->type = load_be32(head + 12);
    ret->len = load_be32(head + 16);
    assert_true(ret->len < sizeof(ret->data));
    co_get(c, ret->data, ret->len);
    ret->data[ret->len] = 0;
}

void co_expect_option_reply(struct client *c, uint32_t option, uint32_t type)
{
    struct option_reply reply;

    co_option_reply(c, option, &reply);
    assert_int_equal(reply.type, type);
}

static size_t put_str(uint8_t *out, const char *text)
{
    store_be32(out, strlen(text));
    memcpy(out + 4, text, strlen(text));
    return 4 + strlen(text);
}

uint32_t put_go(uint8_t *out, const char *name)
{
    size_t n = put_str(out, name);

    store_be16(out + n, 0);
    return n + 2;
}

uint32_t put_queries(uint8_t *out, const char *name, const char *const *queries, unsigned n)
{
    size_t at = put_str(out, name);

    store_be32(out + at, n);
    at += 4;
    for (unsigned i = 0; i < n; i++)
        at += put_str(out + at, queries[i]);
    return at;
}

uint32_t put_meta(uint8_t *out, const char *name, const char *query)
{
    return put_queries(out, name, &query, query != NULL);
}

static void co_go(struct client *c)
{
    struct option_reply reply;
    uint8_t data[64];

    co_option(c, NBD_OPT_GO, data, put_go(data, "disk"));
    do {
        co_option_reply(c, NBD_OPT_GO, &reply);
    } while (reply.type == NBD_REP_INFO);
    assert_int_equal(reply.type, NBD_REP_ACK);
}

struct client co_client_ready(struct rig *r)
{
    struct client c = co_client_connect(r);

    co_greet(&c);
    co_go(&c);
    return c;
}

struct client co_client_ready_structured(struct rig *r)
{
    struct client c = co_client_connect(r);
    uint8_t data[64];

    co_greet(&c);
    co_option(&c, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    co_expect_option_reply(&c, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    co_option(&c, NBD_OPT_SET_META_CONTEXT, data, put_meta(data, "disk", "base:allocation"));
    co_expect_option_reply(&c, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
    co_expect_option_reply(&c, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    co_go(&c);
    return c;
}

/* ---- the client: transmission ------------------------------------------- */

void co_request(struct client *c, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t off,
                uint32_t len)
{
    uint8_t raw[NBD_REQUEST_BYTES];

    store_be32(raw, NBD_REQUEST_MAGIC);
    store_be16(raw + 4, flags);
    store_be16(raw + 6, type);
    store_be64(raw + 8, cookie);
    store_be64(raw + 16, off);
    store_be32(raw + 24, len);
    co_put(c, raw, sizeof(raw));
}

void co_write_request(struct client *c, uint64_t cookie, uint64_t off, const void *data,
                      uint32_t len)
{
    co_request(c, NBD_CMD_WRITE, 0, cookie, off, len);
    co_put(c, data, len);
}

uint32_t co_simple_reply(struct client *c, uint64_t cookie)
{
    uint8_t raw[NBD_SIMPLE_REPLY_BYTES];

    co_get(c, raw, sizeof(raw));
    assert_int_equal(load_be32(raw), NBD_SIMPLE_REPLY_MAGIC);
    assert_int_equal(load_be64(raw + 8), cookie);
    return load_be32(raw + 4);
}

void co_chunk(struct client *c, struct chunk *ret)
{
    uint8_t raw[NBD_CHUNK_BYTES];

    co_get(c, raw, sizeof(raw));
    assert_int_equal(load_be32(raw), NBD_CHUNK_MAGIC);
    ret->flags = load_be16(raw + 4);
    ret->type = load_be16(raw + 6);
    ret->cookie = load_be64(raw + 8);
    ret->len = load_be32(raw + 16);
}

uint32_t co_error_chunk(struct client *c, uint64_t cookie)
{
    uint8_t data[6 + 4096];
    struct chunk k;

    co_chunk(c, &k);
    assert_int_equal(k.type, NBD_CHUNK_ERROR);
    assert_int_equal(k.flags, NBD_CHUNK_FLAG_DONE);
    assert_int_equal(k.cookie, cookie);
    assert_in_range(k.len, 7, sizeof(data));   /* a text is there */
    co_get(c, data, k.len);
    assert_int_equal(load_be16(data + 4), k.len - 6);
    return load_be32(data);
}

/* ---- main --------------------------------------------------------------- */

int nbd_rig_main(int argc, char **argv, const char *group, const struct CMUnitTest *tests, size_t n)
{
    if (argc > 1 && !test_use_engine(argv[1]))
        return SKIP;
    disk_elsewhere = argc > 2 && strcmp(argv[2], "other") == 0;
    memdrv_register();
    alarm(TEST_SECONDS);
    return _cmocka_run_group_tests(group, tests, n, NULL, NULL);
}
