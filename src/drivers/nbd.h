/* SPDX-License-Identifier: Apache-2.0
 *
 * Private to the driver `nbd`, a client on libnbd: nbd.c holds options, opening
 * and the table; nbd_connect.c makes a connection; nbd_link.c keeps it: polls,
 * notices its loss, makes another; nbd_request.c sends requests.
 *
 *                 +-- lost: the server went, or cancel_in_flight --+
 *                 |                                                v
 *   open --> NBD_UP <---- the keeper has made another -------- NBD_LOST
 *
 * NBD_UP: there is a handle, and requests are sent. NBD_LOST: requests wait until
 * it is up again or loop_now passes give_up_at (at once without reconnect-delay),
 * then fail; the keeper tries for ever, ever more seldom.
 *
 * One coroutine, the keeper, polls the connection, and it alone closes a handle:
 * it is never inside libnbd or a poll then. All of it belongs to the node's loop.
 */
#ifndef DRIVERS_NBD_H
#define DRIVERS_NBD_H

#include "drivers/drivers.h"
#include "drivers/extent_cache.h"
#include "loop/co_io.h"
#include <libnbd.h>

struct nbd_address {
    char *path;               /* Unix socket; NULL: TCP */
    bool abstract;            /* in Linux's name space of sockets without files */
    bool tight;               /* abstract: the name ends with the path, no NULs after it */
    char *host, *port;
    bool numeric, keep_alive;
    int family;               /* AF_UNSPEC, AF_INET, AF_INET6 */
};

/* What the server said of the export; must be the same after reconnecting. */
struct nbd_facts {
    uint64_t size;
    uint32_t block_min, block_preferred, block_max;   /* 0: not said */
    bool read_only, can_flush, can_fua, can_trim, can_zero, can_fast_zero, has_status;
};

enum nbd_link { NBD_UP, NBD_LOST };

struct nbd_state {
    struct node *n;
    struct nbd_address address;
    char *export;
    char *context;            /* what status is asked of; "base:allocation" if nothing was chosen */
    bool context_chosen;
    char *uri;                /* for people */
    uint64_t reconnect_delay; /* ns */
    struct nbd_facts facts;

    enum nbd_link link;
    uint64_t give_up_at;      /* NBD_LOST: requests do not wait beyond it (loop_now time) */
    uint64_t cancels;         /* calls of cancel_in_flight: a request that sees it change fails */
    bool cut;                 /* the handle is to be dropped though the server may be there */

    struct nbd_handle *h;     /* NULL only while there is no connection */
    int fd;                   /* our own duplicate of its socket: libnbd closes its one when it
                               *   likes, even while we poll */
    unsigned awaited;         /* the directions that the keeper polls for now; 0: it does not */
    struct list in_flight;    /* struct nbd_request */
    unsigned n_in_flight;
    struct waitq up;          /* requests that wait in NBD_LOST */

    /* Writes that the server acknowledged, and those of them that a flush covers. A
     * server that is gone for longer than reconnect-delay may have lost the others:
     * every flush fails from then on. One that is back in time is trusted. */
    uint64_t writes, flushed;
    bool writes_lost;

    /* The keeper, and whoever else connects: in one of these waits at a time. */
    bool keeping;             /* the keeper runs */
    bool stop;                /* end, soon */
    struct co_poll poll;
    struct waitq nap;
    struct waitq keeper_gone;

    uint64_t look_ahead;      /* how much one look-up of status asks for, bytes; adapts */
    struct extent_cache extents;
};

/* ---- nbd_connect.c --------------------------------------------------------- */

/* Connect to s->address and negotiate; gives up at @deadline (loop_now time) or
 * when s->stop is set and nbd_link_wake called. On success the caller owns the handle
 * and the duplicate of its socket. */
struct nbd_connection {
    struct nbd_handle *h;
    int fd;
    struct nbd_facts facts;
};
MUST_CHECK bool co_nbd_connect(struct nbd_state *s, uint64_t deadline, struct nbd_connection *ret,
                               struct err *err);
void nbd_connection_close(struct nbd_connection *c);

/* Let libnbd read or write as poll's @revents allow. Its result: -1 leaves a text
 * for nbd_reason. */
int nbd_notify(struct nbd_handle *h, short revents);
/* What libnbd's last call in this thread failed for, without the call's name. */
const char *nbd_reason(void);
/* poll events for libnbd's directions. */
short nbd_poll_events(unsigned direction);

/* ---- nbd_link.c --------------------------------------------------------------- */

/* Take over a connection and start the keeper. */
void nbd_link_start(struct nbd_state *s, const struct nbd_connection *c);
/* End the keeper, wherever it waits; the handle stays. */
void co_nbd_link_pause(struct nbd_state *s);
void nbd_link_resume(struct nbd_state *s);
/* End the waits of the keeper, or of whoever else connects, early. */
void nbd_link_wake(struct nbd_state *s);
/* After co_nbd_link_pause: say good-bye if the server listens, and close. Waits a
 * second at most. */
void co_nbd_link_close(struct nbd_state *s);
/* Give up the connection and all that is in flight on it or waits for another. */
void nbd_link_cancel(struct nbd_state *s);
/* After each call of libnbd that issues a command: notice that it wants to be polled
 * otherwise, or that it has died. */
void nbd_link_check(struct nbd_state *s);
/* Wait until requests can be sent. 0; -ECANCELED when s->cancels is not @cancels;
 * -EIO when there is no connection for longer than anybody wants to wait. */
MUST_CHECK int co_nbd_link_wait(struct nbd_state *s, uint64_t cancels);

/* ---- nbd_request.c ------------------------------------------------------------ */

/* On the stack of its coroutine, from before it is sent until it has ended. */
struct nbd_request {
    struct list link;         /* s->in_flight */
    struct nbd_state *s;
    struct co *co;
    bool done;
    int error;                /* positive errno or 0; ENOTCONN: the connection was lost */
};
/* The request has ended with @error; its coroutine goes on. */
void nbd_request_done(struct nbd_request *rq, int error);

int co_nbd_preadv(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                  unsigned flags);
int co_nbd_pwritev(struct node *n, uint64_t off, uint64_t len, const struct iovec *iov, int niov,
                   unsigned flags);
int co_nbd_write_zeroes(struct node *n, uint64_t off, uint64_t len, unsigned flags);
int co_nbd_discard(struct node *n, uint64_t off, uint64_t len);
int co_nbd_flush(struct node *n);
int co_nbd_status(struct node *n, uint64_t off, uint64_t len, struct block_status *ret);

#endif
