/* SPDX-License-Identifier: Apache-2.0
 *
 * The control plane of one program: QMP's commands, the monitors that send them,
 * and what they act on (exports, the NBD server, loops for disks). Commands can
 * be given by a monitor's connection or from inside the program; they are the
 * same commands. What is offered and how it differs from QEMU: docs/qmp.md.
 *
 * Everything here is for the main loop. Commands run in coroutines of it and hop
 * to the loops of disks, so that one that waits for a slow disk stops nobody
 * else.
 */
#ifndef QMP_QMP_H
#define QMP_QMP_H

#include "base/err.h"
#include "export/nbd/server.h"
#include "qmp/placement.h"
#include <jansson.h>

struct qmp;

/* QAPI's ShutdownCause, as far as it happens here. */
enum qmp_shutdown_cause { QMP_SHUTDOWN_QUIT, QMP_SHUTDOWN_SIGNAL };

struct qmp_opts {
    struct placement *placement;    /* outlives the struct qmp */
    const char *scratch_dir;        /* of backups; NULL: the view's default. Copied */
    /* The command quit was given, and SHUTDOWN was sent. A plain callback. */
    void (*on_quit)(void *arg);
    void *arg;
};

struct qmp *qmp_new(const struct qmp_opts *o);

/* When co_qmp_shutdown has returned true, or the process is about to end. Takes
 * NULL. */
void qmp_free(struct qmp *q);

/* Run a command. @args is its "arguments" (NULL: none), with strings for scalars
 * if @keyval. *ret (may be NULL) gets what it returns, a new reference. */
MUST_CHECK bool co_qmp_execute(struct qmp *q, const char *command, const json_t *args, bool keyval,
                               json_t **ret, struct err *err);

/* The members of a command's arguments for --help. free() it. NULL: no such command. */
char *qmp_command_help(const char *command);

/* Start the NBD server with NbdServerOptions, as --nbd-server takes them: like
 * nbd-server-start, with the address flat. */
MUST_CHECK bool co_qmp_nbd_server_start(struct qmp *q, const json_t *options, bool keyval,
                                        struct err *err);
/* The members of NbdServerOptions for --help. free() it. */
char *qmp_nbd_server_help(void);

/* The server that nbd-server-start has started; NULL if none runs. Borrowed. */
struct nbd_server *qmp_nbd_server(struct qmp *q);
struct nbd_exports *qmp_nbd_exports(struct qmp *q);

/* A name that block-export-add's "iothread" may refer to. Disks have their
 * threads by placement: the name has no other effect. */
MUST_CHECK bool qmp_add_iothread(struct qmp *q, const char *id, struct err *err);

struct qmp_monitor_opts {
    int fd;                         /* a connected stream socket, taken over */
    bool pretty;                    /* answers indented, for people */
    void (*on_closed)(void *arg);   /* a plain callback when it is gone; may be NULL */
    void *arg;
};

/* Serve a monitor on a connection until the peer ends it. With more monitors
 * than LIMIT_QMP_MONITORS the connection is closed at once. */
void qmp_monitor_start(struct qmp *q, const struct qmp_monitor_opts *o);

/* End everything: tell SHUTDOWN unless quit has done so, cancel jobs, close exports, delete nodes
 * (which writes back what they hold), send what monitors are still to get and
 * close them. Waits at most for what a slow disk may take, and no longer than
 * seconds for one that hangs. False: something hangs and was left behind; then
 * the process should end without freeing anything. Once. */
MUST_CHECK bool co_qmp_shutdown(struct qmp *q, enum qmp_shutdown_cause cause);

#endif
