/* SPDX-License-Identifier: Apache-2.0
 *
 * Leaves and roots.
 */
#include "set/digest.h"
#include "base/bytes.h"
#include "base/mem.h"

void set_digest_of(const void *bytes, size_t len, struct set_digest_value *ret)
{
    struct sha256_ctx ctx;

    memset(ret, 0, sizeof(*ret));
    if (mem_is_zero(bytes, len))
        return;
    sha256_init(&ctx);
    sha256_update(&ctx, len, bytes);
    sha256_digest(&ctx, sizeof(ret->v), ret->v);
}

void set_root_init(struct set_root *r, uint64_t size)
{
    uint8_t head[32] = "stillpoint disk";

    store_be64(head + 16, size);
    store_be64(head + 24, SET_LEAF);
    r->next = 0;
    sha256_init(&r->ctx);
    sha256_update(&r->ctx, sizeof(head), head);
}

void set_root_add(struct set_root *r, uint64_t leaf, const struct set_digest_value *d)
{
    uint8_t index[8];

    assert(leaf >= r->next);
    r->next = leaf + 1;
    if (set_digest_is_zero(d))
        return;
    store_be64(index, leaf);
    sha256_update(&r->ctx, sizeof(index), index);
    sha256_update(&r->ctx, sizeof(d->v), d->v);
}

void set_root_end(struct set_root *r, struct set_digest_value *ret)
{
    sha256_digest(&r->ctx, sizeof(ret->v), ret->v);
}

char *set_digest_hex(const struct set_digest_value *d, char buf[static SET_DIGEST_HEX])
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < SET_DIGEST_BYTES; i++) {
        buf[2 * i] = digits[d->v[i] >> 4];
        buf[2 * i + 1] = digits[d->v[i] & 15];
    }
    buf[SET_DIGEST_HEX - 1] = '\0';
    return buf;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool set_digest_parse(const char *hex, struct set_digest_value *ret)
{
    struct set_digest_value d;

    if (strlen(hex) != SET_DIGEST_HEX - 1)
        return false;
    for (size_t i = 0; i < SET_DIGEST_BYTES; i++) {
        int high = hex_value(hex[2 * i]), low = hex_value(hex[2 * i + 1]);

        if (high < 0 || low < 0)
            return false;
        d.v[i] = (uint8_t)(high << 4 | low);
    }
    *ret = d;
    return true;
}
