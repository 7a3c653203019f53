/* SPDX-License-Identifier: Apache-2.0
 *
 * The other end of QMP: what commands for people talk to a daemon with. One
 * thread, blocking, no loop; while it waits for the daemon it also looks for
 * signals. The protocol: QEMU docs/interop/qmp-spec.rst.
 */
#ifndef APP_QMP_CLIENT_H
#define APP_QMP_CLIENT_H

#include "app/interrupt.h"
#include "base/schema.h"

struct qmp_client;

/* Connect to the daemon's control socket and negotiate. @interrupt (may be NULL)
 * outlives the client. NULL with @err, which says what to do. */
struct qmp_client *qmp_client_connect(const char *path, struct interrupt *interrupt,
                                      struct err *err);
/* The same over a connected socket, which is taken over in any case. */
struct qmp_client *qmp_client_over(int fd, struct interrupt *interrupt, struct err *err);
void qmp_client_free(struct qmp_client *c);    /* takes NULL */
DEFINE_CLEANUP(struct qmp_client *, qmp_client_free);

/* Give a command and wait for the answer, not longer than until @deadline
 * (loop_now time). Takes over @args (NULL: none). *ret (may be NULL) gets what it
 * returns, a new reference. False with @err: the daemon's own class and words; or
 * -ECONNRESET when it has gone, -ETIMEDOUT, -EINTR on the second interrupt. Events
 * that come meanwhile are kept. */
MUST_CHECK bool qmp_client_execute_until(struct qmp_client *c, uint64_t deadline,
                                         const char *command, json_t *args, json_t **ret,
                                         struct err *err);
/* With the patience that suits commands which wait for no disk: a minute. */
MUST_CHECK bool qmp_client_execute(struct qmp_client *c, const char *command, json_t *args,
                                   json_t **ret, struct err *err);

enum qmp_wait {
    QMP_WAIT_EVENT,        /* *ret_event is one, a new reference */
    QMP_WAIT_TIMEOUT,
    QMP_WAIT_INTERRUPT,    /* interrupt->count has grown */
    QMP_WAIT_GONE,         /* the connection is of no use any more: @err */
};

/* Forget the events that wait, up to and with the last one for which last(event, arg). */
void qmp_client_forget_until(struct qmp_client *c,
                             bool (*last)(const json_t *event, const void *arg),
                             const void *arg);

/* Wait for an event, until @deadline (loop_now time). */
enum qmp_wait qmp_client_wait(struct qmp_client *c, uint64_t deadline, json_t **ret_event,
                              struct err *err);

#endif
