/* SPDX-License-Identifier: Apache-2.0
 *
 * A client of the QEMU guest agent, which freezes and thaws the file systems of a
 * guest. Blocking, with deadlines; for a process that does nothing else meanwhile.
 * The protocol: QEMU docs/interop/qemu-ga.rst and qga/qapi-schema.json.
 */
#ifndef QUIESCE_AGENT_H
#define QUIESCE_AGENT_H

#include "base/err.h"

struct agent;

/* Connect to the agent's socket on the host, and see that an agent answers there: what
 * others asked before and nobody read is thrown away (guest-sync-delimited). @deadline:
 * loop_now time. NULL with @err. */
struct agent *agent_connect(const char *path, uint64_t deadline, struct err *err);
void agent_free(struct agent *a);              /* takes NULL */
DEFINE_CLEANUP(struct agent *, agent_free);

/* guest-fsfreeze-freeze and -thaw: how many file systems it did that to. False with
 * @err: the agent's own words, or that there was no answer until @deadline; then the
 * guest may do it yet. */
MUST_CHECK bool agent_freeze(struct agent *a, uint64_t deadline, unsigned *ret_n,
                             struct err *err);
MUST_CHECK bool agent_thaw(struct agent *a, uint64_t deadline, unsigned *ret_n,
                           struct err *err);

#endif
