/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing what images have down into one that they stand on, for other commands than commit.
 */
#ifndef APP_COMMIT_H
#define APP_COMMIT_H

#include "app/watch.h"

/* Write what @top, a qcow2 image, and all between have down into @base, on which it stands, and
 * flush that. @top stays as it was, and reads the same all the time; what lies between does not.
 * False with @err; -ECANCELED: Ctrl-C. Coroutine. */
MUST_CHECK bool co_commit_down(const char *top, const char *base, struct watch *watch,
                               struct err *err);

#endif
