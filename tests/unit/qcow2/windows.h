/* SPDX-License-Identifier: Apache-2.0
 *
 * Disks of which only some windows are written to, so that thousands of crashes can be judged:
 * the begin, and where two regions of a sidecar file's log meet. And whether a dirty bitmap
 * tells of all that differs there from an earlier moment.
 */
#ifndef TESTS_QCOW2_WINDOWS_H
#define TESTS_QCOW2_WINDOWS_H

#include "block/dirty.h"
#include "qcow2_test.h"
#include "sidecar/format.h"

#define WINDOWS 4u
#define WINDOW (512u * 1024)
#define WINDOWS_DISK (3 * SIDECAR_REGION_MIN + WINDOW)
/* Writers share granules and no sectors: of two writes at a time to one place a record does
 * not tell which was the last. */
#define WRITERS 3u

/* The disk at a moment. */
struct windows {
    uint64_t size;
    unsigned char bytes[WINDOWS][WINDOW];
};

void co_windows_read(struct node *n, struct windows *ret);
/* A random write, of zeros, or a discard, of that writer, 0 to WRITERS - 1. */
void co_windows_write(struct node *n, unsigned writer, uint64_t *seed);
/* Whether each sector that is now not as it was, or was not there, is dirty; else NULL becomes
 * a sentence that says what is not. free() it. */
char *windows_untold(const struct dirty_bitmap *bm, const struct windows *was,
                     const struct windows *now);

#endif
