/* SPDX-License-Identifier: Apache-2.0
 *
 * Standard input and output as one socket. They may be terminals, pipes or files,
 * shared with other processes, so they are neither made non-blocking nor given
 * to a loop: two threads carry the bytes.
 */
#ifndef APP_STDIO_SOCKET_H
#define APP_STDIO_SOCKET_H

#include "base/err.h"

struct stdio_socket;

/* Once a process. *ret_fd is the other end, to be closed by the caller. NULL with
 * @err on failure. */
struct stdio_socket *stdio_socket_new(int *ret_fd, struct err *err);

/* After the other end was closed: wait, blocking, until what came from it was
 * written, but not longer than about @seconds. The threads may live on until the
 * process ends. Takes NULL. */
void stdio_socket_finish(struct stdio_socket *s, unsigned seconds);

#endif
