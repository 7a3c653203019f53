/* SPDX-License-Identifier: Apache-2.0
 *
 * Making qcow2 images: for commands and jobs.
 */
#ifndef QCOW2_CREATE_H
#define QCOW2_CREATE_H

#include "block/node.h"
#include "drivers/qcow2/format.h"

struct qcow2_create_opts {
    uint64_t size;               /* of the disk, bytes; rounded up to 512 as QEMU does */
    uint32_t cluster_size;       /* 512 .. 2 MiB, power of two; 0: 64 KiB */
    uint32_t version;            /* 2 or 3; 0: 3 */
    uint32_t refcount_bits;      /* 1 .. 64, power of two (version 2: 16); 0: 16 */
    bool extended_l2;            /* subclusters: clusters of 16 KiB at least, version 3 */
    bool lazy_refcounts;         /* version 3: write refcounts on closing only */
    enum qcow2_compression compression;   /* of compressed clusters; zstd needs version 3 */
    const char *backing_file;    /* as it is to stand in the header; NULL: none */
    const char *backing_format;  /* its driver; must be given with backing_file */
    /* Version 3: the guest's data goes to this file, as it is to stand in the header.
     * Not looked at: the caller makes it, as long as the disk and reading as zero. */
    const char *data_file;
    bool data_file_raw;          /* it is to read as the disk does; no backing file then */
};

/* Write an empty image to @file, a writable node that the caller uses alone. What
 * it has is lost; a file that can be resized is as long as the image then. The
 * image is whole and flushed on success; after a failure it is no image. The backing
 * file is not looked at. Coroutine on the node's loop. */
MUST_CHECK bool co_qcow2_create(struct node *file, const struct qcow2_create_opts *opts,
                                struct err *err);

/* As QEMU's PreallocMode. */
enum qcow2_prealloc {
    QCOW2_PREALLOC_OFF,
    QCOW2_PREALLOC_METADATA,     /* L2 tables and clusters; the file stays sparse */
    QCOW2_PREALLOC_FALLOC,       /* and the file system has reserved the clusters' space */
    QCOW2_PREALLOC_FULL,         /* and zeros are written to them */
};

/* Give guest clusters that touch [off, off+len) and have none their host clusters.
 * What the guest reads stays as it is; where that comes from a backing file, only
 * images with subclusters can say so, in others those clusters are left out. @n is a
 * writable qcow2 node; requests may be under way. All of it is on the disk on success.
 * Coroutine on the node's loop. */
MUST_CHECK bool co_qcow2_preallocate(struct node *n, uint64_t off, uint64_t len,
                                     enum qcow2_prealloc mode, struct err *err);

#endif
