/* SPDX-License-Identifier: Apache-2.0
 *
 * The daemon's body: the main loop with QMP on it, the disks' loops, signals,
 * monitors' sockets, an orderly end. `stillpoint daemon` fills it from
 * qemu-storage-daemon's options; `serve` and an offline `backup` fill it by
 * themselves, with the commands that QMP clients have.
 */
#ifndef APP_DAEMON_H
#define APP_DAEMON_H

#include "loop/loop.h"
#include "qmp/qmp.h"

struct daemon;

struct daemon_opts {
    enum loop_engine engine;
    unsigned threads;              /* loops for disks; 0: one for each usable CPU */
    const char *scratch_dir;       /* NULL: the default of views */
    bool ignore_signals;           /* SIGINT, SIGTERM and SIGHUP are somebody else's affair */

    /* Puts things in place: a coroutine of the main loop, before any monitor is
     * answered. False ends the daemon with what @err says. */
    bool (*co_setup)(struct daemon *d, void *arg, struct err *err);
    void *setup_arg;
};

/* Run until `quit`, a signal or daemon_quit; then end in good order. False with
 * @err when it did not come up or co_setup refused. Once a process; before it
 * there are no other threads. */
MUST_CHECK bool daemon_run(const struct daemon_opts *o, struct err *err);

/* Whether a daemon_run that has returned left threads behind, waiting for
 * something that hangs. Then the process must end by _exit: they run on, and
 * would meet libraries that exit() has taken down. */
bool daemon_left_behind(void);

/* ---- for coroutines of the main loop ------------------------------------------- */

void daemon_quit(struct daemon *d);
struct qmp *daemon_qmp(struct daemon *d);

/* Answer QMP clients on a Unix socket at @path. A socket file that nobody listens
 * on any more is replaced, and it is removed at the end. */
MUST_CHECK bool daemon_monitor_listen(struct daemon *d, const char *path, struct err *err);
/* Answer QMP on the connected socket @fd, which is taken over; with @quit_at_end
 * the daemon ends with that connection. */
void daemon_monitor_fd(struct daemon *d, int fd, bool quit_at_end);

/* Over the exports of daemon_qmp: the daemon stops @s when it ends. */
void daemon_add_server(struct daemon *d, struct nbd_server *s);

#endif
