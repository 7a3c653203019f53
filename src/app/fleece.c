/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint fleece: disks of a daemon as they are at this moment, exported read-only
 * over NBD until they are closed.
 */
#include "app/cli.h"
#include "app/image_name.h"
#include "app/served.h"
#include "base/mem.h"
#include <stdio.h>

static const char *const on_error_names[] = { "break-snapshot", "break-guest-write", NULL };

struct fleece_command {
    const char *control, *name, *scratch_dir;
    struct cli_list bitmaps;
    bool close, discard, json;
    uint64_t scratch_memory, scratch_limit, cbw_timeout;
    int on_cbw_error;
};

static json_t *fleece_args(const struct fleece_command *f, const char *disk, const char *dir)
{
    json_t *args = json_pack("{s:o, s:b, s:s}", "device", schema_json_str(disk), "discard",
                             f->discard, "on-cbw-error", on_error_names[f->on_cbw_error]);
    json_t *bitmaps = json_array();

    for (size_t i = 0; i < f->bitmaps.n; i++)
        json_array_append_new(bitmaps, schema_json_str(f->bitmaps.items[i]));
    json_object_set_new(args, "bitmaps", bitmaps);
    if (f->name)
        json_object_set_new(args, "id", schema_json_str(f->name));
    if (dir)
        json_object_set_new(args, "scratch-dir", schema_json_str(dir));
    if (f->scratch_memory != UINT64_MAX)
        json_object_set_new(args, "scratch-memory", json_integer((json_int_t)f->scratch_memory));
    if (f->scratch_limit)
        json_object_set_new(args, "scratch-limit", json_integer((json_int_t)f->scratch_limit));
    if (f->cbw_timeout != UINT64_MAX)
        json_object_set_new(args, "cbw-timeout", json_integer((json_int_t)f->cbw_timeout));
    return args;
}

/* The daemon's words, or better ones. */
static int refused(const struct fleece_command *f, struct qmp_client *c, char *const *disks,
                   size_t n, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        CLEANUP(free) char *unknown = xasprintf("Cannot find device='%s'", disks[i]);

        if (strstr(err->text, unknown)) {
            served_no_such_disk(c, f->control, disks[i], err);
            break;
        }
    }
    return cli_fail("fleece", err);
}

static int tell(const json_t *info)
{
    const char *uri = json_string_value(json_object_get(info, "uri"));

    puts(uri ? uri : json_string_value(json_object_get(info, "id")));
    return cli_end_output("fleece");
}

static int open_one(const struct fleece_command *f, struct qmp_client *c, char *disk,
                    const char *dir)
{
    CLEANUP(json_decref) json_t *info = NULL;
    struct err err = ERR_INIT;

    if (!qmp_client_execute(c, "blockdev-fleece", fleece_args(f, disk, dir), &info, &err))
        return refused(f, c, &disk, 1, &err);
    return f->json ? cli_put_json("fleece", json_incref(info)) : tell(info);
}

/* What the daemon says of each of the exports, in the order of @ids: a new reference. */
static json_t *find_exports(struct qmp_client *c, const json_t *ids, struct err *err)
{
    CLEANUP(json_decref) json_t *all = NULL;
    json_t *found = json_array(), *id, *info;
    size_t i, k;

    if (!qmp_client_execute(c, "query-block-exports", NULL, &all, err)) {
        json_decref(found);
        return NULL;
    }
    json_array_foreach(ids, i, id) {
        json_array_foreach(all, k, info) {
            if (json_equal(json_object_get(info, "id"), id))
                json_array_append(found, info);
        }
    }
    return found;
}

/* At one instant, or none. */
static int open_many(const struct fleece_command *f, struct qmp_client *c, char *const *disks,
                     size_t n, const char *dir)
{
    CLEANUP(json_decref) json_t *ids = json_array();
    CLEANUP(json_decref) json_t *infos = NULL;
    json_t *actions = json_array(), *info;
    struct err err = ERR_INIT;
    size_t k;

    for (size_t i = 0; i < n; i++) {
        CLEANUP(free) char *id = xasprintf("%s-fleece", disks[i]);
        json_t *args = fleece_args(f, disks[i], dir);

        json_object_set_new(args, "id", schema_json_str(id));
        json_array_append_new(ids, schema_json_str(id));
        json_array_append_new(actions, json_pack("{s:s, s:o}", "type", "blockdev-fleece", "data",
                                                 args));
    }
    if (!qmp_client_execute(c, "transaction", json_pack("{s:o}", "actions", actions), NULL, &err))
        return refused(f, c, disks, n, &err);
    infos = find_exports(c, ids, &err);
    if (!infos)
        return cli_fail("fleece", &err);
    if (f->json)
        return cli_put_json("fleece", json_incref(infos));
    json_array_foreach(infos, k, info) {
        int status = tell(info);

        if (status != EXIT_OK)
            return status;
    }
    return EXIT_OK;
}

static int open_all(const struct fleece_command *f, struct qmp_client *c, char *const *disks,
                    size_t n)
{
    struct err err = ERR_INIT;
    CLEANUP(free) char *dir = NULL;

    if (f->scratch_dir && !(dir = image_absolute_path(f->scratch_dir, &err)))
        return cli_fail("fleece", &err);
    return n == 1 ? open_one(f, c, disks[0], dir) : open_many(f, c, disks, n, dir);
}

/* All that can be closed. */
static int close_all(struct qmp_client *c, char *const *names, size_t n)
{
    int status = EXIT_OK;

    for (size_t i = 0; i < n; i++) {
        json_t *args = json_pack("{s:o, s:s}", "id", schema_json_str(names[i]), "mode", "hard");
        struct err err = ERR_INIT;

        if (!qmp_client_execute(c, "block-export-del", args, NULL, &err))
            status = cli_fail("fleece", &err);
    }
    return status;
}

/* @names are the disks that are shown; with --close, the exports that were made. */
static int run(const struct fleece_command *f, char *const *names, size_t n)
{
    struct err err = ERR_INIT;
    CLEANUP(qmp_client_free) struct qmp_client *c = qmp_client_connect(f->control, NULL, &err);

    if (!c)
        return cli_fail("fleece", &err);
    return f->close ? close_all(c, names, n) : open_all(f, c, names, n);
}

int cmd_fleece(int argc, char **argv)
{
    struct fleece_command f = { .scratch_memory = UINT64_MAX, .cbw_timeout = UINT64_MAX };
    const struct cli_option options[] = {
        { "name", 'n', CLI_TEXT, &f.name, "EXPORT",
          "of the export; NAME-fleece unless given. For one disk" },
        { "bitmap", 'B', CLI_LIST, &f.bitmaps, "BITMAP",
          "show this dirty bitmap of each disk, as it is now; may be given several times" },
        { "discard", 0, CLI_FLAG, &f.discard, NULL,
          "clients may give up by TRIM what they have read, and the space that keeps it" },
        { "close", 0, CLI_FLAG, &f.close, NULL, "end the export NAME, and free what it keeps" },
        { "control", 0, CLI_TEXT, &f.control, "PATH",
          "the daemon's control socket; $STILLPOINT_CONTROL unless given" },
        { "scratch-dir", 0, CLI_TEXT, &f.scratch_dir, "DIR",
          "where old data is kept, when memory is not enough" },
        { "scratch-memory", 0, CLI_SIZE, &f.scratch_memory, "SIZE",
          "so much of it is kept in memory first; 128M unless given", .max = INT64_MAX },
        { "scratch-limit", 0, CLI_SIZE, &f.scratch_limit, "SIZE",
          "at most so much of it, in memory and file together", .max = INT64_MAX },
        { "cbw-timeout", 0, CLI_NUMBER, &f.cbw_timeout, "SECONDS",
          "how long a guest's write may wait for that; 45 unless given, 0: no limit",
          .max = UINT32_MAX },
        { "on-cbw-error", 0, CLI_CHOICE, &f.on_cbw_error, "WHAT",
          "what fails when old data cannot be kept: the export, or the guest's write",
          .choices = on_error_names },
        { "json", 0, CLI_FLAG, &f.json, NULL, "for programs: what blockdev-fleece returns" },
        { 0 },
    };
    const struct cli_command command = {
        .name = "fleece", .operands = "NAME...", .min_operands = 1, .max_operands = -1,
        .about = "Export a disk of a daemon as it is at this moment, read-only, and go on serving\n"
                 "it. Prints the export's URI. It stays as it is until it is closed. Several\n"
                 "disks are shown as they are at one moment, a URI a line.",
        .options = options,
        .example = "  uri=$(stillpoint fleece disk --control control.sock)\n"
                   "  nbdcopy $uri monday.raw\n"
                   "  stillpoint fleece --close disk-fleece --control control.sock\n"
                   "  stillpoint fleece data log --control control.sock",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    f.control = cli_control(f.control);
    if (!f.control)
        return cli_no_control(command.name);
    if (f.name && argc - first > 1)
        return cli_misuse(command.name, "--name is for one disk");
    return run(&f, argv + first, (size_t)(argc - first));
}
