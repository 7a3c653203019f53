/* SPDX-License-Identifier: Apache-2.0
 *
 * Big-endian in and out, field by field in the order of doc/proto.md.
 */
#include "export/nbd/proto.h"
#include "base/bytes.h"
#include "base/limits.h"

/* ---- handshake ---------------------------------------------------------- */

void nbd_put_greeting(uint8_t out[static NBD_GREETING_BYTES], uint16_t flags)
{
    store_be64(out, NBD_INIT_MAGIC);
    store_be64(out + 8, NBD_OPTION_MAGIC);
    store_be16(out + 16, flags);
}

uint32_t nbd_get_client_flags(const uint8_t in[static NBD_CLIENT_FLAGS_BYTES])
{
    return load_be32(in);
}

bool nbd_get_option(const uint8_t in[static NBD_OPTION_BYTES], uint32_t *ret_option,
                    uint32_t *ret_len)
{
    if (load_be64(in) != NBD_OPTION_MAGIC)
        return false;
    *ret_option = load_be32(in + 8);
    *ret_len = load_be32(in + 12);
    return true;
}

void nbd_put_option_reply(uint8_t out[static NBD_OPTION_REPLY_BYTES], uint32_t option,
                          uint32_t reply, uint32_t len)
{
    store_be64(out, NBD_OPTION_REPLY_MAGIC);
    store_be32(out + 8, option);
    store_be32(out + 12, reply);
    store_be32(out + 16, len);
}

size_t nbd_put_export_reply(uint8_t out[static NBD_EXPORT_REPLY_BYTES_MAX], uint64_t size,
                            uint16_t flags, bool no_zeroes)
{
    store_be64(out, size);
    store_be16(out + 8, flags);
    if (no_zeroes)
        return 10;
    memset(out + 10, 0, 124);
    return 10 + 124;
}

void nbd_put_info_export(uint8_t out[static NBD_INFO_EXPORT_BYTES], uint64_t size, uint16_t flags)
{
    store_be16(out, NBD_INFO_EXPORT);
    store_be64(out + 2, size);
    store_be16(out + 10, flags);
}

void nbd_put_info_block_size(uint8_t out[static NBD_INFO_BLOCK_SIZE_BYTES],
                             const struct nbd_block_sizes *bs)
{
    store_be16(out, NBD_INFO_BLOCK_SIZE);
    store_be32(out + 2, bs->min);
    store_be32(out + 6, bs->preferred);
    store_be32(out + 10, bs->max);
}

/* ---- option data -------------------------------------------------------- */

/* What is left of an option's data. Every take checks; nothing is read past it. */
struct cursor {
    const uint8_t *p;
    size_t left;
};

static bool take_u16(struct cursor *c, uint16_t *ret)
{
    if (c->left < 2)
        return false;
    *ret = load_be16(c->p);
    c->p += 2;
    c->left -= 2;
    return true;
}

static bool take_u32(struct cursor *c, uint32_t *ret)
{
    if (c->left < 4)
        return false;
    *ret = load_be32(c->p);
    c->p += 4;
    c->left -= 4;
    return true;
}

/* A 32-bit length and so many bytes. */
static bool take_str(struct cursor *c, struct nbd_str *ret, const char *too_long,
                     const char **ret_why)
{
    uint32_t len;

    *ret_why = "the option's data is too short";
    if (!take_u32(c, &len))
        return false;
    if (len > LIMIT_NBD_STRING_BYTES) {
        *ret_why = too_long;
        return false;
    }
    if (len > c->left)
        return false;
    *ret = (struct nbd_str){ (const char *)c->p, len };
    c->p += len;
    c->left -= len;
    return true;
}

bool nbd_str_is(const struct nbd_str *s, const char *text)
{
    return s->len == strlen(text) && memcmp(s->p, text, s->len) == 0;
}

bool nbd_get_go(const uint8_t *data, size_t len, struct nbd_go *ret, const char **ret_why)
{
    struct cursor c = { data, len };
    struct nbd_go go;

    if (!take_str(&c, &go.name, "the export name is longer than 4096 bytes", ret_why))
        return false;
    if (!take_u16(&c, &go.n_infos)) {
        *ret_why = "the option's data is too short";
        return false;
    }
    if (c.left != 2ULL * go.n_infos) {
        *ret_why = "the number of information requests does not fit the option's length";
        return false;
    }
    go.infos = c.p;
    *ret = go;
    return true;
}

bool nbd_go_asks(const struct nbd_go *go, uint16_t info_type)
{
    for (unsigned i = 0; i < go->n_infos; i++) {
        if (load_be16(go->infos + 2 * i) == info_type)
            return true;
    }
    return false;
}

bool nbd_get_meta(const uint8_t *data, size_t len, struct nbd_meta *ret, const char **ret_why)
{
    struct cursor c = { data, len };
    struct nbd_str query;
    struct nbd_meta m;

    if (!take_str(&c, &m.name, "the export name is longer than 4096 bytes", ret_why))
        return false;
    if (!take_u32(&c, &m.n_queries)) {
        *ret_why = "the option's data is too short";
        return false;
    }
    m.next = c.p;
    /* Ends after at most len / 4 turns: each takes 4 bytes or fails. */
    for (uint32_t i = 0; i < m.n_queries; i++) {
        if (!take_str(&c, &query, "a query is longer than 4096 bytes", ret_why))
            return false;
    }
    if (c.left) {
        *ret_why = "there are bytes after the last query";
        return false;
    }
    *ret = m;
    return true;
}

struct nbd_str nbd_next_query(struct nbd_meta *m)
{
    struct nbd_str q = { (const char *)m->next + 4, load_be32(m->next) };

    m->next += 4 + q.len;
    return q;
}

bool nbd_query_lists(const struct nbd_str *q, const char *name)
{
    static const char *const spaces[] = { "base:", "qemu:", NBD_CONTEXT_BITMAP_PREFIX };

    if (nbd_str_is(q, name))
        return true;
    for (size_t i = 0; i < ARRAY_SIZE(spaces); i++) {
        if (nbd_str_is(q, spaces[i]))
            return strncmp(name, spaces[i], strlen(spaces[i])) == 0;
    }
    return false;
}

/* ---- transmission ------------------------------------------------------- */

bool nbd_get_request(const uint8_t in[static NBD_REQUEST_BYTES], struct nbd_request *ret)
{
    if (load_be32(in) != NBD_REQUEST_MAGIC)
        return false;
    ret->flags = load_be16(in + 4);
    ret->type = load_be16(in + 6);
    ret->cookie = load_be64(in + 8);
    ret->offset = load_be64(in + 16);
    ret->length = load_be32(in + 24);
    return true;
}

size_t nbd_put_simple_reply(uint8_t *out, uint64_t cookie, uint32_t nbd_error)
{
    store_be32(out, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(out + 4, nbd_error);
    store_be64(out + 8, cookie);
    return NBD_SIMPLE_REPLY_BYTES;
}

/* The last of its reply: most replies here are one chunk. */
static void put_chunk(uint8_t *out, uint16_t type, uint64_t cookie, uint32_t len)
{
    store_be32(out, NBD_CHUNK_MAGIC);
    store_be16(out + 4, NBD_CHUNK_FLAG_DONE);
    store_be16(out + 6, type);
    store_be64(out + 8, cookie);
    store_be32(out + 16, len);
}

size_t nbd_put_none_chunk(uint8_t *out, uint64_t cookie)
{
    put_chunk(out, NBD_CHUNK_NONE, cookie, 0);
    return NBD_CHUNK_BYTES;
}

size_t nbd_put_data_chunk(uint8_t *out, uint64_t cookie, uint64_t offset, uint32_t data_len)
{
    put_chunk(out, NBD_CHUNK_OFFSET_DATA, cookie, 8 + data_len);
    store_be64(out + NBD_CHUNK_BYTES, offset);
    return NBD_CHUNK_BYTES + 8;
}

size_t nbd_put_error_chunk(uint8_t *out, uint64_t cookie, uint32_t nbd_error, uint16_t text_len)
{
    put_chunk(out, NBD_CHUNK_ERROR, cookie, 6 + text_len);
    store_be32(out + NBD_CHUNK_BYTES, nbd_error);
    store_be16(out + NBD_CHUNK_BYTES + 4, text_len);
    return NBD_CHUNK_BYTES + 6;
}

size_t nbd_put_status_chunk(uint8_t *out, uint64_t cookie, uint32_t context_id,
                            uint32_t n_extents, bool last)
{
    put_chunk(out, NBD_CHUNK_BLOCK_STATUS, cookie, 4 + NBD_EXTENT_BYTES * n_extents);
    store_be16(out + 4, last ? NBD_CHUNK_FLAG_DONE : 0);
    store_be32(out + NBD_CHUNK_BYTES, context_id);
    return NBD_STATUS_CHUNK_BYTES;
}

void nbd_put_extent(uint8_t out[static NBD_EXTENT_BYTES], uint32_t length, uint32_t flags)
{
    store_be32(out, length);
    store_be32(out + 4, flags);
}

uint32_t nbd_error_of(int r)
{
    /* The values are the protocol's own, equal to Linux's errno. */
    switch (-r) {
    case 0:
        return 0;
    case EPERM:
    case EACCES:
    case EROFS:
        return 1;
    case ENOMEM:
        return 12;
    case EINVAL:
        return 22;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return 28;
    case EOVERFLOW:
        return 75;
    case ENOTSUP:
        return 95;
    case ESHUTDOWN:
        return 108;
    default:
        return 5;
    }
}
