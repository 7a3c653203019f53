/* SPDX-License-Identifier: Apache-2.0
 *
 * The file tier of a scratch store (store.h): files without a name that together are as
 * large as the disk. It is one file wherever the file system has files of that size;
 * ext4's end at 16 TiB, and there it is several of the same size, one after the other.
 * Nothing here suspends; whoever does I/O does so part by part.
 */
#ifndef CBW_PARTS_H
#define CBW_PARTS_H

#include "base/base.h"
#include "base/limits.h"
#include <stdint.h>

struct parts {
    uint64_t size;                     /* of each but the last */
    unsigned n;                        /* 0: no such tier */
    int fd[LIMIT_SCRATCH_PARTS];
};

/* Sparse files in @dir for @total bytes, a multiple of 4 KiB. Blocks: for a worker. Returns 0 or
 * -errno, after which @p is as empty as before. */
MUST_CHECK int parts_open(struct parts *p, const char *dir, uint64_t total);

/* The file in which *@off of the whole lies; *@off becomes the place in it, and *@len no
 * more than that file has from there on. */
int parts_at(const struct parts *p, uint64_t *off, uint64_t *len);

#endif
