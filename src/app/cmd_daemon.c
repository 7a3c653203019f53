/* SPDX-License-Identifier: Apache-2.0
 *
 * `stillpoint daemon`: the command line of qemu-storage-daemon (QEMU
 * docs/tools/qemu-storage-daemon.rst). Options that say how the process shall be
 * are looked at first; all others are carried out in the order in which they
 * stand.
 */
#include "app/app.h"
#include "app/background.h"
#include "app/chardev.h"
#include "app/daemon.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/schema.h"
#include "drivers/drivers.h"
#include "drivers/image_dirs.h"
#include "sidecar/sidecar.h"
#include <getopt.h>
#include <stdio.h>

/* ---- options that describe objects ------------------------------------------------------ */

typedef bool co_option_fn(struct daemon *d, const char *text, struct err *err);

static bool co_blockdev(struct daemon *d, const char *text, struct err *err)
{
    bool keyval;
    CLEANUP(json_decref) json_t *json = schema_parse_text(text, "driver", &keyval, err);

    return json && co_qmp_execute(daemon_qmp(d), "blockdev-add", json, keyval, NULL, err);
}

static char *blockdev_help(void)
{
    drivers_register_all();
    return qmp_command_help("blockdev-add");
}

static bool co_export(struct daemon *d, const char *text, struct err *err)
{
    bool keyval;
    CLEANUP(json_decref) json_t *json = schema_parse_text(text, "type", &keyval, err);

    return json && co_qmp_execute(daemon_qmp(d), "block-export-add", json, keyval, NULL, err);
}

static char *export_help(void)
{
    return qmp_command_help("block-export-add");
}

static bool co_nbd_server(struct daemon *d, const char *text, struct err *err)
{
    bool keyval;
    CLEANUP(json_decref) json_t *json = schema_parse_text(text, NULL, &keyval, err);

    return json && co_qmp_nbd_server_start(daemon_qmp(d), json, keyval, err);
}

static bool co_chardev(struct daemon *d, const char *text, struct err *err)
{
    return co_chardev_add(daemon_chardevs(d), text, err);
}

static bool co_control(struct daemon *d, const char *text, struct err *err)
{
    return daemon_monitor_listen(d, text, err);
}

/* QEMU qapi/control.json, MonitorOptions. */
enum { MODE_CONTROL, MODE_READLINE };
static const struct schema_type monitor_mode_enum = {
    .name = "MonitorMode", .kind = SCHEMA_ENUM, .size = sizeof(int),
    .values = (const char *const[]){ "control", "readline", NULL },
};

struct monitor_options {
    char *chardev;
    bool has_id, has_mode, has_pretty, pretty;
    char *id;
    int mode;
};
static const struct schema_type monitor_options_type = {
    .name = "MonitorOptions", .kind = SCHEMA_STRUCT, .size = sizeof(struct monitor_options),
    .members = (const struct schema_member[]){
        SCHEMA_OPTIONAL(struct monitor_options, id, "id", &schema_str, "no effect"),
        SCHEMA_OPTIONAL(struct monitor_options, mode, "mode", &monitor_mode_enum,
                        "control, which is QMP"),
        SCHEMA_OPTIONAL(struct monitor_options, pretty, "pretty", &schema_bool,
                        "answers indented, for people"),
        SCHEMA_REQUIRED(struct monitor_options, chardev, "chardev", &schema_str,
                        "id of the chardev to answer on"),
        SCHEMA_END,
    },
};

static bool add_monitor(struct daemon *d, const struct monitor_options *o, struct err *err)
{
    if (o->mode == MODE_READLINE)
        return err_set(err, -ENOTSUP, "There is no monitor but QMP: mode=control");
    return chardev_add_monitor(daemon_chardevs(d), o->chardev, o->pretty, err);
}

static bool co_monitor(struct daemon *d, const char *text, struct err *err)
{
    bool keyval;
    CLEANUP(json_decref) json_t *json = schema_parse_text(text, "chardev", &keyval, err);
    struct monitor_options o;

    if (!json || !schema_decode(&monitor_options_type, json, keyval, &o, err))
        return false;

    bool ok = add_monitor(d, &o, err);

    schema_clear(&monitor_options_type, &o);
    return ok;
}

static char *monitor_help(void)
{
    return schema_help(&monitor_options_type);
}

/* Scripts make iothreads to spread disks over CPUs, which happens by itself here.
 * What else they say of one is taken and forgotten. */
static bool co_object(struct daemon *d, const char *text, struct err *err)
{
    bool keyval;
    CLEANUP(json_decref) json_t *json = schema_parse_text(text, "qom-type", &keyval, err);
    const char *type = json_string_value(json_object_get(json, "qom-type"));
    const char *id = json_string_value(json_object_get(json, "id"));

    if (!json)
        return false;
    if (!type)
        return err_set(err, -EINVAL, "Parameter 'qom-type' is missing");
    if (strcmp(type, "iothread") != 0)
        return err_set(err, -ENOTSUP, "There are no objects of type '%s'; the only type is "
                       "'iothread'", type);
    if (!id)
        return err_set(err, -EINVAL, "Parameter 'id' is missing");
    return qmp_add_iothread(daemon_qmp(d), id, err);
}

static char *object_help(void)
{
    return xstrdup("  iothread,id=<id>   no effect but that --export may name it\n");
}

/* ---- the command line -------------------------------------------------------------------- */

/* Those with a function are carried out in their order. */
static const struct option_kind {
    const char *name;
    const char *value;           /* what --help calls it; NULL: a flag */
    const char *help;
    co_option_fn *co_run;
    char *(*more_help)(void);    /* for the value "help" */
    char letter;                 /* the short form */
} kinds[] = {
    { "blockdev", "[driver=]DRIVER[,node-name=NAME][,OPTION=VALUE...]", "open a node",
      co_blockdev, blockdev_help },
    { "chardev", "socket,id=ID,path=PATH[,server=on[,wait=off]] | stdio,id=ID",
      "where QMP clients come from", co_chardev, chardev_help },
    { "monitor", "[chardev=]ID[,pretty=on]", "answer QMP there", co_monitor, monitor_help },
    { "nbd-server", "addr.type=unix,addr.path=PATH | addr.type=inet,addr.host=HOST,addr.port=PORT",
      "listen for NBD clients", co_nbd_server, qmp_nbd_server_help },
    { "export", "[type=]nbd,id=ID,node-name=NAME[,name=EXPORT][,writable=on]", "export a node",
      co_export, export_help },
    { "object", "iothread,id=ID", "accepted for the sake of scripts: disks are spread over "
      "threads by themselves", co_object, object_help },
    { "control", "PATH", "answer QMP on a Unix socket: chardev and monitor in one", co_control,
      NULL },
    { "pidfile", "PATH", "write the process number to a file", NULL, NULL },
    { "daemonize", NULL, "run in the background; return when all is up", NULL, NULL },
    { "engine", "uring|pool|auto", "how I/O is done (auto: io_uring where the kernel lets us)",
      NULL, NULL },
    { "threads", "N", "threads for disks (default: the CPUs that may be used)", NULL, NULL },
    { "scratch-dir", "DIR", "where backups keep old data for a while (default: /var/tmp)", NULL,
      NULL },
    { "image-dir", "DIR", "images may name files below it, besides those below the "
      "directory of the image; repeatable", NULL, NULL },
    { "state-dir", "DIR", "where the files with persistent dirty bitmaps are (default: next to the "
      "images); devices and NBD exports need it", NULL, NULL },
    { "exclusive-devices", NULL, "nobody else writes to the block devices and NBD exports that "
      "have persistent dirty bitmaps: believe those after a crash too", NULL, NULL },
    { "image-nbd", NULL, "images may name nbd:// URIs as backing files", NULL, NULL },
    { "help", NULL, "this text; VALUE=help tells more of an option", NULL, NULL, 'h' },
    { "version", NULL, "the program's version", NULL, NULL, 'V' },
};

struct step {
    const struct option_kind *kind;
    const char *text;
};

struct command_line {
    struct daemon_opts daemon;
    const char *pid_path;
    bool daemonize;
    char *scratch_dir;
    struct step *steps;
    size_t n_steps;
    struct pid_file *pid_file;
};

static int say(const char *fmt, ...) PRINTF_LIKE(1, 2);
static int say(const char *fmt, ...)
{
    CLEANUP(free) char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    text = xvasprintf(fmt, ap);
    va_end(ap);
    fprintf(stderr, "stillpoint daemon: %s\n", text);
    return EXIT_FAILED;
}

static int print_help(void)
{
    printf("Usage: stillpoint daemon [OPTIONS]\n"
           "Runs disks, exports and backups as its options and QMP clients say. Takes the\n"
           "options of qemu-storage-daemon. Values are KEY=VALUE,... or JSON.\n\n");
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        printf("  --%s%s%s\n        %s\n", kinds[i].name, kinds[i].value ? " " : "",
               kinds[i].value ? kinds[i].value : "", kinds[i].help);
    printf("\nExample:\n"
           "  stillpoint daemon \\\n"
           "    --blockdev driver=qcow2,node-name=disk0,file.driver=file,"
           "file.filename=disk0.qcow2 \\\n"
           "    --nbd-server addr.type=unix,addr.path=/run/disks.sock \\\n"
           "    --export type=nbd,id=disk0,node-name=disk0,writable=on \\\n"
           "    --chardev socket,id=qmp,path=/run/qmp.sock,server=on,wait=off \\\n"
           "    --monitor chardev=qmp\n");
    return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

static int print_more_help(const struct option_kind *k)
{
    CLEANUP(free) char *text = k->more_help();

    printf("--%s %s\n%s", k->name, k->value, text);
    return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

static bool parse_engine(const char *text, enum loop_engine *ret)
{
    static const char *const names[] = {
        [LOOP_ENGINE_AUTO] = "auto", [LOOP_ENGINE_URING] = "uring", [LOOP_ENGINE_POOL] = "pool",
    };

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            *ret = (enum loop_engine)i;
            return true;
        }
    }
    say("--engine %s: it is 'uring', 'pool' or 'auto'", text);
    return false;
}

#define THREADS_MAX 1024

static bool parse_threads(const char *text, unsigned *ret)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (*end || end == text || n < 1 || n > THREADS_MAX) {
        say("--threads %s: a number from 1 to %d is expected", text, THREADS_MAX);
        return false;
    }
    *ret = (unsigned)n;
    return true;
}

/* Absolute, for the working directory may change. */
static bool take_scratch_dir(struct command_line *cl, const char *value)
{
    free(cl->scratch_dir);
    cl->scratch_dir = realpath(value, NULL);
    cl->daemon.scratch_dir = cl->scratch_dir;
    if (!cl->scratch_dir)
        say("--scratch-dir %s: %s", value, strerror(errno));
    return cl->scratch_dir != NULL;
}

static bool allow_image_dir(const char *dir)
{
    struct err err;

    if (image_dirs_allow(dir, &err))
        return true;
    say("--image-dir %s: %s", dir, err.text);
    return false;
}

static bool take_state_dir(const char *dir)
{
    struct err err;

    if (sidecar_set_state_dir(dir, &err))
        return true;
    say("--state-dir %s", err.text);
    return false;
}

/* One option that is not carried out in order. */
static bool take_setting(struct command_line *cl, const char *name, const char *value)
{
    if (strcmp(name, "engine") == 0)
        return parse_engine(value, &cl->daemon.engine);
    if (strcmp(name, "threads") == 0)
        return parse_threads(value, &cl->daemon.threads);
    if (strcmp(name, "scratch-dir") == 0)
        return take_scratch_dir(cl, value);
    if (strcmp(name, "image-dir") == 0)
        return allow_image_dir(value);
    if (strcmp(name, "state-dir") == 0)
        return take_state_dir(value);
    if (strcmp(name, "exclusive-devices") == 0)
        sidecar_set_exclusive();
    else if (strcmp(name, "image-nbd") == 0)
        image_dirs_allow_nbd();
    else if (strcmp(name, "pidfile") == 0)
        cl->pid_path = value;
    else if (strcmp(name, "daemonize") == 0)
        cl->daemonize = true;
    return true;
}

static void add_step(struct command_line *cl, const struct option_kind *k, const char *text)
{
    cl->steps = xrealloc(cl->steps, (cl->n_steps + 1) * sizeof(*cl->steps));
    cl->steps[cl->n_steps++] = (struct step){ k, text };
}

/* False: the command is over with *ret_status. */
static bool take_option(struct command_line *cl, const struct option_kind *k, const char *value,
                        int *ret_status)
{
    if (strcmp(k->name, "help") == 0) {
        *ret_status = print_help();
        return false;
    }
    if (strcmp(k->name, "version") == 0) {
        puts("stillpoint " STILLPOINT_VERSION);
        *ret_status = fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
        return false;
    }
    if (k->more_help && strcmp(value, "help") == 0) {
        *ret_status = print_more_help(k);
        return false;
    }
    if (k->co_run) {
        add_step(cl, k, value);
        return true;
    }
    *ret_status = EXIT_FAILED;
    return take_setting(cl, k->name, value);
}

/* What getopt_long gives for a long option without a letter. */
#define LONG_OPTION 256

static const struct option_kind *kind_of(int c)
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (c == (kinds[i].letter ? kinds[i].letter : LONG_OPTION + (int)i))
            return &kinds[i];
    }
    return NULL;
}

static bool parse(struct command_line *cl, int argc, char **argv, int *ret_status)
{
    struct option longs[ARRAY_SIZE(kinds) + 1] = { 0 };
    int c;

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        longs[i] = (struct option){
            .name = kinds[i].name,
            .has_arg = kinds[i].value ? required_argument : no_argument,
            .val = kinds[i].letter ? kinds[i].letter : LONG_OPTION + (int)i,
        };

    opterr = 0;
    while ((c = getopt_long(argc, argv, ":hV", longs, NULL)) != -1) {
        const struct option_kind *k = kind_of(c);

        if (!k) {
            *ret_status = c == ':' ? say("option '%s' requires an argument", argv[optind - 1])
                                   : say("unrecognized option '%s'", argv[optind - 1]);
            return false;
        }
        if (!take_option(cl, k, optarg, ret_status))
            return false;
    }
    if (optind < argc) {
        *ret_status = say("%s: Unexpected argument", argv[optind]);
        return false;
    }
    return true;
}

/* ---- running ------------------------------------------------------------------------------ */

static bool co_setup(struct daemon *d, void *arg, struct err *err)
{
    struct command_line *cl = arg;

    if (cl->daemonize)
        chardevs_forbid_stdio(daemon_chardevs(d));
    for (size_t i = 0; i < cl->n_steps; i++) {
        const struct step *s = &cl->steps[i];

        if (!s->kind->co_run(d, s->text, err)) {
            err_prefix(err, "--%s %s: ", s->kind->name, s->text);
            return false;
        }
    }
    if (cl->pid_path) {
        cl->pid_file = pid_file_new(cl->pid_path, err);
        if (!cl->pid_file)
            return false;
    }
    background_ready();
    return true;
}

static int run(struct command_line *cl)
{
    struct err err = ERR_INIT;

    if (cl->daemonize && !background_enter(&err))
        return say("%s", err.text);
    cl->daemon.co_setup = co_setup;
    cl->daemon.setup_arg = cl;

    bool ok = daemon_run(&cl->daemon, &err);

    pid_file_free(cl->pid_file);
    return ok ? EXIT_OK : say("%s", err.text);
}

int cmd_daemon(int argc, char **argv)
{
    struct command_line cl = { .daemon.engine = LOOP_ENGINE_AUTO };
    int status;

    if (parse(&cl, argc, argv, &status))
        status = run(&cl);
    free(cl.steps);
    free(cl.scratch_dir);
    return status;
}
