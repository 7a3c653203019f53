/* SPDX-License-Identifier: Apache-2.0
 *
 * Foreign NBD servers for the tests of the client: started, stopped, killed. They
 * die with the test program. Whether they listen already is not waited for: nodes
 * are opened with open-timeout.
 */
#ifndef TESTS_NBD_SERVERS_H
#define TESTS_NBD_SERVERS_H

#include "drivers_test.h"
#include <sys/types.h>

struct server {
    pid_t pid;
    const char *socket;
};

/* Run nbdkit or qemu-nbd with these arguments (NULL ends them) on a Unix socket of
 * its own. */
struct server start_nbdkit(const char *socket, const char *const *args);
struct server start_qemu_nbd(const char *socket, const char *const *args);
/* nbdkit on a TCP port of 127.0.0.1. */
struct server start_nbdkit_tcp(uint16_t port, const char *const *args);
#define ARGS(...) ((const char *const[]){ __VA_ARGS__, NULL })

/* SIGKILL, and wait until it is gone. */
void kill_server(struct server *s);
/* SIGSTOP, and wait until it hangs; its socket goes on accepting. */
void hang_server(struct server *s);

/* A node on it. @more: ", 'read-only': true" and the like. Coroutine. */
struct node *co_open_nbd(const struct server *s, const char *more);

#endif
