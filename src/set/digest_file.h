/* SPDX-License-Identifier: Apache-2.0
 *
 * The file of digests beside an image of a backup set: of the leaves that this image holds,
 * and of the image file itself in chunks. docs/backup-sets.md, "Digests", has the format.
 * A full holds every leaf that is not zero, an incremental those that it has changed; the
 * leaves of a point are found through digest_chain.h. Memory is bounded whatever a file
 * says. Plain POSIX; may block.
 */
#ifndef SET_DIGEST_FILE_H
#define SET_DIGEST_FILE_H

#include "base/err.h"
#include "set/digest.h"

#define SET_CHUNK (1 * MiB)          /* of an image file */
#define SET_DIGEST_SUFFIX ".digests"

/* ---- writing ------------------------------------------------------------------ */

struct set_digest_writer;

/* Begin the file @path, which must not be there, about an image of a disk of @size bytes.
 * NULL with @err. */
struct set_digest_writer *set_digest_writer_new(const char *path, uint64_t size,
                                                struct err *err);
/* Without an end before, the file is removed. Takes NULL. */
void set_digest_writer_free(struct set_digest_writer *w);
DEFINE_CLEANUP(struct set_digest_writer *, set_digest_writer_free);

/* Leaves in ascending order. What fails shows at the end. */
void set_digest_writer_leaf(struct set_digest_writer *w, uint64_t leaf,
                            const struct set_digest_value *d);
/* After the leaves: the chunks of the image file, in order, all of them. */
void set_digest_writer_chunk(struct set_digest_writer *w, const struct set_digest_value *d);
/* After the chunks of @image_bytes: the file is whole and on stable storage (its name in
 * the directory is the caller's to see there). */
MUST_CHECK bool set_digest_writer_end(struct set_digest_writer *w, uint64_t image_bytes,
                                      struct err *err);

/* ---- reading ------------------------------------------------------------------ */

struct set_digest_file;

/* Looks at both ends only. NULL with @err, which names @path; -EBADMSG: it is no whole
 * file of digests. */
struct set_digest_file *set_digest_file_open(const char *path, struct err *err);
void set_digest_file_free(struct set_digest_file *f);
DEFINE_CLEANUP(struct set_digest_file *, set_digest_file_free);

const char *set_digest_file_path(const struct set_digest_file *f);
uint64_t set_digest_file_size(const struct set_digest_file *f);          /* of the disk */
uint64_t set_digest_file_image_bytes(const struct set_digest_file *f);

/* Read all of it: its checksum and every run. Afterwards it stands at its first run. */
MUST_CHECK bool set_digest_file_check(struct set_digest_file *f, struct err *err);

struct set_digest_run {
    uint64_t first, n;                     /* leaves; n 0: there are no more */
    const struct set_digest_value *v;      /* until the next call; NULL: they are zero */
};
/* The next run, in ascending order. False with @err: damaged, or cannot be read. */
MUST_CHECK bool set_digest_file_next(struct set_digest_file *f, struct set_digest_run *ret,
                                     struct err *err);

/* @n digests of the image file's chunks from @first on. */
MUST_CHECK bool set_digest_file_chunks(const struct set_digest_file *f, uint64_t first, size_t n,
                                       struct set_digest_value *ret, struct err *err);

#endif
