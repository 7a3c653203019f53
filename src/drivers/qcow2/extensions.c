/* SPDX-License-Identifier: Apache-2.0
 *
 * The first cluster made anew: another backing file, an extension that comes, goes
 * or changes, and everything that is not known here as it was. Pure; see format.h.
 */
#include "drivers/qcow2/format.h"
#include "base/mem.h"
#include <inttypes.h>

#define SECTOR 512

bool qcow2_next_extension(const void *buf, size_t len, size_t *at, struct qcow2_extension *ret)
{
    const uint8_t *p = buf;

    if (*at > len || len - *at < 8 || load_be32(p + *at) == QCOW2_EXT_END)
        return false;
    ret->type = load_be32(p + *at);
    ret->bytes = load_be32(p + *at + 4);
    ret->data = p + *at + 8;
    assert(ret->bytes <= len - *at - 8);
    *at += 8 + align_up((uint64_t)ret->bytes, 8);
    return true;
}

/* ---- feature name table ------------------------------------------------------ */

static const struct {
    uint8_t type, bit;           /* 0 incompatible, 1 compatible, 2 autoclear */
    const char *name;
} features[] = {
    { 0, 0, "dirty bit" },
    { 0, 1, "corrupt bit" },
    { 0, 2, "external data file" },
    { 0, 3, "compression type" },
    { 0, 4, "extended L2 entries" },
    { 1, 0, "lazy refcounts" },
    { 2, 0, "bitmaps" },
    { 2, 1, "raw external data" },
};

static_assert(ARRAY_SIZE(features) * 48 == QCOW2_FEATURE_NAMES_BYTES, "an entry has 48 bytes");

void qcow2_feature_names(uint8_t buf[QCOW2_FEATURE_NAMES_BYTES])
{
    memset(buf, 0, QCOW2_FEATURE_NAMES_BYTES);
    for (size_t i = 0; i < ARRAY_SIZE(features); i++, buf += 48) {
        buf[0] = features[i].type;
        buf[1] = features[i].bit;
        memcpy(buf + 2, features[i].name, strlen(features[i].name));
    }
}

/* ---- rebuilding ---------------------------------------------------------------- */

/* The old cluster, and the new one as far as it has come. */
struct rebuild {
    const uint8_t *old;
    size_t old_extensions_end;   /* where the list has to end: at the name, or the cluster's end */
    size_t old_end;              /* of everything in it */
    struct qcow2_header h;
    const struct qcow2_extension *changes;   /* with that of the backing format */
    size_t n_changes;
    bool *placed;                /* each of them */
    bool without_names;          /* leave the feature name table out */
    uint8_t *buf;
    size_t size, at;
    bool full;
};

static void put(struct rebuild *b, const void *data, size_t bytes)
{
    if (b->full || bytes > b->size - b->at) {
        b->full = true;
        return;
    }
    memcpy(b->buf + b->at, data, bytes);
    b->at += bytes;
}

static void put_extension(struct rebuild *b, const struct qcow2_extension *e)
{
    static const uint8_t padding[8];
    uint8_t head[8];

    if (!e->data)
        return;
    store_be32(head, e->type);
    store_be32(head + 4, e->bytes);
    put(b, head, sizeof(head));
    put(b, e->data, e->bytes);
    put(b, padding, align_up((uint64_t)e->bytes, 8) - e->bytes);
}

/* The change of extensions of this type, or NULL. */
static const struct qcow2_extension *find_change(const struct rebuild *b, uint32_t type)
{
    for (size_t i = 0; i < b->n_changes; i++) {
        if (b->changes[i].type == type)
            return &b->changes[i];
    }
    return NULL;
}

static void put_extensions(struct rebuild *b)
{
    struct qcow2_extension e;
    size_t at = b->h.header_bytes;

    while (qcow2_next_extension(b->old, b->old_extensions_end, &at, &e)) {
        const struct qcow2_extension *change = find_change(b, e.type);

        if (change && !b->placed[change - b->changes]) {
            b->placed[change - b->changes] = true;
            put_extension(b, change);
        } else if (!change && !(b->without_names && e.type == QCOW2_EXT_FEATURE_NAMES)) {
            put_extension(b, &e);
        }
    }
    for (size_t i = 0; i < b->n_changes; i++) {
        if (!b->placed[i])
            put_extension(b, &b->changes[i]);
    }
    put(b, (uint8_t[8]){ 0 }, 8);
}

/* What the old first sector names behind itself stays as long as there is nothing new
 * in its place: until the new first sector is written, it is the name. */
static void keep_old_name(struct rebuild *b)
{
    size_t off = (size_t)load_be64(b->old + 8), end = off + strlen(b->h.backing_file);
    size_t from = MAX(off, MAX((size_t)SECTOR, b->at));

    if (b->h.has_backing && from < end)
        memcpy(b->buf + from, b->old + from, end - from);
}

/* Behind the extensions; behind everything old too, if it would else overwrite,
 * outside the first sector, what the old first sector names. */
static void put_name(struct rebuild *b, const char *name)
{
    size_t bytes = strlen(name);

    if (b->at + bytes > SECTOR && b->at < b->old_end &&
        align_up((uint64_t)b->old_end, 8) + bytes <= b->size)
        b->at = align_up((uint64_t)b->old_end, 8);
    store_be64(b->buf + 8, b->at);
    store_be32(b->buf + 16, (uint32_t)bytes);
    put(b, name, bytes);
}

static bool build(struct rebuild *b, const struct qcow2_header_change *c, bool without_names)
{
    const char *name = c->backing ? c->backing_file : b->h.has_backing ? b->h.backing_file : NULL;

    memset(b->buf, 0, b->size);
    memset(b->placed, 0, b->n_changes * sizeof(*b->placed));
    b->at = 0;
    b->full = false;
    b->without_names = without_names;
    put(b, b->old, b->h.header_bytes);
    store_be64(b->buf + 8, 0);
    store_be32(b->buf + 16, 0);
    if (b->h.version >= 3)
        store_be64(b->buf + QCOW2_FIELD_AUTOCLEAR,
                   (b->h.autoclear & ~c->autoclear_clear) | c->autoclear_set);
    put_extensions(b);
    keep_old_name(b);
    if (name && *name)
        put_name(b, name);
    return !b->full;
}

/* What the old cluster has, and where it ends. */
static bool look_at_old(struct rebuild *b, size_t len, struct err *err)
{
    struct qcow2_extension e;
    uint64_t name_off;
    size_t at;

    if (!qcow2_header_parse(b->old, len, &b->h, err))
        return false;
    b->size = (size_t)1 << b->h.cluster_bits;
    len = MIN(len, b->size);
    name_off = load_be64(b->old + 8);
    b->old_extensions_end = name_off ? MIN((size_t)name_off, len) : len;
    at = b->h.header_bytes;
    while (qcow2_next_extension(b->old, b->old_extensions_end, &at, &e))
        ;
    b->old_end = MIN(at + 8, b->size);
    if (b->h.has_backing)
        b->old_end = MAX(b->old_end, (size_t)name_off + strlen(b->h.backing_file));
    return true;
}

static bool check_change(const struct qcow2_header_change *c, struct err *err)
{
    if (c->backing && c->backing_file && strlen(c->backing_file) > QCOW2_BACKING_FILE_MAX)
        return err_set(err, -EINVAL, "the name of the backing file is longer than %d bytes",
                       QCOW2_BACKING_FILE_MAX);
    if (c->backing && c->backing_format && strlen(c->backing_format) > QCOW2_BACKING_FORMAT_MAX)
        return err_set(err, -EINVAL, "the name of the backing file's format is longer than %d "
                       "bytes", QCOW2_BACKING_FORMAT_MAX);
    return true;
}

bool qcow2_header_rebuild(const void *old, size_t len, const struct qcow2_header_change *c,
                          void *buf, size_t *ret_bytes, struct err *err)
{
    CLEANUP(free) struct qcow2_extension *changes = xcalloc(c->n_extensions + 1, sizeof(*changes));
    CLEANUP(free) bool *placed = xcalloc(c->n_extensions + 1, sizeof(*placed));
    CLEANUP(free) struct rebuild *b = xnew(struct rebuild);

    *b = (struct rebuild){ .old = old, .buf = buf, .changes = changes, .placed = placed };
    if (!check_change(c, err) || !look_at_old(b, len, err))
        return false;
    if (c->n_extensions)
        memcpy(changes, c->extensions, c->n_extensions * sizeof(*changes));
    b->n_changes = c->n_extensions;
    if (c->backing) {
        const char *format = c->backing_file ? c->backing_format : NULL;

        changes[b->n_changes++] = (struct qcow2_extension){
            .type = QCOW2_EXT_BACKING_FORMAT,
            .bytes = format ? (uint32_t)strlen(format) : 0,
            .data = format && *format ? format : NULL,
        };
    }
    if (!build(b, c, false) && !build(b, c, true))
        return err_set(err, -ENOSPC, "the header does not fit into a cluster of %zu bytes; a "
                       "shorter name of the backing file may", b->size);
    *ret_bytes = MIN(align_up((uint64_t)MAX(b->at, b->old_end), SECTOR), (uint64_t)b->size);
    return true;
}
