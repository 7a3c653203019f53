/* SPDX-License-Identifier: Apache-2.0
 *
 * Digests, the files of them, and a point's digests laid over each other: against a plain
 * array that does the same, and against damage at every bit.
 */
#include "co_test.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "set/digest_chain.h"
#include "set/digest_impl.h"
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define LEAVES 5000U

static char dir[64];

static char *path_of(const char *name)
{
    return xasprintf("%s/%s", dir, name);
}

static struct set_digest_value value(uint64_t v)
{
    struct set_digest_value d = { { 0 } };

    if (v) {
        store_be64(d.v, v);
        d.v[31] = 1;
    }
    return d;
}

/* ---- digests -------------------------------------------------------------------------- */

static void leaf(void **state)
{
    struct set_digest_value d, again;
    char hex[SET_DIGEST_HEX];
    uint8_t zeros[100] = { 0 };

    set_digest_of("abc", 3, &d);
    /* FIPS 180-4's example: anybody's sha256sum says the same. */
    assert_string_equal(set_digest_hex(&d, hex),
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_true(set_digest_parse(hex, &again));
    assert_true(set_digest_equal(&d, &again));
    hex[63] = 'D';
    assert_false(set_digest_parse(hex, &again));
    hex[63] = '\0';
    assert_false(set_digest_parse(hex, &again));
    set_digest_of(zeros, sizeof(zeros), &d);
    assert_true(set_digest_is_zero(&d));
}

static void root(void **state)
{
    struct set_digest_value a, b, c, one = value(7), zero = value(0);
    struct set_root r;

    set_root_init(&r, 10 * SET_LEAF);
    set_root_add(&r, 3, &one);
    set_root_end(&r, &a);
    /* Zeros said and not said are the same. */
    set_root_init(&r, 10 * SET_LEAF);
    set_root_add(&r, 2, &zero);
    set_root_add(&r, 3, &one);
    set_root_add(&r, 9, &zero);
    set_root_end(&r, &b);
    assert_true(set_digest_equal(&a, &b));
    /* Place and size count. */
    set_root_init(&r, 10 * SET_LEAF);
    set_root_add(&r, 4, &one);
    set_root_end(&r, &c);
    assert_false(set_digest_equal(&a, &c));
    set_root_init(&r, 10 * SET_LEAF + 1);
    set_root_add(&r, 3, &one);
    set_root_end(&r, &c);
    assert_false(set_digest_equal(&a, &c));
}

/* ---- files ------------------------------------------------------------------------------ */

/* @v: UINT64_MAX is a leaf that the file says nothing about. */
static void write_file(const char *path, const uint64_t *v, uint64_t leaves, uint64_t size)
{
    struct set_digest_writer *w;
    struct set_digest_value d;
    struct err err;

    (void)unlink(path);
    w = set_digest_writer_new(path, size, &err);
    assert_non_null(w);
    for (uint64_t i = 0; i < leaves; i++) {
        d = value(v[i]);
        if (v[i] != UINT64_MAX)
            set_digest_writer_leaf(w, i, &d);
    }
    for (unsigned i = 1; i <= 3; i++) {
        d = value(i);
        set_digest_writer_chunk(w, &d);
    }
    assert_true(set_digest_writer_end(w, 2 * SET_CHUNK + 1, &err));
    set_digest_writer_free(w);
}

static void file_as_written(void **state)
{
    CLEANUP(free) char *path = path_of("as-written");
    CLEANUP(free) uint64_t *v = xcalloc(LEAVES, sizeof(*v)), *seen = xcalloc(LEAVES, sizeof(*v));
    struct set_digest_value chunks[2], want;
    struct set_digest_file *f;
    struct set_digest_run run;
    struct err err;

    for (unsigned i = 0; i < LEAVES; i++) {
        v[i] = i < 4500 ? i + 1 : i < 4700 ? 0 : i % 3 ? UINT64_MAX : i;
        seen[i] = UINT64_MAX;
    }
    write_file(path, v, LEAVES, LEAVES * SET_LEAF - 5);
    f = set_digest_file_open(path, &err);
    assert_non_null(f);
    assert_int_equal(set_digest_file_size(f), LEAVES * SET_LEAF - 5);
    assert_int_equal(set_digest_file_image_bytes(f), 2 * SET_CHUNK + 1);
    assert_true(set_digest_file_check(f, &err));
    for (;;) {
        assert_true(set_digest_file_next(f, &run, &err));
        if (!run.n)
            break;
        for (uint64_t i = 0; i < run.n; i++)
            seen[run.first + i] = run.v ? load_be64(run.v[i].v) : 0;
    }
    assert_memory_equal(v, seen, LEAVES * sizeof(*v));
    assert_true(set_digest_file_chunks(f, 1, 2, chunks, &err));
    want = value(3);
    assert_true(set_digest_equal(&chunks[1], &want));
    set_digest_file_free(f);
}

/* Without an end there is no file. */
static void writer_given_up(void **state)
{
    CLEANUP(free) char *path = path_of("given-up");
    struct err err;
    struct set_digest_writer *w = set_digest_writer_new(path, SET_LEAF, &err);

    assert_non_null(w);
    assert_null(set_digest_writer_new(path, SET_LEAF, &err));
    set_digest_writer_free(w);
    assert_int_equal(access(path, F_OK), -1);
}

static uint8_t *slurp(const char *path, size_t *ret)
{
    FILE *f = fopen(path, "rb");
    uint8_t *p = xmalloc(1 << 20);

    assert_non_null(f);
    *ret = fread(p, 1, 1 << 20, f);
    fclose(f);
    return p;
}

static void spit(const char *path, const uint8_t *p, size_t n)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    fclose(f);
}

/* Whether the file passes; goes through its runs in any case. */
static bool passes(const char *path)
{
    struct err err = ERR_INIT;
    CLEANUP(set_digest_file_free) struct set_digest_file *f = set_digest_file_open(path, &err);
    struct set_digest_run run = { .n = 1 };
    uint64_t next = 0;
    bool ok;

    if (!f) {
        assert_non_null(strstr(err.text, path));
        return false;
    }
    while (run.n && set_digest_file_next(f, &run, &err) && run.n) {
        assert_true(run.first >= next && run.first + run.n > run.first);
        next = run.first + run.n;
        assert_true(next <= set_leaves(set_digest_file_size(f)));
    }
    ok = set_digest_file_check(f, &err);
    assert_true(ok || strstr(err.text, path));
    return ok;
}

static void file_damaged(void **state)
{
    CLEANUP(free) char *path = path_of("damaged"), *bad = path_of("bad");
    CLEANUP(free) uint8_t *p = NULL;
    uint64_t v[12] = { 1, 2, 0, 0, UINT64_MAX, 6, 7, 8, UINT64_MAX, 0, 11, 12 };
    size_t n;

    write_file(path, v, 12, 12 * SET_LEAF);
    p = slurp(path, &n);
    assert_true(passes(path));
    for (size_t bit = 0; bit < 8 * n; bit++) {
        p[bit / 8] ^= (uint8_t)(1u << bit % 8);
        spit(bad, p, n);
        assert_false(passes(bad));
        p[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t cut = 0; cut < n; cut++) {
        spit(bad, p, cut);
        assert_false(passes(bad));
    }
}

/* A checksum that matches does not make a file sound. */
static void file_hostile(void **state)
{
    static const struct { size_t at; uint64_t v; unsigned bytes; } changes[] = {
        { HEAD_VERSION, 2, 4 }, { HEAD_ALGORITHM, 2, 4 }, { HEAD_SIZE, UINT64_MAX, 8 },
        { HEAD_SIZE, 0, 8 }, { HEAD_LEAF, 0, 4 }, { HEAD_CHUNK, 1, 4 }, { HEAD_ZERO + 7, 1, 4 },
        { DIGEST_HEADER + RUN_FIRST, UINT64_MAX, 8 }, { DIGEST_HEADER + RUN_FIRST, 12, 8 },
        { DIGEST_HEADER + RUN_N, 0, 4 }, { DIGEST_HEADER + RUN_N, UINT32_MAX, 4 },
        { DIGEST_HEADER + RUN_N, 2049, 4 }, { DIGEST_HEADER + RUN_KIND, 3, 4 },
        { DIGEST_HEADER + RUN_KIND, KIND_ZERO, 4 }, { DIGEST_HEADER + RUN_KIND, KIND_END, 4 },
    };
    CLEANUP(free) char *path = path_of("sound"), *bad = path_of("hostile");
    uint64_t v[12] = { 1, 2, 0, 0, UINT64_MAX, 6, 7, 8, UINT64_MAX, 0, 11, 12 };
    CLEANUP(free) uint8_t *p = NULL;
    size_t n;

    write_file(path, v, 12, 12 * SET_LEAF);
    p = slurp(path, &n);
    for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
        CLEANUP(free) uint8_t *q = xmemdup(p, n);
        struct sha256_ctx ctx;

        if (changes[i].bytes == 8)
            store_be64(q + changes[i].at, changes[i].v);
        else
            store_be32(q + changes[i].at, (uint32_t)changes[i].v);
        sha256_init(&ctx);
        sha256_update(&ctx, n - SET_DIGEST_BYTES, q);
        sha256_digest(&ctx, SET_DIGEST_BYTES, q + n - SET_DIGEST_BYTES);
        spit(bad, q, n);
        assert_false(passes(bad));
    }
}

/* ---- chains ------------------------------------------------------------------------------ */

#define LAYERS 4U

static uint64_t rng_state;

static uint64_t rnd(uint64_t below)
{
    rng_state = rng_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (rng_state >> 33) % below;
}

/* The disk of @leaves that overlays @below of @below_leaves: fills @file and @now. */
static void make_layer(uint64_t *file, uint64_t *now, uint64_t leaves, const uint64_t *below,
                       uint64_t below_leaves, unsigned layer)
{
    for (uint64_t i = 0; i < leaves;) {
        uint64_t n = MIN(1 + rnd(300), leaves - i), kind = rnd(3);

        for (uint64_t to = i + n; i < to; i++) {
            file[i] = kind == 0 ? UINT64_MAX : kind == 1 ? 0 : 1 + i + layer * 1000000;
            now[i] = file[i] != UINT64_MAX ? file[i] : i < below_leaves ? below[i] : 0;
        }
    }
}

static void check_chain(const char *const *paths, size_t n, const uint64_t *want,
                        uint64_t leaves)
{
    struct err err;
    struct set_digest_chain *c = set_digest_chain_open(paths, n, &err);
    struct set_digest_value v[700], r, found;
    struct set_root expected;
    uint64_t at = 0;

    assert_non_null(c);
    assert_int_equal(set_digest_chain_size(c), leaves * SET_LEAF);
    set_root_init(&expected, leaves * SET_LEAF);
    while (at < leaves) {
        size_t len = MIN(1 + rnd(700), leaves - at);

        assert_true(set_digest_chain_read(c, at, len, v, &err));
        for (size_t i = 0; i < len; i++, at++) {
            struct set_digest_value d = value(want[at]);

            assert_true(set_digest_equal(&v[i], &d));
            set_root_add(&expected, at, &d);
        }
    }
    set_digest_chain_free(c);
    c = set_digest_chain_open(paths, n, &err);
    set_root_end(&expected, &r);
    assert_true(set_digest_chain_root(c, &found, &err));
    assert_true(set_digest_equal(&r, &found));
    set_digest_chain_free(c);
}

static void chains(void **state)
{
    uint64_t *file = xcalloc(LEAVES, sizeof(*file));
    uint64_t *now[2] = { xcalloc(LEAVES, 8), xcalloc(LEAVES, 8) };
    char *paths[LAYERS];

    for (unsigned seed = 0; seed < 30; seed++) {
        const char *top_first[LAYERS];
        uint64_t below = 0;

        rng_state = seed;
        for (unsigned i = 0; i < LAYERS; i++) {
            uint64_t leaves = 1 + rnd(LEAVES);
            char name[16];

            snprintf(name, sizeof(name), "layer%u", i);
            paths[i] = path_of(name);
            make_layer(file, now[i & 1], leaves, now[!(i & 1)], below, i);
            write_file(paths[i], file, leaves, leaves * SET_LEAF);
            below = leaves;
            for (unsigned j = 0; j <= i; j++)
                top_first[j] = paths[i - j];
            check_chain(top_first, i + 1, now[i & 1], leaves);
        }
        for (unsigned i = 0; i < LAYERS; i++)
            free(paths[i]);
    }
    free(file);
    free(now[0]);
    free(now[1]);
}

static int make_dir(void **state)
{
    strcpy(dir, "/tmp/test-digest-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    CLEANUP(free) char *command = xasprintf("rm -r '%s'", dir);

    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(leaf), cmocka_unit_test(root), cmocka_unit_test(file_as_written),
        cmocka_unit_test(writer_given_up), cmocka_unit_test(file_damaged),
        cmocka_unit_test(file_hostile), cmocka_unit_test(chains),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
