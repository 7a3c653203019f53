/* SPDX-License-Identifier: Apache-2.0
 *
 * What is in a backup set: its points in order, what their images stand on, what is broken, what
 * a run that was cut short has left (docs/backup-sets.md). Reads every manifest and the header
 * of every image; nothing is changed, and no lock is needed. May block.
 */
#ifndef SET_CATALOG_H
#define SET_CATALOG_H

#include "set/manifest.h"

struct set_point;

/* The image of a disk of a point, as it is found. */
struct set_image {
    const struct set_disk *disk;         /* of the point's manifest; .disk->file is its name */
    const struct set_point *point;
    uint64_t allocated;                  /* bytes that its file takes */
    char *backing;                       /* the file that it stands on, in the directory; NULL:
                                          * it stands alone */
    const struct set_image *below;       /* that image; NULL: none, or it is missing */
    char *broken;                        /* why it cannot be read, or one below it; NULL: nothing
                                          * was found */
};

struct set_point {
    struct set_manifest m;
    struct set_image *images;            /* of each disk of the manifest, in its order */
    bool broken;                         /* some image is */
};

/* A file that is not as it should be. */
struct set_fault {
    char *file;
    char *why;
};

struct set_catalog {
    char *dir;                           /* as given */
    char *uuid;
    struct set_point *points;            /* oldest first */
    size_t n_points;
    struct set_point *pending;           /* points that are being made or removed (I-M2), by their
                                          * pending manifests; .broken says nothing */
    size_t n_pending;
    struct set_fault *faults;            /* manifests, also pending ones, that cannot be read */
    size_t n_faults;
    char **unknown;                      /* files that no manifest names */
    size_t n_unknown;
    char **temporary;                    /* files that are being written, or were */
    size_t n_temporary;
};

/* False with @err, and nothing in @ret that has to be freed; code -ENOENT: @dir does not exist,
 * -ENODATA: it is no set. */
MUST_CHECK bool set_catalog_open(const char *dir, struct set_catalog *ret, struct err *err);
void set_catalog_done(struct set_catalog *c);

/* Whether @dir has nothing in it that is not of a set which was just about to be made. */
MUST_CHECK bool set_dir_is_empty(const char *dir, bool *ret, struct err *err);

/* The point that a person means: its id, the beginning of just one id, or a time ("2026-12-01
 * 03:57"; RFC 3339): then the last one at or before it. NULL: the last of all. NULL with @err:
 * there is none. */
const struct set_point *set_catalog_find(const struct set_catalog *c, const char *at,
                                         struct err *err);
/* By the id alone; NULL: there is none. */
const struct set_point *set_catalog_point(const struct set_catalog *c, const char *id);

/* The last point that has a disk of this name, and its image there; NULL: none has. */
const struct set_image *set_catalog_last_of(const struct set_catalog *c, const char *disk);

/* The image with this file name, of a point or of a pending one; NULL: none. */
const struct set_image *set_catalog_image(const struct set_catalog *c, const char *file);

#endif
