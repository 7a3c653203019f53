/* SPDX-License-Identifier: Apache-2.0
 *
 * What shapes.h declares.
 */
#include "shapes.h"
#include <stdio.h>

static const char *pick(uint64_t *seed, const char *const *texts, size_t n)
{
    return texts[test_random(seed, n)];
}

void random_options(struct random_shape *r, uint64_t *seed)
{
    static const char *const caches[] = { "", TINY_CACHES, ", 'cache-size': 65536",
                                          ", 'l2-cache-entry-size': 512" };
    static const char *const discards[] = {
        "", ", 'discard': 'unmap'", ", 'discard': 'unmap'",
        ", 'discard': 'unmap', 'pass-discard-other': true",
        ", 'discard': 'unmap', 'pass-discard-request': false",
        ", 'discard': 'unmap', 'discard-no-unref': true",
    };
    const char *cache = pick(seed, caches, ARRAY_SIZE(caches));
    const char *discard = pick(seed, discards, ARRAY_SIZE(discards));

    if (r->shape.version < 3 && strstr(discard, "no-unref"))
        discard = ", 'discard': 'unmap'";
    snprintf(r->options, sizeof(r->options), "%s%s%s", cache, discard,
             r->shape.version == 3 && !test_random(seed, 3) ? LAZY : "");
}

/* Options of qemu-img create. */
static void random_create(struct random_shape *r, uint64_t *seed)
{
    static const char *const kinds[] = { "", "", "", ",preallocation=metadata",
                                         ",preallocation=falloc" };
    static const char *const lazy[] = { "", "", "", ",lazy_refcounts=on" };
    static const char *const zstd[] = { "", ",compression_type=zstd" };
    struct shape *s = &r->shape;
    bool v3 = s->version == 3;

    snprintf(r->create, sizeof(r->create), "cluster_size=%u,compat=%s,refcount_bits=%u%s%s%s%s",
             s->cluster, v3 ? "1.1" : "0.10", s->refcount_bits,
             s->extended ? ",extended_l2=on" : "", v3 ? pick(seed, lazy, ARRAY_SIZE(lazy)) : "",
             v3 ? pick(seed, zstd, ARRAY_SIZE(zstd)) : "", pick(seed, kinds, ARRAY_SIZE(kinds)));
    s->create = r->create;
}

void random_shape(struct random_shape *r, uint64_t size, uint64_t *seed)
{
    struct shape *s = &r->shape;
    unsigned bits = 9 + (unsigned)test_random(seed, 13);

    /* The largest make the slowest runs, and the same code. */
    if (bits > 17 && test_random(seed, 3))
        bits -= 6;
    *r = (struct random_shape){ .shape = {
        .name = r->name, .options = r->options, .cluster = 1U << bits,
        .version = test_random(seed, 5) ? 3 : 2, .refcount_bits = 16,
    } };
    if (s->version == 3 && test_random(seed, 2))
        s->refcount_bits = 1U << test_random(seed, 7);
    s->extended = s->version == 3 && bits >= 14 && !test_random(seed, 3);
    s->data_file = s->version == 3 && !test_random(seed, 5);
    s->size = size;
    if (!size) {
        uint64_t clusters = 1 + test_random(seed, bits > 18 ? 8 : bits > 14 ? 64 : 1000);

        s->size = clusters * s->cluster;
        if (!test_random(seed, 3))
            s->size -= test_random(seed, s->cluster / 512) * 512;
    }
    random_options(r, seed);
    if (test_random(seed, 4))
        random_create(r, seed);
    s->ops = (unsigned)MAX(40ULL, MIN(400ULL, 300 * MiB / (s->size + s->cluster)));
    if (s->create)
        snprintf(r->name, sizeof(r->name), "%s%s of %" PRIu64, r->create,
                 s->data_file ? ", with a data file" : "", s->size);
    else
        snprintf(r->name, sizeof(r->name), "ours: cluster %u, version %u, refcounts of %u%s%s, "
                 "size %" PRIu64, s->cluster, s->version, s->refcount_bits,
                 s->extended ? ", extended" : "", s->data_file ? ", with a data file" : "",
                 s->size);
}
