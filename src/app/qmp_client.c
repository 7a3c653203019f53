/* SPDX-License-Identifier: Apache-2.0
 *
 * A blocking QMP client.
 */
#include "app/qmp_client.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "loop/loop.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* The daemon answers at once whatever disks do, except for what opens or drains them,
 * which has time limits of its own. */
#define ANSWER_NS (60 * NSEC_PER_SEC)
#define GREETING_NS (10 * NSEC_PER_SEC)
#define SEND_SECONDS 10

struct qmp_client {
    int fd;
    struct interrupt *interrupt;
    struct strbuf in;          /* bytes that are no whole line yet, or not taken yet */
    size_t looked;             /* so many of them hold no end of line */
    json_t *events;            /* an array: came while an answer was waited for */
    json_int_t id;             /* of the last command */
};

static bool gone(struct err *err)
{
    return err_set(err, -ECONNRESET, "The daemon has gone: the connection to its control socket "
                   "has ended");
}

/* Take a message out of what was received; false: there is no whole one. NULL in
 * *ret: it is rubbish, with @err. */
static bool take_line(struct qmp_client *c, json_t **ret, struct err *err)
{
    char *end = c->in.len ? memchr(c->in.text + c->looked, '\n', c->in.len - c->looked) : NULL;

    if (!end) {
        c->looked = c->in.len;
        return false;
    }

    size_t n = (size_t)(end - c->in.text);

    *ret = schema_parse_json(c->in.text, n, err);
    if (*ret && !json_is_object(*ret)) {
        json_decref(*ret);
        *ret = NULL;
        err_set(err, -EPROTO, "it is not an object");
    }
    if (!*ret)
        err_prefix(err, "What answers at the control socket does not speak QMP: ");
    memmove(c->in.text, end + 1, c->in.len - n - 1);
    strbuf_cut(&c->in, c->in.len - n - 1);
    c->looked = 0;
    return true;
}

static bool receive(struct qmp_client *c, struct err *err)
{
    char buf[16384];
    ssize_t n = recv(c->fd, buf, sizeof(buf), MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n <= 0)
        return gone(err);
    if (c->in.len + (size_t)n > LIMIT_QMP_ANSWER_BYTES)
        return err_set(err, -EMSGSIZE, "The daemon sends an answer without end");
    strbuf_addn(&c->in, buf, (size_t)n);
    return true;
}

static int poll_timeout(uint64_t deadline)
{
    uint64_t now = loop_now();

    if (now >= deadline)
        return 0;
    return (int)MIN(div_round_up(deadline - now, NSEC_PER_MSEC), 3600000ULL);
}

/* Wait for one message of any kind: QMP_WAIT_EVENT stands for it. */
static enum qmp_wait wait_message(struct qmp_client *c, uint64_t deadline, json_t **ret,
                                  struct err *err)
{
    for (;;) {
        struct pollfd fds[] = {
            { .fd = c->fd, .events = POLLIN },
            { .fd = c->interrupt ? c->interrupt->fd : -1, .events = POLLIN },
        };

        if (take_line(c, ret, err))
            return *ret ? QMP_WAIT_EVENT : QMP_WAIT_GONE;
        if (poll(fds, 2, poll_timeout(deadline)) < 0 && errno != EINTR) {
            err_errno(err, -errno, "Cannot wait for the daemon");
            return QMP_WAIT_GONE;
        }
        if (fds[1].revents) {
            interrupt_take(c->interrupt);
            return QMP_WAIT_INTERRUPT;
        }
        if (fds[0].revents) {
            if (!receive(c, err))
                return QMP_WAIT_GONE;
        } else if (loop_now() >= deadline) {
            return QMP_WAIT_TIMEOUT;
        }
    }
}

static bool send_all(struct qmp_client *c, const char *text, struct err *err)
{
    for (size_t n = strlen(text); n;) {
        ssize_t sent = send(c->fd, text, n, MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return err_set(err, -ETIMEDOUT, "The daemon does not take commands");
        if (sent < 0)
            return gone(err);
        text += sent;
        n -= (size_t)sent;
    }
    return true;
}

static bool send_command(struct qmp_client *c, const char *command, json_t *args,
                         struct err *err)
{
    CLEANUP(json_decref) json_t *message = json_pack("{s:s, s:I}", "execute", command, "id",
                                                     ++c->id);

    if (args)
        json_object_set_new(message, "arguments", args);

    CLEANUP(free) char *text = json_dumps(message, JSON_COMPACT);
    CLEANUP(free) char *line = xasprintf("%s\n", text);

    return send_all(c, line, err);
}

static bool keep_event(struct qmp_client *c, json_t *message, struct err *err)
{
    if (json_array_size(c->events) >= LIMIT_QMP_CLIENT_EVENTS) {
        json_decref(message);
        return err_set(err, -ENOBUFS, "The daemon sends events without end");
    }
    json_array_append_new(c->events, message);
    return true;
}

static bool take_error(const json_t *error, struct err *err)
{
    const char *class = json_string_value(json_object_get(error, "class"));
    const char *desc = json_string_value(json_object_get(error, "desc"));
    enum err_class k = ERR_GENERIC;

    for (int i = ERR_GENERIC; i <= ERR_KVM_MISSING_CAP; i++) {
        if (class && strcmp(class, err_class_name((enum err_class)i)) == 0)
            k = (enum err_class)i;
    }
    return err_set_class(err, k, -EREMOTEIO, "%s", desc ? desc : "The daemon says no more");
}

bool qmp_client_execute_until(struct qmp_client *c, uint64_t deadline, const char *command,
                              json_t *args, json_t **ret, struct err *err)
{
    json_t *message;

    if (!send_command(c, command, args, err))
        return false;
    for (;;) {
        switch (wait_message(c, deadline, &message, err)) {
        case QMP_WAIT_GONE:
            return false;
        case QMP_WAIT_TIMEOUT:
            return err_set(err, -ETIMEDOUT, "The daemon does not answer");
        case QMP_WAIT_INTERRUPT:
            if (c->interrupt->count > 1)
                return err_set(err, -EINTR, "Interrupted while the daemon was busy");
            continue;
        case QMP_WAIT_EVENT:
            break;
        }
        if (json_object_get(message, "event")) {
            if (!keep_event(c, message, err))
                return false;
            continue;
        }

        CLEANUP(json_decref) json_t *answer = message;
        json_t *id = json_object_get(answer, "id");

        /* An answer that came too late for a command before this one. */
        if (json_is_integer(id) && json_integer_value(id) != c->id)
            continue;
        if (json_object_get(answer, "error"))
            return take_error(json_object_get(answer, "error"), err);
        if (ret)
            *ret = json_incref(json_object_get(answer, "return"));
        return true;
    }
}

bool qmp_client_execute(struct qmp_client *c, const char *command, json_t *args, json_t **ret,
                        struct err *err)
{
    return qmp_client_execute_until(c, loop_now() + ANSWER_NS, command, args, ret, err);
}

void qmp_client_forget_until(struct qmp_client *c,
                             bool (*last)(const json_t *event, const void *arg), const void *arg)
{
    size_t n = json_array_size(c->events);

    while (n && !last(json_array_get(c->events, n - 1), arg))
        n--;
    while (n--)
        json_array_remove(c->events, 0);
}

enum qmp_wait qmp_client_wait(struct qmp_client *c, uint64_t deadline, json_t **ret_event,
                              struct err *err)
{
    for (;;) {
        json_t *message = json_incref(json_array_get(c->events, 0));

        if (message) {
            json_array_remove(c->events, 0);
        } else {
            enum qmp_wait w = wait_message(c, deadline, &message, err);

            if (w != QMP_WAIT_EVENT)
                return w;
        }
        if (json_object_get(message, "event")) {
            *ret_event = message;
            return QMP_WAIT_EVENT;
        }
        json_decref(message);
    }
}

/* ---- connecting ------------------------------------------------------------------- */

struct qmp_client *qmp_client_over(int fd, struct interrupt *interrupt, struct err *err)
{
    CLEANUP(qmp_client_free) struct qmp_client *c = xnew(struct qmp_client);
    const struct timeval patience = { .tv_sec = SEND_SECONDS };
    json_t *message;

    c->fd = fd;
    c->interrupt = interrupt;
    c->events = json_array();
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    switch (wait_message(c, loop_now() + GREETING_NS, &message, err)) {
    case QMP_WAIT_EVENT:
        break;
    case QMP_WAIT_TIMEOUT:
        err_set(err, -ETIMEDOUT, "What listens at the control socket does not say anything");
        return NULL;
    case QMP_WAIT_INTERRUPT:
        err_set(err, -EINTR, "Interrupted");
        return NULL;
    case QMP_WAIT_GONE:
        return NULL;
    }

    bool greeted = json_object_get(message, "QMP") != NULL;

    json_decref(message);
    if (!greeted) {
        err_set(err, -EPROTO, "What answers at the control socket does not speak QMP");
        return NULL;
    }
    if (!qmp_client_execute(c, "qmp_capabilities", NULL, NULL, err))
        return NULL;
    return MOVE(c);
}

static bool connect_failed(const char *path, int r, struct err *err)
{
    if (r == -ENOENT)
        return err_set(err, r, "There is no control socket '%s': is the daemon running? "
                       "'stillpoint serve IMAGE --control %s' starts one", path, path);
    if (r == -ECONNREFUSED)
        return err_set(err, r, "Nobody listens at the control socket '%s': its daemon has ended",
                       path);
    if (r == -EACCES)
        return err_set(err, r, "The control socket '%s' is not yours to use: run this as the "
                       "daemon's user", path);
    return err_errno(err, r, "Cannot connect to the control socket '%s'", path);
}

struct qmp_client *qmp_client_connect(const char *path, struct interrupt *interrupt,
                                      struct err *err)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    const struct timeval patience = { .tv_sec = SEND_SECONDS };
    __attribute__((cleanup(cleanup_close))) int fd = -1;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        err_set(err, -ENAMETOOLONG, "The control socket's path '%s' is longer than %zu bytes: "
                "change into its directory and use a relative one", path,
                sizeof(addr.sun_path) - 1);
        return NULL;
    }
    strcpy(addr.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        err_errno(err, -errno, "Cannot make a socket");
        return NULL;
    }
    /* A full backlog would be waited for without end. */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        connect_failed(path, -errno, err);
        return NULL;
    }

    int connected = fd;

    fd = -1;
    return qmp_client_over(connected, interrupt, err);
}

void qmp_client_free(struct qmp_client *c)
{
    if (!c)
        return;
    close(c->fd);
    strbuf_done(&c->in);
    json_decref(c->events);
    free(c);
}
