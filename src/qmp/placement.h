/* SPDX-License-Identifier: Apache-2.0
 *
 * The loops that disks live on, and which of them a new disk gets. Loops are
 * made when they are first needed, up to a number that is given; the main loop,
 * which runs QMP, is none of them, so that no disk's work delays an answer.
 *
 * Everything here is for the main thread.
 */
#ifndef QMP_PLACEMENT_H
#define QMP_PLACEMENT_H

#include "loop/loop.h"

struct placement;

/* @max_loops >= 1. */
struct placement *placement_new(enum loop_engine engine, unsigned max_loops);

/* Stop and join every loop. Nodes, jobs and exports are gone by then, or are
 * abandoned together with the process. Takes NULL. */
void placement_free(struct placement *p);

/* The CPUs that this process may use: what a daemon takes as @max_loops unless
 * it is told. At least 1. */
unsigned placement_usable_cpus(void);

/* The loop with the fewest nodes that users have named, counting those that are
 * being opened. What is picked counts until placement_settled is called with it.
 * NULL with @err when a thread or an engine cannot be had. */
struct loop *placement_pick(struct placement *p, struct err *err);
void placement_settled(struct placement *p, struct loop *loop);

/* Loops that run. */
unsigned placement_loops(const struct placement *p);

#endif
