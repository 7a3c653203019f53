/* SPDX-License-Identifier: Apache-2.0
 *
 * Going over a disk from its beginning to its end: what is to be done is looked for
 * in order, and done by several coroutines side by side. Progress is shown, and
 * Ctrl-C ends it between two pieces, so that whoever changes an image can leave it
 * whole.
 */
#ifndef APP_SWEEP_H
#define APP_SWEEP_H

#include "app/watch.h"

#define SWEEP_PIECE (2 * MiB)
#define SWEEP_BUFFERS 2

struct sweep_piece {
    uint64_t off, len;                   /* len <= SWEEP_PIECE */
    uint8_t *buf[SWEEP_BUFFERS];         /* of SWEEP_PIECE bytes each, to be used */
};

struct sweep {
    /* The next piece at or behind @off: 0 with p->off and p->len, p->len 0: there
     * is none. Calls come one after the other. */
    int (*co_find)(void *arg, uint64_t off, struct sweep_piece *p);
    /* Do it. Several run at a time. */
    int (*co_do)(void *arg, const struct sweep_piece *p);
    void *arg;
    uint64_t from, to;                   /* bytes of the disk; for progress */
    struct watch *watch;
};

/* 0, or -errno of what failed first; -ECANCELED: Ctrl-C. Nothing is under way any more
 * when it returns. Coroutine. */
MUST_CHECK int co_sweep(const struct sweep *s);

#endif
