/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint snapshot: the snapshots inside a qcow2 image that no other process
 * has open. JSON and the table for people are those of qemu-img (info
 * --output=json, snapshot -l).
 */
#include "app/snapshot.h"
#include "app/cli.h"
#include "app/human.h"
#include "app/image_name.h"
#include "app/offline.h"
#include "drivers/qcow2/snapshot.h"
#include <stdio.h>
#include <time.h>

struct snapshot_command {
    const char *path, *format, *name;
    const struct snapshot_verb *verb;
    bool json, force_share;
    json_t *list;
    struct err err;
};

struct snapshot_verb {
    const char *name;
    bool names_one;              /* takes a NAME */
    bool writes;
    bool (*co_do)(struct node *n, const char *name, struct err *err);
};

static const struct snapshot_verb verbs[] = {
    { "list", false, false, NULL },
    { "create", true, true, co_qcow2_snapshot_create },
    { "apply", true, true, co_qcow2_snapshot_apply },
    { "delete", true, true, co_qcow2_snapshot_delete },
};

/* ---- for people ----------------------------------------------------------------------------- */

static json_int_t int_of(const json_t *sn, const char *key)
{
    return json_integer_value(json_object_get(sn, key));
}

static void print_snapshot(const json_t *sn)
{
    time_t date = (time_t)int_of(sn, "date-sec");
    long long clock = int_of(sn, "vm-clock-sec");
    char when[32] = "-", vm_clock[96], icount[24] = "--", size[HUMAN_TEXT];
    struct tm tm;

    if (localtime_r(&date, &tm))
        strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(vm_clock, sizeof(vm_clock), "%02lld:%02lld:%02lld.%03lld", clock / 3600,
             clock / 60 % 60, clock % 60, (long long)int_of(sn, "vm-clock-nsec") / 1000000);
    if (json_object_get(sn, "icount"))
        snprintf(icount, sizeof(icount), "%lld", (long long)int_of(sn, "icount"));
    printf("%-9s %-16s %8s %19s %12s %10s\n", json_string_value(json_object_get(sn, "id")),
           json_string_value(json_object_get(sn, "name")),
           human_size((uint64_t)int_of(sn, "vm-state-size"), size), when, vm_clock, icount);
}

void print_snapshot_list(const json_t *list)
{
    size_t i;
    json_t *sn;

    if (!json_array_size(list))
        return;
    printf("Snapshot list:\n%-9s %-16s %8s %19s %12s %10s\n", "ID", "TAG", "VM SIZE", "DATE",
           "VM CLOCK", "ICOUNT");
    json_array_foreach(list, i, sn)
        print_snapshot(sn);
}

bool snapshot_choose(json_t *options, const char *image, const char *format, const char *snapshot,
                     struct err *err)
{
    if (!snapshot)
        return true;
    if (strcmp(format, "qcow2") != 0)
        return err_set(err, -EINVAL, "'%s' is a %s image: only qcow2 images have snapshots inside",
                       image, format);
    json_object_set_new(options, "snapshot", schema_json_str(snapshot));
    return true;
}

/* ---- the work -------------------------------------------------------------------------------- */

static struct node *co_open_image(struct snapshot_command *c)
{
    const struct open_file_opts o = {
        .filename = c->path, .format = "qcow2", .read_only = !c->verb->writes, .no_backing = true,
        .unmap = true, .force_share = c->force_share,
    };
    struct node *n = co_node_open_file(&o, &c->err);

    if (!n && image_is_locked_by_others(&c->err))
        err_set(&c->err, c->err.code, "'%s' is open in another process: end that first%s", c->path,
                c->verb->writes ? "" : ", or read it as it is now with --force-share");
    return n;
}

/* The list has QEMU's members, which have no place for it. */
static void tell_flaws(const struct snapshot_command *c, struct node *n)
{
    size_t i;
    json_t *sn;

    json_array_foreach(c->list, i, sn) {
        const char *flaw = qcow2_snapshot_flaw(n, i);

        if (flaw)
            fprintf(stderr, "stillpoint snapshot: '%s': snapshot '%s' (id '%s') cannot be used, "
                    "the image is corrupt: %s\n", c->path,
                    json_string_value(json_object_get(sn, "name")),
                    json_string_value(json_object_get(sn, "id")), flaw);
    }
}

static int co_snapshot(void *arg)
{
    struct snapshot_command *c = arg;
    struct node *n = co_open_image(c);

    if (!n)
        return c->err.code;
    if (c->verb->co_do && !c->verb->co_do(n, c->name, &c->err))
        err_prefix(&c->err, "'%s': ", c->path);
    else
        c->list = qcow2_snapshot_list(n);
    tell_flaws(c, n);
    co_node_unref(n);
    return c->err.code;
}

static bool is_qcow2(struct snapshot_command *c)
{
    const char *format = image_format_to_read(c->path, c->format, &c->err);

    return format && (strcmp(format, "qcow2") == 0 ||
                      err_set(&c->err, -EINVAL, "'%s' is a %s image: only qcow2 images have "
                              "snapshots inside", c->path, format));
}

/* Take the operands: VERB IMAGE [NAME]. */
static bool take_operands(struct snapshot_command *c, int argc, char **argv, int *ret_status)
{
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        if (strcmp(argv[0], verbs[i].name) == 0)
            c->verb = &verbs[i];
    }
    c->path = argv[1];
    c->name = argc > 2 ? argv[2] : NULL;
    if (c->verb && c->verb->names_one == !!c->name)
        return true;
    if (!c->verb)
        *ret_status = cli_misuse("snapshot", "'%s' is none of list, create, apply and delete",
                                 argv[0]);
    else if (c->name)
        *ret_status = cli_misuse("snapshot", "what is '%s' for?", c->name);
    else
        *ret_status = cli_misuse("snapshot", "%s needs the NAME of a snapshot", c->verb->name);
    return false;
}

int cmd_snapshot(int argc, char **argv)
{
    struct snapshot_command c = { .err = ERR_INIT };
    const struct cli_option options[] = {
        { "format", 'f', CLI_TEXT, &c.format, "FORMAT",
          "qcow2, for a file whose name does not say so" },
        { "json", 0, CLI_FLAG, &c.json, NULL,
          "the snapshots that there are then, for programs, as in qemu-img info" },
        { "force-share", 'U', CLI_FLAG, &c.force_share, NULL,
          "list although another process may be writing it" },
        { 0 },
    };
    const struct cli_command command = {
        "snapshot", "list|create|apply|delete IMAGE [NAME]", 2, 3,
        "The snapshots inside a qcow2 image: list them, take one of the disk as it is now, make\n"
        "the disk again what it was at one, or delete one. The image must not be in use. NAME is\n"
        "a snapshot's name or its id. A crash on the way leaves the image as before or as after.",
        options,
        "  stillpoint snapshot create disk.qcow2 before-upgrade\n"
        "  stillpoint snapshot apply disk.qcow2 before-upgrade",
    };
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status) ||
        !take_operands(&c, argc - first, argv + first, &status))
        return status;
    if (c.force_share && c.verb->writes)
        return cli_misuse(command.name, "--force-share is for list");
    if (!is_qcow2(&c) || offline_run(co_snapshot, &c, &c.err) < 0)
        return cli_fail(command.name, &c.err);
    if (c.json)
        return cli_put_json(command.name, c.list);
    if (!c.verb->writes)
        print_snapshot_list(c.list);
    json_decref(c.list);
    return cli_end_output(command.name);
}
