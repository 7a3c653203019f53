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

/* ---- rebuilding ----------------------------------------------------------------
 *
 * I-Q14: the new first sector is written last, and until it is there the old one
 * counts, with whatever it names behind itself: the rest of the list of extensions,
 * and the name. So a new cluster has other bytes than the old one there only where the
 * old sector says nothing of them. Where that cannot be, there is a cluster between,
 * which says the same as the old one and has list and name behind all that the others
 * need. A first extension that says nothing reaches over what is left free then:
 *
 *     | header | extensions . . . . | name |                                     old
 *     | header | padding . . . . . . . . . . . . . | extensions . . . . | name |
 *     | header | new extensions . . . . | name |                                 new
 */

/* The old cluster, and the new one as far as it has come. */
struct rebuild {
    const uint8_t *old;
    size_t old_extensions_end;   /* where the list has to end: at the name, or the cluster's end */
    size_t old_list_at, old_list_end;    /* where it begins, but for padding, and does end */
    size_t old_name, old_name_end;       /* 0: there is none */
    size_t old_end;              /* of everything in it */
    struct qcow2_header h;
    const struct qcow2_extension *changes;   /* with that of the backing format */
    size_t n_changes;
    bool *placed;                /* each of them */
    bool without_names;          /* leave the feature name table out */
    uint8_t *buf;
    size_t size, at;
    size_t list_at;              /* where the list begins, behind padding; 0: behind the header */
    size_t list_end;
    bool full;                   /* there is no room for all of it */
    bool conflict;               /* it has other bytes where the old sector says what they are */
};

/* Whether the first sector, as it was, tells what byte @at is. */
static bool old_tells(const struct rebuild *b, size_t at)
{
    return at >= SECTOR && ((at >= b->old_list_at && at < b->old_list_end) ||
                            (at >= b->old_name && at < b->old_name_end));
}

static void put(struct rebuild *b, const void *data, size_t bytes)
{
    if (b->full || bytes > b->size - b->at) {
        b->full = true;
        return;
    }
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte = ((const uint8_t *)data)[i];

        b->conflict |= old_tells(b, b->at) && byte != b->old[b->at];
        b->buf[b->at++] = byte;
    }
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

/* Reach to b->list_at. Its head has to be in the sector that is written last. */
static void put_padding(struct rebuild *b)
{
    uint8_t head[8];

    if (b->at + sizeof(head) > SECTOR || b->list_at > b->size) {
        b->full = true;
        return;
    }
    store_be32(head, QCOW2_EXT_PADDING);
    store_be32(head + 4, (uint32_t)(b->list_at - b->at - sizeof(head)));
    put(b, head, sizeof(head));
    b->at = b->list_at;
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
        } else if (!change && e.type != QCOW2_EXT_PADDING &&
                   !(b->without_names && e.type == QCOW2_EXT_FEATURE_NAMES)) {
            put_extension(b, &e);
        }
    }
    for (size_t i = 0; i < b->n_changes; i++) {
        if (!b->placed[i])
            put_extension(b, &b->changes[i]);
    }
    put(b, (uint8_t[8]){ 0 }, 8);
    b->list_end = b->at;
}

static void put_name(struct rebuild *b, const char *name, size_t at)
{
    size_t bytes = strlen(name);

    if (b->full || at > b->size) {
        b->full = true;
        return;
    }
    b->at = at;
    store_be64(b->buf + 8, b->at);
    store_be32(b->buf + 16, (uint32_t)bytes);
    put(b, name, bytes);
}

/* Lay it out, with the name at @name_at or, if that is 0, right behind the list. */
static bool lay_out(struct rebuild *b, const struct qcow2_header_change *c, size_t name_at)
{
    const char *name = c->backing ? c->backing_file : b->h.has_backing ? b->h.backing_file : NULL;

    for (size_t i = 0; i < b->size; i++)
        b->buf[i] = old_tells(b, i) ? b->old[i] : 0;
    memset(b->placed, 0, b->n_changes * sizeof(*b->placed));
    b->at = 0;
    b->full = b->conflict = false;
    put(b, b->old, b->h.header_bytes);
    store_be64(b->buf + 8, 0);
    store_be32(b->buf + 16, 0);
    if (b->h.version >= 3)
        store_be64(b->buf + QCOW2_FIELD_AUTOCLEAR,
                   (b->h.autoclear & ~c->autoclear_clear) | c->autoclear_set);
    if (b->list_at)
        put_padding(b);
    put_extensions(b);
    if (name && *name)
        put_name(b, name, MAX(name_at, b->at));
    return !b->full && !b->conflict;
}

/* With the name right behind the list, or else behind all that the old sector names. */
static bool build(struct rebuild *b, const struct qcow2_header_change *c)
{
    return lay_out(b, c, 0) || (!b->full && lay_out(b, c, align_up((uint64_t)b->old_end, 8)));
}

/* What the old cluster has, and where it ends. */
static bool look_at_old(struct rebuild *b, const void *old, size_t len, struct err *err)
{
    struct qcow2_extension e;
    size_t at;

    b->old = old;
    if (!qcow2_header_parse(old, len, &b->h, err))
        return false;
    b->size = (size_t)1 << b->h.cluster_bits;
    len = MIN(len, b->size);
    b->old_name = b->h.has_backing ? (size_t)load_be64(b->old + 8) : 0;
    b->old_name_end = b->old_name + strlen(b->h.backing_file);
    b->old_extensions_end = load_be64(b->old + 8) ? MIN((size_t)load_be64(b->old + 8), len) : len;
    at = b->old_list_at = b->h.header_bytes;
    while (qcow2_next_extension(b->old, b->old_extensions_end, &at, &e)) {
        const uint8_t *first = b->old + b->h.header_bytes + 8;

        if (e.type == QCOW2_EXT_PADDING && e.data == first)
            b->old_list_at = at;
    }
    b->old_list_end = MIN(at + 8, len);
    b->old_end = MAX(b->old_list_end, b->old_name_end);
    return true;
}

static size_t bytes_to_write(const struct rebuild *b)
{
    return MIN(align_up((uint64_t)MAX(b->at, b->old_end), SECTOR), (uint64_t)b->size);
}

/* By way of a cluster that says what the old one says, with the list at @list_at and the
 * name at @name_at. */
static bool build_in_two_steps(const struct rebuild *b, const struct qcow2_header_change *c,
                               size_t list_at, size_t name_at, struct qcow2_header_steps *ret)
{
    const struct qcow2_header_change none = { 0 };
    CLEANUP(free) struct rebuild *step = xmemdup(b, sizeof(*b));
    struct err ignored = ERR_INIT;

    step->buf = ret->between;
    step->n_changes = 0;
    step->list_at = list_at;
    if (!lay_out(step, &none, name_at))
        return false;
    ret->between_bytes = bytes_to_write(step);
    step->buf = b->buf;
    step->n_changes = b->n_changes;
    step->list_at = 0;
    if (!look_at_old(step, ret->between, step->size, &ignored) || !build(step, c))
        return false;
    ret->bytes = bytes_to_write(step);
    return true;
}

static bool build_in_steps(struct rebuild *b, const struct qcow2_header_change *c,
                           struct qcow2_header_steps *ret)
{
    size_t behind;

    ret->between_bytes = 0;
    if (build(b, c)) {
        ret->bytes = bytes_to_write(b);
        return true;
    }
    if (lay_out(b, c, 0) || b->full || !ret->between)
        return false;
    behind = align_up((uint64_t)MAX(b->old_end, b->list_end), 8);
    /* Or in its place, which helps where without feature names it is all in one sector. */
    return build_in_two_steps(b, c, b->old_list_end > SECTOR ? behind : 0, behind, ret) ||
           build_in_two_steps(b, c, 0, 0, ret);
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
                          struct qcow2_header_steps *ret, struct err *err)
{
    CLEANUP(free) struct qcow2_extension *changes = xcalloc(c->n_extensions + 1, sizeof(*changes));
    CLEANUP(free) bool *placed = xcalloc(c->n_extensions + 1, sizeof(*placed));
    CLEANUP(free) struct rebuild *b = xnew(struct rebuild);

    *b = (struct rebuild){ .buf = ret->buf, .changes = changes, .placed = placed };
    if (!check_change(c, err) || !look_at_old(b, old, len, err))
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
    if (build_in_steps(b, c, ret))
        return true;
    b->without_names = true;
    if (build_in_steps(b, c, ret))
        return true;
    if (b->full)
        return err_set(err, -ENOSPC, "the header does not fit into a cluster of %zu bytes; a "
                       "shorter name of the backing file may", b->size);
    return err_set(err, -ENOSPC, "in a cluster of %zu bytes there is no room to change the header "
                   "so that a power cut leaves the old one or the new one; convert the image to "
                   "one with larger clusters", b->size);
}
