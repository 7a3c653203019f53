/* SPDX-License-Identifier: Apache-2.0
 *
 * Listening sockets for an address as users give it. Knows nothing of NBD but
 * how its URIs look.
 */
#ifndef EXPORT_NBD_LISTEN_H
#define EXPORT_NBD_LISTEN_H

#include "base/limits.h"
#include "export/nbd/server.h"

struct nbd_listeners {
    int fds[LIMIT_NBD_LISTENERS];
    unsigned n;
    uint16_t port;           /* INET: the real one */
    char *host;              /* INET: as clients reach it */
    char *path;              /* UNIX */
    bool unlink;             /* the socket file is ours */
    uint64_t dev, ino;       /* of the socket file */
};

/* Open all sockets that @a means. False with @err and nothing left open. Suspends
 * for name lookups, and for the end of the listener of a process that has died. */
MUST_CHECK bool co_nbd_listen(const struct nbd_address *a, struct nbd_listeners *ret,
                              struct err *err);

/* Remove the socket file, unless another one is in its place. */
void nbd_listeners_unlink(struct nbd_listeners *l);
/* Free what is left; descriptors are not closed. */
void nbd_listeners_done(struct nbd_listeners *l);

/* See nbd_server_uri. */
char *nbd_listeners_uri(const struct nbd_listeners *l, const char *name);

#endif
