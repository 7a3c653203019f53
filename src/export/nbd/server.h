/* SPDX-License-Identifier: Apache-2.0
 *
 * The NBD server for those who run it (QMP, the daemon, `serve`): a table of
 * exports, and any number of listening sockets that offer what is in the table.
 *
 * Everything here is called on the loop that the table was made on (the main
 * loop). Connections are accepted and negotiate there; once a client has chosen
 * an export its connection moves to the loop of the export's node for good.
 * What is offered, the limits and the errors: docs/nbd.md. The protocol:
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
#ifndef EXPORT_NBD_SERVER_H
#define EXPORT_NBD_SERVER_H

#include "block/node.h"
#include "export/nbd/stats.h"

/* ---- exports ------------------------------------------------------------ */

struct nbd_exports;

/* An empty table for the calling loop. */
struct nbd_exports *nbd_exports_new(void);
/* When no export is left (co_nbd_exports_close) and no server uses it. Takes NULL. */
void nbd_exports_free(struct nbd_exports *x);

/* Called on the table's loop, as a plain callback, whenever an export is wholly
 * gone: its connections have ended and the node is let go. For the event
 * BLOCK_EXPORT_DELETED. Set before the first export is added. */
void nbd_exports_on_deleted(struct nbd_exports *x, void (*fn)(const char *id, void *arg),
                            void *arg);

/* A dirty bitmap that clients can read. */
struct nbd_export_bitmap {
    const char *node;          /* NULL: the first down the backing chain with one of that name */
    const char *name;
};

struct nbd_export_opts {
    const char *id;            /* required; the caller has checked that it is well-formed */
    struct node *node;         /* borrowed for the call; the export holds its own reference */
    const char *name;          /* as clients ask for it; NULL: the node's name */
    const char *description;   /* shown to clients by LIST and INFO; NULL: none. Both at most
                                * LIMIT_NBD_STRING_BYTES */
    bool writable;
    bool writethrough;         /* every write is on stable storage before it is answered */
    bool allocation_depth;     /* offer the metadata context qemu:allocation-depth */
    const struct nbd_export_bitmap *bitmaps;   /* offer qemu:dirty-bitmap:NAME; held meanwhile */
    size_t n_bitmaps;
};

/* Open @o->node for clients. Refused with QEMU's words: an id or a name that is
 * taken, a name or description that is too long, a read-only node as writable,
 * a node in conflicting use, a bitmap that is not there, in use, or records while a
 * read-only export shows it. Texts are copied. Suspends: it visits the node's
 * loop. */
MUST_CHECK bool co_nbd_export_add(struct nbd_exports *x, const struct nbd_export_opts *o,
                                  struct err *err);

/* The same in two steps: what can fail, then letting clients see it. In between it has its id and
 * name, and nobody else can see it or take it away; who closes the table waits. Either publish it
 * (which does not suspend) or drop it, of which nobody is told. */
struct nbd_export;
MUST_CHECK struct nbd_export *co_nbd_export_prepare(struct nbd_exports *x,
                                                    const struct nbd_export_opts *o,
                                                    struct err *err);
void nbd_export_publish(struct nbd_export *e);
void co_nbd_export_drop(struct nbd_export *e);

enum nbd_export_del_mode {
    NBD_EXPORT_DEL_SAFE,   /* refused while clients are connected */
    NBD_EXPORT_DEL_HARD,   /* their connections are shut */
};

/* Begin to take an export away. From here on no client can choose it; it stays
 * in the table, shutting down, until requests in flight have ended and the node
 * is let go; then the on_deleted callback is called. Does not suspend. */
MUST_CHECK bool nbd_export_del(struct nbd_exports *x, const char *id,
                               enum nbd_export_del_mode mode, struct err *err);

/* Wait until export @id is gone. False when loop_now time @deadline came first.
 * One that is not in the table counts as gone. */
MUST_CHECK bool co_nbd_export_wait_gone(struct nbd_exports *x, const char *id, uint64_t deadline);

/* Take every export away, hard, and wait until all are gone. False when
 * @deadline came first; they go on ending then. */
bool co_nbd_exports_close(struct nbd_exports *x, uint64_t deadline);

/* What query-block-exports and people want to know. Pointers are the table's:
 * valid during the callback. */
struct nbd_export_info {
    const char *id;
    const char *name;
    const char *node_name;
    const char *description;   /* "" if none */
    uint64_t size;             /* bytes */
    unsigned connections;
    const struct nbd_stats *stats;
    bool writable;
    bool shutting_down;
};

/* In the order they were added. @fn must not change the table. */
void nbd_exports_for_each(struct nbd_exports *x,
                          void (*fn)(const struct nbd_export_info *info, void *arg), void *arg);

/* ---- servers ------------------------------------------------------------ */

struct nbd_server;

enum nbd_address_kind {
    NBD_ADDRESS_UNIX,
    NBD_ADDRESS_INET,
    NBD_ADDRESS_FD,
};

struct nbd_address {
    enum nbd_address_kind kind;
    const char *path;     /* UNIX */
    const char *host;     /* INET: a name or address without brackets; "" or NULL: every address */
    const char *port;     /* INET: a number or a service's name; "0": any free one */
    int fd;               /* FD: a listening stream socket, taken over on success */
};

#define NBD_DEFAULT_MAX_CONNECTIONS 100       /* QEMU's, qapi/block-export.json */
#define NBD_DEFAULT_HANDSHAKE_SECONDS_MAX 10  /* the same */

struct nbd_server_opts {
    struct nbd_address address;
    struct nbd_exports *exports;   /* must outlive the server */
    uint32_t max_connections;      /* at one time; further ones wait in the backlog. 0: no limit.
                                    * 1 also stops advertising multi-conn */
    uint32_t handshake_seconds_max;   /* a client that has not chosen an export by then is
                                       * disconnected. 0: no limit */
};

/* Listen. A socket file that nobody listens on any more is replaced; a live one
 * is refused ("Failed to bind socket to ...: Address already in use"). Suspends
 * while names are looked up. NULL with @err on failure. */
struct nbd_server *co_nbd_server_start(const struct nbd_server_opts *o, struct err *err);

/* Stop listening, remove the socket file, shut this server's connections (not
 * the exports), and wait until they have ended or until @deadline. @s must not
 * be used afterwards in either case. Takes NULL. */
void co_nbd_server_stop(struct nbd_server *s, uint64_t deadline);

/* The port that an INET server really listens on; 0 for others. */
uint16_t nbd_server_port(const struct nbd_server *s);

/* How clients reach export @name here: "nbd://host:port/name" or
 * "nbd+unix:///name?socket=path", percent-encoded. A server on every address
 * says "localhost". NULL for one that was passed as a descriptor of another
 * family. free() it. */
char *nbd_server_uri(const struct nbd_server *s, const char *name);

/* Connections at this moment, those that still negotiate included. */
unsigned nbd_server_connections(const struct nbd_server *s);

#endif
