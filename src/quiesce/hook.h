/* SPDX-License-Identifier: Apache-2.0
 *
 * A shell command of the user's, run around the cut, with a limit of time.
 */
#ifndef QUIESCE_HOOK_H
#define QUIESCE_HOOK_H

#include "base/err.h"

/* Run @command by sh, in a process group of its own that is killed at @deadline
 * (loop_now time). @what names it in errors, such as "pre-cut". False with @err
 * unless it ended with status 0. The caller ignores or handles SIGCHLD as by default. */
MUST_CHECK bool hook_run(const char *what, const char *command, uint64_t deadline,
                         struct err *err);

#endif
