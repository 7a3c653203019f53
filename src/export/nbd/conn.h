/* SPDX-License-Identifier: Apache-2.0
 *
 * What the main-loop half of the NBD server shares between its files: exports,
 * connections and the negotiation. All of it belongs to the main loop; the
 * transmission phase sees none of it (serve.h).
 *
 *   accept --> negotiate --(GO, EXPORT_NAME)--> transmit --> gone
 *                  \__________________________________________^
 *
 * One coroutine carries a connection through (conn.c:co_nbd_conn): negotiation
 * on the main loop, then co_loop_call to the export's loop for transmission,
 * then the end, on the main loop again.
 */
#ifndef EXPORT_NBD_CONN_H
#define EXPORT_NBD_CONN_H

#include "base/limits.h"
#include "base/strbuf.h"
#include "export/nbd/serve.h"
#include "export/nbd/server.h"

/* ---- export.c ----------------------------------------------------------- */

/* The buffers of one loop, shared by the exports that live there. */
struct nbd_loop_buffers {
    struct list link;
    struct loop *loop;
    struct nbd_buffers *buffers;
    unsigned users;
};

struct nbd_exports {
    struct loop *loop;
    struct list exports;           /* in the order they were added */
    struct list loop_buffers;
    uint64_t next_seq;
    struct waitq changed;          /* an export is gone or was added */
    void (*deleted)(const char *id, void *arg);
    void *deleted_arg;
};

enum nbd_export_state {
    NBD_EXPORT_OPENING,            /* id and name are taken; nobody sees it */
    NBD_EXPORT_LIVE,
    NBD_EXPORT_SHUTTING_DOWN,      /* until its connections have ended */
    NBD_EXPORT_CLOSING,            /* its node is being let go */
};

struct nbd_export {
    struct list link;
    struct nbd_exports *table;
    enum nbd_export_state state;
    uint64_t seq;                  /* grows; for walking the table across suspensions */
    char *id, *name, *description;
    char *node_name;               /* kept: told of while the node is being let go */
    struct node *node;             /* a reference */
    struct disk_user *disk;        /* its loop's */
    struct nbd_loop_buffers *buffers;
    uint64_t size;                 /* fixed: the export does not share resizing */
    struct nbd_block_sizes block_sizes;
    bool writable, writethrough;
    bool discard_only;             /* of what writes only TRIM, if it is writable */
    struct nbd_context contexts[LIMIT_NBD_CONTEXTS];   /* fixed while it is live */
    unsigned n_contexts;
    struct list conns;
    unsigned n_conns;
    struct nbd_stats stats;
};

/* The live export that a client means by @name; "" is the only one there is,
 * if there is only one. NULL: none. */
struct nbd_export *nbd_export_find(struct nbd_exports *x, const struct nbd_str *name);
/* The first live export, and the one after @e. NULL: none. */
struct nbd_export *nbd_export_first(struct nbd_exports *x);
struct nbd_export *nbd_export_next(const struct nbd_export *e);
/* The first one that was added after seq @seq: to go on after a suspension. */
struct nbd_export *nbd_export_after(struct nbd_exports *x, uint64_t seq);

/* ---- contexts.c: on the export's loop ---------------------------------------- */

/* Fill in e->contexts, as @o wants it, and hold the bitmaps. False with nothing held. */
MUST_CHECK bool nbd_export_add_contexts(struct nbd_export *e, const struct nbd_export_opts *o,
                                        struct err *err);
void nbd_export_drop_contexts(struct nbd_export *e);

/* ---- conn.c ------------------------------------------------------------- */

struct nbd_conn {
    struct list link;              /* the server's */
    struct list export_link;       /* the export's, once one was chosen */
    struct nbd_server *server;
    struct nbd_exports *exports;
    struct stream *stream;
    unsigned refs;
    bool negotiating;
    bool stopping;
    bool multi_conn;               /* whether to advertise it */
    struct loop_timer deadline;    /* of the negotiation */

    /* What was negotiated. */
    bool no_zeroes;
    bool structured;
    uint64_t contexts;             /* selected, for the export of this name: */
    char *meta_name;
    struct nbd_export *export;     /* chosen; counted there */
    struct nbd_tx *tx;             /* made when transmission begins: */
    struct loop *tx_loop;          /* where it runs, and where @tx and @stream are used then */
};

struct nbd_conn_opts {
    struct nbd_server *server;
    struct nbd_exports *exports;
    int fd;                        /* taken over */
    bool multi_conn;
    uint32_t handshake_seconds_max;   /* 0: no limit */
};
/* A connection whose coroutine begins to negotiate in this turn. When it ends
 * it calls nbd_server_conn_gone. */
struct nbd_conn *nbd_conn_start(const struct nbd_conn_opts *o);

/* Choose @e for this connection, or take the choice back. */
void nbd_conn_choose(struct nbd_conn *c, struct nbd_export *e);
void nbd_conn_unchoose(struct nbd_conn *c);

/* Make the connection end soon. Requests that were taken are answered. Does not
 * suspend. */
void nbd_conn_stop(struct nbd_conn *c);

/* Transmission flags for @e on this connection. */
uint16_t nbd_conn_flags(const struct nbd_conn *c, const struct nbd_export *e);

/* ---- export.c again, for conn.c ----------------------------------------- */

/* A connection of @e ended: the last one lets an export that shuts down go on. */
void nbd_export_conn_gone(struct nbd_export *e);

/* ---- server.c, for conn.c ----------------------------------------------- */

void nbd_server_conn_negotiated(struct nbd_server *s);
void nbd_server_conn_gone(struct nbd_server *s, struct nbd_conn *c);

/* ---- handshake.c -------------------------------------------------------- */

/* Negotiate until an export is chosen (true) or there is nothing more to say. */
bool co_nbd_handshake(struct nbd_conn *c);

/* One option being answered. Replies are gathered in @out and sent when the
 * handler has returned. */
struct nbd_handshake {
    struct nbd_conn *conn;
    uint32_t option;
    struct strbuf out;
};

enum nbd_next {
    NBD_NEXT_OPTION,
    NBD_NEXT_TRANSMIT,
    NBD_NEXT_CLOSE,
};

/* Add a reply to the current option. @data may be NULL for none. */
void nbd_hs_reply(struct nbd_handshake *hs, uint32_t reply, const void *data, size_t len);
/* Add an error reply with a text for people, and go on with the next option. */
enum nbd_next nbd_hs_refuse(struct nbd_handshake *hs, uint32_t error, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
/* Send what was gathered. 0 or -errno. */
MUST_CHECK int co_nbd_hs_flush(struct nbd_handshake *hs);

/* ---- options.c, meta.c -------------------------------------------------- */

/* Answers one option whose @data of @len bytes was read. */
typedef enum nbd_next nbd_option_fn(struct nbd_handshake *hs, const uint8_t *data, uint32_t len);

/* NULL: we do not know that option. */
nbd_option_fn *nbd_option_handler(uint32_t option);

nbd_option_fn nbd_opt_list_meta_context;
nbd_option_fn nbd_opt_set_meta_context;

/* "export 'x' not present", NBD_REP_ERR_UNKNOWN. */
enum nbd_next nbd_hs_unknown_export(struct nbd_handshake *hs, const struct nbd_str *name);

#endif
