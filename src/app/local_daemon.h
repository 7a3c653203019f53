/* SPDX-License-Identifier: Apache-2.0
 *
 * A daemon for the time of one command, in a process of its own, reached by QMP
 * over a socket pair: so that a backup of a file that nobody serves is the same
 * as that of a live disk.
 */
#ifndef APP_LOCAL_DAEMON_H
#define APP_LOCAL_DAEMON_H

#include "base/err.h"
#include <sys/types.h>

struct local_daemon {
    pid_t pid;
};

/* Start it; the connected socket for qmp_client_over, or -1 with @err. It ends
 * with that connection, however the caller ends, and signals of the terminal do
 * not touch it. Before the process has other threads. */
int local_daemon_start(struct local_daemon *ld, struct err *err);

/* When its connection is closed: wait for its end, and make one that hangs end;
 * unless @patient at once. */
void local_daemon_wait(struct local_daemon *ld, bool patient);

#endif
