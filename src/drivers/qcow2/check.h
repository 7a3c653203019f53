/* SPDX-License-Identifier: Apache-2.0
 *
 * Checking the consistency of an image, and repairing it: for commands, and for
 * opening images that were not closed cleanly. Works on the image's file, not on
 * an open qcow2 node: what is broken cannot be relied on to open. docs/qcow2.md,
 * "Check and repair", tells what is looked at and in which order is written.
 */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include "block/node.h"

enum qcow2_repair {
    QCOW2_REPAIR_NONE,
    QCOW2_REPAIR_LEAKS,          /* refcounts that are too high are lowered */
    QCOW2_REPAIR_ALL,            /* everything that there is a sound way to repair */
};

/* As qemu-img counts: QAPI ImageCheck. */
struct qcow2_check_result {
    uint64_t check_errors;       /* what could not be checked */
    uint64_t corruptions, leaks;               /* what is there now */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t image_end;          /* bytes: behind the last cluster in use */
    uint64_t total, allocated, fragmented, compressed;   /* guest clusters */
    bool checked;                /* a check came to its end: this is what the last one found */
};

struct qcow2_check_opts {
    enum qcow2_repair repair;
    /* Hears a line about each thing that is wrong, at most
     * LIMIT_QCOW2_CHECK_LINES. May be NULL. Does not suspend. */
    void (*tell)(void *ctx, const char *line);
    /* Asked now and then; true ends the check with -ECANCELED. May be NULL. */
    bool (*cancelled)(void *ctx);
    void *ctx;
};

/* Check the image in @file, which nobody changes meanwhile; with a repair @file is
 * writable and the caller's alone. True: *ret says what was found (and is there
 * still, after a repair). False with @err when it could not be checked: no qcow2
 * image that this version knows, an I/O error, out of memory; a repair may
 * have been begun then, and is safe to begin again. False too, but with ret->checked,
 * when a repair was refused. Memory is bounded (LIMIT_QCOW2_CHECK_*) whatever the image
 * says. Coroutine on the node's loop. */
MUST_CHECK bool co_qcow2_check(struct node *file, const struct qcow2_check_opts *opts,
                               struct qcow2_check_result *ret, struct err *err);

#endif
