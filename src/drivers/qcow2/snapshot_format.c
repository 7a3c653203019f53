/* SPDX-License-Identifier: Apache-2.0
 *
 * The snapshot table, see snapshot_format.h.
 */
#include "drivers/qcow2/snapshot_format.h"
#include "base/limits.h"
#include "base/mem.h"
#include <inttypes.h>

#define ENTRY_BYTES 40           /* before the extra data */
#define EXTRA_BYTES 24           /* that is known: VM state, disk size, icount */

/* ---- parsing ------------------------------------------------------------- */

/* Lengths of the parts of the entry at @p. */
struct shape {
    uint32_t extra, id, name, total;
};

static struct shape entry_shape(const uint8_t *p)
{
    struct shape s = { .id = load_be16(p + 12), .name = load_be16(p + 14),
                       .extra = load_be32(p + 36) };

    s.total = (uint32_t)align_up(ENTRY_BYTES + MIN(s.extra, LIMIT_QCOW2_SNAPSHOT_EXTRA_BYTES) +
                                 (uint64_t)s.id + s.name, 8);
    return s;
}

/* How long the table is, and room for its texts. */
static bool measure(const uint8_t *p, uint64_t len, uint32_t n, uint64_t *ret_bytes,
                    uint64_t *ret_texts, struct err *err)
{
    uint64_t at = 0, texts = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (at > LIMIT_QCOW2_SNAPSHOT_TABLE_BYTES)
            return err_set(err, -EFBIG, "the snapshot table is larger than the %llu bytes "
                           "supported", LIMIT_QCOW2_SNAPSHOT_TABLE_BYTES);
        if (at + ENTRY_BYTES > len)
            return err_set(err, -EAGAIN, "the snapshot table is cut short");

        struct shape s = entry_shape(p + at);

        if (s.extra > LIMIT_QCOW2_SNAPSHOT_EXTRA_BYTES)
            return err_set(err, -EFBIG, "entry %" PRIu32 " of the snapshot table has %" PRIu32
                           " bytes of extra data, more than the %u supported", i, s.extra,
                           LIMIT_QCOW2_SNAPSHOT_EXTRA_BYTES);
        at += s.total;
        texts += s.id + 1U + s.name + 1U;
    }
    if (at > len)
        return err_set(err, -EAGAIN, "the snapshot table is cut short");
    *ret_bytes = at;
    *ret_texts = texts;
    return true;
}

/* A text of the image, ended; what is behind a byte of 0 does not count. */
static const char *take_text(char **at, const uint8_t *from, uint32_t bytes)
{
    char *text = *at;

    memcpy(text, from, bytes);
    text[bytes] = 0;
    *at += bytes + 1;
    return text;
}

static const char *find_flaw(const struct qcow2_geometry *g, const struct qcow2_snapshot *s)
{
    if (s->l1_entries > LIMIT_QCOW2_L1_BYTES / 8)
        return "its L1 table is larger than any that is supported";
    if (!is_aligned(s->l1_off, qcow2_cluster_size(g)) ||
        s->l1_off >= QCOW2_MAX_HOST_OFFSET || (s->l1_entries && !s->l1_off))
        return "its L1 table has no place in the image";
    return s->disk_size > INT64_MAX ? "its disk is larger than any can be" : NULL;
}

static struct qcow2_snapshot decode(const struct qcow2_geometry *g, const uint8_t *p, char **texts)
{
    const struct shape shape = entry_shape(p);
    const uint8_t *extra = p + ENTRY_BYTES;
    struct qcow2_snapshot s = {
        .l1_off = load_be64(p),
        .l1_entries = load_be32(p + 8),
        .date_sec = load_be32(p + 16),
        .date_nsec = load_be32(p + 20),
        .vm_clock_ns = load_be64(p + 24),
        .vm_state_bytes = load_be32(p + 32),
        .icount = QCOW2_NO_ICOUNT,
        .raw = p,
        .raw_bytes = shape.total,
    };

    if (shape.extra >= 8)
        s.vm_state_bytes = load_be64(extra);
    if (shape.extra >= 16)
        s.disk_size = load_be64(extra + 8);
    if (shape.extra >= 24)
        s.icount = load_be64(extra + 16);
    s.id = take_text(texts, extra + shape.extra, shape.id);
    s.name = take_text(texts, extra + shape.extra + shape.id, shape.name);
    s.flaw = find_flaw(g, &s);
    return s;
}

bool qcow2_snapshots_parse(const struct qcow2_geometry *g, const void *buf, uint64_t len,
                           uint32_t n, struct qcow2_snapshots *ret, struct err *err)
{
    struct qcow2_snapshots t = { .n = n };
    uint64_t texts_bytes = 0, at = 0;
    char *text;

    assert(n <= LIMIT_QCOW2_SNAPSHOTS);
    if (!measure(buf, len, n, &t.bytes, &texts_bytes, err))
        return false;
    t.v = calloc(MAX(n, 1U), sizeof(*t.v));
    t.raw = malloc(MAX(t.bytes, 1ULL));
    t.texts = text = malloc(MAX(texts_bytes, 1ULL));
    if (!t.v || !t.raw || !t.texts) {
        qcow2_snapshots_done(&t);
        return err_set(err, -ENOMEM, "out of memory for the snapshot table");
    }
    memcpy(t.raw, buf, t.bytes);
    for (uint32_t i = 0; i < n; i++) {
        t.v[i] = decode(g, t.raw + at, &text);
        at += t.v[i].raw_bytes;
    }
    *ret = t;
    return true;
}

void qcow2_snapshots_done(struct qcow2_snapshots *t)
{
    free(t->v);
    free(t->raw);
    free(t->texts);
    *t = (struct qcow2_snapshots){ 0 };
}

/* ---- writing ------------------------------------------------------------- */

uint32_t qcow2_snapshot_entry_bytes(const struct qcow2_snapshot *s)
{
    size_t id = strlen(s->id), name = strlen(s->name);

    if (id > UINT16_MAX || name > UINT16_MAX)
        return 0;
    return (uint32_t)align_up(ENTRY_BYTES + EXTRA_BYTES + id + name, 8);
}

void qcow2_snapshot_encode(const struct qcow2_snapshot *s, void *buf)
{
    size_t id = strlen(s->id), name = strlen(s->name);
    uint8_t *p = buf;

    memset(p, 0, qcow2_snapshot_entry_bytes(s));
    store_be64(p, s->l1_off);
    store_be32(p + 8, s->l1_entries);
    store_be16(p + 12, (uint16_t)id);
    store_be16(p + 14, (uint16_t)name);
    store_be32(p + 16, s->date_sec);
    store_be32(p + 20, s->date_nsec);
    store_be64(p + 24, s->vm_clock_ns);
    store_be32(p + 32, s->vm_state_bytes > UINT32_MAX ? 0 : (uint32_t)s->vm_state_bytes);
    store_be32(p + 36, EXTRA_BYTES);
    store_be64(p + 40, s->vm_state_bytes);
    store_be64(p + 48, s->disk_size);
    store_be64(p + 56, s->icount);
    memcpy(p + ENTRY_BYTES + EXTRA_BYTES, s->id, id);
    memcpy(p + ENTRY_BYTES + EXTRA_BYTES + id, s->name, name);
}

/* ---- finding ------------------------------------------------------------- */

#define NONE UINT32_MAX

/* The first with this id and this name; NULL is any. */
static uint32_t find(const struct qcow2_snapshots *t, const char *id, const char *name)
{
    for (uint32_t i = 0; i < t->n; i++) {
        if ((!id || strcmp(t->v[i].id, id) == 0) && (!name || strcmp(t->v[i].name, name) == 0))
            return i;
    }
    return NONE;
}

/* @which after "@key=", NULL if it does not begin so. */
static const char *value_of(const char *which, const char *key)
{
    size_t n = strlen(key);

    return strncmp(which, key, n) == 0 ? which + n : NULL;
}

/* "snapshot.id=ID,snapshot.name=NAME" and its parts: false if it is not that. */
static bool find_by_keys(const struct qcow2_snapshots *t, const char *which, uint32_t *ret)
{
    const char *id = value_of(which, "snapshot.id="), *name = value_of(which, "snapshot.name=");
    const char *comma = id ? strstr(id, ",snapshot.name=") : NULL;
    CLEANUP(free) char *own = NULL;

    if (!id && !name)
        return false;
    if (comma) {
        id = own = xstrndup(id, (size_t)(comma - id));
        name = comma + strlen(",snapshot.name=");
    }
    *ret = find(t, id, name);
    return true;
}

bool qcow2_snapshots_find(const struct qcow2_snapshots *t, const char *which, uint32_t *ret,
                          struct err *err)
{
    uint32_t found;

    if (!find_by_keys(t, which, &found)) {
        uint32_t by_id = find(t, which, NULL), by_name = find(t, NULL, which);

        if (by_id != NONE && by_name != NONE && by_id != by_name)
            return err_set(err, -EINVAL, "'%s' is the id of one snapshot and the name of another: "
                           "say 'snapshot.id=%s' or 'snapshot.name=%s'", which, which, which);
        found = by_id != NONE ? by_id : by_name;
    }
    if (found == NONE)
        return err_set(err, -ENOENT, "the image has no snapshot '%s'", which);
    if (t->v[found].flaw)
        return err_set(err, -EINVAL, "snapshot '%s' cannot be used, the image is corrupt: %s",
                       which, t->v[found].flaw);
    *ret = found;
    return true;
}
