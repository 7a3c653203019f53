/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint jobs: what a daemon is busy with.
 */
#include "app/cli.h"
#include "app/human.h"
#include "app/qmp_client.h"
#include "base/mem.h"
#include <stdio.h>

static uint64_t bytes_of(const json_t *job, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(job, key));

    return v > 0 ? (uint64_t)v : 0;
}

static const char *text_of(const json_t *job, const char *key)
{
    const char *s = json_string_value(json_object_get(job, key));

    return s ? s : "?";
}

static void print_job(const json_t *job)
{
    uint64_t done = bytes_of(job, "offset"), total = bytes_of(job, "len");
    uint64_t speed = bytes_of(job, "speed");
    char a[HUMAN_TEXT], b[HUMAN_TEXT], limit[HUMAN_TEXT + 2] = "-", figures[2 * HUMAN_TEXT + 4];

    if (speed)
        snprintf(limit, sizeof(limit), "%s/s", human_size(speed, a));
    snprintf(figures, sizeof(figures), "%s of %s", human_size(done, a), human_size(total, b));
    printf("%-24s %-8s %-10s %-24s %s\n", text_of(job, "device"), text_of(job, "type"),
           text_of(job, "status"), figures, limit);
    if (json_object_get(job, "error"))
        printf("  %s\n", text_of(job, "error"));
}

int cmd_jobs(int argc, char **argv)
{
    const char *control = NULL;
    bool json = false;
    const struct cli_option options[] = {
        { "control", 0, CLI_TEXT, &control, "PATH",
          "the daemon's control socket; $STILLPOINT_CONTROL unless given" },
        { "json", 0, CLI_FLAG, &json, NULL, "for programs, as QMP's query-block-jobs" },
        { 0 },
    };
    const struct cli_command command = {
        "jobs", "", 0, 0, "List the jobs of a daemon: backups that run, wait or have ended.",
        options, "  stillpoint jobs --control control.sock",
    };
    struct err err = ERR_INIT;
    CLEANUP(json_decref) json_t *jobs = NULL;
    json_t *job;
    size_t i;
    int first, status;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    control = cli_control(control);
    if (!control)
        return cli_no_control(command.name);

    CLEANUP(qmp_client_free) struct qmp_client *c = qmp_client_connect(control, NULL, &err);

    if (!c || !qmp_client_execute(c, "query-block-jobs", NULL, &jobs, &err))
        return cli_fail(command.name, &err);
    if (json)
        return cli_put_json(command.name, json_incref(jobs));
    if (!json_array_size(jobs))
        puts("no jobs");
    else
        printf("%-24s %-8s %-10s %-24s %s\n", "JOB", "TYPE", "STATUS", "DONE", "SPEED LIMIT");
    json_array_foreach(jobs, i, job)
        print_job(job);
    return cli_end_output(command.name);
}
