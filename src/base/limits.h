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

#endif
