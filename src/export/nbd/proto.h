/* SPDX-License-Identifier: Apache-2.0
 *
 * The NBD protocol's bytes, and nothing else: parsing what clients send,
 * building what they get. Pure: no I/O, no allocation, any thread; fuzzed by
 * tests/fuzz/fuzz_nbd_proto.c. All numbers on the wire are big-endian.
 * Names and sections are those of doc/proto.md of the NBD project.
 */
#ifndef EXPORT_NBD_PROTO_H
#define EXPORT_NBD_PROTO_H

#include "base/base.h"

/* ---- handshake ("Newstyle negotiation", "Option types") ----------------- */

#define NBD_INIT_MAGIC 0x4e42444d41474943ULL    /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC 0x49484156454f5054ULL  /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x3e889045565a9ULL

enum {
    NBD_FLAG_FIXED_NEWSTYLE = 1 << 0,   /* both the server's and the client's flags */
    NBD_FLAG_NO_ZEROES = 1 << 1,
};

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

enum nbd_option_reply {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
};

#define NBD_REP_ERR(n) ((1U << 31) + (n))
#define NBD_REP_ERR_UNSUP NBD_REP_ERR(1)
#define NBD_REP_ERR_POLICY NBD_REP_ERR(2)
#define NBD_REP_ERR_INVALID NBD_REP_ERR(3)
#define NBD_REP_ERR_UNKNOWN NBD_REP_ERR(6)
#define NBD_REP_ERR_SHUTDOWN NBD_REP_ERR(7)
#define NBD_REP_ERR_TOO_BIG NBD_REP_ERR(9)

enum nbd_info_type {
    NBD_INFO_EXPORT = 0,
    NBD_INFO_NAME = 1,
    NBD_INFO_DESCRIPTION = 2,
    NBD_INFO_BLOCK_SIZE = 3,
};

/* "Transmission flags" */
enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

#define NBD_GREETING_BYTES 18
#define NBD_CLIENT_FLAGS_BYTES 4
#define NBD_OPTION_BYTES 16
#define NBD_OPTION_REPLY_BYTES 20
#define NBD_EXPORT_REPLY_BYTES_MAX (10 + 124)
#define NBD_INFO_EXPORT_BYTES 12
#define NBD_INFO_BLOCK_SIZE_BYTES 14

void nbd_put_greeting(uint8_t out[static NBD_GREETING_BYTES], uint16_t flags);
uint32_t nbd_get_client_flags(const uint8_t in[static NBD_CLIENT_FLAGS_BYTES]);

/* An option's header. False: the magic is wrong. */
MUST_CHECK bool nbd_get_option(const uint8_t in[static NBD_OPTION_BYTES], uint32_t *ret_option,
                               uint32_t *ret_len);
void nbd_put_option_reply(uint8_t out[static NBD_OPTION_REPLY_BYTES], uint32_t option,
                          uint32_t reply, uint32_t len);

/* The answer to EXPORT_NAME; the number of bytes it takes. */
size_t nbd_put_export_reply(uint8_t out[static NBD_EXPORT_REPLY_BYTES_MAX], uint64_t size,
                            uint16_t flags, bool no_zeroes);

void nbd_put_info_export(uint8_t out[static NBD_INFO_EXPORT_BYTES], uint64_t size, uint16_t flags);

struct nbd_block_sizes {
    uint32_t min, preferred, max;
};
void nbd_put_info_block_size(uint8_t out[static NBD_INFO_BLOCK_SIZE_BYTES],
                             const struct nbd_block_sizes *bs);

/* A string inside an option's data: not terminated. */
struct nbd_str {
    const char *p;
    uint32_t len;
};
bool nbd_str_is(const struct nbd_str *s, const char *text);

/* The data of INFO and GO. False: malformed, with *ret_why set to static text. */
struct nbd_go {
    struct nbd_str name;
    uint16_t n_infos;
    const uint8_t *infos;      /* 2 bytes each, unaligned */
};
MUST_CHECK bool nbd_get_go(const uint8_t *data, size_t len, struct nbd_go *ret,
                           const char **ret_why);
bool nbd_go_asks(const struct nbd_go *go, uint16_t info_type);

/* The data of LIST_META_CONTEXT and SET_META_CONTEXT, checked to the last
 * query, so that nbd_next_query cannot fail. */
struct nbd_meta {
    struct nbd_str name;
    uint32_t n_queries;
    const uint8_t *next;       /* nbd_next_query's */
};
MUST_CHECK bool nbd_get_meta(const uint8_t *data, size_t len, struct nbd_meta *ret,
                             const char **ret_why);
struct nbd_str nbd_next_query(struct nbd_meta *m);   /* at most n_queries times */

/* ---- transmission ("Transmission", "Request types") --------------------- */

#define NBD_REQUEST_MAGIC 0x25609513U
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698U
#define NBD_CHUNK_MAGIC 0x668e33efU

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

#define NBD_CHUNK_FLAG_DONE (1 << 0)

enum nbd_chunk_type {
    NBD_CHUNK_NONE = 0,
    NBD_CHUNK_OFFSET_DATA = 1,
    NBD_CHUNK_OFFSET_HOLE = 2,
    NBD_CHUNK_BLOCK_STATUS = 5,
    NBD_CHUNK_ERROR = (1 << 15) + 1,
};

enum {
    NBD_STATE_HOLE = 1 << 0,
    NBD_STATE_ZERO = 1 << 1,
};
enum {
    NBD_STATE_DIRTY = 1 << 0,      /* of qemu:dirty-bitmap: */
};

struct nbd_request {
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;     /* the client's, opaque ("handle" in older texts) */
    uint64_t offset;
    uint32_t length;
};

#define NBD_REQUEST_BYTES 28
#define NBD_SIMPLE_REPLY_BYTES 16
#define NBD_CHUNK_BYTES 20
#define NBD_EXTENT_BYTES 8
#define NBD_STATUS_CHUNK_BYTES (NBD_CHUNK_BYTES + 4)

/* "Metadata querying", and QEMU's docs/interop/nbd.rst for what is its own. */
#define NBD_CONTEXT_ALLOCATION "base:allocation"
#define NBD_CONTEXT_DEPTH "qemu:allocation-depth"
#define NBD_CONTEXT_BITMAP_PREFIX "qemu:dirty-bitmap:"

/* Whether a client that lists contexts with the query @q asks for the context
 * @name: by its name, or by its name space with ':' at the end. */
bool nbd_query_lists(const struct nbd_str *q, const char *name);

/* False: the magic is wrong, the stream is lost. */
MUST_CHECK bool nbd_get_request(const uint8_t in[static NBD_REQUEST_BYTES],
                                struct nbd_request *ret);

/* Each returns the bytes written: the whole header up to where data follows. */
size_t nbd_put_simple_reply(uint8_t *out, uint64_t cookie, uint32_t nbd_error);
size_t nbd_put_none_chunk(uint8_t *out, uint64_t cookie);
size_t nbd_put_data_chunk(uint8_t *out, uint64_t cookie, uint64_t offset, uint32_t data_len);
size_t nbd_put_error_chunk(uint8_t *out, uint64_t cookie, uint32_t nbd_error, uint16_t text_len);
/* One of as many chunks as there are contexts; @last ends the reply. */
size_t nbd_put_status_chunk(uint8_t *out, uint64_t cookie, uint32_t context_id,
                            uint32_t n_extents, bool last);
void nbd_put_extent(uint8_t out[static NBD_EXTENT_BYTES], uint32_t length, uint32_t flags);

/* Room that suffices for any of the headers above. */
#define NBD_REPLY_HEAD_BYTES_MAX 32

/* "Error values": the protocol's number for a negative errno (0 for 0). */
uint32_t nbd_error_of(int r);

#endif
