/* SPDX-License-Identifier: Apache-2.0
 *
 * Character devices as QEMU's --chardev names them, as far as QMP needs them:
 * where a monitor's connections come from. A listening socket takes any number
 * of connections at a time; each is a monitor of its own.
 *
 * Everything here is for the main loop.
 */
#ifndef APP_CHARDEV_H
#define APP_CHARDEV_H

#include "base/err.h"
#include "qmp/qmp.h"

struct chardevs;
struct daemon;

struct chardevs *chardevs_new(struct qmp *q);
/* After co_chardevs_close has returned true. Takes NULL. */
void chardevs_free(struct chardevs *all);
struct chardevs *daemon_chardevs(struct daemon *d);

/* Standard input and output are about to be closed: no chardev may use them. */
void chardevs_forbid_stdio(struct chardevs *all);

/* Open the character device that an argument of --chardev describes: listen, or
 * connect; with wait=on, wait for a client. */
MUST_CHECK bool co_chardev_add(struct chardevs *all, const char *text, struct err *err);
/* The members of its options for --help. free() it. */
char *chardev_help(void);

/* Answer QMP on chardev @id. Once for each. */
MUST_CHECK bool chardev_add_monitor(struct chardevs *all, const char *id, bool pretty,
                                    struct err *err);

/* A listening Unix socket with a monitor, in one. */
MUST_CHECK bool co_chardev_listen(struct chardevs *all, const char *path, struct err *err);

/* Take no connections any more and remove socket files. Monitors go on. */
void chardevs_stop(struct chardevs *all);
/* When the monitors are closed: wait until everything has ended. False at
 * @deadline. */
MUST_CHECK bool co_chardevs_close(struct chardevs *all, uint64_t deadline);

#endif
