/* SPDX-License-Identifier: Apache-2.0
 *
 * Manifests: tables for decoding, and what the tables cannot say.
 */
#include "set/manifest.h"
#include "base/limits.h"
#include "base/mem.h"
#include "set/digest.h"
#include "set/name.h"
#include <stdio.h>
#include <sys/random.h>

#define TEXT_MAX 4096            /* of a name, a reason */
#define CHECKSUM "checksum"       /* a member */
#define SET_TYPE "stillpoint backup set"

const char *const set_kind_names[] = { "full", "incremental", NULL };

static const struct schema_type kind_enum = {
    .name = "Kind", .kind = SCHEMA_ENUM, .size = sizeof(int), .values = set_kind_names,
};

#define REQ(s, field, json, type) SCHEMA_REQUIRED(struct s, field, json, type, NULL)
#define OPT(s, field, json, type) SCHEMA_OPTIONAL(struct s, field, json, type, NULL)

static const struct schema_type digest_type = {
    .name = "Digest", .kind = SCHEMA_STRUCT, .size = sizeof(struct set_digest),
    .members = (const struct schema_member[]){
        REQ(set_digest, algorithm, "algorithm", &schema_str),
        REQ(set_digest, file, "file", &schema_str),
        REQ(set_digest, leaf_size, "leaf-size", &schema_size),
        REQ(set_digest, root, "root", &schema_str),
        SCHEMA_END,
    },
};

static const struct schema_type latency_type = {
    .name = "GuestLatency", .kind = SCHEMA_STRUCT, .size = sizeof(struct set_guest_latency),
    .members = (const struct schema_member[]){
        REQ(set_guest_latency, writes, "writes", &schema_size),
        REQ(set_guest_latency, delayed, "delayed", &schema_size),
        REQ(set_guest_latency, p50_ns, "p50-ns", &schema_size),
        REQ(set_guest_latency, p99_ns, "p99-ns", &schema_size),
        REQ(set_guest_latency, p999_ns, "p999-ns", &schema_size),
        REQ(set_guest_latency, max_ns, "max-ns", &schema_size),
        SCHEMA_END,
    },
};

static const struct schema_type disk_type = {
    .name = "Disk", .kind = SCHEMA_STRUCT, .size = sizeof(struct set_disk),
    .members = (const struct schema_member[]){
        REQ(set_disk, name, "name", &schema_str),
        REQ(set_disk, identity, "identity", &schema_str),
        REQ(set_disk, size, "size", &schema_size),
        REQ(set_disk, file, "file", &schema_str),
        REQ(set_disk, format, "format", &schema_str),
        REQ(set_disk, kind, "kind", &kind_enum),
        REQ(set_disk, reason, "reason", &schema_str),
        OPT(set_disk, parent, "parent", &schema_str),
        REQ(set_disk, bytes, "bytes", &schema_size),
        OPT(set_disk, bitmap, "bitmap", &schema_str),
        OPT(set_disk, digest, "digest", &digest_type),
        OPT(set_disk, guest_latency, "guest-latency", &latency_type),
        SCHEMA_END,
    },
};

static const struct schema_type disk_list = {
    .name = "Disks", .kind = SCHEMA_ARRAY, .size = sizeof(struct schema_array),
    .element = &disk_type,
};

static const struct schema_type quiesce_type = {
    .name = "Quiesce", .kind = SCHEMA_STRUCT, .size = sizeof(struct set_quiesce),
    .members = (const struct schema_member[]){
        REQ(set_quiesce, held, "held", &schema_bool),
        OPT(set_quiesce, file_systems, "file-systems", &schema_uint32),
        OPT(set_quiesce, frozen_ms, "frozen-ms", &schema_size),
        OPT(set_quiesce, error, "error", &schema_str),
        SCHEMA_END,
    },
};

static const struct schema_type manifest_type = {
    .name = "Manifest", .kind = SCHEMA_STRUCT, .size = sizeof(struct set_manifest),
    .members = (const struct schema_member[]){
        REQ(set_manifest, format, "format", &schema_uint32),
        REQ(set_manifest, set, "set", &schema_str),
        REQ(set_manifest, id, "id", &schema_str),
        REQ(set_manifest, sequence, "sequence", &schema_size),
        REQ(set_manifest, instant_text, "instant", &schema_str),
        REQ(set_manifest, duration_ms, "duration-ms", &schema_size),
        REQ(set_manifest, version, "version", &schema_str),
        OPT(set_manifest, quiesce, "quiesce", &quiesce_type),
        REQ(set_manifest, disks, "disks", &disk_list),
        SCHEMA_END,
    },
};

/* ---- decoding ------------------------------------------------------------------- */

/* Drop the members that @type does not have: some later version's. */
static void forget_unknown(const struct schema_type *type, json_t *json)
{
    const char *key;
    json_t *value;
    void *next;
    size_t i;

    if (type->kind == SCHEMA_ARRAY && json_is_array(json)) {
        json_array_foreach(json, i, value)
            forget_unknown(type->element, value);
    }
    if (type->kind != SCHEMA_STRUCT || !json_is_object(json))
        return;
    json_object_foreach_safe(json, next, key, value) {
        const struct schema_member *m = type->members;

        while (m->name && strcmp(m->name, key) != 0)
            m++;
        if (m->name)
            forget_unknown(m->type, value);
        else
            json_object_del(json, key);
    }
}

static bool bad(struct err *err, const char *what, const char *text)
{
    return err_set(err, -EINVAL, "%s '%.80s' is not one that a set can have", what, text);
}

static bool check_disk(const struct set_disk *d, struct err *err)
{
    if (!*d->name || strlen(d->name) > TEXT_MAX)
        return bad(err, "The disk's name", d->name);
    if (!set_file_wellformed(d->file))
        return bad(err, "The name of the image", d->file);
    if (strcmp(d->format, "qcow2") != 0)
        return bad(err, "The format", d->format);
    if (strlen(d->reason) > TEXT_MAX)
        return bad(err, "The reason", d->reason);
    if (strlen(d->identity) > 4 * TEXT_MAX)
        return bad(err, "The identity", d->identity);
    if (d->has_parent && !set_id_wellformed(d->parent))
        return bad(err, "The id of the parent", d->parent);
    if (d->has_bitmap && strlen(d->bitmap) > 1023)
        return bad(err, "The name of the bitmap", d->bitmap);
    if (!d->has_digest)
        return true;
    if (!set_file_wellformed(d->digest.file))
        return bad(err, "The name of the digests' file", d->digest.file);
    if (!is_power_of_2(d->digest.leaf_size) || d->digest.leaf_size < 512 ||
        d->digest.leaf_size > GiB)
        return err_set(err, -EINVAL, "A digest of each %llu bytes is not one that a set can have",
                       (unsigned long long)d->digest.leaf_size);
    return true;
}

static bool check(struct set_manifest *m, struct err *err)
{
    if (m->format != SET_FORMAT)
        return err_set(err, -ENOTSUP, "It is of format %u, which a later version of Stillpoint "
                       "has made; this one knows %u", m->format, SET_FORMAT);
    if (!set_uuid_wellformed(m->set))
        return bad(err, "The set", m->set);
    if (!set_id_wellformed(m->id))
        return bad(err, "The id", m->id);
    if (!set_instant_parse(m->instant_text, &m->instant))
        return bad(err, "The instant", m->instant_text);
    if (strlen(m->version) > TEXT_MAX)
        return bad(err, "The version", m->version);
    if (m->disks.n < 1 || m->disks.n > LIMIT_SET_DISKS)
        return err_set(err, -EINVAL, "It has %zu disks", m->disks.n);
    for (size_t i = 0; i < m->disks.n; i++) {
        const struct set_disk *d = set_manifest_disk(m, i);

        if (!check_disk(d, err))
            return false;
        for (size_t k = 0; k < i; k++) {
            if (strcmp(d->name, set_manifest_disk(m, k)->name) == 0 ||
                strcmp(d->file, set_manifest_disk(m, k)->file) == 0)
                return err_set(err, -EINVAL, "Two disks are called '%.80s'", d->name);
        }
    }
    return true;
}

/* The digest of all members but this one, so that it is seen when somebody, or a disk, has
 * changed a bit. */
static char *checksum_of(json_t *json)
{
    CLEANUP(json_decref) json_t *rest = json_copy(json);
    CLEANUP(free) char *text = NULL;
    struct set_digest_value d;
    char *hex = xmalloc(SET_DIGEST_HEX);

    json_object_del(rest, CHECKSUM);
    text = json_dumps(rest, JSON_COMPACT | JSON_SORT_KEYS);
    set_digest_of(text, strlen(text), &d);
    return set_digest_hex(&d, hex);
}

/* What has no checksum passes: *ret_has says so. */
static bool check_checksum(json_t *json, bool *ret_has, struct err *err)
{
    json_t *member = json_object_get(json, CHECKSUM);
    CLEANUP(free) char *sum = NULL;

    *ret_has = member != NULL;
    if (!member)
        return true;
    sum = checksum_of(json);
    return (json_is_string(member) && strcmp(json_string_value(member), sum) == 0) ||
           err_set(err, -EBADMSG, "It is damaged: its checksum does not match");
}

bool set_manifest_parse(const char *text, size_t len, struct set_manifest *ret, struct err *err)
{
    CLEANUP(json_decref) json_t *json = NULL;
    bool has_checksum;

    if (len > LIMIT_SET_MANIFEST_BYTES)
        return err_set(err, -EFBIG, "It is larger than any manifest");
    json = schema_parse_json(text, len, err);
    if (!json || !check_checksum(json, &has_checksum, err))
        return false;
    forget_unknown(&manifest_type, json);
    if (!schema_decode(&manifest_type, json, false, ret, err))
        return false;
    ret->has_checksum = has_checksum;
    if (check(ret, err))
        return true;
    set_manifest_done(ret);
    return false;
}

void set_manifest_done(struct set_manifest *m)
{
    schema_clear(&manifest_type, m);
    *m = (struct set_manifest){ 0 };
}

/* ---- encoding -------------------------------------------------------------------- */

json_t *set_manifest_json(struct set_manifest *m)
{
    char text[SET_INSTANT_TEXT];

    m->format = SET_FORMAT;
    free(m->instant_text);
    m->instant_text = xstrdup(set_instant_text(m->instant, text));
    return schema_encode(&manifest_type, m);
}

static char *text_of(json_t *json)
{
    CLEANUP(free) char *sum = checksum_of(json);
    CLEANUP(free) char *text = NULL;

    json_object_set_new(json, CHECKSUM, json_string(sum));
    text = json_dumps(json, JSON_INDENT(2));
    json_decref(json);
    return xasprintf("%s\n", text);
}

char *set_manifest_text(struct set_manifest *m)
{
    return text_of(set_manifest_json(m));
}

/* ---- looking ---------------------------------------------------------------------- */

struct set_disk *set_manifest_find_disk(const struct set_manifest *m, const char *name)
{
    for (size_t i = 0; i < m->disks.n; i++) {
        if (strcmp(set_manifest_disk(m, i)->name, name) == 0)
            return set_manifest_disk(m, i);
    }
    return NULL;
}

const char *set_manifest_kind(const struct set_manifest *m)
{
    size_t full = 0;

    for (size_t i = 0; i < m->disks.n; i++)
        full += set_manifest_disk(m, i)->kind == SET_FULL;
    return full == m->disks.n ? "full" : full ? "mixed" : "incremental";
}

uint64_t set_manifest_bytes(const struct set_manifest *m)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < m->disks.n; i++)
        sum += set_manifest_disk(m, i)->bytes;
    return sum;
}

/* ---- set.json --------------------------------------------------------------------- */

char *set_description_new(struct err *err)
{
    uint8_t b[16];
    char uuid[37];

    if (getrandom(b, sizeof(b), 0) != (ssize_t)sizeof(b)) {
        err_errno(err, -errno, "There are no random numbers");
        return NULL;
    }
    /* RFC 9562: version 4, variant 10. */
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(uuid, sizeof(uuid),
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
    return text_of(json_pack("{s:s, s:i, s:s}", "type", SET_TYPE, "format", SET_FORMAT, "id",
                             uuid));
}

char *set_description_parse(const char *text, size_t len, struct err *err)
{
    CLEANUP(json_decref) json_t *json = schema_parse_json(text, len, err);
    const char *type = json_string_value(json_object_get(json, "type"));
    const char *id = json_string_value(json_object_get(json, "id"));
    bool has_checksum;

    if (!json)
        return NULL;
    if (!type || strcmp(type, SET_TYPE) != 0 || !id || !set_uuid_wellformed(id)) {
        err_set(err, -EINVAL, "It does not describe a backup set");
        return NULL;
    }
    if (!check_checksum(json, &has_checksum, err))
        return NULL;
    if (!has_checksum) {
        err_set(err, -EBADMSG, "It is damaged: it has no checksum");
        return NULL;
    }
    if (json_integer_value(json_object_get(json, "format")) != SET_FORMAT) {
        err_set(err, -ENOTSUP, "The set is of a format which this version of Stillpoint does not "
                "know");
        return NULL;
    }
    return xstrdup(id);
}
