/* SPDX-License-Identifier: Apache-2.0
 *
 * The lock of who changes a backup set (docs/backup-sets.md, I-M5). A process that is forked
 * while it is held holds it too, until it ends.
 */
#ifndef SET_LOCK_H
#define SET_LOCK_H

#include "base/err.h"

/* A descriptor that is to be closed at the end, or -1 with @err, which names the process that
 * has the lock. One that has died, whose daemon is about to end, is waited for. May block for
 * some seconds. */
int set_lock(const char *dir, struct err *err);

#endif
