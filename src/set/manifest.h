/* SPDX-License-Identifier: Apache-2.0
 *
 * The manifest of a point, and the description of a set: what a person or a program wants to
 * know about a backup, as JSON (docs/backup-set-manifest.schema.json). Pure; hostile
 * text is checked here and nowhere else (docs/backup-sets.md, I-M6).
 */
#ifndef SET_MANIFEST_H
#define SET_MANIFEST_H

#include "base/schema.h"

/* Members that a reader does not know are ignored; a change that makes it misunderstand the
 * others raises this. */
#define SET_FORMAT 1U

enum set_kind { SET_FULL, SET_INCREMENTAL };
extern const char *const set_kind_names[];

/* The digests of a disk's content: of each leaf of the virtual disk, in a file beside, and of
 * all these. */
struct set_digest {
    char *algorithm;
    char *file;                      /* in the set's directory */
    uint64_t leaf_size;              /* bytes of the disk; a power of 2 */
    char *root;                      /* hexadecimal */
};

/* What the backup has cost the disk's writers (docs/qmp.md, guest-latency). */
struct set_guest_latency {
    uint64_t writes, delayed, p50_ns, p99_ns, p999_ns, max_ns;
};

struct set_disk {
    char *name;
    char *identity;                  /* where it was: the image's path, or a URI */
    uint64_t size;                   /* of the virtual disk, bytes */
    char *file;                      /* of the image, in the set's directory */
    char *format;                    /* of it: "qcow2" */
    int kind;                        /* enum set_kind */
    char *reason;                    /* for the kind, in words */
    bool has_parent;
    char *parent;                    /* the point whose image this one was made over */
    uint64_t bytes;                  /* copied */
    bool has_bitmap;
    char *bitmap;                    /* at the disk, what was written since */
    bool has_digest;
    struct set_digest digest;
    bool has_guest_latency;
    struct set_guest_latency guest_latency;
};

struct set_quiesce {
    bool held;                       /* the guest stood still at the instant */
    bool has_file_systems;
    uint32_t file_systems;
    bool has_frozen_ms;
    uint64_t frozen_ms;
    bool has_error;
    char *error;
};

struct set_manifest {
    uint32_t format;                 /* SET_FORMAT */
    char *set;                       /* UUID */
    char *id;
    uint64_t sequence;               /* larger than those of all points before */
    char *instant_text;              /* RFC 3339, UTC */
    int64_t instant;                 /* the same, milliseconds since 1970 */
    uint64_t duration_ms;
    char *version;                   /* of the program */
    bool has_quiesce;
    struct set_quiesce quiesce;
    struct schema_array disks;       /* struct set_disk, at least one */
    bool has_checksum;               /* the text had one, which was right */
};

/* False with @err, and nothing in @ret that has to be freed. */
MUST_CHECK bool set_manifest_parse(const char *text, size_t len, struct set_manifest *ret,
                                   struct err *err);
void set_manifest_done(struct set_manifest *m);

/* A new reference. .instant_text is made from .instant, .format is SET_FORMAT. */
json_t *set_manifest_json(struct set_manifest *m);
/* As a file has it. free() it. */
char *set_manifest_text(struct set_manifest *m);

static inline size_t set_manifest_n_disks(const struct set_manifest *m)
{
    return m->disks.n;
}
static inline struct set_disk *set_manifest_disk(const struct set_manifest *m, size_t i)
{
    return (struct set_disk *)m->disks.items + i;
}
/* NULL: it is not of this point. */
struct set_disk *set_manifest_find_disk(const struct set_manifest *m, const char *name);

/* Whether all disks were copied in full, or none; or some. */
const char *set_manifest_kind(const struct set_manifest *m);    /* "full", "incremental", "mixed" */
uint64_t set_manifest_bytes(const struct set_manifest *m);

/* ---- set.json ------------------------------------------------------------------- */

/* The text of a new one, which has a new UUID. free() it. NULL with @err: no random numbers. */
char *set_description_new(struct err *err);
/* The UUID. free() it. NULL with @err. */
char *set_description_parse(const char *text, size_t len, struct err *err);

#endif
