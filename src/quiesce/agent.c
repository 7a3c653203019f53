/* SPDX-License-Identifier: Apache-2.0
 *
 * The guest agent's protocol: lines of JSON, in a channel that outlives those who use
 * it. So an answer may be one that was asked for by somebody else.
 */
#include "quiesce/agent.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/schema.h"
#include "base/strbuf.h"
#include "loop/loop.h"
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* Not a byte of UTF-8: ends whatever the other side has begun to parse, and begins the
 * answer to guest-sync-delimited. */
#define SENTINEL '\xff'

struct agent {
    int fd;
    struct strbuf in;          /* received, and not looked at yet */
};

void agent_free(struct agent *a)
{
    if (!a)
        return;
    close(a->fd);
    strbuf_done(&a->in);
    free(a);
}

/* False: it is too late. */
static bool wait_for(int fd, short events, uint64_t deadline)
{
    for (;;) {
        struct pollfd p = { .fd = fd, .events = events };
        uint64_t now = loop_now();

        if (now >= deadline)
            return false;
        if (poll(&p, 1, (int)MIN(div_round_up(deadline - now, NSEC_PER_MSEC), 60000ULL)) > 0)
            return true;
    }
}

static bool silent(struct err *err)
{
    return err_set(err, -ETIMEDOUT, "The guest agent does not answer");
}

static bool send_bytes(struct agent *a, const char *bytes, size_t n, uint64_t deadline,
                       struct err *err)
{
    while (n) {
        ssize_t sent = send(a->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return err_errno(err, -errno, "Cannot send to the guest agent");
        if (sent < 0 && !wait_for(a->fd, POLLOUT, deadline))
            return silent(err);
        bytes += MAX(sent, 0);
        n -= (size_t)MAX(sent, 0);
    }
    return true;
}

/* More bytes into .in. */
static bool receive(struct agent *a, uint64_t deadline, struct err *err)
{
    char buf[4096];
    ssize_t n;

    while ((n = recv(a->fd, buf, sizeof(buf), MSG_DONTWAIT)) < 0) {
        if (errno != EAGAIN && errno != EINTR)
            return err_errno(err, -errno, "Cannot hear the guest agent");
        if (!wait_for(a->fd, POLLIN, deadline))
            return silent(err);
    }
    if (n == 0)
        return err_set(err, -ECONNRESET, "The guest agent's channel was closed");
    if (a->in.len + (size_t)n > LIMIT_AGENT_ANSWER_BYTES)
        return err_set(err, -EMSGSIZE, "The guest agent sends an answer without end");
    strbuf_addn(&a->in, buf, (size_t)n);
    return true;
}

static void drop(struct agent *a, size_t n)
{
    memmove(a->in.text, a->in.text + n, a->in.len - n);
    strbuf_cut(&a->in, a->in.len - n);
}

/* Throw away what comes before the next @delimiter, and that. */
static bool skip_past(struct agent *a, char delimiter, uint64_t deadline, struct err *err)
{
    for (;;) {
        char *found = a->in.len ? memchr(a->in.text, delimiter, a->in.len) : NULL;

        if (found) {
            drop(a, (size_t)(found - a->in.text) + 1);
            return true;
        }
        strbuf_cut(&a->in, 0);
        if (!receive(a, deadline, err))
            return false;
    }
}

/* The next line as an object. */
static json_t *read_answer(struct agent *a, uint64_t deadline, struct err *err)
{
    char *end;
    json_t *json;

    while (!(end = a->in.len ? memchr(a->in.text, '\n', a->in.len) : NULL)) {
        if (!receive(a, deadline, err))
            return NULL;
    }
    json = schema_parse_json(a->in.text, (size_t)(end - a->in.text), err);
    drop(a, (size_t)(end - a->in.text) + 1);
    if (!json)
        err_prefix(err, "What answers at the guest agent's socket is no guest agent: ");
    return json;
}

/* What @answer returns; NULL with the agent's own error. */
static json_t *result_of(const json_t *answer, const char *command, struct err *err)
{
    const char *desc = json_string_value(json_object_get(json_object_get(answer, "error"), "desc"));
    json_t *result = json_object_get(answer, "return");

    if (desc)
        err_set(err, -EIO, "The guest agent says to %s: %s", command, desc);
    else if (!result)
        err_set(err, -EPROTO, "The guest agent's answer to %s is none", command);
    return desc ? NULL : result;
}

/* Find where the answers to what we ask begin. */
static bool synchronise(struct agent *a, uint64_t deadline, struct err *err)
{
    json_int_t id = (json_int_t)(loop_now() & INT32_MAX);
    CLEANUP(free) char *text =
        xasprintf("%c{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": %lld}}\n",
                  SENTINEL, (long long)id);

    if (!send_bytes(a, text, strlen(text), deadline, err))
        return false;
    for (;;) {
        CLEANUP(json_decref) json_t *answer = NULL;
        json_t *said;

        if (!skip_past(a, SENTINEL, deadline, err))
            return false;
        answer = read_answer(a, deadline, err);
        if (!answer)
            return false;
        said = json_object_get(answer, "return");
        /* Another number: the end of somebody else's try. */
        if (said && json_integer_value(said) == id)
            return true;
    }
}

static int connect_until(const char *path, uint64_t deadline, struct err *err)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        err_errno(err, -errno, "Cannot make a socket");
        return -1;
    }
    if (strlen(path) >= sizeof(addr.sun_path)) {
        err_set(err, -ENAMETOOLONG, "'%s' is too long for the name of a socket", path);
        close(fd);
        return -1;
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    while (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        /* Too many wait already: nothing tells when that is over. */
        if (errno == EAGAIN && loop_now() < deadline) {
            poll(NULL, 0, 20);
            continue;
        }
        if (errno == EINTR)
            continue;
        err_errno(err, -errno, "Cannot connect to the guest agent's socket '%s'", path);
        close(fd);
        return -1;
    }
    return fd;
}

struct agent *agent_connect(const char *path, uint64_t deadline, struct err *err)
{
    int fd = connect_until(path, deadline, err);
    struct agent *a;

    if (fd < 0)
        return NULL;
    a = xnew(struct agent);
    a->fd = fd;
    if (!synchronise(a, deadline, err)) {
        agent_free(a);
        return NULL;
    }
    return a;
}

static bool ask_count(struct agent *a, const char *command, uint64_t deadline, unsigned *ret_n,
                      struct err *err)
{
    CLEANUP(free) char *text = xasprintf("{\"execute\": \"%s\"}\n", command);
    CLEANUP(json_decref) json_t *answer = NULL;
    json_t *result;
    json_int_t n;

    if (!send_bytes(a, text, strlen(text), deadline, err))
        return false;
    answer = read_answer(a, deadline, err);
    result = answer ? result_of(answer, command, err) : NULL;
    if (!result)
        return false;
    n = json_integer_value(result);
    if (!json_is_integer(result) || n < 0 || n > INT32_MAX)
        return err_set(err, -EPROTO, "The guest agent's answer to %s is no number", command);
    *ret_n = (unsigned)n;
    return true;
}

bool agent_freeze(struct agent *a, uint64_t deadline, unsigned *ret_n, struct err *err)
{
    return ask_count(a, "guest-fsfreeze-freeze", deadline, ret_n, err);
}

bool agent_thaw(struct agent *a, uint64_t deadline, unsigned *ret_n, struct err *err)
{
    return ask_count(a, "guest-fsfreeze-thaw", deadline, ret_n, err);
}
