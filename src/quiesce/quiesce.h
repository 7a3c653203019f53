/* SPDX-License-Identifier: Apache-2.0
 *
 * A guest that holds still while its disks are cut: its file systems frozen by the guest
 * agent, its database told by commands of the user's. All of that is done by a process of
 * its own, the keeper, which lets the guest go when the cut has been taken, when that
 * takes too long, and when whoever asked for it dies.
 *
 *   quiesce_begin   pre-cut command; freeze
 *      (the cut)
 *   quiesce_end     thaw; post-cut command
 *
 * One thread; before the process has others.
 */
#ifndef QUIESCE_QUIESCE_H
#define QUIESCE_QUIESCE_H

#include "base/err.h"

struct quiesce_opts {
    const char *agent;              /* the guest agent's socket; NULL: none */
    const char *pre_cut, *post_cut; /* for sh; NULL: none */
    uint64_t limit_ns;              /* that the guest stands still; and that each command,
                                     * and finding the agent, may take */
};

/* How it went; for the one who asked and for the backup's record. */
struct quiesce_result {
    bool held;                      /* the guest stood still when the disks were cut */
    unsigned file_systems;          /* that were frozen */
    uint64_t frozen_ns;             /* from the wish to freeze to the end of the thaw */
    struct err err;                 /* why not .held; or, with it, what went wrong later */
};

struct quiesce {
    pid_t pid;                      /* the keeper; 0: none */
    int fd;
};

/* Make the guest hold still. When it returns false, with @ret, nothing is held any more,
 * and there is nothing to end. */
MUST_CHECK bool quiesce_begin(struct quiesce *q, const struct quiesce_opts *o,
                              struct quiesce_result *ret);

/* Let it go. */
void quiesce_end(struct quiesce *q, struct quiesce_result *ret);

#endif
