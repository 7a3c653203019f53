/* SPDX-License-Identifier: Apache-2.0
 *
 * Socket addresses as QMP and the command line spell them (QEMU
 * qapi/sockets.json): SocketAddress {type, ...} and SocketAddressLegacy
 * {type, data: {...}}.
 */
#ifndef QMP_ADDRESS_H
#define QMP_ADDRESS_H

#include "base/schema.h"
#include "export/nbd/server.h"

struct inet_address {
    char *host, *port;
    bool has_numeric, numeric;
};

struct unix_address {
    char *path;
};

struct fd_address {
    char *str;
};

enum socket_address_kind { SOCKET_ADDRESS_INET, SOCKET_ADDRESS_UNIX, SOCKET_ADDRESS_FD };

/* Both types decode to this. */
struct socket_address {
    int type;          /* enum socket_address_kind */
    void *branch;      /* one of the above */
};

extern const struct schema_type socket_address_type, socket_address_legacy_type;

/* What @a says, with pointers into it. A descriptor's number is not looked at. */
MUST_CHECK bool address_resolve(const struct socket_address *a, struct nbd_address *ret,
                                struct err *err);

#endif
