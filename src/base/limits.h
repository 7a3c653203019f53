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

/* Metadata contexts of an export: the bits of a uint64_t. Two of them are no dirty
 * bitmaps. Each takes its extents' room in every answer to block status. */
#define LIMIT_NBD_CONTEXTS 64

/* Bytes that a cache request reads at a time. */
#define LIMIT_NBD_CACHE_STEP_BYTES (1024 * 1024)

/* --- drivers --- */

/* Bytes of one read or write over NBD: what a server without a say in it must
 * take (NBD doc/proto.md, "Block size constraints"). */
#define LIMIT_NBD_TRANSFER (32U * 1024 * 1024)

/* From looking a server's name up to the end of negotiation. A server that starts
 * something to answer (a virtual machine, a tunnel) needs seconds; one that hangs
 * must not hold its caller for ever. */
#define LIMIT_NBD_CONNECT_NS (30ULL * 1000 * 1000 * 1000)

/* --- drivers/qcow2 --- */

/* Files that the scratch of one view may be spread over, where the file system has none
 * as large as the disk (cbw/parts.h). A power of two. */
#define LIMIT_SCRATCH_PARTS 64

/* The L1 table and the refcount table stay in memory whole. QEMU's limits, so
 * that every image which QEMU can open fits. */
#define LIMIT_QCOW2_L1_BYTES (32 * MiB)
#define LIMIT_QCOW2_REFTABLE_BYTES (8 * MiB)

/* The format's bound on the name of a backing file, bytes without terminator. */
#define LIMIT_QCOW2_BACKING_NAME 1023

/* Internal snapshots of one image, as QEMU. */
#define LIMIT_QCOW2_SNAPSHOTS 65536

/* Bytes of L1 tables of snapshots that are read when an image is opened for writing, to
 * know where their L2 tables are. Tables beyond that are guarded by refcounts alone. */
#define LIMIT_QCOW2_SNAPSHOT_L1_BYTES (16 * MiB)

/* Entries of a bitmap's table: what LIMIT_QCOW2_BITMAP_BYTES need in the smallest
 * clusters. */
#define LIMIT_QCOW2_BITMAP_TABLE_ENTRIES (1U << 20)

/* Memory for the metadata caches of one image, bytes, whatever options say. */
#define LIMIT_QCOW2_CACHE_BYTES (1 * GiB)

/* Runs of freed clusters that wait for a flush before they may be used again;
 * with more of them the image is flushed unasked. */
#define LIMIT_QCOW2_FREED_RUNS 65536

/* Pieces of one guest request that are under way at the same time. */
#define LIMIT_QCOW2_PIECES 8

/* Clusters of one image that are being compressed and written at the same time, each
 * with up to two buffers of its size. */
#define LIMIT_QCOW2_PACKERS 16

/* A check of an image: bytes for the references counted at a time; L2 tables that
 * are gone through at a time (24 bytes each); refcounts that are looked at one by one
 * (those of 512 TiB that is never alike for 256 clusters: a minute); lines about
 * what is wrong. With these it takes less than 512 MiB. */
#define LIMIT_QCOW2_CHECK_COUNT_BYTES (256 * MiB)
#define LIMIT_QCOW2_CHECK_L2_TABLES (2U << 20)
#define LIMIT_QCOW2_CHECK_REFCOUNTS (1ULL << 33)
#define LIMIT_QCOW2_CHECK_LINES 10000U

/* Bytes of a snapshot table and of what a snapshot has in it beside what is known,
 * and of a bitmap directory; bytes of a bitmap; as QEMU. */
#define LIMIT_QCOW2_SNAPSHOT_TABLE_BYTES (64 * MiB)
#define LIMIT_QCOW2_SNAPSHOT_EXTRA_BYTES 1024U
#define LIMIT_QCOW2_BITMAPS 65535U
#define LIMIT_QCOW2_BITMAP_DIR_BYTES (LIMIT_QCOW2_BITMAPS * 1024ULL)
#define LIMIT_QCOW2_BITMAP_BYTES (512 * MiB)

/* Memory that the bits of all bitmaps of an image may take when it is opened, beside as much
 * as the image has on disk: a directory may name the same table of bits 65535 times. Whoever
 * keeps them takes as much again, and more. */
#define LIMIT_QCOW2_LOADED_BITMAP_BYTES (96 * MiB)

/* --- block --- */

/* Images in a backing chain. Chains come from image headers, which may name each
 * other for ever over a network; nobody keeps so many snapshots. */
#define LIMIT_CHAIN_DEPTH 1024U

/* Images of a chain that one coroutine's stack has to be enough for when a read
 * goes down the chain: a new one is taken then. */
#define LIMIT_CHAIN_PER_STACK 16U

/* Nodes on top of each other without a backing chain, such as filters: every
 * request passes all of them on one stack. */
#define LIMIT_NODE_HEIGHT 32U

/* Bytes that one unaligned request may hold in a bounce buffer at a time. */
#define LIMIT_BOUNCE_BYTES (1U << 20)

/* Bytes written at a time where zeros have to be written as data. */
#define LIMIT_ZERO_WRITE_BYTES (1U << 20)

/* --- sidecar --- */

/* Persistent bitmaps of a node, and bytes of the bits of one (64 TiB in granules of 8 KiB):
 * more than that is no use, and a damaged file may ask for anything. */
#define LIMIT_SIDECAR_BITMAPS 1024U
#define LIMIT_SIDECAR_AREA_BYTES (1 * GiB)

/* --- cbw --- */

/* Captures of one view at a time, and bytes of their buffers. Guests' requests
 * wait beyond that; it bounds what a source that hangs can pile up. */
#define LIMIT_VIEW_CAPTURES 128U
#define LIMIT_VIEW_CAPTURE_BYTES (32U << 20)

/* --- job --- */

/* Parallel copies of one backup, and bytes of their buffers. */
#define LIMIT_BACKUP_WORKERS 64U
#define LIMIT_BACKUP_BYTES (64U << 20)

/* --- qmp --- */

/* Bytes of one message to a monitor. Parsed it can take a hundred times as much
 * memory; no command that makes sense is longer than a few KiB. */
#define LIMIT_QMP_INPUT (1 * MiB)

/* Bytes that wait for a monitor that does not read; then it is disconnected. */
#define LIMIT_QMP_OUTPUT (8 * MiB)

/* Actions of one transaction: guests stand still until the last disk is cut. */
#define LIMIT_TRANSACTION_ACTIONS 1024U

/* Monitor connections at one time, each of which has two coroutines. */
#define LIMIT_QMP_MONITORS 256U

/* --- quiesce --- */

/* Bytes of one answer of a guest agent, which is some software in somebody's guest. */
#define LIMIT_AGENT_ANSWER_BYTES (64 * KiB)

/* --- set --- */

/* Bytes of one manifest of a backup set: a thousand disks fit many times over. */
#define LIMIT_SET_MANIFEST_BYTES (8 * MiB)

/* Disks of one point: a transaction cannot cut more. */
#define LIMIT_SET_DISKS 1024U

/* Points of one set, and other files in its directory that are told of. */
#define LIMIT_SET_POINTS 65536U

/* --- app --- */

/* What is wrong in a backup set, told one by one; more is counted. */
#define LIMIT_VERIFY_FINDINGS 10000U

/* Bytes of one message from a daemon to a command: a thousand jobs or nodes fit
 * many times over. */
#define LIMIT_QMP_ANSWER_BYTES (16 * MiB)

/* Events that come while a command waits for an answer. */
#define LIMIT_QMP_CLIENT_EVENTS 65536U

#endif
