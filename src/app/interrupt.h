/* SPDX-License-Identifier: Apache-2.0
 *
 * Ctrl-C and its like as something to wait for, for a command that has to tidy
 * up when it is asked to end.
 */
#ifndef APP_INTERRUPT_H
#define APP_INTERRUPT_H

#include "base/err.h"

struct interrupt {
    int fd;                    /* readable when somebody has asked; for poll */
    unsigned count;            /* how often, as far as interrupt_take has seen */
};

/* From here on SIGINT, SIGTERM and SIGHUP do not end the process. Before there are
 * other threads. */
MUST_CHECK bool interrupt_init(struct interrupt *i, struct err *err);
/* Take what has come and count it. Does not block. */
void interrupt_take(struct interrupt *i);
void interrupt_done(struct interrupt *i);

#endif
