/* SPDX-License-Identifier: Apache-2.0
 *
 * The scratch store from inside, shared by store.c and spill.c.
 */
#ifndef CBW_STORE_IMPL_H
#define CBW_STORE_IMPL_H

#include "base/bitmap.h"
#include "cbw/parts.h"
#include "cbw/store.h"
#include "cbw/view.h"
#include <fcntl.h>

#define GRANULE ((uint64_t)VIEW_GRANULE)
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

struct store {
    /* Never changed. */
    uint64_t size;
    uint64_t limit;
    int memory_fd;                     /* -1: no such tier */
    struct parts file;                 /* empty: no such tier */
    unsigned file_hints;               /* enum io_hint */
    struct node *target;               /* takes the place of the file; NULL: no such */
    uint64_t target_size;              /* of the disk: the last granule may be cut off there */

    uint64_t memory_max;               /* lowered when the system has no more to give */
    uint64_t memory_used, file_used;
    uint64_t moving;                   /* counted in both meanwhile */
    uint64_t reserved;
    struct bitmap *stored;             /* kept in a tier */
    struct bitmap *in_file;            /* subset of stored: in the file, else in memory */
    struct bitmap *punch;              /* released in the file, no hole yet */
    struct waitq space;                /* woken when bytes come free */
    struct waitq moved;                /* woken when memory was moved, or will not be, and
                                        *   when one of those two coroutines ends: */
    bool punching, spilling;           /* coroutines that run; the last frees a dead store */
    bool spill_failed;                 /* the file took no more: memory stays as it is */
    bool dead;
};

/* Give the file's bytes of granules [first, first+n) back, soon. */
void store_punch_file(struct store *s, uint64_t first, uint64_t n);

/* spill.c: begin to move memory to the file if it is half full. */
void store_spill_if_full(struct store *s);

#endif
