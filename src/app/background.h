/* SPDX-License-Identifier: Apache-2.0
 *
 * What a program needs to run in the background: leaving the terminal, and
 * telling its process number in a file.
 */
#ifndef APP_BACKGROUND_H
#define APP_BACKGROUND_H

#include "base/err.h"

/* Go on in a child process; the parent waits until that has called
 * background_ready or has ended, and exits with status 0 or 1. Before there are
 * threads. */
MUST_CHECK bool background_enter(struct err *err);
/* Let go of terminal and directory, and let the parent exit. Does nothing
 * without background_enter. */
void background_ready(void);

struct pid_file;

/* Write the process number to @path and hold a lock on it, so that a second
 * program with the same file refuses to start. NULL with @err. */
struct pid_file *pid_file_new(const char *path, struct err *err);
/* Remove the file. Takes NULL. */
void pid_file_free(struct pid_file *p);

#endif
