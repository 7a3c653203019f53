/* SPDX-License-Identifier: Apache-2.0
 *
 * Help for tests of the NBD server: a server on a Unix socket with one export of
 * a disk in memory, and a client that sends and expects raw bytes, so that it can
 * misbehave in every way. Both are coroutines of one loop; the disk lives there
 * too or on a loop of its own, as the test program is told:
 *
 *   test-nbd-X uring|pool same|other
 */
#ifndef TESTS_EXPORT_NBD_RIG_H
#define TESTS_EXPORT_NBD_RIG_H

#include "co_test.h"
#include "memdrv.h"
#include "export/nbd/proto.h"
#include "export/nbd/server.h"
#include "loop/stream.h"

#define DISK_BYTES (34 * MiB)

struct rig {
    char path[64];
    struct nbd_exports *exports;
    struct nbd_server *server;
    struct node *node;
    struct loop *disk_loop;
};

struct rig_opts {
    bool read_only;
    bool allocation_depth;
    const char *bitmap;               /* made at the node, 64 KiB a bit; NULL: none */
    uint32_t max_connections;         /* 0: 100 */
    uint32_t handshake_seconds_max;   /* 0: no limit */
};
/* The export is "disk", described as "a disk in memory". */
void co_rig_open(struct rig *r, const struct rig_opts *o);
/* Everything ends by itself now: connections, exports, the node. */
void co_rig_close(struct rig *r);

/* Manners and looks of the disk, wherever it lives. */
void co_rig_hold(struct rig *r, enum mem_op op);
void co_rig_release(struct rig *r, enum mem_op op);
void co_rig_fail(struct rig *r, enum mem_op op, int error);
void co_rig_fill(struct rig *r, uint64_t off, uint64_t len, enum mem_kind kind, int byte);
unsigned co_rig_count(struct rig *r, enum mem_op op);
unsigned co_rig_flags(struct rig *r, enum mem_op op);   /* of the latest */
/* Wait until so many requests of a kind have reached the disk. */
void co_rig_wait_count(struct rig *r, enum mem_op op, unsigned n);
/* Wait until the server has so many connections. */
void co_rig_wait_connections(struct rig *r, unsigned n);

/* ---- the client --------------------------------------------------------- */

struct client {
    struct stream *stream;
};

struct client co_client_connect(struct rig *r);
void client_close(struct client *c);

void co_put(struct client *c, const void *data, size_t len);
void co_get(struct client *c, void *data, size_t len);
/* The server ends the connection, after whatever it still sends. */
void co_expect_end(struct client *c);
/* There is nothing to be received at this moment. */
void expect_silence(struct client *c);

/* Greeting and client flags. */
void co_greet(struct client *c);
void co_greet_with(struct client *c, uint32_t flags);
void co_option(struct client *c, uint32_t option, const void *data, uint32_t len);
/* The next reply's type and data; fails the test if it is for another option. */
struct option_reply {
    uint32_t type, len;
    char data[8192 + 64];      /* terminated */
};
void co_option_reply(struct client *c, uint32_t option, struct option_reply *ret);
void co_expect_option_reply(struct client *c, uint32_t option, uint32_t type);
/* Data of INFO and GO without information requests; gives its length. */
uint32_t put_go(uint8_t *out, const char *name);
/* Data of SET_META_CONTEXT and LIST_META_CONTEXT with one query, or none (NULL). */
uint32_t put_meta(uint8_t *out, const char *name, const char *query);
/* The same with several. */
uint32_t put_queries(uint8_t *out, const char *name, const char *const *queries, unsigned n);

/* All the way to transmission of "disk". */
struct client co_client_ready(struct rig *r);               /* simple replies */
struct client co_client_ready_structured(struct rig *r);    /* with base:allocation */

void co_request(struct client *c, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t off,
                uint32_t len);
void co_write_request(struct client *c, uint64_t cookie, uint64_t off, const void *data,
                      uint32_t len);
/* The error of a simple reply, which has to have this cookie. */
uint32_t co_simple_reply(struct client *c, uint64_t cookie);
struct chunk {
    uint16_t flags, type;
    uint64_t cookie;
    uint32_t len;
};
void co_chunk(struct client *c, struct chunk *ret);
/* An error chunk with this cookie: its error number. */
uint32_t co_error_chunk(struct client *c, uint64_t cookie);

int nbd_rig_main(int argc, char **argv, const char *group, const struct CMUnitTest *tests,
                 size_t n);

#endif
