/* SPDX-License-Identifier: Apache-2.0
 *
 * A whole connection of rubbish: the input is what a client sends, from its
 * flags on, to a server with a small disk. Negotiation, transmission and the end
 * of the connection run as they do in the daemon. Nothing may be left behind.
 *
 * With a first byte of 0xff and the second one N, the rest is sent after a good
 * negotiation, in which N says what is negotiated.
 */
#include "base/mem.h"
#include "block/dirty.h"
#include "block/graph.h"
#include "drivers/drivers.h"
#include "export/nbd/server.h"
#include "fuzz.h"
#include "loop/co_io.h"
#include "loop/stream.h"
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const uint8_t flags[] = "\0\0\0\3";
static const uint8_t structured[] = "IHAVEOPT\0\0\0\10\0\0\0";
static const uint8_t context[] =
    "IHAVEOPT\0\0\0\12\0\0\0\33\0\0\0\0\0\0\0\1\0\0\0\17base:allocation";
/* base:allocation and qemu:allocation-depth. */
static const uint8_t contexts[] =
    "IHAVEOPT\0\0\0\12\0\0\0\64\0\0\0\0\0\0\0\2\0\0\0\17base:allocation"
    "\0\0\0\25qemu:allocation-depth";
/* base:allocation, and the dirty bitmap that the export shows. */
static const uint8_t dirty[] =
    "IHAVEOPT\0\0\0\12\0\0\0\62\0\0\0\0\0\0\0\2\0\0\0\17base:allocation"
    "\0\0\0\23qemu:dirty-bitmap:b";
static const uint8_t go[] = "IHAVEOPT\0\0\0\7\0\0\0\6\0\0\0\0\0";   /* ends with the terminator */

/* What one client sends. */
struct run {
    const uint8_t *data;
    size_t size;
    struct stream *stream;
    bool sent;
    struct waitq all_sent;
};

static struct loop *loop;
static struct nbd_exports *exports;
static struct nbd_server *server;
static char path[64];

/* ---- the server, made with the first input ------------------------------ */

static void co_set_up(void *arg)
{
    struct err err = ERR_INIT;
    json_t *json = json_pack("{ss si}", "driver", "null-co", "size", 1 << 20);
    struct node *n = co_node_open(json, false, &err);
    struct dirty_bitmap_opts b = { .name = "b", .granularity = 4096 };
    struct nbd_export_bitmap bitmap = { .name = "b" };
    struct nbd_export_opts e = { .id = "e", .node = n, .name = "", .writable = true,
                                 .allocation_depth = true, .bitmaps = &bitmap, .n_bitmaps = 1 };
    struct nbd_server_opts s = {
        .address = { .kind = NBD_ADDRESS_UNIX, .path = path },
    };

    assert(n && dirty_bitmap_add(n, &b, &err));
    exports = s.exports = nbd_exports_new();
    assert(co_nbd_export_add(exports, &e, &err));
    server = co_nbd_server_start(&s, &err);
    assert(server);
    json_decref(json);
    node_unref(n);
    loop_stop(loop);
}

static void co_tear_down(void *arg)
{
    co_nbd_server_stop(server, DEADLINE_NEVER);
    assert(co_nbd_exports_close(exports, DEADLINE_NEVER));
    nbd_exports_free(exports);
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
    snprintf(path, sizeof(path), "/tmp/stillpoint-fuzz-%d", (int)getpid());
    loop = loop_new(LOOP_ENGINE_POOL, "fuzz", NULL);
    assert(loop);
    loop_post(loop, start, co_set_up);
    loop_run(loop);
    atexit(tear_down);
}

/* ---- one client --------------------------------------------------------- */

static void co_send(struct stream *s, const void *data, size_t len)
{
    struct iovec iov = { (void *)data, len };

    /* The server may have hung up already. */
    if (len && co_stream_writev(s, &iov, 1) < 0)
        return;
}

static void co_send_good_start(struct stream *s, uint8_t what)
{
    co_send(s, flags, 4);
    if (what & 1)
        co_send(s, structured, 16);
    if (what & 2)
        co_send(s, context, sizeof(context) - 1);
    if (what & 4)
        co_send(s, contexts, sizeof(contexts) - 1);
    if (what & 8)
        co_send(s, dirty, sizeof(dirty) - 1);
    co_send(s, go, 16 + 6);
}

static void co_sender(void *arg)
{
    struct run *r = arg;

    if (r->size >= 2 && r->data[0] == 0xff) {
        co_send_good_start(r->stream, r->data[1]);
        co_send(r->stream, r->data + 2, r->size - 2);
    } else {
        co_send(r->stream, r->data, r->size);
    }
    shutdown(stream_fd(r->stream), SHUT_WR);
    r->sent = true;
    waitq_wake_all(&r->all_sent);
}

static void co_client(void *arg)
{
    struct run *r = arg;
    struct sockaddr_un sun = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    size_t len;

    memcpy(sun.sun_path, path, strlen(path));
    assert(fd >= 0 && co_connect(fd, (struct sockaddr *)&sun, sizeof(sun)) == 0);
    r->stream = stream_new(fd, 64 * KiB);
    waitq_init(&r->all_sent);
    co_start(co_sender, r);
    /* Whatever it was, the server comes to an end with it. */
    while (co_stream_fill(r->stream, 1) == 0) {
        (void)stream_peek(r->stream, &len);
        stream_consume(r->stream, len);
    }
    while (!r->sent)
        co_waitq_wait(&r->all_sent);
    stream_free(r->stream);
    while (nbd_server_connections(server))
        co_yield();
    loop_stop(loop);
}

static void start_client(void *arg)
{
    co_start(co_client, arg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct run r = { .data = data, .size = size };

    set_up();
    loop_post(loop, start_client, &r);
    loop_run(loop);
    return 0;
}
