/* SPDX-License-Identifier: Apache-2.0
 *
 * Private to the files of digests: what is where in them. All numbers are big-endian.
 */
#ifndef SET_DIGEST_IMPL_H
#define SET_DIGEST_IMPL_H

#include "set/digest_file.h"

#define DIGEST_MAGIC "STLPDIGS"
#define DIGEST_END_MAGIC "STLPDIGE"
#define DIGEST_VERSION 1U
#define DIGEST_SHA256 1U

/* Header. */
#define DIGEST_HEADER 64U
enum {
    HEAD_MAGIC = 0,
    HEAD_VERSION = 8,            /* u32 */
    HEAD_ALGORITHM = 12,         /* u32 */
    HEAD_SIZE = 16,              /* u64: of the disk, bytes */
    HEAD_LEAF = 24,              /* u32: bytes */
    HEAD_CHUNK = 28,             /* u32: bytes */
    HEAD_ZERO = 32,              /* zero to the end */
};

/* A run; digests follow if it has data. The last has no leaves and kind END. */
#define DIGEST_RUN 16U
#define DIGEST_RUN_MAX 2048U     /* leaves of a run with digests */
enum { RUN_FIRST = 0, RUN_N = 8 /* u32 */, RUN_KIND = 12 /* u32 */ };
enum { KIND_END, KIND_DATA, KIND_ZERO };

/* Footer, behind the digests of the chunks. */
#define DIGEST_FOOTER 96U
enum {
    FOOT_MAGIC = 0,
    FOOT_CHUNKS_AT = 8,          /* u64: where the digests of the chunks begin */
    FOOT_IMAGE_BYTES = 16,       /* u64 */
    FOOT_ZERO = 24,              /* zero to the checksum */
    FOOT_CHECKSUM = 64,          /* SHA-256 of all that stands before */
};

#endif
