/* SPDX-License-Identifier: Apache-2.0
 *
 * The sidecar file as the system has it. Everything that may block is done by workers or
 * the ring; small writes are tried at once, as those of images are. 0 or -errno.
 */
#ifndef SIDECAR_FILE_H
#define SIDECAR_FILE_H

#include "base/err.h"

struct sidecar_file {
    int fd;                      /* -1: none */
    char *path;
    uint64_t size;
    bool in_memory;
};

/* Open and lock it: against every other opener, or only writers if @read_only. -ENOENT
 * without @err if there is none. */
int co_sidecar_file_open(struct sidecar_file *f, const char *path, bool read_only,
                         struct err *err);
/* A new one without a name yet: co_sidecar_file_publish gives it, durably, replacing nothing. */
int co_sidecar_file_create(struct sidecar_file *f, const char *path, struct err *err);
int co_sidecar_file_publish(struct sidecar_file *f, struct err *err);
void co_sidecar_file_close(struct sidecar_file *f);
/* The same for one that has got no name: nothing of it is left. */
void co_sidecar_file_discard(struct sidecar_file *f);
/* Remove it from its directory, durably. */
int co_sidecar_file_unlink(struct sidecar_file *f);

MUST_CHECK int co_sidecar_write(struct sidecar_file *f, uint64_t off, const void *buf, size_t len);
MUST_CHECK int co_sidecar_read(struct sidecar_file *f, uint64_t off, void *buf, size_t len);
MUST_CHECK int co_sidecar_resize(struct sidecar_file *f, uint64_t size);
MUST_CHECK int co_sidecar_punch(struct sidecar_file *f, uint64_t off, uint64_t len);
MUST_CHECK int co_sidecar_sync(struct sidecar_file *f);

#endif
