/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint serve: disks on line with one command. It is the daemon, filled
 * through the commands that QMP clients have, with defaults for people: formats
 * by the names' endings, discards passed on, a control socket to back up through.
 */
#include "app/cli.h"
#include "app/daemon.h"
#include "app/image_name.h"
#include "app/snapshot.h"
#include "base/mem.h"
#include "block/graph.h"
#include "drivers/nbd_uri.h"
#include "job/job.h"
#include "sidecar/sidecar.h"
#include <limits.h>
#include <stdio.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_LISTEN "unix:stillpoint-nbd.sock"
#define DEFAULT_CONTROL "stillpoint-control.sock"
#define THREADS_MAX 1024

struct serve_disk {
    char *name;
    const char *image;
};

/* Where NBD clients come to. */
struct serve_listen {
    bool unix_socket;
    char *path;                  /* unix: as it was given */
    char *host, *port;           /* tcp; host "": every address */
    struct nbd_server *server;   /* the daemon's */
};

struct serve_command {
    struct daemon_opts daemon;
    struct cli_list listen_texts, image_dirs;
    const char *control, *format, *snapshot, *state_dir;
    int engine;
    uint64_t threads;
    bool read_only, direct, exclusive;

    struct serve_disk *disks;
    struct serve_listen *listens;
    size_t n_disks, n_listens;
};

/* ---- what the words mean ----------------------------------------------------------------- */

static bool check_name(const char *name, const char *image, struct err *err)
{
    if (!job_id_wellformed(name))
        return err_set(err, -EINVAL, "A disk cannot be called '%s': names begin with a letter and "
                       "go on with letters, digits, '-', '.' and '_'. Say NAME=%s", name, image);
    if (strlen(name) >= NODE_NAME_MAX)
        return err_set(err, -EINVAL, "The name '%s' is longer than %d bytes: say NAME=%s", name,
                       NODE_NAME_MAX - 1, image);
    return true;
}

/* The '=' of NAME=IMAGE, if that is what it is: what stands before an image whose
 * own name has a '=' is seldom fit for a name. */
static const char *name_end(const char *text)
{
    const char *equals = strchr(text, '=');

    if (!equals)
        return NULL;

    CLEANUP(free) char *name = xstrndup(text, (size_t)(equals - text));

    return strpbrk(name, "/:?") ? NULL : equals;
}

static bool add_disk(struct serve_command *c, const char *text, struct err *err)
{
    const char *equals = name_end(text);
    struct serve_disk d = { .image = equals ? equals + 1 : text };

    d.name = equals ? xstrndup(text, (size_t)(equals - text)) : image_disk_name(text);
    c->disks = xrealloc(c->disks, (c->n_disks + 1) * sizeof(*c->disks));
    c->disks[c->n_disks++] = d;
    if (!*d.image)
        return err_set(err, -EINVAL, "'%s' names no image", text);
    if (!check_name(d.name, d.image, err))
        return false;
    for (size_t i = 0; i + 1 < c->n_disks; i++) {
        if (strcmp(c->disks[i].name, d.name) == 0)
            return err_set(err, -EEXIST, "Two disks are called '%s': give one another name, as in "
                           "%s2=%s", d.name, d.name, d.image);
    }
    return true;
}

static bool bad_listen(const char *text, struct err *err)
{
    return err_set(err, -EINVAL, "--listen %s: it is unix:PATH or tcp:HOST:PORT, as in "
                   "tcp:localhost:10809 or tcp:[::1]:10809; tcp::10809 is every address", text);
}

static bool parse_tcp(const char *text, struct serve_listen *l, struct err *err)
{
    const char *address = text + strlen("tcp:"), *colon = strrchr(address, ':');
    size_t n;

    if (!colon || !colon[1])
        return bad_listen(text, err);
    n = (size_t)(colon - address);
    if (n >= 2 && address[0] == '[' && address[n - 1] == ']')
        l->host = xstrndup(address + 1, n - 2);
    else if (memchr(address, ':', n))
        return bad_listen(text, err);
    else
        l->host = xstrndup(address, n);
    l->port = xstrdup(colon + 1);
    return true;
}

static bool add_listen(struct serve_command *c, const char *text, struct err *err)
{
    struct serve_listen *l;

    c->listens = xrealloc(c->listens, (c->n_listens + 1) * sizeof(*c->listens));
    l = &c->listens[c->n_listens++];
    *l = (struct serve_listen){ 0 };
    if (strncmp(text, "tcp:", 4) == 0)
        return parse_tcp(text, l, err);
    if (strncmp(text, "unix:", 5) != 0 || !text[5])
        return bad_listen(text, err);
    l->unix_socket = true;
    l->path = xstrdup(text + 5);
    return true;
}

/* ---- putting it on line ------------------------------------------------------------------ */

static bool co_execute(struct daemon *d, const char *command, json_t *args, struct err *err)
{
    CLEANUP(json_decref) json_t *a = args;

    return co_qmp_execute(daemon_qmp(d), command, a, false, NULL, err);
}

static bool co_open_disk(struct serve_command *c, struct daemon *d, const struct serve_disk *disk,
                         struct err *err)
{
    const char *format = image_format_to_read(disk->image, c->format, err);
    struct open_file_opts o = {
        .filename = disk->image, .format = format, .read_only = c->read_only,
        .direct = c->direct, .unmap = true, .node_name = disk->name,
    };
    json_t *options = format ? node_json_for_file(&o, err) : NULL;

    if (!options)
        return false;
    if (!snapshot_choose(options, disk->image, format, c->snapshot, err)) {
        json_decref(options);
        return false;
    }
    if (co_execute(d, "blockdev-add", options, err))
        return true;
    if (image_is_locked_by_others(err))
        err_set(err, err->code, "'%s', or an image that it stands on, is in use, in another "
                "process or as another disk of this one: end that first", disk->image);
    return false;
}

static bool co_export_disk(struct serve_command *c, struct daemon *d, const char *name,
                           struct err *err)
{
    return co_execute(d, "block-export-add",
                      json_pack("{s:s, s:s, s:s, s:s, s:b}", "type", "nbd", "id", name,
                                "node-name", name, "name", name, "writable", !c->read_only), err);
}

/* The first server is QMP's own, as nbd-server-start would have made it, so that
 * QMP clients can add exports to it. */
static bool co_listen_first(struct daemon *d, struct serve_listen *l, struct err *err)
{
    json_t *address = l->unix_socket ? json_pack("{s:s, s:s}", "type", "unix", "path", l->path)
                                     : json_pack("{s:s, s:s, s:s}", "type", "inet", "host",
                                                 l->host, "port", l->port);
    CLEANUP(json_decref) json_t *options = json_pack("{s:o}", "addr", address);

    if (!options)
        return err_set(err, -EILSEQ, "--listen: '%s' has bytes that are not UTF-8",
                       l->unix_socket ? l->path : l->host);
    if (!co_qmp_nbd_server_start(daemon_qmp(d), options, false, err))
        return false;
    l->server = qmp_nbd_server(daemon_qmp(d));
    return true;
}

static bool co_listen_more(struct daemon *d, struct serve_listen *l, struct err *err)
{
    struct nbd_server_opts o = {
        .address = { .kind = l->unix_socket ? NBD_ADDRESS_UNIX : NBD_ADDRESS_INET,
                     .path = l->path, .host = l->host, .port = l->port },
        .exports = qmp_nbd_exports(daemon_qmp(d)),
        .max_connections = NBD_DEFAULT_MAX_CONNECTIONS,
        .handshake_seconds_max = NBD_DEFAULT_HANDSHAKE_SECONDS_MAX,
    };

    l->server = co_nbd_server_start(&o, err);
    if (l->server)
        daemon_add_server(d, l->server);
    return l->server != NULL;
}

/* A path as others can use it: from the root, unless that is too long for a socket. */
static char *path_for_others(const char *path)
{
    char *absolute = image_absolute_path(path, NULL);

    if (absolute && strlen(absolute) < sizeof(((struct sockaddr_un *)0)->sun_path))
        return absolute;
    free(absolute);
    return xstrdup(path);
}

static void print_uri(const struct serve_listen *l, const char *name)
{
    CLEANUP(free) char *path = l->unix_socket ? path_for_others(l->path) : NULL;
    CLEANUP(free) char *uri = path ? nbd_uri_for_unix(path, name)
                                   : nbd_server_uri(l->server, name);

    printf("%s  %s\n", name, uri);
}

static void print_places(const struct serve_command *c)
{
    CLEANUP(free) char *control = path_for_others(c->control);

    for (size_t i = 0; i < c->n_disks; i++) {
        for (size_t k = 0; k < c->n_listens; k++)
            print_uri(&c->listens[k], c->disks[i].name);
    }
    printf("control socket: %s\n", control);
    fflush(stdout);
}

static bool co_setup(struct daemon *d, void *arg, struct err *err)
{
    struct serve_command *c = arg;

    for (size_t i = 0; i < c->n_disks; i++) {
        if (!co_open_disk(c, d, &c->disks[i], err))
            return false;
    }
    for (size_t i = 0; i < c->n_listens; i++) {
        if (!(i ? co_listen_more : co_listen_first)(d, &c->listens[i], err))
            return false;
    }
    for (size_t i = 0; i < c->n_disks; i++) {
        if (!co_export_disk(c, d, c->disks[i].name, err))
            return false;
    }
    if (!daemon_monitor_listen(d, c->control, err))
        return false;
    print_places(c);
    return true;
}

/* ---- the command ------------------------------------------------------------------------- */

static const char *const engine_names[] = {
    [LOOP_ENGINE_AUTO] = "auto", [LOOP_ENGINE_URING] = "uring", [LOOP_ENGINE_POOL] = "pool", NULL,
};

/* -1: go on; else the exit status. */
static int parse(struct serve_command *c, int argc, char **argv)
{
    const struct cli_option options[] = {
        { "listen", 0, CLI_LIST, &c->listen_texts, "unix:PATH|tcp:HOST:PORT",
          "where NBD clients connect, may be given several times; " DEFAULT_LISTEN
          " unless given" },
        { "control", 0, CLI_TEXT, &c->control, "PATH",
          "the control socket; $STILLPOINT_CONTROL or " DEFAULT_CONTROL " unless given" },
        { "read-only", 'r', CLI_FLAG, &c->read_only, NULL, "clients may not write" },
        { "snapshot", 'l', CLI_TEXT, &c->snapshot, "NAME",
          "as they were at this snapshot inside them (name or id); with --read-only" },
        { "format", 'f', CLI_TEXT, &c->format, "FORMAT",
          "of all images: raw or qcow2; by each name's ending unless given" },
        CLI_IMAGE_DIR(&c->image_dirs),
        { "direct", 0, CLI_FLAG, &c->direct, NULL, "past the page cache (O_DIRECT)" },
        { "engine", 0, CLI_CHOICE, &c->engine, NULL,
          "how I/O is done; auto is io_uring where the kernel allows it", engine_names },
        { "threads", 0, CLI_NUMBER, &c->threads, "N",
          "for disks; one for each CPU unless given", .max = THREADS_MAX },
        { "scratch-dir", 0, CLI_TEXT, &c->daemon.scratch_dir, "DIR",
          "where backups keep old data for a while; /var/tmp unless given" },
        { "state-dir", 0, CLI_TEXT, &c->state_dir, "DIR",
          "where the files with persistent dirty bitmaps are; next to the images unless given" },
        { "exclusive-devices", 0, CLI_FLAG, &c->exclusive, NULL,
          "nobody else writes to devices and exports with bitmaps: believe those after a crash" },
        { 0 },
    };
    const struct cli_command command = {
        "serve", "[NAME=]IMAGE...", 1, -1,
        "Serve disks over NBD until Ctrl-C. When they are on line a line for each tells how to\n"
        "reach it, and one more where the control socket is, for 'stillpoint backup' and QMP\n"
        "clients. A disk is called as its file, without directory and suffix, unless NAME says\n"
        "otherwise. IMAGE is a file, a block device or an NBD URI.",
        options,
        "  stillpoint serve disk.qcow2 --listen unix:disk.sock --control control.sock",
    };
    struct err err = ERR_INIT;
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    if (c->snapshot && !c->read_only)
        return cli_misuse("serve", "a snapshot is not written to: add --read-only");
    c->daemon.engine = (enum loop_engine)c->engine;
    c->daemon.threads = (unsigned)c->threads;
    c->control = cli_control(c->control);
    if (!c->control)
        c->control = DEFAULT_CONTROL;
    for (int i = first; i < argc; i++) {
        if (!add_disk(c, argv[i], &err))
            return cli_misuse("serve", "%s", err.text);
    }
    for (size_t i = 0; i < c->listen_texts.n; i++) {
        if (!add_listen(c, c->listen_texts.items[i], &err))
            return cli_misuse("serve", "%s", err.text);
    }
    if (!c->n_listens && !add_listen(c, DEFAULT_LISTEN, &err))
        return cli_misuse("serve", "%s", err.text);
    if (c->daemon.scratch_dir && access(c->daemon.scratch_dir, W_OK | X_OK) < 0)
        return cli_failf("serve", "--scratch-dir %s: %s", c->daemon.scratch_dir, strerror(errno));
    if (c->state_dir && !sidecar_set_state_dir(c->state_dir, &err))
        return cli_failf("serve", "--state-dir %s", err.text);
    if (c->exclusive)
        sidecar_set_exclusive();
    return cli_allow_image_dirs(&c->image_dirs, &err) ? -1 : cli_fail("serve", &err);
}

static void serve_done(struct serve_command *c)
{
    for (size_t i = 0; i < c->n_disks; i++)
        free(c->disks[i].name);
    for (size_t i = 0; i < c->n_listens; i++) {
        free(c->listens[i].path);
        free(c->listens[i].host);
        free(c->listens[i].port);
    }
    free(c->disks);
    free(c->listens);
}

int cmd_serve(int argc, char **argv)
{
    struct serve_command c = { .daemon.co_setup = co_setup };
    struct err err = ERR_INIT;
    int status = parse(&c, argc, argv);

    if (status < 0) {
        c.daemon.setup_arg = &c;
        status = daemon_run(&c.daemon, &err) ? EXIT_OK : cli_fail("serve", &err);
    }
    serve_done(&c);
    return status;
}
