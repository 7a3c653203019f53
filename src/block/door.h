/* SPDX-License-Identifier: Apache-2.0
 *
 * The door of a disk, for disk.c: a count of the requests inside and a queue of
 * those that wait outside. An open door costs a request two additions and two
 * comparisons.
 */
#ifndef BLOCK_DOOR_H
#define BLOCK_DOOR_H

#include "block/core.h"

struct disk {
    struct node *node;           /* held by the users' edges */
    unsigned users;
    unsigned closers;            /* co_shut_doors that look at this disk */
    unsigned shut;               /* co_shut_doors that reach it and are not opened again */
    uint64_t in_flight;
    struct list waiting;         /* outside, in order of arrival */
    struct waitq quiet;          /* closers, until nothing is in flight */
};

/* A disk without users, over @n. Its door is shut if some door below is. */
struct disk *disk_new(struct node *n);
/* Free it when nobody is left that uses or looks at it. */
void disk_drop_unused(struct disk *d);

void co_door_wait(struct disk *d);
void door_went_quiet(struct disk *d);

static inline void co_door_enter(struct disk *d)
{
    if (UNLIKELY(d->shut || !list_empty(&d->waiting)))
        co_door_wait(d);
    d->in_flight++;
}

static inline void door_leave(struct disk *d)
{
    d->in_flight--;
    if (UNLIKELY(d->shut && !d->in_flight))
        door_went_quiet(d);
}

#endif
