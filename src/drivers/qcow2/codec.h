/* SPDX-License-Identifier: Apache-2.0
 *
 * Packing and unpacking the data of compressed clusters: raw deflate (RFC 1951)
 * and zstd, as QEMU reads and writes them. Pure computation, for worker threads;
 * pack.c and compress.c use it.
 */
#ifndef QCOW2_CODEC_H
#define QCOW2_CODEC_H

#include "drivers/qcow2/format.h"

/* What packing and unpacking need again and again. Used by one thread at a time. */
struct qcow2_codec;

struct qcow2_codec *qcow2_codec_new(void);
void qcow2_codec_free(struct qcow2_codec *c);      /* takes NULL */

/* Pack @len bytes into @out, which has @room: how many those are then, or 0 when
 * they do not fit. -ENOMEM. */
MUST_CHECK int64_t qcow2_codec_pack(struct qcow2_codec *c, enum qcow2_compression type,
                                    const void *data, size_t len, void *out, size_t room);

/* Unpack until @out is full with its @len bytes; what follows in @packed is padding
 * or a neighbour. -EIO when it is no such data. -ENOMEM. */
MUST_CHECK int qcow2_codec_unpack(struct qcow2_codec *c, enum qcow2_compression type,
                                  const void *packed, size_t bytes, void *out, size_t len);

#endif
