/* SPDX-License-Identifier: Apache-2.0
 *
 * The keeper's side of quiesce.h.
 */
#ifndef QUIESCE_KEEPER_H
#define QUIESCE_KEEPER_H

#include "quiesce/quiesce.h"

/* What the keeper tells over its socket, a message each: first that the guest is held,
 * unless it is not; last how it went. Then it ends. */
struct keeper_message {
    bool over;
    struct quiesce_result result;
};

/* The body of the keeper process. @fd: a SOCK_SEQPACKET socket; its end means that the cut
 * has been taken, or never will be. */
_Noreturn void keeper_run(int fd, const struct quiesce_opts *o);

#endif
