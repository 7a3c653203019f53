/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint fleece: a disk of a daemon as it is at this moment, exported read-only
 * over NBD until it is closed.
 */
#include "app/cli.h"
#include "app/image_name.h"
#include "app/qmp_client.h"
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

static int open_fleece(const struct fleece_command *f, struct qmp_client *c, const char *disk)
{
    CLEANUP(json_decref) json_t *info = NULL;
    struct err err = ERR_INIT;
    CLEANUP(free) char *dir = NULL;
    const char *uri;

    if (f->scratch_dir && !(dir = image_absolute_path(f->scratch_dir, &err)))
        return cli_fail("fleece", &err);
    if (!qmp_client_execute(c, "blockdev-fleece", fleece_args(f, disk, dir), &info, &err))
        return cli_fail("fleece", &err);
    if (f->json)
        return cli_put_json("fleece", json_incref(info));
    uri = json_string_value(json_object_get(info, "uri"));
    puts(uri ? uri : json_string_value(json_object_get(info, "name")));
    return cli_end_output("fleece");
}

static int close_fleece(struct qmp_client *c, const char *name)
{
    struct err err = ERR_INIT;

    if (qmp_client_execute(c, "block-export-del",
                           json_pack("{s:o, s:s}", "id", schema_json_str(name), "mode", "hard"),
                           NULL, &err))
        return EXIT_OK;
    return cli_fail("fleece", &err);
}

/* @disk is the one that is shown; with --close, the export that was made. */
static int run(const struct fleece_command *f, const char *disk)
{
    struct err err = ERR_INIT;
    CLEANUP(qmp_client_free) struct qmp_client *c = qmp_client_connect(f->control, NULL, &err);

    if (!c)
        return cli_fail("fleece", &err);
    return f->close ? close_fleece(c, disk) : open_fleece(f, c, disk);
}

int cmd_fleece(int argc, char **argv)
{
    struct fleece_command f = { .scratch_memory = UINT64_MAX, .cbw_timeout = UINT64_MAX };
    const struct cli_option options[] = {
        { "name", 'n', CLI_TEXT, &f.name, "EXPORT",
          "of the export; NAME-fleece unless given" },
        { "bitmap", 'B', CLI_LIST, &f.bitmaps, "BITMAP",
          "show this dirty bitmap of the disk, as it is now; may be given several times" },
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
        .name = "fleece", .operands = "NAME", .min_operands = 1, .max_operands = 1,
        .about = "Export a disk of a daemon as it is at this moment, read-only, and go on serving\n"
                 "it. Prints the export's URI. It stays as it is until it is closed.",
        .options = options,
        .example = "  uri=$(stillpoint fleece disk --control control.sock)\n"
                   "  nbdcopy $uri monday.raw\n"
                   "  stillpoint fleece --close disk-fleece --control control.sock",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    f.control = cli_control(f.control);
    if (!f.control)
        return cli_no_control(command.name);
    return run(&f, argv[first]);
}
