/* SPDX-License-Identifier: Apache-2.0
 *
 * Digests of what a virtual disk holds (docs/backup-sets.md, "Digests"): SHA-256 of each
 * leaf of 64 KiB, and one over these, the root. A leaf that is all zero has the digest
 * zero, is never hashed and never listed. Pure; any thread.
 */
#ifndef SET_DIGEST_H
#define SET_DIGEST_H

#include "base/base.h"
#include <nettle/sha2.h>

#define SET_DIGEST_ALGORITHM "sha256"
#define SET_DIGEST_BYTES 32
#define SET_DIGEST_HEX (2 * SET_DIGEST_BYTES + 1)
#define SET_LEAF (64 * KiB)

struct set_digest_value {
    uint8_t v[SET_DIGEST_BYTES];
};

/* Of @len bytes: a leaf, or another piece. */
void set_digest_of(const void *bytes, size_t len, struct set_digest_value *ret);

static inline bool set_digest_is_zero(const struct set_digest_value *d)
{
    static const struct set_digest_value zero;

    return memcmp(d, &zero, sizeof(zero)) == 0;
}

static inline bool set_digest_equal(const struct set_digest_value *a,
                                    const struct set_digest_value *b)
{
    return memcmp(a, b, sizeof(*a)) == 0;
}

/* Leaves of a disk of @size bytes; the last may be shorter. */
static inline uint64_t set_leaves(uint64_t size)
{
    return div_round_up(size, SET_LEAF);
}

static inline uint64_t set_leaf_bytes(uint64_t size, uint64_t leaf)
{
    return MIN((uint64_t)SET_LEAF, size - leaf * SET_LEAF);
}

/* The root, from the leaves in ascending order. */
struct set_root {
    struct sha256_ctx ctx;
    uint64_t next;               /* the lowest leaf that may come */
};
void set_root_init(struct set_root *r, uint64_t size);
void set_root_add(struct set_root *r, uint64_t leaf, const struct set_digest_value *d);
void set_root_end(struct set_root *r, struct set_digest_value *ret);

/* Returns @buf. */
char *set_digest_hex(const struct set_digest_value *d, char buf[static SET_DIGEST_HEX]);
/* False: it is not 64 lower-case hexadecimal digits. */
MUST_CHECK bool set_digest_parse(const char *hex, struct set_digest_value *ret);

#endif
