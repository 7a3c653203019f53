/* SPDX-License-Identifier: Apache-2.0
 *
 * stillpoint status: what a daemon has on line and is busy with, at a glance, over and
 * over, or as metrics. It asks three QMP commands and puts their answers together.
 */
#include "app/cli.h"
#include "app/human.h"
#include "app/metrics.h"
#include "app/qmp_client.h"
#include "base/mem.h"
#include "loop/loop.h"
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define WATCH_NS NSEC_PER_SEC

struct status {
    const char *control;
    bool json, watch, metrics;
    struct qmp_client *client;
    struct interrupt interrupt;
};

static int64_t number(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static uint64_t bytes_of(const json_t *o, const char *key)
{
    return (uint64_t)MAX(number(o, key), (int64_t)0);
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "?";
}

/* ---- asking ---------------------------------------------------------------------------- */

static json_t *find_by(const json_t *list, const char *key, const char *value)
{
    json_t *o;
    size_t i;

    json_array_foreach((json_t *)list, i, o) {
        if (strcmp(text_of(o, key), value) == 0)
            return o;
    }
    return NULL;
}

/* {"disks": exports, each with its node's dirty bitmaps, "jobs": ...}; NULL with @err. */
static json_t *ask(struct status *s, struct err *err)
{
    CLEANUP(json_decref) json_t *exports = NULL, *nodes = NULL, *jobs = NULL;
    json_t *disk;
    size_t i;

    if (!qmp_client_execute(s->client, "query-block-exports", NULL, &exports, err) ||
        !qmp_client_execute(s->client, "query-named-block-nodes", json_pack("{s:b}", "flat", 1),
                            &nodes, err) ||
        !qmp_client_execute(s->client, "query-block-jobs", NULL, &jobs, err))
        return NULL;
    json_array_foreach(exports, i, disk) {
        const json_t *node = find_by(nodes, "node-name", text_of(disk, "node-name"));
        json_t *bitmaps = json_object_get(node, "dirty-bitmaps");

        json_object_set_new(disk, "dirty-bitmaps",
                            bitmaps ? json_incref(bitmaps) : json_array());
    }
    return json_pack("{s:O, s:O}", "disks", exports, "jobs", jobs);
}

/* ---- for people ------------------------------------------------------------------------ */

static void print_bitmap(const json_t *b)
{
    char dirty[HUMAN_TEXT], granule[HUMAN_TEXT];

    printf("  bitmap %s: %s changed, in pieces of %s%s%s%s\n", text_of(b, "name"),
           human_size(bytes_of(b, "count"), dirty),
           human_size(bytes_of(b, "granularity"), granule),
           json_is_true(json_object_get(b, "persistent")) ? "" : "; ends with the daemon",
           json_is_true(json_object_get(b, "recording")) ? "" : "; does not record",
           json_is_true(json_object_get(b, "inconsistent"))
               ? "; INCONSISTENT, of no use for an incremental backup" : "");
}

/* Since @before, @seconds ago; NULL: since the export was made. */
static uint64_t grown(const json_t *disk, const json_t *before, const char *what, double seconds)
{
    uint64_t now = bytes_of(json_object_get(disk, "stats"), what);
    uint64_t then = bytes_of(json_object_get(before, "stats"), what);

    return before ? (uint64_t)((double)(now - MIN(then, now)) / seconds) : now;
}

static void print_disk(const json_t *disk, const json_t *before, double seconds)
{
    char size[HUMAN_TEXT], read[HUMAN_TEXT], written[HUMAN_TEXT];
    const json_t *bitmaps = json_object_get(disk, "dirty-bitmaps");
    uint64_t errors = bytes_of(json_object_get(disk, "stats"), "errors");
    json_t *b;
    size_t i;

    printf("%-20s %10s %8lld %12s%-2s %12s%-2s %s\n", text_of(disk, "name"),
           human_size(bytes_of(disk, "size"), size), (long long)number(disk, "clients"),
           human_size(grown(disk, before, "read-bytes", seconds), read), before ? "/s" : "",
           human_size(grown(disk, before, "written-bytes", seconds), written),
           before ? "/s" : "",
           json_is_true(json_object_get(disk, "shutting-down")) ? "shutting down"
           : json_object_get(disk, "uri") ? text_of(disk, "uri") : "");
    if (errors)
        printf("  %llu requests of clients failed\n", (unsigned long long)errors);
    json_array_foreach((json_t *)bitmaps, i, b)
        print_bitmap(b);
}

static void print_job(const json_t *job)
{
    const json_t *guest = json_object_get(job, "guest-latency");
    char done[HUMAN_TEXT], total[HUMAN_TEXT], added[HUMAN_TEXT];

    printf("job %s: %s, %s; %s of %s", text_of(job, "device"), text_of(job, "type"),
           text_of(job, "status"), human_size(bytes_of(job, "offset"), done),
           human_size(bytes_of(job, "len"), total));
    if (number(guest, "delayed"))
        printf("; 99 %% of writes took at most %s longer",
               human_latency(bytes_of(guest, "p99-ns"), added));
    printf("%s%s\n", json_object_get(job, "error") ? "; " : "",
           json_object_get(job, "error") ? text_of(job, "error") : "");
}

static void print_all(const json_t *all, const json_t *before, double seconds)
{
    const json_t *disks = json_object_get(all, "disks"), *jobs = json_object_get(all, "jobs");
    const json_t *old = json_object_get(before, "disks");
    json_t *o;
    size_t i;

    if (!json_array_size(disks))
        puts("no disk is on line");
    else
        printf("%-20s %10s %8s %14s %14s %s\n", "DISK", "SIZE", "CLIENTS", "READ", "WRITTEN",
               "AT");
    json_array_foreach((json_t *)disks, i, o)
        print_disk(o, find_by(old, "id", text_of(o, "id")), seconds);
    json_array_foreach((json_t *)jobs, i, o)
        print_job(o);
}

/* ---- over and over --------------------------------------------------------------------- */

/* False: Ctrl-C came. */
static bool wait_until(struct status *s, uint64_t when)
{
    uint64_t now;

    while ((now = loop_now()) < when) {
        struct pollfd p = { .fd = s->interrupt.fd, .events = POLLIN };

        if (poll(&p, 1, (int)div_round_up(when - now, NSEC_PER_MSEC)) > 0)
            return false;
    }
    return true;
}

static bool watch(struct status *s, struct err *err)
{
    const char *clear = isatty(STDOUT_FILENO) ? "\033[H\033[2J" : "";
    CLEANUP(json_decref) json_t *before = NULL;
    uint64_t then = 0, now;

    do {
        json_t *all = ask(s, err);

        now = loop_now();
        if (!all)
            return s->interrupt.count > 0;
        fputs(clear, stdout);
        print_all(all, before, (double)(now - then) / NSEC_PER_SEC);
        fflush(stdout);
        json_decref(before);
        before = all;
        then = now;
    } while (!ferror(stdout) && wait_until(s, now + WATCH_NS));
    return true;
}

static bool once(struct status *s, struct err *err)
{
    CLEANUP(json_decref) json_t *all = ask(s, err);

    if (!all)
        return false;
    if (s->json)
        (void)cli_put_json("status", json_incref(all));
    else if (s->metrics)
        metrics_print(all);
    else
        print_all(all, NULL, 0);
    return true;
}

int cmd_status(int argc, char **argv)
{
    struct status s = { 0 };
    const struct cli_option options[] = {
        { "control", 0, CLI_TEXT, &s.control, "PATH",
          "the daemon's control socket; $STILLPOINT_CONTROL unless given" },
        { "watch", 'w', CLI_FLAG, &s.watch, NULL,
          "every second, with what is read and written a second, until Ctrl-C" },
        { "json", 0, CLI_FLAG, &s.json, NULL, "for programs" },
        { "metrics", 0, CLI_FLAG, &s.metrics, NULL,
          "in the text format of Prometheus, such as for node_exporter's textfile collector" },
        { 0 },
    };
    const struct cli_command command = {
        "status", "", 0, 0,
        "Show what a daemon has on line: disks and their size, clients, what those have read\n"
        "and written so far, dirty bitmaps, jobs.",
        options, "  stillpoint status --control control.sock --watch",
    };
    struct err err = ERR_INIT;
    int first, status;
    bool ok;

    if (!cli_parse(&command, argc, argv, &first, &status))
        return status;
    if (s.watch + s.json + s.metrics > 1)
        return cli_misuse(command.name, "--watch, --json and --metrics exclude each other");
    s.control = cli_control(s.control);
    if (!s.control)
        return cli_no_control(command.name);
    if (!interrupt_init(&s.interrupt, &err))
        return cli_fail(command.name, &err);
    s.client = qmp_client_connect(s.control, &s.interrupt, &err);
    ok = s.client && (s.watch ? watch(&s, &err) : once(&s, &err));
    qmp_client_free(s.client);
    interrupt_done(&s.interrupt);
    return ok ? cli_end_output(command.name) : cli_fail(command.name, &err);
}
