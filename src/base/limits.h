/* SPDX-License-Identifier: Apache-2.0
 *
 * Every bound on what outside bytes can make the program do, by name. A section
 * a room, each limit with its unit and the reason for its size. Code that
 * allocates, recurses, queues or loops on an outside number refers to one of
 * these, and a test reaches it.
 */
#ifndef BASE_LIMITS_H
#define BASE_LIMITS_H

/* --- base --- */

/* Nesting of JSON and of "a.b.c=" keys. Decoding recurses on stacks of
 * coroutines, which are small; a deep backing chain is built node by node. */
#define LIMIT_JSON_DEPTH 64

/* Elements of one decoded array: each costs the size of its C struct, which can
 * be a hundred times the bytes that ask for it. */
#define LIMIT_SCHEMA_ARRAY 16384

/* Bytes in one fragment of a "key.sub=value" key, as QEMU's util/keyval.c. */
#define LIMIT_KEY_FRAGMENT 127

/* --- export: nbd --- */

/* Bytes of an export's name, a description, a query, an error text: the
 * protocol's bound on strings (doc/proto.md, "Conventions"). */
#define LIMIT_NBD_STRING_BYTES 4096

/* Bytes of an option's data that is looked at: a GO with the longest name and
 * every information request fits, and a dozen of the longest queries. */
#define LIMIT_NBD_OPTION_BYTES (64 * 1024)

/* Bytes of an option's data that are read and dropped to answer "too big"
 * politely; a longer one ends the connection. */
#define LIMIT_NBD_OPTION_SKIP_BYTES (1024 * 1024)

/* Clients of one server that are still negotiating; more wait in the backlog. */
#define LIMIT_NBD_HANDSHAKES 64

/* Sockets that one server listens on: a host name may have several addresses. */
#define LIMIT_NBD_LISTENERS 8

/* Bytes of a read or write request, also told to clients: QEMU's and the
 * Linux kernel's bound. */
#define LIMIT_NBD_REQUEST_BYTES (32 * 1024 * 1024)

/* Bytes of a write's data that are read and dropped so that the connection
 * survives the error; a longer one ends it. */
#define LIMIT_NBD_SKIP_BYTES (64 * 1024 * 1024)

/* Requests of one connection between header and reply: four times the queue
 * depth that people measure with. Further ones stay in the socket. */
#define LIMIT_NBD_CONN_REQUESTS 128

/* Bytes of request buffers: of one connection; of it what it need not share
 * (every request slot with 16 KiB); of all connections of a loop together. */
#define LIMIT_NBD_CONN_BYTES (64ULL * 1024 * 1024)
#define LIMIT_NBD_CONN_OWN_BYTES (2ULL * 1024 * 1024)
#define LIMIT_NBD_LOOP_BYTES (512ULL * 1024 * 1024)

/* Bytes of free buffers that a loop keeps for the next request. */
#define LIMIT_NBD_KEPT_BYTES (32ULL * 1024 * 1024)

/* A client that holds shared buffers and neither sends what it announced nor
 * takes what it asked for is disconnected after this when others need them. */
#define LIMIT_NBD_STALL_SECONDS 10

/* Extents in one answer to a block status request; clients ask again for the rest. */
#define LIMIT_NBD_EXTENTS 4096

/* Bytes that a cache request reads at a time. */
#define LIMIT_NBD_CACHE_STEP_BYTES (1024 * 1024)

#endif
