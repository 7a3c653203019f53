/* SPDX-License-Identifier: Apache-2.0
 *
 * Sockets that are listened on, sockets that are connected to, and standard
 * input and output, each feeding monitors with connections. Options: QEMU
 * chardev/char-socket.c and qapi/char.json (ChardevSocket).
 */
#include "app/chardev.h"
#include "app/connect.h"
#include "app/stdio_socket.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/schema.h"
#include "base/strbuf.h"
#include "export/nbd/listen.h"
#include "loop/co_io.h"
#include "qmp/address.h"
#include <poll.h>
#include <unistd.h>

/* How long to wait when a connection cannot be taken because something is used up. */
#define ACCEPT_PAUSE_NS (100 * NSEC_PER_MSEC)

/* What is left in standard output's pipe at the end may take so long. */
#define STDIO_FINISH_SECONDS 2

struct chardevs {
    struct qmp *qmp;
    struct list list;
    struct stdio_socket *stdio;
    bool no_stdio;
    bool stopping;
    unsigned coroutines;         /* acceptors and connectors */
    struct waitq ended;
};

/* One listening descriptor. */
struct acceptor {
    struct chardev *chardev;
    int fd;
    struct co_poll poll;
};

struct chardev {
    struct list link;
    struct chardevs *all;
    char *id;
    bool has_monitor, pretty;

    int fd;                      /* a connection that is there already; -1: none */

    /* Server side. */
    struct nbd_listeners listeners;
    struct acceptor acceptors[LIMIT_NBD_LISTENERS];
    bool has_client;             /* wait=on: one has come */
    unsigned watchers;
    struct waitq watched;

    /* Client side with reconnect. */
    struct nbd_address peer;     /* its texts are ours */
    uint64_t reconnect_ns;       /* 0: one connection and no more */
    bool connector_waits;
    struct waitq connector;
};

/* ---- options ----------------------------------------------------------------------- */

struct socket_options {
    bool has_addr, has_path, has_host, has_port, has_fd;
    struct socket_address addr;
    char *path, *host, *port, *fd;
    bool has_server, server, has_wait, wait, has_delay, delay;
    bool has_reconnect, has_reconnect_ms;
    uint32_t reconnect, reconnect_ms;
};
#define SO_OPT(field, json, type, doc) \
    SCHEMA_OPTIONAL(struct socket_options, field, json, type, doc)
static const struct schema_type socket_options_type = {
    .name = "ChardevSocket", .kind = SCHEMA_STRUCT, .size = sizeof(struct socket_options),
    .members = (const struct schema_member[]){
        SO_OPT(path, "path", &schema_str, "of a Unix socket"),
        SO_OPT(host, "host", &schema_str, "host name or address"),
        SO_OPT(port, "port", &schema_str, "port number or service name"),
        SO_OPT(fd, "fd", &schema_str, "number of a descriptor that was passed in"),
        SO_OPT(addr, "addr", &socket_address_type, "an address, instead of the above"),
        SO_OPT(server, "server", &schema_bool, "listen; else connect"),
        SO_OPT(wait, "wait", &schema_bool,
               "with server=on: go on only when a client is there (default: on)"),
        SO_OPT(delay, "delay", &schema_bool, "no effect: nothing is ever held back"),
        SO_OPT(reconnect, "reconnect", &schema_uint32,
               "with server=off: seconds until connecting is tried again; 0: never"),
        SO_OPT(reconnect_ms, "reconnect-ms", &schema_uint32, "the same in milliseconds"),
        SCHEMA_END,
    },
};
static const struct schema_type stdio_options_type = {
    .name = "ChardevStdio", .kind = SCHEMA_STRUCT, .size = 0,
    .members = (const struct schema_member[]){ SCHEMA_END },
};

struct chardev_options {
    char *backend, *id;
    void *branch;
};

static const struct schema_type *backend_branch(const char *backend)
{
    if (strcmp(backend, "socket") == 0)
        return &socket_options_type;
    return strcmp(backend, "stdio") == 0 ? &stdio_options_type : NULL;
}

static const char *backend_name(unsigned index)
{
    static const char *const names[] = { "socket", "stdio" };

    return index < ARRAY_SIZE(names) ? names[index] : NULL;
}

static const struct schema_type chardev_options_type = {
    .name = "Chardev", .kind = SCHEMA_UNION, .size = sizeof(struct chardev_options),
    .members = (const struct schema_member[]){
        SCHEMA_REQUIRED(struct chardev_options, backend, "backend", &schema_str, NULL),
        SCHEMA_REQUIRED(struct chardev_options, id, "id", &schema_str, "for --monitor"),
        SCHEMA_END,
    },
    .tag = "backend", .branch = backend_branch, .branch_name = backend_name,
    .branch_offset = offsetof(struct chardev_options, branch),
};

char *chardev_help(void)
{
    return schema_help(&chardev_options_type);
}

/* "server" and "nowait" are how old scripts say server=on and wait=off (QEMU
 * util/qemu-option.c, opts_parse_kv). free() it. */
static char *spell_out(const char *text)
{
    struct strbuf sb = STRBUF_INIT;
    bool first = true;

    for (;;) {
        size_t n = 0;

        while (text[n] && !(text[n] == ',' && text[n + 1] != ','))
            n += text[n] == ',' ? 2 : 1;
        if (first || memchr(text, '=', n) || n == 0)
            strbuf_addn(&sb, text, n);
        else if (n > 2 && memcmp(text, "no", 2) == 0)
            strbuf_addf(&sb, "%.*s=off", (int)(n - 2), text + 2);
        else
            strbuf_addf(&sb, "%.*s=on", (int)n, text);
        if (!text[n])
            return strbuf_steal(&sb);
        strbuf_addc(&sb, ',');
        text += n + 1;
        first = false;
    }
}

static struct chardev_options *parse_options(const char *text, struct err *err)
{
    CLEANUP(free) char *spelled = *text == '{' ? xstrdup(text) : spell_out(text);
    bool keyval;
    json_t *json = schema_parse_text(spelled, "backend", &keyval, err);

    if (!json)
        return NULL;

    struct chardev_options *o = schema_decode_new(&chardev_options_type, json, keyval, err);

    json_decref(json);
    return o;
}

static bool socket_peer(const struct socket_options *o, struct nbd_address *ret, struct err *err)
{
    struct fd_address fd = { .str = o->fd };
    struct socket_address by_fd = { .type = SOCKET_ADDRESS_FD, .branch = &fd };

    if (o->has_addr + o->has_path + o->has_host + o->has_fd > 1)
        return err_set(err, -EINVAL, "None or one of 'path', 'host', 'fd' and 'addr' can be "
                       "given");
    if (o->has_addr)
        return address_resolve(&o->addr, ret, err);
    if (o->has_fd)
        return address_resolve(&by_fd, ret, err);
    if (o->has_path) {
        *ret = (struct nbd_address){ .kind = NBD_ADDRESS_UNIX, .path = o->path };
        return true;
    }
    if (!o->has_port)
        return err_set(err, -EINVAL, "chardev: socket: no path, no host and port, and no fd "
                       "given");
    *ret = (struct nbd_address){ .kind = NBD_ADDRESS_INET, .host = o->host, .port = o->port };
    return true;
}

/* ---- life ------------------------------------------------------------------------------ */

struct chardevs *chardevs_new(struct qmp *q)
{
    struct chardevs *all = xnew(struct chardevs);

    all->qmp = q;
    list_init(&all->list);
    waitq_init(&all->ended);
    return all;
}

static struct chardev *chardev_new(struct chardevs *all, const char *id)
{
    struct chardev *c = xnew(struct chardev);

    c->all = all;
    c->id = id ? xstrdup(id) : NULL;
    c->fd = -1;
    waitq_init(&c->connector);
    waitq_init(&c->watched);
    list_push_tail(&all->list, &c->link);
    return c;
}

static void chardev_free(struct chardev *c)
{
    if (c->fd >= 0)
        close(c->fd);
    for (unsigned i = 0; i < c->listeners.n; i++)
        close(c->listeners.fds[i]);
    nbd_listeners_unlink(&c->listeners);
    nbd_listeners_done(&c->listeners);
    list_del(&c->link);
    free((char *)c->peer.path);
    free((char *)c->peer.host);
    free((char *)c->peer.port);
    free(c->id);
    free(c);
}

static struct chardev *find(struct chardevs *all, const char *id)
{
    struct chardev *c;

    list_for_each(c, &all->list, link) {
        if (c->id && strcmp(c->id, id) == 0)
            return c;
    }
    return NULL;
}

static void leave(struct chardevs *all)
{
    all->coroutines--;
    waitq_wake_all(&all->ended);
}

static void wake_acceptors(struct chardev *c)
{
    for (unsigned i = 0; i < c->listeners.n; i++)
        co_poll_wake(&c->acceptors[i].poll);
}

void chardevs_forbid_stdio(struct chardevs *all)
{
    all->no_stdio = true;
}

void chardevs_stop(struct chardevs *all)
{
    struct chardev *c;

    all->stopping = true;
    list_for_each(c, &all->list, link) {
        wake_acceptors(c);
        waitq_wake_all(&c->connector);
        nbd_listeners_unlink(&c->listeners);
        if (c->fd >= 0 && !c->reconnect_ns) {
            close(c->fd);
            c->fd = -1;
        }
    }
}

bool co_chardevs_close(struct chardevs *all, uint64_t deadline)
{
    while (all->coroutines) {
        if (!co_waitq_wait_until(&all->ended, deadline))
            return all->coroutines == 0;
    }
    stdio_socket_finish(all->stdio, STDIO_FINISH_SECONDS);
    return true;
}

void chardevs_free(struct chardevs *all)
{
    struct chardev *c, *next;

    if (!all)
        return;
    list_for_each_safe(c, next, &all->list, link)
        chardev_free(c);
    free(all);
}

/* ---- serving ------------------------------------------------------------------------------ */

static void on_closed(void *arg)
{
    struct chardev *c = arg;

    waitq_wake_all(&c->connector);
    c->connector_waits = false;
}

static void serve(struct chardev *c, int fd)
{
    struct qmp_monitor_opts o = {
        .fd = fd,
        .pretty = c->pretty,
        .on_closed = c->reconnect_ns ? on_closed : NULL,
        .arg = c,
    };

    qmp_monitor_start(c->all->qmp, &o);
}

/* The next connection; -errno when there will be none. */
static int co_next_client(struct acceptor *a)
{
    while (!a->chardev->all->stopping) {
        if (co_poll(&a->poll, a->fd, POLLIN, DEADLINE_NEVER) <= 0)
            continue;

        int fd = accept4(a->fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd >= 0)
            return fd;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            co_sleep(ACCEPT_PAUSE_NS);
        else if (errno == EBADF || errno == EINVAL || errno == ENOTSOCK || errno == EOPNOTSUPP)
            return -errno;
    }
    return -ESHUTDOWN;
}

static void co_accept_clients(void *arg)
{
    struct acceptor *a = arg;
    int fd;

    while ((fd = co_next_client(a)) >= 0)
        serve(a->chardev, fd);
    leave(a->chardev->all);
}

/* Connect, serve, and again when that connection has ended. */
static void co_keep_connected(void *arg)
{
    struct chardev *c = arg;
    struct chardevs *all = c->all;

    while (!all->stopping) {
        int fd = c->fd >= 0 ? c->fd : co_connect_to(&c->peer, NULL);

        c->fd = -1;
        if (fd >= 0) {
            c->connector_waits = true;
            serve(c, fd);
            while (c->connector_waits && !all->stopping)
                co_waitq_wait(&c->connector);
        }
        /* Ended early by chardevs_stop. */
        bool timed_out = all->stopping ||
                         !co_waitq_wait_until(&c->connector, loop_now() + c->reconnect_ns);
        (void)timed_out;
    }
    leave(all);
}

bool chardev_add_monitor(struct chardevs *all, const char *id, bool pretty, struct err *err)
{
    struct chardev *c = find(all, id);

    if (!c)
        return err_set(err, -ENODEV, "chardev \"%s\" not found", id);
    if (c->has_monitor)
        return err_set(err, -EBUSY, "chardev \"%s\" has a monitor already", id);
    c->has_monitor = true;
    c->pretty = pretty;
    if (c->reconnect_ns) {
        all->coroutines++;
        co_start(co_keep_connected, c);
        return true;
    }
    if (c->fd >= 0) {
        serve(c, c->fd);
        c->fd = -1;
    }
    for (unsigned i = 0; i < c->listeners.n; i++) {
        all->coroutines++;
        co_start(co_accept_clients, &c->acceptors[i]);
    }
    return true;
}

/* ---- opening ------------------------------------------------------------------------------- */

static bool co_listen(struct chardev *c, const struct nbd_address *a, struct err *err)
{
    if (!co_nbd_listen(a, &c->listeners, err))
        return false;
    for (unsigned i = 0; i < c->listeners.n; i++)
        c->acceptors[i] = (struct acceptor){ .chardev = c, .fd = c->listeners.fds[i] };
    return true;
}

/* Watch one of the sockets that a name stands for; the connection stays for the
 * monitor to take. */
static void co_watch(void *arg)
{
    struct acceptor *a = arg;
    struct chardev *c = a->chardev;

    while (!c->all->stopping && !c->has_client)
        c->has_client |= co_poll(&a->poll, a->fd, POLLIN, DEADLINE_NEVER) > 0;
    c->watchers--;
    wake_acceptors(c);
    waitq_wake_all(&c->watched);
}

static bool co_wait_for_client(struct chardev *c, struct err *err)
{
    log_info("waiting for a connection to chardev \"%s\"", c->id);
    c->watchers = c->listeners.n;
    for (unsigned i = 0; i < c->listeners.n; i++)
        co_start(co_watch, &c->acceptors[i]);
    while (c->watchers)
        co_waitq_wait(&c->watched);
    return c->has_client || err_set(err, -ESHUTDOWN, "No connection to chardev \"%s\"", c->id);
}

static bool co_open_socket(struct chardev *c, const struct socket_options *o, struct err *err)
{
    uint64_t reconnect_ns = o->has_reconnect_ms ? o->reconnect_ms * NSEC_PER_MSEC
                                                : o->reconnect * NSEC_PER_SEC;
    struct nbd_address peer;

    if (!socket_peer(o, &peer, err))
        return false;
    if (o->server && reconnect_ns)
        return err_set(err, -EINVAL, "'reconnect' option is incompatible with socket in server "
                       "listen mode");
    if (!o->server && o->has_wait && o->wait)
        return err_set(err, -EINVAL, "'wait' option is incompatible with socket in client "
                       "connect mode");
    if (o->server)
        return co_listen(c, &peer, err) &&
               ((o->has_wait && !o->wait) || co_wait_for_client(c, err));
    if (reconnect_ns) {
        c->reconnect_ns = reconnect_ns;
        c->peer = peer;
        c->peer.path = peer.path ? xstrdup(peer.path) : NULL;
        c->peer.host = peer.host ? xstrdup(peer.host) : NULL;
        c->peer.port = peer.port ? xstrdup(peer.port) : NULL;
        return true;
    }
    c->fd = co_connect_to(&peer, err);
    return c->fd >= 0;
}

static bool open_stdio(struct chardev *c, struct err *err)
{
    if (c->all->no_stdio)
        return err_set(err, -EINVAL, "cannot use stdio with --daemonize");
    if (c->all->stdio)
        return err_set(err, -EBUSY, "cannot use stdio by multiple character devices");
    c->all->stdio = stdio_socket_new(&c->fd, err);
    return c->all->stdio != NULL;
}

static bool co_open(struct chardevs *all, const struct chardev_options *o, struct err *err)
{
    if (find(all, o->id))
        return err_set(err, -EEXIST, "Chardev with id '%s' already exists", o->id);

    struct chardev *c = chardev_new(all, o->id);
    bool ok = strcmp(o->backend, "stdio") == 0 ? open_stdio(c, err)
                                               : co_open_socket(c, o->branch, err);

    if (!ok)
        chardev_free(c);
    return ok;
}

bool co_chardev_add(struct chardevs *all, const char *text, struct err *err)
{
    struct chardev_options *o = parse_options(text, err);

    if (!o)
        return false;

    bool ok = co_open(all, o, err);

    schema_free(&chardev_options_type, o);
    return ok;
}

bool co_chardev_listen(struct chardevs *all, const char *path, struct err *err)
{
    struct nbd_address a = { .kind = NBD_ADDRESS_UNIX, .path = path };
    CLEANUP(free) char *id = xasprintf("control:%s", path);

    if (find(all, id))
        return err_set(err, -EEXIST, "%s is listened on already", path);

    struct chardev *c = chardev_new(all, id);

    if (!co_listen(c, &a, err)) {
        chardev_free(c);
        return false;
    }
    return chardev_add_monitor(all, id, false, err);
}
