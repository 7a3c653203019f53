/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint cancel, pause, resume, complete and set-speed: one order to one job
 * of a daemon each.
 */
#include "app/cli.h"
#include "app/human.h"
#include "app/qmp_client.h"
#include <stdio.h>

struct verb {
    struct cli_command cli;
    const char *command;       /* QMP's */
    bool has_force, has_rate;
};

static int give_order(const struct verb *v, const char *control, json_t *args)
{
    const char *name = v->cli.name;
    struct err err = ERR_INIT;
    CLEANUP(qmp_client_free) struct qmp_client *c = qmp_client_connect(control, NULL, &err);
    /* The client takes the arguments over. */
    CLEANUP(json_decref) json_t *job = json_incref(json_object_get(args, "device"));

    if (!c) {
        json_decref(args);
        return cli_fail(name, &err);
    }
    if (qmp_client_execute(c, v->command, args, NULL, &err))
        return EXIT_OK;
    if (err.class == ERR_DEVICE_NOT_ACTIVE)
        return cli_failf(name, "There is no job '%s': 'stillpoint jobs' lists those there are",
                         json_string_value(job));
    return cli_fail(name, &err);
}

static int run(struct verb v, int argc, char **argv)
{
    const char *control = NULL;
    bool force = false;
    const struct cli_option options[] = {
        { "control", 0, CLI_TEXT, &control, "PATH",
          "the daemon's control socket; $STILLPOINT_CONTROL unless given" },
        { v.has_force ? "force" : NULL, 0, CLI_FLAG, &force, NULL,
          "also if it is paused, and without finishing what it has begun" },
        { 0 },
    };
    struct err err = ERR_INIT;
    uint64_t rate = 0;
    int first, status;

    v.cli.options = options;
    v.cli.min_operands = v.cli.max_operands = 1 + v.has_rate;
    if (!cli_parse(&v.cli, argc, argv, &first, &status))
        return status;
    if (v.has_rate && !human_parse_rate(argv[first + 1], &rate, &err))
        return cli_misuse(v.cli.name, "%s", err.text);
    if (rate > INT64_MAX)
        return cli_misuse(v.cli.name, "'%s' is more than there can be", argv[first + 1]);
    control = cli_control(control);
    if (!control)
        return cli_no_control(v.cli.name);

    json_t *args = json_pack("{s:o}", "device", schema_json_str(argv[first]));

    if (v.has_force)
        json_object_set_new(args, "force", json_boolean(force));
    if (v.has_rate)
        json_object_set_new(args, "speed", json_integer((json_int_t)rate));
    return give_order(&v, control, args);
}

int cmd_cancel(int argc, char **argv)
{
    const struct verb v = {
        .cli = { .name = "cancel", .operands = "JOB",
                 .about = "Cancel a job. A backup with sync=none first keeps what it owes, unless "
                          "forced.",
                 .example = "  stillpoint cancel disk-full --control control.sock" },
        .command = "block-job-cancel", .has_force = true,
    };

    return run(v, argc, argv);
}

int cmd_pause(int argc, char **argv)
{
    const struct verb v = {
        .cli = { .name = "pause", .operands = "JOB",
                 .about = "Pause a job. Its instant stays as it was: old data goes on being kept.",
                 .example = "  stillpoint pause disk-full --control control.sock" },
        .command = "block-job-pause",
    };

    return run(v, argc, argv);
}

int cmd_resume(int argc, char **argv)
{
    const struct verb v = {
        .cli = { .name = "resume", .operands = "JOB",
                 .about = "Let a job go on that was paused, by somebody or by an error.",
                 .example = "  stillpoint resume disk-full --control control.sock" },
        .command = "block-job-resume",
    };

    return run(v, argc, argv);
}

int cmd_complete(int argc, char **argv)
{
    const struct verb v = {
        .cli = { .name = "complete", .operands = "JOB",
                 .about = "End a backup with sync=none: what it has kept is written and flushed.",
                 .example = "  stillpoint complete disk-none --control control.sock" },
        .command = "block-job-complete",
    };

    return run(v, argc, argv);
}

int cmd_set_speed(int argc, char **argv)
{
    const struct verb v = {
        .cli = { .name = "set-speed", .operands = "JOB RATE",
                 .about = "Limit the speed of a job to RATE bytes a second; 0 lifts the limit.",
                 .example = "  stillpoint set-speed disk-full 50M --control control.sock" },
        .command = "block-job-set-speed", .has_rate = true,
    };

    return run(v, argc, argv);
}
