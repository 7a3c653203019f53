/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint check: whether an image is consistent, and its repair. Words, JSON
 * members and exit statuses are those of qemu-img check (QEMU docs/tools/qemu-img.rst,
 * "check"; qapi/block-core.json, ImageCheck).
 */
#include "app/cli.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "drivers/qcow2/check.h"
#include <inttypes.h>
#include <stdio.h>

enum {
    CHECK_SOUND = 0,
    CHECK_NOT_DONE = 1,
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
    CHECK_NOT_SUPPORTED = 63,
};

static const char *const repairs[] = { "leaks", "all", NULL };

struct check_command {
    const char *name, *format;
    bool json, quiet, force_share;
    int repair;                /* index of repairs; -1: none */
    struct qcow2_check_result result;
    struct err err;
};

static void tell(void *ctx, const char *line)
{
    const struct check_command *c = ctx;

    if (!c->quiet)
        fprintf(stderr, "%s\n", line);
}

static int co_check(void *arg)
{
    struct check_command *c = arg;
    const struct open_file_opts o = {
        .filename = c->name, .format = protocol_for_filename(c->name), .read_only = c->repair < 0,
        .force_share = c->force_share,
    };
    const struct qcow2_check_opts check = {
        .repair = c->repair < 0 ? QCOW2_REPAIR_NONE
                                : c->repair == 0 ? QCOW2_REPAIR_LEAKS : QCOW2_REPAIR_ALL,
        .tell = tell, .ctx = c,
    };
    struct node *file = co_node_open_file(&o, &c->err);
    bool ok;

    if (!file) {
        if (image_is_locked_by_others(&c->err))
            err_set(&c->err, -EAGAIN, "'%s' is open in another process, which may be writing it: "
                    "end that first%s", c->name,
                    c->repair < 0 ? ", or check it as it is now with --force-share" : "");
        return c->err.code;
    }
    ok = co_qcow2_check(file, &check, &c->result, &c->err);
    if (!ok)
        err_prefix(&c->err, "'%s': ", c->name);
    co_node_unref(file);
    return ok ? 0 : c->err.code;
}

/* ---- what is printed ----------------------------------------------------------------- */

static void add(json_t *json, const char *key, uint64_t v)
{
    if (v)
        json_object_set_new(json, key, json_integer((json_int_t)v));
}

static json_t *to_json(const struct check_command *c)
{
    const struct qcow2_check_result *r = &c->result;
    json_t *json = json_pack("{s:o, s:s, s:I}", "filename", schema_json_str(c->name), "format",
                             "qcow2", "check-errors", (json_int_t)r->check_errors);

    add(json, "image-end-offset", r->image_end);
    add(json, "corruptions", r->corruptions);
    add(json, "leaks", r->leaks);
    add(json, "corruptions-fixed", r->corruptions_fixed);
    add(json, "leaks-fixed", r->leaks_fixed);
    add(json, "total-clusters", r->total);
    add(json, "allocated-clusters", r->allocated);
    add(json, "fragmented-clusters", r->fragmented);
    add(json, "compressed-clusters", r->compressed);
    return json;
}

static void print_for_people(const struct check_command *c)
{
    const struct qcow2_check_result *r = &c->result;

    if (r->corruptions_fixed || r->leaks_fixed)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n",
               r->leaks_fixed, r->corruptions_fixed);
    if (!r->corruptions && !r->leaks && !r->check_errors)
        printf("No errors were found on the image.\n");
    if (r->corruptions)
        printf("\n%" PRIu64 " errors were found on the image.\nData may be corrupted, or further "
               "writes to the image may corrupt it.\n", r->corruptions);
    if (r->leaks)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\nThis means waste of disk "
               "space, but no harm to data.\n", r->leaks);
    if (r->check_errors)
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n",
               r->check_errors);
    if (r->total && r->allocated)
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% "
               "compressed clusters\n", r->allocated, r->total,
               (double)r->allocated * 100 / (double)r->total,
               (double)r->fragmented * 100 / (double)r->allocated,
               (double)r->compressed * 100 / (double)r->allocated);
    printf("Image end offset: %" PRIu64 "\n", r->image_end);
}

static int status_of(const struct qcow2_check_result *r)
{
    if (r->check_errors)
        return CHECK_NOT_DONE;
    if (r->corruptions)
        return CHECK_CORRUPT;
    return r->leaks ? CHECK_LEAKS : CHECK_SOUND;
}

int cmd_check(int argc, char **argv)
{
    struct check_command c = { .repair = -1, .err = ERR_INIT };
    const struct cli_option options[] = {
        { "format", 'f', CLI_TEXT, &c.format, "FORMAT",
          "qcow2; by the name's ending unless given" },
        { "repair", 'r', CLI_CHOICE, &c.repair, "WHAT",
          "leaks: give back clusters that nothing uses; all: whatever can be", repairs },
        { "json", 0, CLI_FLAG, &c.json, NULL, "for programs, as qemu-img check --output=json" },
        { "quiet", 'q', CLI_FLAG, &c.quiet, NULL, "do not list what is wrong one by one" },
        { "force-share", 'U', CLI_FLAG, &c.force_share, NULL,
          "although another process may be writing it" },
        { 0 },
    };
    const struct cli_command command = {
        "check", "IMAGE", 1, 1,
        "See whether a qcow2 image is consistent, and repair it. Exits with 0 when it is (or is\n"
        "now), 2 when it is corrupt, 3 when clusters are leaked, which does no harm; 1 when it\n"
        "could not be checked, or the repair was refused (--json tells what was found), 63 when\n"
        "its format has nothing to check.",
        options, "  stillpoint check --repair leaks disk.qcow2",
    };
    const char *format;
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    c.name = argv[first];
    if (c.force_share && c.repair >= 0)
        return cli_misuse(command.name, "an image that others may use cannot be repaired: leave "
                          "out --force-share or --repair");
    format = image_format_to_read(c.name, c.format, &c.err);
    if (!format)
        return cli_fail(command.name, &c.err);
    if (strcmp(format, "qcow2") != 0) {
        cli_failf(command.name, "'%s': images of format '%s' have nothing to check", c.name,
                  format);
        return CHECK_NOT_SUPPORTED;
    }
    if (offline_run(co_check, &c, &c.err) < 0) {
        if (c.json && c.result.checked)          /* the repair was refused: what was found */
            (void)cli_put_json(command.name, to_json(&c));
        return cli_fail(command.name, &c.err);
    }
    if (c.json)
        status = cli_put_json(command.name, to_json(&c));
    else {
        print_for_people(&c);
        status = cli_end_output(command.name);
    }
    return status == EXIT_OK ? status_of(&c.result) : status;
}
