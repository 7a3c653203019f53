/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's body: the main loop with QMP on it, the disks' loops, the NBD
 * exports, signals, an orderly end. `stillpoint daemon` fills it from
 * qemu-storage-daemon's options; `serve` and an offline `backup` fill it by
 * themselves, through the same commands that QMP clients have.
 *
 * Everything with a struct daemon is for coroutines of its main loop.
 */
#ifndef APP_DAEMON_H
#define APP_DAEMON_H

#include "base/schema.h"
#include "export/nbd/server.h"
#include "loop/loop.h"

struct daemon;

struct daemon_opts {
    enum loop_engine engine;
    unsigned threads;              /* loops for disks; 0: a loop for each usable CPU */
    const char *scratch_dir;       /* NULL: the default of views */
    bool has_scratch_memory;
    uint64_t scratch_memory;       /* bytes */
    const char *const *image_dirs; /* NULL-terminated: where images named by images may lie; may be
                                    *   NULL */
    bool ignore_signals;           /* SIGINT, SIGTERM and SIGHUP are somebody else's affair */

    /* Puts things in place, as a coroutine, before any request of a monitor is
     * answered. False ends the daemon with what @err says. */
    bool (*co_setup)(struct daemon *d, void *arg, struct err *err);
    void *setup_arg;
};

/* Run until `quit`, a signal, or daemon_quit; then cancel the jobs, close the
 * exports, flush and close the disks. False with @err when it did not come up
 * or co_setup refused. Once a process. */
bool daemon_run(const struct daemon_opts *o, struct err *err);

void daemon_quit(struct daemon *d);

/* Carry out a QMP command as a monitor would. Takes over @arguments (NULL: none).
 * *ret (may be NULL) is a new reference to the answer. */
MUST_CHECK bool co_daemon_execute(struct daemon *d, const char *command, json_t *arguments,
                                  json_t **ret, struct err *err);

/* Answer QMP on a Unix socket that listens at @path, or on the connected socket
 * @fd, which is taken over; with @quit_at_end the daemon ends with that
 * connection. */
MUST_CHECK bool co_daemon_monitor_listen(struct daemon *d, const char *path, struct err *err);
void daemon_monitor_fd(struct daemon *d, int fd, bool quit_at_end);

/* The exports, to open further NBD servers over. */
struct nbd_exports *daemon_exports(struct daemon *d);
/* A server that co_nbd_server_start gave: the daemon stops it when it ends. */
void daemon_add_server(struct daemon *d, struct nbd_server *s);

#endif
