/* SPDX-License-Identifier: Apache-2.0
 *
 * Drivers for tests. "test-mem" is a disk in memory that a test looks into and
 * whose manners it sets: unit and largest size of requests, what fails, what
 * waits, how long an operation dawdles. It keeps a record of the requests that
 * reach it. With option "backing" it is an overlay. "test-filter" passes
 * everything to its child `file`, by the funnel's own means where it can.
 */
#ifndef TESTS_MEMDRV_H
#define TESTS_MEMDRV_H

#include "block/driver.h"
#include "loop/co_sync.h"

enum mem_op {
    MEM_READ, MEM_WRITE, MEM_ZERO, MEM_DISCARD, MEM_CLONE, MEM_FLUSH, MEM_STATUS, MEM_DETACH,
    MEM_ATTACH,
    MEM_OPS
};

struct mem_record {
    enum mem_op op;
    uint64_t off, len;
    unsigned flags;
};

/* What a byte comes from. */
enum mem_kind { MEM_IS_DATA, MEM_IS_ZERO, MEM_IS_ABSENT };

struct mem {
    struct node *node;
    unsigned char *data;         /* node->size rounded up to request_align */
    unsigned char *kind;         /* an enum mem_kind a byte */

    struct mem_record *log;
    size_t n_log;

    int fails[MEM_OPS];          /* -errno that the operation gives; 0: it works */
    bool clones;                 /* clones other such disks that have no backing */
    bool held[MEM_OPS];          /* it waits until mem_release */
    struct waitq gate;
    uint64_t dawdle;             /* up to so many co_yield before it acts */
    uint64_t seed;
    unsigned in_flight, most_in_flight;
};

void memdrv_register(void);

/* Of an open test-mem node. */
struct mem *mem_of(struct node *n);

void mem_release(struct mem *m, enum mem_op op);
void mem_clear_log(struct mem *m);
/* How many requests of this kind are in the log. */
unsigned mem_count(const struct mem *m, enum mem_op op);
/* The @i-th of this kind; fails the test if there is none. */
const struct mem_record *mem_nth(const struct mem *m, enum mem_op op, unsigned i);
/* Set the kind of a range, and its bytes: zeros unless it is data. */
void mem_fill(struct mem *m, uint64_t off, uint64_t len, enum mem_kind kind, int byte);

/* How many times a test-mem node has been closed since the program started. */
unsigned mem_closed_count(void);

#endif
