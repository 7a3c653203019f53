/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory that NBD requests of one loop carry their data in. Buffers come
 * from free lists, so that requests of common sizes allocate nothing, and are
 * accounted for: a connection may hold LIMIT_NBD_CONN_BYTES; the first
 * LIMIT_NBD_CONN_OWN_BYTES are its own, the rest is claimed from what all
 * connections of the loop share (LIMIT_NBD_LOOP_BYTES). So a client that sits
 * on shared memory never stops the small requests of others; and when somebody
 * waits for shared memory, holders whose peer has not moved for
 * LIMIT_NBD_STALL_SECONDS are shut. Everything is for the one loop, except
 * making and freeing.
 */
#ifndef EXPORT_NBD_BUFFERS_H
#define EXPORT_NBD_BUFFERS_H

#include "loop/co_sync.h"

struct nbd_buffers;

struct nbd_buffers *nbd_buffers_new(void);
/* When no holder is left. Takes NULL. */
void nbd_buffers_free(struct nbd_buffers *b);

/* What a connection waits for its peer to do. */
enum nbd_wait {
    NBD_WAIT_SEND,             /* the data that it announced */
    NBD_WAIT_TAKE,             /* its replies */
};

/* A connection as the accounts see it. */
struct nbd_holder {
    struct list link;
    struct nbd_buffers *from;
    uint64_t own;              /* bytes held of its own share */
    uint64_t shared;           /* bytes held of the shared ones */
    uint64_t waits_since[2];   /* by nbd_wait: loop_now time; 0: it does not wait */
    struct waitq room;         /* the one who waits for this connection's own limit */
    void (*evict)(struct nbd_holder *h);
};

void nbd_holder_init(struct nbd_holder *h, struct nbd_buffers *b,
                     void (*evict)(struct nbd_holder *h));
void nbd_holder_done(struct nbd_holder *h);   /* when everything was put back */

/* The peer is expected to move from now on; and it did. */
void nbd_holder_waits(struct nbd_holder *h, enum nbd_wait what);
void nbd_holder_moved(struct nbd_holder *h, enum nbd_wait what);
/* Whether it was expected to move @seconds ago and has not. */
bool nbd_holder_stalls(const struct nbd_holder *h, enum nbd_wait what, unsigned seconds);

struct nbd_buffer {
    void *p;                   /* NULL: none */
    uint32_t cap;
    bool shared;
};

/* A buffer for @len bytes (not 0, at most LIMIT_NBD_REQUEST_BYTES), aligned for
 * O_DIRECT. Suspends until the limits allow it. One coroutine a holder.
 * -ENOMEM when memory is out. */
MUST_CHECK int co_nbd_buffer_get(struct nbd_holder *h, uint32_t len, struct nbd_buffer *ret);
/* Harmless for none. */
void nbd_buffer_put(struct nbd_holder *h, struct nbd_buffer *buf);

#endif
