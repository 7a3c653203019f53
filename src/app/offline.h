/* SPDX-License-Identifier: Apache-2.0
 *
 * For commands that look at images themselves, without a daemon: a loop in this
 * thread and one coroutine on it.
 */
#ifndef APP_OFFLINE_H
#define APP_OFFLINE_H

#include "block/graph.h"

/* Run fn(arg) as a coroutine with every driver at hand, and give its result. -errno
 * with @err when there can be no loop. Once a process. */
int offline_run(int (*fn)(void *arg), void *arg, struct err *err);

struct offline_open {
    const char *name;          /* as the user typed it */
    const char *format;        /* NULL: by the name */
    bool force_share;
    bool no_backing;
    bool no_data_file;         /* with nothing in its place, for what the header says; an image
                                * that has none is not opened then */
    const char *snapshot;      /* of a qcow2 image: as it was then; NULL: as it is */
};

/* Open an image to be read. A reference; close it with co_node_unref. NULL with @err. */
struct node *co_offline_open(const struct offline_open *o, struct err *err);

#endif
